//! The consent carriers of an event, kept as they came, and the state that is derived from them.
//!
//! Every carrier that is there votes, and the strictest vote wins:
//! `denied` > `limited` > `unknown` > `granted` > `not_applicable`. No carrier, no state.
//!
//! | carrier | vote |
//! |---|---|
//! | `coppa` 1 | denied (a child) |
//! | `gpc` 1, `lmt` 1 | limited |
//! | `gdpr` 0 | not_applicable |
//! | `gdpr` 1 without `tcString` | unknown |
//! | `tcString` (TCF v2), unless `gdpr` is 0 | granted: purposes 1 (storage) and 7 (measurement); limited: one of them; denied: neither; unknown: cannot be read |
//! | `usPrivacy` `1?Y?`, `1?N?`, `1---` | limited (sale opted out), granted, not_applicable; anything else unknown |
//! | `gpp` or `gppSid` | unknown (the sections are kept, not read) |
//!
//! A flag is 1, true or "1". The purposes are bits 152 to 175 of the core segment of a TC string,
//! which is base64url of big-endian bits; its first six bits are the version, 2.

use crate::{
    fields::{CONSENT, Field},
    scan::Value,
    sent::Sent,
};

/// What the carriers come to, in the order of strictness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ConsentState {
    NotApplicable,
    Granted,
    Unknown,
    Limited,
    Denied,
}

impl ConsentState {
    /// As the column holds it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            ConsentState::NotApplicable => "not_applicable",
            ConsentState::Granted => "granted",
            ConsentState::Unknown => "unknown",
            ConsentState::Limited => "limited",
            ConsentState::Denied => "denied",
        }
    }
}

/// The state of an event's carriers.
pub(crate) fn derive(sent: &Sent<'_>) -> Option<ConsentState> {
    use ConsentState::{Denied, Limited, NotApplicable, Unknown};
    if sent.present & CONSENT == 0 {
        return None;
    }
    let text = |field| match sent.get(field) {
        Some(Value::Text(text)) => Some(*text),
        _ => None,
    };
    let gdpr = sent.get(Field::Gdpr).map(flag);
    let tc = (gdpr != Some(false)).then(|| sent.get(Field::TcString)).flatten();
    let votes = [
        (flag_of(sent, Field::Coppa) == Some(true)).then_some(Denied),
        (flag_of(sent, Field::Gpc) == Some(true)).then_some(Limited),
        (flag_of(sent, Field::Lmt) == Some(true)).then_some(Limited),
        (gdpr == Some(false)).then_some(NotApplicable),
        (gdpr == Some(true) && tc.is_none()).then_some(Unknown),
        tc.map(|_| text(Field::TcString).and_then(purposes).map_or(Unknown, of_purposes)),
        sent.get(Field::UsPrivacy).map(|_| text(Field::UsPrivacy).map_or(Unknown, us_privacy)),
        (sent.has(Field::Gpp) || sent.has(Field::GppSid)).then_some(Unknown),
    ];
    // Flags that are all 0 say that nothing stands against: the same as nothing that applies.
    Some(votes.into_iter().flatten().max().unwrap_or(NotApplicable))
}

fn flag_of(sent: &Sent<'_>, field: Field) -> Option<bool> {
    sent.get(field).map(flag)
}

fn flag(value: &Value<'_>) -> bool {
    matches!(value, Value::Integer(1) | Value::Raw(b"true") | Value::Text(b"1" | b"true"))
}

fn us_privacy(text: &[u8]) -> ConsentState {
    match text {
        [b'1', b'-', b'-', b'-'] => ConsentState::NotApplicable,
        [b'1', _, b'Y' | b'y', _] => ConsentState::Limited,
        [b'1', _, b'N' | b'n', _] => ConsentState::Granted,
        _ => ConsentState::Unknown,
    }
}

fn of_purposes((storage, measurement): (bool, bool)) -> ConsentState {
    match (storage, measurement) {
        (true, true) => ConsentState::Granted,
        (false, false) => ConsentState::Denied,
        _ => ConsentState::Limited,
    }
}

/// Purposes 1 and 7 of a TCF v2 core segment.
fn purposes(tc: &[u8]) -> Option<(bool, bool)> {
    const PURPOSES_BIT: usize = 152;
    let bit = |at: usize| {
        let six = six_bits(*tc.get(at / 6)?)?;
        Some(six >> (5 - at % 6) & 1 == 1)
    };
    (six_bits(*tc.first()?)? == 2).then_some(())?;
    Some((bit(PURPOSES_BIT)?, bit(PURPOSES_BIT + 6)?))
}

const fn six_bits(letter: u8) -> Option<u8> {
    match letter {
        b'A'..=b'Z' => Some(letter - b'A'),
        b'a'..=b'z' => Some(letter - b'a' + 26),
        b'0'..=b'9' => Some(letter - b'0' + 52),
        b'-' => Some(62),
        b'_' => Some(63),
        _ => None,
    }
}

/// Writes the carriers as a JSON object, in the order of the table.
pub(crate) fn write(sent: &Sent<'_>, out: &mut Vec<u8>) {
    let mut left = sent.present & CONSENT;
    out.push(b'{');
    while left != 0 {
        let number = left.trailing_zeros() as usize;
        left &= left - 1;
        write_string(crate::fields::FIELDS[number].name.as_bytes(), out);
        out.push(b':');
        write_value(&sent.values[number], out);
        if left != 0 {
            out.push(b',');
        }
    }
    out.push(b'}');
}

/// Writes a value as JSON.
pub(crate) fn write_value(value: &Value<'_>, out: &mut Vec<u8>) {
    match *value {
        Value::Text(text) => write_string(text, out),
        Value::Integer(integer) | Value::Micros(integer) => {
            out.extend_from_slice(integer.to_string().as_bytes());
        }
        Value::Number(written) | Value::Raw(written) => out.extend_from_slice(written),
        Value::Null => out.extend_from_slice(b"null"),
    }
}

/// Writes a JSON string.
pub(crate) fn write_string(text: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    for &byte in text {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', byte]),
            0..=0x1f => {
                out.extend_from_slice(b"\\u00");
                out.extend([HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{scan::Scanner, sent::read};
    use bumpalo::Bump;

    /// A TC string with these purposes: version 2, and zeros elsewhere.
    fn tc(purposes: u32) -> String {
        let mut bits = [0u8; 30 * 6];
        bits[4] = 1;
        for p in 0..24 {
            bits[152 + p] = (purposes >> p & 1) as u8;
        }
        let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        bits.chunks(6)
            .map(|six| letters[six.iter().fold(0, |v, b| v << 1 | *b as usize)] as char)
            .collect()
    }

    fn state(event: &str) -> Option<&'static str> {
        let arena = Bump::new();
        let mut scanner = Scanner::new(event.as_bytes(), &arena);
        let mut sent = Sent::default();
        read(&mut scanner, &mut Default::default(), &mut sent).unwrap();
        derive(&sent).map(ConsentState::name)
    }

    #[test]
    fn the_strictest_carrier_wins() {
        let granted = tc(0b100_0001);
        for (event, expected) in [
            (r#"{"adId":"a"}"#.to_owned(), None),
            (r#"{"gdpr":0}"#.into(), Some("not_applicable")),
            (r#"{"gdpr":1}"#.into(), Some("unknown")),
            (format!(r#"{{"gdpr":1,"tcString":"{granted}"}}"#), Some("granted")),
            (format!(r#"{{"tcString":"{}"}}"#, tc(1)), Some("limited")),
            (format!(r#"{{"tcString":"{}"}}"#, tc(0)), Some("denied")),
            (format!(r#"{{"gdpr":"1","tcString":"{}"}}"#, &granted[..20]), Some("unknown")),
            (format!(r#"{{"gdpr":0,"tcString":"{}"}}"#, tc(0)), Some("not_applicable")),
            (r#"{"usPrivacy":"1YNN"}"#.into(), Some("granted")),
            (r#"{"usPrivacy":"1YYN"}"#.into(), Some("limited")),
            (r#"{"usPrivacy":"1---"}"#.into(), Some("not_applicable")),
            (r#"{"usPrivacy":7}"#.into(), Some("unknown")),
            (format!(r#"{{"tcString":"{granted}","gpc":true}}"#), Some("limited")),
            (format!(r#"{{"tcString":"{granted}","coppa":1}}"#), Some("denied")),
            (r#"{"gppSid":[7,8],"gpp":"DBAA"}"#.into(), Some("unknown")),
            (r#"{"lmt":0,"coppa":0}"#.into(), Some("not_applicable")),
        ] {
            assert_eq!(state(&event), expected, "{event}");
        }
    }
}
