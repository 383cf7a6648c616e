//! An image of the ledger: its part of a checkpoint, vnode by vnode.
//!
//! # The problem
//!
//! The ledger is the largest state of a worker, gigabytes, and a checkpoint must not stop the
//! worker for longer than an epoch takes. So an image *refers* to the rows and copies none: it
//! shares the chunks of the rings ([`super::ring`]), is written by another thread, and meanwhile
//! the worker goes on. And nearly all of the ledger is as it was at the checkpoint before, so an
//! image can be an *increment*: the rows since, what verdicts have changed of those before, and
//! how far is forgotten. Verdicts are few and are written whole.
//!
//! # Numbers
//!
//! A row keeps its number for good: a vnode that is loaded goes on with the numbers that it had
//! when it was written. So an increment continues whatever was written or loaded before it, by
//! whichever worker.
//!
//! # A vnode's section, version 1, little-endian
//!
//! ```text
//! 0   u8   version = 1
//! 1   u8   kind = 5
//! 2   u8   0 whole, 1 increment
//! 3   u8   vnode
//! 4   u64  bytes of the section
//! 12  u64  from: whole: `live from`; increment: the number after the last row of the part before
//! 20  u64  live from: rows before this are forgotten
//! 28  u32 n, n × row           32 bytes as in row.rs; numbered from max(from, live from) on
//!     u32 g, g × { u64 key, u8 shard }      for each of these rows that has a group, in order
//!     u32 f, f × u32           rows of the parts before that verdicts have changed, latest last:
//!                              24 low bits of the number, then bit 0 event, bit 1 group invalid
//!     u32 m, m × { i64 latest log time, u64 end }             marks: slices of rows
//!     memory of verdicts on events                            as in verdicts/image.rs
//! ```
//!
//! # The section of what all workers know alike
//!
//! ```text
//! 0   u8   version = 1
//! 1   u8   kind = 6
//! 2   u8   0 no epoch was ever opened, 1 one was
//! 3   u8   0
//! 4   u64  bytes of the section
//! 12  u64  the last epoch that was opened
//! 20  i64  log time that the log was complete to before it
//! 28  i64  log time that it was complete to at its end
//! 36  i64  latest log time in it
//! 44  memory of verdicts on impressions                       as in verdicts/image.rs
//! ```

use super::{
    Ledger,
    groups::{GroupKey, GroupsImage, VNODES_AT_ONCE},
    row::HAS_GROUP,
    verdicts::{Memory, MemoryImage},
    vnode::VnodeImage,
};
use crate::{
    feed::{EpochTimes, ImageKind},
    hash::VNODES,
    section::SECTION_VERSION,
};
use std::cell::RefCell;

/// Why a section of the ledger cannot be loaded: which one, what is wrong with it, and where.
pub use crate::section::BrokenSection as ImageError;

pub(super) const VNODE_KIND: u8 = 5;
pub(super) const SHARED_KIND: u8 = 6;
/// Where a section says how long it is.
const LENGTH_AT: usize = 4;

/// The greatest number that a section may begin with: far beyond any, and sums do not overflow.
pub(super) const NUMBER_MAX: u64 = 1 << 48;

/// Rows of the image before that verdicts may change, on one worker; beyond it the next image is
/// whole. 4 MiB.
pub(super) const FLIPS_MAX: usize = 1 << 20;

/// The ledger of one worker as it was between two epochs. It may be sent to another thread and
/// written there; nothing that the ledger does meanwhile changes it.
#[derive(Debug)]
pub struct LedgerImage {
    kind: ImageKind,
    vnodes: Vec<VnodeImage>,
    verdicts: Vec<MemoryImage>,
    groups: GroupsImage,
    impressions: MemoryImage,
    times: Option<EpochTimes>,
    keys: RefCell<Option<Keys>>,
}

/// The group keys of [`VNODES_AT_ONCE`] vnodes.
#[derive(Debug)]
struct Keys {
    first_vnode: usize,
    of_vnodes: Vec<Vec<GroupKey>>,
}

impl Ledger {
    /// An image of the ledger as it is now, between two epochs; stops the worker for a time that
    /// goes by chunks of 256 rows, not by rows. An increment becomes whole when there is nothing
    /// to continue: no image was taken and nothing was loaded, or verdicts changed more rows since
    /// than are noted (about a million); [`LedgerImage::kind`] says which it is.
    ///
    /// An increment continues the last image that was *taken*, or else what was loaded. If that
    /// one could not be stored, the next must be whole.
    pub fn image(&mut self, kind: ImageKind) -> LedgerImage {
        let kind = if self.imaged { kind } else { ImageKind::Whole };
        self.imaged = true;
        self.flips = 0;
        LedgerImage {
            kind,
            vnodes: self.vnodes.iter_mut().map(|v| v.image(kind)).collect(),
            verdicts: self.event_verdicts.iter_mut().map(Memory::image).collect(),
            groups: self.groups.image(kind),
            impressions: self.group_verdicts.image(),
            times: self.times,
            keys: RefCell::new(None),
        }
    }

    /// Notes that a verdict changed a row of the image before.
    pub(super) fn note_flip(&mut self) {
        self.flips += 1;
        if self.flips > self.flips_max {
            self.imaged = false;
            self.flips = 0;
            self.vnodes.iter_mut().for_each(|vnode| vnode.forget_image());
        }
    }
}

impl LedgerImage {
    /// Whether it is whole or continues the one before.
    pub fn kind(&self) -> ImageKind {
        self.kind
    }

    /// Appends the section of a vnode, 0..256. All vnodes that the worker owns belong to the
    /// image, rows or not; in ascending order they are written fastest.
    pub fn write_vnode(&self, vnode: usize, out: &mut Vec<u8>) {
        let VnodeImage { from, live_from, rows, flips, marks } = &self.vnodes[vnode];
        let begin = out.len();
        let increment = u8::from(self.kind == ImageKind::Increment);
        out.reserve(rows.len() * size_of::<super::Row>());
        out.extend([SECTION_VERSION, VNODE_KIND, increment, vnode as u8]);
        out.extend([0; 8]);
        out.extend(from.to_le_bytes());
        out.extend(live_from.to_le_bytes());
        out.extend((rows.len() as u32).to_le_bytes());
        let mut grouped = Vec::new();
        rows.iter().for_each(|(number, row)| {
            out.extend(row.to_bytes());
            if row.has(HAS_GROUP) {
                grouped.push((number - rows.first()) as usize);
            }
        });
        self.write_keys(vnode, &grouped, out);
        let live = |flip: &&super::vnode::Flip| flip.number(*from) >= *live_from;
        out.extend((flips.iter().filter(live).count() as u32).to_le_bytes());
        flips.iter().filter(live).for_each(|flip| out.extend(flip.0.to_le_bytes()));
        // Marks of what is forgotten say nothing.
        let marks: Vec<_> = marks.iter().filter(|(_, end)| end > live_from).collect();
        out.extend((marks.len() as u32).to_le_bytes());
        for (latest, end) in marks {
            out.extend(latest.0.to_le_bytes());
            out.extend(end.to_le_bytes());
        }
        self.verdicts[vnode].write(out);
        write_length(begin, out);
    }

    /// Appends the keys of those rows of a vnode that have a group.
    fn write_keys(&self, vnode: usize, grouped: &[usize], out: &mut Vec<u8>) {
        out.extend((grouped.len() as u32).to_le_bytes());
        if grouped.is_empty() {
            return;
        }
        let mut keys = self.keys.borrow_mut();
        let first_vnode = vnode / VNODES_AT_ONCE * VNODES_AT_ONCE;
        if keys.as_ref().is_none_or(|keys| keys.first_vnode != first_vnode) {
            let rows = |v: usize| (self.vnodes[v].rows.first(), self.vnodes[v].rows.len());
            let vnodes = first_vnode..(first_vnode + VNODES_AT_ONCE).min(VNODES);
            let of_vnodes = self.groups.keys(vnodes, rows);
            *keys = Some(Keys { first_vnode, of_vnodes });
        }
        let Some(Keys { of_vnodes, .. }) = keys.as_ref() else { return };
        for &row in grouped {
            let GroupKey { key, shard } = of_vnodes[vnode - first_vnode][row];
            out.extend(key.to_le_bytes());
            out.push(shard);
        }
    }

    /// Appends the section of what every worker knows: verdicts on impressions, and the last epoch
    /// that was opened. That of one worker is enough.
    pub fn write_impressions(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend([SECTION_VERSION, SHARED_KIND, u8::from(self.times.is_some()), 0]);
        out.extend([0; 8]);
        let EpochTimes { epoch, frontier_before, frontier, latest } =
            self.times.unwrap_or_default();
        out.extend(epoch.to_le_bytes());
        for time in [frontier_before, frontier, latest] {
            out.extend(time.0.to_le_bytes());
        }
        self.impressions.write(out);
        write_length(begin, out);
    }

    /// Memory that the image alone holds: what the ledger has changed or dropped since, and copies.
    pub fn bytes(&self) -> usize {
        let vnode = |v: &VnodeImage| v.rows.bytes() + v.flips.capacity() * 4 + v.marks.bytes();
        let keys = |k: &Keys| {
            k.of_vnodes.iter().map(|v| v.capacity() * size_of::<GroupKey>()).sum::<usize>()
        };
        self.vnodes.iter().map(vnode).sum::<usize>()
            + self.verdicts.iter().chain([&self.impressions]).map(MemoryImage::bytes).sum::<usize>()
            + self.groups.bytes()
            + self.keys.borrow().as_ref().map_or(0, keys)
    }
}

/// A section says at its begin how long it is, so that one that is cut short is found at once.
fn write_length(begin: usize, out: &mut [u8]) {
    let bytes = (out.len() - begin) as u64;
    out[begin + LENGTH_AT..][..8].copy_from_slice(&bytes.to_le_bytes());
}
