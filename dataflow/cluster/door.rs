//! The listener of a member: who may come in, and when.
//!
//! # Why it is hard
//!
//! The port is open to whoever reaches it, while the cluster waits for exactly one connection of
//! each kind from each peer. So the accepting thread only accepts. Each connection has a thread for
//! as long as its handshake may take, of which there are [`GUESTS_MAX`]; beyond that connections
//! are closed at once, and members try again. What comes in is judged by the state of this process:
//! at a meeting, in a generation, or neither.
//!
//! # Promises
//!
//! * Nothing that a stranger sends, or does not send, reaches the cluster's state.
//! * A connection of another generation is refused, and of one generation there is one of a kind
//!   from a process.

use super::{
    handshake::{self, HandshakeError},
    identity::{Identity, Purpose, Refusal, Refused},
    secret::Secret,
};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::BTreeSet,
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Handshakes that are under way at once.
pub const GUESTS_MAX: usize = 64;
/// The wait before accepting again when the system had no descriptor or memory to give.
const AGAIN: Duration = Duration::from_millis(50);

/// Who came in.
pub(super) struct Arrived {
    pub(super) identity: Identity,
    pub(super) socket: TcpStream,
}

#[derive(Default)]
struct State {
    /// The leader waits for everyone.
    meeting: bool,
    /// The generation that is being built or runs.
    generation: Option<u64>,
    /// The newest generation that this process has been in.
    newest: u64,
    /// What came in, of this meeting or generation: one of a kind from a process.
    came: BTreeSet<(Purpose, u32)>,
    /// Of that, what nobody has taken yet.
    arrived: Vec<Arrived>,
    /// The last that was refused, and why: what a meeting that never ends shows.
    refused: Option<String>,
}

/// A listener and what it lets in.
pub(super) struct Door {
    mine: Identity,
    secret: Secret,
    patience: Duration,
    listener: TcpListener,
    state: Mutex<State>,
    changed: Condvar,
    closed: AtomicBool,
    guests: AtomicUsize,
}

impl Door {
    /// Listens; each handshake may take `patience`.
    pub(super) fn open(
        listener: TcpListener,
        mine: Identity,
        secret: Secret,
        patience: Duration,
    ) -> io::Result<(Arc<Door>, JoinHandle<()>)> {
        let state = State { newest: mine.generation, ..State::default() };
        let door = Arc::new(Door {
            mine,
            secret,
            patience,
            listener,
            state: Mutex::new(state),
            changed: Condvar::new(),
            closed: AtomicBool::new(false),
            guests: AtomicUsize::new(0),
        });
        let accepting = Arc::clone(&door);
        let thread = std::thread::Builder::new().name("cluster:accept".into());
        let thread = thread.spawn(move || accepting.accept())?;
        Ok((door, thread))
    }

    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Nobody comes in any more, and whoever waits for somebody stops.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        // Wakes the thread in `accept`.
        if let Err(error) = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both) {
            tracing::debug!(%error, "the listener was closed before");
        }
        drop(self.state.lock());
        self.changed.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn accept(self: &Arc<Door>) {
        while !self.is_closed() {
            let (socket, peer) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(_) if self.is_closed() => return,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    std::thread::sleep(AGAIN);
                    continue;
                }
            };
            if self.guests.fetch_add(1, Ordering::Relaxed) >= GUESTS_MAX {
                self.guests.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let door = Arc::clone(self);
            let guest = std::thread::Builder::new().name("cluster:guest".into());
            let guest = guest.spawn(move || {
                door.receive(socket, peer);
                door.guests.fetch_sub(1, Ordering::Relaxed);
            });
            if let Err(error) = guest {
                self.guests.fetch_sub(1, Ordering::Relaxed);
                tracing::warn!(%error, "no thread for a handshake");
            }
        }
    }

    fn receive(&self, socket: TcpStream, peer: SocketAddr) {
        let until = Instant::now() + self.patience;
        match handshake::accept(&socket, &self.secret, until, |identity| self.judge(identity)) {
            Ok(identity) => self.let_in(Arrived { identity, socket }),
            Err(HandshakeError::Refused(refusal)) if refusal.refused.is_for_now() => {
                tracing::debug!(%peer, %refusal, "a process has to come again");
            }
            Err(error) => {
                tracing::warn!(%peer, %error, "a connection was refused");
                self.state.lock().refused = Some(format!("{peer}: {error}"));
            }
        }
    }

    fn judge(&self, guest: &Identity) -> Result<Identity, Refusal> {
        self.mine.admits(guest)?;
        let state = self.state.lock();
        state.judge(guest, self.mine.process)?;
        let generation = state.generation.unwrap_or(state.newest);
        Ok(Identity { purpose: guest.purpose, generation, ..self.mine.clone() })
    }

    fn let_in(&self, arrived: Arrived) {
        let mut state = self.state.lock();
        // Between the verdict and now, the meeting or the generation may have come to its end.
        let still = state.judge(&arrived.identity, self.mine.process);
        if let Err(refusal) = still {
            tracing::debug!(%refusal, "a process came too late");
            return;
        }
        state.came.insert((arrived.identity.purpose, arrived.identity.process));
        state.arrived.push(arrived);
        self.changed.notify_all();
    }

    /// The newest generation that this process has been in.
    pub(super) fn newest(&self) -> u64 {
        self.state.lock().newest
    }

    /// The last that was refused, and why.
    pub(super) fn refused(&self) -> Option<String> {
        self.state.lock().refused.clone()
    }

    /// From now on members may present themselves.
    pub(super) fn meet(&self) {
        let mut state = self.state.lock();
        state.clear();
        state.meeting = true;
    }

    /// From now on connections of this generation come in, and no others.
    pub(super) fn begin(&self, generation: u64) {
        let mut state = self.state.lock();
        state.clear();
        state.generation = Some(generation);
        state.newest = generation;
    }

    /// A meeting, or what came of it, is over.
    pub(super) fn end(&self) {
        self.state.lock().clear();
    }

    /// This generation is over. The next meeting may have begun before this is said.
    pub(super) fn end_of(&self, generation: u64) {
        let mut state = self.state.lock();
        if state.generation == Some(generation) {
            state.clear();
        }
    }

    /// Somebody who came to the meeting is gone.
    pub(super) fn gone(&self, process: u32) {
        self.state.lock().came.remove(&(Purpose::Meet, process));
    }

    /// What came, no later than `until`.
    pub(super) fn arrivals(&self, until: Instant) -> Vec<Arrived> {
        let mut state = self.state.lock();
        if state.arrived.is_empty() && !self.is_closed() {
            self.changed.wait_until(&mut state, until);
        }
        std::mem::take(&mut state.arrived)
    }
}

impl State {
    fn clear(&mut self) {
        (self.meeting, self.generation) = (false, None);
        self.came.clear();
        self.arrived.clear();
    }

    /// Whether this one is expected now.
    fn judge(&self, guest: &Identity, me: u32) -> Result<(), Refusal> {
        let Identity { purpose, process, generation, .. } = *guest;
        let refuse = |refused, text: String| Err(Refusal::new(refused, text));
        match purpose {
            Purpose::Meet if me != 0 => {
                let text = format!("process {process} came to meet process {me}; 0 is the leader");
                return refuse(Refused::Process, text);
            }
            Purpose::Meet if !self.meeting => {
                let newest = self.newest;
                return refuse(Refused::NotNow, format!("no meeting now; generation {newest}"));
            }
            Purpose::Meet => {}
            Purpose::Link | Purpose::Data if generation < self.newest => {
                let newest = self.newest;
                let text = format!("generation {generation} is over: {newest} is the newest");
                return refuse(Refused::Generation, text);
            }
            Purpose::Link | Purpose::Data if self.generation != Some(generation) => {
                let text = format!("process {me} knows no generation {generation} yet");
                return refuse(Refused::NotNow, text);
            }
            Purpose::Link | Purpose::Data => {}
        }
        if self.came.contains(&(purpose, process)) {
            let text = format!("another process {process} is here already");
            return refuse(Refused::Present, text);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
