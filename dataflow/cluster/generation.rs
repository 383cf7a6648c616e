//! A generation: the same processes, connected, from `Start` until the first of them is lost.
//!
//! # Why it is hard
//!
//! timely cannot lose a process and offers no way to stop: its workers run until their dataflows
//! are complete, which they never are once a peer is gone. [`Generation::execute`] runs workers
//! that can be left: when the generation is over each is woken, its closure returns, its dataflows
//! are dropped, and with the streams of [`super::wire`] every thread of timely's ends by itself.
//! So the process can go to the next meeting, and what stands beside the engine stays up.
//!
//! # What bounds memory
//!
//! timely's queues between workers and sockets have no limit of their own. Its spill policies can
//! move their middle to disk, but cannot make a worker wait, so they postpone the end and do not
//! prevent it; its `refill` only says where buffers come from. What can bound the queues is the
//! feed: whoever cuts epochs counts those under way by [`Generation::visible`]. A peer that takes
//! nothing holds that back, and with it the sources, and a queue holds no more than the chunks of
//! `epochs_in_flight_max` epochs, each of which was cut at `epoch_bytes_max`. A peer that takes
//! nothing and answers nothing is lost after the timeout.

use super::{
    Cluster,
    failure::{Ending, Failure, What},
    link::{Link, Rhythm},
    meeting::Sockets,
    rpc::{CallError, Calls, Handler, Word},
    upto::Upto,
    wire::{Lost, Wire},
};
use parking_lot::Mutex;
use std::{
    any::Any,
    io,
    net::TcpStream,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock, mpsc::Receiver},
    thread::JoinHandle,
    time::{Duration, SystemTime},
};
use timely::{
    WorkerConfig,
    communication::{
        Hooks, WorkerGuards,
        allocator::{
            AllocatorBuilder, ProcessBuilder,
            zero_copy::initialize::initialize_networking_from_sockets,
        },
    },
    execute::execute_from,
    worker::Worker,
};
use trueup_operators::time::Epoch;

/// How long a worker that only waits for its dataflows to end is parked at once.
const PARK: Duration = Duration::from_millis(50);

/// The processes of a cluster, connected.
pub struct Generation {
    number: u64,
    me: usize,
    processes: usize,
    workers: usize,
    ending: Arc<Ending>,
    upto: Arc<Upto>,
    calls: Arc<Calls>,
    links: Vec<Option<Arc<Link>>>,
    data: Mutex<Option<Vec<Option<TcpStream>>>>,
    threads: Vec<JoinHandle<()>>,
}

/// Whether a worker should go on.
#[derive(Clone)]
pub struct Alive {
    ending: Arc<Ending>,
}

impl Alive {
    /// Whether the generation is over: the worker's closure returns then.
    pub fn is_over(&self) -> bool {
        self.ending.is_over()
    }
}

/// Asks other processes; may be cloned and kept. After the generation every call is
/// [`CallError::Over`].
#[derive(Clone)]
pub struct Rpc {
    calls: Arc<Calls>,
}

impl Rpc {
    /// Asks a process and waits for its answer. This process answers itself in the caller's thread.
    ///
    /// # Errors
    /// [`CallError`] says which limit was met, or what the other says.
    pub fn call(
        &self,
        process: usize,
        question: &[u8],
        within: Duration,
    ) -> Result<Vec<u8>, CallError> {
        self.calls.call(process, question, within)
    }
}

impl Generation {
    pub(super) fn start(cluster: &Cluster, sockets: Sockets) -> io::Result<Generation> {
        let settings = &cluster.settings;
        let Sockets { number, links: link_sockets, data } = sockets;
        let (me, processes) = (settings.process, settings.hosts.len());
        let ending = Arc::new(Ending::new());
        let all: Arc<OnceLock<Vec<Arc<Link>>>> = Arc::default();
        let to_pulse = Arc::clone(&all);
        let pulse = move || to_pulse.get().into_iter().flatten().for_each(|link| link.pulse());
        let upto = Arc::new(Upto::new(me, processes, Box::new(pulse)));
        let (calls, answering) = Calls::start(me, settings.rpc, Arc::clone(&ending))?;
        // They end with their last question, which may take its time: nobody waits for them.
        drop(answering);

        let mut links = Vec::new();
        for (process, socket) in link_sockets.into_iter().enumerate() {
            let Some(socket) = socket else {
                links.push(None);
                continue;
            };
            socket.set_nodelay(true)?;
            links.push(Some(Link::new(process, number, socket, Arc::clone(&ending))));
        }
        let mut generation = Generation {
            number,
            me,
            processes,
            workers: settings.threads,
            ending,
            upto,
            calls,
            links,
            data: Mutex::new(Some(data)),
            threads: Vec::new(),
        };
        generation.arrange(cluster);
        // A member has news for the leader, the leader for all.
        let to = if me == 0 { &generation.links[..] } else { &generation.links[..1] };
        let to = to.iter().flatten().cloned().collect();
        assert!(all.set(to).is_ok(), "a generation has one set of links");
        generation.calls.connect(generation.links.clone());
        let rhythm = Rhythm { heartbeat: settings.heartbeat, timeout: settings.timeout };
        for link in generation.links.iter().flatten() {
            let threads = link.start(rhythm, &generation.upto, &generation.calls)?;
            generation.threads.extend(threads);
        }
        Ok(generation)
    }

    /// What happens when it is over.
    fn arrange(&self, cluster: &Cluster) {
        let (links, upto, calls) = (self.links.clone(), self.upto.clone(), self.calls.clone());
        let (door, number) = (Arc::clone(&cluster.door), self.number);
        self.ending.then(move || {
            door.end_of(number);
            calls.end();
            upto.wake();
            links.iter().flatten().for_each(|link| link.wake());
        });
    }

    /// Its number: greater than that of any before.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// This process.
    pub fn process(&self) -> usize {
        self.me
    }

    /// How many processes there are.
    pub fn processes(&self) -> usize {
        self.processes
    }

    /// Why it is over, if it is.
    pub fn failure(&self) -> Option<Failure> {
        self.ending.failure()
    }

    /// Waits until it is over, no longer than `patience`; why.
    pub fn wait(&self, patience: Duration) -> Option<Failure> {
        self.ending.wait(patience)
    }

    /// This process cannot go on: all others are told why.
    pub fn fault(&self, text: impl Into<String>) {
        self.ending.fail(self.own(What::Fault, text.into()));
    }

    /// Ends it because of another process, which has said why; all others are told.
    pub fn end(&self, process: usize, text: impl Into<String>) {
        self.ending.fail(own(self.number, process, What::Fault, text.into()));
    }

    /// Ends it because this process leaves; the others are told. Dropping it does so too.
    pub fn leave(&self) {
        let what = if self.upto.is_all_done() { What::Finished } else { What::Left };
        self.ending.fail(self.own(what, "it stopped".into()));
    }

    fn own(&self, what: What, text: String) -> Failure {
        own(self.number, self.me, what, text)
    }

    /// All workers of this process have delivered up to an epoch. A lesser one than before says
    /// nothing.
    pub fn commit(&self, epoch: Epoch) {
        self.upto.commit(epoch);
    }

    /// What each process has committed, as far as this one knows; the leader knows of all, a member
    /// of those that it is linked to, as of their last heartbeat. 0 is none.
    pub fn committed(&self) -> Vec<Epoch> {
        self.upto.committed()
    }

    /// Up to which epoch all processes have committed, as the leader says; 0 is none.
    pub fn visible(&self) -> Epoch {
        self.upto.visible()
    }

    /// Waits until an epoch is visible; `false` when the generation or the time is over before.
    pub fn wait_visible(&self, epoch: Epoch, patience: Duration) -> bool {
        self.upto.wait_visible(epoch, patience, || self.ending.is_over())
    }

    /// Whether it goes on, for threads that outlive their turn.
    pub fn alive(&self) -> Alive {
        Alive { ending: Arc::clone(&self.ending) }
    }

    /// To ask other processes.
    pub fn rpc(&self) -> Rpc {
        Rpc { calls: Arc::clone(&self.calls) }
    }

    /// Says something to another process: it comes there after what was said before.
    ///
    /// # Errors
    /// When there is no such process, or its queue is full: it takes nothing.
    pub fn say(&self, process: usize, word: &[u8]) -> Result<(), CallError> {
        let link = self.links.get(process).and_then(Option::as_ref);
        let link = link.ok_or(CallError::NoProcess(process))?;
        link.send(super::frame::Kind::Word, word).map_err(|_| CallError::Busy(process))
    }

    /// What the others say; ends when the generation is over. `None` if it was taken before.
    pub fn words(&self) -> Option<Receiver<Word>> {
        self.calls.words()
    }

    /// Answers the questions of other processes with this. Until then they are refused. It is kept
    /// as long as the generation, so it must not keep the generation.
    ///
    /// # Errors
    /// When they are answered already.
    pub fn serve(&self, handler: Handler) -> Result<(), String> {
        self.calls.serve(handler)
    }

    /// Starts the workers of this process: `f` in each of them, as [`timely::execute`] does. `f`
    /// returns when [`Alive::is_over`]; dataflows that are left then are dropped. Before, a worker
    /// whose `f` has returned goes on until its dataflows are complete.
    ///
    /// # Errors
    /// When they were started before, or threads do not start.
    pub fn execute<T, F>(&self, config: WorkerConfig, f: F) -> io::Result<Workers<T>>
    where
        T: Send + 'static,
        F: Fn(&mut Worker, &Alive) -> T + Send + Sync + 'static,
    {
        let sockets = self.data.lock().take();
        let sockets = sockets.ok_or_else(|| io::Error::other("the workers were started before"))?;
        let mut wires = Vec::new();
        for (process, socket) in sockets.into_iter().enumerate() {
            wires.push(socket.map(|socket| self.wire(process, socket)).transpose()?);
        }
        let (builders, communication) = self.allocators(wires)?;
        self.ending.workers_start(self.workers);
        let alive = self.alive();
        let (number, me) = (self.number, self.me);
        let run = move |worker: &mut Worker| {
            let _leaving = Leaving { ending: Arc::clone(&alive.ending), number, me };
            alive.ending.wakes(std::thread::current());
            let result = f(worker, &alive);
            while worker.has_dataflows() && !alive.is_over() {
                worker.step_or_park(Some(PARK));
            }
            let left = worker.installed_dataflows();
            left.into_iter().for_each(|dataflow| worker.drop_dataflow(dataflow));
            result
        };
        let guards = execute_from(builders, communication, config, run);
        guards.map(|guards| Workers { guards }).map_err(io::Error::other)
    }

    fn wire(&self, process: usize, socket: TcpStream) -> io::Result<Wire> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(None)?;
        socket.set_write_timeout(None)?;
        self.ending.shuts(socket.try_clone()?);
        let link = self.links[process].clone();
        let lost: Lost = Arc::new(move |ending: &Ending, text: String| {
            if let Some(link) = &link {
                ending.suspect(link.failure(What::Closed, format!("timely's connection: {text}")));
            }
        });
        Ok(Wire::new(socket, Arc::clone(&self.ending), lost))
    }

    fn allocators(
        &self,
        wires: Vec<Option<Wire>>,
    ) -> io::Result<(Vec<AllocatorBuilder>, Box<dyn Any + Send>)> {
        let hooks = Hooks::default();
        let (refill, spill) = (hooks.refill.clone(), hooks.spill.clone());
        let builders = ProcessBuilder::new_typed_vector(self.workers, refill, spill);
        if self.processes == 1 {
            let builders = builders.into_iter().map(AllocatorBuilder::Process).collect();
            return Ok((builders, Box::new(())));
        }
        let (builders, guard) =
            initialize_networking_from_sockets(builders, wires, self.me, self.workers, hooks)?;
        Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), Box::new(guard)))
    }

    /// The workers of this process have come to their end as they should: waits until those of all
    /// have, no longer than `patience`. A process that leaves before ends the others' work.
    pub fn finish(&self, patience: Duration) -> bool {
        self.upto.done(self.me);
        for link in self.links.iter().flatten() {
            if link.send(super::frame::Kind::Done, &[]).is_err() {
                return false;
            }
        }
        self.upto.wait_done(patience, || self.ending.is_over())
    }
}

impl Drop for Generation {
    /// Leaves, if it is not over; the others are told.
    fn drop(&mut self) {
        self.leave();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of a link ended by a panic");
            }
        }
    }
}

fn own(generation: u64, process: usize, what: What, text: String) -> Failure {
    Failure { generation, process, what, heard: SystemTime::now(), told_by: None, text }
}

/// Says that a worker reads messages no more, however it came to that.
struct Leaving {
    ending: Arc<Ending>,
    number: u64,
    me: usize,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = "a worker ended by a panic".to_owned();
            self.ending.fail(own(self.number, self.me, What::Fault, text));
        }
        self.ending.worker_leaves();
    }
}

/// The workers of this process. Dropping it waits for them, as [`Workers::join`] does.
pub struct Workers<T: Send + 'static> {
    guards: WorkerGuards<T>,
}

impl<T: Send + 'static> Workers<T> {
    /// Waits for the workers and timely's threads; what each worker returned.
    ///
    /// # Errors
    /// The first panic.
    pub fn join(self) -> Result<Vec<T>, String> {
        // timely's guard panics where a thread of the network did.
        let joined = catch_unwind(AssertUnwindSafe(|| self.guards.join()));
        joined
            .map_err(|_| "a thread of the network ended by a panic".to_owned())?
            .into_iter()
            .collect()
    }
}
