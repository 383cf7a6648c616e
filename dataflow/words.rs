//! What the processes of a cluster say to each other while a generation lives, beside timely's own
//! messages: words, which come in the order in which they were said and are not answered
//! ([`crate::cluster::Generation::say`]).
//!
//! ```text
//! u8  0 begin    leader → all     JSON, the name of the checkpoint that all begin with, or null, and
//!                                 whether ids belong to workers by their partitions
//! u8  1 fed      leader → all     u64 offset behind the remap row, u8 image (0 none, 1 whole,
//!                                 2 increment), the row as in the log
//! u8  2 broken   member → leader  JSON, the checkpoint that cannot be loaded, and why
//! u8  3 sealed   member → leader  JSON, its part of a checkpoint
//! u8  4 ended    leader → all     JSON, what became of a checkpoint
//! ```
//!
//! Integers are little-endian. All processes run the same binary, or they would not be in one
//! generation: no word has a version.

use crate::{
    checkpoint::{
        manifest::ManifestName,
        parts::{Ended, SealedPart},
    },
    cluster::Generation,
    epochs::Fed,
};
use serde::{Serialize, de::DeserializeOwned};
use trueup_operators::{feed::ImageKind, remap::RemapRow};

/// A word.
#[derive(Debug)]
pub(crate) enum Said {
    /// What all begin with; `None`: the beginning of the log. And whether ids belong to workers by
    /// their partitions.
    Begin(Option<ManifestName>, bool),
    /// The next epoch.
    Fed(Fed),
    /// A checkpoint that a member cannot load.
    Broken(ManifestName, String),
    /// A member's part of a checkpoint.
    Sealed(SealedPart),
    /// What became of a checkpoint.
    Ended(Ended),
}

/// Says a word to each of these. Who cannot be told has taken nothing for so long that its queue is
/// full: the generation is over.
pub(crate) fn say(
    generation: &Generation,
    processes: impl IntoIterator<Item = usize>,
    said: &Said,
) {
    let word = encode(said);
    for process in processes {
        if let Err(error) = generation.say(process, &word) {
            generation.end(process, format!("it cannot be told: {error}"));
        }
    }
}

/// A word as it is said.
fn encode(said: &Said) -> Vec<u8> {
    match said {
        Said::Begin(name, by_partition) => {
            json(0, &(name.map(|name| name.to_string()), by_partition))
        }
        Said::Fed(fed) => {
            let mut bytes = vec![1];
            bytes.extend(fed.next.to_le_bytes());
            bytes.push(match fed.image {
                None => 0,
                Some(ImageKind::Whole) => 1,
                Some(ImageKind::Increment) => 2,
            });
            bytes.extend(fed.row.encode());
            bytes
        }
        Said::Broken(name, reason) => json(2, &(name.to_string(), reason)),
        Said::Sealed(part) => json(3, part),
        Said::Ended(ended) => json(4, ended),
    }
}

/// The inverse of [`encode`].
///
/// # Errors
/// When the bytes are no word.
pub(crate) fn decode(bytes: &[u8]) -> Result<Said, String> {
    let (&kind, body) = bytes.split_first().ok_or("a word without a byte")?;
    match kind {
        0 => {
            let (text, by_partition) = parsed::<(Option<String>, bool)>(body)?;
            Ok(Said::Begin(text.as_deref().map(name).transpose()?, by_partition))
        }
        1 => fed(body).map(Said::Fed),
        2 => {
            let (text, reason) = parsed::<(String, String)>(body)?;
            Ok(Said::Broken(name(&text)?, reason))
        }
        3 => parsed(body).map(Said::Sealed),
        4 => parsed(body).map(Said::Ended),
        other => Err(format!("a word of kind {other}")),
    }
}

fn json(kind: u8, value: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![kind];
    serde_json::to_writer(&mut bytes, value).expect("words have text for keys and go into memory");
    bytes
}

fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| format!("a word: {error}"))
}

fn name(text: &str) -> Result<ManifestName, String> {
    ManifestName::parse(text).ok_or_else(|| format!("a word names the checkpoint `{text}`"))
}

fn fed(body: &[u8]) -> Result<Fed, String> {
    let short = || format!("an epoch in {} bytes", body.len());
    let (next, rest) = body.split_first_chunk::<8>().ok_or_else(short)?;
    let (&image, row) = rest.split_first().ok_or_else(short)?;
    let image = match image {
        0 => None,
        1 => Some(ImageKind::Whole),
        2 => Some(ImageKind::Increment),
        other => return Err(format!("an image of kind {other}")),
    };
    Ok(Fed { row: RemapRow::decode(row)?, next: u64::from_le_bytes(*next), image })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn words_are_heard_as_they_were_said() {
        let mut row = RemapRow::origin(3, 1, 1);
        row.epoch = 9;
        for image in [None, Some(ImageKind::Whole), Some(ImageKind::Increment)] {
            let fed = Fed { row: row.clone(), next: 77, image };
            let Said::Fed(heard) = decode(&encode(&Said::Fed(fed.clone()))).unwrap() else {
                panic!("another word");
            };
            assert_eq!(heard, fed);
        }
        let name = ManifestName { generation: 3, epoch: 12 };
        for begin in [None, Some(name)] {
            for by_partition in [false, true] {
                let heard = decode(&encode(&Said::Begin(begin, by_partition))).unwrap();
                assert!(matches!(heard, Said::Begin(h, by) if (h, by) == (begin, by_partition)));
            }
        }
        let heard = decode(&encode(&Said::Broken(name, "torn".into()))).unwrap();
        assert!(matches!(heard, Said::Broken(n, why) if n == name && why == "torn"));
    }

    #[test]
    fn nonsense_is_refused() {
        for bytes in [&[][..], &[9], &[0, b'x'], &[1, 2, 3], &[2, b'[', b']'], &[3], &[4, b'{']] {
            decode(bytes).unwrap_err();
        }
        let mut bytes =
            encode(&Said::Fed(Fed { row: RemapRow::origin(1, 1, 1), next: 1, image: None }));
        bytes[9] = 3;
        decode(&bytes).unwrap_err();
        bytes[9] = 0;
        bytes.pop();
        decode(&bytes).unwrap_err();
    }
}
