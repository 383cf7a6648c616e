//! Frames between two members: everything but timely's own messages.
//!
//! ```text
//! u32 n      the bytes of kind and body, 1 ..= FRAME_BYTES_MAX + 1
//! u32 crc    CRC-32C of kind and body
//! u8  kind
//! n − 1 bytes of body
//! ```
//!
//! Integers are little-endian. TCP's checksum lets one damaged segment in some millions through,
//! and a frame that commits an epoch must not be one of them: a wrong CRC, a length out of range
//! or an unknown kind ends the connection. Nothing is skipped.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

/// The largest body.
pub(super) const FRAME_BYTES_MAX: usize = 16 << 20;
/// The bytes before the kind.
pub(super) const HEAD_BYTES: usize = 8;

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Who connects, and the tag of that.
    Hello = 1,
    /// Whether it is let in, and the tag of that.
    Verdict = 2,
    /// Leader: not everyone is here. No body.
    Wait = 3,
    /// Leader: everyone is here; `u64` the generation.
    Go = 4,
    /// Member: all my connections stand. No body.
    Ready = 5,
    /// Leader: everyone's connections stand. No body.
    Start = 6,
    /// I live: `u64` committed up to here, `u64` visible everywhere.
    Pulse = 7,
    /// A question: `u64` number, then the question.
    Request = 8,
    /// Its answer: `u64` number, `u8` 0 or 1, then the answer, or why there is none.
    Response = 9,
    /// The generation is over here; why, as [`super::failure`] draws it.
    Over = 10,
    /// My workers have come to their end as they should. No body.
    Done = 11,
}

impl Kind {
    fn of(code: u8) -> Option<Kind> {
        use Kind::{Done, Go, Hello, Over, Pulse, Ready, Request, Response, Start, Verdict, Wait};
        let kinds = [Hello, Verdict, Wait, Go, Ready, Start, Pulse, Request, Response, Over, Done];
        kinds.into_iter().find(|kind| *kind as u8 == code)
    }
}

/// A frame as it goes out.
pub(super) fn encode(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + 1 + body.len());
    bytes.extend((body.len() as u32 + 1).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.push(kind as u8);
    bytes.extend(body);
    let crc = crc32c::crc32c(&bytes[HEAD_BYTES..]);
    bytes[4..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The first frame of `bytes`, and how long it is; `None` while it is not whole.
pub(super) fn decode(bytes: &[u8]) -> io::Result<Option<(Kind, &[u8], usize)>> {
    let Some(head) = bytes.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
    let [n, crc] = [0, 4].map(|at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| head[at + i])));
    let n = n as usize;
    if n == 0 || n > FRAME_BYTES_MAX + 1 {
        return Err(invalid(format!("a frame of {n} bytes; it has 1 to {}", FRAME_BYTES_MAX + 1)));
    }
    let Some(said) = bytes.get(HEAD_BYTES..HEAD_BYTES + n) else { return Ok(None) };
    let found = crc32c::crc32c(said);
    if found != crc {
        return Err(invalid(format!("a frame with the CRC {crc:08x} has {found:08x}")));
    }
    let kind = Kind::of(said[0]).ok_or_else(|| invalid(format!("a frame of kind {}", said[0])))?;
    Ok(Some((kind, &said[1..], HEAD_BYTES + n)))
}

/// A `u64` at the start of a body, and what follows it.
pub(super) fn number(body: &[u8]) -> io::Result<(u64, &[u8])> {
    let (number, rest) = body
        .split_first_chunk::<8>()
        .ok_or_else(|| invalid(format!("a body of {} bytes where a number is due", body.len())))?;
    Ok((u64::from_le_bytes(*number), rest))
}

pub(super) fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// A socket until a moment: whatever the peer does, a reader or writer comes back by then.
pub(super) struct Until<'s> {
    socket: &'s TcpStream,
    until: Instant,
}

impl Until<'_> {
    /// `socket` until `until`.
    pub(super) fn new(socket: &TcpStream, until: Instant) -> Until<'_> {
        Until { socket, until }
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(late()) } else { Ok(left) }
    }

    /// Sends a frame.
    pub(super) fn send(&mut self, kind: Kind, body: &[u8]) -> io::Result<()> {
        self.write_all(&encode(kind, body))
    }

    /// Takes a frame that is of this kind; its body.
    pub(super) fn expect(&mut self, due: Kind, bytes_max: usize) -> io::Result<Vec<u8>> {
        match self.next(bytes_max)? {
            (kind, body) if kind == due => Ok(body),
            (kind, _) => Err(invalid(format!("a frame {kind:?} where {due:?} is due"))),
        }
    }

    /// Takes a frame with a body of no more than `bytes_max`.
    pub(super) fn next(&mut self, bytes_max: usize) -> io::Result<(Kind, Vec<u8>)> {
        let mut bytes = vec![0; HEAD_BYTES];
        self.read_exact(&mut bytes)?;
        let n = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        if n == 0 || n > bytes_max + 1 {
            return Err(invalid(format!(
                "a frame of {n} bytes; here it has 1 to {}",
                bytes_max + 1
            )));
        }
        bytes.resize(HEAD_BYTES + n, 0);
        self.read_exact(&mut bytes[HEAD_BYTES..])?;
        match decode(&bytes)? {
            Some((kind, body, _)) => Ok((kind, body.to_vec())),
            None => Err(invalid("a frame that is not whole".into())),
        }
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer did not answer in time")
}

/// A timeout of the system is [`late`]; the caller's loop comes back for anything else.
fn named(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { late() } else { error }
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(buffer).map_err(named)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
