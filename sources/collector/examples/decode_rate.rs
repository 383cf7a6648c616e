//! How fast bodies become frames: 5,000 ADS-1 events a body, on 1 and 2 threads; and how fast they
//! go through the router (token, limits, inflating, decoding, an answer) into a log that keeps
//! nothing, plain and gzipped.
//! usage: cargo run --release -p trueup-collector --example decode_rate [events]
//!
//! Beside them stand sonic-rs reading the same bodies into borrowed structs and doing nothing with
//! them (what parsing alone costs with a general parser) and inflating alone. On a machine that
//! others use, believe the CPU seconds.

#![allow(clippy::unwrap_used)]

use arrow_array::{
    ArrayRef, DictionaryArray, RecordBatch, StringArray, TimestampMillisecondArray, UInt64Array,
    types::UInt16Type,
};
use arrow_ipc::writer::StreamWriter;
use axum::{body::Body, http::Request};
use bytes::Bytes;
use std::{
    io::{Read, Write},
    sync::Arc,
    time::Instant,
};
use tower_service::Service;
use trueup_collector::{Collector, Decoder, Format, NoPressure, Rules, Settings};
use trueup_operators::{
    hash::HashKey,
    log::{Append, Appended, Done, End, Frame, Log, LogError, Topic},
    time::LogTime,
};

const BODY_EVENTS: usize = 5_000;
const BASE_MS: i64 = 1_700_000_040_000;
const COUNTRIES: [&str; 10] = ["US", "DE", "FR", "GB", "CN", "JP", "IN", "BR", "CA", "AU"];
const DEVICES: [&str; 5] = ["ios", "android", "desktop", "ctv", "tablet"];

fn splitmix(i: u64) -> u64 {
    let mut z = 0xAD_50001u64.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Zipf(1.1) over `n`, by a guide table as in ADS-1.
fn zipf(n: usize, slots: usize) -> Vec<u16> {
    let weights: Vec<f64> = (1..=n).map(|k| (k as f64).powf(-1.1)).collect();
    let total: f64 = weights.iter().sum();
    let (mut table, mut sum) = (Vec::with_capacity(slots), 0.0);
    for (k, weight) in weights.iter().enumerate() {
        sum += weight;
        let end = if k + 1 == n { slots } else { (sum / total * slots as f64 + 0.5) as usize };
        table.resize(end, k as u16);
    }
    table
}

fn event(i: u64, campaigns: &[u16], countries: &[u16], out: &mut Vec<u8>) {
    let o = |k: u64| splitmix(i * 8 + k + 1);
    let (r3, r4, r5) = (o(3), o(4), o(5));
    let click = (r3 as u32) < 214_748_365;
    let time = jiff::Timestamp::from_millisecond(BASE_MS + i as i64 / 100).unwrap();
    let campaign = u64::from(campaigns[r4 as usize & 0xffff]);
    let ad = campaign * 10 + ((((r4 >> 28) & 0xffff) * 10) >> 16);
    let kind = if click { "click" } else { "impression" };
    let country = COUNTRIES[usize::from(countries[(r4 >> 16) as usize & 0xfff]) % 10];
    let device = DEVICES[(((r4 >> 44) * 5) >> 20) as usize];
    let publisher = ((r5 & 0xffff_ffff) * 500) >> 32;
    let placement = ((r5 >> 32) * 20) >> 32;
    write!(out, r#"{{"eventId":"{:016x}{:016x}","eventType":"{kind}""#, o(1), o(2)).unwrap();
    write!(out, r#","occurredAt":"{time:.3}","campaignId":"cmp_{campaign}""#).unwrap();
    write!(out, r#","adId":"ad_{ad}","publisherId":"pub_{publisher}""#).unwrap();
    write!(out, r#","placementId":"pl_{placement}","country":"{country}""#).unwrap();
    write!(out, r#","deviceType":"{device}""#).unwrap();
    if click {
        write!(out, r#","priceMicros":{}"#, 10_000 + (((o(6) & 0xffff_ffff) * 490_001) >> 32))
            .unwrap();
    }
    out.push(b'}');
}

fn bodies(events: usize) -> Vec<Vec<u8>> {
    let (campaigns, countries) = (zipf(1000, 65_536), zipf(50, 4096));
    (0..events / BODY_EVENTS)
        .map(|b| {
            let mut body = b"{\"events\":[".to_vec();
            for i in 0..BODY_EVENTS {
                if i > 0 {
                    body.push(b',');
                }
                event((b * BODY_EVENTS + i) as u64, &campaigns, &countries, &mut body);
            }
            body.extend(b"]}");
            body
        })
        .collect()
}

/// The same events as a sender's Arrow stream: ids as text, what repeats in dictionaries.
fn arrow_body(body: &[u8]) -> Vec<u8> {
    let envelope: Envelope<'_> = sonic_rs::from_slice(body).unwrap();
    let text = |get: fn(&Borrowed<'_>) -> String| -> ArrayRef {
        Arc::new(envelope.events.iter().map(|e| Some(get(e))).collect::<StringArray>())
    };
    let dictionary = |get: for<'e> fn(&'e Borrowed<'_>) -> &'e str| -> ArrayRef {
        Arc::new(envelope.events.iter().map(get).collect::<DictionaryArray<UInt16Type>>())
    };
    let times = envelope
        .events
        .iter()
        .map(|e| e.occurred_at.parse::<jiff::Timestamp>().unwrap().as_millisecond());
    let prices = envelope.events.iter().map(|e| (e.price_micros > 0).then_some(e.price_micros));
    let columns: [(&str, ArrayRef); 10] = [
        ("eventId", text(|e| e.event_id.into())),
        ("eventType", dictionary(|e| e.event_type)),
        ("occurredAt", Arc::new(TimestampMillisecondArray::from_iter_values(times))),
        ("campaignId", dictionary(|e| e.campaign_id)),
        ("adId", dictionary(|e| e.ad_id)),
        ("publisherId", dictionary(|e| e.publisher_id)),
        ("placementId", dictionary(|e| e.placement_id)),
        ("country", dictionary(|e| e.country)),
        ("deviceType", dictionary(|e| e.device_type)),
        ("priceMicros", Arc::new(prices.collect::<UInt64Array>())),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), batch.schema_ref()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Borrowed<'a> {
    event_id: &'a str,
    event_type: &'a str,
    occurred_at: &'a str,
    campaign_id: &'a str,
    ad_id: &'a str,
    publisher_id: &'a str,
    placement_id: &'a str,
    country: &'a str,
    device_type: &'a str,
    #[serde(default)]
    price_micros: u64,
}

#[derive(serde::Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    events: Vec<Borrowed<'a>>,
}

fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn measure(
    name: &str,
    threads: usize,
    bodies: &[Vec<u8>],
    worker: impl Fn(&mut dyn Iterator<Item = &Vec<u8>>) + Sync,
) {
    let mut best = (0.0f64, 0.0);
    let events = (bodies.len() * BODY_EVENTS) as f64;
    for _ in 0..4 {
        let (start, cpu) = (Instant::now(), cpu_s());
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let worker = &worker;
                scope.spawn(move || worker(&mut bodies.iter().skip(thread).step_by(threads)));
            }
        });
        let rate = events / start.elapsed().as_secs_f64();
        if rate > best.0 {
            best = (rate, (cpu_s() - cpu) / events * 1e6);
        }
    }
    println!(
        "{name:<28} threads={threads} {:>6.2} M events/s  {:.3} CPU s per million",
        best.0 / 1e6,
        best.1
    );
}

fn main() {
    let events = std::env::args().nth(1).map_or(1_000_000, |n| n.parse().expect("a number"));
    let plain = bodies(events);
    let gzipped: Vec<Vec<u8>> = plain
        .iter()
        .map(|body| {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
            gz.write_all(body).unwrap();
            gz.finish().unwrap()
        })
        .collect();
    let arrow: Vec<Vec<u8>> = plain.iter().map(|body| arrow_body(body)).collect();
    let bytes = |b: &[Vec<u8>]| b.iter().map(Vec::len).sum::<usize>() as f64 / events as f64;
    println!(
        "{:.0} bytes an event, {:.0} gzipped, {:.0} as Arrow",
        bytes(&plain),
        bytes(&gzipped),
        bytes(&arrow)
    );
    for threads in [1, 2] {
        measure("sonic-rs, borrowed structs", threads, &plain, |bodies| {
            for body in bodies {
                let envelope: Envelope<'_> = sonic_rs::from_slice(body).unwrap();
                assert_eq!(std::hint::black_box(&envelope.events).len(), BODY_EVENTS);
            }
        });
        measure("decode, plain", threads, &plain, |bodies| {
            let mut decoder = Decoder::new(HashKey([7; 16]), 4);
            for body in bodies {
                decode(&mut decoder, body, Format::Json);
            }
        });
        measure("decode, Arrow", threads, &arrow, |bodies| {
            let mut decoder = Decoder::new(HashKey([7; 16]), 4);
            for body in bodies {
                decode(&mut decoder, body, Format::Arrow);
            }
        });
        measure("inflate alone", threads, &gzipped, |bodies| {
            let mut text = Vec::new();
            for body in bodies {
                text.clear();
                flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut text).unwrap();
            }
        });
        measure("router, plain", threads, &plain, |bodies| route(bodies, None));
        measure("router, gzipped", threads, &gzipped, |bodies| route(bodies, Some("gzip")));
    }
}

/// Sends bodies through a router, one after the other.
fn route(bodies: &mut dyn Iterator<Item = &Vec<u8>>, encoding: Option<&str>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let collector = Collector::new(
        Arc::new(Nowhere),
        HashKey([7; 16]),
        Arc::default(),
        Settings::default(),
        Arc::new(NoPressure),
        Arc::new(|| (BASE_MS + 100_000_000) * 1000),
    );
    let mut router = collector.unwrap().router();
    for body in bodies {
        let mut request = Request::post("/v1/events/collect");
        if let Some(encoding) = encoding {
            request = request.header("content-encoding", encoding);
        }
        let request = request.body(Body::from(Bytes::copy_from_slice(body))).unwrap();
        let response = runtime.block_on(router.call(request)).unwrap();
        assert_eq!(response.status(), 202);
    }
}

/// A log that keeps nothing.
struct Nowhere;

impl Log for Nowhere {
    fn partitions(&self, _: Topic) -> u16 {
        4
    }

    fn append(&self, frames: Vec<Append>, done: Done) -> Result<(), LogError> {
        let appended = Appended { offset: 0, log_time: LogTime(0) };
        done(Ok(vec![appended; frames.len()]));
        Ok(())
    }

    fn ends(&self, _: Topic) -> Vec<End> {
        Vec::new()
    }

    fn first(&self, _: Topic, _: u16) -> u64 {
        0
    }

    fn read(&self, _: Topic, _: u16, _: u64, _: u64, _: usize) -> Result<Vec<Frame>, LogError> {
        Ok(Vec::new())
    }

    fn offset_at(&self, _: Topic, _: u16, _: LogTime) -> Result<u64, LogError> {
        Ok(0)
    }
}

fn decode(decoder: &mut Decoder, body: &[u8], format: Format) {
    let rules = Rules {
        now_us: (BASE_MS + 100_000_000) * 1000,
        future_skew_us_max: 0,
        events_max: 50_000,
        publishers: &[],
        advertiser_of: &|_| None,
    };
    let decoded = decoder.decode(body, format, &rules).unwrap();
    assert_eq!((decoded.accepted, decoded.rejected), (BODY_EVENTS, 0));
    std::hint::black_box(decoded.frames);
}
