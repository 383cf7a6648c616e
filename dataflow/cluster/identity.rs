//! Who a process says it is, and why it is not let in.
//!
//! ```text
//! u8  purpose      1 meet the leader, 2 link, 3 timely's data
//! u32 process      its place among the hosts
//! u32 processes
//! u32 threads      workers of each process
//! u64 generation   that it is of; when it meets the leader, the newest it has been in
//! u8  n, n bytes   the cluster's id, UTF-8
//! u8  n, n bytes   the version of its binary, UTF-8
//! ```
//!
//! Two members that differ in any of this would compute something else than one cluster would, or
//! would not understand each other: the refusal names both values, and so do both sides' logs.

use super::frame::invalid;
use std::{fmt, io};

/// The longest cluster id and version.
pub const NAME_BYTES_MAX: usize = 128;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    /// To be told the next generation by the leader; then the link to it.
    Meet = 1,
    /// Heartbeats, commits and questions.
    Link = 2,
    /// timely's messages.
    Data = 3,
}

/// Who connects, or who is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) purpose: Purpose,
    pub(super) process: u32,
    pub(super) processes: u32,
    pub(super) threads: u32,
    pub(super) generation: u64,
    pub(super) cluster: String,
    pub(super) version: String,
}

/// In what a refused process differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Refused {
    /// It has another secret.
    Secret = 1,
    /// It is of another cluster.
    Cluster = 2,
    /// It runs another binary.
    Version = 3,
    /// It counts another number of processes.
    Processes = 4,
    /// It has another number of threads.
    Threads = 5,
    /// It is not the process that is expected here, or there is no such.
    Process = 6,
    /// It is of a generation that is over.
    Generation = 7,
    /// Another one with its number is here. It may try again.
    Present = 8,
    /// The leader is not meeting, or does not know this generation yet. It may try again.
    NotNow = 9,
}

impl Refused {
    pub(super) fn of(code: u8) -> Option<Refused> {
        use Refused::{
            Cluster, Generation, NotNow, Present, Process, Processes, Secret, Threads, Version,
        };
        let all =
            [Secret, Cluster, Version, Processes, Threads, Process, Generation, Present, NotNow];
        all.into_iter().find(|refused| *refused as u8 == code)
    }

    /// Whether the same process may be let in later, as it is.
    pub fn is_for_now(self) -> bool {
        matches!(self, Refused::Present | Refused::NotNow | Refused::Generation)
    }
}

/// Why a process was not let in, with both values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In what it differs.
    pub refused: Refused,
    /// For people.
    pub text: String,
}

impl Refusal {
    pub(super) fn new(refused: Refused, text: impl Into<String>) -> Refusal {
        Refusal { refused, text: text.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Identity {
    /// As it goes over the wire.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.purpose as u8];
        for number in [self.process, self.processes, self.threads] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.generation.to_le_bytes());
        for name in [&self.cluster, &self.version] {
            bytes.push(name.len() as u8);
            bytes.extend(name.as_bytes());
        }
        bytes
    }

    /// From what came over the wire.
    pub(super) fn decode(bytes: &[u8]) -> io::Result<Identity> {
        let short = || invalid(format!("an identity of {} bytes is not whole", bytes.len()));
        let (fixed, mut rest) = bytes.split_first_chunk::<21>().ok_or_else(short)?;
        let purpose = match fixed[0] {
            1 => Purpose::Meet,
            2 => Purpose::Link,
            3 => Purpose::Data,
            other => return Err(invalid(format!("a connection for the purpose {other}"))),
        };
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| fixed[at + i]));
        let generation = u64::from(word(13)) | u64::from(word(17)) << 32;
        let mut name = || -> io::Result<String> {
            let (&n, after) = rest.split_first().ok_or_else(short)?;
            let (name, after) = after.split_at_checked(n.into()).ok_or_else(short)?;
            rest = after;
            let name = str::from_utf8(name).map_err(|e| invalid(format!("a name: {e}")))?;
            Ok(name.to_owned())
        };
        let (cluster, version) = (name()?, name()?);
        if !rest.is_empty() {
            return Err(invalid(format!("an identity has {} bytes too many", rest.len())));
        }
        let (process, processes, threads) = (word(1), word(5), word(9));
        Ok(Identity { purpose, process, processes, threads, generation, cluster, version })
    }

    /// Whether `other` is of the cluster that this is of.
    pub(super) fn admits(&self, other: &Identity) -> Result<(), Refusal> {
        let differ = |refused, what: &str, theirs: &dyn fmt::Display, ours: &dyn fmt::Display| {
            let (them, us) = (other.process, self.process);
            Err(Refusal::new(
                refused,
                format!("process {them} has {what} `{theirs}`, process {us} has `{ours}`"),
            ))
        };
        if other.cluster != self.cluster {
            return differ(Refused::Cluster, "the cluster id", &other.cluster, &self.cluster);
        }
        if other.version != self.version {
            return differ(Refused::Version, "the version", &other.version, &self.version);
        }
        if other.processes != self.processes {
            let (theirs, ours) = (&other.processes, &self.processes);
            return differ(Refused::Processes, "a number of processes of", theirs, ours);
        }
        if other.threads != self.threads {
            let (theirs, ours) = (&other.threads, &self.threads);
            return differ(Refused::Threads, "a number of threads of", theirs, ours);
        }
        if other.process >= self.processes || other.process == self.process {
            let (n, us) = (self.processes, self.process);
            let text = format!(
                "a process that says it is {} of {n} came to process {us} of {n}",
                other.process
            );
            return Err(Refusal::new(Refused::Process, text));
        }
        Ok(())
    }
}
