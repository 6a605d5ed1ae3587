//! The parameters of a page. What is unknown, given twice or wrong is refused, by name and with the remedy.

use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::api::line;

/// The answer to a request that is wrong.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Refusal {
    /// What is wrong, and what would be right.
    pub(crate) error: String,
    /// The parameter that it is about.
    pub(crate) parameter: String,
}

impl Refusal {
    fn new(parameter: &str, error: String) -> Self {
        Self { error, parameter: parameter.to_owned() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, "application/json")], line(&self)).into_response()
    }
}

/// The parameters of a request.
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Those of `uri`, each one of `known` and given once.
    pub(super) fn of(uri: &Uri, known: &[&str]) -> Result<Self, Refusal> {
        let mut given: Vec<(String, String)> = Vec::new();
        for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned() {
            if !known.contains(&name.as_str()) {
                let there = if known.is_empty() {
                    "this page has none".to_owned()
                } else {
                    format!("there are {}", known.join(", "))
                };
                return Err(Refusal::new(&name, format!("unknown parameter {name:?}; {there}")));
            }
            if given.iter().any(|(before, _)| *before == name) {
                return Err(Refusal::new(&name, format!("{name} is given twice; give it once")));
            }
            given.push((name, value));
        }
        Ok(Self(given))
    }

    /// The value of a parameter, by `read`, whose error says what it must be.
    pub(super) fn get<T, E: ToString>(
        &self,
        name: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Refusal> {
        let Some((_, value)) = self.0.iter().find(|(given, _)| given == name) else { return Ok(None) };
        read(value).map(Some).map_err(|error| Refusal::new(name, error.to_string()))
    }

    /// A whole number up to `most`.
    pub(super) fn number(&self, name: &str, most: usize) -> Result<Option<usize>, Refusal> {
        self.get(name, |value| {
            let number = value.parse().ok().filter(|number| *number <= most);
            number.ok_or_else(|| {
                let bound = if most == usize::MAX { String::new() } else { format!(" up to {most}") };
                format!("{name} is {value:?}; it must be a whole number{bound}")
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_parameters_are_named() {
        let of = |query: &str| Params::of(&format!("/x?{query}").parse().unwrap(), &["limit", "filter"]);
        let refused = |query: &str| of(query).err().unwrap();
        assert_eq!(refused("colour=1").error, "unknown parameter \"colour\"; there are limit, filter");
        assert_eq!(refused("limit=1&limit=2").error, "limit is given twice; give it once");
        let params = of("filter=port+443%20and+ipv4&limit=x").unwrap_or_else(|error| panic!("{error:?}"));
        assert_eq!(params.get("filter", |text| Ok::<_, String>(text.to_owned())), Ok(Some("port 443 and ipv4".into())));
        let error = params.number("limit", 200).unwrap_err();
        let expected = "limit is \"x\"; it must be a whole number up to 200";
        assert_eq!((error.parameter.as_str(), error.error.as_str()), ("limit", expected));
    }
}
