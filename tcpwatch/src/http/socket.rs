//! The Unix socket of the API, as a file: bound under a name of its own, given its mode, and then put in place, so
//! that nobody can connect earlier than meant. What a killed daemon left there is replaced; the instance lock says
//! that it was left.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Owner and group may connect.
const MODE: u32 = 0o660;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the socket {}: {reason}; name another path with --socket", path.display())]
pub(crate) struct SocketError {
    path: PathBuf,
    reason: io::Error,
}

/// A listening socket; its file is removed with it.
#[derive(Debug)]
pub(crate) struct SocketFile {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

impl SocketFile {
    /// Binds `path`; to be called within a runtime, by who holds the right to that path.
    pub(crate) fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |reason| SocketError { path: path.to_owned(), reason };
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, "something else has that name")));
            }
            _ => {}
        }
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&new).map_err(failed)?;
        fs::set_permissions(&new, Permissions::from_mode(MODE)).map_err(failed)?;
        fs::rename(&new, path).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned() })
    }
}

/// The file of a socket: goes when this goes.
#[derive(Debug)]
pub(super) struct File(PathBuf);

impl SocketFile {
    /// The socket and its file.
    pub(super) fn into_parts(self) -> (UnixListener, File) {
        (self.listener, File(self.path))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            log::warn!("cannot remove the socket {}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_the_new_one_removed_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(std::os::unix::net::UnixStream::connect(&path).is_err());
        let (_listener, file) = SocketFile::bind(&path).unwrap().into_parts();
        std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        drop(file);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        fs::write(&path, "precious").unwrap();
        let error = SocketFile::bind(&path).unwrap_err().to_string();
        assert!(error.contains("something else has that name") && error.contains("--socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
