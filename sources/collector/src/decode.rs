//! The decoder: a body in, one frame per partition out, in one pass.
//!
//! Every event is scanned into borrowed slices ([`Sent`]), checked, and appended to the columns of
//! its partition, which only the hash of its id decides. An event that breaks a rule is an error of
//! that event, and so is one whose texts were cut within a character or that is nested too deep; a
//! body that is no JSON of the expected shape is a problem of the whole body, and then nothing of
//! it is taken, because where one event ends and the next begins is not known. Of lines that is
//! always known: one that is no JSON, or no UTF-8, is an error of that line.
//!
//! What a body becomes is bounded as well ([`Decoder::text_bytes_max`]): an Arrow dictionary or
//! view names one text in many rows, and control characters grow when they are escaped.
//!
//! A decoder keeps its memory from body to body. It is for one thread at a time.

use crate::{
    arrow_body,
    batch::{Batch, Context},
    check::{Checker, Terms},
    fault::{EventError, Fault, shown},
    fields::{Field, FieldSet},
    scan::{Memo, Scanner, Syntax},
    sent::{Sent, read},
};
use bumpalo::Bump;
use std::sync::Arc;
use trueup_operators::{
    event::SCHEMA_VERSION,
    hash::{HashKey, partition},
    log::{Append, Topic},
    problem::Problem,
};

/// How many bad events an answer names.
pub(crate) const ERRORS_LISTED_MAX: usize = 100;

/// The most bytes of text that the events of a body may hold, unless a decoder is told otherwise.
/// Arrow's 32-bit offsets end at four times as much.
const TEXT_BYTES_MAX: usize = 512 * 1024 * 1024;

/// What a body is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `{"events":[…]}`
    Json,
    /// One event a line.
    Lines,
    /// An Arrow IPC stream.
    Arrow,
}

/// The advertiser of a campaign, from its metadata.
pub type AdvertiserOf<'a> = &'a dyn Fn(&str) -> Option<Arc<str>>;

/// What a body of events is checked against.
pub struct Rules<'a> {
    /// The clock, µs since 1970.
    pub now_us: i64,
    /// How far ahead of it an event may claim to be.
    pub future_skew_us_max: i64,
    /// The most events of one body.
    pub events_max: usize,
    /// The only publishers allowed. Empty: any.
    pub publishers: &'a [String],
    /// The advertiser of a campaign, for events that do not say.
    pub advertiser_of: AdvertiserOf<'a>,
}

/// What became of a body.
#[derive(Debug, Default)]
pub struct Decoded {
    /// One frame for each partition that got events.
    pub frames: Vec<Append>,
    /// Events in the frames.
    pub accepted: usize,
    /// Events that broke a rule.
    pub rejected: usize,
    /// The first of them.
    pub errors: Vec<EventError>,
    /// Rejected events by code.
    pub reasons: Vec<(&'static str, usize)>,
}

/// Decodes bodies.
pub struct Decoder {
    key: HashKey,
    checker: Checker,
    /// Of documents, and of lines: white space in the one may be the end of the record in the
    /// other, so nothing is carried over.
    memos: [Memo; 2],
    arena: Bump,
    pub(crate) batches: Vec<Batch>,
    text_bytes_max: usize,
}

impl Decoder {
    /// For a log with so many partitions of events.
    pub fn new(key: HashKey, partitions: u16) -> Decoder {
        Decoder {
            key,
            checker: Checker::new(key),
            memos: Default::default(),
            arena: Bump::new(),
            batches: (0..partitions.max(1)).map(|_| Batch::default()).collect(),
            text_bytes_max: TEXT_BYTES_MAX,
        }
    }

    /// The most bytes of text that the frames of one body may hold (at most 512 MiB).
    #[must_use]
    pub fn text_bytes_max(mut self, bytes: usize) -> Decoder {
        self.text_bytes_max = bytes.min(TEXT_BYTES_MAX);
        self
    }

    /// About how much memory it holds for the next body.
    pub(crate) fn kept_bytes(&self) -> usize {
        let batches: usize = self.batches.iter().map(Batch::kept_bytes).sum();
        batches + self.arena.allocated_bytes()
    }

    /// Decodes a body.
    ///
    /// # Errors
    /// When the body as a whole is not of the format's shape, is empty or holds too many events or
    /// too much text.
    pub fn decode(
        &mut self,
        body: &[u8],
        format: Format,
        rules: &Rules<'_>,
    ) -> Result<Decoded, Problem> {
        let (mut intake, memo) = self.intake(rules, format);
        match format {
            Format::Json => json(&mut intake, utf8(body)?, memo)?,
            Format::Lines => lines(&mut intake, body, memo)?,
            Format::Arrow => arrow_body::read(&mut intake, body)?,
        }
        let mut decoded = intake.out;
        if decoded.accepted + decoded.rejected == 0 {
            return Err(Problem::new(
                400,
                "empty_batch",
                "the body holds no event",
                "the body was read to its end and holds no event",
                "send at least one event",
            ));
        }
        decoded.frames = frames(&mut self.batches)?;
        Ok(decoded)
    }

    /// Puts single events into frames.
    pub(crate) fn decode_each(
        &mut self,
        events: &[Single],
        rules: &Rules<'_>,
    ) -> Result<Decoded, Problem> {
        let (mut intake, memo) = self.intake(rules, Format::Json);
        // They are no body: each of them has the limits of its query, and none fails for another.
        intake.text_bytes_max = TEXT_BYTES_MAX;
        let mut sent = Sent::default();
        for event in events {
            intake.invalid_reason = event.invalid_reason;
            intake.terms.stamped = event.stamped;
            let mut scanner = Scanner::new(utf8(&event.json)?, intake.arena);
            match read(&mut scanner, memo, &mut sent) {
                Ok(()) => intake.take(&mut sent)?,
                Err(syntax) => intake.refuse(&sent, Fault::BadJson(syntax))?,
            }
        }
        let mut decoded = intake.out;
        decoded.frames = frames(&mut self.batches)?;
        Ok(decoded)
    }

    /// Empty columns, and what events need to get into them.
    pub(crate) fn intake<'d>(
        &'d mut self,
        rules: &'d Rules<'d>,
        format: Format,
    ) -> (Intake<'d>, &'d mut Memo) {
        self.batches.iter_mut().for_each(Batch::clear);
        self.arena.reset();
        let intake = Intake {
            key: self.key,
            checker: &mut self.checker,
            batches: &mut self.batches,
            terms: Terms {
                now_us: rules.now_us,
                future_skew_us_max: rules.future_skew_us_max,
                publishers: rules.publishers,
                stamped: 0,
                payload_hash: None,
            },
            events_max: rules.events_max,
            text_bytes: 0,
            text_bytes_max: self.text_bytes_max,
            advertiser_of: rules.advertiser_of,
            arena: &self.arena,
            invalid_reason: None,
            out: Decoded::default(),
        };
        (intake, &mut self.memos[usize::from(format == Format::Lines)])
    }
}

/// An event that came by itself.
pub(crate) struct Single {
    pub(crate) json: Vec<u8>,
    /// Why the collector takes it as invalid.
    pub(crate) invalid_reason: Option<&'static str>,
    /// Fields that the collector filled in by itself.
    pub(crate) stamped: FieldSet,
}

/// Where the events of a body go, whatever it is written in.
pub(crate) struct Intake<'d> {
    key: HashKey,
    checker: &'d mut Checker,
    pub(crate) batches: &'d mut [Batch],
    pub(crate) terms: Terms<'d>,
    events_max: usize,
    /// Bytes of text in the batches.
    text_bytes: usize,
    text_bytes_max: usize,
    advertiser_of: AdvertiserOf<'d>,
    pub(crate) arena: &'d Bump,
    pub(crate) invalid_reason: Option<&'static str>,
    out: Decoded,
}

impl<'d> Intake<'d> {
    /// Checks an event and takes or refuses it.
    #[inline(always)]
    pub(crate) fn take(&mut self, sent: &mut Sent<'_>) -> Result<(), Problem> {
        if self.room() == 0 {
            return Err(too_many_events(self.events_max));
        }
        match self.try_take(sent)? {
            Ok(()) => Ok(()),
            Err(fault) => self.refuse(sent, fault),
        }
    }

    /// Checks an event and takes it, or says which rule it breaks.
    #[inline(always)]
    pub(crate) fn try_take<'s>(
        &mut self,
        sent: &mut Sent<'s>,
    ) -> Result<Result<(), Fault<'s>>, Problem> {
        let checked = match self.checker.check(sent, &self.terms, self.arena) {
            Ok(checked) => checked,
            Err(fault) => return self.try_take_other(sent, fault),
        };
        let at = partition(&checked.id_hash, self.batches.len() as u16);
        let context = Context {
            key: self.key,
            advertiser_of: self.advertiser_of,
            invalid_reason: self.invalid_reason,
        };
        let bytes = self.batches[usize::from(at)].push(sent, &checked, &context);
        self.taken(bytes).map(Ok)
    }

    /// Takes an event that breaks a rule if it is of another schema version.
    #[cold]
    fn try_take_other<'s>(
        &mut self,
        sent: &Sent<'s>,
        fault: Fault<'s>,
    ) -> Result<Result<(), Fault<'s>>, Problem> {
        let checked = match self.checker.check_other(sent, &self.terms, self.arena) {
            None => return Ok(Err(fault)),
            Some(Err(fault)) => return Ok(Err(fault)),
            Some(Ok(checked)) => checked,
        };
        let at = partition(&checked.id_hash, self.batches.len() as u16);
        let bytes = self.batches[usize::from(at)].push_other(sent, &checked, self.key);
        self.taken(bytes).map(Ok)
    }

    /// Counts an event that was taken and came to so many bytes of text.
    #[inline(always)]
    fn taken(&mut self, bytes: usize) -> Result<(), Problem> {
        self.text_bytes += bytes;
        self.out.accepted += 1;
        if self.text_bytes > self.text_bytes_max {
            return Err(too_much_text(self.text_bytes_max));
        }
        Ok(())
    }

    /// What is said when there is no room.
    pub(crate) fn too_many_events(&self) -> Problem {
        too_many_events(self.events_max)
    }

    /// How many more events the body may hold.
    pub(crate) fn room(&self) -> usize {
        self.events_max - self.out.accepted - self.out.rejected
    }

    /// Counts an event that breaks a rule.
    #[cold]
    pub(crate) fn refuse(&mut self, sent: &Sent<'_>, fault: Fault<'_>) -> Result<(), Problem> {
        if self.room() == 0 {
            return Err(too_many_events(self.events_max));
        }
        let out = &mut self.out;
        if out.errors.len() < ERRORS_LISTED_MAX {
            out.errors.push(EventError {
                index: out.accepted + out.rejected,
                event_id: sent.text(Field::EventId).map(shown),
                code: fault.code(),
                message: fault.message(),
                hint: fault.hint(),
            });
        }
        out.rejected += 1;
        match out.reasons.iter_mut().find(|r| r.0 == fault.code()) {
            Some(reason) => reason.1 += 1,
            None => out.reasons.push((fault.code(), 1)),
        }
        Ok(())
    }
}

#[cold]
fn too_many_events(events_max: usize) -> Problem {
    Problem::new(
        413,
        "too_many_events",
        "the batch holds too many events",
        format!("the batch holds more than {events_max} events"),
        "send smaller batches, or raise `[limits] events_per_batch_max`",
    )
}

#[cold]
fn too_much_text(bytes_max: usize) -> Problem {
    Problem::new(
        413,
        "decoded_body_too_large",
        "the decoded events are too large",
        format!("the events of the body come to more than {bytes_max} bytes of text"),
        "send smaller batches, or raise `[limits] body_decoded_bytes_max`",
    )
}

fn utf8(body: &[u8]) -> Result<&[u8], Problem> {
    match std::str::from_utf8(body) {
        Ok(_) => Ok(body),
        Err(error) => Err(Problem::new(
            400,
            "invalid_utf8",
            "the body is not UTF-8",
            format!("byte {} of the body begins no UTF-8 character", error.valid_up_to()),
            "send JSON in UTF-8",
        )),
    }
}

#[cold]
fn bad_json(Syntax { at, what }: Syntax) -> Problem {
    Problem::new(
        400,
        "bad_json",
        "the body is no JSON of the expected shape",
        format!("byte {at}: {what}"),
        "send {\"events\":[…]} as application/json, or one event a line as application/x-ndjson",
    )
}

/// `{"events":[…]}`; other members of the envelope say nothing about events and are skipped.
fn json<'d>(intake: &mut Intake<'d>, body: &'d [u8], memo: &mut Memo) -> Result<(), Problem> {
    let mut scanner = Scanner::new(body, intake.arena);
    let mut found = false;
    scanner.expect(b'{', "expected an object with the member \"events\"").map_err(bad_json)?;
    if scanner.space() != Some(b'}') {
        loop {
            let start = scanner.at;
            if scanner.key().map_err(bad_json)? == b"events" {
                if found {
                    return Err(bad_json(Syntax { at: start, what: "\"events\" is there twice" }));
                }
                found = true;
                events(intake, &mut scanner, memo)?;
            } else {
                scanner.pass().map_err(bad_json)?;
            }
            if scanner.space() != Some(b',') {
                break;
            }
            scanner.at += 1;
        }
    }
    scanner.expect(b'}', "expected `,` or `}`").map_err(bad_json)?;
    if scanner.space().is_some() {
        return Err(bad_json(Syntax { at: scanner.at, what: "text after the end of the body" }));
    }
    if !found {
        return Err(bad_json(Syntax { at: scanner.at, what: "there is no member \"events\"" }));
    }
    Ok(())
}

fn events<'d>(
    intake: &mut Intake<'d>,
    scanner: &mut Scanner<'d>,
    memo: &mut Memo,
) -> Result<(), Problem> {
    let mut sent = Sent::default();
    scanner.expect(b'[', "\"events\" is not an array").map_err(bad_json)?;
    if scanner.space() == Some(b']') {
        scanner.at += 1;
        return Ok(());
    }
    loop {
        if scanner.space() == Some(b'{') {
            let start = scanner.at;
            match read(scanner, memo, &mut sent) {
                Ok(()) => intake.take(&mut sent)?,
                Err(syntax) => pass(intake, scanner, start, &sent, syntax)?,
            }
        } else {
            scanner.pass().map_err(bad_json)?;
            sent.clear();
            intake.refuse(&sent, Fault::NotAnObject)?;
        }
        match scanner.space() {
            Some(b',') => scanner.at += 1,
            Some(b']') => {
                scanner.at += 1;
                return Ok(());
            }
            _ => return Err(bad_json(Syntax { at: scanner.at, what: "expected `,` or `]`" })),
        }
    }
}

/// Goes behind an event that could not be read, if it has an end, and counts it as bad.
#[cold]
fn pass<'d>(
    intake: &mut Intake<'d>,
    scanner: &mut Scanner<'d>,
    start: usize,
    sent: &Sent<'d>,
    syntax: Syntax,
) -> Result<(), Problem> {
    if !syntax.has_an_end() {
        return Err(bad_json(syntax));
    }
    scanner.at = start;
    scanner.pass().map_err(bad_json)?;
    intake.refuse(sent, Fault::BadJson(syntax))
}

/// One event a line. A line that is no JSON is an error of that line only.
fn lines<'d>(intake: &mut Intake<'d>, body: &'d [u8], memo: &mut Memo) -> Result<(), Problem> {
    let is_utf8 = utf8(body);
    let mut scanner = Scanner::of_lines(body, intake.arena);
    let mut sent = Sent::default();
    let mut others = 0;
    loop {
        match scanner.space() {
            None => break,
            Some(b'\n') => scanner.at += 1,
            Some(_) if is_utf8.is_err() && !is_utf8_line(&scanner) => {
                others += 1;
                sent.clear();
                let at = scanner.at;
                scanner.at = end_of_line(&scanner);
                intake.refuse(&sent, Fault::NotUtf8 { at })?;
            }
            Some(_) => line(intake, &mut scanner, memo, &mut sent)?,
        }
    }
    match is_utf8 {
        // Of something else altogether, a packed file for one, no line is a text.
        Err(problem) if others == intake.out.accepted + intake.out.rejected => Err(problem),
        _ => Ok(()),
    }
}

fn end_of_line(scanner: &Scanner<'_>) -> usize {
    let end = memchr::memchr(b'\n', &scanner.text[scanner.at..]);
    end.map_or(scanner.text.len(), |end| scanner.at + end)
}

fn is_utf8_line(scanner: &Scanner<'_>) -> bool {
    std::str::from_utf8(&scanner.text[scanner.at..end_of_line(scanner)]).is_ok()
}

fn line<'d>(
    intake: &mut Intake<'d>,
    scanner: &mut Scanner<'d>,
    memo: &mut Memo,
    sent: &mut Sent<'d>,
) -> Result<(), Problem> {
    sent.clear();
    let start = scanner.at;
    let object = scanner.byte() == Some(b'{');
    let result = if object { read(scanner, memo, sent) } else { scanner.skip() };
    let result = match (result, scanner.space()) {
        (Ok(()), None | Some(b'\n')) => Ok(()),
        (Ok(()), Some(_)) => scanner.error("text after the end of the event"),
        (Err(syntax), _) => Err(syntax),
    };
    match result {
        Ok(()) if object => intake.take(sent),
        Ok(()) => intake.refuse(sent, Fault::NotAnObject),
        Err(syntax) => {
            scanner.at = start;
            scanner.at = end_of_line(scanner);
            intake.refuse(sent, Fault::BadJson(syntax))
        }
    }
}

fn frames(batches: &mut [Batch]) -> Result<Vec<Append>, Problem> {
    let mut frames = Vec::new();
    for (partition, batch) in batches.iter_mut().enumerate().filter(|b| b.1.rows() > 0) {
        let payload = batch.finish().map_err(|error| {
            Problem::new(
                500,
                "internal_error",
                "the collector made a mistake",
                format!("the batch of partition {partition} cannot be written: {error}"),
                "report this together with the body; nothing of it was taken",
            )
        })?;
        frames.push(Append {
            topic: Topic::Events,
            partition: partition as u16,
            schema_version: SCHEMA_VERSION,
            records: batch.rows() as u32,
            payload,
        });
    }
    Ok(frames)
}
