//! Texts on their way between two processes: what a message names, each once, one behind the other.
//! Symbols are the numbers of one process, so what leaves it names places among texts that it
//! brings along, and who takes it in makes symbols of its own of them, all under one lock.
//!
//! # On the wire, little-endian
//!
//! ```text
//! T × u32  where each text ends, ascending
//! B        texts, UTF-8, one behind the other
//! ```
//!
//! How many there are (`T`) and how long they are together (`B`) stands in the head of the message.
//!
//! # Promises
//!
//! * Texts that were read from a peer are UTF-8 and cut at the ends of characters, and all bytes
//!   belong to one: anything else is refused.

use crate::symbols::{Symbol, Symbols};

/// The texts that a message names: place 0 is the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    /// One behind the other.
    pub(crate) joined: String,
    /// Where each ends in `joined`, ascending, at the ends of characters.
    pub(crate) ends: Vec<u32>,
}

impl Texts {
    /// Appends a text.
    ///
    /// # Panics
    /// When the texts come to 4 GiB. A message has a limit far below.
    pub(crate) fn push(&mut self, text: &str) {
        self.joined.push_str(text);
        let end = u32::try_from(self.joined.len()).expect("texts of a message are below 4 GiB");
        self.ends.push(end);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// How many bytes [`Texts::write`] appends.
    pub(crate) fn written_bytes(&self) -> usize {
        self.ends.len() * size_of::<u32>() + self.joined.len()
    }

    /// Appends the texts as the wire has them.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        self.ends.iter().for_each(|end| out.extend(end.to_le_bytes()));
        out.extend(self.joined.as_bytes());
    }

    /// Begins anew, for the next message.
    pub(crate) fn clear(&mut self) {
        self.joined.clear();
        self.ends.clear();
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let text = &self.joined[start..end as usize];
            start = end as usize;
            text
        })
    }

    /// Appends the symbols of this process for them to `named`, by place: new ones for texts that
    /// were not known here.
    pub(crate) fn intern(&self, symbols: &Symbols, named: &mut Vec<Symbol>) {
        symbols.intern_all(self.iter(), named);
    }

    /// What [`Texts::write`] wrote, if that is what these bytes are. `ends` has four bytes a text.
    ///
    /// # Errors
    /// The texts are not UTF-8, or not all bytes belong to one.
    pub(crate) fn read(ends: &[u8], joined: &[u8]) -> Result<Texts, String> {
        let joined = std::str::from_utf8(joined).map_err(|e| format!("its texts: {e}"))?;
        let ends: Vec<u32> = ends.chunks_exact(4).map(word).collect();
        let mut start = 0;
        for (place, &end) in ends.iter().enumerate() {
            if joined.get(start..end as usize).is_none() {
                let bytes = joined.len();
                return Err(format!("text {place} would be bytes {start}..{end} of {bytes}"));
            }
            start = end as usize;
        }
        if start != joined.len() {
            return Err(format!("its texts end at byte {start} of {}", joined.len()));
        }
        Ok(Texts { joined: joined.to_owned(), ends })
    }
}

/// The first four bytes as a number.
pub(crate) fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[i]))
}
