//! A job beside itself: its log through the dataflow again, to be looked at or to be offered; and
//! the job that takes up what is offered.

use super::{Host, HostError, Life, PATIENCE, check, home};
use crate::{
    checkpoint::{
        offer::{self, Refused},
        store::Objects,
    },
    decided::Decided,
    engine::{EngineSettings, StartError},
    epochs::Cut,
    flow::Job,
    open_log::OpenLog,
    served::Replayed,
};
use std::path::Path;
use trueup_operators::time::Epoch;
use trueup_sinks::ViewSettings;

impl Host {
    /// Goes through the epochs that a log holds from the first one on, up to one of them or all,
    /// next to a running server or without one: changes nothing, closes no epoch.
    ///
    /// # Errors
    /// As [`Host::open`].
    pub fn replay<J: Job<N>, const N: usize>(
        dir: &Path,
        log: OpenLog,
        job: J,
        engine: EngineSettings,
        views: ViewSettings,
        upto: Option<Epoch>,
    ) -> Result<Host, HostError> {
        Host::again(dir, log, job, engine, views, (upto, None))
    }

    /// The same, up to an epoch; [`Host::offer`] then offers what it has found to the job whose
    /// checkpoints are in `store`, as [`Host::open_on`] has it.
    ///
    /// # Errors
    /// As [`Host::open`].
    pub fn replay_to_offer<J: Job<N>, const N: usize>(
        dir: &Path,
        store: &str,
        log: OpenLog,
        job: J,
        engine: EngineSettings,
        views: ViewSettings,
        upto: Epoch,
    ) -> Result<Host, HostError> {
        let decided = Decided::new(&engine.lateness, &job.rollups());
        let store = Some((Objects::open(dir, store)?, decided));
        Host::again(dir, log, job, engine, views, (Some(upto), store))
    }

    fn again<J: Job<N>, const N: usize>(
        dir: &Path,
        log: OpenLog,
        job: J,
        mut engine: EngineSettings,
        views: ViewSettings,
        (upto, store): (Option<Epoch>, Option<(Objects, Decided)>),
    ) -> Result<Host, HostError> {
        check(&job.rollups(), N)?;
        Decided::new(&engine.lateness, &job.rollups()).check(dir)?;
        engine.epochs.cut = Cut::Replay { upto };
        let home = home(&log, job, engine, views, store);
        let run = home.replay(upto)?;
        let once = Box::new(|| Err(StartError::Settings("a replay begins once".to_owned())));
        Host::alone(log, home, run, once)
    }

    /// Offers what a replay has found; its name. [`Host::take_up`] shows it.
    ///
    /// # Errors
    /// Why it cannot be offered.
    pub fn offer(&self) -> Result<String, HostError> {
        let engine = self.engine();
        let Some(checkpoints) = engine.checkpoints() else {
            return Err(HostError::Fault("this run offers nothing".to_owned()));
        };
        checkpoints.offer(PATIENCE, || self.fault()).map_err(HostError::Fault)
    }

    /// Begins anew with what a replay offers, here or in all processes of the cluster, while what
    /// was shown last is shown.
    ///
    /// # Errors
    /// When nothing is offered, another one is being taken up, or the processes are not together.
    pub fn take_up(&self) -> Result<(), HostError> {
        let wrong = |reason: &str| Err(HostError::Fault(reason.to_owned()));
        let Some(store) = &self.store else {
            return wrong("this job takes no checkpoints, and what a replay has found is one");
        };
        if !offer::is_made(&**store)? {
            return wrong("nothing is offered; `trueup replay` does both");
        }
        match &self.life {
            Life::Alone(alone) if alone.take_up() => Ok(()),
            Life::Alone(_) => wrong("another one is being taken up; try again"),
            Life::Member(member) if member.take_up() => Ok(()),
            Life::Member(_) => wrong("the processes are not together now; try again"),
        }
    }

    /// Whether one run has ended and the next is to begin.
    pub(crate) fn is_between(&self) -> bool {
        match &self.life {
            Life::Alone(alone) => alone.is_between(),
            Life::Member(_) => true,
        }
    }

    /// The replay whose figures are shown, if this process has begun to show them.
    pub fn replayed(&self) -> Option<Replayed> {
        self.life.served().replayed()
    }

    /// The replay that this run did not take up, if one was offered.
    pub fn refused(&self) -> Option<Refused> {
        self.life.current().get().refused.clone()
    }
}
