//! The thread that writes checkpoints, one after another: it takes the parts of an epoch as they
//! come, makes the pack durable, and then does what its process's [`Role`] is.
//!
//! What is hard is that it may be told to stop at any moment, with parts missing that never come
//! and with messages from other processes that never come. So every wait of it ends when the
//! generation does, and what it has written by then is a pack without a name, which is garbage.
//!
//! # Promises
//!
//! * A pack is sealed when all parts of its epoch were written, and holds no part of another.
//! * For every epoch that was marked, as long as the generation lasts: a member tells the leader
//!   once of its part, and the leader tells the members once how it ended. Before that it has
//!   deleted what is garbage then, and after it the next epoch may be marked.
//! * Whatever fails, the next checkpoint is whole.

use super::{Checkpoints, Message, Role};
use crate::checkpoint::{
    keeper::{CheckpointError, Keeper, Packed, Published},
    manifest::{At, Taken},
    parts::{self, Ended, Gathered, SealedPack, SealedPart},
    pieces::Live,
};
use std::{
    sync::{atomic::Ordering, mpsc::Receiver},
    time::{Instant, UNIX_EPOCH},
};
use trueup_operators::{feed::ImageKind, time::Epoch};

/// The thread's own.
pub(super) struct Writer {
    keeper: Keeper,
    pieces: usize,
    received: Receiver<Message>,
}

/// The run stops in the middle of a checkpoint.
struct Stopped;

/// A pack that is durable, or why there is none.
type Attempt = Result<Packed, CheckpointError>;

impl Writer {
    pub(super) fn new(keeper: Keeper, pieces: usize, received: Receiver<Message>) -> Writer {
        Writer { keeper, pieces, received }
    }

    /// Takes the next checkpoint. `false`: it is time to stop.
    pub(super) fn next(&mut self, told: &Checkpoints) -> bool {
        let (kind, at, began) = match self.received.recv() {
            Ok(Message::Begin { kind, at, began }) => (kind, at, began),
            // Parts come between a begin and the end that it leads to.
            Ok(Message::Piece(_)) => return true,
            Ok(Message::Stop) | Err(_) => return false,
        };
        let Ok(packed) = self.pack(told, kind, at.row.epoch) else { return false };
        let taken = match &told.role {
            Role::Alone => {
                let result = self.publish(told, packed, Vec::new(), &at, began);
                self.conclude(told, result);
                Ok(())
            }
            Role::Leader { members, say } => {
                self.lead(told, packed, (&at, began), *members, &**say)
            }
            Role::Member { say } => self.follow(told, packed, at.row.epoch, &**say),
            Role::Offer { .. } => self.offer(told, packed, &at, began),
        };
        taken.is_ok()
    }

    /// Writes the parts of an epoch as they come, and makes the pack durable.
    fn pack(&self, told: &Checkpoints, kind: ImageKind, epoch: Epoch) -> Result<Attempt, Stopped> {
        let mut live = Live::default();
        let mut taking = self.keeper.begin(epoch, kind == ImageKind::Whole);
        for _ in 0..self.pieces {
            let Ok(Message::Piece(piece)) = self.received.recv() else { return Err(Stopped) };
            if told.lets_go() {
                return Err(Stopped);
            }
            taking = taking.and_then(|mut taking| {
                piece.live(&mut live);
                piece.write(&mut |key, section| taking.pack.section(key, section))?;
                Ok(taking)
            });
        }
        Ok(taking.and_then(|taking| self.keeper.seal(taking, |key| live.has(key))))
    }

    /// Publishes it when all members have sealed their parts, and tells them.
    fn lead(
        &mut self,
        told: &Checkpoints,
        packed: Attempt,
        (at, began): (&At, Instant),
        members: u32,
        say: &dyn Fn(Ended),
    ) -> Result<(), Stopped> {
        let sealed = told.all_sealed(members).ok_or(Stopped)?;
        let result = self.publish(told, packed, sealed, at, began);
        let published = result.as_ref().map(|published| Box::new(published.manifest.clone()));
        say(Ended {
            generation: told.generation,
            epoch: at.row.epoch,
            result: published.map_err(parts::reason),
            fenced: matches!(result, Err(CheckpointError::Fenced { .. })),
        });
        self.conclude(told, result);
        Ok(())
    }

    /// Offers what a replay has found, if it is told to.
    fn offer(
        &self,
        told: &Checkpoints,
        packed: Attempt,
        at: &At,
        began: Instant,
    ) -> Result<(), Stopped> {
        if !told.is_to_offer() {
            if let Ok(packed) = packed
                && let Err(error) = self.keeper.withdraw(&packed)
            {
                tracing::warn!(%error, "what is not offered is left for the next start to delete");
            }
            return Err(Stopped);
        }
        let offered = packed.and_then(|packed| {
            let pause_us = told.pause_us.load(Ordering::Relaxed);
            let taken = Taken { bytes_written: packed.bytes_written(), ..taken(began, pause_us) };
            self.keeper.offer(&packed, at, taken)
        });
        let mut state = told.state.lock();
        let result = offered.map(|(manifest, name)| {
            state.offered = Some(name.id());
            manifest
        });
        state.end(result.map_err(|error| error.to_string()));
        drop(state);
        told.news.notify_all();
        Ok(())
    }

    /// Publishes what was sealed here and by all members.
    fn publish(
        &mut self,
        told: &Checkpoints,
        packed: Attempt,
        members: Vec<SealedPart>,
        at: &At,
        began: Instant,
    ) -> Result<Published, CheckpointError> {
        let result = packed.and_then(|packed| {
            let Gathered { parts, bytes_written, pause_us } = parts::gather(members)?;
            let pause_us = pause_us.max(told.pause_us.load(Ordering::Relaxed));
            let taken = Taken { bytes_written, ..taken(began, pause_us) };
            self.keeper.publish_all(packed, &parts, at, taken)
        });
        if result.is_err() {
            self.keeper.missed();
        }
        result
    }

    /// A checkpoint that this process leads, or takes alone, has come to its end.
    fn conclude(&self, told: &Checkpoints, result: Result<Published, CheckpointError>) {
        say(&result);
        let kept = result.is_ok().then(|| self.kept()).flatten();
        let mut state = told.state.lock();
        state.whole = self.keeper.wants_whole();
        state.fenced |= matches!(result, Err(CheckpointError::Fenced { .. }));
        state.kept = kept.or(state.kept.take());
        let result = result.map(|published| published.manifest);
        state.end(result.map_err(|error| error.to_string()));
        drop(state);
        told.news.notify_all();
    }

    /// Tells the leader of this process's part, and waits for how the checkpoint ends.
    fn follow(
        &mut self,
        told: &Checkpoints,
        packed: Attempt,
        epoch: Epoch,
        say: &dyn Fn(SealedPart),
    ) -> Result<(), Stopped> {
        // What follows a contradiction may have brought parts of another epoch.
        let packed = match told.refuses() {
            None => packed.map_err(|error| error.to_string()),
            Some(reason) => Err(reason),
        };
        let part = match &packed {
            Ok(packed) => {
                let pause_us = told.pause_us.load(Ordering::Relaxed);
                let (generation, writer) = (told.generation, told.writer);
                let sealed = Ok(SealedPack::new(packed, writer, pause_us));
                SealedPart { generation, epoch, writer, sealed }
            }
            Err(reason) => {
                tracing::error!(epoch, reason, "this process has no part of the checkpoint");
                told.failed_part(epoch, reason)
            }
        };
        if !told.says() {
            return Err(Stopped);
        }
        say(part);
        let ended = told.answer().ok_or(Stopped)?;
        if let Err(reason) = self.heard(packed, &ended) {
            tracing::warn!(epoch, reason, "the next part of a checkpoint is whole");
        }
        Ok(())
    }

    /// What the next increment of a member lies on: its pack, if that was published.
    fn heard(&mut self, packed: Result<Packed, String>, ended: &Ended) -> Result<(), String> {
        self.keeper.missed();
        let manifest = ended.checked()?;
        self.keeper.published(packed?, manifest)
    }

    /// The oldest checkpoint that is left.
    fn kept(&self) -> Option<At> {
        match self.keeper.oldest() {
            Ok(oldest) => oldest,
            Err(reason) => {
                tracing::warn!(reason, "what checkpoints are kept cannot be read; the log stays");
                None
            }
        }
    }
}

/// How taking one went that began then.
fn taken(began: Instant, pause_us: u64) -> Taken {
    Taken {
        at_us: UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros() as i64),
        took_ms: began.elapsed().as_millis() as u64,
        pause_us,
        bytes_written: 0,
    }
}

fn say(result: &Result<Published, CheckpointError>) {
    match result {
        Ok(Published { manifest, garbage }) => {
            metrics::counter!("trueup_checkpoints_total").increment(1);
            tracing::info!(
                epoch = manifest.epoch,
                bytes = manifest.bytes_written,
                sections = manifest.sections,
                chain = manifest.chain,
                took_ms = manifest.took_ms,
                pause_us = manifest.pause_us,
                "checkpoint"
            );
            if let Some(reason) = &garbage.failed {
                tracing::warn!(reason, "old checkpoints could not be deleted; tried again later");
            }
        }
        Err(error) => {
            metrics::counter!("trueup_checkpoints_failed_total").increment(1);
            tracing::error!(%error, "a checkpoint failed; the next one is whole");
        }
    }
}
