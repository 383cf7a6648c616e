//! The link between two members: heartbeats, commits, questions and farewells, on a connection of
//! its own beside timely's.
//!
//! # Why it is hard
//!
//! *Silence is not slowness.* A reader counts the waits of its own in which nothing came, not the
//! time on the clock: if this process was stopped for a minute, one wait has passed, and what its
//! peer sent meanwhile is still to be read. Any byte is a sign of life, so that a large answer
//! under way is not taken for silence. Heartbeats have threads of their own: workers that are slow
//! are no failure.
//!
//! *Nothing piles up.* A pulse carries the newest epochs and not each of them: however slow the
//! peer, one pulse is waiting. Questions and answers wait in a queue of [`QUEUE_BYTES_MAX`]; who
//! finds it full is told so.
//!
//! # Promises
//!
//! * A peer that is killed is found at once, one from which nothing comes within the timeout and a
//!   tick, whatever the network does with its packets.
//! * Who ends a generation says why before it closes, if the peer still takes anything.
//! * Only a frame that is whole and has the right CRC does anything.

use super::{
    failure::{Ending, Failure, What},
    frame::{self, FRAME_BYTES_MAX, HEAD_BYTES, Kind},
    rpc::Calls,
    upto::Upto,
};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// The bytes of frames that may wait for a peer, beside the one that is being written.
pub const QUEUE_BYTES_MAX: usize = 32 << 20;
/// How long the farewell may take.
const FAREWELL: Duration = Duration::from_millis(200);
const READ_BYTES: usize = 1 << 16;

/// How often a sign of life is sent, and without how many a peer is lost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rhythm {
    pub(super) heartbeat: Duration,
    pub(super) timeout: Duration,
}

impl Rhythm {
    /// How long one wait for bytes is.
    fn tick(&self) -> Duration {
        (self.timeout / 8).max(Duration::from_millis(5))
    }
}

#[derive(Default)]
struct Outgoing {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    pulse: bool,
}

/// One end of a link.
pub(super) struct Link {
    pub(super) process: usize,
    generation: u64,
    socket: TcpStream,
    outgoing: Mutex<Outgoing>,
    changed: Condvar,
    heard_ms: AtomicU64,
    ending: Arc<Ending>,
}

/// The queue to a peer is full.
#[derive(Debug)]
pub(super) struct Full;

impl Link {
    pub(super) fn new(
        process: usize,
        generation: u64,
        socket: TcpStream,
        ending: Arc<Ending>,
    ) -> Arc<Link> {
        let (outgoing, changed) = (Mutex::default(), Condvar::new());
        let heard_ms = AtomicU64::new(now_ms());
        Arc::new(Link { process, generation, socket, outgoing, changed, heard_ms, ending })
    }

    /// Starts its two threads.
    pub(super) fn start(
        self: &Arc<Link>,
        rhythm: Rhythm,
        upto: &Arc<Upto>,
        calls: &Arc<Calls>,
    ) -> io::Result<[JoinHandle<()>; 2]> {
        let process = self.process;
        let (link, says) = (Arc::clone(self), Arc::clone(upto));
        let write = move || link.write(rhythm, &says);
        let (link, upto, calls) = (Arc::clone(self), Arc::clone(upto), Arc::clone(calls));
        let read = move || link.read(rhythm, &upto, &calls);
        let name = |way: &str| std::thread::Builder::new().name(format!("link:{way}-{process}"));
        let writing = name("send").spawn(write)?;
        Ok([writing, name("recv").spawn(read)?])
    }

    /// Sends a frame when its turn comes.
    pub(super) fn send(&self, kind: Kind, body: &[u8]) -> Result<(), Full> {
        let mut outgoing = self.outgoing.lock();
        if outgoing.bytes + body.len() > QUEUE_BYTES_MAX {
            return Err(Full);
        }
        let bytes = frame::encode(kind, body);
        outgoing.bytes += bytes.len();
        outgoing.frames.push_back(bytes);
        drop(outgoing);
        self.changed.notify_one();
        Ok(())
    }

    /// Sends a pulse now, if none is waiting.
    pub(super) fn pulse(&self) {
        self.outgoing.lock().pulse = true;
        self.changed.notify_one();
    }

    /// Wakes the writing thread, so that it sees that the generation is over.
    pub(super) fn wake(&self) {
        drop(self.outgoing.lock());
        self.changed.notify_all();
    }

    /// The failure of the peer of this link.
    pub(super) fn failure(&self, what: What, text: String) -> Failure {
        let heard_ms = self.heard_ms.load(Ordering::Relaxed);
        let heard = UNIX_EPOCH + Duration::from_millis(heard_ms);
        let (generation, process) = (self.generation, self.process);
        Failure { generation, process, what, heard, told_by: None, text }
    }

    fn write(&self, rhythm: Rhythm, upto: &Upto) {
        if let Err(error) = self.write_until_over(rhythm, upto) {
            let stuck = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
            let what = if stuck { What::Silent } else { What::Closed };
            // The reader may be about to find why.
            self.ending.suspect(self.failure(what, format!("writing to it: {error}")));
        }
        if let Some(failure) = self.ending.failure() {
            self.say_farewell(&failure);
        }
    }

    fn write_until_over(&self, rhythm: Rhythm, upto: &Upto) -> io::Result<()> {
        self.socket.set_write_timeout(Some(rhythm.timeout))?;
        let mut due = Instant::now();
        while !self.ending.is_over() {
            let mut outgoing = self.outgoing.lock();
            if outgoing.frames.is_empty() && !outgoing.pulse && !self.ending.is_over() {
                self.changed.wait_until(&mut outgoing, due);
            }
            let pulse = std::mem::take(&mut outgoing.pulse) || Instant::now() >= due;
            let frame = outgoing.frames.pop_front();
            outgoing.bytes -= frame.as_ref().map_or(0, Vec::len);
            drop(outgoing);
            if pulse {
                (&self.socket).write_all(&frame::encode(Kind::Pulse, &upto.said()))?;
                due = Instant::now() + rhythm.heartbeat;
            }
            if let Some(frame) = frame {
                (&self.socket).write_all(&frame)?;
            }
        }
        Ok(())
    }

    /// Says why, in vain if the peer is gone or takes nothing, and closes.
    fn say_farewell(&self, failure: &Failure) {
        let over = frame::encode(Kind::Over, &failure.encode());
        let said = self.socket.set_write_timeout(Some(FAREWELL));
        let said = said.and_then(|()| (&self.socket).write_all(&over));
        let closed = self.socket.shutdown(std::net::Shutdown::Both);
        if let Err(error) = said.and(closed) {
            tracing::debug!(process = self.process, %error, "a farewell did not arrive");
        }
    }

    fn read(&self, rhythm: Rhythm, upto: &Upto, calls: &Calls) {
        if let Err(failure) = self.read_until_over(rhythm, upto, calls) {
            self.ending.fail(failure);
        }
    }

    fn read_until_over(&self, rhythm: Rhythm, upto: &Upto, calls: &Calls) -> Result<(), Failure> {
        let closed = |error: io::Error| self.failure(What::Closed, error.to_string());
        let tick = rhythm.tick();
        self.socket.set_read_timeout(Some(tick)).map_err(closed)?;
        let (mut bytes, mut block) = (Vec::new(), vec![0; READ_BYTES]);
        let mut silent = Duration::ZERO;
        while !self.ending.is_over() {
            match (&self.socket).read(&mut block) {
                Ok(0) => return Err(self.failure(What::Closed, "the end of its link".into())),
                Ok(n) => {
                    silent = Duration::ZERO;
                    self.heard_ms.store(now_ms(), Ordering::Relaxed);
                    bytes.extend_from_slice(&block[..n]);
                    self.take_frames(&mut bytes, upto, calls)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    silent += tick;
                    if silent > rhythm.timeout {
                        let text = format!("nothing came for {} ms", rhythm.timeout.as_millis());
                        return Err(self.failure(What::Silent, text));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(closed(error)),
            }
        }
        Ok(())
    }

    fn take_frames(&self, bytes: &mut Vec<u8>, upto: &Upto, calls: &Calls) -> Result<(), Failure> {
        let nonsense = |error: io::Error| self.failure(What::Nonsense, error.to_string());
        let mut at = 0;
        while let Some((kind, body, n)) = frame::decode(&bytes[at..]).map_err(nonsense)? {
            self.take(kind, body, upto, calls)?;
            at += n;
        }
        bytes.drain(..at);
        debug_assert!(bytes.len() <= FRAME_BYTES_MAX + HEAD_BYTES + 1);
        Ok(())
    }

    fn take(&self, kind: Kind, body: &[u8], upto: &Upto, calls: &Calls) -> Result<(), Failure> {
        let nonsense = |error: io::Error| self.failure(What::Nonsense, error.to_string());
        match kind {
            Kind::Pulse => upto.heard(self.process, body).map_err(nonsense),
            Kind::Request => calls.asked(self, body).map_err(nonsense),
            Kind::Response => calls.answered(self.process, body).map_err(nonsense),
            Kind::Word => calls.heard(self.process, body).map_err(nonsense),
            Kind::Done => {
                upto.done(self.process);
                Ok(())
            }
            Kind::Over => {
                let failure = Failure::decode(body, self.generation, self.process);
                let failure = failure.map_err(nonsense)?;
                // Who has heard it of all may leave before a slower one has.
                if failure.what == What::Finished {
                    upto.all_done();
                }
                Err(failure)
            }
            Kind::Hello | Kind::Verdict | Kind::Wait | Kind::Go | Kind::Ready | Kind::Start => {
                Err(self.failure(What::Nonsense, format!("a frame {kind:?} on a link")))
            }
        }
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
