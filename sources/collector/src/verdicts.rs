//! `POST /v1/verdicts`: what fraud detection decided of events and impressions. The verdicts of a
//! body become one frame of the verdicts topic; a verdict that breaks a rule is an error of that
//! verdict. Nothing is looked up: a verdict may come before its event, and is remembered until
//! then. So verdicts are pushed back like events when the dataflow is behind or its state is full.
//!
//! Sending verdicts again is harmless (the latest decision wins), so there is no idempotency key.

use crate::{
    append::append,
    collect::{Answer, accepted, batch_id, mistake},
    collector::{Collector, Inner, content_length, header_text},
    decode::ERRORS_LISTED_MAX,
    fault::{EventError, shown, written},
    fields::{EVENT_ID_BYTES_MAX, ID_BYTES_MAX},
    inflate::Encoding,
    names::Metric,
    scan::{Scanner, Syntax, Value},
};
use arrow_buffer::Buffer;
use axum::{
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bumpalo::Bump;
use std::sync::Arc;
use trueup_operators::{
    access::Action,
    event::{OCCURRED_US, SCHEMA_VERSION, Target, Verdict},
    hash::Domain,
    log::{Append, Topic},
    problem::Problem,
    time::{format_rfc3339, parse_rfc3339},
};

/// Some 40,000 verdicts.
const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The route.
pub(crate) async fn judge(State(collector): State<Collector>, request: Request) -> Response {
    match accept(collector.0, request).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    }
}

async fn accept(inner: Arc<Inner>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let token = inner.sender(&parts.headers, Action::Judge)?.token;
    let encoding = Encoding::of(header_text(&parts.headers, "content-encoding"))?;
    inner.has_place()?;
    inner.pressure.check()?;
    let mut bounds = inner.bounds();
    bounds.bytes_max = bounds.bytes_max.min(BODY_BYTES_MAX);
    let declared = content_length(&parts.headers);
    let whole = inner.held.collect(token, body, declared, bounds).await?;
    let _place = inner.enter()?;
    let slot = inner.decode_slots.clone().acquire_owned().await.map_err(|e| mistake(&e))?;
    let reader = inner.clone();
    let read = tokio::task::spawn_blocking(move || {
        let _slot = slot;
        let mut desk = reader.desk();
        let read = match encoding {
            Encoding::Identity => read(&reader, &whole),
            packed => desk
                .inflater
                .inflate(packed, &whole, BODY_BYTES_MAX)
                .and_then(|plain| read(&reader, plain)),
        };
        reader.desks.give(desk);
        read
    });
    let read = read.await.map_err(|error| mistake(&error))??;
    if let Some(frame) = read.frame {
        append(&inner.log, vec![frame]).await?;
    }
    Metric::VerdictsAccepted.add(read.accepted);
    Metric::VerdictsRejected.add(read.rejected);
    let answer = Answer {
        accepted: read.accepted,
        rejected: read.rejected,
        ingest_batch_id: batch_id(inner.now_us())?,
        errors: &read.errors,
    };
    Ok(accepted(answer.write()))
}

struct Read {
    frame: Option<Append>,
    accepted: usize,
    rejected: usize,
    errors: Vec<EventError>,
}

fn read(inner: &Inner, body: &[u8]) -> Result<Read, Problem> {
    if let Err(error) = std::str::from_utf8(body) {
        let at = error.valid_up_to();
        return Err(bad_json(Syntax { at, what: "no UTF-8 character begins here" }));
    }
    let arena = Bump::new();
    let mut scanner = Scanner::new(body, &arena);
    let mut intake =
        Intake { inner, now_us: inner.now_us(), good: Vec::new(), rejected: 0, errors: Vec::new() };
    let mut found = false;
    scanner.expect(b'{', "expected an object with the member \"verdicts\"").map_err(bad_json)?;
    if scanner.space() != Some(b'}') {
        loop {
            let start = scanner.at;
            if scanner.key().map_err(bad_json)? == b"verdicts" {
                if found {
                    return Err(bad_json(Syntax {
                        at: start,
                        what: "\"verdicts\" is there twice",
                    }));
                }
                found = true;
                intake.verdicts(&mut scanner)?;
            } else {
                scanner.skip().map_err(bad_json)?;
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
    intake.finish()
}

/// Verdicts of one body.
struct Intake<'i> {
    inner: &'i Inner,
    now_us: i64,
    good: Vec<Verdict>,
    rejected: usize,
    errors: Vec<EventError>,
}

impl Intake<'_> {
    fn verdicts(&mut self, scanner: &mut Scanner<'_>) -> Result<(), Problem> {
        let verdicts_max = self.inner.settings.verdicts_per_batch_max;
        scanner.expect(b'[', "\"verdicts\" is not an array").map_err(bad_json)?;
        if scanner.space() == Some(b']') {
            scanner.at += 1;
            return Ok(());
        }
        loop {
            if self.good.len() + self.rejected == verdicts_max {
                return Err(Problem::new(
                    413,
                    "too_many_verdicts",
                    "the batch holds too many verdicts",
                    format!("the batch holds more than {verdicts_max} verdicts"),
                    "send smaller batches, or raise `[limits] verdicts_per_batch_max`",
                ));
            }
            scanner.space();
            let fields = Fields::read(scanner).map_err(bad_json)?;
            match fields.verdict(self.inner, self.now_us) {
                Ok(verdict) => self.good.push(verdict),
                Err(fault) => self.refuse(&fields, fault),
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

    fn refuse(&mut self, fields: &Fields<'_>, fault: Fault) {
        if self.errors.len() < ERRORS_LISTED_MAX {
            let id = [EVENT_ID, IMPRESSION_ID].into_iter().find_map(|n| match fields.values[n] {
                Some(Value::Text(text)) => Some(shown(text)),
                _ => None,
            });
            self.errors.push(EventError {
                index: self.good.len() + self.rejected,
                event_id: id,
                code: fault.code,
                message: fault.message,
                hint: fault.hint.into(),
            });
        }
        self.rejected += 1;
    }

    fn finish(self) -> Result<Read, Problem> {
        if self.good.len() + self.rejected == 0 {
            return Err(Problem::new(
                400,
                "empty_batch",
                "the body holds no verdict",
                "the body was read to its end and holds no verdict",
                "send {\"verdicts\":[…]} with at least one",
            ));
        }
        let frame = match self.good.len() {
            0 => None,
            accepted => Some(Append {
                topic: Topic::Verdicts,
                partition: 0,
                schema_version: SCHEMA_VERSION,
                records: accepted as u32,
                payload: Buffer::from_vec(serde_json::to_vec(&self.good).map_err(|e| mistake(&e))?),
            }),
        };
        Ok(Read { frame, accepted: self.good.len(), rejected: self.rejected, errors: self.errors })
    }
}

fn bad_json(Syntax { at, what }: Syntax) -> Problem {
    Problem::new(
        400,
        "bad_json",
        "the body is no JSON of the expected shape",
        format!("byte {at}: {what}"),
        "send {\"verdicts\":[…]}",
    )
}

#[derive(Clone)]
struct Fault {
    code: &'static str,
    message: String,
    hint: &'static str,
}

const HINT: &str =
    "send eventId or impressionId, verdict, reasonCode, decidedAt, modelVersion and source";

const NAMES: [&str; 7] =
    ["eventId", "impressionId", "verdict", "decidedAt", "reasonCode", "modelVersion", "source"];
const EVENT_ID: usize = 0;
const IMPRESSION_ID: usize = 1;
const VERDICT: usize = 2;
const DECIDED_AT: usize = 3;
const REASON_CODE: usize = 4;
const MODEL_VERSION: usize = 5;
const SOURCE: usize = 6;

/// A verdict as it was sent.
#[derive(Default)]
struct Fields<'a> {
    values: [Option<Value<'a>>; NAMES.len()],
    fault: Option<Fault>,
}

impl<'a> Fields<'a> {
    fn read(scanner: &mut Scanner<'a>) -> Result<Fields<'a>, Syntax> {
        let mut fields = Fields::default();
        if scanner.byte() != Some(b'{') {
            scanner.skip()?;
            let message = "the verdict is not a JSON object".into();
            fields.fault = Some(Fault { code: "not_an_object", message, hint: HINT });
            return Ok(fields);
        }
        scanner.at += 1;
        if scanner.space() == Some(b'}') {
            scanner.at += 1;
            return Ok(fields);
        }
        loop {
            let name = scanner.key()?;
            let value = scanner.value()?;
            fields.put(name, value);
            match scanner.space() {
                Some(b',') => scanner.at += 1,
                _ => break,
            }
        }
        scanner.expect(b'}', "expected `,` or `}`")?;
        Ok(fields)
    }

    fn put(&mut self, name: &[u8], value: Value<'a>) {
        let fault = match NAMES.iter().position(|known| known.as_bytes() == name) {
            None => Fault {
                code: "unknown_field",
                message: format!("`{}` is no field of a verdict", shown(name)),
                hint: HINT,
            },
            Some(number) if self.values[number].is_some() => Fault {
                code: "duplicate_field",
                message: format!("`{}` is there twice", NAMES[number]),
                hint: "send each field once",
            },
            Some(number) => {
                self.values[number] = Some(value);
                return;
            }
        };
        self.fault.get_or_insert(fault);
    }

    fn text(&self, number: usize, bytes_max: usize) -> Result<Option<&'a str>, Fault> {
        let name = NAMES[number];
        match self.values[number] {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Text(b"")) => Err(Fault {
                code: "empty_field",
                message: format!("`{name}` is an empty string"),
                hint: "leave the field out when there is no value",
            }),
            Some(Value::Text(text)) if text.len() > bytes_max => Err(Fault {
                code: "field_too_long",
                message: format!("`{name}` has {} bytes, the limit is {bytes_max}", text.len()),
                hint: "send a shorter value",
            }),
            // The body was checked to be UTF-8, and strings end at ASCII bytes.
            Some(Value::Text(text)) => Ok(std::str::from_utf8(text).ok()),
            Some(other) => Err(Fault {
                code: "wrong_type",
                message: format!("`{name}` is {}, not a string", written(&other)),
                hint: "send a string",
            }),
        }
    }

    fn verdict(&self, inner: &Inner, now_us: i64) -> Result<Verdict, Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let event = self.text(EVENT_ID, EVENT_ID_BYTES_MAX)?;
        let impression = self.text(IMPRESSION_ID, ID_BYTES_MAX)?;
        let (target, domain, id) = match (event, impression) {
            (Some(id), None) => (Target::Event, Domain::Event, id),
            (None, Some(id)) => (Target::Impression, Domain::Impression, id),
            (Some(_), Some(_)) => {
                let message = "the verdict names an eventId and an impressionId".into();
                return Err(Fault { code: "two_targets", message, hint: "send two verdicts" });
            }
            (None, None) => return Err(missing("eventId` or `impressionId")),
        };
        let invalid = match self.text(VERDICT, ID_BYTES_MAX)? {
            Some("invalid") => true,
            Some("valid") => false,
            Some(other) => {
                let message = format!("`verdict` is \"{}\"", shown(other.as_bytes()));
                let hint = "send `invalid` or `valid`";
                return Err(Fault { code: "unknown_verdict", message, hint });
            }
            None => return Err(missing("verdict")),
        };
        let decided = self.text(DECIDED_AT, ID_BYTES_MAX)?.ok_or_else(|| missing("decidedAt"))?;
        let owned = |n| self.text(n, ID_BYTES_MAX).map(|t| t.unwrap_or_default().to_owned());
        Ok(Verdict {
            target,
            hash: inner.key.hash(domain, id.as_bytes()),
            id: id.to_owned(),
            invalid,
            decided_at_us: decided_at(decided, now_us, inner.settings.future_skew_us_max)?,
            reason_code: owned(REASON_CODE)?,
            model_version: owned(MODEL_VERSION)?,
            source: owned(SOURCE)?,
        })
    }
}

fn missing(name: &str) -> Fault {
    Fault {
        code: "missing_field",
        message: format!("`{name}` is missing"),
        hint: "send the field with every verdict",
    }
}

fn decided_at(text: &str, now_us: i64, ahead_us_max: i64) -> Result<i64, Fault> {
    let Some(us) = parse_rfc3339(text) else {
        return Err(Fault {
            code: "bad_time",
            message: format!("`decidedAt` is \"{}\", which is no time", shown(text.as_bytes())),
            hint: "send RFC 3339 with an offset, such as 2026-04-27T15:32:10Z",
        });
    };
    if !OCCURRED_US.contains(&us) {
        let message = format!("`decidedAt` is {}", format_rfc3339(us));
        let hint = "send a time from 2000 to 2099";
        return Err(Fault { code: "time_out_of_range", message, hint });
    }
    if us > now_us.saturating_add(ahead_us_max) {
        return Err(Fault {
            code: "in_the_future",
            message: format!(
                "`decidedAt` is {}, more than {} s ahead of this server's clock",
                format_rfc3339(us),
                ahead_us_max / 1_000_000
            ),
            hint: "set the sender's clock (NTP)",
        });
    }
    Ok(us)
}
