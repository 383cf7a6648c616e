//! What is wrong with one event. A fault is a few borrowed words, so that a body of nothing but bad
//! events costs no more than a body of good ones; only the first faults of a body become text.

use crate::{
    fields::{Field, Rule},
    scan::{Syntax, Value},
};
use serde::Serialize;
use trueup_operators::{symbols::OTHER_TEXT, time::format_rfc3339};

/// The most fields of one event that are not in the table, and the most bytes of them all.
pub(crate) const EXTRA_FIELDS_MAX: usize = 64;
pub(crate) const EXTRA_BYTES_MAX: usize = 8192;

/// The most parameters of a query.
pub(crate) const FREE_PARAMETERS_MAX: usize = 64;

/// How many bytes of a value a message shows.
const SHOWN_BYTES_MAX: usize = 64;

/// Why an event is not taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault<'a> {
    BadJson(Syntax),
    NotUtf8 { at: usize },
    NotAnObject,
    Missing(Field),
    Empty(Field),
    TooLong { field: Field, bytes: usize, bytes_max: usize },
    Reserved(Field),
    WrongType { field: Field, value: Value<'a> },
    Duplicate(&'a [u8]),
    TooManyFields { fields_max: usize },
    ExtraTooLarge { bytes: usize, bytes_max: usize },
    UnknownEventType(&'a [u8]),
    UnknownBasis(&'a [u8]),
    BadTime { field: Field, text: &'a [u8] },
    TimeOutOfRange { field: Field, us: i64 },
    InTheFuture { us: i64, ahead_us_max: i64 },
    BadCountry(&'a [u8]),
    NotAnInteger { field: Field, value: Value<'a> },
    OutOfRange { field: Field, value: Value<'a> },
    WrongPublisher(Option<&'a [u8]>),
}

/// An event that was not taken, as the answer names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventError {
    /// Which event of the body, from 0.
    pub index: usize,
    /// Its id, if it has one.
    pub event_id: Option<String>,
    /// Stable text.
    pub code: &'static str,
    /// Names the value at fault.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl Fault<'_> {
    /// Stable text.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Fault::BadJson(_) => "bad_json",
            Fault::NotUtf8 { .. } => "invalid_utf8",
            Fault::NotAnObject => "not_an_object",
            Fault::Missing(_) => "missing_field",
            Fault::Empty(_) => "empty_field",
            Fault::TooLong { .. } => "field_too_long",
            Fault::Reserved(_) => "reserved_text",
            Fault::WrongType { .. } => "wrong_type",
            Fault::Duplicate(_) => "duplicate_field",
            Fault::TooManyFields { .. } => "too_many_fields",
            Fault::ExtraTooLarge { .. } => "extra_too_large",
            Fault::UnknownEventType(_) => "unknown_event_type",
            Fault::UnknownBasis(_) => "unknown_price_basis",
            Fault::BadTime { .. } => "bad_time",
            Fault::TimeOutOfRange { .. } => "time_out_of_range",
            Fault::InTheFuture { .. } => "in_the_future",
            Fault::BadCountry(_) => "bad_country",
            Fault::NotAnInteger { .. } => "not_an_integer",
            Fault::OutOfRange { .. } => "number_out_of_range",
            Fault::WrongPublisher(_) => "wrong_publisher",
        }
    }

    /// Names the value at fault.
    pub(crate) fn message(&self) -> String {
        match *self {
            Fault::BadJson(Syntax { at, what }) => format!("byte {at}: {what}"),
            Fault::NotUtf8 { at } => {
                format!("the line that begins with byte {at} of the body is not UTF-8")
            }
            Fault::NotAnObject => "the event is not a JSON object".into(),
            Fault::Missing(field) => format!("`{}` is missing", field.name()),
            Fault::Empty(field) => format!("`{}` is an empty string", field.name()),
            Fault::TooLong { field, bytes, bytes_max } => {
                format!("`{}` has {bytes} bytes, the limit is {bytes_max}", field.name())
            }
            Fault::Reserved(field) => {
                format!(
                    "`{}` is \"{OTHER_TEXT}\", the name of what does not fit into a report",
                    field.name()
                )
            }
            Fault::WrongType { field, value } => {
                format!("`{}` is {}, which is not {}", field.name(), written(&value), wanted(field))
            }
            Fault::Duplicate(name) => format!("`{}` is there twice", shown(name)),
            Fault::TooManyFields { fields_max } => {
                format!("more than {fields_max} fields are not of the event schema")
            }
            Fault::ExtraTooLarge { bytes, bytes_max } => format!(
                "fields that are not of the event schema take {bytes} bytes or more, the limit is \
                 {bytes_max}"
            ),
            Fault::UnknownEventType(text) => format!("`eventType` is \"{}\"", shown(text)),
            Fault::UnknownBasis(text) => format!("`priceBasis` is \"{}\"", shown(text)),
            Fault::BadTime { field, text } => {
                format!("`{}` is \"{}\", which is no time", field.name(), shown(text))
            }
            Fault::TimeOutOfRange { field, us } => {
                format!("`{}` is {}", field.name(), format_rfc3339(us))
            }
            Fault::InTheFuture { us, ahead_us_max } => format!(
                "`occurredAt` is {}, more than {} s ahead of this server's clock",
                format_rfc3339(us),
                ahead_us_max / 1_000_000
            ),
            Fault::BadCountry(text) => format!("`country` is \"{}\"", shown(text)),
            Fault::NotAnInteger { field, value } => {
                format!("`{}` is {}, which is no whole number", field.name(), written(&value))
            }
            Fault::OutOfRange { field, value } => {
                format!("`{}` is {}, which is out of range", field.name(), written(&value))
            }
            Fault::WrongPublisher(Some(id)) => format!("`publisherId` is \"{}\"", shown(id)),
            Fault::WrongPublisher(None) => "`publisherId` is missing".into(),
        }
    }

    /// What to do.
    pub(crate) fn hint(&self) -> String {
        match *self {
            Fault::BadJson(syntax) if syntax.is_lone_surrogate() => {
                "cut texts between characters: an escaped one beyond U+FFFF is a pair".into()
            }
            Fault::BadJson(syntax) if syntax.is_too_deep() => {
                "send flatter fields, or what is in them as a text".into()
            }
            Fault::BadJson(_) => "send one JSON object a line".into(),
            Fault::NotUtf8 { .. } => "send JSON in UTF-8, and cut texts between characters".into(),
            Fault::NotAnObject => "send each event as an object of fields".into(),
            Fault::Missing(field) => format!("send `{}` with every event", field.name()),
            Fault::Empty(_) => "leave the field out when there is no value".into(),
            Fault::TooLong { .. } => "send a shorter value, or a hash of it".into(),
            Fault::Reserved(_) => "send another text".into(),
            Fault::WrongType { field, .. } => format!("send {}", wanted(field)),
            Fault::Duplicate(_) => "send each field once".into(),
            Fault::TooManyFields { .. } | Fault::ExtraTooLarge { .. } => {
                "send fewer fields of your own, or one object with what matters".into()
            }
            Fault::UnknownEventType(_) => "send `impression`, `click` or `conversion`".into(),
            Fault::UnknownBasis(_) => "send `cpc`, `cpm` or `cpa`".into(),
            Fault::BadTime { .. } => {
                "send RFC 3339 with an offset, such as 2026-04-27T15:32:10Z".into()
            }
            Fault::TimeOutOfRange { .. } => "send a time from 2000 to 2099".into(),
            Fault::InTheFuture { .. } => "set the sender's clock (NTP)".into(),
            Fault::BadCountry(_) => {
                "send two upper-case letters of ISO 3166-1 alpha-2, such as US".into()
            }
            Fault::NotAnInteger { .. } => {
                "send money as whole micros: 180000 for 0.18, with no point and no exponent".into()
            }
            Fault::OutOfRange { field, .. } => match crate::fields::FIELDS[field as usize].rule {
                Rule::Integer(min, max) => format!("send a whole number from {min} to {max}"),
                _ => "send a smaller number".into(),
            },
            Fault::WrongPublisher(_) => {
                "the token is bound to publishers; send one of them, or use another token".into()
            }
        }
    }
}

const fn wanted(field: Field) -> &'static str {
    match crate::fields::FIELDS[field as usize].rule {
        Rule::Text(_) => "a string",
        Rule::Time => "a time as a string",
        Rule::Integer(..) => "a whole number",
        Rule::Consent(_) => "a string, a number or a list of numbers",
    }
}

pub(crate) fn written(value: &Value<'_>) -> String {
    match *value {
        Value::Text(text) => format!("\"{}\"", shown(text)),
        Value::Integer(integer) => integer.to_string(),
        Value::Micros(us) => format_rfc3339(us),
        Value::Number(raw) | Value::Raw(raw) => shown(raw),
        Value::Null => "null".into(),
    }
}

/// The start of a value, for a message; control characters do not get into logs and terminals.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(SHOWN_BYTES_MAX)];
    let mut text: String = String::from_utf8_lossy(start)
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if start.len() < bytes.len() {
        text.push('…');
    }
    text
}
