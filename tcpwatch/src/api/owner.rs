//! The owner of a socket as the API shows it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use tcpwatch_common::owner::flag;

use super::text::printable;
use crate::aggregate::owners::{self, Names};

/// A process, its user and its control group.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Owner {
    /// Process; null when it is not known.
    pub(crate) pid: Option<u32>,
    /// Its name, made printable.
    pub(crate) comm: String,
    /// Effective user of the process, or of the socket while none is known.
    pub(crate) uid: u32,
    /// Its name; null when it has none.
    pub(crate) user: Option<String>,
    /// Path of the control group.
    pub(crate) cgroup: Option<String>,
    /// The innermost systemd unit of it.
    pub(crate) unit: Option<String>,
    /// Id of the container.
    pub(crate) container: Option<String>,
    /// UID of the Kubernetes pod.
    pub(crate) pod: Option<String>,
    /// `connect`, `listen`, `read`, `descriptor`, `listener` or `unknown`.
    pub(crate) known_by: Cow<'static, str>,
    /// No process has a descriptor of the socket any more.
    pub(crate) orphan: bool,
    /// The process has ended; it was the last owner.
    pub(crate) exited: bool,
}

impl Owner {
    /// What is known of an owner.
    pub(crate) fn new(owner: &owners::Owner, names: &Names) -> Self {
        let group = names.cgroup(owner);
        Self {
            pid: (owner.pid != 0).then_some(owner.pid),
            comm: printable(&owner.comm),
            uid: owner.uid,
            user: names.user(owner.uid).map(ToOwned::to_owned),
            cgroup: group.map(|group| group.path.clone()),
            unit: group.and_then(|group| group.unit.clone()),
            container: group.and_then(|group| group.container.clone()),
            pod: group.and_then(|group| group.pod.clone()),
            known_by: owner.kind.name().into(),
            orphan: owner.flags & flag::ORPHAN != 0,
            exited: owner.pid != 0 && names.ended(owner.pid),
        }
    }
}
