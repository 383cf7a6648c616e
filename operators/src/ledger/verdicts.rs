//! What was said about ids and impressions, for as long as an event may still come that it covers.
//!
//! For each key the *winner* is remembered: the verdict with the latest `decided_at`, of two equal
//! ones the later arrival. A verdict that was decided earlier says no more than that the key is
//! still being judged: it counts as the winner, said once more.
//!
//! For one retention after it was said last a winner *covers* the events that come, by their own
//! log time. For another one it only stands against verdicts that were decided earlier: so long an
//! event can be judged that it covered. Then it is forgotten. How far partitions lag behind each
//! other plays no part in it: what comes of one that lags has the log time of then.
//!
//! # Which verdict an event that comes later finds
//!
//! A verdict changes nothing for an event whose minute was final at the verdict's log time. So the
//! winner may be too late for an event while the one that it superseded was in time, and then
//! that one counts. The log bounds how long it must be kept: an event of an epoch has a log time
//! of at least `frontier_before`; once the winner's log time is no later than that, every event
//! for which it would be too late is too late itself. That is one epoch in practice. (For an
//! event that is known already no such care is needed: verdicts are applied as they come, and log
//! times never decrease in the one partition of the verdicts topic.)
//!
//! # Limits
//!
//! A memory holds [`Memory::max`] keys. Beyond that the key that was judged longest ago is
//! forgotten before its time, which is counted; the runtime refuses verdicts before it comes to
//! that ([`super::Ledger::is_nearly_full`]).
//!
//! # Layout
//!
//! A key that is judged takes a *turn*, at most one in each slice of log time, in which the verdict
//! stands as well; a map leads from the key to its latest turn. So turns are a [`Ring`], an image
//! shares its chunks, and the map can be made again from them.

mod image;

pub(super) use image::MemoryImage;

use super::{
    marks::Marks,
    ring::{Pool, Ring},
};
use crate::{
    feed::Judgement,
    hash::IdHash,
    time::{Bucket, Lateness, LogTime},
};
use hashbrown::HashMap;

/// Keys are keyed hashes; those of a caller's own choosing come through [`super::row::spread`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ByHash;

impl std::hash::BuildHasher for ByHash {
    type Hasher = IdHasher;
    fn build_hasher(&self) -> IdHasher {
        IdHasher(0)
    }
}

/// Takes the one id that it is given for its hash.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdHasher(u64);

impl std::hash::Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        let mut id = IdHash::default();
        for (to, from) in id.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.0 = super::row::spread(&id);
    }
    /// The length of the array, always 16.
    fn write_usize(&mut self, _: usize) {}
}

type ById<V> = HashMap<IdHash, V, ByHash>;

/// What counts of a verdict once it is known whom it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Judged {
    decided_at_us: i64,
    arrival: (u64, u32),
    log_time: LogTime,
    pub(super) invalid: bool,
}

impl From<&Judgement> for Judged {
    fn from(j: &Judgement) -> Judged {
        let Judgement { decided_at_us, arrival, log_time, invalid, .. } = *j;
        Judged { decided_at_us, arrival, log_time, invalid }
    }
}

impl Judged {
    /// The latest wins.
    pub(super) fn order(&self) -> (i64, (u64, u32)) {
        (self.decided_at_us, self.arrival)
    }

    /// What it comes to where a winner is known: the winner once more if it was decided earlier.
    pub(super) fn against(self, winner: &Judged) -> Judged {
        if self.order() > winner.order() {
            return self;
        }
        let Judged { decided_at_us, invalid, .. } = *winner;
        Judged { decided_at_us, invalid, ..self }
    }
}

/// What verdicts on one key, the latest last, say about an event of a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ruling {
    /// What the latest that is in time says; `None` if none is.
    pub(super) invalid: Option<bool>,
    /// What the latest says, if it came too late.
    pub(super) too_late: Option<bool>,
}

impl Ruling {
    /// Of the verdicts in ascending order.
    pub(super) fn of<'a>(
        ascending: impl DoubleEndedIterator<Item = &'a Judged>,
        minute: Bucket,
        lateness: &Lateness,
    ) -> Ruling {
        let mut ruling = Ruling { invalid: None, too_late: None };
        for verdict in ascending.rev() {
            if !lateness.too_late(minute, verdict.log_time) {
                ruling.invalid = Some(verdict.invalid);
                break;
            }
            ruling.too_late = ruling.too_late.or(Some(verdict.invalid));
        }
        ruling
    }

    /// What the event's flag is after it, and whether a verdict would have made it another had it
    /// come in time.
    pub(super) fn apply(self, flag: bool) -> (bool, bool) {
        let flag = self.invalid.unwrap_or(flag);
        (flag, self.too_late.is_some_and(|said| said != flag))
    }
}

/// A key's place in the order of judging. Of a key with several the latest counts; the earlier
/// ones are void.
#[derive(Clone, Copy, Debug)]
struct Turn {
    key: IdHash,
    winner: Judged,
}

/// The verdicts on events of one vnode, or on all impressions.
#[derive(Debug)]
pub(super) struct Memory {
    /// The latest turn of each key.
    winners: ById<u64>,
    /// Verdicts that a winner superseded but for some event may be too late to, ascending.
    superseded: ById<Vec<Judged>>,
    turns: Ring<Turn>,
    /// The first turn of the slice that is being filled: keys judged in it need no new turn.
    slice_from: u64,
    marks: Marks,
    max: usize,
    /// Keys that were forgotten because the memory was full.
    pub(super) forgotten_early: u64,
}

/// Verdicts are rare: chunks of turns go back to the allocator.
fn no_pool() -> Pool<Turn> {
    Pool::default()
}

/// Whether the verdict of a turn covers an event that has a log time.
fn covers(marks: &Marks, turn: u64, lateness: &Lateness, at: LogTime) -> bool {
    !marks.latest_of(turn).is_some_and(|latest| lateness.forgotten(latest, at))
}

impl Memory {
    pub(super) fn new(max: usize) -> Memory {
        Memory {
            winners: ById::default(),
            superseded: ById::default(),
            turns: Ring::default(),
            slice_from: 0,
            marks: Marks::default(),
            max: max.max(1),
            forgotten_early: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.winners.len()
    }

    /// Whether no verdict was ever remembered.
    pub(super) fn is_new(&self) -> bool {
        self.turns.tail() == 0
    }

    pub(super) fn max(&self) -> usize {
        self.max
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &IdHash> {
        self.winners.keys()
    }

    /// The verdict in force on a key.
    pub(super) fn winner(&self, key: &IdHash) -> Option<&Judged> {
        self.winners.get(key).map(|&turn| &self.turns.get(turn).winner)
    }

    /// The same, if it covers an event that has a log time.
    pub(super) fn covering(&self, key: &IdHash, late: &Lateness, at: LogTime) -> Option<&Judged> {
        let &turn = self.winners.get(key)?;
        covers(&self.marks, turn, late, at).then(|| &self.turns.get(turn).winner)
    }

    /// What the remembered verdicts say about an event of a minute that has a log time.
    pub(super) fn ruling(
        &self,
        key: &IdHash,
        minute: Bucket,
        late: &Lateness,
        at: LogTime,
    ) -> Option<Ruling> {
        let winner = self.covering(key, late, at)?;
        let before = self.superseded.get(key).map_or(&[][..], Vec::as_slice);
        Some(Ruling::of(before.iter().chain([winner]), minute, late))
    }

    /// Remembers verdicts on a key, in ascending order, each later than the winner, of an epoch
    /// before which the log was complete to `frontier`.
    pub(super) fn remember(
        &mut self,
        key: &IdHash,
        ascending: &[Judged],
        late: &Lateness,
        frontier: LogTime,
    ) {
        let Some((last, between)) = ascending.split_last() else { return };
        let before = self.covering(key, late, frontier).copied();
        let mut kept: Vec<Judged> = self.superseded.remove(key).unwrap_or_default();
        kept.extend(before.iter().chain(between));
        // One that came no earlier than a later decided one is never needed.
        let mut bound = last.log_time;
        let mut needed = |v: &Judged| {
            let earlier = v.log_time < bound;
            bound = bound.min(v.log_time);
            earlier
        };
        let mut kept: Vec<Judged> = kept.into_iter().rev().filter(|v| needed(v)).collect();
        if !kept.is_empty() {
            kept.reverse();
            // Nor one that repeats the one before: where it is in time, so is that one.
            kept.dedup_by_key(|v| v.invalid);
            self.superseded.insert(*key, kept);
        }
        self.take_turn(Turn { key: *key, winner: *last });
        while self.winners.len() > self.max && self.pop_turn() {}
    }

    /// Notes a verdict in the key's turn of this slice, a new one if it has none.
    fn take_turn(&mut self, turn: Turn) {
        match self.winners.get(&turn.key) {
            Some(&number) if number >= self.slice_from => *self.turns.get_mut(number) = turn,
            _ => {
                self.winners.insert(turn.key, self.turns.tail());
                self.turns.push(turn, &mut no_pool());
            }
        }
    }

    /// Forgets the key whose turn is the oldest, unless it had another since. `false`: no turns.
    fn pop_turn(&mut self) -> bool {
        let oldest = self.turns.head();
        if oldest == self.turns.tail() {
            return false;
        }
        let key = self.turns.get(oldest).key;
        if self.winners.get(&key) == Some(&oldest) {
            self.winners.remove(&key);
            self.superseded.remove(&key);
            self.forgotten_early += 1;
        }
        self.turns.drop_before(oldest + 1, &mut no_pool());
        true
    }

    /// Ends a slice of log time.
    pub(super) fn close_slice(&mut self, latest: LogTime) {
        let tail = self.turns.tail();
        self.marks.close(latest, tail);
        self.slice_from = tail;
    }

    /// Forgets the slices whose time has come. `true`: some key was.
    pub(super) fn forget(&mut self, lateness: &Lateness, frontier: LogTime) -> bool {
        let (winners, marks) = (&self.winners, &self.marks);
        // Without a winner that covers what comes, nothing comes that needs what it superseded.
        let needed = |&turn: &u64| covers(marks, turn, lateness, frontier);
        self.superseded.retain(|key, _| winners.get(key).is_some_and(needed));
        let outlived = |latest| lateness.outlived(latest, frontier);
        let Some(end) = self.marks.drop_while(outlived) else { return false };
        // These are on time.
        let early = self.forgotten_early;
        while self.turns.head() < end && self.pop_turn() {}
        self.forgotten_early = early;
        self.winners.shrink_to(self.winners.len() * 2);
        true
    }

    /// Drops what no event that comes from now on can need.
    pub(super) fn settle(&mut self, frontier: LogTime) {
        if self.superseded.is_empty() {
            return;
        }
        let (winners, turns) = (&self.winners, &self.turns);
        self.superseded.retain(|key, kept| {
            // Ascending in log time: needed is a verdict whose successor came after the frontier.
            let last = winners.get(key).map_or(frontier, |&turn| turns.get(turn).winner.log_time);
            let after = |i: usize| kept.get(i + 1).map_or(last, |next| next.log_time);
            let needed = (0..kept.len()).find(|&i| after(i) > frontier).unwrap_or(kept.len());
            kept.drain(..needed);
            !kept.is_empty()
        });
        self.superseded.shrink_to(self.superseded.len() * 2);
    }

    /// All memory, in use or not, about.
    pub(super) fn bytes(&self) -> usize {
        let kept: usize =
            self.superseded.values().map(|k| k.capacity() * size_of::<Judged>()).sum();
        self.winners.allocation_size()
            + self.superseded.allocation_size()
            + kept
            + self.turns.bytes()
            + self.marks.bytes()
    }
}

/// Says of most keys that nothing was ever said about them, out of a few bits that stay in the
/// cache, so that an event pays for verdicts only if there is one on it. It may say "perhaps" in
/// vain, never "no"; so it decides about speed and not about money.
#[derive(Debug, Default)]
pub(super) struct Filter {
    bits: Box<[u64]>,
    keys: usize,
}

impl Filter {
    /// Bits a key at most: one event in sixteen is looked up in vain.
    const BITS_PER_KEY: usize = 16;

    #[inline(always)]
    fn bit(&self, hash: u64) -> (usize, u64) {
        // The index takes its home from the low half of the hash; this takes the high one.
        let bit = ((hash >> 32) * (self.bits.len() as u64 * 64)) >> 32;
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    /// `false`: no key with this hash was added.
    #[inline(always)]
    pub(super) fn may_hold(&self, hash: u64) -> bool {
        let (word, bit) = self.bit(hash);
        self.bits.get(word).is_some_and(|w| w & bit != 0)
    }

    /// Adds a key. `false`: it is full, and must be made anew to hold this and all others.
    #[must_use]
    pub(super) fn add(&mut self, hash: u64) -> bool {
        if (self.keys + 1) * Self::BITS_PER_KEY > self.bits.len() * 64 {
            return false;
        }
        let (word, bit) = self.bit(hash);
        self.bits[word] |= bit;
        self.keys += 1;
        true
    }

    /// Makes it anew for these keys, with room for as many more.
    pub(super) fn rebuild(&mut self, keys: usize, hashes: impl Iterator<Item = u64>) {
        let words = (keys.max(32) * 2 * Self::BITS_PER_KEY).div_ceil(64);
        *self = Filter { bits: vec![0; words].into_boxed_slice(), keys: 0 };
        for hash in hashes {
            // Twice as large as its keys need.
            let added = self.add(hash);
            debug_assert!(added, "sized for {keys} keys");
        }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val::<[u64]>(&self.bits)
    }
}
