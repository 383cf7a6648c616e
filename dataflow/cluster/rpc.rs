//! Questions to other processes: bytes there, bytes back, within a time.
//!
//! Who owns an event, a row or a part of a checkpoint is one process; whoever is asked for it asks
//! there. The link's reader never waits: what is asked of this process is put into a queue for a
//! few threads, and what does not fit is answered *busy* at once.
//!
//! | what | limit | at the limit |
//! |---|---|---|
//! | calls to one process that wait for their answer | [`RpcLimits::calls_max`] | [`CallError::Busy`] |
//! | questions that wait to be answered here | [`RpcLimits::waiting_max`] | [`CallError::Refused`] there |
//! | a question | [`RpcLimits::request_bytes_max`] | [`CallError::TooLarge`] |
//! | an answer | [`RpcLimits::response_bytes_max`] | [`CallError::Refused`] there |
//! | frames that wait for a process | [`super::QUEUE_BYTES_MAX`] | [`CallError::Busy`]; an answer is dropped, and its caller [`CallError::Late`] |
//! | the time | the caller's | [`CallError::Late`]; an answer that comes later is dropped |
//!
//! A handler that panics loses its question, not its thread.

use super::{
    failure::{Ending, Failure},
    frame::{FRAME_BYTES_MAX, Kind, invalid, number},
    link::Link,
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Answers the questions of other processes: who asks, and what.
pub type Handler = Arc<dyn Fn(usize, &[u8]) -> Result<Vec<u8>, String> + Send + Sync>;

/// How many questions there may be, and how large.
#[derive(Clone, Copy, Debug)]
pub struct RpcLimits {
    /// Calls to one process that wait for their answer.
    pub calls_max: usize,
    /// Questions of others that wait here, beside those that are being answered.
    pub waiting_max: usize,
    /// Threads that answer.
    pub threads: usize,
    /// The bytes of a question.
    pub request_bytes_max: usize,
    /// The bytes of an answer.
    pub response_bytes_max: usize,
}

impl Default for RpcLimits {
    /// 64 calls a process, 64 waiting, four threads, a question of 1 MiB and an answer of 8 MiB.
    fn default() -> RpcLimits {
        RpcLimits {
            calls_max: 64,
            waiting_max: 64,
            threads: 4,
            request_bytes_max: 1 << 20,
            response_bytes_max: 8 << 20,
        }
    }
}

impl RpcLimits {
    /// Whether the limits can be kept.
    pub(super) fn check(&self) -> Result<(), String> {
        let largest = FRAME_BYTES_MAX - 9;
        for (name, bytes) in
            [("request", self.request_bytes_max), ("response", self.response_bytes_max)]
        {
            if bytes > largest {
                return Err(format!("{name}_bytes_max is {bytes}; a frame holds {largest}"));
            }
        }
        match self.threads.min(self.calls_max).min(self.waiting_max) {
            0 => Err("calls_max, waiting_max and threads are 1 or more".into()),
            _ => Ok(()),
        }
    }
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There is no such process.
    #[error("there is no process {0}")]
    NoProcess(usize),
    /// As many calls as there may be are waiting for that process, or its queue is full.
    #[error("process {0} is asked too much; try again later")]
    Busy(usize),
    /// The question is too large.
    #[error("a question of {0} bytes; the limit is {1}")]
    TooLarge(usize, usize),
    /// There was no answer in time.
    #[error("process {process} did not answer within {within_ms} ms")]
    Late {
        /// The process that was asked.
        process: usize,
        /// What the caller gave it.
        within_ms: u128,
    },
    /// The process says why it gives no answer.
    #[error("process {0}: {1}")]
    Refused(usize, String),
    /// The generation ended.
    #[error("{0}")]
    Over(Box<Failure>),
}

type Answer = Result<Vec<u8>, String>;

/// The most words of others that wait to be taken. Who says words bounds how many are on their way
/// by what it has heard back, so that more than these are none that a member says.
pub const WORDS_MAX: usize = 4_096;

/// What another process says, in the order in which it said it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Who.
    pub from: usize,
    /// What.
    pub said: Vec<u8>,
}

/// A question that waits for a thread.
struct Asked {
    from: usize,
    number: u64,
    question: Vec<u8>,
}

/// Calls that wait for their answer, by process and number.
type Pending = HashMap<(usize, u64), SyncSender<Answer>>;

/// The questions of a generation, both ways.
pub(super) struct Calls {
    me: usize,
    limits: RpcLimits,
    links: OnceLock<Vec<Option<Arc<Link>>>>,
    handler: OnceLock<Handler>,
    next: AtomicU64,
    pending: Mutex<Pending>,
    /// `None` when the generation is over.
    queue: Mutex<Option<SyncSender<Asked>>>,
    words: Mutex<Option<SyncSender<Word>>>,
    /// Until someone takes it.
    heard: Mutex<Option<Receiver<Word>>>,
    ending: Arc<Ending>,
}

impl Calls {
    /// And the threads that answer.
    pub(super) fn start(
        me: usize,
        limits: RpcLimits,
        ending: Arc<Ending>,
    ) -> io::Result<(Arc<Calls>, Vec<JoinHandle<()>>)> {
        let (queue, asked) = sync_channel(limits.waiting_max);
        let (words, heard) = sync_channel(WORDS_MAX);
        let calls = Arc::new(Calls {
            me,
            limits,
            links: OnceLock::new(),
            handler: OnceLock::new(),
            next: AtomicU64::new(1),
            pending: Mutex::default(),
            queue: Mutex::new(Some(queue)),
            words: Mutex::new(Some(words)),
            heard: Mutex::new(Some(heard)),
            ending,
        });
        let asked = Arc::new(Mutex::new(asked));
        let mut threads = Vec::new();
        for i in 0..limits.threads {
            let (calls, asked) = (Arc::clone(&calls), Arc::clone(&asked));
            let builder = std::thread::Builder::new().name(format!("link:answer-{i}"));
            threads.push(builder.spawn(move || calls.answer_all(&asked))?);
        }
        Ok((calls, threads))
    }

    pub(super) fn connect(&self, links: Vec<Option<Arc<Link>>>) {
        // Once per generation: it is made by one thread.
        assert!(self.links.set(links).is_ok(), "a generation has one set of links");
    }

    /// From now on questions are answered; before, they are refused.
    pub(super) fn serve(&self, handler: Handler) -> Result<(), String> {
        self.handler.set(handler).map_err(|_| "questions are answered already".to_owned())
    }

    pub(super) fn call(
        &self,
        process: usize,
        question: &[u8],
        within: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let limit = self.limits.request_bytes_max;
        if question.len() > limit {
            return Err(CallError::TooLarge(question.len(), limit));
        }
        if process == self.me {
            return self.answer(process, question).map_err(|e| CallError::Refused(process, e));
        }
        let links = self.links.get().map_or(&[][..], Vec::as_slice);
        let Some(Some(link)) = links.get(process) else {
            return Err(CallError::NoProcess(process));
        };
        let (number, answer) = self.expect(process)?;
        let mut body = number.to_le_bytes().to_vec();
        body.extend(question);
        let sent = link.send(Kind::Request, &body);
        let answered = match sent {
            Ok(()) => answer.recv_timeout(within),
            Err(_) => {
                self.pending.lock().remove(&(process, number));
                return Err(CallError::Busy(process));
            }
        };
        self.pending.lock().remove(&(process, number));
        match answered {
            Ok(answer) => answer.map_err(|e| CallError::Refused(process, e)),
            Err(RecvTimeoutError::Timeout) => {
                Err(CallError::Late { process, within_ms: within.as_millis() })
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.over(process)),
        }
    }

    /// A number for a question, and where its answer will come.
    fn expect(&self, process: usize) -> Result<(u64, Receiver<Answer>), CallError> {
        let (sender, answer) = sync_channel(1);
        let mut pending = self.pending.lock();
        // Under the lock, because `end` clears what is pending after the generation is over.
        if self.ending.is_over() {
            return Err(self.over(process));
        }
        if pending.keys().filter(|(to, _)| *to == process).count() >= self.limits.calls_max {
            return Err(CallError::Busy(process));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        pending.insert((process, number), sender);
        Ok((number, answer))
    }

    fn over(&self, process: usize) -> CallError {
        match self.ending.failure() {
            Some(failure) => CallError::Over(Box::new(failure)),
            None => CallError::Refused(process, "its link was lost".into()),
        }
    }

    /// A process has answered.
    pub(super) fn answered(&self, process: usize, body: &[u8]) -> io::Result<()> {
        let (number, rest) = number(body)?;
        let answer = match rest.split_first() {
            Some((0, answer)) => Ok(answer.to_vec()),
            Some((1, text)) => Err(String::from_utf8_lossy(text).into_owned()),
            _ => return Err(invalid("an answer that is neither one nor a refusal".into())),
        };
        // Nobody waits for what is late.
        if let Some(waiting) = self.pending.lock().remove(&(process, number)) {
            drop(waiting.try_send(answer));
        }
        Ok(())
    }

    /// A process asks.
    pub(super) fn asked(&self, link: &Link, body: &[u8]) -> io::Result<()> {
        let (number, question) = number(body)?;
        if question.len() > self.limits.request_bytes_max {
            return Err(invalid(format!("a question of {} bytes", question.len())));
        }
        let asked = Asked { from: link.process, number, question: question.to_vec() };
        let queue = self.queue.lock().clone();
        let why = match queue.map(|queue| queue.try_send(asked)) {
            Some(Ok(())) => return Ok(()),
            Some(Err(TrySendError::Full(_))) => "asked too much; try again later",
            Some(Err(TrySendError::Disconnected(_))) | None => "its generation is over",
        };
        respond(link, number, Err(why.into()));
        Ok(())
    }

    /// A process says a word.
    pub(super) fn heard(&self, process: usize, body: &[u8]) -> io::Result<()> {
        let Some(words) = self.words.lock().clone() else { return Ok(()) };
        let word = Word { from: process, said: body.to_vec() };
        match words.try_send(word) {
            // Nobody listens any more.
            Ok(()) | Err(TrySendError::Disconnected(_)) => Ok(()),
            Err(TrySendError::Full(_)) => {
                Err(invalid(format!("more than {WORDS_MAX} words that nobody has taken yet")))
            }
        }
    }

    /// Where the words of the others come; once.
    pub(super) fn words(&self) -> Option<Receiver<Word>> {
        self.heard.lock().take()
    }

    /// The generation is over: nobody waits any more, and the threads come to their end.
    pub(super) fn end(&self) {
        self.pending.lock().clear();
        self.queue.lock().take();
        self.words.lock().take();
    }

    fn answer_all(&self, asked: &Mutex<Receiver<Asked>>) {
        loop {
            let next = asked.lock().recv();
            let Ok(Asked { from, number, question }) = next else { return };
            if self.ending.is_over() {
                continue;
            }
            let answer = self.answer(from, &question);
            if let Some(Some(link)) = self.links.get().and_then(|links| links.get(from)) {
                respond(link, number, answer);
            }
        }
    }

    fn answer(&self, from: usize, question: &[u8]) -> Answer {
        let Some(handler) = self.handler.get() else {
            return Err("it is not ready for questions yet".into());
        };
        let answer = catch_unwind(AssertUnwindSafe(|| handler(from, question)))
            .unwrap_or_else(|_| Err("the question ended by a panic".into()))?;
        let (n, limit) = (answer.len(), self.limits.response_bytes_max);
        match n > limit {
            true => Err(format!("the answer has {n} bytes; the limit is {limit}")),
            false => Ok(answer),
        }
    }
}

/// The longest reason for no answer.
const REASON_BYTES_MAX: usize = 1024;

fn respond(link: &Link, number: u64, answer: Answer) {
    let mut body = number.to_le_bytes().to_vec();
    match answer {
        Ok(answer) => {
            body.push(0);
            body.extend(answer);
        }
        Err(text) => {
            body.push(1);
            body.extend(&text.as_bytes()[..text.floor_char_boundary(REASON_BYTES_MAX)]);
        }
    }
    if link.send(Kind::Response, &body).is_err() {
        // The caller's time runs out; the peer takes too little to be told more.
        tracing::warn!(process = link.process, "an answer was dropped: the queue is full");
    }
}
