//! `Content-Encoding`: gzip and zstd into memory that has a hard cap. A bomb is found out when the
//! cap is reached, and not one byte more than the cap has been allocated for it by then.
//!
//! gzip is inflated in one go into the output, without a window of its own, and its check sum and
//! length are verified. Several members or frames in a row are one body, as the formats say; text
//! after the last is an error, and so is a stream that ends early.

use flate2::{Decompress, FlushDecompress, Status};
use std::io::Read;
use trueup_operators::problem::Problem;

/// How much more memory an output gets when it is full, at least.
const STEP_BYTES: usize = 256 * 1024;
/// zstd: windows above 8 MiB are refused, so that a small body cannot claim much memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// No deflate stream grows by more than this factor.
const DEFLATE_RATIO_MAX: usize = 1032;
/// What an output may keep from body to body.
const KEPT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How a body is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

impl Encoding {
    /// From the header's value.
    pub(crate) fn of(header: Option<&str>) -> Result<Encoding, Problem> {
        let header = header.unwrap_or_default().trim();
        match header.to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(Encoding::Identity),
            "gzip" | "x-gzip" => Ok(Encoding::Gzip),
            "zstd" => Ok(Encoding::Zstd),
            _ => Err(Problem::new(
                415,
                "unsupported_encoding",
                "the body's encoding is not supported",
                format!("`Content-Encoding` is `{}`", crate::fault::shown(header.as_bytes())),
                "send gzip, zstd or identity",
            )),
        }
    }
}

/// Inflates bodies; keeps its state and memory from body to body.
pub(crate) struct Inflater {
    gzip: Decompress,
    out: Vec<u8>,
}

impl Default for Inflater {
    fn default() -> Self {
        Inflater { gzip: Decompress::new_gzip(15), out: Vec::new() }
    }
}

impl Inflater {
    /// The plain bytes of a packed body, at most `bytes_max` of them.
    pub(crate) fn inflate(
        &mut self,
        encoding: Encoding,
        body: &[u8],
        bytes_max: usize,
    ) -> Result<&[u8], Problem> {
        self.out.clear();
        if self.out.capacity() > KEPT_BYTES_MAX.min(bytes_max) {
            self.out = Vec::new();
        }
        match encoding {
            Encoding::Gzip => self.gunzip(body, bytes_max)?,
            Encoding::Zstd => unzstd(body, bytes_max, &mut self.out)?,
            Encoding::Identity if body.len() > bytes_max => return Err(too_large(bytes_max)),
            Encoding::Identity => {
                self.out.reserve_exact(body.len());
                self.out.extend_from_slice(body);
            }
        }
        Ok(&self.out)
    }

    fn gunzip(&mut self, body: &[u8], bytes_max: usize) -> Result<(), Problem> {
        // The last four bytes are the length of the last member: a hint, and no more than one.
        let hint = body.last_chunk::<4>().map_or(0, |l| u32::from_le_bytes(*l) as usize);
        let hint = hint.min(body.len().saturating_mul(DEFLATE_RATIO_MAX)).min(bytes_max);
        self.out.reserve_exact(hint);
        let mut rest = body;
        // `true` keeps the gzip header; `false` would make it raw deflate from here on.
        self.gzip.reset(true);
        loop {
            if self.out.len() == self.out.capacity() {
                grow(&mut self.out, STEP_BYTES, bytes_max)?;
            }
            let (read, written) = (self.gzip.total_in(), self.out.len());
            let status = self
                .gzip
                .decompress_vec(rest, &mut self.out, FlushDecompress::None)
                .map_err(|error| bad_encoding("gzip", &error.to_string()))?;
            let read = (self.gzip.total_in() - read) as usize;
            rest = &rest[read..];
            match status {
                Status::StreamEnd if rest.is_empty() => return Ok(()),
                Status::StreamEnd => self.gzip.reset(true),
                _ if read == 0
                    && self.out.len() == written
                    && self.out.len() < self.out.capacity() =>
                {
                    return Err(bad_encoding("gzip", "the stream ends before its end"));
                }
                _ => {}
            }
        }
    }
}

fn unzstd(body: &[u8], bytes_max: usize, out: &mut Vec<u8>) -> Result<(), Problem> {
    let bad = |error: std::io::Error| bad_encoding("zstd", &error.to_string());
    let mut decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(bad)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(bad)?;
    let mut filled = 0;
    loop {
        if filled == out.len() {
            if out.len() == out.capacity() {
                // One more byte than allowed may be there only to be asked for.
                if filled == bytes_max {
                    return match decoder.read(&mut [0]).map_err(bad)? {
                        0 => Ok(()),
                        _ => Err(too_large(bytes_max)),
                    };
                }
                grow(out, STEP_BYTES, bytes_max)?;
            }
            out.resize(out.capacity().min(filled + STEP_BYTES).min(bytes_max), 0);
        }
        match decoder.read(&mut out[filled..]).map_err(bad)? {
            0 => {
                out.truncate(filled);
                return Ok(());
            }
            bytes => filled += bytes,
        }
    }
}

/// Room for at least one more byte, for twice as many or `bytes` if the cap allows it.
fn grow(out: &mut Vec<u8>, bytes: usize, bytes_max: usize) -> Result<(), Problem> {
    let room = bytes_max.saturating_sub(out.len());
    if room == 0 {
        return Err(too_large(bytes_max));
    }
    out.reserve_exact(bytes.max(out.len()).min(room));
    Ok(())
}

fn too_large(bytes_max: usize) -> Problem {
    Problem::new(
        413,
        "decoded_body_too_large",
        "the inflated body is too large",
        format!("the body inflates to more than {bytes_max} bytes"),
        "send smaller batches, or raise `[limits] body_decoded_bytes_max`",
    )
}

fn bad_encoding(encoding: &str, what: &str) -> Problem {
    Problem::new(
        400,
        "bad_encoding",
        "the body cannot be inflated",
        format!("the body is no whole {encoding} stream: {what}"),
        "check that the body was not cut off and that `Content-Encoding` names how it is packed",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        gz.write_all(bytes).unwrap();
        gz.finish().unwrap()
    }

    fn pack(encoding: Encoding, bytes: &[u8]) -> Vec<u8> {
        match encoding {
            Encoding::Identity => bytes.to_vec(),
            Encoding::Gzip => gzip(bytes),
            Encoding::Zstd => zstd::encode_all(bytes, 3).unwrap(),
        }
    }

    fn sample(len: usize) -> Vec<u8> {
        (0..len as u64).map(|i| (trueup_operators::hash::mix(i, 3) % 23) as u8 + b'a').collect()
    }

    #[test]
    fn inflates_what_was_packed_to_the_last_byte_of_the_cap() {
        let mut inflater = Inflater::default();
        for encoding in [Encoding::Identity, Encoding::Gzip, Encoding::Zstd] {
            for len in [1, 100, STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, 3 * STEP_BYTES + 7] {
                let plain = sample(len);
                let packed = pack(encoding, &plain);
                assert!(inflater.inflate(encoding, &packed, len).unwrap() == plain, "{len}");
                assert!(inflater.out.capacity() <= len, "{encoding:?} {len}");
                let error = inflater.inflate(encoding, &packed, len - 1).unwrap_err();
                assert_eq!(error.code, "decoded_body_too_large", "{encoding:?} {len}");
                assert!(inflater.out.capacity() <= len, "{encoding:?} {len}");
            }
        }
    }

    #[test]
    fn members_in_a_row_are_one_body() {
        let mut inflater = Inflater::default();
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let mut packed = pack(encoding, b"{\"events\"");
            packed.extend(pack(encoding, b":[]}"));
            assert_eq!(inflater.inflate(encoding, &packed, 100).unwrap(), b"{\"events\":[]}");
            packed.extend(b"garbage");
            assert_eq!(inflater.inflate(encoding, &packed, 100).unwrap_err().code, "bad_encoding");
        }
    }

    #[test]
    fn cut_and_damaged_streams_are_refused() {
        let mut inflater = Inflater::default();
        let plain = sample(5000);
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let packed = pack(encoding, &plain);
            for end in (1..packed.len()).step_by(7).chain([packed.len() - 1]) {
                let error = inflater.inflate(encoding, &packed[..end], 10_000).unwrap_err();
                assert_eq!(error.status, 400, "{encoding:?} cut at {end}");
            }
            for at in (0..packed.len()).step_by(11) {
                let mut damaged = packed.clone();
                damaged[at] ^= 0x10;
                // zstd writes no check sum here: damage may go unnoticed, but never hurts.
                if let Ok(bytes) = inflater.inflate(encoding, &damaged, 10_000) {
                    assert!(encoding == Encoding::Zstd || bytes == plain, "byte {at}");
                }
            }
        }
    }

    #[test]
    fn bombs_end_at_the_cap() {
        let mut inflater = Inflater::default();
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let bomb = pack(encoding, &vec![b' '; 50 << 20]);
            assert!(bomb.len() < 100_000);
            let error = inflater.inflate(encoding, &bomb, 1 << 20).unwrap_err();
            assert_eq!(error.status, 413);
            assert!(inflater.out.capacity() <= 1 << 20);
        }
        assert_eq!(Encoding::of(Some("br")).unwrap_err().status, 415);
        assert_eq!(Encoding::of(Some("GZIP")), Ok(Encoding::Gzip));
    }
}
