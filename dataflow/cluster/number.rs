//! The newest generation that a process has been in, durable: a number that was used is never used
//! again, whoever forgets what.
//!
//! The file holds one line, `generation N`. It is replaced by renaming, after its bytes are on disk
//! and before the directory is synced, so a crash leaves the old number or the new one; and it is
//! written before anyone is told of the number.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A generation number on disk.
pub(super) struct Number {
    path: PathBuf,
}

impl Number {
    pub(super) fn new(path: PathBuf) -> Number {
        Number { path }
    }

    /// The number; 0 if there was none yet.
    pub(super) fn read(&self) -> io::Result<u64> {
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            text => text?,
        };
        let number = text.strip_prefix("generation ").and_then(|n| n.trim_end().parse().ok());
        number.ok_or_else(|| {
            let path = self.path.display();
            let text = format!("{path} holds no line `generation N`; restore it or write one");
            io::Error::new(io::ErrorKind::InvalidData, text)
        })
    }

    pub(super) fn write(&self, number: u64) -> io::Result<()> {
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let dir = dir.unwrap_or(Path::new("."));
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        writeln!(file, "generation {number}")?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        File::open(dir)?.sync_all()
    }
}
