//! The life of a process that runs a job alone: one run from its start to its end, unless a replay
//! is to be taken up. Then the run ends, and the next one begins with what the replay has found,
//! while readers go on with what was shown last ([`crate::served`]).
//!
//! # Promises
//!
//! * Two runs never go at once: the first has ended, with its workers and the thread that writes
//!   checkpoints, before the next one claims the checkpoints.
//! * A store or a log that does not answer is asked again; whatever else stands against the next
//!   run is a fault, and the process's next start takes the same way.

use crate::{
    engine::StartError,
    run::{Current, Run},
    served::Served,
};
use parking_lot::Mutex;
use std::{sync::Arc, thread::JoinHandle, time::Duration};
use trueup_sinks::Tables;

/// How long until a run is begun again that could not begin.
const AGAIN: Duration = Duration::from_secs(1);

/// Begins a run.
pub(crate) type Begin = Box<dyn Fn() -> Result<Run, StartError> + Send>;

#[derive(Default)]
struct State {
    /// A replay is to be taken up.
    wanted: bool,
    /// One run has ended and the next has not begun.
    between: bool,
    stopping: bool,
    fault: Option<String>,
}

/// What the thread does.
enum Next {
    Again,
    End,
}

/// This process, as the only one of its job.
pub(crate) struct Alone {
    served: Arc<Served>,
    current: Arc<Current>,
    state: Arc<Mutex<State>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Alone {
    /// Shows a run, and begins others when it is told to. `empty`: views of the same job that show
    /// nothing.
    ///
    /// # Errors
    /// When the thread does not start.
    pub(crate) fn start(
        run: Run,
        empty: impl FnOnce() -> Arc<dyn Tables>,
        begin: Begin,
    ) -> Result<Alone, StartError> {
        let symbols = Arc::clone(run.engine.symbols());
        // What a replay has found is shown from an epoch on that nobody has seen.
        let is_seen = run.figures.as_ref().is_none_or(|figures| figures.seen);
        let tables = if is_seen { Arc::clone(&run.tables) } else { empty() };
        let shown = run.figures.as_ref().filter(|_| is_seen);
        let served = Served::new(tables, symbols, shown);
        let (current, state) = (Current::new(run), Arc::<Mutex<State>>::default());
        let living = Living {
            served: Arc::clone(&served),
            current: Arc::clone(&current),
            state: Arc::clone(&state),
            begin,
        };
        let thread = std::thread::Builder::new()
            .name("runs".into())
            .spawn(move || living.live())
            .map_err(|e| StartError::Thread(e.to_string()))?;
        Ok(Alone { served, current, state, thread: Mutex::new(Some(thread)) })
    }

    /// The views through all runs.
    pub(crate) fn served(&self) -> &Arc<Served> {
        &self.served
    }

    /// The run of the moment.
    pub(crate) fn current(&self) -> &Arc<Current> {
        &self.current
    }

    /// Why this process cannot go on, if it cannot.
    pub(crate) fn fault(&self) -> Option<String> {
        let state = self.state.lock();
        match state.between {
            true => state.fault.clone(),
            false => state.fault.clone().or_else(|| self.current.get().engine.fault()),
        }
    }

    /// Begins anew with what a replay offers. `false`: another one is being taken up.
    pub(crate) fn take_up(&self) -> bool {
        let mut state = self.state.lock();
        let may = !state.between && !state.wanted;
        state.wanted |= may;
        may
    }

    /// Whether one run has ended and the next has not begun.
    pub(crate) fn is_between(&self) -> bool {
        let state = self.state.lock();
        state.between || state.wanted
    }

    /// Begins no other run, and shows no more.
    pub(crate) fn stop(&self) {
        self.state.lock().stopping = true;
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the runs ended by a panic");
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The thread's own.
struct Living {
    served: Arc<Served>,
    current: Arc<Current>,
    state: Arc<Mutex<State>>,
    begin: Begin,
}

impl Living {
    fn live(self) {
        loop {
            let run = self.current.get();
            run.show(&self.served, || self.is_over(&run));
            match self.next(&run) {
                Next::End => return,
                Next::Again => {}
            }
            drop(run);
            match self.begin() {
                Ok(Some(run)) => self.current.set(run),
                Ok(None) => return,
                Err(fault) => {
                    self.state.lock().fault = Some(fault);
                    return;
                }
            }
            self.state.lock().between = false;
        }
    }

    fn is_over(&self, run: &Run) -> bool {
        let state = self.state.lock();
        state.wanted || state.stopping || run.engine.fault().is_some()
    }

    /// Ends a run, if another one is to begin.
    fn next(&self, run: &Run) -> Next {
        let mut state = self.state.lock();
        if state.stopping || run.engine.fault().is_some() {
            return Next::End;
        }
        (state.wanted, state.between) = (false, true);
        drop(state);
        tracing::info!("a replay is taken up; what was shown last is shown until it is as far");
        run.engine.stop();
        run.engine.abandon("another run takes its place".to_owned());
        Next::Again
    }

    /// `None`: the process ends.
    fn begin(&self) -> Result<Option<Run>, String> {
        loop {
            match (self.begin)() {
                Ok(run) => return Ok(Some(run)),
                Err(_) if self.state.lock().stopping => return Ok(None),
                Err(error) if error.may_pass() => {
                    tracing::warn!(%error, "the run cannot begin; it is tried again");
                    std::thread::sleep(AGAIN);
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}
