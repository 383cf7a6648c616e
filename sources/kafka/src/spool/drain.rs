//! Out of the journal into Kafka, in order, part by part. What is in Kafka, or kept beside the
//! journal because Kafka refuses it, is noted before the next part is sent, and forgotten by the
//! journal.

use super::{DRAIN_BYTES, REST_MS, Shared, TURN_MS, bytes_on_disk, route::Way, unwrap_frame};
use crate::settings::{ms, unavailable};
use std::{
    collections::VecDeque,
    sync::{
        atomic::Ordering::SeqCst,
        mpsc::{RecvTimeoutError, sync_channel},
    },
};
use trueup_log::Retention;
use trueup_operators::log::{Append, Frame, Log, LogError, Topic};

impl Shared {
    /// Sends one part of the journal to Kafka, and notes that it is there.
    pub(super) fn drain(&self, end: u64) -> Result<(), LogError> {
        let from = self.drained.offset();
        // Each small frame takes more room in Kafka's queue than in the journal.
        let bytes_max = match self.stands_at.load(SeqCst) == from {
            // One that Kafka refuses and that cannot be kept: what is behind it is not sent again
            // with it at each try.
            true => 0,
            false => DRAIN_BYTES.min((self.kafka.settings().queue_bytes_max / 8) as usize),
        };
        let frames = self.journal.read(Topic::Events, 0, from, end, bytes_max)?;
        self.deliver(&frames)?;
        *self.trouble.lock() = None;
        Ok(())
    }

    /// Sends frames together. If Kafka refuses one of them for what it is, each half by itself, so
    /// that in the end only the one at fault is left; none of the others waits for it.
    fn deliver(&self, frames: &[Frame]) -> Result<(), LogError> {
        let appends = frames.iter().map(unwrap_frame).collect::<Result<Vec<_>, _>>()?;
        match (self.send(appends), frames) {
            (Ok(()), _) => self.gone(frames),
            (Err(error @ LogError::Invalid { .. }), [frame]) => {
                let kept = self.keep_aside(frame, &error);
                kept.inspect_err(|_| self.stands_at.store(frame.offset, SeqCst))?;
                self.gone(frames)
            }
            (Err(LogError::Invalid { .. }), _) => {
                let (first, second) = frames.split_at(frames.len() / 2);
                self.deliver(first)?;
                self.deliver(second)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Notes that frames need not be sent any more, and lets the journal forget them.
    fn gone(&self, frames: &[Frame]) -> Result<(), LogError> {
        let Some(to) = frames.last().map(|frame| frame.next) else { return Ok(()) };
        self.drained.advance(to)?;
        let all = Retention { age_us_max: None, bytes_max: Some(0) };
        let retained = self.journal.retain(all, |_, _| to);
        let first = self.journal.first(Topic::Events, 0);
        self.with(|route| {
            route.went(frames.iter().map(|frame| (frame.next, bytes_on_disk(frame))));
            route.deleted_below(first);
        });
        retained.map(drop)
    }

    /// Keeps a frame that Kafka refuses where it holds up none.
    fn keep_aside(&self, frame: &Frame, error: &LogError) -> Result<(), LogError> {
        let path = self.undeliverable.keep(frame)?;
        let Append { topic, partition, payload, .. } = unwrap_frame(frame)?;
        tracing::error!(
            %error,
            topic = self.kafka.settings().topic(topic),
            partition,
            bytes = payload.len(),
            limit_bytes_when_opened = self.kafka.message_bytes_max(topic),
            path = %path.display(),
            "Kafka refuses a frame that was acknowledged; it is kept, and sent again at the next \
             start"
        );
        Ok(())
    }

    /// Once the spool is direct: sends the next frame that an earlier run could not deliver. How
    /// long to rest.
    pub(super) fn send_again(&self, names: &mut VecDeque<String>) -> u64 {
        if self.route.lock().way() != Way::Direct {
            return TURN_MS;
        }
        let Some(name) = names.pop_front() else { return TURN_MS };
        let path = self.undeliverable.path(&name);
        if self.undeliverable.is_gone(&name) {
            tracing::warn!(path = %path.display(), "a frame that Kafka refused was moved away");
            return 0;
        }
        let frame = self.undeliverable.read(&name);
        let sent = frame.and_then(|frame| self.send(vec![unwrap_frame(&frame)?]));
        match sent {
            Ok(()) => {
                tracing::info!(path = %path.display(), "Kafka has taken a frame that it refused");
                // Not again in this run: it would be sent without end.
                if let Err(error) = self.undeliverable.forget(&name) {
                    tracing::error!(%error, "the next start sends it once more");
                }
                0
            }
            Err(error @ (LogError::Invalid { .. } | LogError::Corrupt { .. })) => {
                tracing::error!(%error, path = %path.display(), "a frame is still not in Kafka");
                0
            }
            Err(error) => {
                tracing::debug!(%error, path = %path.display(), "a frame is sent again later");
                names.push_front(name);
                REST_MS
            }
        }
    }

    /// Sends frames and waits, but not beyond the end of the spool.
    fn send(&self, frames: Vec<Append>) -> Result<(), LogError> {
        let (send, receive) = sync_channel(1);
        let done = Box::new(move |result| {
            // The drain may have stopped waiting.
            drop(send.send(result));
        });
        self.kafka.append(frames, done)?;
        loop {
            match receive.recv_timeout(ms(TURN_MS)) {
                Ok(result) => return result.map(drop),
                Err(RecvTimeoutError::Timeout) if self.stopped.load(SeqCst) => {
                    return Err(unavailable("the spool ends".into()));
                }
                Err(RecvTimeoutError::Timeout) => self.notice_silence(),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(unavailable("Kafka's client ended".into()));
                }
            }
        }
    }
}
