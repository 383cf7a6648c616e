//! ADS-1 as the log holds it: for each partition the columns that the collector makes of the same
//! JSON (the table in `operators::event`), so that the engine can be measured without the rest.
//! Built from numbers, not through text and a decoder: ten million events take a few seconds.
//!
//! And as senders that have columns send it: an Arrow IPC stream whose columns have the names that
//! the fields have in JSON. `eventId` is Utf8, `occurredAt` a timestamp in µs, `priceMicros` Int64
//! and null where it is not sent, all others are dictionaries of texts by UInt16.

use super::{Ads1, Ads1Event, COUNTRIES, DEVICES};
use crate::{
    event::{FieldHash, Verdict},
    frames::{Columns, Layout, events_append, to_stream},
};
use arrow_array::{
    DictionaryArray, Int64Array, RecordBatch, StringArray, UInt8Array, UInt16Array, UInt64Array,
    types::UInt16Type,
};
use std::{ops::Range, sync::Arc};
use trueup_operators::{
    event::{EventType, Target, columns},
    hash::IdHash,
    log::{Append, FRAME_RECORDS_MAX},
};

/// A dictionary column of numbers that stand for texts; its values are in the order in which they
/// are first seen, as the collector has them.
#[derive(Default)]
struct Numbered {
    key_by_number: Vec<u16>,
    numbers: Vec<u16>,
    keys: Vec<u16>,
}

const UNSEEN: u16 = u16::MAX;

impl Numbered {
    #[inline]
    fn push(&mut self, number: u16) {
        let at = usize::from(number);
        if at >= self.key_by_number.len() {
            self.key_by_number.resize(at + 1, UNSEEN);
        }
        if self.key_by_number[at] == UNSEEN {
            self.key_by_number[at] = self.numbers.len() as u16;
            self.numbers.push(number);
        }
        self.keys.push(self.key_by_number[at]);
    }

    fn finish(self, text: impl Fn(u16) -> String) -> DictionaryArray<UInt16Type> {
        let values = StringArray::from_iter_values(self.numbers.iter().map(|&n| text(n)));
        DictionaryArray::new(UInt16Array::from(self.keys), Arc::new(values))
    }
}

/// The dimensions that ADS-1 has.
#[derive(Default)]
struct Places {
    campaigns: Numbered,
    ads: Numbered,
    publishers: Numbered,
    placements: Numbered,
    countries: Numbered,
    devices: Numbered,
}

impl Places {
    #[inline]
    fn push(&mut self, event: &Ads1Event) {
        self.campaigns.push(event.campaign);
        self.ads.push(event.ad);
        self.publishers.push(event.publisher);
        self.placements.push(event.placement.into());
        self.countries.push(event.country.into());
        self.devices.push(event.device.into());
    }

    /// Adds the columns under these names.
    fn finish(self, names: [&'static str; 6], out: &mut Columns) {
        out.add(names[0], self.campaigns.finish(|n| format!("cmp_{n}")));
        out.add(names[1], self.ads.finish(|n| format!("ad_{n}")));
        out.add(names[2], self.publishers.finish(|n| format!("pub_{n}")));
        out.add(names[3], self.placements.finish(|n| format!("pl_{n}")));
        out.add(names[4], self.countries.finish(|n| COUNTRIES[usize::from(n)].into()));
        out.add(names[5], self.devices.finish(|n| DEVICES[usize::from(n)].into()));
    }
}

const STORED: [&str; 6] =
    ["campaign_id", "ad_id", "publisher_id", "placement_id", "country", "device_type"];
const SENT: [&str; 6] =
    ["campaignId", "adId", "publisherId", "placementId", "country", "deviceType"];

/// The events of one partition.
#[derive(Default)]
struct Partition {
    ids: Vec<IdHash>,
    payloads: Vec<u64>,
    id_text: String,
    types: Vec<u8>,
    times_us: Vec<i64>,
    received_us: Vec<i64>,
    prices: Vec<i64>,
    places: Places,
}

impl Partition {
    fn push(&mut self, event: &Ads1Event, id: IdHash, text: &str, time_us: i64, received_us: i64) {
        self.ids.push(id);
        self.id_text.push_str(text);
        self.payloads.push(payload_hash(event, time_us));
        self.types.push(event.event_type() as u8);
        self.times_us.push(time_us);
        self.received_us.push(received_us);
        self.prices.push(event.price_micros.into());
        self.places.push(event);
    }

    fn finish(self, partition: u16) -> Append {
        let records = self.ids.len();
        let clicks = self.types.contains(&(EventType::Click as u8));
        let ids = (0..records).map(|n| &self.id_text[n * 32..(n + 1) * 32]);
        let mut out = Columns::default();
        out.hashes(columns::ID_HASH, self.ids.iter().map(|&id| Some(id)));
        out.add(columns::PAYLOAD_HASH, UInt64Array::from(self.payloads));
        out.add(columns::EVENT_ID, StringArray::from_iter_values(ids));
        out.add(columns::EVENT_TYPE, UInt8Array::from(self.types));
        out.times(columns::OCCURRED_AT, self.times_us.into_iter());
        out.times(columns::RECEIVED_AT, self.received_us.into_iter());
        self.places.finish(STORED, &mut out);
        if clicks {
            out.add(columns::PRICE_MICROS, Int64Array::from(self.prices));
        }
        events_append(partition, records, out)
    }
}

fn payload_hash(event: &Ads1Event, time_us: i64) -> u64 {
    let places = u64::from(event.campaign) << 48
        | u64::from(event.ad) << 32
        | u64::from(event.publisher) << 16
        | u64::from(event.placement) << 8
        | u64::from(event.country);
    let mut hash = FieldHash::default();
    hash.number("occurredAt", time_us);
    hash.number("places", places as i64);
    hash.number("device", event.device.into());
    hash.number("priceMicros", event.price_micros.into());
    hash.finish()
}

impl Ads1 {
    /// The events `range` as frames, ready to append, at most one a partition unless the range is
    /// longer than a frame may be. `shift_ms` is added to every time.
    pub fn frames(&self, range: Range<u64>, layout: &Layout, shift_ms: i64) -> Vec<Append> {
        let mut frames = Vec::new();
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + FRAME_RECORDS_MAX as u64);
            self.frames_of_one_go(start..end, layout, shift_ms, &mut frames);
            start = end;
        }
        frames
    }

    fn frames_of_one_go(
        &self,
        range: Range<u64>,
        layout: &Layout,
        shift_ms: i64,
        frames: &mut Vec<Append>,
    ) {
        let mut partitions: Vec<Partition> = Vec::new();
        partitions.resize_with(layout.partitions.into(), Partition::default);
        let received_us = (super::stream_time_ms(range.end) + shift_ms) * 1_000;
        for i in range {
            let event = self.event(i);
            let text = event.id_text();
            let (id, partition) = layout.place(&text);
            let text = str::from_utf8(&text).expect("hex digits");
            let time_us = (event.occurred_at_ms + shift_ms) * 1_000;
            partitions[usize::from(partition)].push(&event, id, text, time_us, received_us);
        }
        for (number, partition) in partitions.into_iter().enumerate() {
            if !partition.ids.is_empty() {
                frames.push(partition.finish(number as u16));
            }
        }
    }

    /// The verdicts that come with the events `range`, as a frame; `None` if there are none.
    pub fn verdict_frame(
        &self,
        range: Range<u64>,
        layout: &Layout,
        shift_ms: i64,
    ) -> Option<Append> {
        let verdicts: Vec<Verdict> = self
            .verdicts(range)
            .map(|v| Verdict {
                target: Target::Event,
                id: String::from_utf8_lossy(&v.event.id_text()).into_owned(),
                invalid: true,
                decided_at_us: (v.decided_at_ms + shift_ms) * 1_000,
                reason_code: "ads1",
            })
            .collect();
        (!verdicts.is_empty()).then(|| layout.verdict_frame(&verdicts))
    }
}

impl Ads1 {
    /// The events `range` as a sender with columns sends them: the body of a
    /// `POST /v1/events/collect` of type `application/vnd.apache.arrow.stream`.
    pub fn arrow_body(&self, range: Range<u64>, shift_ms: i64) -> Vec<u8> {
        to_stream(&self.sent_columns(range, shift_ms).batch()).to_vec()
    }

    /// The events `range` as a record batch with the columns of [`Ads1::arrow_body`].
    pub fn record_batch(&self, range: Range<u64>, shift_ms: i64) -> RecordBatch {
        self.sent_columns(range, shift_ms).batch()
    }

    fn sent_columns(&self, range: Range<u64>, shift_ms: i64) -> Columns {
        let (mut ids, mut times_us, mut prices) = (String::new(), Vec::new(), Vec::new());
        let (mut types, mut places) = (Numbered::default(), Places::default());
        for i in range {
            let event = self.event(i);
            ids.push_str(str::from_utf8(&event.id_text()).expect("hex digits"));
            types.push(event.click.into());
            times_us.push((event.occurred_at_ms + shift_ms) * 1_000);
            prices.push(event.click.then_some(i64::from(event.price_micros)));
            places.push(&event);
        }
        let ids = ids.as_bytes().chunks(32).map(|id| str::from_utf8(id).expect("hex digits"));
        let mut out = Columns::default();
        out.add("eventId", StringArray::from_iter_values(ids));
        let name = |n| if n == 1 { EventType::Click } else { EventType::Impression };
        out.add("eventType", types.finish(|n| name(n).name().to_owned()));
        out.times("occurredAt", times_us.into_iter());
        places.finish(SENT, &mut out);
        out.nullable("priceMicros", Int64Array::from(prices));
        out
    }
}
