//! Settings that change while the daemon runs: what SIGHUP takes up, and what stays until a restart.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use crate::config::{Config, ConfigError, Resolved, SETTINGS};
use crate::http::{Access, WebConfig, WebConfigError};

/// Settings that a reload takes up, the files that they name with them.
pub(crate) const TAKEN_UP: [&str; 4] = ["allowed_hosts", "connection_data", "log_level", "web_config"];

/// What the settings say about access.
pub(crate) fn access(config: &Config) -> Result<Access, WebConfigError> {
    let web = config.web_config.as_deref().map(WebConfig::read).transpose()?;
    if web.as_ref().is_some_and(WebConfig::in_the_clear) && !config.listen.ip().is_loopback() {
        log::warn!(
            "passwords and tokens cross the network in the clear: add `tls_server_config` to the web configuration"
        );
    }
    Ok(Access { names: config.allowed_hosts.clone(), web, connection_data: config.connection_data })
}

/// Says how much is logged from now on.
pub(crate) fn apply_log_level(config: &Config) {
    log::set_max_level(config.log_level);
}

/// Why the settings stay as they are.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Web(#[from] WebConfigError),
}

/// What holds, and how to find out what should.
pub(crate) struct Settings<F> {
    pub(crate) config: Config,
    resolve: F,
    access: watch::Sender<Arc<Access>>,
}

impl<F: Fn() -> Result<Resolved, ConfigError>> Settings<F> {
    pub(crate) fn new(config: Config, resolve: F) -> Result<Self, WebConfigError> {
        let access = watch::channel(Arc::new(access(&config)?)).0;
        Ok(Self { config, resolve, access })
    }

    pub(crate) fn access(&self) -> watch::Receiver<Arc<Access>> {
        self.access.subscribe()
    }

    /// Takes up what can be; when anything is wrong, everything stays as it was.
    pub(crate) fn reload(&mut self) {
        match self.try_reload() {
            Ok(waiting) if waiting.is_empty() => log::info!("settings reloaded"),
            Ok(waiting) => log::warn!("settings reloaded; {} will hold after a restart", waiting.join(", ")),
            Err(error) => log::error!("settings not reloaded, the old ones hold: {error}"),
        }
    }

    /// The changed settings that wait for a restart.
    fn try_reload(&mut self) -> Result<Vec<&'static str>, ReloadError> {
        let found = (self.resolve)()?.config;
        let access = access(&found)?;
        let waiting = SETTINGS
            .iter()
            .filter(|setting| !TAKEN_UP.contains(&setting.key) && setting.differs(&self.config, &found))
            .map(|setting| setting.key)
            .collect();
        self.config.allowed_hosts = found.allowed_hosts;
        self.config.connection_data = found.connection_data;
        self.config.log_level = found.log_level;
        self.config.web_config = found.web_config;
        apply_log_level(&self.config);
        self.access.send_replace(Arc::new(access));
        Ok(waiting)
    }
}

/// For `tcpwatch check-config`: reads what the settings name.
pub(crate) fn check(config: &Config) -> Result<Option<PathBuf>, WebConfigError> {
    access(config).map(|_| config.web_config.clone())
}

/// Tells systemd, if it listens, what becomes of this process.
pub(crate) fn tell_systemd(states: &[sd_notify::NotifyState<'_>]) {
    let unable = |error: io::Error| log::warn!("cannot tell systemd how the daemon is: {error}");
    let _done = sd_notify::notify(states).map_err(unable);
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::{Choice, Layers, resolve};

    #[test]
    fn what_a_reload_takes_up_are_settings() {
        for key in TAKEN_UP {
            assert!(SETTINGS.iter().any(|setting| setting.key == key), "{key}");
        }
    }

    #[test]
    fn a_reload_takes_up_what_it_can_and_a_mistake_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.toml");
        let web = folder.path().join("web.yml");
        let layers = Layers { file: Choice::Named(file.clone()), environment: Vec::new(), flags: Vec::new() };
        fs::write(&file, "").unwrap();
        let mut settings = Settings::new(Config::default(), || resolve(&layers)).unwrap();
        let seen = settings.access();
        assert!(seen.borrow().web.is_none() && seen.borrow().connection_data);
        let text =
            format!("web_config = {web:?}\nconnection_data = false\nservices = 3\nallowed_hosts = [\"web-1\"]\n");
        fs::write(&file, &text).unwrap();
        settings.try_reload().expect_err("the web configuration is not there");
        assert!(seen.borrow().web.is_none() && seen.borrow().names.is_empty());
        fs::write(&web, "bearer_tokens:\n  a: x\n").unwrap();
        let told = settings.try_reload().unwrap_err().to_string();
        assert!(told.contains("web.yml:2: ") && seen.borrow().web.is_none(), "{told}");
        fs::write(&web, format!("bearer_tokens:\n  a: sha256:{}\n", "0".repeat(64))).unwrap();
        assert_eq!(settings.try_reload().unwrap(), ["services"]);
        assert!(seen.borrow().web.is_some() && !seen.borrow().connection_data);
        assert_eq!((seen.borrow().names.as_slice(), settings.config.services), (&["web-1".to_owned()][..], 16));
        fs::write(&file, "nonsense\n").unwrap();
        settings.try_reload().unwrap_err();
        assert!(seen.borrow().web.is_some(), "the old settings hold");
    }
}
