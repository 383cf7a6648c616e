//! Sums that leave their process, and sums that come into it. Symbols are the numbers of one
//! process, so a [`Chunk`] for a worker of another process carries texts, each once, and its keys
//! are places among them; the process that takes it in rewrites them to symbols of its own before
//! anything looks at a key.
//!
//! # Why it is hard
//!
//! The first stage writes chunks at the rate at which epochs are cut, so what every chunk pays must
//! be next to nothing: a chunk that stays within its process is neither copied nor looked through.
//! In one that leaves, a text is looked up once per chunk and not once per
//! sum: a worker keeps a table of places by symbol, which is as long as there are symbols and of
//! which only the places in use are cleared again.
//!
//! # On the wire, little-endian
//!
//! timely writes records with bincode: integers of their own width, a length as `u64`. Figure by
//! figure that costs a microsecond a sum for writing and reading, so what leaves is packed by hand.
//!
//! ```text
//! u32 target, u16 rollup
//! u8  0: sums by minute; else 1, then u32 0 minute, 1 hour, 2 day
//! u64 overflows
//! u8  0: keys are symbols, then u64 0         1: packed, then u64 bytes of
//!   0   u32 T   texts
//!   4   u32 S   sums
//!   8   u32 B   bytes of the texts
//!   12  the texts, see `texts`
//!       S × { N × u32 place, i32 bucket, figures as `Group::write` }
//! u64 sums that are not packed
//! ```
//!
//! With [`crate::metrics::Metrics`] and four dimensions a sum is 56 bytes.
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
    change::Key,
    metrics::Group,
    symbols::{Symbol, Symbols},
    texts::{Texts, word},
    time::{Bucket, Granularity},
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
    ser::Error,
};
use std::{fmt, marker::PhantomData, sync::Arc};

/// Which of its forms a chunk has.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Form {
    /// Keys are symbols of this process.
    #[default]
    Here,
    /// On its way to another process: all of it is in these bytes, and `sums` is empty.
    Leaving(Vec<u8>),
    /// Come from another process: keys are places among these texts.
    Arrived(Texts),
}

/// Bytes before the ends of the texts.
const HEAD_BYTES: usize = 12;

const fn sum_bytes<const N: usize, M: Group>() -> usize {
    (N + 1) * 4 + M::BYTES
}

fn pack<const N: usize, M: Group>(texts: &Texts, sums: &[Sum<N, M>]) -> Vec<u8> {
    let (count, joined) = (texts.len(), texts.joined.len());
    let len = HEAD_BYTES + texts.written_bytes() + sums.len() * sum_bytes::<N, M>();
    let mut bytes = Vec::with_capacity(len);
    for number in [count, sums.len(), joined] {
        bytes.extend((number as u32).to_le_bytes());
    }
    texts.write(&mut bytes);
    for sum in sums {
        sum.key.iter().for_each(|place| bytes.extend(place.to_le_bytes()));
        bytes.extend(sum.bucket.0.to_le_bytes());
        sum.metrics.write(&mut bytes);
    }
    debug_assert_eq!(bytes.len(), len);
    bytes
}

/// What a peer has packed, if that is what it should be.
fn unpack<const N: usize, M: Group>(bytes: &[u8]) -> Result<Unpacked<N, M>, String> {
    let cut = || format!("it ends at byte {}", bytes.len());
    let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or_else(cut)?;
    let [count, sums, joined] = [0, 4, 8].map(|at| word(&head[at..]) as usize);
    let (ends, rest) = rest.split_at_checked(count.saturating_mul(4)).ok_or_else(cut)?;
    let (joined, rest) = rest.split_at_checked(joined).ok_or_else(cut)?;
    let each = sum_bytes::<N, M>();
    if Some(rest.len()) != sums.checked_mul(each) {
        return Err(format!("{sums} sums of {each} bytes are not {} bytes", rest.len()));
    }
    let texts = Texts::read(ends, joined)?;
    let sums = rest.chunks_exact(each).map(|bytes| sum(bytes, count)).collect::<Result<_, _>>()?;
    Ok(Unpacked { texts, sums })
}

fn sum<const N: usize, M: Group>(bytes: &[u8], texts: usize) -> Result<Sum<N, M>, String> {
    let key: Key<N> = std::array::from_fn(|i| word(&bytes[i * 4..]));
    if let Some(beyond) = key.iter().find(|&&place| place as usize >= texts) {
        return Err(format!("a key names text {beyond} of {texts}"));
    }
    let bucket = Bucket(word(&bytes[N * 4..]) as i32);
    let metrics = M::read(&bytes[N * 4 + 4..]).ok_or("figures are none")?;
    Ok(Sum { key, bucket, metrics })
}

/// A [`Chunk`] as it is written.
#[derive(Serialize)]
#[serde(bound = "M: Exchanged")]
struct Written<'c, const N: usize, M> {
    target: u32,
    rollup: u16,
    granularity: Option<Granularity>,
    overflows: u64,
    packed: Option<Packed<'c>>,
    sums: &'c [Sum<N, M>],
}

struct Packed<'c>(&'c [u8]);

impl Serialize for Packed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<const N: usize, M: Exchanged> Serialize for Chunk<N, M> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let packed = match &self.form {
            Form::Here => None,
            Form::Leaving(bytes) => Some(Packed(bytes)),
            Form::Arrived(_) => return Err(S::Error::custom("a chunk goes on before it arrived")),
        };
        let &Chunk { target, rollup, granularity, overflows, .. } = self;
        let sums = &self.sums;
        Written { target, rollup, granularity, overflows, packed, sums }.serialize(serializer)
    }
}

/// A [`Chunk`] as it is read.
#[derive(Deserialize)]
#[serde(bound = "M: Exchanged")]
struct Read<const N: usize, M> {
    target: u32,
    rollup: u16,
    granularity: Option<Granularity>,
    overflows: u64,
    packed: Option<Unpacked<N, M>>,
    sums: Vec<Sum<N, M>>,
}

#[derive(Debug)]
struct Unpacked<const N: usize, M> {
    texts: Texts,
    sums: Vec<Sum<N, M>>,
}

impl<'de, const N: usize, M: Group> Deserialize<'de> for Unpacked<N, M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(OfBytes(PhantomData))
    }
}

struct OfBytes<const N: usize, M>(PhantomData<M>);

impl<const N: usize, M: Group> Visitor<'_> for OfBytes<N, M> {
    type Value = Unpacked<N, M>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("packed sums")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        unpack(bytes).map_err(|reason| E::custom(format!("a peer's sums: {reason}")))
    }
}

impl<'de, const N: usize, M: Exchanged> Deserialize<'de> for Chunk<N, M> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Read { target, rollup, granularity, overflows, packed, sums } =
            Read::deserialize(deserializer)?;
        let (form, sums) = match packed {
            Some(Unpacked { texts, sums }) => (Form::Arrived(texts), sums),
            None => (Form::Here, sums),
        };
        Ok(Chunk { target, rollup, granularity, overflows, form, sums })
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

    /// The texts of this process.
    pub fn symbols(&self) -> &Arc<Symbols> {
        &self.symbols
    }

    /// Workers of each process.
    pub(crate) fn threads(&self) -> usize {
        self.threads as usize
    }

    /// The chunk as it must be sent: itself if its target is in this process, else with texts.
    pub fn depart<const N: usize, M: Exchanged>(&mut self, chunk: Chunk<N, M>) -> Chunk<N, M> {
        if chunk.target / self.threads == self.process { chunk } else { self.pack(chunk) }
    }

    /// Puts texts in the place of symbols.
    fn pack<const N: usize, M: Exchanged>(&mut self, mut chunk: Chunk<N, M>) -> Chunk<N, M> {
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
        chunk.form = Form::Leaving(pack(&texts, &std::mem::take(&mut chunk.sums)));
        chunk
    }

    /// The chunk as this process understands it: itself if it comes from this process, else with
    /// symbols of this process, new ones for texts that were not known here.
    pub fn arrive<const N: usize, M: Exchanged>(&mut self, mut chunk: Chunk<N, M>) -> Chunk<N, M> {
        let Form::Arrived(texts) = std::mem::take(&mut chunk.form) else { return chunk };
        texts.intern(&self.symbols, &mut self.named);
        for sum in &mut chunk.sums {
            sum.key = sum.key.map(|place| self.named[place as usize]);
        }
        self.named.clear();
        chunk
    }
}

#[cfg(test)]
mod tests;
