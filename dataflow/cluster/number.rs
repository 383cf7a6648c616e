//! The newest generation that a process has been in, durable: a number that was used is never used
//! again, whoever forgets what.
//!
//! The file holds one line, `generation N`. It is replaced as a whole ([`replace_file`]), so a
//! crash leaves the old number or the new one; and it is written before anyone is told of it.

use std::{fs, io, path::PathBuf};
use trueup_log::replace_file;

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
        replace_file(&self.path, format!("generation {number}\n").as_bytes())
    }
}
