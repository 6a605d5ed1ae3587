//! One daemon per socket path: a lock beside it, held until the process ends, however it ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::sys;

/// Why this daemon may not use the socket path.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstanceError {
    /// Another one does.
    #[error("another tcpwatch already runs with the socket {}; stop it, or name another path with --socket", .0.display())]
    Running(PathBuf),
    /// The lock cannot be made.
    #[error("cannot use {} for the socket: {source}; run as root, or name another path with --socket", path.display())]
    Lock {
        /// The lock file or its folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The right to a socket path.
#[derive(Debug)]
pub(crate) struct Instance {
    _lock: File,
}

impl Instance {
    /// Takes the right to `socket`; its folder is made when it is not there.
    pub(crate) fn claim(socket: &Path) -> Result<Self, InstanceError> {
        let failed = |path: &Path, source| InstanceError::Lock { path: path.to_owned(), source };
        if let Some(folder) = socket.parent().filter(|f| !f.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
        }
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| failed(&path, error))?;
        match sys::try_lock(&lock) {
            Ok(true) => Ok(Self { _lock: lock }),
            Ok(false) => Err(InstanceError::Running(socket.to_owned())),
            Err(error) => Err(failed(&path, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_claim_is_refused_until_the_first_ends() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("run/tcpwatch.sock");
        let first = Instance::claim(&socket).unwrap();
        let error = Instance::claim(&socket).unwrap_err();
        assert!(error.to_string().starts_with("another tcpwatch already runs with the socket "), "{error}");
        drop(first);
        Instance::claim(&socket).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let error = Instance::claim(&folder.path().join("file/tcpwatch.sock")).unwrap_err();
        assert!(error.to_string().contains("--socket"), "{error}");
    }
}
