//! What a guest boots into: an initramfs with tcpwatch, the test program, the tools they start, and the libraries of
//! this host that those need, each at the path it has here.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::archive::Kernel;
use crate::{
    process::{root, stdout_of, succeed},
    toolchain,
};

/// What the tests start, beyond the shell.
const TOOLS: [&str; 11] =
    ["ip", "nft", "ss", "setpriv", "unshare", "prlimit", "setsid", "stty", "strace", "env", "sleep"];
/// The shell and all small tools: one static program.
const BUSYBOX: &str = "busybox";
/// Modules that the tests need, in any order; what a kernel has built in, or not at all, is passed over.
const MODULES: [&str; 22] = [
    "veth",
    "tun",
    "dummy",
    "sch_netem",
    "sch_tbf",
    "sch_fq",
    "tcp_bbr",
    "tcp_dctcp",
    "inet_diag",
    "tcp_diag",
    "nf_tables",
    "nft_counter",
    "nft_ct",
    "nft_limit",
    "nft_numgen",
    "nft_objref",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_nat",
    "nft_masq",
    "nft_redir",
];
/// Files of the project that tests read.
const FIXTURES: [&str; 3] = ["deploy", "docs/api", "tcpwatch/tests/replay"];
/// The first program.
const INIT: &str = include_str!("guest.sh");

/// The part that all kernels share: an archive, uncompressed, since emulated machines unpack slowly.
pub(crate) fn base(work: &Path, programs: &[PathBuf]) -> Result<PathBuf> {
    let staged = work.join("base");
    for folder in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var/tmp"] {
        fs::create_dir_all(staged.join(folder)).with_context(|| format!("cannot make {folder}"))?;
    }
    let busybox = tool(BUSYBOX)?;
    copy(&busybox, &staged.join("bin/busybox"))?;
    for applet in stdout_of(Command::new(&busybox).arg("--list"))?.lines().filter(|applet| *applet != BUSYBOX) {
        symlink(BUSYBOX, staged.join("bin").join(applet)).with_context(|| format!("cannot link {applet}"))?;
    }
    let mut files: BTreeSet<PathBuf> = programs.iter().cloned().collect();
    for name in TOOLS {
        let path = tool(name)?;
        // The real one instead of that of busybox.
        let applet = staged.join("bin").join(name);
        if applet.is_symlink() {
            fs::remove_file(&applet).with_context(|| format!("cannot remove {}", applet.display()))?;
        }
        files.insert(path);
    }
    let libraries: Vec<PathBuf> = files.iter().map(|file| libraries(file)).collect::<Result<Vec<_>>>()?.concat();
    files.extend(libraries);
    for file in &files {
        copy(file, &staged.join(relative(file)))?;
    }
    for program in programs {
        // Without names and lines, which nobody looks up there, it is a fifth.
        succeed(Command::new("strip").arg(staged.join(relative(program))))?;
    }
    for fixture in FIXTURES {
        let from = root()?.join(fixture);
        let to = staged.join(relative(&from));
        let folder = to.parent().context("a fixture is in a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        succeed(Command::new("cp").arg("--recursive").arg(&from).arg(&to))?;
    }
    for file in ["/etc/passwd", "/etc/group"] {
        copy(Path::new(file), &staged.join(relative(Path::new(file))))?;
    }
    let init = staged.join("init");
    fs::write(&init, INIT).context("cannot write init")?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context("cannot make init a program")?;
    pack(&staged, &work.join("base.cpio"))
}

/// The whole initramfs of one kernel: the base, its modules in the order in which they can be loaded, and the words that
/// tell the guest what to do.
pub(crate) fn whole(base: &Path, work: &Path, kernel: &Kernel, script: &str) -> Result<PathBuf> {
    let staged = work.join(&kernel.release);
    let modules = staged.join("modules");
    fs::create_dir_all(&modules).with_context(|| format!("cannot make {}", modules.display()))?;
    let mut order = Vec::new();
    for name in MODULES {
        add_module(kernel, name, &modules, &mut order)?;
    }
    fs::write(modules.join("order"), order.join("\n") + "\n").context("cannot write the order of modules")?;
    fs::write(staged.join("script"), script).context("cannot write the guest's script")?;
    let own = pack(&staged, &work.join(format!("{}.part", kernel.release)))?;
    let image = work.join(format!("{}.cpio", kernel.release));
    // The kernel unpacks one archive after the other.
    let mut to = fs::File::create(&image).with_context(|| format!("cannot make {}", image.display()))?;
    for part in [base, &own] {
        let mut from = fs::File::open(part).with_context(|| format!("cannot open {}", part.display()))?;
        std::io::copy(&mut from, &mut to).with_context(|| format!("cannot write {}", image.display()))?;
    }
    Ok(image)
}

/// A module, after those that it depends on.
fn add_module(kernel: &Kernel, name: &str, folder: &Path, order: &mut Vec<String>) -> Result<()> {
    if order.iter().any(|known| known == name) {
        return Ok(());
    }
    let Some(file) = kernel.module(name) else { return Ok(()) };
    let bytes = if file.extension().is_some_and(|extension| extension == "xz") {
        let unpacked = Command::new("xz").args(["--decompress", "--stdout"]).arg(&file).stdin(Stdio::null()).output();
        let unpacked = unpacked.context("cannot start xz")?;
        ensure!(unpacked.status.success(), "xz cannot unpack {}", file.display());
        unpacked.stdout
    } else {
        fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?
    };
    for needed in dependencies(&bytes) {
        add_module(kernel, &needed, folder, order)?;
    }
    fs::write(folder.join(name), bytes).with_context(|| format!("cannot write {name}"))?;
    order.push(name.to_owned());
    Ok(())
}

/// What the section `.modinfo` says a module depends on.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|bytes| bytes == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The shared libraries of a program, the loader among them; none of a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd").arg(program).env("LC_ALL", "C").output().context("cannot start ldd")?;
    Ok(parse_ldd(&String::from_utf8_lossy(&out.stdout)))
}

fn parse_ldd(text: &str) -> Vec<PathBuf> {
    text.split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(|word| PathBuf::from(word.trim_end_matches(':')))
        .collect()
}

fn tool(name: &str) -> Result<PathBuf> {
    toolchain::in_path(name).with_context(|| format!("there is no {name} here; `cargo xtask setup` installs it"))
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file is in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Packs a folder in the one format that the kernel knows.
fn pack(folder: &Path, to: &Path) -> Result<PathBuf> {
    let file = fs::File::create(to).with_context(|| format!("cannot make {}", to.display()))?;
    let mut find = Command::new("find").arg(".").current_dir(folder).stdout(Stdio::piped()).spawn().context("find")?;
    let names = find.stdout.take().context("find has no output")?;
    let packed = Command::new(tool(BUSYBOX)?)
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(folder)
        .stdin(names)
        .stdout(file)
        .stderr(Stdio::null())
        .status()
        .context("cannot start cpio")?;
    ensure!(packed.success() && find.wait().context("find")?.success(), "cannot pack {}", folder.display());
    Ok(to.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_tell_what_they_need() {
        assert_eq!(
            dependencies(b"\x7fELF\0license=GPL\0depends=nf_tables,nfnetlink\0name=x\0"),
            ["nf_tables", "nfnetlink"]
        );
        assert_eq!(dependencies(b"license=GPL\0depends=\0"), [""; 0]);
        assert_eq!(dependencies(b"nothing"), [""; 0]);
    }

    #[test]
    fn libraries_are_those_with_a_path() {
        let text = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)\n\t/lib64/ld-linux.so.2 (0x7f)\n";
        assert_eq!(parse_ldd(text), [PathBuf::from("/lib/x/libc.so.6"), PathBuf::from("/lib64/ld-linux.so.2")]);
        assert_eq!(parse_ldd("\tnot a dynamic executable\n"), Vec::<PathBuf>::new());
    }
}
