//! Sums that leave their process, and sums that come into it. Symbols are the numbers of one
//! process, so a [`Chunk`] for a worker of another process carries texts, each once, and its keys
//! are places among them; the process that takes it in rewrites them to symbols of its own before
//! anything looks at a key.
//!
//! # Why it is hard
//!
//! The first stage writes chunks at the rate at which epochs are cut, so what every chunk pays must
//! be next to nothing: a chunk that stays within its process is neither copied nor looked through.
//! One that leaves is rewritten in place, and a text is looked up once per chunk and not once per
//! sum: a worker keeps a table of places by symbol, which is as long as there are symbols and of
//! which only the places in use are cleared again.
//!
//! # On the wire
//!
//! timely writes the records between processes with bincode: little-endian integers of their own
//! width, a length as `u64`. A chunk that leaves is
//!
//! ```text
//! u32 target, u16 rollup
//! u8  0: sums by minute; else 1, then u32 0 minute, 1 hour, 2 day
//! u64 overflows
//! u8  1                                 0: keys are symbols
//!   u64 n, n bytes of UTF-8             the texts, one behind the other
//!   u64 n, n × u32                      where each of them ends
//! u64 n, n × { N × u32 place, i32 bucket, the figures }
//! ```
//!
//! With [`crate::metrics::Metrics`] and four dimensions a sum is 60 bytes.
//! `cargo run --release -p trueup-operators --example chunk_rate` says what that costs.
//!
//! # Promises
//!
//! * Which worker a chunk is for is decided by texts before it leaves, so nothing moves because
//!   symbols differ.
//! * What was read from a peer names only texts that it brought: anything else, and texts that are
//!   cut within a character or out of order, is refused while it is read. timely answers that with
//!   a panic of the worker, which ends the run: a process whose peer speaks nonsense must not
//!   publish.

use super::{Chunk, Exchanged, Sum};
use crate::{
    symbols::{Symbol, Symbols},
    time::Granularity,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::sync::Arc;

/// The texts that the keys of a chunk name, each once: place 0 is the first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Texts {
    /// One behind the other.
    joined: String,
    /// Where each ends in `joined`, ascending.
    ends: Vec<u32>,
}

impl Texts {
    fn push(&mut self, text: &str) {
        self.joined.push_str(text);
        self.ends.push(self.joined.len() as u32);
    }

    /// How many there are.
    fn len(&self) -> usize {
        self.ends.len()
    }

    /// The texts in order; of what was read from a peer, only after [`Texts::check`].
    fn iter(&self) -> impl Iterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let text = self.joined.get(start..end as usize).unwrap_or_default();
            start = end as usize;
            text
        })
    }

    fn check(&self) -> Result<(), String> {
        let mut start = 0;
        for (place, &end) in self.ends.iter().enumerate() {
            if self.joined.get(start..end as usize).is_none() {
                let bytes = self.joined.len();
                return Err(format!(
                    "text {place} of a chunk would be bytes {start}..{end} of {bytes}"
                ));
            }
            start = end as usize;
        }
        if start != self.joined.len() {
            let bytes = self.joined.len();
            return Err(format!("the texts of a chunk end at byte {start} of {bytes}"));
        }
        Ok(())
    }
}

/// A [`Chunk`] as it was read, before anyone believes it.
#[derive(Deserialize)]
#[serde(bound = "M: DeserializeOwned + Serialize")]
pub(super) struct Wire<const N: usize, M> {
    target: u32,
    rollup: u16,
    granularity: Option<Granularity>,
    overflows: u64,
    texts: Option<Texts>,
    sums: Vec<Sum<N, M>>,
}

impl<const N: usize, M> TryFrom<Wire<N, M>> for Chunk<N, M> {
    type Error = String;

    fn try_from(wire: Wire<N, M>) -> Result<Self, String> {
        let Wire { target, rollup, granularity, overflows, texts, sums } = wire;
        if let Some(texts) = &texts {
            texts.check()?;
            let highest = sums.iter().flat_map(|sum| sum.key).max().unwrap_or(0);
            if !sums.is_empty() && highest as usize >= texts.len() {
                let count = texts.len();
                return Err(format!("a chunk with {count} texts has a key that names {highest}"));
            }
        }
        Ok(Chunk { target, rollup, granularity, overflows, texts, sums })
    }
}

/// Where the chunks of one worker cross between its process and others, and what it keeps for that
/// from chunk to chunk.
pub struct Crossing {
    symbols: Arc<Symbols>,
    process: u32,
    threads: u32,
    /// By symbol: its place among the texts of the chunk at hand, from 1; 0 if it has none.
    places: Vec<u32>,
    /// The symbols of the chunk at hand, by place.
    named: Vec<Symbol>,
}

impl Crossing {
    /// For the worker with this number, in a cluster whose processes have `threads` workers each:
    /// the process of a worker is its number divided by that. A cluster of one process has as many
    /// threads as workers.
    ///
    /// # Panics
    /// If there are no threads.
    pub fn new(symbols: Arc<Symbols>, worker: usize, threads: usize) -> Crossing {
        assert!(threads > 0, "a process has at least one worker");
        let threads = threads as u32;
        let process = worker as u32 / threads;
        Crossing { symbols, process, threads, places: Vec::new(), named: Vec::new() }
    }

    /// The chunk as it must be sent: itself if its target is in this process, else with texts.
    pub fn depart<const N: usize, M: Exchanged>(&mut self, chunk: Chunk<N, M>) -> Chunk<N, M> {
        if chunk.target / self.threads == self.process { chunk } else { self.translate(chunk) }
    }

    /// Puts texts in the place of symbols.
    fn translate<const N: usize, M: Exchanged>(&mut self, mut chunk: Chunk<N, M>) -> Chunk<N, M> {
        self.places.resize(self.symbols.len(), 0);
        for sum in &mut chunk.sums {
            for symbol in &mut sum.key {
                let place = &mut self.places[*symbol as usize];
                if *place == 0 {
                    self.named.push(*symbol);
                    *place = self.named.len() as u32;
                }
                *symbol = *place - 1;
            }
        }
        let mut texts = Texts::default();
        self.symbols.with_texts(|text| {
            self.named.iter().for_each(|&symbol| texts.push(&text(symbol)));
        });
        for symbol in self.named.drain(..) {
            self.places[symbol as usize] = 0;
        }
        chunk.texts = Some(texts);
        chunk
    }

    /// The chunk as this process understands it: itself if it comes from this process, else with
    /// symbols of this process, new ones for texts that were not known here.
    pub fn arrive<const N: usize, M: Exchanged>(&mut self, mut chunk: Chunk<N, M>) -> Chunk<N, M> {
        let Some(texts) = chunk.texts.take() else { return chunk };
        self.named.clear();
        self.symbols.intern_all(texts.iter(), &mut self.named);
        for sum in &mut chunk.sums {
            sum.key = sum.key.map(|place| self.named[place as usize]);
        }
        self.named.clear();
        chunk
    }
}

#[cfg(test)]
mod tests;
