//! `cargo xtask setup`: installs what building and testing need, and nothing twice.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    packages::{self, Apt, BENCH_TOOLS, COMPILERS, LINKER_LLVMS, TEST_TOOLS},
    process::{cargo, say, succeed, works},
    prometheus,
    toolchain::{self, Compiler, Core, LINKER_VAR, LINKER_VERSION, Missing, REMEDY, RUSTC_VAR},
};

/// Install what building and testing tcpwatch need
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Install nothing, fail if something is missing
    #[arg(long)]
    check: bool,
    /// Also what the benchmarks compare with
    #[arg(long)]
    bench: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut setup = Setup { check: args.check, apt: Apt::find(), missing: Vec::new() };
    setup.cargo_components()?;
    if let Some(compiler) = setup.compiler()? {
        setup.linker(compiler.version.llvm)?;
    }
    setup.tools(args.bench)?;
    setup.prometheus()?;
    if !setup.missing.is_empty() {
        bail!("missing: {}; {REMEDY}", setup.missing.join(", "));
    }
    say!("everything is there");
    Ok(())
}

/// Sets up what building needs, silent when it is there.
pub(crate) fn ensure_toolchain() -> Result<()> {
    if let Err(missing) = toolchain::find() {
        say!("{missing}");
        let mut setup = Setup { check: false, apt: Apt::find(), missing: Vec::new() };
        if let Some(compiler) = setup.compiler()? {
            setup.linker(compiler.version.llvm)?;
        }
    }
    Ok(())
}

/// Sets up what building and testing need, the benchmarks' tools too if asked.
pub(crate) fn ensure_all(bench: bool) -> Result<()> {
    run(&Args { check: false, bench })
}

struct Setup {
    /// Look, and collect what is missing, instead of installing.
    check: bool,
    apt: Option<Apt>,
    missing: Vec<String>,
}

impl Setup {
    /// rustup's minimal profile comes without these two.
    fn cargo_components(&mut self) -> Result<()> {
        for (command, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
            if works(cargo()?.args([command, "--version"])) {
                say!("cargo {command}: there");
            } else if self.check {
                self.missing.push(component.to_owned());
            } else {
                rustup(&["component", "add", component])?;
            }
        }
        Ok(())
    }

    /// A compiler with `core` for BPF: the distribution's, else rustup's nightly.
    fn compiler(&mut self) -> Result<Option<Compiler>> {
        let found = toolchain::find_compiler();
        match &found {
            Err(missing) if self.check => {
                self.missing.push(missing.to_string());
                return Ok(None);
            }
            Err(missing) if env::var_os(RUSTC_VAR).is_some() => {
                bail!("{missing}, named by {RUSTC_VAR}; name another or none")
            }
            Err(missing) => say!("{missing}"),
            // LLVM of a nightly is mostly newer than the distribution's, so that no linker can be built for it.
            Ok(nightly) if self.is_dead_end(nightly) => say!("compiler: {nightly}, but no linker to go with it"),
            Ok(_) => return found_compiler(found),
        }
        match self.distribution_compiler()? {
            Some(packages) => self.install(&packages)?,
            None if found.is_ok() => {}
            None => rustup(&["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"])?,
        }
        found_compiler(toolchain::find_compiler())
    }

    /// Whether the compiler was found by chance, without a linker, where the distribution may have both.
    fn is_dead_end(&self, compiler: &Compiler) -> bool {
        let chosen = env::var_os(RUSTC_VAR).is_some() || env::var_os("LLVM_PREFIX").is_some();
        compiler.core == Core::FromSource
            && !(self.check || chosen || self.apt.is_none())
            && toolchain::find_linker(compiler.version.llvm).is_err()
    }

    /// The first compiler of the table that the archive has new enough.
    fn distribution_compiler(&mut self) -> Result<Option<Vec<String>>> {
        let Some(apt) = &mut self.apt else { return Ok(None) };
        apt.update()?;
        for pair in COMPILERS {
            let versions = pair.map(packages::candidate);
            let new_enough = |version: &Option<String>| {
                version.as_deref().is_some_and(|version| !toolchain::is_older(version, env!("CARGO_PKG_RUST_VERSION")))
            };
            if versions.iter().all(new_enough) {
                return Ok(Some(pair.map(str::to_owned).to_vec()));
            }
        }
        say!("no package of this distribution has a Rust compiler for BPF that is new enough");
        Ok(None)
    }

    /// A bpf-linker for the compiler's LLVM, built once into the user's cache.
    fn linker(&mut self, llvm: u32) -> Result<()> {
        let missing = match toolchain::find_linker(llvm) {
            Ok(linker) => {
                say!("linker: {linker}");
                return Ok(());
            }
            Err(missing) => missing,
        };
        if self.check {
            self.missing.push(missing.to_string());
            return Ok(());
        }
        if env::var_os(LINKER_VAR).is_some() {
            bail!("{missing}; name another or none");
        }
        say!("{missing}");
        if !LINKER_LLVMS.contains(&llvm) {
            bail!("bpf-linker {LINKER_VERSION} knows no LLVM {llvm}; name one that does with {LINKER_VAR}");
        }
        let prefix = self.llvm(llvm)?;
        let root = toolchain::linker_root(llvm).context("neither XDG_CACHE_HOME nor HOME is set")?;
        say!("building bpf-linker {LINKER_VERSION} for LLVM {llvm}, about a minute on two processors");
        succeed(&mut install_linker(cargo()?, llvm, &prefix, &root))?;
        let linker = toolchain::find_linker(llvm).map_err(|missing| after_installing(&missing))?;
        say!("linker: {linker}");
        Ok(())
    }

    /// Where this LLVM is with what is needed to link to it.
    fn llvm(&mut self, llvm: u32) -> Result<PathBuf> {
        if let Some(prefix) = env::var_os("LLVM_PREFIX") {
            return Ok(prefix.into());
        }
        if let Some(apt) = &mut self.apt {
            let missing = packages::missing(packages::for_linker(llvm))?;
            if !missing.is_empty() {
                apt.update()?;
                if let Some(unknown) = missing.iter().find(|package| packages::candidate(package).is_none()) {
                    bail!("this distribution has no package {unknown}; {}", linker_advice(llvm));
                }
                self.install(&missing)?;
            }
            return Ok(packages::llvm_prefix(llvm).into());
        }
        bail!("{}", linker_advice(llvm))
    }

    /// Programs that the tests start.
    fn tools(&mut self, bench: bool) -> Result<()> {
        let mut wanted = TEST_TOOLS.to_vec();
        if bench {
            wanted.extend(BENCH_TOOLS);
        }
        let (there, missing): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(program, _)| is_installed(program));
        for (program, _) in there {
            say!("{program}: there");
        }
        let packages: Vec<String> = missing.iter().map(|(_, package)| (*package).to_owned()).collect();
        if packages.is_empty() {
            return Ok(());
        }
        if self.check {
            self.missing.extend(packages);
            return Ok(());
        }
        self.install(&packages)
    }

    /// What the tests hold rules and dashboard against.
    fn prometheus(&mut self) -> Result<()> {
        let folder = match (prometheus::find(), &mut self.apt) {
            (Some(folder), _) => folder,
            (None, _) if self.check => {
                self.missing.push("prometheus".to_owned());
                return Ok(());
            }
            (None, _) if env::var_os(prometheus::FOLDER_VAR).is_some() => {
                bail!("{} names a folder without the programs; {}", prometheus::FOLDER_VAR, prometheus::REMEDY)
            }
            (None, Some(apt)) => prometheus::fetch(apt)?,
            (None, None) => bail!("no prometheus: {}", prometheus::REMEDY),
        };
        say!("prometheus: {}", folder.display());
        Ok(())
    }

    fn install(&mut self, packages: &[String]) -> Result<()> {
        match &mut self.apt {
            Some(apt) => apt.install(packages),
            None => bail!("install {} with the packages of this system, then run it again", packages.join(", ")),
        }
    }
}

/// Administration programs may lie where the PATH of a user does not lead.
fn is_installed(program: &str) -> bool {
    let sbin = ["/usr/sbin", "/sbin"].map(|folder| Path::new(folder).join(program));
    toolchain::in_path(program).is_some() || sbin.iter().any(|path| path.is_file())
}

fn install_linker(mut cargo: Command, llvm: u32, prefix: &Path, root: &Path) -> Command {
    cargo.args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force", "--no-default-features"]);
    cargo.arg("--features").arg(format!("llvm-{llvm}")).arg("--root").arg(root);
    // Not with the flags and in the folders of this workspace.
    cargo.env("LLVM_PREFIX", prefix).env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
    // It lies outside PATH on purpose, and cargo need not advise to change that.
    let path = env::var_os("PATH").unwrap_or_default();
    if let Ok(path) = env::join_paths(env::split_paths(&path).chain([root.join("bin")])) {
        cargo.env("PATH", path);
    }
    cargo
}

fn linker_advice(llvm: u32) -> String {
    format!(
        "install the development files of LLVM {llvm} and tell with LLVM_PREFIX where they are, \
         or name a bpf-linker made for LLVM {llvm} with {LINKER_VAR}; then run `cargo xtask setup` again"
    )
}

fn rustup(words: &[&str]) -> Result<()> {
    let Some(rustup) = toolchain::in_path("rustup") else {
        bail!("there is no rustup; with one: rustup {}", words.join(" "));
    };
    say!("rustup {}", words.join(" "));
    succeed(Command::new(rustup).args(words).stdout(io::stderr()))
}

fn found_compiler(found: Result<Compiler, Missing>) -> Result<Option<Compiler>> {
    let compiler = found.map_err(|missing| after_installing(&missing))?;
    say!("compiler: {compiler}");
    Ok(Some(compiler))
}

fn after_installing(missing: &Missing) -> anyhow::Error {
    anyhow::anyhow!("installed, and still {missing}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::show;

    #[test]
    fn the_linker_is_built_for_one_llvm_into_its_own_folder() {
        let command = install_linker(Command::new("cargo"), 22, Path::new("/llvm"), Path::new("/cache/x"));
        assert!(show(&command).ends_with("--no-default-features --features llvm-22 --root /cache/x"));
        let prefix = command.get_envs().find(|(name, _)| *name == "LLVM_PREFIX");
        assert_eq!(prefix.and_then(|(_, value)| value), Some("/llvm".as_ref()));
    }

    #[test]
    fn what_setup_cannot_do_it_says_exactly() {
        let advice = linker_advice(23);
        assert!(advice.contains("LLVM 23") && advice.contains("LLVM_PREFIX") && advice.contains(LINKER_VAR));
    }

    #[test]
    fn without_apt_the_user_is_told_what_to_install() {
        let mut setup = Setup { check: false, apt: None, missing: Vec::new() };
        let error = setup.install(&["nftables".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("install nftables"));
    }
}
