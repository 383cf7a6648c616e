//! What the members of a cluster prove to each other: that they know the same secret, without
//! saying it, and that what they said of themselves is what the other heard.
//!
//! # Why it is hard
//!
//! Whoever is let in speaks timely's wire format, whose reader panics on nonsense and which could
//! put any figure into a view. So the proof must hold against someone who can listen and send, but
//! not only replay: each side gives 32 random bytes, and the tag covers both and all that was
//! said. The tag is HMAC-SHA-256. SipHash is in the tree already, but its 64-bit security is made
//! for hash tables; a keyed hash that is meant for this costs two small crates and some
//! microseconds per connection.
//!
//! # What it does not do
//!
//! What follows a handshake is neither encrypted nor tagged. Someone who can change packets between
//! two members can take a connection over after it: the network between them must be trusted, or be
//! a tunnel.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::{fmt, fs::File, io, io::Read};

/// The bytes of a nonce and of a tag.
pub(super) const TAG_BYTES: usize = 32;
/// The shortest secret: 16 random bytes as text are 22 characters.
pub const SECRET_BYTES_MIN: usize = 16;

/// Random bytes that are used once.
pub(super) type Nonce = [u8; TAG_BYTES];
/// What only who knows the secret can make.
pub(super) type Tag = [u8; TAG_BYTES];

/// What all members of a cluster know and nobody else. It is never shown.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// From its bytes.
    ///
    /// # Errors
    /// When there are fewer than [`SECRET_BYTES_MIN`].
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Secret, String> {
        let bytes = bytes.into();
        if bytes.len() < SECRET_BYTES_MIN {
            let n = bytes.len();
            return Err(format!("the secret has {n} bytes; give {SECRET_BYTES_MIN} or more"));
        }
        Ok(Secret(bytes))
    }

    fn mac(&self, label: &[u8], nonces: &[Nonce; 2], said: &[u8]) -> Hmac<Sha256> {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else {
            unreachable!("HMAC takes a key of any length");
        };
        // All but the last are of a fixed length: no two inputs run together to the same bytes.
        mac.update(&[label.len() as u8]);
        mac.update(label);
        nonces.iter().for_each(|nonce| mac.update(nonce));
        mac.update(said);
        mac
    }

    /// The tag of what was said, in the direction that `label` names.
    pub(super) fn tag(&self, label: &[u8], nonces: &[Nonce; 2], said: &[u8]) -> Tag {
        self.mac(label, nonces, said).finalize().into_bytes().into()
    }

    /// Whether a tag is right; in a time that does not tell how far it is.
    pub(super) fn is_tag(&self, label: &[u8], nonces: &[Nonce; 2], said: &[u8], tag: &Tag) -> bool {
        self.mac(label, nonces, said).verify_slice(tag).is_ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// New random bytes.
pub(super) fn nonce() -> io::Result<Nonce> {
    let mut nonce = [0; TAG_BYTES];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    Ok(nonce)
}

/// The version of the running binary: that of the package, and 64 bits of the SHA-256 of the file
/// that runs. timely's wire format has no version of its own, so two builds must not meet.
///
/// # Errors
/// When the file cannot be read.
pub fn binary_version() -> io::Result<String> {
    use sha2::Digest;
    // The file that runs, even if another was put in its place since.
    let running = File::open("/proc/self/exe");
    let mut file = running.or_else(|_| File::open(std::env::current_exe()?))?;
    let (mut sha, mut block) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut block)? {
            0 => break,
            n => sha.update(&block[..n]),
        }
    }
    let hash = sha.finalize();
    let hex: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}+{hex}", env!("CARGO_PKG_VERSION")))
}
