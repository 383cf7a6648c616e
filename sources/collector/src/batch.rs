//! The events of one body that go to one partition, as columns under construction, and their end
//! as the payload of a frame: an Arrow IPC stream of one record batch.
//!
//! Row by row only what an event has is written: a column that a row has nothing for is filled up
//! (with nulls, or with the default that readers assume) when the next value comes, and a column
//! that no row has a value for is left out of the schema. All memory is kept for the next body.

use crate::{
    check::{Checked, dictionary_hash},
    consent,
    decode::AdvertiserOf,
    dictionary::{Dictionary, Nulls, strings},
    fields::{
        COLUMN, CONSENT, DICT_AD, DICT_ADVERTISER, DICT_CAMPAIGN, DICT_CONSENT, DICT_CONSENT_STATE,
        DICT_FIELDS, DICT_INVALID_REASON, DICTS, FIELDS, Field, FieldSet, HASH_IMPRESSION, HASH_IP,
        HASH_USER, HASHED_FIELDS, HASHES, PLAIN_FIELDS, TEXT_EVENT_ID, TEXT_EXTRA, TEXTS,
        for_each_field,
    },
    scan::Value,
    sent::Sent,
};
use arrow_array::{
    ArrayRef, FixedSizeBinaryArray, Int64Array, RecordBatch, TimestampMicrosecondArray, UInt8Array,
    UInt16Array, UInt64Array,
};
use arrow_buffer::{Buffer, NullBuffer, ScalarBuffer};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, Field as Column, Schema};
use std::sync::Arc;
use trueup_operators::{
    event::{BROKEN_VERSION, EventType, SCHEMA_VERSION, columns},
    hash::{Domain, HashKey, IdHash},
    money::PriceBasis,
    symbols::OTHER_TEXT,
};

/// Fields of any version that have a column of their own.
const HAS_COLUMN: FieldSet =
    Field::EventId.bit() | Field::OccurredAt.bit() | Field::ReceivedAt.bit();

/// What the columns need besides the event.
pub(crate) struct Context<'a> {
    pub(crate) key: HashKey,
    pub(crate) advertiser_of: AdvertiserOf<'a>,
    /// Why the collector takes the event as invalid.
    pub(crate) invalid_reason: Option<&'static str>,
}

/// Columns of one partition.
#[derive(Default)]
pub(crate) struct Batch {
    rows: usize,
    id_hashes: Vec<u8>,
    payload_hashes: Vec<u64>,
    event_types: Vec<u8>,
    occurred_us: Vec<i64>,
    received_us: Vec<i64>,
    prices: Padded<i64>,
    bases: Padded<u8>,
    versions: Padded<u16>,
    values: Padded<i64>,
    value_nulls: Nulls,
    dicts: [Dictionary; DICTS.len()],
    texts: [Text; TEXTS.len()],
    hashes: [Hashes; HASHES.len()],
    /// By key of the campaign dictionary: the key of its advertiser.
    advertisers: Vec<Filled>,
    /// JSON being written for one row.
    json: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Filled {
    NotAsked,
    Nobody,
    Key(u16),
}

/// A column of numbers that is filled up with a default.
#[derive(Default)]
struct Padded<T>(Vec<T>);

impl<T: Copy> Padded<T> {
    fn push(&mut self, row: usize, value: T, default: T) {
        self.0.resize(row, default);
        self.0.push(value);
    }
}

#[derive(Default)]
struct Text {
    ends: Vec<u32>,
    bytes: Vec<u8>,
    nulls: Nulls,
}

impl Text {
    #[inline(always)]
    fn push(&mut self, row: usize, text: &[u8]) {
        if self.ends.len() < row {
            self.gap(row);
        }
        self.bytes.extend_from_slice(text);
        self.ends.push(self.bytes.len() as u32);
    }

    fn gap(&mut self, rows: usize) {
        self.nulls.gap(self.ends.len(), rows);
        self.ends.resize(rows, self.bytes.len() as u32);
    }

    fn finish(&mut self, rows: usize) -> Result<ArrayRef, ArrowError> {
        if self.ends.len() < rows {
            self.gap(rows);
        }
        Ok(Arc::new(strings(&self.ends, &self.bytes, self.nulls.finish(rows))?))
    }

    fn clear(&mut self) {
        self.ends.clear();
        self.bytes.clear();
        self.nulls.clear();
    }
}

#[derive(Default)]
struct Hashes {
    bytes: Vec<u8>,
    nulls: Nulls,
}

impl Hashes {
    fn push(&mut self, row: usize, hash: IdHash) {
        if self.bytes.len() < row * 16 {
            self.gap(row);
        }
        self.bytes.extend_from_slice(&hash);
    }

    fn gap(&mut self, rows: usize) {
        self.nulls.gap(self.bytes.len() / 16, rows);
        self.bytes.resize(rows * 16, 0);
    }

    fn finish(&mut self, rows: usize) -> Result<ArrayRef, ArrowError> {
        if self.bytes.len() < rows * 16 {
            self.gap(rows);
        }
        hash_array(&self.bytes, self.nulls.finish(rows))
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.nulls.clear();
    }
}

fn hash_array(bytes: &[u8], nulls: Option<NullBuffer>) -> Result<ArrayRef, ArrowError> {
    let array = FixedSizeBinaryArray::try_new(16, Buffer::from_slice_ref(bytes), nulls)?;
    Ok(Arc::new(array))
}

impl Batch {
    /// How many events it holds.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Empties it, keeping its memory.
    pub(crate) fn clear(&mut self) {
        self.rows = 0;
        self.id_hashes.clear();
        self.payload_hashes.clear();
        self.event_types.clear();
        self.occurred_us.clear();
        self.received_us.clear();
        self.prices.0.clear();
        self.bases.0.clear();
        self.versions.0.clear();
        self.values.0.clear();
        self.value_nulls.clear();
        self.dicts.iter_mut().for_each(Dictionary::clear);
        self.texts.iter_mut().for_each(Text::clear);
        self.hashes.iter_mut().for_each(Hashes::clear);
        self.advertisers.clear();
    }

    /// The memory of its texts; that of all else is bounded by the number of rows.
    pub(crate) fn kept_bytes(&self) -> usize {
        let texts: usize = self.texts.iter().map(|text| text.bytes.capacity()).sum();
        let dicts: usize = self.dicts.iter().map(Dictionary::kept_bytes).sum();
        texts + dicts + self.json.capacity()
    }

    /// Adds an event that passed the checks. Returns the bytes of text that it took: a text that
    /// is sent once may be that of many rows, and one that is escaped grows.
    #[inline(always)]
    pub(crate) fn push(
        &mut self,
        sent: &Sent<'_>,
        checked: &Checked,
        context: &Context<'_>,
    ) -> usize {
        let row = self.rows;
        let mut bytes = 0;
        self.id_hashes.extend_from_slice(&checked.id_hash);
        self.payload_hashes.push(checked.payload_hash);
        self.event_types.push(checked.event_type as u8);
        self.occurred_us.push(checked.occurred_us);
        self.received_us.push(checked.received_us);
        self.push_numbers(row, checked);
        for_each_field!(sent.present & DICT_FIELDS, number => {
            if let Value::Text(text) = sent.values[number] {
                let column = &mut self.dicts[usize::from(COLUMN[number])];
                let before = column.text_bytes();
                column.push(row, text, sent.hashes[number]);
                bytes += column.text_bytes() - before;
            }
        });
        for_each_field!(sent.present & PLAIN_FIELDS, number => {
            if let Value::Text(text) = sent.values[number] {
                self.texts[usize::from(COLUMN[number])].push(row, text);
                bytes += text.len();
            }
        });
        const RARE: FieldSet = CONSENT | HASHED_FIELDS | Field::ImpressionId.bit();
        let named = sent.has(Field::AdvertiserId);
        if sent.present & RARE != 0 || !sent.extras.is_empty() || context.invalid_reason.is_some() {
            bytes += self.push_rare(row, sent, context);
        }
        if !named {
            self.push_advertiser(row, sent, context);
        }
        self.rows = row + 1;
        bytes
    }

    /// Adds a row for what should have been an event and is none, with what to show of it: a JSON
    /// object.
    #[cold]
    pub(crate) fn push_broken(&mut self, at_us: i64, extra: &[u8]) {
        let nothing = Checked {
            id_hash: IdHash::default(),
            payload_hash: 0,
            event_type: EventType::Impression,
            occurred_us: at_us,
            received_us: at_us,
            price_micros: 0,
            price_basis: PriceBasis::Cpc,
            value_micros: None,
            schema_version: BROKEN_VERSION,
        };
        self.push_unread(&nothing, b"", extra);
    }

    /// Adds an event of another schema version whose fields this one cannot hold: all of them, as
    /// they were sent, are further fields. Returns the bytes of text that it took.
    #[cold]
    pub(crate) fn push_other(&mut self, sent: &Sent<'_>, checked: &Checked, key: HashKey) -> usize {
        let row = self.rows;
        let mut json = std::mem::take(&mut self.json);
        json.clear();
        let begin = |name: &[u8], json: &mut Vec<u8>| {
            json.push(if json.is_empty() { b'{' } else { b',' });
            consent::write_string(name, json);
            json.push(b':');
        };
        // Above what its column holds, the version is a further field as well.
        let written = matches!(sent.get(Field::SchemaVersion), Some(Value::Integer(version))
            if *version == i64::from(checked.schema_version));
        let version = if written { Field::SchemaVersion.bit() } else { 0 };
        // Who was there is never kept but as a hash.
        let others = sent.present & !(HAS_COLUMN | HASHED_FIELDS | version);
        for_each_field!(others, number => {
            begin(FIELDS[number].name.as_bytes(), &mut json);
            consent::write_value(&sent.values[number], &mut json);
        });
        for extra in &sent.extras {
            begin(extra.name, &mut json);
            consent::write_value(&extra.value, &mut json);
        }
        if !json.is_empty() {
            json.push(b'}');
        }
        self.push_hashes(row, sent, key);
        let id = sent.text(Field::EventId).unwrap_or_default();
        self.push_unread(checked, id, &json);
        let bytes = id.len() + json.len();
        self.json = json;
        bytes
    }

    /// Adds a row that nobody reads but to show it. An event of this version has a campaign; this
    /// has none.
    fn push_unread(&mut self, checked: &Checked, id: &[u8], extra: &[u8]) {
        let row = self.rows;
        self.id_hashes.extend_from_slice(&checked.id_hash);
        self.payload_hashes.push(checked.payload_hash);
        self.event_types.push(checked.event_type as u8);
        self.occurred_us.push(checked.occurred_us);
        self.received_us.push(checked.received_us);
        self.versions.push(row, checked.schema_version, SCHEMA_VERSION);
        for required in [DICT_CAMPAIGN, DICT_AD] {
            self.push_word(row, required, "");
        }
        self.texts[TEXT_EVENT_ID].push(row, id);
        if !extra.is_empty() {
            self.texts[TEXT_EXTRA].push(row, extra);
        }
        self.rows = row + 1;
    }

    #[inline(always)]
    fn push_numbers(&mut self, row: usize, checked: &Checked) {
        if checked.price_micros != 0 {
            self.prices.push(row, checked.price_micros, 0);
        }
        if checked.price_basis != PriceBasis::Cpc {
            self.bases.push(row, checked.price_basis as u8, 0);
        }
        if checked.schema_version != SCHEMA_VERSION {
            self.versions.push(row, checked.schema_version, SCHEMA_VERSION);
        }
        if let Some(value) = checked.value_micros {
            if self.values.0.len() < row {
                self.value_nulls.gap(self.values.0.len(), row);
            }
            self.values.push(row, value, 0);
        }
    }

    #[inline(never)]
    fn push_rare(&mut self, row: usize, sent: &Sent<'_>, context: &Context<'_>) -> usize {
        let mut bytes = 0;
        if let Some(text) = sent.text(Field::ImpressionId) {
            self.hashes[HASH_IMPRESSION].push(row, context.key.hash(Domain::Impression, text));
        }
        self.push_hashes(row, sent, context.key);
        if let Some(state) = consent::derive(sent) {
            self.json.clear();
            consent::write(sent, &mut self.json);
            let hash = dictionary_hash(&self.json);
            let before = self.dicts[DICT_CONSENT].text_bytes();
            self.dicts[DICT_CONSENT].push(row, &self.json, hash);
            bytes += self.dicts[DICT_CONSENT].text_bytes() - before;
            self.push_word(row, DICT_CONSENT_STATE, state.name());
        }
        if let Some(reason) = context.invalid_reason {
            self.push_word(row, DICT_INVALID_REASON, reason);
        }
        if !sent.extras.is_empty() {
            self.json.clear();
            self.json.push(b'{');
            for (number, extra) in sent.extras.iter().enumerate() {
                if number > 0 {
                    self.json.push(b',');
                }
                consent::write_string(extra.name, &mut self.json);
                self.json.push(b':');
                consent::write_value(&extra.value, &mut self.json);
            }
            self.json.push(b'}');
            self.texts[TEXT_EXTRA].push(row, &self.json);
            bytes += self.json.len();
        }
        bytes
    }

    fn push_hashes(&mut self, row: usize, sent: &Sent<'_>, key: HashKey) {
        for (field, domain, column) in
            [(Field::UserId, Domain::User, HASH_USER), (Field::Ip, Domain::Ip, HASH_IP)]
        {
            if let Some(text) = sent.text(field) {
                self.hashes[column].push(row, key.hash(domain, text));
            }
        }
    }

    fn push_word(&mut self, row: usize, column: usize, word: &str) {
        self.dicts[column].push(row, word.as_bytes(), dictionary_hash(word.as_bytes()));
    }

    /// Fills in the advertiser from the campaign's metadata, asked once per campaign and batch.
    #[inline(always)]
    fn push_advertiser(&mut self, row: usize, sent: &Sent<'_>, context: &Context<'_>) {
        let campaign = usize::from(self.dicts[DICT_CAMPAIGN].last_key());
        if self.advertisers.len() <= campaign {
            self.advertisers.resize(campaign + 1, Filled::NotAsked);
        }
        if let Filled::NotAsked = self.advertisers[campaign] {
            self.ask_advertiser(campaign, sent, context);
        }
        if let Filled::Key(key) = self.advertisers[campaign] {
            self.dicts[DICT_ADVERTISER].push_key(row, key);
        }
    }

    #[inline(never)]
    fn ask_advertiser(&mut self, campaign: usize, sent: &Sent<'_>, context: &Context<'_>) {
        let advertiser = sent
            .text(Field::CampaignId)
            .and_then(|id| (context.advertiser_of)(std::str::from_utf8(id).ok()?))
            .filter(|id| **id != *OTHER_TEXT);
        self.advertisers[campaign] = match advertiser {
            None => Filled::Nobody,
            Some(id) => {
                let hash = trueup_operators::hash::stable(id.as_bytes());
                Filled::Key(self.dicts[DICT_ADVERTISER].find(id.as_bytes(), hash))
            }
        };
    }

    /// The payload of a frame with all rows.
    ///
    /// # Errors
    /// When Arrow finds a column unsound, which would be an error here.
    pub(crate) fn finish(&mut self) -> Result<Buffer, ArrowError> {
        let batch = self.record_batch()?;
        let bytes_about = self.texts[TEXT_EVENT_ID].bytes.len() + self.rows * 96 + 8192;
        let mut writer =
            StreamWriter::try_new(Vec::with_capacity(bytes_about), batch.schema_ref())?;
        writer.write(&batch)?;
        writer.finish()?;
        Ok(Buffer::from_vec(writer.into_inner()?))
    }

    fn record_batch(&mut self) -> Result<RecordBatch, ArrowError> {
        let rows = self.rows;
        let mut table = Table::default();
        table.required(columns::ID_HASH, hash_array(&self.id_hashes, None)?);
        table.required(
            columns::PAYLOAD_HASH,
            Arc::new(UInt64Array::new(numbers(&self.payload_hashes), None)),
        );
        table.required(TEXTS[TEXT_EVENT_ID], self.texts[TEXT_EVENT_ID].finish(rows)?);
        table.required(
            columns::EVENT_TYPE,
            Arc::new(UInt8Array::new(numbers(&self.event_types), None)),
        );
        table.required(columns::OCCURRED_AT, times(&self.occurred_us));
        table.required(columns::RECEIVED_AT, times(&self.received_us));
        for (number, name) in DICTS.iter().enumerate() {
            let column = &mut self.dicts[number];
            if number < 2 {
                table.required(name, Arc::new(column.finish(rows)?));
            } else if !column.is_empty() {
                table.optional(name, Arc::new(column.finish(rows)?));
            }
        }
        self.numbers_into(&mut table, rows);
        for (number, name) in TEXTS.iter().enumerate().filter(|t| t.0 != TEXT_EVENT_ID) {
            if !self.texts[number].ends.is_empty() {
                table.optional(name, self.texts[number].finish(rows)?);
            }
        }
        for (number, name) in HASHES.iter().enumerate() {
            if !self.hashes[number].bytes.is_empty() {
                table.optional(name, self.hashes[number].finish(rows)?);
            }
        }
        RecordBatch::try_new(Arc::new(Schema::new(table.schema)), table.arrays)
    }

    fn numbers_into(&mut self, table: &mut Table, rows: usize) {
        if !self.prices.0.is_empty() {
            self.prices.0.resize(rows, 0);
            let array = Int64Array::new(numbers(&self.prices.0), None);
            table.required(columns::PRICE_MICROS, Arc::new(array));
        }
        if !self.bases.0.is_empty() {
            self.bases.0.resize(rows, 0);
            let array = UInt8Array::new(numbers(&self.bases.0), None);
            table.required(columns::PRICE_BASIS, Arc::new(array));
        }
        if !self.values.0.is_empty() {
            if self.values.0.len() < rows {
                self.value_nulls.gap(self.values.0.len(), rows);
                self.values.0.resize(rows, 0);
            }
            let nulls = self.value_nulls.finish(rows);
            let array = Int64Array::new(numbers(&self.values.0), nulls);
            table.optional(columns::VALUE_MICROS, Arc::new(array));
        }
        if !self.versions.0.is_empty() {
            self.versions.0.resize(rows, SCHEMA_VERSION);
            let array = UInt16Array::new(numbers(&self.versions.0), None);
            table.required(columns::SCHEMA_VERSION, Arc::new(array));
        }
    }
}

fn numbers<T: arrow_buffer::ArrowNativeType>(values: &[T]) -> ScalarBuffer<T> {
    ScalarBuffer::from(Buffer::from_slice_ref(values))
}

fn times(us: &[i64]) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::new(numbers(us), None).with_timezone("UTC"))
}

/// Columns that were put together.
#[derive(Default)]
struct Table {
    schema: Vec<Column>,
    arrays: Vec<ArrayRef>,
}

impl Table {
    fn required(&mut self, name: &str, array: ArrayRef) {
        self.schema.push(Column::new(name, array.data_type().clone(), false));
        self.arrays.push(array);
    }

    fn optional(&mut self, name: &str, array: ArrayRef) {
        self.schema.push(Column::new(name, array.data_type().clone(), true));
        self.arrays.push(array);
    }
}
