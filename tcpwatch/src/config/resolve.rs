//! Puts the layers on top of each other: defaults, file, environment, flags. Everything that is wrong is told at once.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::keys::{PREFIX, Setting, nearest};
use super::rules::Raw;
use super::{Config, ConfigError, FILE_VARIABLE, Origin, SETTINGS, did_you_mean, file};

/// Variables with our prefix that are no settings: the name of the file, and what building and testing look at.
const OTHER_VARIABLES: [&str; 9] = [
    FILE_VARIABLE,
    "TCPWATCH_REQUIRE_BPF",
    "TCPWATCH_FORBID_SKIPS",
    "TCPWATCH_COMMIT",
    "TCPWATCH_BLESS",
    "TCPWATCH_PROMETHEUS",
    "TCPWATCH_TEST_FULL",
    "TCPWATCH_TESTS",
    "TCPWATCH_GUEST",
];
/// The same, for the rest of the name.
const OTHER_PREFIX: &str = "TCPWATCH_BPF_";

/// Which file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The usual one, which need not be there.
    Default(PathBuf),
    /// One that somebody named, which must be there.
    Named(PathBuf),
}

/// A setting given by a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flag {
    /// The setting.
    pub(crate) key: &'static str,
    /// The flag, with its dashes.
    pub(crate) name: &'static str,
    /// What it was given.
    pub(crate) value: String,
}

/// Everything that settings come from.
#[derive(Clone, Debug)]
pub(crate) struct Layers {
    /// The file.
    pub(crate) file: Choice,
    /// The whole environment.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// The flags that were given.
    pub(crate) flags: Vec<Flag>,
}

/// The settings that hold, and why.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resolved {
    /// The settings.
    pub(crate) config: Config,
    /// What deserves attention but stops nothing, a sentence each.
    pub(crate) warnings: Vec<String>,
    /// The file that was read.
    pub(crate) file: Option<PathBuf>,
    /// Who gave each value, in the order of [`SETTINGS`].
    origins: Vec<Origin>,
}

/// Reads the file and resolves the layers.
pub(crate) fn resolve(layers: &Layers) -> Result<Resolved, ConfigError> {
    let text = match &layers.file {
        Choice::Named(path) => Some((path, load(path)?)),
        Choice::Default(path) => match load(path) {
            Ok(text) => Some((path, text)),
            Err(ConfigError::Unreadable { reason, .. }) if reason.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        },
    };
    settle(text.as_ref().map(|(path, text)| (path.as_path(), text.as_str())), layers)
}

/// Resolves the text of a file alone.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn of_text(text: &str) -> Result<Resolved, ConfigError> {
    let nothing = Layers { file: Choice::Default(PathBuf::new()), environment: Vec::new(), flags: Vec::new() };
    settle(Some((Path::new("/t.toml"), text)), &nothing)
}

fn load(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|reason| {
        let remedy = match reason.kind() {
            io::ErrorKind::NotFound => "create it, or name another with --config",
            io::ErrorKind::PermissionDenied => "run tcpwatch as a user who may read it",
            io::ErrorKind::IsADirectory => "name the file inside of it",
            io::ErrorKind::InvalidData => "write it in UTF-8",
            _ => "name another with --config",
        };
        ConfigError::Unreadable { path: path.to_owned(), reason, remedy }
    })
}

/// Resolves without reading anything: `file` is the path and the text of the file.
fn settle(file: Option<(&Path, &str)>, layers: &Layers) -> Result<Resolved, ConfigError> {
    let mut resolved = Resolved {
        config: Config::default(),
        warnings: Vec::new(),
        file: file.map(|(path, _)| path.to_owned()),
        origins: vec![Origin::Default; SETTINGS.len()],
    };
    let mut errors = Vec::new();
    if let Some((path, text)) = file {
        resolved.apply_file(path, text, &mut errors);
    }
    resolved.apply_environment(&layers.environment, &mut errors);
    for flag in &layers.flags {
        let raw = Raw::Text(flag.value.clone());
        resolved.set(flag.key, &raw, &format!("{:?}", flag.value), Origin::Flag(flag.name), &mut errors);
    }
    if errors.is_empty() {
        resolved.check_together(&mut errors);
    }
    ConfigError::of(errors).map_or(Ok(resolved), Err)
}

impl Resolved {
    /// Who gave the setting `key`.
    pub(crate) fn origin(&self, key: &str) -> &Origin {
        let found = SETTINGS.iter().zip(&self.origins).find(|(setting, _)| setting.key == key);
        found.map_or(&Origin::Default, |(_, origin)| origin)
    }

    /// The settings as TOML, each with its origin as a comment.
    pub(crate) fn to_toml(&self) -> String {
        let lines = SETTINGS.iter().zip(&self.origins);
        let line = |(setting, origin): (&Setting, &Origin)| {
            format!("{} = {} # {origin}\n", setting.key, (setting.show)(&self.config))
        };
        lines.map(line).collect::<Vec<_>>().concat()
    }

    fn apply_file(&mut self, path: &Path, text: &str, errors: &mut Vec<ConfigError>) {
        let (entries, mut syntax) = file::read(path, text);
        errors.append(&mut syntax);
        for entry in entries {
            if !self.set(&entry.key, &entry.raw, &entry.found, entry.origin.clone(), errors) {
                let nearest = nearest(&entry.key);
                errors.push(ConfigError::UnknownKey { origin: entry.origin, key: entry.key, nearest });
            }
        }
    }

    fn apply_environment(&mut self, environment: &[(OsString, OsString)], errors: &mut Vec<ConfigError>) {
        let mut ours: Vec<_> = environment
            .iter()
            .map(|(name, value)| (name.to_string_lossy(), value))
            .filter(|(name, _)| name.starts_with(PREFIX))
            .filter(|(name, _)| !OTHER_VARIABLES.contains(&name.as_ref()) && !name.starts_with(OTHER_PREFIX))
            .collect();
        // The order of the environment is nobody's intention, and messages should not depend on it.
        ours.sort();
        for (name, value) in ours {
            let Some(setting) = SETTINGS.iter().find(|setting| setting.variable() == name) else {
                let key = name.strip_prefix(PREFIX).unwrap_or_default();
                let known = nearest(key).map(|key| format!("{PREFIX}{}", key.to_ascii_uppercase()));
                let hint = did_you_mean(known.as_deref());
                self.warnings.push(format!("environment variable {name} is no setting of tcpwatch{hint}"));
                continue;
            };
            let origin = Origin::Environment(name.into_owned());
            let raw = value.to_str().map_or(Raw::Other, |text| Raw::Text(text.to_owned()));
            let found = format!("\"{}\"", value.display());
            self.set(setting.key, &raw, &found, origin, errors);
        }
    }

    /// Sets `key`, or says why not; false when there is no such setting.
    fn set(&mut self, key: &str, raw: &Raw, found: &str, origin: Origin, errors: &mut Vec<ConfigError>) -> bool {
        let Some((setting, slot)) = SETTINGS.iter().zip(&mut self.origins).find(|(setting, _)| setting.key == key)
        else {
            return false;
        };
        if (setting.set)(&mut self.config, raw).is_some() {
            *slot = origin;
        } else {
            let (found, allowed) = (found.to_owned(), (setting.allowed)());
            errors.push(ConfigError::BadValue { origin, key: setting.key, found, allowed });
        }
        true
    }

    /// What no setting can tell by itself.
    fn check_together(&self, errors: &mut Vec<ConfigError>) {
        let (ports, services) = (self.config.service_ports.len(), self.config.services);
        if ports > services as usize {
            errors.push(ConfigError::BadValue {
                origin: self.origin("service_ports").clone(),
                key: "service_ports",
                found: format!("a list of {ports} ports"),
                allowed: format!("no longer than `services`, which is {services}"),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::example;
    use super::*;
    use crate::config::Sampling;
    use proptest::prelude::*;
    use std::time::Duration;

    fn layers(environment: &[(&str, &str)], flags: &[(&'static str, &'static str, &str)]) -> Layers {
        Layers {
            file: Choice::Default("/nowhere".into()),
            environment: environment.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            flags: flags.iter().map(|&(key, name, value)| Flag { key, name, value: value.to_owned() }).collect(),
        }
    }

    fn with_file(text: &str) -> Result<Resolved, ConfigError> {
        settle(Some((Path::new("/etc/t.toml"), text)), &layers(&[], &[]))
    }

    #[test]
    fn without_anything_the_defaults_hold() {
        let resolved = settle(None, &layers(&[("PATH", "/bin")], &[])).unwrap();
        assert_eq!(resolved.config, Config::default());
        assert_eq!(resolved.config.listen.to_string(), "127.0.0.1:10793");
        assert_eq!(resolved.config.sample_interval, Duration::from_secs(1));
        assert!(resolved.warnings.is_empty());
        assert_eq!(resolved.origin("listen"), &Origin::Default);
    }

    #[test]
    fn flags_win_over_environment_over_file() {
        let file = "listen = \"127.0.0.1:1\"\nservices = 3\nsampling = \"tick\"\n";
        let layers = layers(
            &[("TCPWATCH_LISTEN", "127.0.0.1:2"), ("TCPWATCH_SERVICES", "4")],
            &[("listen", "--listen", "127.0.0.1:3")],
        );
        let resolved = settle(Some((Path::new("/etc/t.toml"), file)), &layers).unwrap();
        assert_eq!(resolved.config.listen.port(), 3);
        assert_eq!(resolved.config.services, 4);
        assert_eq!(resolved.config.sampling, Sampling::Tick);
        assert_eq!(resolved.origin("listen"), &Origin::Flag("--listen"));
        assert_eq!(resolved.origin("services"), &Origin::Environment("TCPWATCH_SERVICES".to_owned()));
        assert_eq!(resolved.origin("sampling").to_string(), "/etc/t.toml:3");
        let toml = resolved.to_toml();
        assert!(toml.contains("services = 4 # environment variable TCPWATCH_SERVICES\n"), "{toml}");
        assert!(toml.contains("strict = false # default\n"), "{toml}");
    }

    #[test]
    fn what_config_prints_is_a_file_that_gives_the_same_settings() {
        let file = "netns = [\"/run/netns/a\\\"b\"]\nservice_ports = [443, 22]\nallowed_hosts = [\"Web-1\"]\nring_bytes = 65536\n";
        let first = with_file(file).unwrap();
        let second = with_file(&first.to_toml()).unwrap();
        assert_eq!(first.config, second.config);
        assert_eq!(second.config.ring_bytes, 65_536);
    }

    #[test]
    fn every_mistake_of_a_file_is_told_with_line_and_remedy() {
        let error =
            with_file("listn = \"x\"\nservices = 99\nsample_interval = 5\nstrict = \"yes\"\ncolour = 1\n").unwrap_err();
        let most = crate::metrics::MOST_SERVICES;
        let expected = format!(
            "5 errors in the configuration:\n  \
            /etc/t.toml:1: unknown key `listn`; did you mean `listen`?\n  \
            /etc/t.toml:2: `services` is 99 (an integer); it must be a whole number from 1 to {most}\n  \
            /etc/t.toml:3: `sample_interval` is 5 (an integer); it must be a time from 100ms to 1m, such as \"500ms\" or \"2s\"\n  \
            /etc/t.toml:4: `strict` is \"yes\" (a string); it must be true or false\n  \
            /etc/t.toml:5: unknown key `colour`"
        );
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn values_of_environment_and_flags_are_checked_the_same_way() {
        let layers = layers(&[("TCPWATCH_LOG_LEVEL", "loud")], &[("listen", "--listen", "10793")]);
        let told = settle(None, &layers).unwrap_err().to_string();
        assert!(
            told.contains("environment variable TCPWATCH_LOG_LEVEL: `log_level` is \"loud\"; it must be one of"),
            "{told}"
        );
        assert!(told.contains("flag --listen: `listen` is \"10793\"; it must be an IP address and a port"), "{told}");
    }

    #[test]
    fn variables_that_are_no_settings_are_warned_about() {
        let layers = layers(
            &[
                ("TCPWATCH_LISTN", "x"),
                ("TCPWATCH_WHATEVER", "x"),
                ("TCPWATCH_CONFIG", "/x"),
                ("TCPWATCH_BPF_LINKER", "/x"),
                ("TCPWATCH_REQUIRE_BPF", "1"),
            ],
            &[],
        );
        let resolved = settle(None, &layers).unwrap();
        let expected = [
            "environment variable TCPWATCH_LISTN is no setting of tcpwatch; did you mean `TCPWATCH_LISTEN`?",
            "environment variable TCPWATCH_WHATEVER is no setting of tcpwatch",
        ];
        assert_eq!(resolved.warnings, expected);
    }

    #[test]
    fn more_fixed_ports_than_services_are_refused() {
        let told = with_file("services = 1\nservice_ports = [22, 443]\n").unwrap_err().to_string();
        let expected =
            "/etc/t.toml:2: `service_ports` is a list of 2 ports; it must be no longer than `services`, which is 1";
        assert_eq!(told, expected);
    }

    #[test]
    fn only_the_usual_file_may_be_missing() {
        let folder = tempfile::tempdir().unwrap();
        let mut layers = layers(&[], &[]);
        layers.file = Choice::Default(folder.path().join("none.toml"));
        assert_eq!(resolve(&layers).unwrap().file, None);
        layers.file = Choice::Named(folder.path().join("none.toml"));
        let told = resolve(&layers).unwrap_err().to_string();
        assert!(told.contains("none.toml: ") && told.ends_with("create it, or name another with --config"), "{told}");
        layers.file = Choice::Default(folder.path().to_owned());
        assert!(resolve(&layers).unwrap_err().to_string().ends_with("name the file inside of it"));
        let file = folder.path().join("t.toml");
        fs::write(&file, "services = 2\n").unwrap();
        layers.file = Choice::Named(file.clone());
        let resolved = resolve(&layers).unwrap();
        assert_eq!((resolved.config.services, resolved.file), (2, Some(file)));
    }

    proptest! {
        #[test]
        fn any_values_give_valid_settings_or_errors(
            values in proptest::collection::vec(
                (0..SETTINGS.len(), "[a-z0-9/:.,\\[\\]\"-]{0,9}|127.0.0.1:[0-9]{1,5}|[0-9]{1,3}(ms|s|KiB)?|true"),
                0..3,
            )
        ) {
            let named: Vec<_> = values.iter().map(|(i, value)| (SETTINGS[*i].variable(), value)).collect();
            let environment: Vec<_> = named.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            match settle(None, &layers(&environment, &[])) {
                // What holds can be written down and read back.
                Ok(resolved) => prop_assert_eq!(with_file(&resolved.to_toml()).unwrap().config, resolved.config),
                Err(error) => prop_assert!(error.to_string().contains("environment variable TCPWATCH_")),
            }
        }

        #[test]
        fn any_text_is_a_file_or_refused(text in "([a-z_]{1,12} = [0-9a-z\"\\[\\]]{0,8}\n){0,6}|.{0,60}") {
            let _outcome = with_file(&text);
        }
    }

    #[test]
    fn the_example_file_gives_the_defaults_commented_or_not() {
        let commented = example();
        let active = commented.lines().map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => setting,
            _ => line,
        });
        let active = active.collect::<Vec<_>>().join("\n");
        for text in [commented, active.clone()] {
            assert_eq!(with_file(&text).unwrap().config, Config::default());
        }
        let resolved = with_file(&active).unwrap();
        assert!(resolved.origins.iter().all(|origin| matches!(origin, Origin::File { .. })), "{active}");
    }
}
