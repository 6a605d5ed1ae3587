//! Prometheus and its Alertmanager for the tests: the programs of Debian's packages, unpacked into the cache and not
//! installed, since installing them would start services on this host.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    packages::Apt,
    process::{say, succeed, works},
    toolchain,
};

/// Names the folder that has the programs; the tests look there first.
pub(crate) const FOLDER_VAR: &str = "TCPWATCH_PROMETHEUS";
/// Without apt.
pub(crate) const REMEDY: &str = "put `prometheus`, `promtool` and `prometheus-alertmanager` into one folder of PATH, or \
                                 name their folder with TCPWATCH_PROMETHEUS";
const PACKAGES: [&str; 2] = ["prometheus", "prometheus-alertmanager"];
const PROGRAMS: [&str; 3] = ["prometheus", "promtool", "prometheus-alertmanager"];

/// The folder of all programs: the named one, else one of PATH, else the cache.
pub(crate) fn find() -> Option<PathBuf> {
    if let Some(named) = env::var_os(FOLDER_VAR) {
        return Some(PathBuf::from(named)).filter(|folder| has_all(folder));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(unpacked().map(|root| root.join("usr/bin"))).find(|folder| has_all(folder))
}

/// Unpacks them into the cache.
pub(crate) fn fetch(apt: &mut Apt) -> Result<PathBuf> {
    let root = unpacked().context("neither XDG_CACHE_HOME nor HOME is set")?;
    // Whole or not at all, whatever interrupts this.
    let work = root.with_extension("new");
    for folder in [&work, &root] {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
    }
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let names = PACKAGES.join(" and ");
    say!("fetching {names} into {}: their programs only, nothing is installed or started", root.display());
    for package in PACKAGES {
        apt.download(package, &work)?;
        let archive = archive(&work)?;
        succeed(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&work))?;
        fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
    }
    let programs = work.join("usr/bin");
    if let Some(broken) = PROGRAMS.iter().find(|program| !works(Command::new(programs.join(program)).arg("--version")))
    {
        bail!("{names} have no {broken} that runs here; {REMEDY}");
    }
    fs::rename(&work, &root).with_context(|| format!("cannot rename {}", work.display()))?;
    Ok(root.join("usr/bin"))
}

fn unpacked() -> Option<PathBuf> {
    Some(toolchain::cache()?.join("prometheus"))
}

fn has_all(folder: &Path) -> bool {
    PROGRAMS.iter().all(|program| folder.join(program).is_file())
}

/// The one package in a folder.
fn archive(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = entries.filter_map(Result::ok).map(|entry| entry.path());
    let package = files.find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    package.with_context(|| format!("apt-get has put no package into {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_must_have_all_programs() {
        assert!(!has_all(Path::new("/nowhere")));
        assert!(archive(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn the_remedy_names_the_programs_and_the_variable() {
        assert!(REMEDY.contains(FOLDER_VAR) && PROGRAMS.iter().all(|program| REMEDY.contains(program)));
    }
}
