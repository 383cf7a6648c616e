//! Where appends go: to Kafka, to the journal, or nowhere for a moment. Decisions only; what they
//! need of time and of the journal is given.

use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use trueup_operators::{
    log::{Append, Appended, Done, LogError},
    time::LogTime,
};

/// Where the next append goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To Kafka.
    Direct,
    /// To the journal.
    Away,
    /// It waits until the journal is drained.
    Returning,
}

/// Frames, and who is told what becomes of them.
pub(super) type Parcel = (Vec<Append>, Done);

/// A parcel that is on its way to Kafka, for whoever answers it first: Kafka, or the journal.
pub(super) type Cell = Arc<Mutex<Option<Parcel>>>;

/// The state of the spool, behind one lock: so appends and changes of the way are in one order.
pub(super) struct Route {
    way: Way,
    away_since: LogTime,
    returning_since: Option<Instant>,
    /// Whether anything was drained since it was last away.
    drains: bool,
    next_ticket: u64,
    under_way: BTreeMap<u64, (Instant, Cell)>,
    waiting: Vec<Parcel>,
    waiting_bytes: u64,
    ordered: Arc<Ordered>,
    /// Frames in the journal that are in Kafka as well: the offset after each, and its bytes.
    gone: VecDeque<(u64, u64)>,
    gone_bytes: u64,
    /// Who is to be told something, once the lock is given back.
    pub(super) tell: Vec<(Done, Result<Vec<Appended>, LogError>)>,
}

/// What direct appends must stay behind.
#[derive(Debug, Default)]
struct Ordered {
    /// Given to the journal and not yet answered.
    pending: AtomicU64,
    /// The offset after the last in the journal.
    mark: AtomicU64,
}

/// A parcel that was given to the journal.
pub(super) struct Kept(Option<Arc<Ordered>>);

impl Kept {
    /// It is durable, and ends there.
    pub(super) fn durable(&self, end: u64) {
        if let Some(ordered) = &self.0 {
            ordered.mark.fetch_max(end, SeqCst);
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(ordered) = &self.0 {
            ordered.pending.fetch_sub(1, SeqCst);
        }
    }
}

impl Route {
    /// With a journal whose frames up to `end` must be in Kafka before direct ones, if any is not.
    pub(super) fn new(drained: u64, end: u64, now: LogTime) -> Route {
        let ordered = Ordered { pending: AtomicU64::new(0), mark: AtomicU64::new(end) };
        Route {
            way: if drained < end { Way::Away } else { Way::Direct },
            away_since: now,
            returning_since: None,
            drains: false,
            next_ticket: 0,
            under_way: BTreeMap::new(),
            waiting: Vec::new(),
            waiting_bytes: 0,
            ordered: Arc::new(ordered),
            gone: VecDeque::new(),
            gone_bytes: 0,
            tell: Vec::new(),
        }
    }

    pub(super) fn way(&self) -> Way {
        self.way
    }

    pub(super) fn away_since(&self) -> LogTime {
        self.away_since
    }

    /// A parcel goes to Kafka.
    pub(super) fn begin(&mut self, now: Instant, cell: &Cell) -> u64 {
        self.next_ticket += 1;
        self.under_way.insert(self.next_ticket, (now, Arc::clone(cell)));
        self.next_ticket
    }

    /// Kafka has answered it.
    pub(super) fn end(&mut self, ticket: u64) {
        self.under_way.remove(&ticket);
    }

    /// When Kafka has been silent about a parcel for that long: all that are under way, in order.
    pub(super) fn overdue(&mut self, now: Instant, after: Duration) -> Vec<Parcel> {
        let oldest = self.under_way.values().next();
        if oldest.is_none_or(|(since, _)| now.saturating_duration_since(*since) < after) {
            return Vec::new();
        }
        let all = std::mem::take(&mut self.under_way).into_values();
        all.filter_map(|(_, cell)| cell.lock().take()).collect()
    }

    /// Kafka is away.
    pub(super) fn leave(&mut self, now: LogTime, reason: &str) {
        if self.way == Way::Direct {
            tracing::warn!(reason, "Kafka is away; appends go to the spool");
            (self.way, self.away_since, self.drains) = (Way::Away, now, false);
        }
    }

    /// A parcel is given to the journal; `ordered` if direct ones must stay behind it.
    pub(super) fn keep(&self, ordered: bool) -> Kept {
        Kept(ordered.then(|| {
            self.ordered.pending.fetch_add(1, SeqCst);
            Arc::clone(&self.ordered)
        }))
    }

    /// A parcel waits until the spool is back.
    pub(super) fn wait(&mut self, parcel: Parcel, limit_bytes: u64) -> Result<(), LogError> {
        let bytes = parcel.0.iter().map(|f| f.payload.len() as u64).sum::<u64>();
        if self.waiting_bytes + bytes > limit_bytes {
            return Err(LogError::Busy { waiting_bytes: self.waiting_bytes, limit_bytes });
        }
        self.waiting_bytes += bytes;
        self.waiting.push(parcel);
        Ok(())
    }

    /// Frames of the journal are in Kafka; by each, the offset after it and its bytes.
    pub(super) fn went(&mut self, frames: impl Iterator<Item = (u64, u64)>) {
        for (next, bytes) in frames {
            self.gone.push_back((next, bytes));
            self.gone_bytes += bytes;
        }
        self.drains = true;
    }

    /// The journal begins there now.
    pub(super) fn deleted_below(&mut self, first: u64) {
        while let Some((_, bytes)) = self.gone.pop_front_if(|(next, _)| *next <= first) {
            self.gone_bytes -= bytes;
        }
    }

    /// Bytes of the journal that do not wait for anything.
    pub(super) fn gone_bytes(&self) -> u64 {
        self.gone_bytes
    }

    /// Goes back to Kafka as far as the journal is drained: all that waited, when it is direct.
    pub(super) fn come_back(&mut self, now: Instant, drained: u64, near: u64) -> Vec<Parcel> {
        let pending = self.ordered.pending.load(SeqCst);
        let left = self.ordered.mark.load(SeqCst).saturating_sub(drained);
        if self.way == Way::Away && self.drains && left <= near {
            (self.way, self.returning_since) = (Way::Returning, Some(now));
        }
        // Nothing becomes pending while it returns, so that both are final.
        if self.way != Way::Returning || pending > 0 || left > 0 {
            return Vec::new();
        }
        tracing::info!("Kafka is back, and the spool is drained");
        self.way = Way::Direct;
        self.released()
    }

    /// Whether it has been returning for too long.
    pub(super) fn is_stuck(&self, now: Instant, most: Duration) -> bool {
        let since = self.returning_since.filter(|_| self.way == Way::Returning);
        since.is_some_and(|since| now.saturating_duration_since(since) >= most)
    }

    /// Kafka went away before the spool was back: all that waited, for the journal.
    pub(super) fn stay_away(&mut self) -> Vec<Parcel> {
        self.drains = false;
        if self.way != Way::Returning {
            return Vec::new();
        }
        self.way = Way::Away;
        self.released()
    }

    fn released(&mut self) -> Vec<Parcel> {
        self.returning_since = None;
        self.waiting_bytes = 0;
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parcel(bytes: usize) -> Parcel {
        let append = Append {
            topic: trueup_operators::log::Topic::Events,
            partition: 0,
            schema_version: 1,
            records: 1,
            payload: vec![0_u8; bytes].into(),
        };
        (vec![append], Box::new(|_| {}))
    }

    #[test]
    fn away_returning_direct_and_not_before_the_journal_is_drained() {
        let now = Instant::now();
        let mut route = Route::new(0, 0, LogTime(1));
        assert_eq!(route.way(), Way::Direct);
        let cell = Arc::new(Mutex::new(Some(parcel(1))));
        let ticket = route.begin(now, &cell);
        assert_eq!(route.overdue(now, Duration::from_secs(1)).len(), 0);
        let later = now + Duration::from_secs(2);
        assert_eq!(route.overdue(later, Duration::from_secs(1)).len(), 1);
        assert!(cell.lock().is_none(), "Kafka's own answer comes too late");
        route.end(ticket);
        route.leave(LogTime(5), "silent");
        assert_eq!((route.way(), route.away_since()), (Way::Away, LogTime(5)));

        let kept = route.keep(true);
        kept.durable(100);
        drop(kept);
        assert!(route.come_back(now, 99, 64).is_empty());
        assert_eq!(route.way(), Way::Away, "nothing was drained: Kafka is not there");
        route.went([(36, 10)].into_iter());
        assert!(route.come_back(now, 30, 64).is_empty());
        assert_eq!(route.way(), Way::Away, "much is left");
        let pending = route.keep(true);
        assert!(route.come_back(now, 36, 64).is_empty());
        assert_eq!(route.way(), Way::Returning);
        route.wait(parcel(60), 100).unwrap();
        assert!(matches!(route.wait(parcel(60), 100), Err(LogError::Busy { .. })));
        assert!(route.come_back(now, 100, 64).is_empty(), "one is not durable yet");
        pending.durable(101);
        drop(pending);
        assert!(route.come_back(now, 100, 64).is_empty());
        assert_eq!(route.come_back(now, 101, 64).len(), 1);
        assert_eq!(route.way(), Way::Direct);
    }

    #[test]
    fn returning_gives_up_and_needs_a_new_sign_of_life() {
        let now = Instant::now();
        let mut route = Route::new(3, 5, LogTime(1));
        assert_eq!(route.way(), Way::Away, "the journal holds something");
        route.went([(4, 128)].into_iter());
        assert!(route.come_back(now, 4, 64).is_empty());
        route.wait(parcel(1), 100).unwrap();
        assert!(!route.is_stuck(now, Duration::from_secs(2)));
        assert!(route.is_stuck(now + Duration::from_secs(2), Duration::from_secs(2)));
        assert_eq!(route.stay_away().len(), 1);
        assert!(route.come_back(now, 5, 64).is_empty());
        assert_eq!(route.way(), Way::Away);
        route.went([(5, 64)].into_iter());
        assert_eq!(route.gone_bytes(), 192);
        route.deleted_below(4);
        assert_eq!(route.gone_bytes(), 64);
        assert!(route.come_back(now, 5, 64).is_empty());
        assert_eq!(route.way(), Way::Direct);
        // What pixels append does not hold the others back.
        let pixel = route.keep(false);
        pixel.durable(900);
        route.leave(LogTime(7), "busy");
        route.went(std::iter::empty());
        route.come_back(now, 5, 64);
        assert_eq!(route.way(), Way::Direct);
        drop(pixel);
    }
}
