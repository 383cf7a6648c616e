//! The payload hash: two copies of an event id with different payload hashes are a conflict.
//!
//! It is a sum, over the fields that the sender sent, of a hash of (name, value). So the order of
//! the keys and the white space do not matter, and JSON and Arrow copies of one event agree: times
//! are hashed as µs, whole numbers as numbers, strings with their escapes resolved. `1` and `"1"`
//! differ. `receivedAt` is left out (a retry is received at another time), and so is everything
//! that the collector adds. A field that is `null` counts as not sent.
//!
//! Nested values are hashed in the same way: the members of an object in any order, the elements
//! of an array in theirs. Numbers that are no whole numbers of 64 bits (`1.50`, `1e3`, twenty
//! digits) are hashed as written.
//!
//! The hash is stored and compared for as long as the correction horizon: the constants below
//! must never change.

use crate::{
    fields::tag_of,
    scan::{Scanner, Syntax, Value},
};
use bumpalo::Bump;
use trueup_operators::hash::{mix, stable};

const INTEGER: u64 = 0x01;
const NUMBER: u64 = 0x02;
const TIME: u64 = 0x03;
const OBJECT: u64 = 0x04;
const ARRAY: u64 = 0x05;
const LITERAL: u64 = 0x06;

/// What a text adds to the payload hash; [`stable`] of the text is also its dictionary hash.
#[inline(always)]
pub(crate) fn of_text(tag: u64, text_hash: u64) -> u64 {
    mix(text_hash, tag)
}

/// What a whole number adds.
#[inline]
pub(crate) fn of_integer(tag: u64, value: i64) -> u64 {
    mix(mix(value as u64, INTEGER), tag)
}

/// What a time adds.
#[inline]
pub(crate) fn of_micros(tag: u64, us: i64) -> u64 {
    mix(mix(us as u64, TIME), tag)
}

/// What a value of any kind adds.
pub(crate) fn of_value(tag: u64, value: &Value<'_>, arena: &Bump) -> u64 {
    match *value {
        Value::Text(text) => of_text(tag, stable(text)),
        Value::Integer(integer) => of_integer(tag, integer),
        Value::Micros(us) => of_micros(tag, us),
        Value::Number(written) => mix(mix(stable(written), NUMBER), tag),
        Value::Raw(written) => {
            let mut scanner = Scanner::new(written, arena);
            // Written text was checked when it was scanned; if it were not, its bytes decide.
            mix(nested(&mut scanner).unwrap_or_else(|_| stable(written)), tag)
        }
        Value::Null => 0,
    }
}

/// The hash of a value that was checked before; recursion is bounded by the scanner's `DEPTH_MAX`.
fn nested(scanner: &mut Scanner<'_>) -> Result<u64, Syntax> {
    let start = scanner.at;
    match scanner.byte() {
        Some(b'{') => object(scanner),
        Some(b'[') => array(scanner),
        Some(b't' | b'f' | b'n') => {
            scanner.skip()?;
            Ok(mix(stable(&scanner.text[start..scanner.at]), LITERAL))
        }
        _ => Ok(match scanner.value()? {
            Value::Text(text) => of_text(0, stable(text)),
            Value::Integer(integer) => of_integer(0, integer),
            Value::Number(written) => mix(stable(written), NUMBER),
            _ => return scanner.error("expected a value"),
        }),
    }
}

fn object(scanner: &mut Scanner<'_>) -> Result<u64, Syntax> {
    let mut sum = 0u64;
    scanner.at += 1;
    if scanner.space() == Some(b'}') {
        scanner.at += 1;
        return Ok(mix(sum, OBJECT));
    }
    loop {
        let tag = tag_of(scanner.key()?);
        sum = sum.wrapping_add(mix(nested(scanner)?, tag));
        let end = scanner.space();
        scanner.at += 1;
        if end != Some(b',') {
            return Ok(mix(sum, OBJECT));
        }
    }
}

fn array(scanner: &mut Scanner<'_>) -> Result<u64, Syntax> {
    let mut fold = ARRAY;
    scanner.at += 1;
    if scanner.space() == Some(b']') {
        scanner.at += 1;
        return Ok(fold);
    }
    loop {
        scanner.space();
        fold = mix(nested(scanner)?, fold);
        let end = scanner.space();
        scanner.at += 1;
        if end != Some(b',') {
            return Ok(fold);
        }
    }
}
