//! Texts that tests compare with files of the repository. `TCPWATCH_BLESS=1` writes the files instead.

use std::path::Path;
use std::{env, fs};

/// Compares `text` with the file `path`, relative to this crate.
pub(crate) fn check(path: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if env::var_os("TCPWATCH_BLESS").is_some() {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(&file, text).unwrap();
        return;
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    let differs = expected.lines().zip(text.lines()).position(|(a, b)| a != b);
    let line = differs.unwrap_or_else(|| expected.lines().count().min(text.lines().count()));
    assert!(
        expected == text,
        "{} is out of date from line {}; bless it with TCPWATCH_BLESS=1\n  file: {:?}\n  now:  {:?}",
        file.display(),
        line + 1,
        expected.lines().nth(line),
        text.lines().nth(line)
    );
}
