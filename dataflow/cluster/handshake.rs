//! Two processes that connect prove to each other that they know the secret, say who they are, and
//! are let in or told why not.
//!
//! ```text
//! → "TRUEUPM1", 32 bytes nonce
//! ← "TRUEUPM1", 32 bytes nonce
//! → frame Hello:   identity, 32 bytes tag over "connect", both nonces, identity
//! ← frame Verdict: u8 0, identity, tag        let in
//!                  u8 refused, text, tag      not let in
//!                  the tag is over "accept", both nonces, all before it
//! ```
//!
//! The one who connects shows that it knows the secret before anything about this process is said,
//! and each direction has its own label, so that nobody can send back what it was sent. All of it
//! is bounded: 40 bytes, a kilobyte, and a moment until which it must be over. Who sends something
//! else, or nothing, takes one of a few threads for that long and disturbs nobody.

use super::{
    frame::{Kind, Until, invalid},
    identity::{Identity, Refusal, Refused},
    secret::{Nonce, Secret, TAG_BYTES, Tag, nonce},
};
use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Instant,
};

const MAGIC: &[u8; 8] = b"TRUEUPM1";
const BODY_BYTES_MAX: usize = 1024;
const TEXT_BYTES_MAX: usize = 800;
const CONNECT: &[u8] = b"connect";
const ACCEPT: &[u8] = b"accept";

/// Why a connection did not come about.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    /// The network, or a peer that speaks something else.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// One side does not let the other in.
    #[error("{0}")]
    Refused(Refusal),
}

/// Connects as `mine`; who answered.
pub(super) fn connect(
    socket: &TcpStream,
    secret: &Secret,
    mine: &Identity,
    until: Instant,
) -> Result<Identity, HandshakeError> {
    let mut peer = Until::new(socket, until);
    let my_nonce = nonce()?;
    greet(&mut peer, &my_nonce)?;
    let nonces = [my_nonce, greeted(&mut peer)?];
    let mut hello = mine.encode();
    hello.extend(secret.tag(CONNECT, &nonces, &hello));
    peer.send(Kind::Hello, &hello)?;

    let verdict = peer.expect(Kind::Verdict, BODY_BYTES_MAX)?;
    let said = proven(secret, ACCEPT, &nonces, &verdict)?;
    let theirs = match said.split_first() {
        Some((0, identity)) => Identity::decode(identity)?,
        Some((code, text)) => {
            let refused = Refused::of(*code)
                .ok_or_else(|| invalid(format!("a process is refused with the code {code}")))?;
            let text = String::from_utf8_lossy(text);
            return Err(HandshakeError::Refused(Refusal::new(refused, text)));
        }
        None => return Err(invalid("a verdict without a body".into()).into()),
    };
    mine.admits(&theirs).map_err(HandshakeError::Refused)?;
    Ok(theirs)
}

/// Answers one who connects: `judge` says as whom, or why it is refused. Who came.
pub(super) fn accept(
    socket: &TcpStream,
    secret: &Secret,
    until: Instant,
    judge: impl FnOnce(&Identity) -> Result<Identity, Refusal>,
) -> Result<Identity, HandshakeError> {
    let mut peer = Until::new(socket, until);
    let their_nonce = greeted(&mut peer)?;
    let my_nonce = nonce()?;
    greet(&mut peer, &my_nonce)?;
    let nonces = [their_nonce, my_nonce];

    let hello = peer.expect(Kind::Hello, BODY_BYTES_MAX)?;
    let proven = proven(secret, CONNECT, &nonces, &hello);
    let judged = proven.and_then(|said| {
        let theirs = Identity::decode(said)?;
        Ok((judge(&theirs).map_err(HandshakeError::Refused)?, theirs))
    });
    let mut verdict = match &judged {
        Ok((mine, _)) => [vec![0], mine.encode()].concat(),
        Err(HandshakeError::Refused(refusal)) => {
            let end = refusal.text.floor_char_boundary(TEXT_BYTES_MAX);
            [&[refusal.refused as u8], &refusal.text.as_bytes()[..end]].concat()
        }
        Err(HandshakeError::Io(_)) => return Ok(judged?.1),
    };
    verdict.extend(secret.tag(ACCEPT, &nonces, &verdict));
    peer.send(Kind::Verdict, &verdict)?;
    Ok(judged?.1)
}

fn greet(peer: &mut Until<'_>, nonce: &Nonce) -> io::Result<()> {
    let mut greeting = MAGIC.to_vec();
    greeting.extend(nonce);
    peer.write_all(&greeting)
}

fn greeted(peer: &mut Until<'_>) -> io::Result<Nonce> {
    let mut magic = [0; MAGIC.len()];
    peer.read_exact(&mut magic)?;
    if magic != *MAGIC {
        let text = magic.escape_ascii();
        return Err(invalid(format!("the peer is no member of a cluster: it began with `{text}`")));
    }
    let mut nonce = [0; TAG_BYTES];
    peer.read_exact(&mut nonce)?;
    Ok(nonce)
}

/// What was said before a tag, if the tag is right.
fn proven<'b>(
    secret: &Secret,
    label: &[u8],
    nonces: &[Nonce; 2],
    body: &'b [u8],
) -> Result<&'b [u8], HandshakeError> {
    let (said, tag): (&[u8], &Tag) = body
        .split_last_chunk()
        .ok_or_else(|| invalid(format!("a body of {} bytes has no tag", body.len())))?;
    if secret.is_tag(label, nonces, said, tag) {
        return Ok(said);
    }
    let text = "the other process has another secret than this one";
    Err(HandshakeError::Refused(Refusal::new(Refused::Secret, text)))
}
