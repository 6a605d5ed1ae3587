//! Why the daemon ends, and with which status.

use std::io;
use std::path::PathBuf;

use crate::cli;
use crate::http::{HttpError, SocketError, WebConfigError};
use crate::instance::InstanceError;
use crate::kernel::facts::FactsError;
use crate::kernel::load::LoadError;
use crate::kernel::maps::MapsError;
use crate::metrics::MetricsError;
use crate::recording::RecordingError;
use crate::storm::hook::HookError;

/// Why the daemon ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// The kernel is not one that can be watched.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// The programs cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map failed while the daemon ran.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// The address cannot be used.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The socket path cannot be used.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The hooks for storms cannot be used.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The recording cannot be written.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// The web configuration is wrong.
    #[error(transparent)]
    Web(#[from] WebConfigError),
    /// A mistake in the catalogue.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A namespace of the filter cannot be read.
    #[error("`netns` names {}, which cannot be read: {source}; name a file like /proc/PID/ns/net", path.display())]
    Netns {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The runtime, a signal or the ring buffer failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The bundle cannot be written.
    #[error("cannot write {}: {source}; name a file that does not exist yet", path.display())]
    Bundle {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody takes the output.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
}

impl DaemonError {
    /// The status to end with.
    pub(crate) const fn status(&self) -> u8 {
        match self {
            Self::Facts(_) | Self::Load(_) => cli::NOT_PERMITTED,
            Self::Netns { .. } | Self::Web(_) | Self::Hook(HookError::User(_)) => cli::USAGE,
            Self::Maps(_)
            | Self::Http(_)
            | Self::Socket(_)
            | Self::Instance(_)
            | Self::Hook(HookError::Thread(_))
            | Self::Recording(_)
            | Self::Metrics(_)
            | Self::System { .. }
            | Self::Bundle { .. }
            | Self::Output(_) => cli::FAILED,
        }
    }
}
