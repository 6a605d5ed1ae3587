//! The dashboard as data: its panels and what they ask for. Also a module of tests/deploy.rs.

use serde_json::Value;

/// The file.
pub(crate) const TEXT: &str = include_str!("../../../deploy/grafana/tcpwatch-overview.json");
/// In the description of a panel that a healthy host leaves empty; the reason follows.
pub(crate) const MAY_BE_EMPTY: &str = "May be empty: ";

/// A panel that shows something.
pub(crate) struct Panel {
    pub(crate) title: String,
    /// Its queries, with the variables of the dashboard in them.
    pub(crate) queries: Vec<String>,
    pub(crate) may_be_empty: bool,
    pub(crate) json: Value,
}

/// All panels but the rows that group them.
pub(crate) fn panels() -> Vec<Panel> {
    let dashboard: Value = serde_json::from_str(TEXT).expect("the dashboard is JSON");
    let all = dashboard["panels"].as_array().expect("the dashboard has panels").clone();
    all.into_iter().filter(|panel| panel["type"] != "row").map(Panel::read).collect()
}

impl Panel {
    fn read(json: Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let targets = json["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
        Self {
            title: text(&json["title"]),
            queries: targets.iter().map(|target| text(&target["expr"])).collect(),
            may_be_empty: text(&json["description"]).contains(MAY_BE_EMPTY),
            json,
        }
    }
}
