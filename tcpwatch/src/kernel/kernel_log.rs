//! What the kernel programs log, when they are told to.

use std::io;

use crate::sys;

/// Prints what the kernel programs log, until the daemon ends.
pub(crate) fn follow(ebpf: &mut aya::Ebpf) -> Option<tokio::task::JoinHandle<()>> {
    let logger = aya_log::EbpfLogger::init(ebpf).map_err(io::Error::other).and_then(sys::readable);
    match logger {
        Ok(mut logger) => Some(tokio::spawn(async move {
            while let Ok(mut guard) = logger.readable_mut().await {
                guard.get_inner_mut().flush();
                guard.clear_ready();
            }
        })),
        Err(error) => {
            log::warn!("the log of the kernel programs cannot be read: {error}");
            None
        }
    }
}
