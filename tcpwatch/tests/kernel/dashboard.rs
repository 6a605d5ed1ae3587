//! The dashboards as data: their panels and what they ask for. Also a module of tests/deploy.rs.

use serde_json::Value;

/// The files.
pub(crate) const FILES: [(&str, &str); 4] = [
    ("overview", include_str!("../../../deploy/grafana/tcpwatch-overview.json")),
    ("resets", include_str!("../../../deploy/grafana/tcpwatch-resets.json")),
    ("services", include_str!("../../../deploy/grafana/tcpwatch-services.json")),
    ("itself", include_str!("../../../deploy/grafana/tcpwatch-itself.json")),
];
/// In the description of a panel that a healthy host leaves empty; the reason follows.
pub(crate) const MAY_BE_EMPTY: &str = "May be empty: ";

/// A dashboard.
pub(crate) struct Dashboard {
    /// What its file is named after.
    pub(crate) name: &'static str,
    pub(crate) json: Value,
    /// Those that show data.
    pub(crate) panels: Vec<Panel>,
}

/// A panel that shows data.
pub(crate) struct Panel {
    pub(crate) title: String,
    /// Its queries, with the variables of the dashboard in them.
    pub(crate) queries: Vec<String>,
    pub(crate) may_be_empty: bool,
    pub(crate) json: Value,
}

/// All dashboards.
pub(crate) fn all() -> Vec<Dashboard> {
    FILES.into_iter().map(|(name, text)| Dashboard::read(name, text)).collect()
}

impl Dashboard {
    fn read(name: &'static str, text: &str) -> Self {
        let json: Value = serde_json::from_str(text).expect("a dashboard is JSON");
        let all = json["panels"].as_array().expect("a dashboard has panels").clone();
        let panels = all.into_iter().filter(|panel| panel["type"] != "row" && panel["type"] != "text");
        Self { name, panels: panels.map(Panel::read).collect(), json }
    }

    /// What the lists of its variables are made of.
    pub(crate) fn definitions(&self) -> Vec<&str> {
        let all = self.json["templating"]["list"].as_array().expect("a dashboard has variables");
        all.iter().filter_map(|variable| variable["definition"].as_str()).collect()
    }
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

    /// Its legends, a query each.
    pub(crate) fn legends(&self) -> impl Iterator<Item = &str> {
        self.json["targets"].as_array().into_iter().flatten().map(|t| t["legendFormat"].as_str().unwrap_or_default())
    }
}
