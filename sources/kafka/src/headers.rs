//! What a message says of itself in its headers, and which messages are none of ours.
//!
//! ```text
//! trueup-schema   the version of the payload's schema, decimal, 1 to 65535
//! trueup-records  how many records the payload holds, decimal, 0 to 65536
//! ```
//!
//! Text, so that kcat and its like show them. Other headers are passed over. A message without
//! them, or with others' words in them, is foreign: anyone may write to a shared topic, and one
//! stray message must neither stop the run nor be lost.

use rdkafka::message::{Header, OwnedHeaders};
use std::ffi::CStr;
use trueup_operators::log::{Append, FRAME_RECORDS_MAX, Foreign};

/// Names the schema's version.
pub const SCHEMA_HEADER: &str = "trueup-schema";
/// Names how many records there are.
pub const RECORDS_HEADER: &str = "trueup-records";
const SCHEMA: (&str, &CStr) = (SCHEMA_HEADER, c"trueup-schema");
const RECORDS: (&str, &CStr) = (RECORDS_HEADER, c"trueup-records");
/// How much of a header is quoted.
const QUOTED_CHARS_MAX: usize = 40;

/// What a message of ours says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) schema_version: u16,
    pub(crate) records: u32,
}

/// The headers of a frame.
pub(crate) fn of(append: &Append) -> OwnedHeaders {
    let (schema, records) = (append.schema_version.to_string(), append.records.to_string());
    OwnedHeaders::new_with_capacity(2)
        .insert(Header { key: SCHEMA_HEADER, value: Some(&schema) })
        .insert(Header { key: RECORDS_HEADER, value: Some(&records) })
}

/// What the headers of a message say, or why it is none of ours. `get` gives the value of the
/// header of a name.
pub(crate) fn read<'a>(
    get: impl Fn(&CStr) -> Option<&'a [u8]>,
    known: u16,
) -> Result<Said, Foreign> {
    let version = number(&get, SCHEMA, 1, u16::MAX.into())? as u16;
    if version > known {
        return Err(Foreign::UnknownSchema { version, known });
    }
    let records = number(&get, RECORDS, 0, FRAME_RECORDS_MAX as u32)?;
    Ok(Said { schema_version: version, records })
}

fn number<'a>(
    get: impl Fn(&CStr) -> Option<&'a [u8]>,
    (name, c_name): (&'static str, &'static CStr),
    min: u32,
    max: u32,
) -> Result<u32, Foreign> {
    let value = get(c_name).ok_or(Foreign::NoHeader { name })?;
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.filter(|number| (min..=max).contains(number)).ok_or_else(|| {
        let value = String::from_utf8_lossy(value).chars().take(QUOTED_CHARS_MAX).collect();
        Foreign::BadHeader { name, value, min, max }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(pairs: &[(&str, &str)], known: u16) -> Result<Said, Foreign> {
        let get = |name: &CStr| {
            let found = pairs.iter().find(|(key, _)| key.as_bytes() == name.to_bytes());
            found.map(|(_, value)| value.as_bytes())
        };
        read(get, known)
    }

    #[test]
    fn what_is_written_is_read_and_the_rest_is_foreign() {
        let ours = [("other", "x"), (SCHEMA_HEADER, "3"), (RECORDS_HEADER, "65536")];
        assert_eq!(said(&ours, 3), Ok(Said { schema_version: 3, records: 65_536 }));
        assert_eq!(said(&ours, 2), Err(Foreign::UnknownSchema { version: 3, known: 2 }));
        assert_eq!(said(&[], 9), Err(Foreign::NoHeader { name: SCHEMA_HEADER }));
        assert_eq!(said(&[("a", "b")], 9), Err(Foreign::NoHeader { name: SCHEMA_HEADER }));
        let half = [(SCHEMA_HEADER, "1")];
        assert_eq!(said(&half, 9), Err(Foreign::NoHeader { name: RECORDS_HEADER }));
        for (schema, records) in
            [("0", "1"), ("-1", "1"), ("65536", "1"), ("x", "1"), ("", "1"), ("1", "65537")]
        {
            let wrong = said(&[(SCHEMA_HEADER, schema), (RECORDS_HEADER, records)], 9);
            assert!(matches!(wrong, Err(Foreign::BadHeader { .. })), "{schema}");
        }
        let long = "9".repeat(4_000);
        let Err(Foreign::BadHeader { value, .. }) = said(&[(SCHEMA_HEADER, &long)], 9) else {
            panic!("it is too long to be a number");
        };
        assert_eq!(value.len(), QUOTED_CHARS_MAX);
    }
}
