//! Who and where: counts of what the details of a storm have in common.

use std::net::IpAddr;

use crate::aggregate::top::Top;

/// One reset as it was reported.
#[derive(Clone, Debug)]
pub(crate) struct Detail {
    /// The other end.
    pub(crate) peer: IpAddr,
    /// The port of the service: ours, or that of the peer that we connected to.
    pub(crate) port: u16,
    /// Whose socket it was, as far as that is known.
    pub(crate) owner: Option<Process>,
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
}

impl Evidence {
    /// Takes one.
    pub(crate) fn add(&mut self, detail: &Detail) {
        self.details += 1;
        self.peers.add(&detail.peer);
        self.ports.add(&detail.port);
        detail.owner.iter().for_each(|owner| self.owners.add(owner));
    }
}
