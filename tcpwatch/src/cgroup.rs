//! What the path of a control group says: unit, container, pod. Pure, and by the names that systemd, Docker, containerd,
//! CRI-O, Podman and Kubernetes give; a path that follows none of them says nothing.

/// A control group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cgroup {
    /// Its path below the root of the hierarchy.
    pub(crate) path: String,
    /// The innermost systemd unit in it: a service or a scope.
    pub(crate) unit: Option<String>,
    /// Id of the container, all 64 digits.
    pub(crate) container: Option<String>,
    /// UID of the Kubernetes pod, with dashes.
    pub(crate) pod: Option<String>,
}

impl Cgroup {
    /// What `path` says.
    pub(crate) fn of(path: &str) -> Self {
        let folders = || path.split('/').filter(|folder| !folder.is_empty());
        Self {
            path: path.to_owned(),
            unit: folders().rev().find(|folder| is_unit(folder)).map(ToOwned::to_owned),
            container: folders().rev().find_map(container),
            pod: folders().find_map(pod),
        }
    }
}

/// A slice is a place for units and no unit of work.
fn is_unit(folder: &str) -> bool {
    [".service", ".scope"].iter().any(|end| folder.len() > end.len() && folder.ends_with(end))
}

/// `docker-<id>.scope`, `cri-containerd-<id>.scope`, `crio-<id>`, `libpod-<id>.scope/container`, `…:cri-containerd:<id>`, or
/// the id alone.
fn container(folder: &str) -> Option<String> {
    let name = folder.strip_suffix(".scope").unwrap_or(folder);
    let id = name.rsplit(['-', ':']).next()?;
    (id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))).then(|| id.to_owned())
}

/// `pod<uid>`, or `kubepods-burstable-pod<uid with underscores>.slice`.
fn pod(folder: &str) -> Option<String> {
    let name = match folder.strip_suffix(".slice") {
        Some(slice) => slice.strip_prefix("kubepods-")?.rsplit('-').next()?,
        None => folder,
    };
    let uid = name.strip_prefix("pod")?.replace('_', "-");
    let digits = uid.bytes().filter(|b| *b != b'-').all(|b| b.is_ascii_hexdigit());
    // A pod of the node itself has a hash instead of a UUID.
    (digits && (uid.len() == 36 || uid.len() == 32)).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const UID: &str = "6ab1b1d0-5bd7-4b0b-9a8c-3f1f0a9c2d4e";

    #[test]
    fn units_containers_and_pods_are_found_in_paths() {
        let under = UID.replace('-', "_");
        let (none, id, uid) = (None, Some(ID), Some(UID));
        for (path, unit, container, pod) in [
            ("/".to_owned(), none, none, none),
            ("/system.slice/nginx.service".to_owned(), Some("nginx.service"), none, none),
            ("/system.slice/system-getty.slice/getty@tty1.service".to_owned(), Some("getty@tty1.service"), none, none),
            ("/system.slice".to_owned(), none, none, none),
            ("/init.scope".to_owned(), Some("init.scope"), none, none),
            ("/user.slice/user-1000.slice/session-3.scope".to_owned(), Some("session-3.scope"), none, none),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/app-web-42.scope".to_owned(),
                Some("app-web-42.scope"),
                none,
                none,
            ),
            ("/user.slice/user-1000.slice/user@1000.service".to_owned(), Some("user@1000.service"), none, none),
            // A unit with groups of its own below it.
            ("/system.slice/docker.service/delegated/part".to_owned(), Some("docker.service"), none, none),
            (format!("/system.slice/docker-{ID}.scope"), Some(&*format!("docker-{ID}.scope")), id, none),
            (format!("/docker/{ID}"), none, id, none),
            (format!("/docker/{ID}/init"), none, id, none),
            (format!("/machine.slice/libpod-{ID}.scope/container"), Some(&*format!("libpod-{ID}.scope")), id, none),
            (format!("/machine.slice/libpod-conmon-{ID}.scope"), Some(&*format!("libpod-conmon-{ID}.scope")), id, none),
            (format!("/kubepods/burstable/pod{UID}/{ID}"), none, id, uid),
            (format!("/kubepods/pod{UID}/crio-{ID}"), none, id, uid),
            (
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{under}.slice/cri-containerd-{ID}.scope"
                ),
                Some(&*format!("cri-containerd-{ID}.scope")),
                id,
                uid,
            ),
            (
                format!("/kubepods.slice/kubepods-pod{under}.slice/crio-{ID}.scope"),
                Some(&*format!("crio-{ID}.scope")),
                id,
                uid,
            ),
            (format!("/kubelet.slice/kubepods-pod{under}.slice:cri-containerd:{ID}"), none, id, none),
            (
                "/kubepods/besteffort/pod0123456789abcdef0123456789abcdef".to_owned(),
                none,
                none,
                Some("0123456789abcdef0123456789abcdef"),
            ),
            // A container within a container: the inner one.
            (format!("/docker/{}/docker/{ID}", "f".repeat(64)), none, id, none),
            // Names that only look like it.
            ("/process_api/1d3b079aed907de76080b5c774112fc2".to_owned(), none, none, none),
            (format!("/docker/{}", ID.to_uppercase()), none, none, none),
            ("/podman/podcast/.service/x.services".to_owned(), none, none, none),
            (String::new(), none, none, none),
        ] {
            let found = Cgroup::of(&path);
            let shown = (found.unit.as_deref(), found.container.as_deref(), found.pod.as_deref());
            assert_eq!(shown, (unit, container, pod), "{path}");
            assert_eq!(found.path, path);
        }
    }

    proptest! {
        #[test]
        fn any_path_is_taken(path in "(/[a-z0-9.@:_é-]{0,70}){0,6}") {
            let found = Cgroup::of(&path);
            prop_assert!(found.unit.is_none_or(|unit| path.contains(&unit)));
            prop_assert!(found.container.is_none_or(|id| path.contains(&id)));
        }
    }
}
