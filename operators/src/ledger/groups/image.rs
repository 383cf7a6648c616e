//! Members of groups, on their way into an image and back.
//!
//! A checkpoint is written vnode by vnode, and members lie by their group. So a member goes into
//! the section of its row's vnode as nothing but its group's key, at its row's place; for that all
//! members are gone through once for each [`VNODES_AT_ONCE`] vnodes, which bounds the memory that
//! it takes.
//!
//! # Back
//!
//! Members of a shard come back from many vnodes. Their order of arrival is not known any more
//! within a slice of log time, and need not be: a walk through a group visits all its members, and
//! what it finds is sorted by place in the log before anything is made of it. What must be in order
//! are slices, because a shard forgets slices from its head. So members wait until all vnodes are
//! there, and then each shard is filled slice by slice.

use super::{Groups, MEMBERS_MAX, Member, RowRef, Shard, spread};
use crate::{
    feed::ImageKind,
    hash::VNODES,
    ledger::ring::{Part, Pool},
    time::LogTime,
};
use std::ops::Range;

/// Vnodes whose keys are collected at once: an eighth of a worker's, 16 bytes a row.
pub(in crate::ledger) const VNODES_AT_ONCE: usize = 32;

/// How many members ahead memory is asked for.
const AHEAD: usize = 16;

/// What is known of a row's group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::ledger) struct GroupKey {
    pub(in crate::ledger) key: u64,
    pub(in crate::ledger) shard: u8,
}

/// The members as they were, by shard.
#[derive(Debug)]
pub(in crate::ledger) struct GroupsImage(Vec<Part<Member>>);

impl GroupsImage {
    /// For each of some vnodes, the keys of its rows, by the row's place behind the vnode's first:
    /// `rows` says which number that has and how many rows there are. Rows without a group have a
    /// key that means nothing.
    pub(in crate::ledger) fn keys(
        &self,
        vnodes: Range<usize>,
        rows: impl Fn(usize) -> (u64, usize),
    ) -> Vec<Vec<GroupKey>> {
        let firsts: Vec<u64> = vnodes.clone().map(|v| rows(v).0).collect();
        let mut keys: Vec<_> =
            vnodes.clone().map(|v| vec![GroupKey::default(); rows(v).1]).collect();
        for (shard, members) in self.0.iter().enumerate() {
            members.iter().for_each(|(_, member)| {
                let vnode = member.row.vnode();
                if vnodes.contains(&vnode) {
                    let first = firsts[vnode - vnodes.start];
                    let at = (member.row.number(first) - first) as usize;
                    if let Some(key) = keys[vnode - vnodes.start].get_mut(at) {
                        *key = GroupKey { key: member.key, shard: shard as u8 };
                    }
                }
            });
        }
        keys
    }

    /// Memory that the image alone holds.
    pub(in crate::ledger) fn bytes(&self) -> usize {
        self.0.iter().map(Part::bytes).sum()
    }
}

impl Groups {
    /// The members as they are now. The next increment begins here.
    pub(in crate::ledger) fn image(&mut self, kind: ImageKind) -> GroupsImage {
        let image = |shard: &mut Shard| {
            let from = match kind {
                ImageKind::Whole => shard.live_from,
                ImageKind::Increment => shard.imaged_to.max(shard.live_from),
            };
            shard.imaged_to = shard.members.tail();
            shard.members.share(from)
        };
        GroupsImage(self.shards.iter_mut().map(image).collect())
    }
}

/// A member that waits for the others of its shard.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    key: u64,
    row: RowRef,
    /// By position in `latest`; beyond it, of the open slice.
    slice: u32,
}

/// Members on their way back: 16 bytes each.
#[derive(Debug)]
pub(in crate::ledger) struct Restored {
    /// The slices that any member is of, in no order.
    latest: Vec<LogTime>,
    shards: Vec<Vec<Waiting>>,
}

/// The slice that is not closed yet.
const OPEN: u32 = u32::MAX;

impl Default for Restored {
    fn default() -> Self {
        Restored { latest: Vec::new(), shards: vec![Vec::new(); VNODES] }
    }
}

impl Restored {
    /// The number of a slice for [`Restored::add`]; `None` is the open one.
    pub(in crate::ledger) fn slice(&mut self, latest: Option<LogTime>) -> u32 {
        let Some(latest) = latest else { return OPEN };
        let at = self.latest.iter().position(|l| *l == latest);
        at.unwrap_or_else(|| {
            self.latest.push(latest);
            self.latest.len() - 1
        }) as u32
    }

    /// Adds a member. `false`: the shard is full.
    #[must_use]
    pub(in crate::ledger) fn add(&mut self, of: GroupKey, row: RowRef, slice: u32) -> bool {
        let shard = &mut self.shards[usize::from(of.shard)];
        if shard.len() as u64 >= MEMBERS_MAX {
            return false;
        }
        shard.push(Waiting { key: of.key, row, slice });
        true
    }

    /// Makes groups of all members, which take the place of those that were there: none.
    pub(in crate::ledger) fn into_groups(self) -> Groups {
        let mut groups = Groups::new();
        let mut latest: Vec<(LogTime, usize)> = self.latest.iter().copied().zip(0..).collect();
        latest.sort_unstable();
        let mut ranks = vec![0; latest.len()];
        for (rank, (_, slice)) in latest.iter().enumerate() {
            ranks[*slice] = rank;
        }
        for (shard, waiting) in groups.shards.iter_mut().zip(self.shards) {
            let rank = |w: &Waiting| ranks.get(w.slice as usize).copied().unwrap_or(latest.len());
            let by_slice = by_rank(&waiting, latest.len() + 1, rank);
            drop(waiting);
            for (rank, members) in by_slice.iter().enumerate() {
                shard.restore(members, &mut groups.pool);
                if let Some((latest, _)) = latest.get(rank) {
                    shard.marks.close(*latest, shard.members.tail());
                }
            }
            shard.imaged_to = shard.members.tail();
        }
        groups
    }
}

/// Members of one shard by the rank of their slice, otherwise in their order.
fn by_rank(
    waiting: &[Waiting],
    ranks: usize,
    rank: impl Fn(&Waiting) -> usize,
) -> Vec<Vec<Waiting>> {
    let mut by_rank = vec![Vec::new(); ranks];
    waiting.iter().for_each(|member| by_rank[rank(member)].push(*member));
    by_rank
}

impl Shard {
    fn restore(&mut self, members: &[Waiting], pool: &mut Pool<Member>) {
        for (i, member) in members.iter().enumerate() {
            if let Some(ahead) = members.get(i + AHEAD) {
                self.index.prefetch(spread(ahead.key));
            }
            let added = self.add(member.key, member.row, pool);
            debug_assert!(added, "a shard has at most {MEMBERS_MAX} members waiting");
        }
    }
}
