//! Which times of the wall clock become log times.
//!
//! A log time that was told once stands for ever: it is in frames and in remap rows, it makes
//! buckets final, and the ledger forgets by it. So one glitch of the wall clock, weeks ahead for
//! one reading, would make every later event too late, and no restart would heal it. A clock
//! cannot be proven right, but it can be compared with another one: beside the *wall* stands a
//! *watch*, which nobody sets and which goes on while the machine sleeps. Two rules:
//!
//! * **Ahead.** `wall − watch` grows by corrections only. A reading for which it is more than
//!   [`CLOCK_STEP_US_MAX`] above the most that was believed is *doubted*. (The most, not the last:
//!   a clock that was set back and comes back to what it was is believed.)
//! * **Behind.** A reading that stands more than `clock_behind_us_max` behind the last log time is
//!   doubted too: one of the two is wrong, and with log times so far ahead of what the world calls
//!   now, events would not count. That is how a machine without a clock wakes up, and what is left
//!   of a clock that ran ahead and was set right.
//!
//! A doubted reading changes nothing: no log time comes of it, and whoever appends is refused with
//! both times. What was taken before keeps the last log time that was believed, and remap rows go
//! on being written with it, so that it becomes visible. The doubt ends by itself when the clock is
//! right again. Opening begins anew: the first reading that is not behind is believed whatever it
//! says, for only an operator knows how long a server was away, and a long way is said aloud.

use std::{sync::Arc, time::Duration};
use trueup_operators::time::{LogTime, format_rfc3339};

/// The most that the wall clock may gain on the watch at once; above what NTP corrects without
/// being told to, below what matters to any bucket.
pub const CLOCK_STEP_US_MAX: i64 = 60_000_000;

/// Where log times come from. The real one is [`system_clock`]; tests bring their own.
pub type Clock = Arc<dyn Fn() -> LogTime + Send + Sync>;

/// What a clock is compared with: time that passes and that nobody sets. The real one is
/// [`system_watch`].
pub type Watch = Arc<dyn Fn() -> Duration + Send + Sync>;

/// The system's wall clock.
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since_1970 = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        LogTime(i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX))
    })
}

/// The time since the machine started, that of its sleep included.
#[cfg(target_os = "linux")]
pub fn system_watch() -> Watch {
    use rustix::time::{ClockId, clock_gettime};
    Arc::new(|| {
        let since_boot = clock_gettime(ClockId::Boottime);
        Duration::try_from(since_boot).unwrap_or_default()
    })
}

/// The time since this was called. Where the system counts no sleep, a machine that slept needs a
/// restart of the server.
#[cfg(not(target_os = "linux"))]
pub fn system_watch() -> Watch {
    let started = std::time::Instant::now();
    Arc::new(move || started.elapsed())
}

/// Reads a clock and says which readings are believed.
pub(crate) struct Guard {
    clock: Clock,
    /// None: everything is believed.
    watch: Option<Watch>,
    behind_us_max: i64,
    /// The most of `wall − watch` that was believed, µs. None until a reading was.
    lead_us: Option<i64>,
    /// Whether the last reading was doubted: said once, not at every append.
    doubting: bool,
}

/// Why a reading is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// The wall clock went on faster than the watch.
    Ahead { wall: LogTime, expected: LogTime },
    /// It stands behind what was written already.
    Behind { wall: LogTime, floor: LogTime },
}

impl std::fmt::Display for Doubt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Doubt::Ahead { wall, expected } => write!(
                f,
                "the clock says {}, and by the time that passed since the start it should be {}: \
                 nothing is taken until it is right again; if it is right now, restart the server",
                format_rfc3339(wall.0),
                format_rfc3339(expected.0)
            ),
            Doubt::Behind { wall, floor } => write!(
                f,
                "the clock says {}, and the log has been written up to {}: nothing is taken until \
                 the clock comes near to that; set it right, or, if it is right now and the log \
                 was written by a clock that ran ahead, begin with another data_dir",
                format_rfc3339(wall.0),
                format_rfc3339(floor.0)
            ),
        }
    }
}

impl Guard {
    /// Believes everything.
    pub(crate) fn believing(clock: Clock) -> Guard {
        Guard { clock, watch: None, behind_us_max: i64::MAX, lead_us: None, doubting: false }
    }

    /// Compares the clock with a watch, and with log times as far as this.
    pub(crate) fn watching(clock: Clock, watch: Watch, behind_us_max: i64) -> Guard {
        Guard { watch: Some(watch), behind_us_max, ..Guard::believing(clock) }
    }

    /// What the clock says, believed or not.
    pub(crate) fn wall(&self) -> LogTime {
        (self.clock)()
    }

    /// A reading, where the last log time is `floor`.
    pub(crate) fn read(&mut self, floor: LogTime) -> Result<LogTime, Doubt> {
        let read = self.judge(floor);
        let doubting = read.is_err();
        if std::mem::replace(&mut self.doubting, doubting) != doubting {
            match &read {
                Err(doubt) => tracing::error!(%doubt, "the clock is not believed"),
                Ok(wall) => tracing::warn!(now = format_rfc3339(wall.0), "the clock is believed"),
            }
        }
        read
    }

    fn judge(&mut self, floor: LogTime) -> Result<LogTime, Doubt> {
        // The wall first: a thread that rests between the two then sees a smaller lead, not a jump.
        let wall = self.wall();
        let Some(watch) = &self.watch else { return Ok(wall) };
        let watch_us = i64::try_from(watch().as_micros()).unwrap_or(i64::MAX);
        if floor.0.saturating_sub(wall.0) > self.behind_us_max {
            return Err(Doubt::Behind { wall, floor });
        }
        let lead_us = wall.0.saturating_sub(watch_us);
        let believed_us = self.lead_us.unwrap_or(lead_us);
        if lead_us.saturating_sub(believed_us) > CLOCK_STEP_US_MAX {
            let expected = LogTime(believed_us.saturating_add(watch_us));
            return Err(Doubt::Ahead { wall, expected });
        }
        self.lead_us = Some(lead_us.max(believed_us));
        Ok(wall)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};

    const HOUR_US: i64 = 3_600_000_000;

    /// A guard whose wall and watch a test moves.
    struct Moved {
        guard: Guard,
        wall: Arc<AtomicI64>,
        watch: Arc<AtomicU64>,
    }

    fn moved(wall_us: i64) -> Moved {
        let (wall, watch) = (Arc::new(AtomicI64::new(wall_us)), Arc::new(AtomicU64::new(5)));
        let (told, passed) = (Arc::clone(&wall), Arc::clone(&watch));
        let clock: Clock = Arc::new(move || LogTime(told.load(SeqCst)));
        let passed: Watch = Arc::new(move || Duration::from_micros(passed.load(SeqCst)));
        Moved { guard: Guard::watching(clock, passed, HOUR_US), wall, watch }
    }

    impl Moved {
        fn read(&mut self, wall_us: i64, watch_us: u64, floor_us: i64) -> Result<LogTime, Doubt> {
            self.wall.store(wall_us, SeqCst);
            self.watch.store(watch_us, SeqCst);
            self.guard.read(LogTime(floor_us))
        }
    }

    #[test]
    fn a_step_ahead_is_doubted_and_the_way_back_is_not() {
        let mut at = moved(0);
        let now = 1_000 * HOUR_US;
        assert_eq!(at.read(now, 0, 0), Ok(LogTime(now)), "the first is believed");
        let weeks = now + 500 * HOUR_US;
        let expected = LogTime(now + 9);
        assert_eq!(at.read(weeks, 9, now), Err(Doubt::Ahead { wall: LogTime(weeks), expected }));
        assert_eq!(at.read(now + 10, 10, now), Ok(LogTime(now + 10)));
        // Half an hour back, and forward to where it was.
        assert!(at.read(now - HOUR_US / 2, 20, now).is_ok());
        assert!(at.read(now + 30, 30, now).is_ok());
        // As much as a correction may be, and no more at once.
        assert!(at.read(now + 40 + CLOCK_STEP_US_MAX, 40, now).is_ok());
        assert!(at.read(now + 51 + 2 * CLOCK_STEP_US_MAX, 50, now).is_err());
    }

    #[test]
    fn a_machine_that_slept_is_believed() {
        let mut at = moved(0);
        assert!(at.read(7, 0, 0).is_ok());
        assert_eq!(at.read(7 + 90 * HOUR_US, 90 * HOUR_US as u64, 7).unwrap().0, 7 + 90 * HOUR_US);
    }

    #[test]
    fn a_clock_far_behind_is_doubted_until_it_is_set() {
        let mut at = moved(0);
        let floor = 400_000 * HOUR_US;
        let (wall, told) = (LogTime(3), LogTime(floor));
        assert_eq!(at.read(3, 1, floor), Err(Doubt::Behind { wall, floor: told }));
        // Set right: two days later than what the log has, and nothing was believed before.
        assert!(at.read(floor + 48 * HOUR_US, 2, floor).is_ok());
        assert!(at.read(floor + 96 * HOUR_US, 3, floor).is_err());
    }

    #[test]
    fn both_times_and_what_to_do_are_told() {
        let (wall, other) = (LogTime(0), LogTime(HOUR_US));
        let ahead = Doubt::Ahead { wall, expected: other }.to_string();
        let behind = Doubt::Behind { wall, floor: other }.to_string();
        for told in [&ahead, &behind] {
            assert!(told.contains("1970-01-01T00:00:00Z"), "{told}");
            assert!(told.contains("1970-01-01T01:00:00Z"), "{told}");
        }
        assert!(ahead.contains("restart") && behind.contains("data_dir"), "{ahead} {behind}");
    }

    #[test]
    fn the_system_has_a_watch_that_goes_on() {
        let watch = system_watch();
        let before = watch();
        std::thread::sleep(Duration::from_millis(2));
        assert!(watch() >= before + Duration::from_millis(2));
    }
}
