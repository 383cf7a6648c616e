//! Loading: from the sections of a checkpoint ([`super::image`]) to a ledger that goes on as if it
//! had never stopped, on as many workers as there are now.
//!
//! Each worker loads the vnodes that it owns, one at a time, then what all workers know alike, and
//! then calls [`Ledger::finish_load`]; groups span vnodes and are made at the end. Numbers of rows
//! are kept, an index is sized once, and nothing that was forgotten is loaded. Bytes are believed
//! nothing: a section that is cut short or contradicts itself is an error, never a ledger that is
//! wrong.

use super::{
    Ledger, LedgerFault, ROWS_PER_VNODE_MAX,
    groups::{GroupKey, RowRef},
    image::{ImageError, NUMBER_MAX, SHARED_KIND, VNODE_KIND},
    marks::{MARK_BYTES, Marks},
    ring::{Pool, Ring},
    row::{EVENT_INVALID, GROUP_INVALID, HAS_GROUP, JUDGED, ROW_BYTES, Row},
    verdicts::Memory,
    vnode::{Flip, Vnode},
};
use crate::{
    feed::EpochTimes,
    hash::{self, VNODES},
    section::{Reader, SECTION_VERSION},
    time::LogTime,
};

const KEY_BYTES: usize = 9;

/// One section of a vnode, opened.
struct Part<'a> {
    from: u64,
    live_from: u64,
    rows: &'a [[u8; ROW_BYTES]],
    keys: &'a [[u8; KEY_BYTES]],
    flips: &'a [[u8; 4]],
    /// Behind what stands above: marks and verdicts, which only the last part's matter of.
    rest: Reader<'a>,
}

impl<'a> Part<'a> {
    /// Opens the part at a position in the chain of a vnode's parts.
    fn open(vnode: usize, at: usize, section: &'a [u8]) -> Result<Part<'a>, ImageError> {
        let mut reader = Reader::new(format!("ledger, vnode {vnode}, part {at}"), section);
        let [increment, of] = open(&mut reader, VNODE_KIND, section)?;
        if usize::from(of) != vnode || increment != u8::from(at > 0) {
            let kinds = "the first part is whole (0), all others increments (1)";
            let is = format!("is of vnode {of}, kind {increment}; {kinds}");
            return Err(reader.broken(is));
        }
        let (from, live_from) = (reader.u64()?, reader.u64()?);
        if from.max(live_from) > NUMBER_MAX || (increment == 0 && from != live_from) {
            let reason = format!("begins at row {from}, live from {live_from}");
            return Err(reader.broken(reason));
        }
        let rows = list(&mut reader)?;
        let keys = list(&mut reader)?;
        let flips = list(&mut reader)?;
        Ok(Part { from, live_from, rows, keys, flips, rest: reader })
    }

    /// The number of the first row.
    fn first(&self) -> u64 {
        self.from.max(self.live_from)
    }

    /// The number after the last row.
    fn tail(&self) -> u64 {
        self.first() + self.rows.len() as u64
    }

    /// That it continues the part before.
    fn check_after(&self, before: &Part<'_>) -> Result<(), ImageError> {
        if self.from == before.tail() && self.live_from >= before.live_from {
            return Ok(());
        }
        let (Part { from, live_from, .. }, tail) = (self, before.tail());
        Err(self.rest.broken(format!(
            "continues at row {from}, live from {live_from}; the part before goes up to {tail}, \
             live from {}",
            before.live_from
        )))
    }

    /// Takes its live rows, and the keys of those that have a group.
    fn take_rows(&self, vnode: usize, to: &mut Rows) -> Result<(), ImageError> {
        let live_from = to.rows.head();
        let mut keys = self.keys.iter();
        for (number, bytes) in (self.first()..).zip(self.rows) {
            let row = Row::from_bytes(bytes);
            if hash::vnode(&row.id) != vnode {
                return Err(self.rest.broken(format!("row {number} is of another vnode")));
            }
            let key = if row.has(HAS_GROUP) { Some(self.key(keys.next(), number)?) } else { None };
            if number >= live_from {
                to.rows.push(row, &mut Pool::default());
                to.members.extend(key.map(|key| (number, key)));
            }
        }
        let left = keys.len();
        if left == 0 {
            return Ok(());
        }
        Err(self.rest.broken(format!("has {left} keys of groups more than rows that have one")))
    }

    fn key(&self, key: Option<&[u8; KEY_BYTES]>, row: u64) -> Result<GroupKey, ImageError> {
        let none = || self.rest.broken(format!("row {row} has a group, and its key is missing"));
        let [key @ .., shard] = key.ok_or_else(none)?;
        Ok(GroupKey { key: u64::from_le_bytes(*key), shard: *shard })
    }

    /// Sets what verdicts have changed of the rows before.
    fn apply_flips(&self, to: &mut Ring<Row>) -> Result<(), ImageError> {
        for bytes in self.flips {
            let flip = Flip(u32::from_le_bytes(*bytes));
            let (number, judged) = (flip.number(self.from), flip.judged());
            if !(self.live_from..self.from).contains(&number) || judged & !JUDGED != 0 {
                return Err(self.rest.broken(format!("changes row {number} to {judged}")));
            }
            if number >= to.head() {
                let row = to.get_mut(number);
                row.set(EVENT_INVALID, judged & EVENT_INVALID != 0);
                row.set(GROUP_INVALID, judged & GROUP_INVALID != 0);
            }
        }
        Ok(())
    }
}

/// A count, and so many entries of `N` bytes.
fn list<'a, const N: usize>(reader: &mut Reader<'a>) -> Result<&'a [[u8; N]], ImageError> {
    let count = reader.count(N)?;
    Ok(reader.take(count * N)?.as_chunks().0)
}

/// Reads the begin of a section, up to its length; returns the third and the fourth byte.
fn open(reader: &mut Reader<'_>, kind: u8, section: &[u8]) -> Result<[u8; 2], ImageError> {
    let (version, found) = (reader.u8()?, reader.u8()?);
    if version != SECTION_VERSION || found != kind {
        let known = format!("known is version {SECTION_VERSION}, kind {kind}");
        return Err(reader.broken(format!("has version {version}, kind {found}; {known}")));
    }
    let say = [reader.u8()?, reader.u8()?];
    let (said, bytes) = (reader.u64()?, section.len());
    if said != bytes as u64 {
        return Err(reader.broken(format!("has {bytes} bytes and says {said}")));
    }
    Ok(say)
}

/// The rows of a vnode, and its members of groups with their slices.
struct Rows {
    rows: Ring<Row>,
    members: Vec<(u64, GroupKey)>,
}

impl Ledger {
    /// Loads a vnode, 0..256, that this worker owns and that is empty: from the section of a whole
    /// image and those of the increments that continue it, in order. To be called before any epoch
    /// is opened, and followed by [`Ledger::finish_load`].
    ///
    /// # Errors
    /// When a section is cut short, contradicts itself, or does not continue the one before; when
    /// the vnode is not empty. The ledger must not be used any more then.
    pub fn load_vnode(&mut self, vnode: usize, parts: &[&[u8]]) -> Result<(), ImageError> {
        let refuse =
            |reason: &str| Err(Reader::new(format!("ledger, vnode {vnode}"), &[]).broken(reason));
        if vnode >= VNODES || parts.is_empty() {
            return refuse("there is no such vnode, or it has no section");
        }
        let is_new = self.vnodes[vnode].rows.tail() == 0 && self.event_verdicts[vnode].is_new();
        if !is_new {
            return refuse("it is not empty, so nothing can be loaded into it");
        }
        let opened = parts.iter().enumerate().map(|(at, part)| Part::open(vnode, at, part));
        let mut opened = opened.collect::<Result<Vec<_>, _>>()?;
        let rows = read_rows(vnode, &opened)?;
        let Some(Part { rest, .. }) = opened.last_mut() else { return Ok(()) };
        let marks = Marks::read(rest.count(MARK_BYTES)?, rows.rows.tail(), rest)?;
        let verdicts = Memory::read(self.settings.limits.verdicts_per_vnode_max, rest)?;
        rest.end()?;
        self.restore_members(vnode, &rows.members, &marks, rest)?;
        self.vnodes[vnode] = Vnode::of_rows(vnode, rows.rows, marks);
        self.event_verdicts[vnode] = verdicts;
        Ok(())
    }

    fn restore_members(
        &mut self,
        vnode: usize,
        members: &[(u64, GroupKey)],
        marks: &Marks,
        section: &Reader<'_>,
    ) -> Result<(), ImageError> {
        let restored = self.restored.get_or_insert_default();
        let mut marks = marks.iter().peekable();
        let mut slice = None;
        for &(number, key) in members {
            while marks.next_if(|(_, end)| *end <= number).is_some() {
                slice = None;
            }
            let latest = marks.peek().map(|(latest, _)| *latest);
            let slice = *slice.get_or_insert_with(|| restored.slice(latest));
            if !restored.add(key, RowRef::new(vnode, number), slice) {
                let shard = key.shard;
                return Err(section.broken(format!("shard {shard} of groups is full")));
            }
        }
        Ok(())
    }

    /// Loads what all workers know alike. To be called before any epoch is opened, and followed by
    /// [`Ledger::finish_load`].
    ///
    /// # Errors
    /// When the section is cut short or contradicts itself. The ledger must not be used any more
    /// then.
    pub fn load_impressions(&mut self, section: &[u8]) -> Result<(), ImageError> {
        let mut reader = Reader::new("ledger, verdicts on impressions", section);
        let [opened, zero] = open(&mut reader, SHARED_KIND, section)?;
        let times = EpochTimes {
            epoch: reader.u64()?,
            frontier_before: LogTime(reader.i64()?),
            frontier: LogTime(reader.i64()?),
            latest: LogTime(reader.i64()?),
        };
        let times = match [opened, zero] {
            [0, 0] if times == EpochTimes::default() => None,
            [1, 0] => Some(times),
            _ => return Err(reader.broken(format!("says {opened}, {zero} of {times:?}"))),
        };
        let verdicts = Memory::read(self.settings.limits.impression_verdicts_max, &mut reader)?;
        reader.end()?;
        self.restored.get_or_insert_default();
        self.group_verdicts = verdicts;
        self.times = times;
        Ok(())
    }

    /// Ends loading: makes groups of all members. An increment may then continue what was loaded.
    pub fn finish_load(&mut self) {
        if let Some(restored) = self.restored.take() {
            self.groups = restored.into_groups();
            self.rebuild_event_filter();
            self.rebuild_group_filter();
            self.imaged = true;
        }
    }

    /// That no epoch is opened in the middle of loading.
    pub(super) fn check_loaded(&self) -> Result<(), LedgerFault> {
        match &self.restored {
            None => Ok(()),
            Some(_) => {
                Err(LedgerFault::Feed("an epoch was opened in the middle of loading".into()))
            }
        }
    }
}

/// All live rows of the parts.
fn read_rows(vnode: usize, parts: &[Part<'_>]) -> Result<Rows, ImageError> {
    let live_from = parts.last().map_or(0, |last| last.live_from);
    let mut to = Rows { rows: Ring::starting_at(live_from), members: Vec::new() };
    let mut before: Option<&Part<'_>> = None;
    for part in parts {
        before.map_or(Ok(()), |before| part.check_after(before))?;
        part.apply_flips(&mut to.rows)?;
        part.take_rows(vnode, &mut to)?;
        if to.rows.tail() - live_from > ROWS_PER_VNODE_MAX as u64 {
            let reason = format!("has more than {ROWS_PER_VNODE_MAX} rows that are remembered");
            return Err(part.rest.broken(reason));
        }
        before = Some(part);
    }
    Ok(to)
}
