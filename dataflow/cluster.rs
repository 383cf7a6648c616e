//! Several processes as one engine: how they find each other, notice that one is lost, agree up to
//! where all of them are, and ask each other.
//!
//! # Why it is hard
//!
//! A timely cluster is one computation: it cannot lose a process, nor take one in. So the processes
//! live in **generations**. A generation begins when all are there and ends with the first that is
//! lost, for all of them; then they meet again. What must never happen is that two generations are
//! taken for one: a process that was stopped for a minute comes back with connections, numbers and
//! opinions of a generation that is over.
//!
//! ```text
//! Cluster::open   listens                                  door, handshake, identity, secret
//! Cluster::meet   all are there, numbered, connected       meeting, number
//! Generation      heartbeats, commits, questions           link, frame, upto, rpc
//!   execute       timely over sockets that never fail      wire
//!   wait          the first failure, its process and why   failure
//! drop it, meet again
//! ```
//!
//! # Promises
//!
//! * Only processes of the same cluster, secret, binary, and shape form a generation; whoever is
//!   refused is told both values.
//! * Numbers of generations only grow, over restarts of any process. What is published is fenced
//!   with them by whoever publishes.
//! * A peer that is killed, stopped, cut off or hung up is found within the timeout and a tick; one
//!   that is slow below it is not.
//! * When a generation is over, its workers and threads come to their end without a panic, and the
//!   process can meet again. `tests/it/mesh.rs` does so under load with real processes.

mod door;
mod failure;
mod frame;
mod generation;
mod handshake;
mod identity;
mod link;
mod meeting;
mod number;
mod rpc;
mod secret;
mod upto;
mod wire;

pub use door::GUESTS_MAX;
pub use failure::{Failure, What};
pub use generation::{Alive, Generation, Rpc, Workers};
pub use identity::{NAME_BYTES_MAX, Refusal, Refused};
pub use link::QUEUE_BYTES_MAX;
pub use rpc::{CallError, Handler, RpcLimits, WORDS_MAX, Word};
pub use secret::{SECRET_BYTES_MIN, Secret, binary_version};

use door::Door;
use identity::{Identity, Purpose};
use number::Number;
use parking_lot::Mutex;
use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

/// The most processes of a cluster.
pub const PROCESSES_MAX: usize = 64;

/// What a member must know.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// What all members call their cluster.
    pub cluster: String,
    /// What all members know and nobody else.
    pub secret: Secret,
    /// The version of the binary, as [`binary_version`] gives it.
    pub version: String,
    /// This process: its place among the hosts. 0 leads.
    pub process: usize,
    /// Where each process listens, `host:port`, as this process reaches them.
    pub hosts: Vec<String>,
    /// Where this process listens; `None`: at its own host's address.
    pub listen: Option<SocketAddr>,
    /// Workers of each process.
    pub threads: usize,
    /// How often a sign of life is sent.
    pub heartbeat: Duration,
    /// Without any for this long a peer is lost. Also the time of a handshake.
    pub timeout: Duration,
    /// How long it may take to connect all, once all are there.
    pub build_timeout: Duration,
    /// How long to wait for the others; `None`: for ever.
    pub patience: Option<Duration>,
    /// Where the number of the newest generation is kept.
    pub number_path: PathBuf,
    /// How many questions there may be.
    pub rpc: RpcLimits,
}

impl ClusterSettings {
    /// With a heartbeat of 500 ms, a timeout of 3 s, 10 s to connect, and no end of patience.
    pub fn new(
        cluster: impl Into<String>,
        secret: Secret,
        version: impl Into<String>,
        process: usize,
        hosts: Vec<String>,
        number_path: impl Into<PathBuf>,
    ) -> ClusterSettings {
        ClusterSettings {
            cluster: cluster.into(),
            secret,
            version: version.into(),
            process,
            hosts,
            listen: None,
            threads: 1,
            heartbeat: Duration::from_millis(500),
            timeout: Duration::from_secs(3),
            build_timeout: Duration::from_secs(10),
            patience: None,
            number_path: number_path.into(),
            rpc: RpcLimits::default(),
        }
    }

    fn check(&self) -> Result<(), String> {
        let (process, processes) = (self.process, self.hosts.len());
        if processes == 0 || processes > PROCESSES_MAX {
            return Err(format!("{processes} hosts; give 1 to {PROCESSES_MAX}"));
        }
        if process >= processes {
            return Err(format!("process {process} of {processes}; the last is {}", processes - 1));
        }
        if self.threads == 0 || self.threads > 64 {
            return Err(format!("{} worker threads; give 1 to 64", self.threads));
        }
        for (what, name) in [("cluster id", &self.cluster), ("version", &self.version)] {
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return Err(format!("the {what} `{name}` must have 1 to {NAME_BYTES_MAX} bytes"));
            }
        }
        if self.heartbeat.is_zero() || self.heartbeat * 2 > self.timeout {
            let (heartbeat, timeout) = (self.heartbeat, self.timeout);
            return Err(format!(
                "a heartbeat every {heartbeat:?} and a timeout of {timeout:?}: the timeout must be \
                 twice the heartbeat or more"
            ));
        }
        self.rpc.check()
    }

    fn identity(&self, generation: u64) -> Identity {
        Identity {
            purpose: Purpose::Meet,
            process: self.process as u32,
            processes: self.hosts.len() as u32,
            threads: self.threads as u32,
            generation,
            cluster: self.cluster.clone(),
            version: self.version.clone(),
        }
    }
}

/// Why a process cannot be a member.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The settings ask for what cannot be.
    #[error("{0}")]
    Settings(String),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// The number of the newest generation cannot be read.
    #[error("the generation's number: {0}")]
    Number(io::Error),
}

/// Why there is no next generation.
#[derive(Debug, thiserror::Error)]
pub enum MeetError {
    /// This process will not be let in as it is, or does not let another in.
    #[error("process {process} and this one cannot be one cluster: {refusal}")]
    Refused {
        /// The other.
        process: usize,
        /// In what they differ.
        refusal: Refusal,
    },
    /// The settings' patience is over.
    #[error("the cluster did not come together in time: {why}")]
    Late {
        /// What was missing at the end.
        why: String,
    },
    /// The number of the generation cannot be written.
    #[error("the generation's number: {0}")]
    Number(io::Error),
    /// The links' threads do not start.
    #[error("the generation did not start: {0}")]
    Start(io::Error),
    /// A generation of this process is not over yet.
    #[error("generation {0} is not over")]
    Running(u64),
    /// [`Cluster::stop`] was called.
    #[error("stopped")]
    Stopped,
}

/// A process that is a member of a cluster, between generations and in them.
pub struct Cluster {
    settings: ClusterSettings,
    mine: Identity,
    door: Arc<Door>,
    number: Number,
    accepting: Option<JoinHandle<()>>,
    /// The ending of the last generation: two at once are refused.
    last: Mutex<Option<(u64, generation::Alive)>>,
}

impl Cluster {
    /// Listens, and nothing more.
    ///
    /// # Errors
    /// When the settings cannot be, the address is taken, or the number cannot be read.
    pub fn open(settings: ClusterSettings) -> Result<Cluster, ClusterError> {
        settings.check().map_err(ClusterError::Settings)?;
        let number = Number::new(settings.number_path.clone());
        let mine = settings.identity(number.read().map_err(ClusterError::Number)?);
        let address = match settings.listen {
            Some(address) => address.to_string(),
            None => settings.hosts[settings.process].clone(),
        };
        let opened = TcpListener::bind(&address).and_then(|listener| {
            let secret = settings.secret.clone();
            Door::open(listener, mine.clone(), secret, settings.timeout)
        });
        let (door, accepting) = opened.map_err(|error| ClusterError::Listen { address, error })?;
        let (accepting, last) = (Some(accepting), Mutex::new(None));
        Ok(Cluster { settings, mine, door, number, accepting, last })
    }

    /// This process.
    pub fn process(&self) -> usize {
        self.settings.process
    }

    /// How many processes it has.
    pub fn processes(&self) -> usize {
        self.settings.hosts.len()
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.door.address()
    }

    /// Meets the others; the next generation, with a number greater than `floor` and than any
    /// before. Only the leader's `floor` counts: the greatest number that is found in what the
    /// cluster has published.
    ///
    /// # Errors
    /// When this process cannot be a member as it is, or nobody comes in time.
    pub fn meet(&self, floor: u64) -> Result<Generation, MeetError> {
        let mut last = self.last.lock();
        if let Some((number, alive)) = &*last
            && !alive.is_over()
        {
            return Err(MeetError::Running(*number));
        }
        let sockets = self.gather(floor)?;
        let number = sockets.number;
        let generation = Generation::start(self, sockets).map_err(MeetError::Start)?;
        *last = Some((number, generation.alive()));
        tracing::info!(number, "a generation begins");
        Ok(generation)
    }

    /// Ends a meeting that is under way in another thread, and lets nobody in any more.
    pub fn stop(&self) {
        self.door.close();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
        if let Some(accepting) = self.accepting.take()
            && accepting.join().is_err()
        {
            tracing::error!("the accepting thread ended by a panic");
        }
    }
}

#[cfg(test)]
mod tests;
