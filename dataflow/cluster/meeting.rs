//! How a generation begins: everyone comes to the leader, the leader numbers it, everyone connects
//! to everyone, and all start or none.
//!
//! ```text
//! member                              leader (process 0)
//!   connect, Meet, newest I was in ─▶   … until everyone is here; Wait meanwhile
//!                                       number = 1 + the greatest that anyone knows, on disk
//!   on disk                        ◀─ Go number
//!   Data to every process below, Link to every one below but 0; those above come here
//!   Ready                          ─▶   all ready
//!                                  ◀─ Start
//! ```
//!
//! The connection of the meeting stays as the link to the leader. Whatever fails before `Start`
//! spends the number: everyone lets go of what it has and comes to the next meeting, whose number
//! is greater. So no two generations share a number, and none consists of processes that mean
//! different ones.
//!
//! # Promises
//!
//! * A step with a peer is over within a bounded time; the meeting lasts as long as the settings
//!   allow, because machines start when they start.
//! * A process that can never be let in is told so with both values, and gives up.

use super::{
    Cluster, MeetError,
    door::Arrived,
    frame::{Kind, Until, invalid, number},
    handshake::{self, HandshakeError},
    identity::{Identity, Purpose, Refusal, Refused},
};
use std::{
    io,
    net::{TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How often who waits looks whether something has changed that does not wake it.
const GLANCE: Duration = Duration::from_millis(20);
const BODY_BYTES_MAX: usize = 64;

/// The sockets of a generation, by process; none at this one's own place.
pub(super) struct Sockets {
    pub(super) number: u64,
    pub(super) links: Vec<Option<TcpStream>>,
    pub(super) data: Vec<Option<TcpStream>>,
}

/// Why an attempt did not become a generation.
enum Failed {
    /// The next one may.
    Attempt(String),
    /// None will.
    Meeting(MeetError),
}

impl From<MeetError> for Failed {
    fn from(error: MeetError) -> Failed {
        Failed::Meeting(error)
    }
}

impl Failed {
    /// Of a step that has a deadline of its own: that ends the attempt and not the meeting.
    fn of_step(error: MeetError) -> Failed {
        match error {
            MeetError::Late { why } => Failed::Attempt(why),
            error => Failed::Meeting(error),
        }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        Failed::Attempt(error.to_string())
    }
}

impl Cluster {
    /// Comes to meetings until a generation begins.
    pub(super) fn gather(&self, floor: u64) -> Result<Sockets, MeetError> {
        let until = self.settings.patience.map(|patience| Instant::now() + patience);
        loop {
            let attempt = match self.settings.process {
                0 => self.lead(floor, until),
                _ => self.follow(until),
            };
            let why = match attempt {
                Ok(sockets) => return Ok(sockets),
                Err(Failed::Meeting(error)) => {
                    self.door.end();
                    return Err(error);
                }
                Err(Failed::Attempt(why)) => why,
            };
            self.door.end();
            self.check(until, &why)?;
            tracing::info!(why, "the meeting begins anew");
            std::thread::sleep(BACKOFF_MIN);
        }
    }

    /// Whether to go on.
    fn check(&self, until: Option<Instant>, why: &str) -> Result<(), MeetError> {
        if self.door.is_closed() {
            return Err(MeetError::Stopped);
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Err(MeetError::Late { why: why.to_owned() });
        }
        Ok(())
    }

    fn empty(&self) -> Vec<Option<TcpStream>> {
        self.settings.hosts.iter().map(|_| None).collect()
    }

    fn lead(&self, floor: u64, until: Option<Instant>) -> Result<Sockets, Failed> {
        self.door.meet();
        let (mut links, newest) = self.wait_for_all(until)?;
        let spent = newest.max(floor).max(self.door.newest());
        let number = spent + 1;
        self.record(number)?;
        self.door.begin(number);
        let deadline = Instant::now() + self.settings.build_timeout;
        for link in links.iter().flatten() {
            Until::new(link, deadline).send(Kind::Go, &number.to_le_bytes())?;
        }
        let mut data = self.empty();
        self.collect(&mut data, &mut self.empty(), &links, deadline)?;
        for link in links.iter().flatten() {
            Until::new(link, deadline).expect(Kind::Ready, BODY_BYTES_MAX)?;
        }
        for link in links.iter_mut().flatten() {
            Until::new(link, deadline).send(Kind::Start, &[])?;
        }
        Ok(Sockets { number, links, data })
    }

    /// Waits until every member is here; their connections, and the newest generation of any.
    fn wait_for_all(
        &self,
        until: Option<Instant>,
    ) -> Result<(Vec<Option<TcpStream>>, u64), Failed> {
        let mut here = self.empty();
        let mut newest = 0;
        let mut due = Instant::now();
        loop {
            for Arrived { identity, socket } in self.door.arrivals(Instant::now() + GLANCE) {
                tracing::info!(process = identity.process, "a process is here");
                newest = newest.max(identity.generation);
                here[identity.process as usize] = Some(socket);
            }
            let wait = Instant::now() >= due;
            for (process, place) in here.iter_mut().enumerate() {
                let Some(socket) = place else { continue };
                let told = !wait || {
                    let until = Instant::now() + self.settings.heartbeat;
                    Until::new(socket, until).send(Kind::Wait, &[]).is_ok()
                };
                if !told || is_closed(socket) {
                    tracing::info!(process, "a process that was here is gone");
                    *place = None;
                    self.door.gone(process as u32);
                }
            }
            if wait {
                due = Instant::now() + self.settings.heartbeat;
            }
            let missing: Vec<usize> = (1..here.len()).filter(|i| here[*i].is_none()).collect();
            if missing.is_empty() {
                return Ok((here, newest));
            }
            let refused = self.door.refused().map(|r| format!("; refused was {r}"));
            let why = format!("these are missing: {missing:?}{}", refused.unwrap_or_default());
            self.check(until, &why)?;
        }
    }

    fn follow(&self, until: Option<Instant>) -> Result<Sockets, Failed> {
        let leader = self.connect(0, Purpose::Meet, self.door.newest(), until)?;
        let number = self.wait_for_go(&leader, until)?;
        if number <= self.door.newest() {
            let newest = self.door.newest();
            return Err(Failed::Attempt(format!(
                "the leader calls generation {number} after {newest}"
            )));
        }
        self.record(number)?;
        self.door.begin(number);
        let deadline = Instant::now() + self.settings.build_timeout;
        let (mut links, mut data) = (self.empty(), self.empty());
        links[0] = Some(leader);
        for process in 0..self.settings.process {
            data[process] = Some(self.connect(process, Purpose::Data, number, Some(deadline))?);
            if process > 0 {
                links[process] =
                    Some(self.connect(process, Purpose::Link, number, Some(deadline))?);
            }
        }
        let leader = [links[0].take()];
        self.collect(&mut data, &mut links, &leader, deadline)?;
        let [leader] = leader;
        links[0] = leader;
        for leader in links[..1].iter().flatten() {
            let mut leader = Until::new(leader, deadline);
            leader.send(Kind::Ready, &[])?;
            leader.expect(Kind::Start, BODY_BYTES_MAX)?;
        }
        Ok(Sockets { number, links, data })
    }

    /// What the leader calls, while it says that it waits.
    fn wait_for_go(&self, leader: &TcpStream, until: Option<Instant>) -> Result<u64, Failed> {
        loop {
            self.check(until, "the leader waits for others")?;
            let (kind, body) =
                Until::new(leader, Instant::now() + self.settings.timeout).next(BODY_BYTES_MAX)?;
            match kind {
                Kind::Wait => {}
                Kind::Go => return Ok(number(&body)?.0),
                other => return Err(invalid(format!("a frame {other:?} at a meeting")).into()),
            }
        }
    }

    /// Takes what the processes above this one connect, while `meeting` stays open.
    fn collect(
        &self,
        data: &mut [Option<TcpStream>],
        links: &mut [Option<TcpStream>],
        meeting: &[Option<TcpStream>],
        deadline: Instant,
    ) -> Result<(), Failed> {
        let above = self.settings.process + 1;
        // The leader has its links from the meeting.
        let is_missing = |place: &Option<TcpStream>| place.is_none();
        let links_due = self.settings.process > 0;
        loop {
            let links_missing = links_due && links[above..].iter().any(is_missing);
            if !links_missing && !data[above..].iter().any(is_missing) {
                return Ok(());
            }
            for Arrived { identity, socket } in self.door.arrivals(Instant::now() + GLANCE) {
                let place = identity.process as usize;
                match identity.purpose {
                    Purpose::Data => data[place] = Some(socket),
                    Purpose::Link | Purpose::Meet => links[place] = Some(socket),
                }
            }
            if meeting.iter().flatten().any(is_closed) {
                return Err(Failed::Attempt("a process left while the mesh was built".into()));
            }
            self.check(Some(deadline), "the mesh was not built in time")
                .map_err(Failed::of_step)?;
        }
    }

    fn record(&self, number: u64) -> Result<(), MeetError> {
        self.number.write(number).map_err(MeetError::Number)
    }

    /// Connects to a process, again and again while it may only be early.
    fn connect(
        &self,
        to: usize,
        purpose: Purpose,
        generation: u64,
        until: Option<Instant>,
    ) -> Result<TcpStream, Failed> {
        let mine = Identity { purpose, generation, ..self.mine.clone() };
        let mut backoff = BACKOFF_MIN;
        loop {
            let why = match self.try_connect(to, &mine) {
                Ok(socket) => return Ok(socket),
                Err(HandshakeError::Refused(refusal)) => match refusal.refused {
                    Refused::Present | Refused::NotNow => refusal.text,
                    Refused::Generation => return Err(Failed::Attempt(refusal.text)),
                    _ => {
                        return Err(Failed::Meeting(MeetError::Refused { process: to, refusal }));
                    }
                },
                Err(HandshakeError::Io(error)) => error.to_string(),
            };
            let why = format!("process {to} at {}: {why}", self.settings.hosts[to]);
            tracing::debug!(why, "not connected yet");
            self.check(until, &why).map_err(|error| match purpose {
                Purpose::Meet => Failed::Meeting(error),
                Purpose::Link | Purpose::Data => Failed::of_step(error),
            })?;
            std::thread::sleep(backoff);
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    fn try_connect(&self, to: usize, mine: &Identity) -> Result<TcpStream, HandshakeError> {
        let patience = self.settings.timeout;
        let socket = dial(&self.settings.hosts[to], patience)?;
        socket.set_nodelay(true)?;
        let until = Instant::now() + patience;
        let theirs = handshake::connect(&socket, &self.settings.secret, mine, until)?;
        if theirs.process as usize != to {
            let (host, other) = (&self.settings.hosts[to], theirs.process);
            let text = format!("{host} is process {other}, but host {to} in the list");
            return Err(HandshakeError::Refused(Refusal::new(Refused::Process, text)));
        }
        Ok(socket)
    }
}

/// The first address of a host that answers.
fn dial(host: &str, patience: Duration) -> io::Result<TcpStream> {
    let mut last = invalid(format!("{host} has no address"));
    for address in host.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Whether the peer has closed; a peer that is silent has not.
fn is_closed(socket: &TcpStream) -> bool {
    let mut byte = [0];
    let peeked = socket.set_nonblocking(true).and_then(|()| socket.peek(&mut byte));
    let restored = socket.set_nonblocking(false);
    match (peeked, restored) {
        (Ok(0), _) | (_, Err(_)) => true,
        (Ok(_), Ok(())) => false,
        (Err(error), Ok(())) => error.kind() != io::ErrorKind::WouldBlock,
    }
}
