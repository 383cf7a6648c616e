//! How much of the log an epoch takes. Of a log of our own that is what came since the last one:
//! who sends is told to wait before it is much. Others ask nobody before they append to a topic,
//! and may have done so for days before the first start. An epoch is worked on as a whole, and once
//! its row is durable every start works on it again; so one that is too large for the memory would
//! end every start from then on.
//!
//! So where more than twice [`EpochSettings::epoch_bytes_max`](super::EpochSettings) wait in such a
//! log, an epoch takes that much, as far as sizes are known, and the next one follows when the
//! workers have room for it. (Who keeps up closes an epoch before twice as much is there, and is
//! not cut.) Each partition gives the same share of what it holds, so that none runs ahead of the
//! others' times. Where it is cut, a partition is complete to the log time of its last frame that
//! was taken, and one that has nothing more is no further than those. What nothing is known of is
//! taken in small parts, and reading the last frame of such a part tells what the next one may be.

use crate::remap::{self, Cursor};
use std::sync::Arc;
use trueup_operators::{
    log::{End, Log, LogError, Topic},
    remap::{RemapRow, Upto, Writer},
    time::LogTime,
};

/// Offsets that are taken of a partition while nothing of its topic was seen: messages may have
/// megabytes.
const OFFSETS_UNSEEN: u64 = 64;

/// Offsets without a message that a cut may come behind; a transaction leaves one.
const GAP_OFFSETS: u64 = 8;

/// The ends of events, verdicts and metadata.
pub(super) type Ends = [Vec<End>; 3];

const TOPICS: [Topic; 3] = [Topic::Events, Topic::Verdicts, Topic::Metadata];
/// Of which all is read that an epoch holds.
pub(super) const READ: [Topic; 2] = [Topic::Events, Topic::Verdicts];

pub(super) fn all_ends(log: &dyn Log) -> Ends {
    TOPICS.map(|topic| log.ends(topic))
}

pub(super) fn covers(row: &RemapRow, ends: &Ends) -> bool {
    let covered = |topic, (partition, end): (usize, &End)| {
        row.upto(topic, partition as u16).offset >= end.offset
    };
    TOPICS.iter().zip(ends).all(|(&t, ends)| ends.iter().enumerate().all(|end| covered(t, end)))
}

/// The row after `last`, up to `ends`; `None` if nothing is new and only news were asked for. No
/// partition gets lost that a row has had: who says what there is may not have heard of it yet.
pub(super) fn next_row(
    last: &RemapRow,
    writer: Writer,
    ends: &Ends,
    only_if_new: bool,
) -> Option<RemapRow> {
    if only_if_new && covers(last, ends) {
        return None;
    }
    let upto = |topic, ends: &[End], before: &[Upto]| -> Vec<Upto> {
        let known = ends.iter().enumerate().map(|(partition, end)| {
            let last = last.upto(topic, partition as u16);
            Upto {
                offset: end.offset.max(last.offset),
                log_time: end.complete_to.max(last.log_time),
            }
        });
        known.chain(before.iter().skip(ends.len()).copied()).collect()
    };
    Some(RemapRow {
        epoch: last.epoch + 1,
        writer,
        begins: false,
        events: upto(Topic::Events, &ends[0], &last.events),
        verdicts: upto(Topic::Verdicts, &ends[1], &last.verdicts),
        metadata: upto(Topic::Metadata, &ends[2], &last.metadata),
    })
}

/// The first row of a log whose beginning was deleted before anybody read it; `None` if it has its
/// beginning.
pub(super) fn beginning(log: &dyn Log, last: &RemapRow, writer: Writer) -> Option<RemapRow> {
    if last.epoch > 0 || !log.is_shared() {
        return None;
    }
    let first = |topic| -> Vec<Upto> {
        let partitions = 0..log.partitions(topic);
        let first = partitions.map(|p| Upto { offset: log.first(topic, p), ..Upto::default() });
        first.collect()
    };
    let (events, verdicts) = (first(Topic::Events), first(Topic::Verdicts));
    let is_cut = events.iter().chain(&verdicts).any(|upto| upto.offset > 0);
    is_cut.then(|| RemapRow {
        epoch: 1,
        writer,
        begins: true,
        events,
        verdicts,
        metadata: last.metadata.clone(),
    })
}

/// What is missing of a shared log from where its first epoch begins; also that nobody can say.
/// What was deleted before that was never seen.
pub(crate) fn missing(log: &dyn Log) -> Option<String> {
    let row = match first_row(log) {
        Ok(row) => row?,
        Err(error) => return Some(error.to_string()),
    };
    let missing = |(topic, partition): (Topic, u16)| {
        let from = if row.begins { row.upto(topic, partition).offset } else { 0 };
        let first = log.first(topic, partition);
        let text = || {
            let topic = topic.name();
            format!("partition {partition} of {topic} begins at offset {first}, epochs at {from}")
        };
        (first > from).then(text)
    };
    let of = |topic: Topic| (0..log.partitions(topic)).map(move |partition| (topic, partition));
    READ.into_iter().flat_map(of).find_map(missing)
}

fn first_row(log: &dyn Log) -> Result<Option<Arc<RemapRow>>, LogError> {
    let (mut read, end) = (Cursor::origin(log), remap::end(log));
    while read.next < end {
        if let Some(first) = read.advance(log, end)?.into_iter().next() {
            return Ok(Some(first.row));
        }
    }
    Ok(None)
}

/// About how many bytes a shared log holds between a row and these ends.
pub(super) fn bytes_behind(log: &dyn Log, row: &RemapRow, ends: &Ends) -> u64 {
    u64::try_from(bytes_between(log, row, ends, 0)).unwrap_or(u64::MAX)
}

/// The same, where an offset takes `unseen_bytes` while nothing of its topic was seen.
fn bytes_between(log: &dyn Log, row: &RemapRow, ends: &Ends, unseen_bytes: u64) -> u128 {
    let mut bytes = 0_u128;
    for (topic, ends) in READ.into_iter().zip(ends) {
        for (partition, end) in (0..).zip(ends) {
            let offsets = end.offset.saturating_sub(row.upto(topic, partition).offset);
            let each = log.offset_bytes(topic, partition).unwrap_or(unseen_bytes);
            bytes += u128::from(offsets) * u128::from(each);
        }
    }
    bytes
}

/// Of these ends what one epoch takes, `bytes_max`, if there is more than twice as much.
///
/// # Errors
/// When a frame at which it is cut cannot be read.
pub(super) fn part(
    log: &dyn Log,
    last: &RemapRow,
    ends: &Ends,
    bytes_max: u64,
) -> Result<Option<Ends>, LogError> {
    let total = bytes_between(log, last, ends, bytes_max / OFFSETS_UNSEEN);
    if total <= 2 * u128::from(bytes_max) {
        return Ok(None);
    }
    let (mut part, mut least) = (ends.clone(), LogTime(i64::MAX));
    for (topic, ends) in READ.into_iter().zip(&mut part) {
        for (partition, end) in (0..).zip(ends) {
            let from = last.upto(topic, partition);
            let offsets = end.offset.saturating_sub(from.offset);
            let share = u128::from(offsets) * u128::from(bytes_max) / total;
            // At most `offsets`, because the total is more than there may be.
            let taken = (share as u64).max(1).min(offsets);
            end.offset = from.offset.max(end.offset) - (offsets - taken);
            let time = match taken {
                0 => None,
                _ => log_time_before(log, topic, partition, end.offset)?,
            };
            end.complete_to = time.unwrap_or(from.log_time).min(end.complete_to);
            if taken < offsets {
                least = least.min(end.complete_to);
            }
        }
    }
    if least.0 == i64::MAX {
        // One message of each is more than there may be.
        return Ok(None);
    }
    // What has nothing more is no further than what has: or it would look as if the epoch reached
    // to the time of closing, and all that came until then would be remembered.
    for end in part[..READ.len()].iter_mut().flatten() {
        end.complete_to = end.complete_to.max(least);
    }
    Ok(Some(part))
}

/// The log time of the last frame before an offset. None if there is a long gap.
fn log_time_before(
    log: &dyn Log,
    topic: Topic,
    partition: u16,
    offset: u64,
) -> Result<Option<LogTime>, LogError> {
    let first = log.first(topic, partition).max(offset.saturating_sub(GAP_OFFSETS));
    for before in (first..offset).rev() {
        let frames = log.read(topic, partition, before, before + 1, 1)?;
        if let Some(frame) = frames.last() {
            return Ok(Some(frame.log_time));
        }
    }
    Ok(None)
}
