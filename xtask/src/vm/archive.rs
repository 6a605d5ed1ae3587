//! Kernels of Debian's archive: fetched by apt with a configuration of its own, since this host's knows one release
//! only, and unpacked into the cache. Nothing is installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::series::Series;
use crate::{
    process::{say, show, stdout_of, succeed},
    toolchain,
};

/// Releases of Debian whose kernels are looked at; what a mirror does not have is passed over.
const RELEASES: [&str; 3] = ["bullseye", "bookworm", "trixie"];
/// The lists are fetched anew after this time.
const FRESH: Duration = Duration::from_secs(24 * 3600);
/// The flavour for virtual machines: small, and with all that is built into the ordinary one.
const FLAVOUR: &str = "-cloud-amd64";
/// Says that a folder was unpacked to its end.
const WHOLE: &str = "whole";

/// A kernel in the cache.
pub(crate) struct Kernel {
    /// Its version as the package says it.
    pub(crate) release: String,
    /// The unpacked packages.
    folder: PathBuf,
}

/// apt with a configuration of its own.
pub(crate) struct Archive {
    cache: PathBuf,
}

impl Archive {
    /// Prepares it; the lists are fetched when they are old.
    pub(crate) fn open() -> Result<Self> {
        let cache = toolchain::cache().context("neither XDG_CACHE_HOME nor HOME is set")?.join("kernels");
        let archive = Self { cache };
        for folder in ["apt/lists/partial", "apt/archives/partial"] {
            let folder = archive.cache.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(archive)
    }

    /// The newest kernel of a series: that of the archive, or the newest that was fetched before when the archive cannot
    /// be reached.
    pub(crate) fn kernel(&self, series: &Series) -> Result<Kernel> {
        match self.fetch(series) {
            Ok(kernel) => Ok(kernel),
            Err(error) => {
                let cached = self.cached()?;
                let cached = series.newest_first(cached.iter().map(String::as_str));
                let Some(release) = cached.first() else { return Err(error) };
                say!("kernel {series}: {error:#}; taking {release}, which was fetched before");
                Ok(Kernel { release: (*release).to_owned(), folder: self.cache.join(release) })
            }
        }
    }

    fn fetch(&self, series: &Series) -> Result<Kernel> {
        self.update()?;
        let names = stdout_of(self.apt("apt-cache")?.args(["search", "--names-only", "^linux-image-.*-cloud-amd64$"]))?;
        let releases = names.lines().filter_map(|line| release_of(line.split(' ').next()?));
        let mut gone = None;
        for release in series.newest_first(releases) {
            let folder = self.cache.join(release);
            if !folder.join(WHOLE).exists() {
                let packages = self.packages(release)?;
                // The archive may keep the package that asks for the modules longer than the modules.
                if let Some(missing) = packages.iter().find(|package| self.control(package).is_err()) {
                    gone = gone.or(Some(format!("kernel {series}: {release} has no {missing} any more")));
                    continue;
                }
                self.unpack(&packages, &folder)?;
            }
            if let Some(gone) = gone {
                say!("{gone}; taking {release}");
            }
            return Ok(Kernel { release: release.to_owned(), folder });
        }
        bail!("{}", gone.unwrap_or_else(|| format!("the archive has no kernel {series}")))
    }

    /// The packages of a kernel, image and modules.
    fn packages(&self, release: &str) -> Result<Vec<String>> {
        let image = format!("linux-image-{release}{FLAVOUR}");
        // From 6.19 on the package of this name is empty and asks for two others.
        let mut packages = parts(&self.control(&image)?);
        packages.push(image);
        Ok(packages)
    }

    /// What the archive says of a package that it has.
    fn control(&self, package: &str) -> Result<String> {
        let control = stdout_of(self.apt("apt-cache")?.args(["show", "--no-all-versions", package]))?;
        // Of what others only ask for, it prints nothing and succeeds.
        ensure!(control.contains("Package: "), "the archive has no {package}");
        Ok(control)
    }

    fn unpack(&self, packages: &[String], folder: &Path) -> Result<()> {
        say!("fetching {}", packages.join(", "));
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut download = self.apt("apt-get")?;
        download.args(["download", "--quiet", "--option", "APT::Sandbox::User=root"]).args(packages);
        succeed(download.current_dir(folder).stdout(std::io::stderr()))?;
        for entry in fs::read_dir(folder).context("reading what was fetched")? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                succeed(Command::new("dpkg-deb").arg("--extract").arg(&path).arg(folder))?;
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        fs::write(folder.join(WHOLE), "").context("cannot mark the folder")
    }

    /// Releases that were fetched before.
    fn cached(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.cache).with_context(|| format!("cannot read {}", self.cache.display()))?;
        let whole = entries.filter_map(Result::ok).filter(|entry| entry.path().join(WHOLE).exists());
        Ok(whole.filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    fn update(&self) -> Result<()> {
        let stamp = self.cache.join("apt/updated");
        let age = fs::metadata(&stamp).and_then(|meta| meta.modified()).ok();
        if age.and_then(|then| then.elapsed().ok()).is_some_and(|age| age < FRESH) {
            return Ok(());
        }
        let sources = sources(&targets()?)?;
        fs::write(self.cache.join("apt/sources.list"), sources).context("cannot write the list of sources")?;
        let mut update = self.apt("apt-get")?;
        update.args(["update", "--quiet", "--option", "APT::Sandbox::User=root"]);
        say!("{}", show(&update));
        // A suite that the mirror does not have makes it fail, and the others are there.
        let status = update.stdout(Stdio::null()).stderr(Stdio::null()).status().context("cannot start apt-get")?;
        if !status.success() {
            say!("some suites could not be fetched: {status}");
        }
        fs::write(stamp, "").context("cannot mark the lists")
    }

    /// A list with what this host's apt knows and the backports of its release, and the name of those: apart from the other
    /// one, so that nothing of another release is ever installed.
    pub(crate) fn backports(&self) -> Result<(PathBuf, String)> {
        let targets = targets()?;
        let (mut list, mut found) = (String::new(), None);
        for (uri, release) in targets.lines().filter_map(|line| line.split_once(' ')) {
            list += &source(uri, release);
            if RELEASES.contains(&release) && found.is_none() {
                let suite = format!("{release}-backports");
                list += &source(uri, &suite);
                found = Some(suite);
            }
        }
        let suite = found.context("this host's release has no backports that are known")?;
        let file = self.cache.join("apt/backports.list");
        fs::write(&file, list).with_context(|| format!("cannot write {}", file.display()))?;
        fs::create_dir_all(self.lists().join("partial")).context("cannot make the folder of lists")?;
        Ok((file, suite))
    }

    /// Where apt keeps what it knows of them.
    pub(crate) fn lists(&self) -> PathBuf {
        self.cache.join("apt/own-lists")
    }

    fn apt(&self, program: &str) -> Result<Command> {
        ensure!(toolchain::in_path(program).is_some(), "there is no {program} on this machine");
        let apt = self.cache.join("apt");
        let mut command = Command::new(program);
        for (key, value) in [
            ("Dir::Etc::sourcelist", apt.join("sources.list")),
            ("Dir::Etc::sourceparts", PathBuf::from("/dev/null")),
            ("Dir::State::Lists", apt.join("lists")),
            ("Dir::Cache", apt.clone()),
        ] {
            command.arg("--option").arg(format!("{key}={}", value.display()));
        }
        command.env("LC_ALL", "C").stdin(Stdio::null());
        Ok(command)
    }
}

/// Mirrors and releases of this host's apt.
fn targets() -> Result<String> {
    stdout_of(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE)",
        "Created-By: Packages",
        "Component: main",
    ]))
}

fn source(uri: &str, suite: &str) -> String {
    format!("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {uri} {suite} main\n")
}

/// This host's mirrors with all releases in question.
fn sources(targets: &str) -> Result<String> {
    let mut lines = String::new();
    let mut add = |uri: &str, suite: String| lines += &source(uri, &suite);
    let known = |release: &str| RELEASES.contains(&release);
    let mut seen = Vec::new();
    for (uri, release) in targets.lines().filter_map(|line| line.split_once(' ')) {
        if seen.contains(&uri) {
            continue;
        }
        if known(release) {
            for release in RELEASES {
                add(uri, release.to_owned());
                add(uri, format!("{release}-backports"));
            }
        } else if release.strip_suffix("-security").is_some_and(known) {
            for release in RELEASES {
                add(uri, format!("{release}-security"));
            }
        } else {
            continue;
        }
        seen.push(uri);
    }
    if lines.is_empty() {
        bail!("this machine's apt has no mirror of Debian, whose kernels these are");
    }
    Ok(lines)
}

fn release_of(package: &str) -> Option<&str> {
    package.strip_prefix("linux-image-")?.strip_suffix(FLAVOUR)
}

/// The packages with image and modules that a package depends on.
fn parts(control: &str) -> Vec<String> {
    let depends = control.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
    let names = depends.split(", ").filter_map(|name| name.split(' ').next());
    names
        .filter(|name| name.starts_with("linux-binary-") || name.starts_with("linux-modules-"))
        .map(str::to_owned)
        .collect()
}

impl Kernel {
    /// The compressed image.
    pub(crate) fn image(&self) -> Result<PathBuf> {
        self.find(|name| name == "vmlinuz" || name.starts_with("vmlinuz-"))
            .with_context(|| format!("{} has no kernel image", self.folder.display()))
    }

    /// A module's file, perhaps compressed.
    pub(crate) fn module(&self, name: &str) -> Option<PathBuf> {
        self.find(|file| file.split_once(".ko").is_some_and(|(stem, end)| stem == name && matches!(end, "" | ".xz")))
    }

    fn find(&self, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
        let mut folders = vec![self.folder.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).ok()?.filter_map(Result::ok) {
                let path = entry.path();
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path);
                } else if entry.file_name().to_str().is_some_and(&wanted) {
                    return Some(path);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirrors_of_this_host_are_asked_for_all_releases() {
        let list =
            sources("http://a/debian/ bookworm\nhttp://a/debian/ bookworm-updates\nhttp://b/ bookworm-security\n")
                .expect("mirrors");
        for line in [
            "http://a/debian/ trixie-backports main",
            "http://a/debian/ bullseye main",
            "http://b/ trixie-security main",
        ] {
            assert_eq!(list.matches(line).count(), 1, "{line}");
        }
        assert!(sources("http://c/ubuntu/ noble\n").is_err());
    }

    #[test]
    fn packages_that_lead_to_others_are_followed() {
        let control = "Package: x\nDepends: kmod, linux-base-7.3 (= 1), linux-binary-7.3-cloud (= 1), linux-modules-7.3-cloud (= 1)\n";
        assert_eq!(parts(control), ["linux-binary-7.3-cloud", "linux-modules-7.3-cloud"]);
        assert_eq!(parts("Package: x\n"), [""; 0]);
    }

    #[test]
    fn releases_are_named_by_their_package() {
        assert_eq!(release_of("linux-image-6.12.117+deb13-cloud-amd64"), Some("6.12.117+deb13"));
        assert_eq!(release_of("linux-image-6.12.117+deb13-amd64"), None);
    }
}
