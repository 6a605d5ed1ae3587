//! The stacks of resets as a flame graph: an SVG that shows by its widths which paths send how many.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use inferno::flamegraph::{self, Options};

use super::{ResetsError, beside};
use crate::api::resets::Resets;

/// A file that gets its name when it is whole.
pub(super) struct Picture {
    path: PathBuf,
    draft: PathBuf,
    file: Option<File>,
}

impl Picture {
    /// Makes sure that it can be written.
    pub(super) fn begin(path: &Path) -> Result<Self, ResetsError> {
        let failed = |reason| ResetsError::Flame { path: path.to_owned(), reason };
        if path.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        let draft = beside(path);
        let file = OpenOptions::new().write(true).create_new(true).open(&draft).map_err(failed)?;
        Ok(Self { path: path.to_owned(), draft, file: Some(file) })
    }

    /// Draws it.
    pub(super) fn finish(mut self, resets: &Resets) -> Result<(), ResetsError> {
        let svg = draw(resets)?;
        let written = self.file.take().map_or(Ok(()), |file| {
            let mut out = BufWriter::new(file);
            out.write_all(&svg)?;
            out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
        });
        let moved = written.and_then(|()| fs::rename(&self.draft, &self.path));
        moved.map_err(|reason| ResetsError::Flame { path: self.path.clone(), reason })
    }
}

impl Drop for Picture {
    fn drop(&mut self) {
        // It has another name by now, unless something failed.
        let _gone = fs::remove_file(&self.draft);
    }
}

/// The SVG.
fn draw(resets: &Resets) -> Result<Vec<u8>, ResetsError> {
    let folded = folded(resets);
    if folded.is_empty() {
        return Err(ResetsError::Nothing("none was sent while tcpwatch watched"));
    }
    let mut options = Options::default();
    "Resets sent, by cause and kernel stack".clone_into(&mut options.title);
    "resets".clone_into(&mut options.count_name);
    options.hash = true;
    let mut svg = Vec::new();
    let drawn = flamegraph::from_lines(&mut options, folded.iter().map(String::as_str), &mut svg);
    drawn.map_err(|error| ResetsError::Flame { path: PathBuf::from("memory"), reason: io::Error::other(error) })?;
    Ok(svg)
}

/// One line a stack: the cause at the bottom, the innermost function last, then the count.
fn folded(resets: &Resets) -> Vec<String> {
    let counted = resets.stacks.iter().filter(|stack| stack.count > 0);
    counted
        .map(|stack| {
            let frames = stack.frames.iter().rev().map(String::as_str);
            let cause = format!(
                "{} {}",
                stack.origin.as_deref().unwrap_or("any"),
                stack.cause.as_deref().unwrap_or("other causes")
            );
            let unknown = if stack.frames.is_empty() { Some("[no names of functions]") } else { None };
            let all: Vec<_> = [cause.as_str()].into_iter().chain(frames).chain(unknown).map(harmless).collect();
            format!("{} {}", all.join(";"), stack.count)
        })
        .collect()
}

/// A name that is one frame, whoever says it.
fn harmless(name: &str) -> String {
    name.chars().map(|c| if c.is_control() || c == ';' { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::resets::StackTotal;

    fn resets(frames: &[&str]) -> Resets {
        let stack = |count, cause: &str| StackTotal {
            stack: "0".repeat(16),
            origin: Some("active".to_owned()),
            cause: Some(cause.to_owned()),
            count,
            frames: frames.iter().map(|name| (*name).to_owned()).collect(),
        };
        Resets { stacks: vec![stack(30, "linger_zero"), stack(12, "unread_data")], ..Resets::default() }
    }

    #[test]
    fn every_stack_is_drawn_with_its_count_and_nothing_in_a_name_is_markup() {
        let svg = String::from_utf8(draw(&resets(&["tcp_disconnect", "<script>alert(1)</script>;\x1b[2J"])).unwrap())
            .unwrap();
        assert!(
            svg.contains("tcp_disconnect (30 resets, ") && svg.contains("active unread_data (12 resets, "),
            "{svg}"
        );
        assert!(svg.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && !svg.contains("<script>alert"));
        assert!(!svg.contains('\x1b') && svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn a_file_is_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resets.svg");
        fs::write(&path, "before").unwrap();
        let picture = Picture::begin(&path).unwrap();
        assert!(picture.finish(&Resets::default()).unwrap_err().to_string().contains("no resets"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        Picture::begin(&path).unwrap().finish(&resets(&["a"])).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("<svg"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        for wrong in [folder.path().to_owned(), folder.path().join("none/x.svg")] {
            let error = Picture::begin(&wrong).err().unwrap();
            assert!(error.to_string().contains(&wrong.display().to_string()) && error.status() == 1, "{error}");
        }
    }
}
