//! The settings: defaults, then the file, then the environment, then flags; resolved once, at start.
//!
//! `keys` is the one list of settings, `rules` says what a value may be, `file` reads TOML, `resolve` puts the layers
//! on top of each other. The daemon and the command line get a [`Config`] in which every value is valid.

mod file;
mod keys;
mod resolve;
mod rules;
mod storm;

use std::fmt;
use std::io;
use std::path::PathBuf;

pub(crate) use keys::{Config, ResetHook, SETTINGS, Sampling, example, page};
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use resolve::of_text;
pub(crate) use resolve::{Choice, Flag, Layers, Resolved, resolve};
pub(crate) use rules::duration;

/// Where the daemon looks for its settings when no other file is named.
pub(crate) const DEFAULT_FILE: &str = "/etc/tcpwatch/tcpwatch.toml";
/// The variable that names another file.
pub(crate) const FILE_VARIABLE: &str = "TCPWATCH_CONFIG";

/// Who gave a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nobody: it is what tcpwatch does by itself.
    Default,
    /// A line of the file.
    File {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
    },
    /// A variable of the environment.
    Environment(String),
    /// A flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// What is wrong with the settings. The program ends with status 2.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {reason}; {remedy}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// The file is no TOML.
    #[error("{origin}: {what}")]
    Syntax {
        /// File and line.
        origin: Origin,
        /// What the parser said.
        what: String,
    },
    /// A key of the file that is no setting.
    #[error("{origin}: unknown key `{key}`{}", did_you_mean(*nearest))]
    UnknownKey {
        /// File and line.
        origin: Origin,
        /// The key.
        key: String,
        /// The setting with the most similar name.
        nearest: Option<&'static str>,
    },
    /// A value that the setting cannot have.
    #[error("{origin}: `{key}` is {found}; it must be {allowed}")]
    BadValue {
        /// Where the value stands.
        origin: Origin,
        /// The setting.
        key: &'static str,
        /// The value, as it stands there.
        found: String,
        /// What it may be.
        allowed: String,
    },
    /// More than one of the above, so that they can be mended in one go.
    #[error("{} errors in the configuration:{}", .0.len(), listed(.0))]
    Several(Vec<ConfigError>),
}

impl ConfigError {
    /// All of `errors` as one; `None` when there are none.
    fn of(mut errors: Vec<Self>) -> Option<Self> {
        if errors.len() > 1 { Some(Self::Several(errors)) } else { errors.pop() }
    }
}

/// The end of a sentence about an unknown name.
fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

fn listed(errors: &[ConfigError]) -> String {
    errors.iter().map(|error| format!("\n  {error}")).collect::<Vec<_>>().concat()
}
