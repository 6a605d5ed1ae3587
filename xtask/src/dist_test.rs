//! `cargo xtask dist --test`: the package in a clean root of the distribution: installed, started, upgraded, removed, purged.
//! And the tarball, unpacked where there is nothing else.
//!
//! There is no systemd in it, so that what the unit says is done by setpriv: the user, the capabilities and the folder.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::process::{root, say, stdout_of, succeed};

/// From the package to the first scrape.
const FIRST_SCRAPE: Duration = Duration::from_secs(60);

/// The name of the release that a host says it is.
fn codename(os_release: &str) -> Option<&str> {
    let name = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?.trim_matches('"');
    (!name.is_empty()).then_some(name)
}

/// A root of the distribution; what is mounted in it goes with it.
struct Root {
    folder: tempfile::TempDir,
}

impl Root {
    fn new() -> Result<Self> {
        let target = |format: &str| {
            stdout_of(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))
        };
        let (mirrors, suites) = (target("$(REPO_URI)")?, target("$(RELEASE)")?);
        let (mirror, suite) = (mirrors.lines().next(), suites.lines().next());
        let (mirror, suite) = mirror.zip(suite).context("apt knows no archive; run apt-get update")?;
        // The package asks for the glibc that it was linked with. Where apt knows several releases that is the one this
        // host says it is.
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let suite = codename(&release).unwrap_or(suite);
        let folder = tempfile::tempdir()?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        let mut command = Command::new("debootstrap");
        command.args(["--variant=minbase", suite]).arg(folder.path()).arg(mirror);
        succeed(command.stdin(Stdio::null()).stdout(Stdio::null()))?;
        Self::with_kernel(folder)
    }

    /// One with no file in it.
    fn empty() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        for at in ["proc", "sys", "run/tcpwatch"] {
            fs::create_dir_all(folder.path().join(at))?;
        }
        Self::with_kernel(folder)
    }

    /// What the kernel shows of itself is there.
    fn with_kernel(folder: tempfile::TempDir) -> Result<Self> {
        let made = Self { folder };
        made.mount("proc", "proc", &[])?;
        made.mount("/sys", "sys", &["--rbind"])?;
        Ok(made)
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn mount(&self, what: &str, at: &str, flags: &[&str]) -> Result<()> {
        let mut command = Command::new("mount");
        command.args(flags);
        if flags.is_empty() {
            command.args(["-t", what]);
        }
        succeed(command.arg(what).arg(self.path().join(at)))?;
        // What is unmounted here shall not be unmounted there.
        succeed(Command::new("mount").arg("--make-rslave").arg(self.path().join(at)))
    }

    fn run(&self, words: &[&str]) -> Command {
        let mut command = Command::new("chroot");
        command.arg(self.path()).args(words).stdin(Stdio::null());
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
        command
    }

    fn dpkg(&self, words: &[&str]) -> Result<()> {
        let mut words = words.to_vec();
        words.insert(0, "dpkg");
        let out = self.run(&words).output()?;
        let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "{}: {}: {said}", words.join(" "), out.status);
        Ok(())
    }

    fn has(&self, path: &str) -> bool {
        self.path().join(path).symlink_metadata().is_ok()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for at in ["proc", "sys"] {
            let _not_mounted =
                Command::new("umount").args(["--recursive", "--lazy"]).arg(self.path().join(at)).status();
        }
    }
}

/// The daemon as the unit starts it.
struct Service {
    child: Child,
    address: SocketAddr,
}

impl Service {
    fn start(root: &Root) -> Result<Self> {
        let unit = fs::read_to_string(root.path().join("usr/lib/systemd/system/tcpwatch.service"))?;
        let line = unit.lines().find_map(|line| line.strip_prefix("AmbientCapabilities="));
        let names = line.context("the unit gives no capabilities")?.split_whitespace();
        let list: Vec<_> = names.map(|name| format!("+{}", name.trim_start_matches("CAP_").to_lowercase())).collect();
        let list = format!("-all,{}", list.join(","));
        let user = id(root, "passwd")?;
        let runtime = root.path().join("run/tcpwatch");
        fs::create_dir_all(&runtime)?;
        chown(&runtime, Some(user), Some(id(root, "group")?))?;
        let mut words = vec!["setpriv", "--reuid=tcpwatch", "--regid=tcpwatch", "--clear-groups", "--no-new-privs"];
        words.extend(["--bounding-set", &list, "--inh-caps", &list, "--ambient-caps", &list]);
        words.extend(["/usr/bin/tcpwatch", "run", "--listen", "127.0.0.1:0"]);
        Self::through(root, &words)
    }

    fn through(root: &Root, words: &[&str]) -> Result<Self> {
        let mut child = root.run(words).stderr(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stderr.take().context("no standard error")?);
        let mut said = String::new();
        loop {
            let from = said.len();
            ensure!(lines.read_line(&mut said)? > 0, "the daemon ended: {said}");
            if let Some((_, rest)) = said[from..].split_once("metrics at http://") {
                let address = rest.split('/').next().unwrap_or_default().parse()?;
                // Who does not read what it says would stop it.
                std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
                return Ok(Self { child, address });
            }
        }
    }

    fn scrape(&self) -> Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.contains("\ntcpwatch_connections"), "{answer}");
        Ok(answer)
    }

    fn stop(mut self) -> Result<()> {
        let pid = self.child.id().to_string();
        succeed(Command::new("kill").args(["-TERM", &pid]))?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the daemon ended with {status}");
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn id(root: &Root, file: &str) -> Result<u32> {
    let text = fs::read_to_string(root.path().join("etc").join(file))?;
    let line = text.lines().find_map(|line| line.strip_prefix("tcpwatch:"));
    let line = line.with_context(|| format!("no tcpwatch in /etc/{file}"))?;
    Ok(line.split(':').nth(1).context("no number")?.parse()?)
}

/// Everything that may happen to a package or a tarball.
pub(crate) fn run(made: &Path) -> Result<()> {
    if made.extension().is_some_and(|end| end == "deb") { package(made) } else { tarball(made) }
}

/// Nothing but the tarball and the kernel: no C library, no user, no shell, no folder for temporary files.
fn tarball(tarball: &Path) -> Result<()> {
    let root = Root::empty()?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--strip-components=1", "--file"]).arg(tarball).arg("--directory").arg(root.path());
    succeed(tar.stdin(Stdio::null()))?;
    let name = tarball.file_name().and_then(|name| name.to_str()).context("the tarball has no name")?;
    let version = stdout_of(&mut root.run(&["/usr/bin/tcpwatch", "--version"]))?;
    let version = version.split_whitespace().nth(1).context("it does not tell its version")?;
    ensure!(name.starts_with(&format!("tcpwatch-{version}-")), "{name} has tcpwatch {version} in it");
    let report = stdout_of(&mut root.run(&["/usr/bin/tcpwatch", "doctor"]))?;
    ensure!(report.contains("tcp_probe") && !report.contains("\nmissing"), "{report}");
    let began = Instant::now();
    let service = Service::through(&root, &["/usr/bin/tcpwatch", "run", "--listen", "127.0.0.1:0"])?;
    let metrics = service.scrape()?;
    ensure!(metrics.contains(&format!("version=\"{version}\"")), "{metrics}");
    say!("{name}: from an empty root to the first scrape: {:.1} s", began.elapsed().as_secs_f64());
    let top = stdout_of(&mut root.run(&["/usr/bin/tcpwatch", "top", "--once"]))?;
    ensure!(top.starts_with("LOCAL "), "top shows nothing: {top}");
    service.stop()?;
    ensure!(!root.has("run/tcpwatch/tcpwatch.sock"), "the socket is left behind");
    Ok(())
}

fn package(package: &Path) -> Result<()> {
    let root = Root::new()?;
    fs::copy(package, root.path().join("tcpwatch.deb"))?;
    let began = Instant::now();
    root.dpkg(&["--install", "/tcpwatch.deb"])?;
    let service = Service::start(&root)?;
    service.scrape()?;
    let took = began.elapsed();
    say!("from the package to the first scrape: {:.1} s", took.as_secs_f64());
    ensure!(took < FIRST_SCRAPE, "from the package to the first scrape: {took:?}");

    // Members of the group, and nobody else, may ask for addresses.
    let top = |group: &str| {
        let group = format!("--groups={group}");
        root.run(&["setpriv", "--reuid=nobody", "--regid=nogroup", &group, "tcpwatch", "top", "--once"]).output()
    };
    ensure!(top("tcpwatch")?.status.success(), "a member of the group is refused");
    ensure!(!top("nogroup")?.status.success(), "anybody may ask");

    // The owner's changes to the configuration survive an upgrade; who has none gets the new file without a question.
    let settings = root.path().join("etc/tcpwatch/tcpwatch.toml");
    let changed = fs::read_to_string(&settings)? + "services = 7\n";
    fs::write(&settings, &changed)?;
    let newer = newer(&root, package)?;
    root.dpkg(&["--install", &newer])?;
    ensure!(fs::read_to_string(&settings)? == changed, "the upgrade has overwritten the configuration");
    // The old one runs on until it is told to stop; the new one then takes its place.
    service.scrape()?;
    service.stop()?;
    let service = Service::start(&root)?;
    service.scrape()?;
    service.stop()?;
    ensure!(!root.has("run/tcpwatch/tcpwatch.sock"), "the socket is left behind");

    root.dpkg(&["--remove", "tcpwatch"])?;
    ensure!(
        !root.has("usr/bin/tcpwatch") && root.has("etc/tcpwatch/tcpwatch.toml"),
        "removing keeps the configuration"
    );
    root.dpkg(&["--install", &newer])?;
    ensure!(fs::read_to_string(&settings)? == changed, "what was kept is lost");
    root.dpkg(&["--purge", "tcpwatch"])?;
    for path in
        ["usr/bin/tcpwatch", "etc/tcpwatch", "usr/share/doc/tcpwatch", "usr/lib/systemd/system/tcpwatch.service"]
    {
        ensure!(!root.has(path), "{path} is left behind");
    }
    for file in ["passwd", "group"] {
        ensure!(id(&root, file).is_err(), "the purge has left tcpwatch in /etc/{file}");
    }
    Ok(())
}

/// The same package with a higher version and another default file.
fn newer(root: &Root, package: &Path) -> Result<String> {
    let folder = tempfile::tempdir()?;
    succeed(Command::new("dpkg-deb").arg("--raw-extract").arg(package).arg(folder.path()))?;
    let control = folder.path().join("DEBIAN/control");
    let text = fs::read_to_string(&control)?;
    let version = text.lines().find_map(|line| line.strip_prefix("Version: ")).context("no version")?;
    fs::write(&control, text.replace(&format!("Version: {version}"), &format!("Version: {version}+1")))?;
    let path = root.path().join("newer.deb");
    succeed(
        Command::new("dpkg-deb")
            .args(["--root-owner-group", "-Znone", "--build"])
            .arg(folder.path())
            .arg(&path)
            .stdout(Stdio::null()),
    )?;
    Ok("/newer.deb".to_owned())
}

/// What systemd says of the unit: nothing.
pub(crate) fn verify() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let units = folder.path().join("usr/lib/systemd/system");
    fs::create_dir_all(&units)?;
    for target in ["multi-user", "network", "basic", "sysinit", "shutdown"] {
        fs::write(units.join(format!("{target}.target")), "[Unit]\nDescription=There\n")?;
    }
    for program in ["usr/bin/tcpwatch", "bin/kill"] {
        let path = folder.path().join(program);
        fs::create_dir_all(path.parent().context("no folder")?)?;
        fs::write(&path, "")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    fs::copy(root()?.join("deploy/tcpwatch.service"), units.join("tcpwatch.service"))?;
    let rooted = format!("--root={}", folder.path().display());
    let out = Command::new("systemd-analyze").args(["verify", "--man=no", &rooted, "tcpwatch.service"]).output()?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success() && said.trim().is_empty(), "systemd-analyze verify: {}: {said}", out.status);
    let mut security = Command::new("systemd-analyze");
    let text = stdout_of(security.args([
        "security",
        "--offline=true",
        "--no-pager",
        "--threshold=30",
        &rooted,
        "tcpwatch.service",
    ]))?;
    if let Some(score) = text.lines().find(|line| line.contains("exposure level")) {
        say!("{}", score.trim_start_matches(['→', ' ']));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_has_a_codename_or_none() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n"), Some("bookworm"));
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=\"trixie\"\n"), Some("trixie"));
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=\n"), None);
        assert_eq!(codename(""), None);
    }
}
