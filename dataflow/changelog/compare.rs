//! What a topic holds, compared with what the views hold: the way to go on when the views do not
//! reach back to where the topic is, or never had its history, or have other tables than it. A
//! first start is the same with an empty topic.
//!
//! The topic is read once into a hash of each row's figures; then every view is read at one epoch,
//! and what the topic lacks is written as it is found. For what it has otherwise, and what it has
//! and the views have not, the old figures are needed: the topic is read a second time for these
//! alone. So the memory is 48 bytes a row of the views, and the texts of the rows that differ.
//!
//! A row that the views lack because its bucket has left them is not retracted. Whether the topic
//! has the last of it is not known if it could still change when the topic stood still; then that
//! is said (`missed`).

use super::{
    ChangeTopic,
    pairs::Pair,
    run::{BLOCK_ROWS, Fault, Run, Transaction},
    shape::{Shape, Texts},
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use trueup_operators::{
    feed::EpochTimes,
    log::LogError,
    time::{Epoch, Granularity, format_rfc3339, parse_rfc3339},
};
use trueup_sinks::{Filter, ReadError, RowBlock, Start, Step};

/// 128 bits of a text's hash. Two of 2⁴⁰ rows meet with probability 2⁻⁴⁹.
type Hash = [u8; 16];

fn hash(text: &[u8]) -> Hash {
    let mut hash = Hash::default();
    hash.copy_from_slice(&Sha256::digest(text)[..16]);
    hash
}

/// A row of the topic that the views may have.
struct Known {
    figures: Hash,
    /// Whether the views have it, with these figures or others.
    seen: bool,
}

/// What the topic has, by the hash of the key.
type Held = HashMap<Hash, Known>;

/// By key: what the row shall be, and what it was once that is found.
type Differing = HashMap<String, (Option<String>, Option<String>)>;

/// A message of a row.
struct Message<'s> {
    shape: &'s Shape,
    start_us: i64,
    row: String,
    new: Option<String>,
}

impl Run {
    /// Makes the topic show the views at an epoch, whatever it shows now.
    pub(super) fn compare(
        &mut self,
        topic: &mut dyn ChangeTopic,
        upper: Epoch,
        to: Epoch,
    ) -> Result<EpochTimes, Fault> {
        let began = std::time::Instant::now();
        let last_log_time = topic.upper().and_then(|upper| upper.note).map(|note| note.log_time);
        let held = self.held(topic)?;
        // Reading took its time, and the views move on.
        let to = self.tables.visible().map_or(to, |times| times.epoch.max(to));
        let mut transaction = Transaction::new(topic, to);
        let (at, mut differing, held) = self.write_new(&mut transaction, held)?;
        let is_left = |known: &Known| !known.seen;
        if !differing.is_empty() || held.values().any(is_left) {
            self.find_old(&mut transaction, &held, &mut differing, at)?;
        }
        for (key, (old, new)) in differing {
            let (shape, row) = self.named(&key)?;
            let pair = Pair { row: &row, old: old.as_deref(), new: new.as_deref() };
            if old != new {
                transaction.write(shape, &pair)?;
            }
        }
        let rows = transaction.rows;
        self.commit(transaction, at)?;
        let missed = last_log_time.and_then(|last| self.missed(&last, at));
        if let Some(missed) = &missed {
            tracing::warn!(missed, "rows left the views while no changelog was published");
        }
        let seconds = began.elapsed().as_secs_f64();
        tracing::info!(
            from = upper,
            to,
            rows,
            seconds,
            "the changelog was compared with the views"
        );
        self.set(|status| {
            status.comparisons += 1;
            status.missed = missed.or(status.missed.take());
        });
        Ok(at)
    }

    /// Reads the topic: the rows that the views can still have.
    fn held(&self, topic: &mut dyn ChangeTopic) -> Result<Held, Fault> {
        let Some(now) = self.tables.visible() else { return Err(ReadError::NotReady.into()) };
        let mut held = Held::new();
        topic.read(&mut |key, value| {
            let Some(message) = self.message(key, value)? else { return Ok(()) };
            let is_kept = message.start_us >= self.kept_from_us(message.shape, now);
            match message.new.filter(|_| is_kept) {
                Some(new) => {
                    let known = Known { figures: hash(new.as_bytes()), seen: false };
                    held.insert(hash(key), known);
                }
                None => drop(held.remove(&hash(key))),
            }
            Ok(())
        })?;
        Ok(held)
    }

    /// Reads the views at one epoch; writes what the topic lacks, and gathers what it has
    /// otherwise.
    fn write_new(
        &self,
        transaction: &mut Transaction<'_>,
        mut held: Held,
    ) -> Result<(EpochTimes, Differing, Held), Fault> {
        let mut differing = Differing::new();
        let mut block = RowBlock::default();
        let mut at = None;
        for shape in &self.shapes {
            let start = Start::Snapshot(Some(transaction.epoch()));
            let tables = std::sync::Arc::clone(&self.tables);
            let mut follow = tables.follow(shape.id, Filter::default(), start)?;
            loop {
                let step = follow.step(BLOCK_ROWS, &mut block, &mut Vec::new())?;
                let texts = Texts::of_block(self.tables.symbols(), &block);
                for row in block.rows() {
                    let (name, figures) = (shape.row(&texts, &row), shape.figures(&row));
                    let key = shape.key(&name);
                    match held.get_mut(&hash(key.as_bytes())) {
                        Some(known) => {
                            known.seen = true;
                            if known.figures != hash(figures.as_bytes()) {
                                differing.insert(key, (None, Some(figures)));
                            }
                        }
                        None => {
                            let pair = Pair { row: &name, old: None, new: Some(&figures) };
                            transaction.write(shape, &pair)?;
                        }
                    }
                }
                if let Step::Reached(times) = step {
                    at = Some(times);
                    break;
                }
                if self.is_stopped() {
                    return Err(Fault::Stop);
                }
            }
        }
        let at = at.or(self.tables.visible()).ok_or(ReadError::NotReady)?;
        Ok((at, differing, held))
    }

    /// Reads the topic again for what it has of the rows that differ, and finds those that the
    /// views have not.
    fn find_old(
        &self,
        transaction: &mut Transaction<'_>,
        held: &Held,
        differing: &mut Differing,
        at: EpochTimes,
    ) -> Result<(), Fault> {
        transaction.read(&mut |key, value| {
            let text = String::from_utf8_lossy(key);
            if let Some(sides) = differing.get_mut(&*text) {
                sides.0 = self.message(key, value)?.and_then(|message| message.new);
                return Ok(());
            }
            if held.get(&hash(key)).is_none_or(|known| known.seen) {
                return Ok(());
            }
            let Some(message) = self.message(key, value)? else { return Ok(()) };
            // One whose bucket has left since the first reading stays.
            if message.start_us >= self.kept_from_us(message.shape, at) {
                differing.insert(text.into_owned(), (message.new, None));
            }
            Ok(())
        })?;
        Ok(())
    }

    fn kept_from_us(&self, shape: &Shape, at: EpochTimes) -> i64 {
        self.tables.kept_from_us(shape.granularity, at)
    }

    /// Of which buckets the topic may not have the last: those that could still change when the
    /// topic stood still, and have left the views by now.
    fn missed(&self, last_log_time: &str, now: EpochTimes) -> Option<String> {
        let last_us = parse_rfc3339(last_log_time)?;
        let from_us = last_us.saturating_sub(self.tables.lateness().correction_horizon_us);
        let missed: Vec<String> = Granularity::ALL
            .into_iter()
            .filter_map(|granularity| {
                // The end of the last that left. One that ends after `from_us` was not final.
                let to_us = self.tables.kept_from_us(granularity, now);
                (to_us > from_us).then(|| {
                    let (from, to) = (format_rfc3339(from_us), format_rfc3339(to_us));
                    format!("by {} from {from} to {to}", granularity.name())
                })
            })
            .collect();
        (!missed.is_empty()).then(|| missed.join(", "))
    }

    /// The table and the name of a row, from a key of this program.
    fn named(&self, key: &str) -> Result<(&Shape, String), LogError> {
        let message = self.message(key.as_bytes(), None)?;
        let message =
            message.ok_or_else(|| foreign(key.as_bytes(), "has a view of no name here"))?;
        Ok((message.shape, message.row))
    }

    /// Understands a message; none when it is of a view that is no more.
    fn message(&self, key: &[u8], value: Option<&[u8]>) -> Result<Option<Message<'_>>, LogError> {
        let parsed: Option<Value> = serde_json::from_slice(key).ok();
        let parsed = parsed.as_ref().and_then(|parsed| {
            let start_us = parse_rfc3339(parsed["row"]["bucketStart"].as_str()?)?;
            Some((parsed["view"].as_str()?, start_us))
        });
        let Some((view, start_us)) = parsed else {
            return Err(foreign(key, "is no key of a row"));
        };
        let Some(shape) = self.shapes.iter().find(|shape| shape.name == view) else {
            return Ok(None);
        };
        let new = match value {
            None => None,
            Some(value) => {
                let value: Option<Value> = serde_json::from_slice(value).ok();
                let new = value.as_ref().and_then(|value| value.get("new"));
                let new = new.ok_or_else(|| foreign(key, "has a value that is no difference"))?;
                (!new.is_null()).then(|| new.to_string())
            }
        };
        // The name as it stands there, to the byte.
        let text = std::str::from_utf8(key).ok();
        let row = text.and_then(|text| text.strip_prefix(&shape.key_before_row()));
        let row = row.and_then(|row| row.strip_suffix('}'));
        let row = row.ok_or_else(|| foreign(key, "is not as this program writes it"))?.to_owned();
        Ok(Some(Message { shape, start_us, row, new }))
    }
}

fn foreign(key: &[u8], what: &str) -> LogError {
    let key: String = String::from_utf8_lossy(key).chars().take(200).collect();
    let reason = format!(
        "the changelog's topic has a message that none of ours wrote: {key} {what}; give the \
         changelog a topic of its own"
    );
    LogError::Invalid { reason }
}
