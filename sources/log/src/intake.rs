//! Where appends wait for the writer, and what is promised about log times meanwhile.
//!
//! # The promise of `complete_to`
//!
//! `ends()` tells, for each partition, a durable end and a time; from then on no frame at or after
//! that end may get a smaller log time. An epoch is closed on this promise, so breaking it by one
//! microsecond makes an event late that was not. Three threads race: one appends, the writer
//! stamps, one asks. All of it therefore happens under one mutex, and on one number:
//!
//! * `floor` never decreases. It is raised to the clock whenever a group is stamped and whenever
//!   the ends are asked for; a clock that jumps back changes nothing, and one that is not believed
//!   (`clock.rs`) neither.
//! * The writer stamps a whole group with the floor, at the moment that it takes the group from
//!   the queue. So a frame that still waits has no log time yet, and will get at least any floor
//!   that was told before.
//! * From then until it is published, a partition of the group has `in_flight` = that log time,
//!   and `ends()` tells no more than it. A partition without is told the floor.
//! * A group that fails gives its log time up. The floor stays, so nothing told becomes wrong.
//!
//! The floor is one for all partitions, so that log times never decrease along the whole journal.
//! Hence a log time that is durable anywhere bounds every promise that was recorded before it in
//! the same journal (the remap rows), and opening needs only the last frame to go on where the
//! previous process stopped, even with a clock that stands behind.

use crate::{
    clock::{Doubt, Guard},
    format::Reach,
    slot::Slots,
};
use parking_lot::{Condvar, Mutex};
use std::{collections::VecDeque, time::Duration};
use trueup_operators::{
    log::{Append, Done, LogError, Topic},
    time::LogTime,
};

/// What a request costs in the queue besides its frames, so that empty ones are bounded as well.
pub(crate) const REQUEST_BYTES: u64 = 64;

/// A frame that waits: checked, its payload aligned and summed.
pub(crate) struct Pending {
    pub(crate) slot: usize,
    pub(crate) append: Append,
    pub(crate) payload_crc: u32,
}

/// One call of `append`.
pub(crate) struct Request {
    pub(crate) frames: Vec<Pending>,
    pub(crate) done: Done,
    /// What its frames take on disk, and [`REQUEST_BYTES`].
    pub(crate) bytes: u64,
}

/// Requests that are written together, all with one log time.
pub(crate) struct Group {
    pub(crate) log_time: LogTime,
    pub(crate) requests: Vec<Request>,
    pub(crate) bytes: u64,
}

/// What the writer is to do next.
pub(crate) enum Work {
    /// Write this.
    Group(Group),
    /// Nothing came for a while.
    Idle,
    /// Nothing is left and nothing will come.
    Close,
}

#[derive(Clone, Debug)]
enum Door {
    Open,
    /// Nothing more is taken; what waits is still written.
    Closing,
    /// Nothing is taken and nothing is written.
    Shut(String),
    /// The same, until the journal is opened anew: the disk has failed it.
    Broken(String),
}

struct State {
    door: Door,
    queue: VecDeque<Request>,
    /// Of the queue and of the group in flight.
    bytes: u64,
    floor: LogTime,
    guard: Guard,
    /// By slot.
    ends: Vec<DurableEnd>,
}

#[derive(Clone, Copy, Debug)]
struct DurableEnd {
    reach: Reach,
    in_flight: Option<LogTime>,
}

/// The queue, the durable ends and the floor.
pub(crate) struct Intake {
    state: Mutex<State>,
    wake: Condvar,
    bytes_max: u64,
}

impl Intake {
    pub(crate) fn new(ends: &[Reach], floor: LogTime, bytes_max: u64, guard: Guard) -> Intake {
        let ends = ends.iter().map(|&reach| DurableEnd { reach, in_flight: None }).collect();
        let queue = VecDeque::new();
        let state = State { door: Door::Open, queue, bytes: 0, floor, guard, ends };
        Intake { state: Mutex::new(state), wake: Condvar::new(), bytes_max }
    }

    /// Takes a request into the queue, or gives the reason why not.
    pub(crate) fn put(&self, request: Request) -> Result<(), LogError> {
        let mut state = self.state.lock();
        match &state.door {
            Door::Open => {}
            Door::Closing => return Err(closed()),
            Door::Shut(reason) | Door::Broken(reason) => {
                return Err(LogError::Unavailable { reason: reason.clone() });
            }
        }
        // Remap rows go on, with the log time that stands: what was taken is to become visible.
        let mut frames = request.frames.iter();
        if frames.any(|pending| pending.append.topic != Topic::Remap) {
            state
                .raise_floor()
                .map_err(|doubt| LogError::Unavailable { reason: doubt.to_string() })?;
        }
        if request.bytes > self.bytes_max {
            return Err(LogError::Invalid {
                reason: format!(
                    "an append of {} bytes can never fit: the log's queue holds {} bytes \
                     (queue_bytes_max); split it",
                    request.bytes, self.bytes_max
                ),
            });
        }
        if state.bytes + request.bytes > self.bytes_max {
            return Err(LogError::Busy { waiting_bytes: state.bytes, limit_bytes: self.bytes_max });
        }
        state.bytes += request.bytes;
        state.queue.push_back(request);
        drop(state);
        self.wake.notify_one();
        Ok(())
    }

    /// Waits for requests and stamps a group of them: at least one, then as many as fit.
    pub(crate) fn take(&self, bytes_max: u64, wait: Duration) -> Work {
        let mut state = self.state.lock();
        if state.queue.is_empty() && matches!(state.door, Door::Open) {
            self.wake.wait_for(&mut state, wait);
        }
        let Some(first) = state.queue.pop_front() else {
            return if matches!(state.door, Door::Open) { Work::Idle } else { Work::Close };
        };
        let mut bytes = first.bytes;
        let mut requests = vec![first];
        while let Some(next) = state.queue.front() {
            if bytes + next.bytes > bytes_max {
                break;
            }
            bytes += next.bytes;
            requests.extend(state.queue.pop_front());
        }
        let log_time = state.raised_floor();
        for pending in requests.iter().flat_map(|request| &request.frames) {
            state.ends[pending.slot].in_flight = Some(log_time);
        }
        Work::Group(Group { log_time, requests, bytes })
    }

    /// The group that was taken last is durable up to these ends, by slot.
    pub(crate) fn publish(&self, ends: &[Reach], bytes: u64) {
        let mut state = self.state.lock();
        for (end, &reach) in state.ends.iter_mut().zip(ends) {
            debug_assert!(end.reach.offset <= reach.offset);
            *end = DurableEnd { reach, in_flight: None };
        }
        state.bytes -= bytes;
    }

    /// The group that was taken last is lost.
    pub(crate) fn give_up(&self, bytes: u64) {
        let mut state = self.state.lock();
        state.ends.iter_mut().for_each(|end| end.in_flight = None);
        state.bytes -= bytes;
    }

    /// Takes nothing more; the writer is to finish what waits.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        if matches!(state.door, Door::Open) {
            state.door = Door::Closing;
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Takes nothing more and gives back what waits, to be refused. The first reason stands.
    pub(crate) fn shut(&self, reason: &str) -> Vec<Request> {
        self.shut_as(Door::Shut(reason.to_owned()))
    }

    /// The same, because only opening the journal anew can help.
    pub(crate) fn break_down(&self, reason: &str) -> Vec<Request> {
        self.shut_as(Door::Broken(reason.to_owned()))
    }

    /// Why only opening the journal anew can help, if that is so.
    pub(crate) fn broken(&self) -> Option<String> {
        match &self.state.lock().door {
            Door::Broken(reason) => Some(reason.clone()),
            Door::Open | Door::Closing | Door::Shut(_) => None,
        }
    }

    fn shut_as(&self, door: Door) -> Vec<Request> {
        let mut state = self.state.lock();
        if !matches!(state.door, Door::Shut(_) | Door::Broken(_)) {
            state.door = door;
        }
        let waiting: Vec<Request> = state.queue.drain(..).collect();
        state.bytes -= waiting.iter().map(|request| request.bytes).sum::<u64>();
        waiting
    }

    /// The durable end and the promise of slots, all at one instant.
    pub(crate) fn ends(&self, slots: std::ops::Range<usize>) -> Vec<(Reach, LogTime)> {
        let mut state = self.state.lock();
        let floor = state.raised_floor();
        let ends = state.ends[slots].iter();
        ends.map(|end| (end.reach, end.in_flight.unwrap_or(floor))).collect()
    }

    /// The log time that a frame would get now.
    pub(crate) fn now(&self) -> LogTime {
        self.state.lock().raised_floor()
    }

    /// How far the clock stands behind the floor, µs.
    pub(crate) fn clock_behind_us(&self) -> i64 {
        let state = self.state.lock();
        state.floor.0.saturating_sub(state.guard.wall().0).max(0)
    }

    /// Why the clock is not believed, if it is not.
    pub(crate) fn doubt(&self) -> Option<Doubt> {
        self.state.lock().raise_floor().err()
    }

    /// The bytes that wait to be durable.
    pub(crate) fn waiting_bytes(&self) -> u64 {
        self.state.lock().bytes
    }
}

impl State {
    fn raise_floor(&mut self) -> Result<(), Doubt> {
        self.floor = self.floor.max(self.guard.read(self.floor)?);
        Ok(())
    }

    /// The floor, raised as far as the clock is believed.
    fn raised_floor(&mut self) -> LogTime {
        // Who asks for a time gets the one that stands; who appends is told why it does.
        match self.raise_floor() {
            Ok(()) | Err(_) => self.floor,
        }
    }
}

/// The slots of a topic.
pub(crate) fn topic_slots(slots: Slots, topic: Topic) -> std::ops::Range<usize> {
    let first = slots.slot(topic, 0).unwrap_or(0);
    first..first + usize::from(slots.partitions(topic))
}

pub(crate) fn closed() -> LogError {
    LogError::Unavailable { reason: "the log is closed".into() }
}
