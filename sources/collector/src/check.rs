//! Checks an event against the rules of the contract and computes what the log stores of it that
//! was not sent: the keyed hash of its id, the payload hash, the derived times.
//!
//! The checks never change a value: what passes is stored as it was sent. The first fault found
//! is the one that is named: the form of the event, required fields, the lengths of texts, texts
//! that must be one of a few words, times, numbers, consent; each in the order of the table.
//!
//! An event of another schema version may have other fields and other rules, which only a later
//! program knows. It is not refused for breaking these: if it has an id and a time and is not too
//! large, it goes to the quarantine as it was sent ([`Checker::check_other`]).

use crate::{
    fault::Fault,
    fields::{
        ALL, COUNT, EVENT_ID_BYTES_MAX, FIELDS, Field, FieldSet, REQUIRED, Rule, TEXT_BYTES_MAX,
        TEXT_FIELDS, for_each_field, tag_of,
    },
    instant::Instants,
    payload,
    scan::Value,
    sent::Sent,
};
use bumpalo::Bump;
use trueup_operators::{
    event::{EventType, OCCURRED_US, SCHEMA_VERSION},
    hash::{Domain, HashKey, IdHash, mix, stable},
    money::PriceBasis,
    symbols::OTHER_TEXT,
};

/// What the events of one body are checked against.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    /// The collector's clock, µs.
    pub(crate) now_us: i64,
    /// How far ahead of it an event may claim to be.
    pub(crate) future_skew_us_max: i64,
    /// The only publishers allowed. Empty: any.
    pub(crate) publishers: &'a [String],
    /// Fields that the collector filled in by itself: not part of the payload hash.
    pub(crate) stamped: FieldSet,
    /// The payload hash, if whoever was sent the event has computed it.
    pub(crate) payload_hash: Option<u64>,
}

/// What a checked event adds to the values that it was sent with.
pub(crate) struct Checked {
    pub(crate) id_hash: IdHash,
    pub(crate) payload_hash: u64,
    pub(crate) event_type: EventType,
    pub(crate) occurred_us: i64,
    pub(crate) received_us: i64,
    pub(crate) price_micros: i64,
    pub(crate) price_basis: PriceBasis,
    pub(crate) value_micros: Option<i64>,
    pub(crate) schema_version: u16,
}

impl Checked {
    /// Of an event that was received then, before its values are looked at.
    #[inline]
    fn of(received_us: i64, payload_hash: u64, schema_version: u16) -> Checked {
        Checked {
            id_hash: [0; 16],
            payload_hash,
            event_type: EventType::Impression,
            occurred_us: 0,
            received_us,
            price_micros: 0,
            price_basis: PriceBasis::Cpc,
            value_micros: None,
            schema_version,
        }
    }
}

/// Checks events; keeps what helps from one to the next.
pub(crate) struct Checker {
    key: HashKey,
    tags: [u64; COUNT],
    /// The hash of the text that no event may have: rows that fold together are called so.
    other: u64,
    instants: Instants,
}

impl Checker {
    pub(crate) fn new(key: HashKey) -> Checker {
        Checker {
            key,
            tags: crate::fields::tags(),
            other: stable(OTHER_TEXT.as_bytes()),
            instants: Instants::default(),
        }
    }

    /// Checks an event that was read, and fills in the hashes of its texts.
    pub(crate) fn check<'a>(
        &mut self,
        sent: &mut Sent<'a>,
        terms: &Terms<'_>,
        arena: &Bump,
    ) -> Result<Checked, Fault<'a>> {
        if let Some(fault) = sent.fault {
            return Err(fault);
        }
        let missing = REQUIRED & !sent.present;
        if missing != 0 {
            return Err(Fault::Missing(ALL[missing.trailing_zeros() as usize]));
        }
        let texts = self.texts(sent, terms.stamped)?;
        let mut checked = Checked::of(terms.now_us, texts, SCHEMA_VERSION);
        words(sent, &mut checked)?;
        let mut payload = checked.payload_hash;
        for_each_field!(sent.present & !TEXT_FIELDS, number => {
            let share = self.other(ALL[number], sent.values[number], &mut checked, terms, arena)?;
            if terms.stamped >> number & 1 == 0 {
                payload = payload.wrapping_add(share);
            }
        });
        for extra in &sent.extras {
            let share = payload::of_value(tag_of(extra.name), &extra.value, arena);
            payload = payload.wrapping_add(share);
        }
        checked.payload_hash = terms.payload_hash.unwrap_or(payload);
        check_publisher(sent, terms)?;
        if let Value::Text(id) = sent.values[Field::EventId as usize] {
            checked.id_hash = self.key.hash(Domain::Event, id);
        }
        Ok(checked)
    }

    /// Checks an event that breaks a rule of this version. `None`: it is of this version, or its
    /// form is at fault.
    #[cold]
    pub(crate) fn check_other<'a>(
        &mut self,
        sent: &Sent<'a>,
        terms: &Terms<'_>,
        arena: &Bump,
    ) -> Option<Result<Checked, Fault<'a>>> {
        let schema_version = other_version(sent).filter(|_| sent.fault.is_none())?;
        Some(self.other_version(sent, schema_version, terms, arena))
    }

    fn other_version<'a>(
        &mut self,
        sent: &Sent<'a>,
        schema_version: u16,
        terms: &Terms<'_>,
        arena: &Bump,
    ) -> Result<Checked, Fault<'a>> {
        let mut checked = Checked::of(terms.now_us, 0, schema_version);
        let id = match sent.get(Field::EventId) {
            None => return Err(Fault::Missing(Field::EventId)),
            Some(Value::Text(id)) => *id,
            Some(value) => return Err(Fault::WrongType { field: Field::EventId, value: *value }),
        };
        if id.len().wrapping_sub(1) >= EVENT_ID_BYTES_MAX {
            return Err(bad_length(Field::EventId, id, EVENT_ID_BYTES_MAX));
        }
        let at = sent.get(Field::OccurredAt).ok_or(Fault::Missing(Field::OccurredAt))?;
        self.time(Field::OccurredAt, *at, &mut checked, terms)?;
        if let Some(at) = sent.get(Field::ReceivedAt) {
            self.time(Field::ReceivedAt, *at, &mut checked, terms)?;
        }
        let (mut bytes, bytes_max) = (0, 4 * sent.extras_max.bytes);
        for_each_field!(sent.present, number => {
            let value = sent.values[number];
            bytes += value.bytes_about();
            if ALL[number] != Field::ReceivedAt && terms.stamped >> number & 1 == 0 {
                let share = payload::of_value(self.tags[number], &value, arena);
                checked.payload_hash = checked.payload_hash.wrapping_add(share);
            }
        });
        if bytes > bytes_max {
            return Err(Fault::ExtraTooLarge { bytes, bytes_max });
        }
        for extra in &sent.extras {
            let share = payload::of_value(tag_of(extra.name), &extra.value, arena);
            checked.payload_hash = checked.payload_hash.wrapping_add(share);
        }
        if let Some(hash) = terms.payload_hash {
            checked.payload_hash = hash;
        }
        check_publisher(sent, terms)?;
        checked.id_hash = self.key.hash(Domain::Event, id);
        Ok(checked)
    }

    /// Checks the lengths of all texts; returns what they add to the payload hash.
    #[inline(always)]
    fn texts<'a>(&self, sent: &mut Sent<'a>, stamped: FieldSet) -> Result<u64, Fault<'a>> {
        let mut payload = 0u64;
        for_each_field!(sent.present & TEXT_FIELDS, number => {
            let value = sent.values[number];
            let Value::Text(text) = value else {
                return Err(Fault::WrongType { field: ALL[number], value });
            };
            if text.len().wrapping_sub(1) >= TEXT_BYTES_MAX[number] {
                return Err(bad_length(ALL[number], text, TEXT_BYTES_MAX[number]));
            }
            if sent.hashed >> number & 1 == 0 {
                sent.hashes[number] = stable(text);
            }
            if sent.hashes[number] == self.other && text == OTHER_TEXT.as_bytes() {
                return Err(Fault::Reserved(ALL[number]));
            }
            if stamped >> number & 1 == 0 {
                let share = payload::of_text(self.tags[number], sent.hashes[number]);
                payload = payload.wrapping_add(share);
            }
        });
        Ok(payload)
    }

    /// Checks a field that is no text; returns what it adds to the payload hash.
    #[inline(always)]
    fn other<'a>(
        &mut self,
        field: Field,
        value: Value<'a>,
        checked: &mut Checked,
        terms: &Terms<'_>,
        arena: &Bump,
    ) -> Result<u64, Fault<'a>> {
        match FIELDS[field as usize].rule {
            Rule::Time => self.time(field, value, checked, terms),
            Rule::Integer(min, max) => {
                let integer = integer(field, value, min, max, checked)?;
                Ok(payload::of_integer(self.tags[field as usize], integer))
            }
            Rule::Consent(bytes_max) => {
                let bytes = match value {
                    Value::Text(text) | Value::Number(text) | Value::Raw(text) => text.len(),
                    _ => 0,
                };
                if bytes > bytes_max {
                    return Err(Fault::TooLong { field, bytes, bytes_max });
                }
                Ok(payload::of_value(self.tags[field as usize], &value, arena))
            }
            Rule::Text(_) => Ok(0),
        }
    }

    fn time<'a>(
        &mut self,
        field: Field,
        value: Value<'a>,
        checked: &mut Checked,
        terms: &Terms<'_>,
    ) -> Result<u64, Fault<'a>> {
        let us = match value {
            Value::Micros(us) => us,
            Value::Text(b"") => return Err(Fault::Empty(field)),
            Value::Text(text) => self.instants.read(text).ok_or(Fault::BadTime { field, text })?,
            _ => return Err(Fault::WrongType { field, value }),
        };
        if !OCCURRED_US.contains(&us) {
            return Err(Fault::TimeOutOfRange { field, us });
        }
        if field == Field::ReceivedAt {
            checked.received_us = us;
            return Ok(0);
        }
        if us > terms.now_us.saturating_add(terms.future_skew_us_max) {
            return Err(Fault::InTheFuture { us, ahead_us_max: terms.future_skew_us_max });
        }
        checked.occurred_us = us;
        Ok(payload::of_micros(self.tags[field as usize], us))
    }
}

/// The schema version of an event that says another than this one's. Above what 16 bits hold it
/// stands at their limit.
pub(crate) fn other_version(sent: &Sent<'_>) -> Option<u16> {
    let version = match sent.get(Field::SchemaVersion)? {
        Value::Integer(version) => u16::try_from((*version).min(u16::MAX.into())).ok()?,
        Value::Number(written) if written.iter().all(u8::is_ascii_digit) => u16::MAX,
        _ => return None,
    };
    (version != SCHEMA_VERSION).then_some(version)
}

#[cold]
fn bad_length(field: Field, text: &[u8], bytes_max: usize) -> Fault<'static> {
    if text.is_empty() {
        Fault::Empty(field)
    } else {
        Fault::TooLong { field, bytes: text.len(), bytes_max }
    }
}

/// The texts that must be one of a few words.
#[inline(always)]
fn words<'a>(sent: &Sent<'a>, checked: &mut Checked) -> Result<(), Fault<'a>> {
    if let Some(text) = sent.text(Field::EventType) {
        checked.event_type = event_type(text)?;
    }
    if let Some(text) = sent.text(Field::Country) {
        check_country(text)?;
    }
    if let Some(text) = sent.text(Field::PriceBasis) {
        checked.price_basis = price_basis(text)?;
    }
    Ok(())
}

fn event_type(text: &[u8]) -> Result<EventType, Fault<'_>> {
    match text {
        b"impression" => Ok(EventType::Impression),
        b"click" => Ok(EventType::Click),
        b"conversion" => Ok(EventType::Conversion),
        _ => Err(Fault::UnknownEventType(text)),
    }
}

fn price_basis(text: &[u8]) -> Result<PriceBasis, Fault<'_>> {
    match text {
        b"cpc" => Ok(PriceBasis::Cpc),
        b"cpm" => Ok(PriceBasis::Cpm),
        b"cpa" => Ok(PriceBasis::Cpa),
        _ => Err(Fault::UnknownBasis(text)),
    }
}

fn check_country(text: &[u8]) -> Result<(), Fault<'_>> {
    match text {
        [b'A'..=b'Z', b'A'..=b'Z'] => Ok(()),
        _ => Err(Fault::BadCountry(text)),
    }
}

fn integer<'a>(
    field: Field,
    value: Value<'a>,
    min: i64,
    max: i64,
    checked: &mut Checked,
) -> Result<i64, Fault<'a>> {
    let integer = match value {
        Value::Integer(integer) => integer,
        // It does not fit into 64 bits, and no bound is that high.
        Value::Number(written) if written.iter().all(|b| b.is_ascii_digit() || *b == b'-') => {
            return Err(Fault::OutOfRange { field, value });
        }
        Value::Number(_) => return Err(Fault::NotAnInteger { field, value }),
        _ => return Err(Fault::WrongType { field, value }),
    };
    if !(min..=max).contains(&integer) {
        return Err(Fault::OutOfRange { field, value });
    }
    match field {
        Field::PriceMicros => checked.price_micros = integer,
        Field::ValueMicros => checked.value_micros = Some(integer),
        _ => checked.schema_version = integer as u16,
    }
    Ok(integer)
}

fn check_publisher<'a>(sent: &Sent<'a>, terms: &Terms<'_>) -> Result<(), Fault<'a>> {
    if terms.publishers.is_empty() {
        return Ok(());
    }
    let id = sent.text(Field::PublisherId);
    match id {
        Some(id) if terms.publishers.iter().any(|p| p.as_bytes() == id) => Ok(()),
        _ => Err(Fault::WrongPublisher(id)),
    }
}

/// A dictionary hash for a text that is no field of the event.
pub(crate) fn dictionary_hash(text: &[u8]) -> u64 {
    mix(stable(text), 0)
}
