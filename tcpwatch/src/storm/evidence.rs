//! Who and where: counts of what the details of a storm have in common.

use std::net::IpAddr;
use std::sync::Arc;

use crate::aggregate::resets::stacks::Stacks;
use crate::aggregate::top::Top;
use crate::meaning::Meaning;

/// One reset as it was reported.
#[derive(Clone, Debug)]
pub(crate) struct Detail {
    /// The other end.
    pub(crate) peer: IpAddr,
    /// The port of the service: ours, or that of the peer that we connected to.
    pub(crate) port: u16,
    /// Whose socket it was, as far as that is known.
    pub(crate) owner: Option<Process>,
    /// Key of its kernel stack; 0 without one.
    pub(crate) stack: u64,
    /// What it means, where nothing like it was explained before.
    pub(crate) example: Option<Arc<Meaning>>,
}

/// Who owns a socket, without what differs from one process of a service to the next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    /// Name of the process.
    pub(crate) comm: String,
    /// Unit of systemd.
    pub(crate) unit: Option<String>,
    /// Container.
    pub(crate) container: Option<String>,
}

/// What details have in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Evidence {
    /// Details seen.
    pub(crate) details: u64,
    /// Other ends.
    pub(crate) peers: Top<IpAddr>,
    /// Ports of the service.
    pub(crate) ports: Top<u16>,
    /// Owners of the sockets, of those resets where one is known.
    pub(crate) owners: Top<Process>,
    /// Keys of kernel stacks.
    pub(crate) stacks: Top<u64>,
    /// What one of them means.
    pub(crate) example: Option<Arc<Meaning>>,
}

/// Resets of one kernel stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StackShare {
    /// As the metrics have it.
    pub(crate) fingerprint: Arc<str>,
    /// The functions, the innermost first.
    pub(crate) frames: Arc<[String]>,
    /// How many.
    pub(crate) resets: u64,
}

impl Evidence {
    /// Takes one.
    pub(crate) fn add(&mut self, detail: &Detail) {
        self.details += 1;
        self.peers.add(&detail.peer);
        self.ports.add(&detail.port);
        detail.owner.iter().for_each(|owner| self.owners.add(owner));
        if detail.stack != 0 {
            self.stacks.add(&detail.stack);
        }
        if self.example.is_none() {
            self.example.clone_from(&detail.example);
        }
    }

    /// The stacks by name, those with most first. What lies elsewhere in memory and has the same names is one.
    pub(crate) fn by_stack(&self, stacks: &Stacks) -> Vec<StackShare> {
        let mut shares: Vec<StackShare> = Vec::new();
        for (key, resets) in self.stacks.first(usize::MAX) {
            let Some(stack) = stacks.of(key) else { continue };
            match shares.iter_mut().find(|share| share.fingerprint == stack.fingerprint) {
                Some(share) => share.resets += resets,
                None => shares.push(StackShare {
                    fingerprint: Arc::clone(&stack.fingerprint),
                    frames: Arc::clone(&stack.frames),
                    resets,
                }),
            }
        }
        shares.sort_by(|a, b| b.resets.cmp(&a.resets).then_with(|| a.fingerprint.cmp(&b.fingerprint)));
        shares
    }
}
