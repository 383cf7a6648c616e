//! timely's bytes between two processes, on a socket that never fails.
//!
//! # Why it is hard
//!
//! timely answers a lost peer with panics: its receiving thread panics at the end of the stream,
//! its queues are poisoned, and the workers panic at their next message, in the midst of whatever
//! operator they are in; one whose buffers are flushed as they are dropped may panic a second time,
//! which would abort the process. The program ends at its first panic, as it should, because no
//! other says which of its threads are still there. So a process that keeps collectors and readers
//! up through a lost peer cannot leave it at that.
//!
//! So timely is never told. Where its socket would fail, the [`Ending`] is: what is written after
//! that is swallowed, and a read waits until every worker has seen that the generation is over, has
//! dropped its dataflows and reads messages no more. Then what was begun is completed with zeros,
//! which nobody looks at, and the stream ends as that of a peer which has finished. All of timely's
//! threads end by themselves and nothing panics.
//!
//! # What is known of timely's stream
//!
//! ```text
//! six u64, big-endian  channel, source, target from, target to, length, number
//! length bytes         the message
//! …
//! six u64, length 0    the end
//! ```
//!
//! A header is only handed on when it is whole, so a stream that is cut never leaves timely with a
//! half of one. `tests/it/mesh.rs` cuts streams under load and counts threads and panics.
//!
//! # Promises
//!
//! * Until the generation is over, bytes pass as they are.
//! * After it is over no message reaches a worker that was not received whole before.

use super::failure::Ending;
use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::Arc,
};
use timely::communication::{allocator::zero_copy::stream::Stream, networking::MessageHeader};

const HEADER_BYTES: usize = 48;
const BUFFER_BYTES: usize = 1 << 16;

/// Tells the ending that the peer is lost, and how.
pub(super) type Lost = Arc<dyn Fn(&Ending, String) + Send + Sync>;

/// One of timely's sockets.
pub(super) struct Wire {
    socket: TcpStream,
    ending: Arc<Ending>,
    lost: Lost,
    /// What was received and not handed on.
    buffer: Vec<u8>,
    from: usize,
    /// Bytes of the message, with its header, that are still to be handed on.
    pass: u64,
    /// The peer has said that no more comes.
    finished: bool,
    /// Bytes of the header of the end that are still to be handed on, once the generation is over.
    farewell: usize,
}

impl Wire {
    /// Over a connected socket, whose peer is named by `lost`.
    pub(super) fn new(socket: TcpStream, ending: Arc<Ending>, lost: Lost) -> Wire {
        let (buffer, from, pass) = (Vec::new(), 0, 0);
        let (finished, farewell) = (false, HEADER_BYTES);
        Wire { socket, ending, lost, buffer, from, pass, finished, farewell }
    }

    /// Bytes from the socket; `None` when nothing comes any more.
    fn receive(&mut self, into: &mut [u8]) -> Option<usize> {
        loop {
            if self.ending.is_over() {
                return None;
            }
            match self.socket.read(into) {
                Ok(0) if self.finished => return Some(0),
                Ok(0) => (self.lost)(&self.ending, "the end of its stream".into()),
                Ok(n) => return Some(n),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => (self.lost)(&self.ending, error.to_string()),
            }
        }
    }

    /// Receives behind what the buffer holds; whether anything came.
    fn fill(&mut self) -> Option<usize> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.drain(..self.from);
        self.from = 0;
        let held = buffer.len();
        buffer.resize(BUFFER_BYTES, 0);
        let received = self.receive(&mut buffer[held..]);
        buffer.truncate(held + received.unwrap_or(0));
        self.buffer = buffer;
        received
    }

    /// What the buffer lets pass: whole headers, and messages as they come.
    fn pass_on(&mut self, out: &mut [u8]) -> usize {
        let mut written = 0;
        loop {
            let held = &self.buffer[self.from..];
            if self.pass == 0 {
                let Some(header) = held.first_chunk::<HEADER_BYTES>() else { return written };
                let length = length_of(header);
                self.finished |= length == 0;
                self.pass = (HEADER_BYTES as u64).saturating_add(length);
            }
            let n = held.len().min(out.len() - written).min(self.pass.min(1 << 30) as usize);
            if n == 0 {
                return written;
            }
            out[written..written + n].copy_from_slice(&held[..n]);
            self.from += n;
            self.pass -= n as u64;
            written += n;
        }
    }

    /// The end as a peer that has finished would send it, when nobody looks any more.
    fn finish(&mut self, out: &mut [u8]) -> usize {
        self.ending.wait_for_workers();
        let left = match self.pass {
            // After its own end, a peer sends nothing.
            0 if self.finished => return 0,
            0 => self.farewell,
            pass => pass.min(1 << 30) as usize,
        };
        let n = left.min(out.len());
        out[..n].fill(0);
        match self.pass {
            0 => self.farewell -= n,
            _ => self.pass -= n as u64,
        }
        n
    }
}

/// The fifth number of a header. (timely reads a header only with its whole message behind it.)
fn length_of(header: &[u8; HEADER_BYTES]) -> u64 {
    u64::from_be_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| header[32 + i]))
}

impl Read for Wire {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let passed = self.pass_on(out);
            if passed > 0 || out.is_empty() {
                return Ok(passed);
            }
            // A message of which the buffer holds nothing goes straight to timely's.
            let straight = self.pass.min(out.len() as u64) as usize;
            let received = match straight {
                0 => self.fill(),
                n => self.receive(&mut out[..n]),
            };
            match (received, straight) {
                (None, _) => return Ok(self.finish(out)),
                (Some(0), _) => return Ok(0),
                (Some(_), 0) => {}
                (Some(n), _) => {
                    self.pass -= n as u64;
                    return Ok(n);
                }
            }
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.ending.is_over() {
            match self.socket.write(bytes) {
                Ok(n) if n > 0 => return Ok(n),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
                Ok(_) => (self.lost)(&self.ending, "its socket takes nothing".into()),
                Err(error) => (self.lost)(&self.ending, error.to_string()),
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Wire {
    fn try_clone(&self) -> io::Result<Wire> {
        let socket = self.socket.try_clone()?;
        Ok(Wire::new(socket, Arc::clone(&self.ending), Arc::clone(&self.lost)))
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.socket.set_nonblocking(nonblocking)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if let Err(error) = self.socket.shutdown(how)
            && !self.ending.is_over()
        {
            (self.lost)(&self.ending, error.to_string());
        }
        Ok(())
    }
}

/// The size of a header, which timely does not say without one.
const _: () = assert!(HEADER_BYTES == size_of::<MessageHeader>(), "timely's header has changed");

#[cfg(test)]
mod tests;
