//! The life of a process in a cluster: it meets the others, runs its part of the job until one of
//! them is lost, and meets them again, while collector and readers beside it go on.
//!
//! ```text
//!         ┌──────────────────────────── generation over ────────────────────────────┐
//!         ▼                                                                          │
//!       meet ─▶ the leader says with which checkpoint all begin ─▶ all load it ─▶ feed, run
//!         │                       │ one cannot load it: told to the leader, who passes it over
//!         ▼                       ▼                                             next time
//!      refused: fault        generation over
//! ```
//!
//! # Why it is hard
//!
//! A generation ends in the middle of anything, and what it leaves must not mix with the next: its
//! workers let go of their epochs without completing them, its views stay as they are until the
//! next ones show as much ([`crate::served`]), its numbers are spent. And the process must tell
//! what is its own fault from what befell it: a batch that it cannot decode ends the process, for
//! the next generation would meet the same batch; a lost peer does not.
//!
//! # Promises
//!
//! * Until all processes have loaded, no more epochs are fed than may be under way: a member
//!   commits what it began with when it has.
//! * A generation that is over feeds nothing, closes nothing and publishes nothing from the moment
//!   that [`Engine::abandon`] returns. What it appended before counts or is void by the order of
//!   the log ([`crate::epochs`]).
//! * A fault of this process is told to the others before it ends.

mod floor;

use crate::{
    checkpoint::{
        LoadError,
        manifest::ManifestName,
        parts::{Ended, SealedPart},
        start::{self, Begin},
        taking::Checkpoints,
    },
    cluster::{Cluster, Failure, Generation, MeetError, What, Word},
    engine::{Engine, EngineSettings, StartError},
    epochs::{Fed, Led},
    flow::Job,
    host::CHECKPOINT_PATIENCE,
    neighbour,
    run::{Current, Home, Run},
    seat::{LEADER, Seat},
    served::Served,
    words::{self, Said},
};
use parking_lot::Mutex;
use serde::Serialize;
use std::{
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use trueup_operators::log::LogError;
use trueup_sinks::{Tables, Views};

/// How long until a meeting is tried again that could not begin.
const AGAIN: Duration = Duration::from_secs(1);
/// How often a member tries to load what the leader has chosen.
const LOADS_MAX: u32 = 4;
/// How often who waits looks around.
const GLANCE: Duration = Duration::from_millis(10);

/// What is known of a cluster, as this process sees it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// This process.
    pub process: usize,
    /// How many there are.
    pub processes: usize,
    /// The generation that runs, or the last one; 0: none yet.
    pub generation: u64,
    /// Whether it runs.
    pub together: bool,
    /// How many generations this process has been in.
    pub generations: u64,
    /// Why the last one that is over ended.
    pub last_end: Option<String>,
    /// How long ago this process came together with the others, or lost them.
    pub since_seconds: f64,
}

struct State {
    generation: Option<Arc<Generation>>,
    generations: u64,
    number: u64,
    last_end: Option<String>,
    since: Instant,
    fault: Option<String>,
    stopping: bool,
}

/// What the thread and who looks at it share.
struct Told(Mutex<State>);

impl Told {
    fn begins(&self, generation: &Arc<Generation>) -> bool {
        let mut state = self.0.lock();
        state.generation = Some(Arc::clone(generation));
        state.number = generation.number();
        state.generations += 1;
        state.since = Instant::now();
        !state.stopping
    }

    fn ends(&self, why: String) {
        let mut state = self.0.lock();
        state.generation = None;
        state.last_end = Some(why);
        state.since = Instant::now();
    }

    fn fault(&self, why: String) {
        let mut state = self.0.lock();
        if !state.stopping {
            state.fault.get_or_insert(why);
        }
    }

    fn is_stopping(&self) -> bool {
        self.0.lock().stopping
    }
}

/// This process, as one of a cluster.
pub(crate) struct Member {
    cluster: Arc<Cluster>,
    process: usize,
    processes: usize,
    served: Arc<Served>,
    current: Arc<Current>,
    told: Arc<Told>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Member {
    /// Starts the thread that meets the others.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start<J: Job<N>, const N: usize>(
        home: Home<J, N>,
        cluster: Cluster,
    ) -> Result<Member, StartError> {
        let (log, symbols) = (Arc::clone(&home.log), Arc::clone(&home.symbols));
        let tables: Arc<dyn Tables> = home.views(&Seat::alone(home.engine.workers));
        let engine = Arc::new(Engine::at_rest(log, Arc::clone(&symbols), home.engine)?);
        let served = Served::new(Arc::clone(&tables), symbols, None);
        let current = Current::new(Run::at_rest(engine, tables));
        let state = State {
            generation: None,
            generations: 0,
            number: 0,
            last_end: None,
            since: Instant::now(),
            fault: None,
            stopping: false,
        };
        let (cluster, told) = (Arc::new(cluster), Arc::new(Told(Mutex::new(state))));
        let (process, processes) = (cluster.process(), cluster.processes());
        let living = Living {
            home,
            cluster: Arc::clone(&cluster),
            served: Arc::clone(&served),
            current: Arc::clone(&current),
            told: Arc::clone(&told),
            broken: Arc::default(),
        };
        let thread = std::thread::Builder::new()
            .name("member".into())
            .spawn(move || living.live())
            .map_err(|e| StartError::Thread(e.to_string()))?;
        let thread = Mutex::new(Some(thread));
        Ok(Member { cluster, process, processes, served, current, told, thread })
    }

    /// The views through all generations.
    pub(crate) fn served(&self) -> &Arc<Served> {
        &self.served
    }

    /// The run of the generation that runs or ran last.
    pub(crate) fn current(&self) -> &Arc<Current> {
        &self.current
    }

    /// Ends the generation: the next one begins with what a replay offers.
    pub(crate) fn take_up(&self) -> bool {
        let generation = self.told.0.lock().generation.clone();
        generation.map(|generation| generation.leave()).is_some()
    }

    /// Why this process cannot go on, if it cannot.
    pub(crate) fn fault(&self) -> Option<String> {
        self.told.0.lock().fault.clone()
    }

    /// What is known of the cluster.
    pub(crate) fn membership(&self) -> Membership {
        let state = self.told.0.lock();
        let failure = state.generation.as_ref().and_then(|g| g.failure());
        let together = state.generation.is_some() && failure.is_none();
        Membership {
            process: self.process,
            processes: self.processes,
            generation: state.number,
            together,
            generations: state.generations,
            last_end: failure.map(|f| f.to_string()).or_else(|| state.last_end.clone()),
            since_seconds: state.since.elapsed().as_secs_f64(),
        }
    }
}

impl Member {
    /// Leaves, and waits until what runs here has ended.
    pub(crate) fn stop(&self) {
        let mut state = self.told.0.lock();
        state.stopping = true;
        let generation = state.generation.take();
        drop(state);
        self.cluster.stop();
        if let Some(generation) = generation {
            generation.leave();
        }
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the membership ended by a panic");
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Checkpoints that a process could not load: the leader passes them over.
type Broken = Arc<Mutex<Vec<ManifestName>>>;

/// The thread's own.
struct Living<J, const N: usize> {
    home: Home<J, N>,
    cluster: Arc<Cluster>,
    served: Arc<Served>,
    current: Arc<Current>,
    told: Arc<Told>,
    broken: Broken,
}

/// How a generation came to its end.
enum End {
    /// Another process was lost, or this one was told to stop: the next one may begin.
    Over(String),
    /// This process cannot go on.
    Fault(String),
}

/// What a generation begins with, the views that show it, and how it runs.
struct Loaded<const N: usize, M> {
    begin: Begin<N, M>,
    views: Arc<Views<N, M>>,
    settings: EngineSettings,
}

/// Of a generation that is over. What this process found in itself is its fault, whoever noticed
/// first: a panic ends the generation before anyone has looked at the engine.
fn over(generation: &Generation) -> End {
    match generation.failure() {
        Some(failure) if is_own_fault(generation, &failure) => End::Fault(failure.text),
        Some(failure) => End::Over(failure.to_string()),
        None => End::Over("it was stopped".to_owned()),
    }
}

fn is_own_fault(generation: &Generation, failure: &Failure) -> bool {
    failure.process == generation.process()
        && failure.what == What::Fault
        && failure.told_by.is_none()
}

/// Of a generation that this process could not begin in. What may pass, a store or a broker that
/// does not answer, is no fault: all meet again.
fn not_begun(generation: &Generation, error: &StartError) -> End {
    if generation.failure().is_some() {
        return over(generation);
    }
    if !error.may_pass() {
        return End::Fault(error.to_string());
    }
    tracing::warn!(%error, "the generation cannot begin; all meet again");
    generation.leave();
    std::thread::sleep(AGAIN);
    End::Over(error.to_string())
}

impl<J: Job<N>, const N: usize> Living<J, N> {
    fn live(self) {
        while !self.told.is_stopping() {
            let floor = match self.floor() {
                Ok(Some(floor)) => floor,
                Ok(None) => return,
                // What was read may have been deleted meanwhile.
                Err(error)
                    if error.may_pass()
                        || matches!(error, StartError::Log(LogError::OutOfRange { .. })) =>
                {
                    tracing::warn!(%error, "no meeting yet; it is tried again");
                    std::thread::sleep(AGAIN);
                    continue;
                }
                Err(error) => return self.told.fault(error.to_string()),
            };
            let generation = match self.cluster.meet(floor) {
                Ok(generation) => Arc::new(generation),
                Err(MeetError::Stopped) => return,
                Err(error) => return self.told.fault(error.to_string()),
            };
            if !self.told.begins(&generation) {
                return generation.leave();
            }
            match self.turn(&generation) {
                End::Over(why) => self.told.ends(why),
                End::Fault(why) => {
                    // The others hear it before this process ends.
                    generation.fault(why.clone());
                    self.told.ends(why.clone());
                    return self.told.fault(why);
                }
            }
        }
    }

    /// What the number of the next generation must be greater than: only who leads needs to know.
    /// `None`: this process is to stop.
    fn floor(&self) -> Result<Option<u64>, StartError> {
        if self.cluster.process() != LEADER {
            return Ok(Some(0));
        }
        let store = self.home.store.as_ref().map(|(store, _)| &**store);
        let (log, installation) = (&*self.home.log, &self.home.installation);
        floor::floor(log, store, installation, || self.told.is_stopping())
    }

    /// One generation, from its first word to its end.
    fn turn(&self, generation: &Arc<Generation>) -> End {
        let Some(words) = generation.words() else { return over(generation) };
        let seat = Seat::among(Arc::clone(generation), self.home.engine.workers);
        let loaded = match seat.leads() {
            true => self.lead(&seat).map(Some),
            false => self.follow(&seat, &words),
        };
        let Loaded { begin, views, settings } = match loaded {
            Ok(Some(loaded)) => loaded,
            Ok(None) => return over(generation),
            Err(error) => return not_begun(generation, &error),
        };
        let (fed, received) = channel();
        let led = (!seat.leads()).then_some(Led { fed: received });
        let checkpoints = begin.checkpoints.clone();
        let (generation_heard, broken) = (Arc::clone(generation), Arc::clone(&self.broken));
        let ears = Ears { generation: generation_heard, fed, broken };
        let told = checkpoints.clone();
        let heard = std::thread::Builder::new()
            .name("words".into())
            .spawn(move || ears.hear(&words, told.as_deref()));
        let run = match heard {
            Ok(_) => self.home.run(seat, begin, views, led, settings),
            Err(error) => Err(StartError::Thread(error.to_string())),
        };
        let run = match run {
            Ok(run) => run,
            Err(error) => {
                if let Some(checkpoints) = checkpoints {
                    checkpoints.stop();
                }
                return not_begun(generation, &error);
            }
        };
        let engine = Arc::clone(&run.engine);
        if let Err(reason) = generation.serve(neighbour::answers(&engine, CHECKPOINT_PATIENCE)) {
            return End::Fault(reason);
        }
        self.current.set(run);
        let is_over = || generation.failure().is_some() || engine.fault().is_some();
        self.current.get().show(&self.served, is_over);
        let fault = engine.fault().filter(|_| generation.failure().is_none());
        let end = fault.map_or_else(|| over(generation), End::Fault);
        if let End::Fault(reason) = &end {
            generation.fault(reason.clone());
        }
        engine.abandon("its generation is over".to_owned());
        engine.stop();
        end
    }

    /// Loads the newest checkpoint that no process has found broken, and says which it is.
    fn lead(&self, seat: &Seat) -> Result<Loaded<N, J::Metrics>, StartError> {
        let home = &self.home;
        let settings = home.settings(home.is_partitioned_by_id());
        let views = home.views(seat);
        let Some(generation) = seat.generation() else {
            return Err(StartError::Settings("there is nobody to lead".to_owned()));
        };
        let (begin, chosen) = match &home.store {
            None => (start::origin(&*home.log, settings.workers)?, None),
            Some((store, decided)) => {
                let leading = start::Leading {
                    generation: Some(generation.number()),
                    place: seat.place(),
                    broken: self.broken.lock().clone(),
                    say: say_to_all(generation),
                };
                let of = home.of(decided, settings);
                start::lead(Arc::clone(store), &*home.log, of, &views, leading)?
            }
        };
        let said = Said::Begin(chosen, settings.partitioned_by_id);
        words::say(generation, 1..generation.processes(), &said);
        Ok(Loaded { begin, views, settings })
    }

    /// Loads what the leader says. `None`: the generation is over.
    fn follow(
        &self,
        seat: &Seat,
        words: &Receiver<Word>,
    ) -> Result<Option<Loaded<N, J::Metrics>>, StartError> {
        let Some(generation) = seat.generation() else { return Ok(None) };
        let told = begin_of(generation, words).map_err(StartError::Settings)?;
        let Some((chosen, partitioned_by_id)) = told else { return Ok(None) };
        let home = &self.home;
        let settings = home.settings(partitioned_by_id);
        let Some((store, decided)) = &home.store else {
            let (begin, views) = (start::origin(&*home.log, settings.workers)?, home.views(seat));
            return Ok(Some(Loaded { begin, views, settings }));
        };
        let mut tries_left = LOADS_MAX;
        loop {
            let views = home.views(seat);
            let following = start::Following {
                generation: generation.number(),
                place: seat.place(),
                chosen,
                say: say_to_leader(generation),
            };
            let (of, store) = (home.of(decided, settings), Arc::clone(store));
            let error = match start::follow(store, &*home.log, of, &views, following) {
                Ok(begin) => return Ok(Some(Loaded { begin, views, settings })),
                Err(error) => error,
            };
            let StartError::Load(LoadError::Chosen { .. } | LoadError::Behind { .. }) = error
            else {
                return Err(error);
            };
            tries_left -= 1;
            if generation.failure().is_some() {
                return Ok(None);
            }
            // What this process knows of the log's end may be older than what the leader knows.
            tracing::warn!(%error, tries_left, "what all begin with cannot be loaded here");
            // Only what is wrong is broken: what may pass ends the generation, and no more.
            if tries_left == 0 && error.may_pass() {
                return Err(error);
            }
            if let (0, Some(name)) = (tries_left, chosen) {
                words::say(generation, [LEADER], &Said::Broken(name, error.to_string()));
                generation.wait(CHECKPOINT_PATIENCE);
                return Ok(None);
            }
            generation.wait(AGAIN);
        }
    }
}

/// What the leader says that all begin with; `None`: the generation is over.
fn begin_of(
    generation: &Generation,
    words: &Receiver<Word>,
) -> Result<Option<(Option<ManifestName>, bool)>, String> {
    loop {
        let word = match words.recv_timeout(GLANCE) {
            Ok(word) => word,
            Err(RecvTimeoutError::Timeout) if generation.failure().is_none() => continue,
            Err(_) => return Ok(None),
        };
        match words::decode(&word.said)? {
            Said::Begin(chosen, partitioned_by_id) if word.from == LEADER => {
                return Ok(Some((chosen, partitioned_by_id)));
            }
            other => return Err(format!("process {} said {other:?} first", word.from)),
        }
    }
}

/// Takes the words of a generation and brings each where it belongs.
struct Ears {
    generation: Arc<Generation>,
    fed: Sender<Fed>,
    broken: Broken,
}

impl Ears {
    fn hear(&self, words: &Receiver<Word>, checkpoints: Option<&Checkpoints>) {
        while let Ok(word) = words.recv() {
            let taken =
                words::decode(&word.said).and_then(|said| self.take(word.from, said, checkpoints));
            if let Err(reason) = taken {
                self.generation.fault(format!("process {}: {reason}", word.from));
                return;
            }
        }
    }

    fn take(
        &self,
        from: usize,
        said: Said,
        checkpoints: Option<&Checkpoints>,
    ) -> Result<(), String> {
        let leads = self.generation.process() == LEADER;
        match (said, leads, checkpoints) {
            // The feed may be over already.
            (Said::Fed(fed), false, _) if from == LEADER => drop(self.fed.send(fed)),
            (Said::Sealed(part), true, Some(checkpoints)) if part.writer as usize == from => {
                checkpoints.sealed(part);
            }
            (Said::Ended(ended), false, Some(checkpoints)) if from == LEADER => {
                checkpoints.ended(ended);
            }
            (Said::Broken(name, reason), true, _) => {
                self.broken.lock().push(name);
                let why = format!("process {from} cannot load {name}: {reason}");
                // Not this process's fault: all meet again, and begin with another one.
                self.generation.end(from, why);
            }
            (said, ..) => return Err(format!("it said {said:?} where that is nothing to say")),
        }
        Ok(())
    }
}

fn say_to_all(generation: &Arc<Generation>) -> Box<dyn Fn(Ended) + Send + Sync> {
    let generation = Arc::downgrade(generation);
    Box::new(move |ended| {
        let Some(generation) = generation.upgrade() else { return };
        words::say(&generation, 1..generation.processes(), &Said::Ended(ended));
    })
}

fn say_to_leader(generation: &Arc<Generation>) -> Box<dyn Fn(SealedPart) + Send + Sync> {
    let generation = Arc::downgrade(generation);
    Box::new(move |part| {
        let Some(generation) = generation.upgrade() else { return };
        words::say(&generation, [LEADER], &Said::Sealed(part));
    })
}

#[cfg(test)]
mod tests;
