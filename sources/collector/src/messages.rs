//! Events that other producers wrote to a shared topic, one JSON event a message, as the rows of a
//! frame.
//!
//! Row *r* is message *r*, always: a message that is no event must stay where it is, because an
//! event is found again by its place. It becomes a row of [`BROKEN_VERSION`], which the ledger sets
//! aside unread, and says in its extra fields what was found and what is wrong with it.
//!
//! What a collector derived stands in fields of its own ([`DERIVED`]): a click that it took as
//! invalid says so in `invalidReason`, with one of the collector's own reasons, and is born invalid
//! here as well; `payloadHash` is the hash of what the sender sent, which nobody can compute again
//! from a message, because users and IPs are not in it and stamped fields are. They are no fields
//! of the event. Whoever may write to the topic may say them; a sender cannot: a collector writes
//! what a sender called so under another name (`dataflow/life.rs`).
//!
//! A message may hold more of other fields than a body may ([`EXTRAS`]), because a collector writes
//! numbers out: what it has acknowledged must not be refused when it is read.
//!
//! The same message must give the same row whenever it is read, so nothing here looks at a clock
//! or at metadata: it was received at its log time, and no advertiser is filled in. Nor does
//! anything go by that time, which is a broker's: whether an event is too late, or claims to come
//! from the future, the ledger says, by the log time that its epoch gives it.

use crate::{
    batch::Batch,
    decode::{Decoder, Format, Intake, Rules},
    fault::{Fault, shown},
    pixel::{IP_CLICK_RATE, KNOWN_BOT, PREFETCH},
    scan::{Memo, Scanner, Value},
    sent::{Extra, ExtrasMax, Sent, read},
};
use arrow_buffer::Buffer;
use serde_json::json;
use std::borrow::Cow;
use trueup_operators::{hash::HashKey, problem::Problem};

/// Bytes of a broken message that are kept to be looked at.
const SHOWN_BYTES_MAX: usize = 1_024;

/// The fields of a message that say what a collector derived from the event. No sender's word.
pub const DERIVED: [&str; 3] = [INVALID_REASON, "consentState", PAYLOAD_HASH];
const INVALID_REASON: &str = "invalidReason";
const PAYLOAD_HASH: &str = "payloadHash";

/// What a message may hold of fields that are not in the table: those of a body, and what was
/// derived. `1e15`, written out, takes less than four times as much.
const EXTRAS: ExtrasMax = ExtrasMax {
    fields: ExtrasMax::OF_A_BODY.fields + DERIVED.len(),
    bytes: 4 * ExtrasMax::OF_A_BODY.bytes + 1_024,
};

/// A message of a shared topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// When the log took it, µs since 1970.
    pub log_time_us: i64,
    /// What it holds.
    pub payload: &'a [u8],
    /// Why it is no event, if that is known without reading it.
    pub foreign: Option<&'a str>,
}

/// Decodes runs of messages. It keeps its memory from run to run, and is for one thread at a time.
pub struct MessageDecoder(Decoder);

impl MessageDecoder {
    /// With the key of the installation's ids.
    pub fn new(key: HashKey) -> MessageDecoder {
        MessageDecoder(Decoder::new(key, 1))
    }

    /// The payload of a frame with a row for each message.
    ///
    /// # Errors
    /// When the run holds more text than a frame can. No message is an error, however broken.
    pub fn frame(&mut self, messages: &[Message<'_>]) -> Result<Buffer, Problem> {
        let rules = Rules {
            now_us: 0,
            future_skew_us_max: i64::MAX,
            events_max: messages.len(),
            publishers: &[],
            advertiser_of: &|_| None,
        };
        let (mut intake, memo) = self.0.intake(&rules, Format::Json);
        for message in messages {
            row(&mut intake, memo, message)?;
        }
        self.0.only_frame()
    }
}

fn row(intake: &mut Intake<'_>, memo: &mut Memo, message: &Message<'_>) -> Result<(), Problem> {
    intake.terms.now_us = message.log_time_us;
    let fault = match message.foreign {
        Some(reason) => Cow::Borrowed(reason),
        None => match event(intake, memo, message.payload)? {
            None => return Ok(()),
            Some(fault) => fault.into(),
        },
    };
    let text = &message.payload[..message.payload.len().min(SHOWN_BYTES_MAX)];
    let extra = json!({ "message": String::from_utf8_lossy(text), "fault": fault }).to_string();
    intake.batches[0].push_broken(message.log_time_us, extra.as_bytes());
    Ok(())
}

/// Takes a message as an event, or says why it is none.
fn event(
    intake: &mut Intake<'_>,
    memo: &mut Memo,
    payload: &[u8],
) -> Result<Option<String>, Problem> {
    if let Err(error) = std::str::from_utf8(payload) {
        let at = error.valid_up_to();
        return Ok(Some(format!("invalid_utf8: byte {at} of the message begins no character")));
    }
    let mut sent = Sent { extras_max: EXTRAS, ..Sent::default() };
    let mut scanner = Scanner::new(payload, intake.arena);
    if scanner.space() != Some(b'{') {
        return Ok(Some(said(&Fault::NotAnObject)));
    }
    if let Err(syntax) = read(&mut scanner, memo, &mut sent) {
        return Ok(Some(said(&Fault::BadJson(syntax))));
    }
    if scanner.space().is_some() {
        return Ok(Some("bad_json: there is text after the end of the event".into()));
    }
    intake.invalid_reason = derived(&sent, INVALID_REASON).and_then(reason);
    intake.terms.payload_hash = derived(&sent, PAYLOAD_HASH).and_then(hash);
    sent.extras.retain(|extra| DERIVED.iter().all(|name| name.as_bytes() != extra.name));
    match intake.try_take(&mut sent)? {
        Ok(()) => Ok(None),
        Err(fault) => {
            let id = sent.text(crate::fields::Field::EventId).map(shown);
            Ok(Some(id.map_or(said(&fault), |id| format!("{} (eventId {id})", said(&fault)))))
        }
    }
}

/// What a field of [`DERIVED`] says.
fn derived<'a>(sent: &Sent<'a>, name: &str) -> Option<&'a [u8]> {
    let is_it = |extra: &&Extra<'_>| extra.name == name.as_bytes();
    match sent.extras.iter().find(is_it)?.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

fn reason(text: &[u8]) -> Option<&'static str> {
    [KNOWN_BOT, PREFETCH, IP_CLICK_RATE].into_iter().find(|reason| reason.as_bytes() == text)
}

/// Sixteen hexadecimal digits.
fn hash(text: &[u8]) -> Option<u64> {
    let is_hash = text.len() == 16 && text.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(text).ok().filter(|_| is_hash)?;
    u64::from_str_radix(text, 16).ok()
}

fn said(fault: &Fault<'_>) -> String {
    format!("{}: {}", fault.code(), fault.message())
}

/// A decoder of messages has one batch.
impl Decoder {
    fn only_frame(&mut self) -> Result<Buffer, Problem> {
        self.only_batch().finish().map_err(|error| crate::collect::mistake(&error))
    }

    fn only_batch(&mut self) -> &mut Batch {
        &mut self.batches[0]
    }
}
