//! Events and verdicts as the log holds them, made without a collector: for tests of the engine,
//! and for measuring it alone. The layout is the table in `operators::event`; a column that no
//! event of a frame has is left out, as the collector does.
//!
//! A frame holds at most `FRAME_RECORDS_MAX` events; more of one partition make more frames. The
//! order of a partition's events is the order in which they were given.

use crate::event::{Event, Optional, Verdict};
use arrow_array::{
    ArrayRef, DictionaryArray, FixedSizeBinaryArray, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, UInt8Array, UInt16Array, UInt64Array,
    builder::{FixedSizeBinaryBuilder, StringDictionaryBuilder},
    types::UInt16Type,
};
use arrow_buffer::{Buffer, MutableBuffer};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{Field, Schema};
use std::sync::Arc;
use trueup_operators::{
    event::{self as stored, SCHEMA_VERSION, columns},
    hash::{Domain, HashKey, IdHash, partition},
    log::{Append, FRAME_RECORDS_MAX, Topic},
};

/// What an installation's log decides about frames.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// How many partitions the events topic has.
    pub partitions: u16,
    /// What ids are hashed with.
    pub key: HashKey,
}

impl Layout {
    /// The keyed hash of an event id and the partition that it belongs to.
    pub(crate) fn place(&self, event_id: &[u8]) -> (IdHash, u16) {
        let hash = self.key.hash(Domain::Event, event_id);
        (hash, partition(&hash, self.partitions))
    }

    /// Events as frames, ready to append, ordered by partition.
    pub fn frames(&self, events: &[Event], received_at_us: i64) -> Vec<Append> {
        let mut rows: Vec<Vec<(IdHash, &Event)>> = vec![Vec::new(); self.partitions.into()];
        for event in events {
            let (hash, partition) = self.place(event.event_id.as_bytes());
            rows[usize::from(partition)].push((hash, event));
        }
        let mut frames = Vec::new();
        for (partition, rows) in rows.iter().enumerate() {
            for rows in rows.chunks(FRAME_RECORDS_MAX) {
                let columns = self.event_columns(rows, received_at_us);
                frames.push(events_append(partition as u16, rows.len(), columns));
            }
        }
        frames
    }

    /// Verdicts as one frame, ready to append.
    pub fn verdict_frame(&self, verdicts: &[Verdict]) -> Append {
        let stored: Vec<stored::Verdict> = verdicts.iter().map(|v| self.stored(v)).collect();
        let json = serde_json::to_vec(&stored).expect("verdicts are representable as JSON");
        Append {
            topic: Topic::Verdicts,
            partition: 0,
            schema_version: SCHEMA_VERSION,
            records: stored.len() as u32,
            payload: Buffer::from_vec(json),
        }
    }

    fn stored(&self, verdict: &Verdict) -> stored::Verdict {
        let domain = match verdict.target {
            stored::Target::Event => Domain::Event,
            stored::Target::Impression => Domain::Impression,
        };
        stored::Verdict {
            target: verdict.target,
            id: verdict.id.clone(),
            hash: self.key.hash(domain, verdict.id.as_bytes()),
            invalid: verdict.invalid,
            decided_at_us: verdict.decided_at_us,
            reason_code: verdict.reason_code.to_owned(),
            model_version: String::new(),
            source: "generator".to_owned(),
        }
    }

    fn event_columns(&self, rows: &[(IdHash, &Event)], received_at_us: i64) -> Columns {
        let mut out = Columns::default();
        let events = || rows.iter().map(|r| r.1);
        out.hashes(columns::ID_HASH, rows.iter().map(|r| Some(r.0)));
        out.add(
            columns::PAYLOAD_HASH,
            UInt64Array::from_iter_values(events().map(Event::payload_hash)),
        );
        out.add(
            columns::EVENT_ID,
            StringArray::from_iter_values(events().map(|e| e.event_id.as_str())),
        );
        let types = events().map(|e| e.event_type as u8);
        out.add(columns::EVENT_TYPE, UInt8Array::from_iter_values(types));
        out.times(columns::OCCURRED_AT, events().map(|e| e.occurred_at_us));
        out.times(columns::RECEIVED_AT, events().map(|_| received_at_us));
        out.dictionary("campaign_id", events().map(|e| Some(e.campaign_id.as_str())));
        out.dictionary("ad_id", events().map(|e| Some(e.ad_id.as_str())));
        self.optional_columns(rows, &mut out);
        out
    }

    fn optional_columns(&self, rows: &[(IdHash, &Event)], out: &mut Columns) {
        let optional = || rows.iter().map(|r| &r.1.optional);
        let texts: [(&str, TextOf); 10] = [
            ("advertiser_id", |o| o.advertiser_id.as_deref()),
            ("publisher_id", |o| o.publisher_id.as_deref()),
            ("placement_id", |o| o.placement_id.as_deref()),
            ("country", |o| o.country.as_deref()),
            ("region", |o| o.region.as_deref()),
            ("device_type", |o| o.device_type.as_deref()),
            ("creative_id", |o| o.creative_id.as_deref()),
            (columns::USER_AGENT, |o| o.user_agent.as_deref()),
            (columns::SOURCE, |o| o.source.as_deref()),
            (columns::INVALID_REASON, |o| o.invalid_reason.as_deref()),
        ];
        for (name, text) in texts {
            out.dictionary(name, optional().map(text));
        }
        let hashed: [(&str, Domain, TextOf); 3] = [
            (columns::IMPRESSION_HASH, Domain::Impression, |o| o.impression_id.as_deref()),
            (columns::USER_HASH, Domain::User, |o| o.user_id.as_deref()),
            (columns::IP_HASH, Domain::Ip, |o| o.ip.as_deref()),
        ];
        for (name, domain, text) in hashed {
            let hash = |o| text(o).map(|t| self.key.hash(domain, t.as_bytes()));
            out.hashes(name, optional().map(hash));
        }
        out.texts(columns::IMPRESSION_ID, optional().map(|o| o.impression_id.as_deref()));
        out.texts(columns::CLICK_ID, optional().map(|o| o.click_id.as_deref()));
        let fingerprints = optional().map(|o| o.device_fingerprint.as_deref());
        out.texts(columns::DEVICE_FINGERPRINT, fingerprints);
        if optional().any(|o| o.price_micros.is_some()) {
            let prices = optional().map(|o| o.price_micros.unwrap_or(0));
            out.add(columns::PRICE_MICROS, Int64Array::from_iter_values(prices));
        }
        if optional().any(|o| o.price_basis.is_some()) {
            let bases = optional().map(|o| o.price_basis.unwrap_or_default() as u8);
            out.add(columns::PRICE_BASIS, UInt8Array::from_iter_values(bases));
        }
        if optional().any(|o| o.value_micros.is_some()) {
            let values = Int64Array::from_iter(optional().map(|o| o.value_micros));
            out.add(columns::VALUE_MICROS, values);
        }
        if optional().any(|o| o.schema_version.is_some()) {
            let versions = optional().map(|o| o.schema_version.unwrap_or(SCHEMA_VERSION));
            out.add(columns::SCHEMA_VERSION, UInt16Array::from_iter_values(versions));
        }
    }
}

/// A field of an event that may have it.
type TextOf = fn(&Optional) -> Option<&str>;

/// The columns of a frame under construction; `true`: declared as nullable whether or not a value
/// is missing, so that all batches of a stream have one schema.
#[derive(Default)]
pub(crate) struct Columns(Vec<(&'static str, ArrayRef, bool)>);

impl Columns {
    pub(crate) fn add(&mut self, name: &'static str, array: impl arrow_array::Array + 'static) {
        self.0.push((name, Arc::new(array), false));
    }

    pub(crate) fn nullable(
        &mut self,
        name: &'static str,
        array: impl arrow_array::Array + 'static,
    ) {
        self.0.push((name, Arc::new(array), true));
    }

    pub(crate) fn times(&mut self, name: &'static str, times_us: impl Iterator<Item = i64>) {
        let array = TimestampMicrosecondArray::from_iter_values(times_us);
        self.add(name, array.with_timezone("UTC"));
    }

    /// Leaves the column out if there is no value.
    pub(crate) fn hashes(
        &mut self,
        name: &'static str,
        hashes: impl Iterator<Item = Option<IdHash>>,
    ) {
        let mut builder = FixedSizeBinaryBuilder::new(size_of::<IdHash>() as i32);
        for hash in hashes {
            match hash {
                Some(hash) => builder.append_value(hash).expect("a hash is as wide as its column"),
                None => builder.append_null(),
            }
        }
        let array: FixedSizeBinaryArray = builder.finish();
        self.add_unless_empty(name, Arc::new(array));
    }

    fn texts<'a>(&mut self, name: &'static str, texts: impl Iterator<Item = Option<&'a str>>) {
        self.add_unless_empty(name, Arc::new(StringArray::from_iter(texts)));
    }

    fn dictionary<'a>(&mut self, name: &'static str, texts: impl Iterator<Item = Option<&'a str>>) {
        let mut builder = StringDictionaryBuilder::<UInt16Type>::new();
        for text in texts {
            builder.append_option(text);
        }
        let array: DictionaryArray<UInt16Type> = builder.finish();
        self.add_unless_empty(name, Arc::new(array));
    }

    fn add_unless_empty(&mut self, name: &'static str, array: ArrayRef) {
        if array.null_count() < array.len() {
            self.0.push((name, array, false));
        }
    }

    pub(crate) fn batch(self) -> RecordBatch {
        let fields: Vec<Field> = self
            .0
            .iter()
            .map(|(name, array, nullable)| {
                let nullable = *nullable || array.null_count() > 0;
                Field::new(*name, array.data_type().clone(), nullable)
            })
            .collect();
        let arrays = self.0.into_iter().map(|(_, array, _)| array).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
            .expect("the schema was made from the columns, which are of one length")
    }
}

/// A frame of events from its columns.
pub(crate) fn events_append(partition: u16, records: usize, columns: Columns) -> Append {
    Append {
        topic: Topic::Events,
        partition,
        schema_version: SCHEMA_VERSION,
        records: records as u32,
        payload: to_stream(&columns.batch()),
    }
}

/// A batch as an Arrow IPC stream in aligned memory.
pub(crate) fn to_stream(batch: &RecordBatch) -> Buffer {
    let written = || {
        let mut writer = StreamWriter::try_new(Vec::new(), batch.schema_ref())?;
        writer.write(batch)?;
        writer.into_inner()
    };
    let bytes = written().expect("writing to memory, of types that IPC has");
    let mut aligned = MutableBuffer::new(bytes.len());
    aligned.extend_from_slice(&bytes);
    aligned.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use arrow_array::{Array, cast::AsArray, types::UInt64Type};
    use arrow_ipc::reader::StreamReader;
    use trueup_operators::event::{EventType, Target};

    const LAYOUT: Layout = Layout { partitions: 4, key: HashKey([7; 16]) };

    fn read(append: &Append) -> RecordBatch {
        let mut reader = StreamReader::try_new(append.payload.as_slice(), None).unwrap();
        let batch = reader.next().unwrap().unwrap();
        assert!(reader.next().is_none());
        assert_eq!(batch.num_rows(), append.records as usize);
        batch
    }

    fn event(n: u32) -> Event {
        let mut event =
            Event::new(EventType::Click, format!("e{n}"), i64::from(n), "cmp_1", "ad_1");
        event.optional.country = n.is_multiple_of(2).then(|| "DE".to_owned());
        event
    }

    #[test]
    fn copies_of_an_event_meet_in_a_partition_and_have_one_hash() {
        let events: Vec<Event> = (0..100).map(|n| event(n % 50)).collect();
        let frames = LAYOUT.frames(&events, 9);
        assert_eq!(frames.len(), 4);
        let mut hashes = std::collections::BTreeMap::<String, (u16, u64, u32)>::new();
        for frame in &frames {
            let batch = read(frame);
            let ids = batch["event_id"].as_string::<i32>();
            let payloads = batch["payload_hash"].as_primitive::<UInt64Type>();
            for row in 0..batch.num_rows() {
                let place = (frame.partition, payloads.value(row));
                let seen = hashes.entry(ids.value(row).to_owned()).or_insert((place.0, place.1, 0));
                assert_eq!((seen.0, seen.1), place);
                seen.2 += 1;
            }
        }
        assert_eq!(hashes.len(), 50);
        assert!(hashes.values().all(|seen| seen.2 == 2));
    }

    #[test]
    fn leaves_out_what_no_event_has() {
        let frames = Layout { partitions: 1, ..LAYOUT }.frames(&[event(1)], 9);
        let batch = read(&frames[0]);
        assert!(batch.column_by_name("country").is_none());
        assert!(batch.column_by_name("price_micros").is_none());
        let frames = Layout { partitions: 1, ..LAYOUT }.frames(&[event(1), event(2)], 9);
        let batch = read(&frames[0]);
        assert_eq!(batch["country"].null_count(), 1);
    }

    #[test]
    fn a_partition_with_too_many_events_gets_more_frames() {
        let one = Layout { partitions: 1, ..LAYOUT };
        let events = vec![event(1); FRAME_RECORDS_MAX + 1];
        let records: Vec<u32> = one.frames(&events, 0).iter().map(|f| f.records).collect();
        assert_eq!(records, [FRAME_RECORDS_MAX as u32, 1]);
    }

    #[test]
    fn verdicts_are_hashed_by_what_they_name() {
        let verdict = |target| Verdict {
            target,
            id: "x".into(),
            invalid: true,
            decided_at_us: 5,
            reason_code: "r",
        };
        let frame = LAYOUT.verdict_frame(&[verdict(Target::Event), verdict(Target::Impression)]);
        let stored: Vec<stored::Verdict> = serde_json::from_slice(&frame.payload).unwrap();
        assert_eq!(stored[0].hash, LAYOUT.place(b"x").0);
        assert_ne!(stored[0].hash, stored[1].hash);
        assert_eq!((frame.records, stored[1].decided_at_us, stored[1].invalid), (2, 5, true));
    }
}
