//! `cargo xtask lint`: formatting, clippy, and rules of this project that neither knows.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::process::{cargo, root, say, succeed};

/// A source file that is longer does more than one thing.
const MOST_LINES: usize = 600;
/// Folders of one machine, which no file may name; in two parts, for this file is read too.
const MACHINE_PATHS: [&str; 4] =
    [concat!("/hom", "e/"), concat!("/roo", "t/"), concat!("/User", "s/"), concat!("/wor", "k/")];

pub(crate) fn run() -> Result<()> {
    say!("cargo fmt --check");
    succeed(cargo()?.args(["fmt", "--all", "--check"]))?;
    say!("cargo clippy, warnings are errors");
    succeed(cargo()?.args(["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"]))?;
    // `--all-targets` leaves out a test target that `cargo test` shall not run by itself.
    let kernel = ["clippy", "--locked", "--package", "tcpwatch", "--test", "kernel", "--features", "bench"];
    succeed(cargo()?.args(kernel).args(["--example", "bench", "--", "--deny", "warnings"]))?;
    say!("files: no source over {MOST_LINES} lines, no path of one machine");
    files(&root()?)
}

fn files(root: &Path) -> Result<()> {
    let mut found = Vec::new();
    for path in files_under(root)? {
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // Captures and pictures are not text.
        let Ok(text) = String::from_utf8(bytes) else { continue };
        let name = path.strip_prefix(root).unwrap_or(&path);
        found.extend(complaints(name, &text).into_iter().map(|complaint| format!("{}{complaint}", name.display())));
    }
    if !found.is_empty() {
        bail!("{}", found.join("\n       "));
    }
    Ok(())
}

/// All files but what git and cargo keep for themselves. Not asked of git, which refuses a tree of another owner.
fn files_under(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && entry.file_name() != ".git" && entry.file_name() != "target" {
            files.extend(files_under(&entry.path())?);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn complaints(name: &Path, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let lines = text.lines().count();
    if name.extension().is_some_and(|extension| extension == "rs") && in_src(name) && lines > MOST_LINES {
        complaints.push(format!(": {lines} lines"));
    }
    for (index, line) in text.lines().enumerate() {
        for path in MACHINE_PATHS {
            if names_path(line, path) {
                complaints.push(format!(":{}: names {path}", index + 1));
            }
        }
    }
    complaints
}

/// MEMBER/src/…
fn in_src(name: &Path) -> bool {
    name.components().nth(1).is_some_and(|component| component.as_os_str() == "src")
}

/// Whether the path begins somewhere in the line, rather than being the middle of another one.
fn names_path(line: &str, path: &str) -> bool {
    let inside = |c: char| c.is_alphanumeric() || "_-.})]>$*".contains(c);
    line.match_indices(path).any(|(at, _)| !line[..at].ends_with(inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_sources_are_complained_about() {
        let long = "x\n".repeat(MOST_LINES + 1);
        assert_eq!(complaints(Path::new("tcpwatch/src/a/b.rs"), &long), [": 601 lines"]);
        assert!(complaints(Path::new("tcpwatch/src/b.rs"), &"x\n".repeat(MOST_LINES)).is_empty());
        assert!(complaints(Path::new("tcpwatch/tests/golden.rs"), &long).is_empty());
        assert!(complaints(Path::new("Cargo.lock"), &long).is_empty());
    }

    #[test]
    fn paths_of_a_machine_are_found_where_they_begin() {
        for path in MACHINE_PATHS {
            assert!(names_path(&format!("see {path}x"), path));
            assert!(names_path(&format!("{path}x"), path));
            assert!(!names_path(&format!("https://example.org{path}x"), path));
            assert!(!names_path(&format!("$dir{path}x and {{dir}}{path}x"), path));
        }
        let text = format!("fine\nfile {}me/x\n", MACHINE_PATHS[0]);
        assert_eq!(complaints(Path::new("README.md"), &text), [format!(":2: names {}", MACHINE_PATHS[0])]);
    }
}
