//! The end of a generation: the first failure decides, everyone is told, and all threads that wait
//! for something of this generation are woken.
//!
//! # Why it is hard
//!
//! A lost peer shows in many places at once: a reset on timely's socket, silence on the link,
//! another member that has given up earlier and closed everything. What an operator needs is the
//! one that came first, so a member that gives up says why (`Over`) before it closes, and who is
//! told so names the process that failed and not the messenger.
//!
//! ```text
//! Over:  u32 process   that failed
//!        u8  what      1 closed, 2 silent, 3 left, 4 fault, 5 nonsense, 6 finished
//!        u64 heard_ms  when it was heard last, ms since 1970
//!        text          more about it, UTF-8
//! ```

use super::frame::{invalid, number};
use parking_lot::{Condvar, Mutex};
use std::{
    fmt, io,
    net::{Shutdown, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread::Thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const TEXT_BYTES_MAX: usize = 1024;
/// How long a closed socket of timely's waits for the link to say why.
const GRACE: Duration = Duration::from_millis(200);

/// What happened to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum What {
    /// Its connection was closed or reset: it was killed, or its machine was.
    Closed = 1,
    /// Nothing came from it for the timeout: it is stopped, or the network swallows all.
    Silent = 2,
    /// It said that it leaves.
    Left = 3,
    /// It said that it cannot go on, and why.
    Fault = 4,
    /// It sent what no member sends.
    Nonsense = 5,
    /// Its workers have come to their end as they should, and those of all others: no failure.
    Finished = 6,
}

impl What {
    fn of(code: u8) -> Option<What> {
        use What::{Closed, Fault, Finished, Left, Nonsense, Silent};
        let all = [Closed, Silent, Left, Fault, Nonsense, Finished];
        all.into_iter().find(|what| *what as u8 == code)
    }
}

/// Why a generation is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The generation.
    pub generation: u64,
    /// The process that failed; this one, if the others say so or if it has a fault itself.
    pub process: usize,
    /// What happened to it.
    pub what: What,
    /// When it was heard last.
    pub heard: SystemTime,
    /// The process that found it, if it was another.
    pub told_by: Option<usize>,
    /// More about it.
    pub text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { generation, process, what, heard, told_by, text } = self;
        let what = match what {
            What::Closed => "closed its connection",
            What::Silent => "is silent",
            What::Left => "has left",
            What::Fault => "has a fault",
            What::Finished => "has finished, as all have",
            What::Nonsense => "sent what no member sends",
        };
        let ms = heard.elapsed().unwrap_or_default().as_millis();
        write!(f, "generation {generation} is over: process {process} {what}: {text}")?;
        write!(f, " (last heard {ms} ms ago)")?;
        match told_by {
            Some(by) => write!(f, ", as process {by} says"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

impl Failure {
    pub(super) fn encode(&self) -> Vec<u8> {
        let ms = self.heard.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let end = self.text.floor_char_boundary(TEXT_BYTES_MAX);
        let mut bytes = (self.process as u32).to_le_bytes().to_vec();
        bytes.push(self.what as u8);
        bytes.extend(ms.to_le_bytes());
        bytes.extend(&self.text.as_bytes()[..end]);
        bytes
    }

    /// As process `by` of `generation` told it.
    pub(super) fn decode(bytes: &[u8], generation: u64, by: usize) -> io::Result<Failure> {
        let short = || invalid(format!("a failure of {} bytes is not whole", bytes.len()));
        let (process, rest) = bytes.split_first_chunk::<4>().ok_or_else(short)?;
        let process = u32::from_le_bytes(*process) as usize;
        let (&code, rest) = rest.split_first().ok_or_else(short)?;
        let what = What::of(code).ok_or_else(|| invalid(format!("a failure of kind {code}")))?;
        let (heard_ms, text) = number(rest)?;
        let heard = UNIX_EPOCH.checked_add(Duration::from_millis(heard_ms)).unwrap_or(UNIX_EPOCH);
        let told_by = (by != process).then_some(by);
        let text = String::from_utf8_lossy(text).into_owned();
        Ok(Failure { generation, process, what, heard, told_by, text })
    }
}

/// What is done once when a generation is over.
type Then = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    failure: Option<Failure>,
    then: Vec<Then>,
    /// Sockets that are shut when it is over.
    sockets: Vec<TcpStream>,
    /// Threads that may be parked.
    parked: Vec<Thread>,
    /// Workers that were started and have not come to their end.
    workers: usize,
}

/// What all threads of a generation share: whether it is over, and why.
pub(super) struct Ending {
    over: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

impl Ending {
    pub(super) fn new() -> Ending {
        let (over, state) = (AtomicBool::new(false), Mutex::default());
        Ending { over, state, changed: Condvar::new() }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        self.state.lock().failure.clone()
    }

    /// The generation is over; only the first to say so is heard.
    pub(super) fn fail(&self, failure: Failure) {
        let mut state = self.state.lock();
        if state.failure.is_some() {
            return;
        }
        tracing::warn!(%failure, "a generation ends");
        state.failure = Some(failure);
        self.over.store(true, Ordering::Release);
        for socket in state.sockets.drain(..) {
            shut(&socket);
        }
        state.parked.drain(..).for_each(|thread| thread.unpark());
        let then = std::mem::take(&mut state.then);
        drop(state);
        self.changed.notify_all();
        then.into_iter().for_each(|then| then());
    }

    /// Does this when the generation is over, in the thread that finds it.
    pub(super) fn then(&self, then: impl FnOnce() + Send + 'static) {
        let mut state = self.state.lock();
        if state.failure.is_none() {
            state.then.push(Box::new(then));
            return;
        }
        drop(state);
        then();
    }

    /// Someone may be lost, but another may be about to say why: it is given a moment to.
    pub(super) fn suspect(&self, failure: Failure) {
        if self.wait(GRACE).is_none() {
            self.fail(failure);
        }
    }

    /// Shuts this socket when the generation is over.
    pub(super) fn shuts(&self, socket: TcpStream) {
        let mut state = self.state.lock();
        match state.failure {
            Some(_) => shut(&socket),
            None => state.sockets.push(socket),
        }
    }

    /// Wakes this thread when the generation is over.
    pub(super) fn wakes(&self, thread: Thread) {
        let mut state = self.state.lock();
        match state.failure {
            Some(_) => thread.unpark(),
            None => state.parked.push(thread),
        }
    }

    /// Waits until the generation is over, no longer than `patience`.
    pub(super) fn wait(&self, patience: Duration) -> Option<Failure> {
        let until = Instant::now() + patience;
        let mut state = self.state.lock();
        while state.failure.is_none() {
            if self.changed.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        state.failure.clone()
    }

    pub(super) fn workers_start(&self, workers: usize) {
        self.state.lock().workers += workers;
    }

    pub(super) fn worker_leaves(&self) {
        self.state.lock().workers -= 1;
        self.changed.notify_all();
    }

    /// Waits until the generation is over and no worker reads messages any more.
    pub(super) fn wait_for_workers(&self) {
        let mut state = self.state.lock();
        while state.failure.is_none() || state.workers > 0 {
            self.changed.wait(&mut state);
        }
    }
}

/// A socket that the peer has closed already cannot be shut, and need not.
fn shut(socket: &TcpStream) {
    if let Err(error) = socket.shutdown(Shutdown::Both) {
        tracing::debug!(%error, "a socket was closed before");
    }
}
