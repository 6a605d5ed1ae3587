//! The program that sees who reads, attached only while somebody new may: tcp_rcv_space_adjust fires at every read, and the
//! kernel's way to a program costs as much as all that tcp_probe does.

use std::time::Duration;

use aya::Ebpf;
use aya::programs::tp_btf::BtfTracePointLinkId;
use aya::programs::{BtfTracePoint, ProgramError};

use crate::sys;

/// Its name.
pub(crate) const PROGRAM: &str = "tcp_rcv_space_adjust";
/// So long after a connection was accepted it is watched who reads. Whoever holds one and does not read meanwhile is found by a
/// pass over the files.
const WATCH: Duration = Duration::from_secs(3);

/// Attached or at rest.
#[derive(Debug)]
pub(crate) struct Reads {
    link: Option<BtfTracePointLinkId>,
    /// It is there, and could be attached the last time.
    works: bool,
    /// Connections that were accepted so far.
    accepted: u64,
    until_ns: u64,
}

impl Reads {
    /// `link` is what attached it; `None` where this kernel has no such tracepoint.
    pub(crate) fn new(link: Option<BtfTracePointLinkId>) -> Self {
        let works = link.is_some();
        Self { link, works, accepted: 0, until_ns: sys::monotonic_ns() + WATCH.as_nanos() as u64 }
    }

    /// To be called when records were taken: `accepted` counts those of connections that were accepted.
    pub(crate) fn watch(&mut self, ebpf: &mut Ebpf, accepted: u64) {
        if accepted == self.accepted || !self.works {
            return;
        }
        self.accepted = accepted;
        self.until_ns = sys::monotonic_ns() + WATCH.as_nanos() as u64;
        if self.link.is_none() {
            match program(ebpf).and_then(BtfTracePoint::attach) {
                Ok(link) => self.link = Some(link),
                Err(error) => {
                    self.works = false;
                    log::warn!(
                        "who reads from a new connection is found by passes over files alone from now on: {error}"
                    );
                }
            }
        }
    }

    /// To be called once in a while.
    pub(crate) fn rest(&mut self, ebpf: &mut Ebpf) {
        if sys::monotonic_ns() < self.until_ns {
            return;
        }
        if let Some(link) = self.link.take()
            && let Err(error) = program(ebpf).and_then(|program| program.detach(link))
        {
            log::debug!("{PROGRAM} stays attached: {error}");
        }
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut BtfTracePoint, ProgramError> {
    // The loader has attached it.
    let program = ebpf.program_mut(PROGRAM).ok_or(ProgramError::NotLoaded)?;
    program.try_into()
}
