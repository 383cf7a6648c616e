//! Strings as numbers. Dimension values repeat, so inside the dataflow each is a [`Symbol`], and a
//! row's key is a few machine words.
//!
//! One [`Symbols`] is shared by all workers of a process: a sum that crosses from one worker to
//! another means the same text there. The numbers depend on who came first and differ from run
//! to run, so nothing that must be repeatable (order, ownership, folding, hashes of epochs) may
//! depend on a symbol's number; [`Symbols::stable`] is there for that.
//!
//! Symbols are never freed. How many there may be is the caller's limit to keep
//! ([`Symbols::len`]); the cardinality of what is kept per row is bounded by each rollup.

use crate::hash;
use hashbrown::{HashTable, hash_table::Entry};
use parking_lot::RwLock;
use std::sync::Arc;

/// The number of a string.
pub type Symbol = u32;

/// The symbol of an absent value.
pub const ABSENT: Symbol = 0;
/// The symbol of `(other)`, into which rows fold when a rollup is full.
pub const OTHER: Symbol = 1;
/// The text of [`OTHER`].
pub const OTHER_TEXT: &str = "(other)";

#[derive(Default)]
struct Table {
    /// Text and stable hash by symbol.
    texts: Vec<(Arc<str>, u64)>,
    index: HashTable<Symbol>,
    bytes: usize,
}

/// All strings of a process, in both directions.
pub struct Symbols(RwLock<Table>);

impl Default for Symbols {
    fn default() -> Self {
        let symbols = Symbols(RwLock::default());
        // An absent value has the symbol 0 and no text; "" is refused at the collector.
        assert_eq!(symbols.intern(""), ABSENT);
        assert_eq!(symbols.intern(OTHER_TEXT), OTHER);
        symbols
    }
}

impl Symbols {
    /// The symbol of a text, a new one if it has none.
    pub fn intern(&self, text: &str) -> Symbol {
        let hash = hash::stable(text.as_bytes());
        if let Some(symbol) = self.0.read().find(text, hash) {
            return symbol;
        }
        self.0.write().enter(text, hash)
    }

    /// Appends the symbols of many texts to `out`, under one lock: all workers take it for every
    /// frame, and it passes from core to core each time.
    pub fn intern_all<'t>(&self, texts: impl Iterator<Item = &'t str>, out: &mut Vec<Symbol>) {
        let first = out.len();
        let mut unknown = Vec::new();
        {
            let table = self.0.read();
            out.extend(texts.enumerate().map(|(place, text)| {
                let hash = hash::stable(text.as_bytes());
                table.find(text, hash).unwrap_or_else(|| {
                    unknown.push((place, text, hash));
                    ABSENT
                })
            }));
        }
        if unknown.is_empty() {
            return;
        }
        let mut table = self.0.write();
        for (place, text, hash) in unknown {
            out[first + place] = table.enter(text, hash);
        }
    }

    /// The symbol of a text, if it has one.
    pub fn find(&self, text: &str) -> Option<Symbol> {
        self.0.read().find(text, hash::stable(text.as_bytes()))
    }

    /// The text of a symbol; empty for [`ABSENT`].
    pub fn text(&self, symbol: Symbol) -> Arc<str> {
        self.0.read().texts[symbol as usize].0.clone()
    }

    /// The texts of many symbols under one lock.
    pub fn with_texts<R>(&self, read: impl FnOnce(&dyn Fn(Symbol) -> Arc<str>) -> R) -> R {
        let table = self.0.read();
        read(&|symbol| table.texts[symbol as usize].0.clone())
    }

    /// A hash of the text, the same in every run.
    pub fn stable(&self, symbol: Symbol) -> u64 {
        self.0.read().texts[symbol as usize].1
    }

    /// Appends the stable hashes of symbols `from..` to `out`: keeps a worker's copy up to date.
    pub fn stable_since(&self, from: usize, out: &mut Vec<u64>) {
        out.extend(self.0.read().texts[from..].iter().map(|t| t.1));
    }

    /// How many symbols there are.
    pub fn len(&self) -> usize {
        self.0.read().texts.len()
    }

    /// Never: two symbols are always there.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// What they take in memory, about.
    pub fn bytes(&self) -> usize {
        self.0.read().bytes
    }
}

impl Table {
    /// The symbol of a text, a new one if it has none.
    fn enter(&mut self, text: &str, hash: u64) -> Symbol {
        let Table { texts, index, bytes } = self;
        let next = texts.len() as Symbol;
        match index.entry(hash, |&s| &*texts[s as usize].0 == text, |&s| texts[s as usize].1) {
            Entry::Occupied(found) => *found.get(),
            Entry::Vacant(vacant) => {
                vacant.insert(next);
                texts.push((text.into(), hash));
                *bytes += text.len() + 48;
                next
            }
        }
    }

    fn find(&self, text: &str, hash: u64) -> Option<Symbol> {
        self.index.find(hash, |&s| &*self.texts[s as usize].0 == text).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_symbols_are_one_to_one() {
        let symbols = Symbols::default();
        let a = symbols.intern("cmp_1");
        assert_eq!(symbols.intern("cmp_1"), a);
        assert_ne!(symbols.intern("cmp_2"), a);
        assert_eq!(&*symbols.text(a), "cmp_1");
        assert_eq!(symbols.find("cmp_3"), None);
        assert_eq!(symbols.len(), 4);
    }

    #[test]
    fn many_at_once_are_what_they_are_one_by_one() {
        let symbols = Symbols::default();
        let known = symbols.intern("US");
        let mut all = vec![77];
        symbols.intern_all(["DE", "US", "", "DE", "FR"].into_iter(), &mut all);
        let one_by_one = ["DE", "US", "", "DE", "FR"].map(|text| symbols.intern(text));
        assert_eq!(all, [&[77][..], &one_by_one[..]].concat());
        assert_eq!((all[2], all[3], all[1]), (known, ABSENT, all[4]));
        assert_eq!(symbols.len(), 5);
    }
}
