//! Which events belong to an impression, so that a verdict on it finds them. Kept beside the rows
//! and only for events that have a group: 16 bytes a member and 8 for each group's place in an
//! index.
//!
//! A worker's members are divided into 256 shards by the group's hash. In a shard they form one
//! queue in the order of arrival, and each member links to the one before it of the same group; the
//! index leads to the youngest. Adding to a group is therefore as cheap when it has a million
//! members (a broken sender that fills in a constant) as when it has one, and forgetting needs no
//! unlinking: a walk ends at the first member that is forgotten, because all behind it are older.
//!
//! A group is recognised by 72 bits of its hash; before anything is retracted, the event is read
//! back and its whole group compared. Members refer to rows, and the rows' flags and places are
//! the truth: all of this can be made again from them and their groups' keys. An image has those;
//! [`image`] says how members are made of them again.

mod image;

pub(super) use image::{GroupKey, GroupsImage, Restored, VNODES_AT_ONCE};

use super::{
    index::Index,
    marks::Marks,
    ring::{Pool, Ring},
};
use crate::{
    hash::{self, IdHash, VNODES},
    time::{Lateness, LogTime},
};

/// Members in a shard: 28 bits of a link. 4 GiB, so memory ends first.
const MEMBERS_MAX: u64 = (1 << 28) - 1;
const LINK_MASK: u32 = (1 << 28) - 1;
/// A younger member of the group exists; the index leads to that one.
const SUPERSEDED: u32 = 1 << 31;
const NUMBER_IN_ROW_BITS: u32 = 24;
const SWEEP_BLOCK: u64 = 32;

/// Where a row is: its vnode, and the low bits of its number, which is enough because a vnode
/// remembers fewer than 2²⁴ rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowRef(u32);

impl RowRef {
    #[inline(always)]
    pub(super) fn new(vnode: usize, number: u64) -> RowRef {
        let low = number as u32 & ((1 << NUMBER_IN_ROW_BITS) - 1);
        RowRef((vnode as u32) << NUMBER_IN_ROW_BITS | low)
    }

    #[inline(always)]
    pub(super) fn vnode(self) -> usize {
        (self.0 >> NUMBER_IN_ROW_BITS) as usize
    }

    /// The whole number, given the oldest one that the vnode remembers.
    #[inline(always)]
    pub(super) fn number(self, live_from: u64) -> u64 {
        let mask = (1 << NUMBER_IN_ROW_BITS) - 1;
        live_from + u64::from((self.0 & mask).wrapping_sub(live_from as u32 & mask) & mask)
    }
}

/// One event of a group.
#[derive(Clone, Copy, Debug)]
struct Member {
    /// 64 bits of the group's hash.
    key: u64,
    row: RowRef,
    /// How far back the next older member is, 0 for none; and [`SUPERSEDED`].
    link: u32,
}

const _: () = assert!(size_of::<Member>() == 16);

#[derive(Debug)]
struct Shard {
    members: Ring<Member>,
    index: Index,
    live_from: u64,
    marks: Marks,
    /// Members before this are in the image before.
    imaged_to: u64,
}

/// All members of a worker.
#[derive(Debug)]
pub(super) struct Groups {
    shards: Vec<Shard>,
    pool: Pool<Member>,
}

fn key_of(group: &IdHash) -> u64 {
    u128::from_le_bytes(*group) as u64
}

/// Not [`super::row::spread`]: the shard and the key are bytes of the same hash.
#[inline(always)]
fn spread(key: u64) -> u64 {
    let mixed = key.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ mixed >> 32
}

impl Groups {
    pub(super) fn new() -> Groups {
        let shard = |number: usize| Shard {
            members: Ring::default(),
            index: Index::new(number as u8),
            live_from: 0,
            marks: Marks::default(),
            imaged_to: 0,
        };
        Groups { shards: (0..VNODES).map(shard).collect(), pool: Pool::default() }
    }

    /// Asks for the memory that adding to a group will touch.
    #[inline]
    pub(super) fn prefetch(&self, group: &IdHash) {
        let shard = &self.shards[hash::vnode(group)];
        shard.index.prefetch(spread(key_of(group)));
        shard.members.prefetch_tail();
    }

    /// Adds a row to a group. `false`: the shard is full, and nothing was added.
    #[must_use]
    pub(super) fn add(&mut self, group: &IdHash, row: RowRef) -> bool {
        let Groups { shards, pool } = self;
        shards[hash::vnode(group)].add(key_of(group), row, pool)
    }

    /// The rows of a group, youngest first.
    pub(super) fn rows(&self, group: &IdHash) -> impl Iterator<Item = RowRef> {
        let shard = &self.shards[hash::vnode(group)];
        let live = |number: &u64| *number >= shard.live_from;
        let first = shard.youngest(key_of(group)).filter(live);
        let numbers = std::iter::successors(first, move |&number| {
            let back = u64::from(shard.members.get(number).link & LINK_MASK);
            (back != 0).then(|| number.saturating_sub(back)).filter(live)
        });
        numbers.map(|number| shard.members.get(number).row)
    }

    /// Whether some shard is at seven eighths of what it can number.
    pub(super) fn is_nearly_full(&self) -> bool {
        (0..self.shards.len()).any(|shard| self.members(shard) >= MEMBERS_MAX - MEMBERS_MAX / 8)
    }

    /// How many members a shard remembers.
    pub(super) fn members(&self, shard: usize) -> u64 {
        self.shards[shard].members.tail() - self.shards[shard].live_from
    }

    /// Ends a slice of log time.
    pub(super) fn close_slice(&mut self, latest: LogTime) {
        for shard in &mut self.shards {
            shard.marks.close(latest, shard.members.tail());
        }
    }

    /// Forgets the slices whose time has come.
    pub(super) fn forget(&mut self, lateness: &Lateness, frontier: LogTime) {
        for shard in &mut self.shards {
            if let Some(end) = shard.marks.forget(lateness, frontier) {
                shard.live_from = end;
            }
        }
    }

    /// Takes at most about `budget` forgotten members of a shard out; returns how many.
    pub(super) fn sweep(&mut self, shard: usize, budget: u64) -> u64 {
        self.shards[shard].sweep(budget, &mut self.pool)
    }

    /// All memory of the groups, in use or not.
    pub(super) fn bytes(&self) -> usize {
        let shard = |s: &Shard| s.members.bytes() + s.index.bytes() + s.marks.bytes();
        self.pool.bytes()
            + self.shards.capacity() * size_of::<Shard>()
            + self.shards.iter().map(shard).sum::<usize>()
    }
}

impl Shard {
    /// Adds a row to the group of a key. `false`: the shard is full.
    #[inline]
    fn add(&mut self, key: u64, row: RowRef, pool: &mut Pool<Member>) -> bool {
        if self.members.tail() - self.live_from >= MEMBERS_MAX {
            return false;
        }
        if self.index.is_full(self.members.tail() - self.members.head()) {
            self.fit(pool);
        }
        let number = self.members.tail();
        let link = match self.youngest(key) {
            Some(before) => {
                self.members.get_mut(before).link |= SUPERSEDED;
                self.index.renumber(spread(key), before, number);
                (number - before) as u32 & LINK_MASK
            }
            None => {
                self.index.insert(spread(key), number);
                0
            }
        };
        self.members.push(Member { key, row, link }, pool);
        true
    }

    /// The youngest member of a group, forgotten or not.
    fn youngest(&self, key: u64) -> Option<u64> {
        self.index.find(spread(key), self.members.head(), |n| self.members.get(n).key == key)
    }

    #[cold]
    fn fit(&mut self, pool: &mut Pool<Member>) {
        self.members.drop_before(self.live_from, pool);
        let youngest = |(_, m): &(u64, &Member)| m.link & SUPERSEDED == 0;
        let entries = || self.members.iter_from(self.live_from).filter(youngest);
        let groups = entries().count();
        // The index must also be able to number every member, even if all are of one group.
        self.index.rebuild(
            groups + 1,
            self.members.tail() - self.live_from,
            entries().map(|(number, m)| (spread(m.key), number)),
        );
    }

    fn sweep(&mut self, budget: u64, pool: &mut Pool<Member>) -> u64 {
        let from = self.members.head();
        let until = self.live_from.min(from.saturating_add(budget));
        let mut at = from;
        while at < until {
            let end = until.min(at + SWEEP_BLOCK);
            for number in at..end {
                self.index.prefetch(spread(self.members.get(number).key));
            }
            for number in at..end {
                let member = *self.members.get(number);
                if member.link & SUPERSEDED == 0 {
                    self.index.remove(spread(member.key), number);
                }
            }
            at = end;
        }
        self.members.drop_before(until, pool);
        if until > from && until == self.live_from && self.index.is_sparse() {
            self.fit(pool);
        }
        until - from
    }
}
