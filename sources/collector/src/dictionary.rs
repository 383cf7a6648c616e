//! A dictionary column under construction: each distinct text once, and a 16-bit key per row.
//!
//! Texts are found through a small open-addressing table whose slots are a 16-bit fingerprint and
//! a 16-bit place, so that a miss rarely looks at the texts. The table starts small for every batch
//! and doubles, so clearing costs what the batch before needed, not what the largest ever did.
//!
//! The hash is not keyed, and a sender could make texts that meet. After [`PROBES_MAX`] steps a
//! text is therefore entered again: a dictionary may hold a text twice, and no sender can make a
//! lookup slow. A batch has less than 65,536 rows, so keys never run out.

use arrow_array::{DictionaryArray, StringArray, UInt16Array, types::UInt16Type};
use arrow_buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::ArrowError;
use std::sync::Arc;

const SLOTS_MIN: usize = 64;
const PROBES_MAX: usize = 48;

/// A dictionary column; rows that were not pushed are null.
#[derive(Default)]
pub(crate) struct Dictionary {
    keys: Vec<u16>,
    /// Rows that are null; empty as long as there is none.
    nulls: Nulls,
    /// `fingerprint << 16 | place + 1`; 0 is free.
    slots: Vec<u32>,
    hashes: Vec<u64>,
    ends: Vec<u32>,
    bytes: Vec<u8>,
}

/// Which rows hold a value, kept only once a row does not.
#[derive(Default)]
pub(crate) struct Nulls(Vec<bool>);

impl Nulls {
    /// Rows `from..to` are null; all before are as they were.
    pub(crate) fn gap(&mut self, from: usize, to: usize) {
        self.0.resize(from, true);
        self.0.resize(to, false);
    }

    /// The column has `rows` rows.
    pub(crate) fn finish(&self, rows: usize) -> Option<NullBuffer> {
        if self.0.is_empty() {
            return None;
        }
        Some(NullBuffer::from_iter((0..rows).map(|row| self.0.get(row).is_none_or(|valid| *valid))))
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Dictionary {
    /// Empties the column, keeping its memory.
    pub(crate) fn clear(&mut self) {
        self.keys.clear();
        self.nulls.clear();
        self.slots.clear();
        self.hashes.clear();
        self.ends.clear();
        self.bytes.clear();
    }

    /// The bytes of its texts.
    #[inline(always)]
    pub(crate) fn text_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The memory of its texts.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Whether no row has a value.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key of the last row.
    pub(crate) fn last_key(&self) -> u16 {
        self.keys.last().copied().unwrap_or_default()
    }

    /// Sets row `row`, which is at or after the end of the column. Returns the key.
    #[inline(always)]
    pub(crate) fn push(&mut self, row: usize, text: &[u8], hash: u64) -> u16 {
        let key = self.find(text, hash);
        self.push_key(row, key);
        key
    }

    /// Sets row `row` to a key that [`Dictionary::push`] or [`Dictionary::find`] gave.
    #[inline(always)]
    pub(crate) fn push_key(&mut self, row: usize, key: u16) {
        if self.keys.len() < row {
            self.nulls.gap(self.keys.len(), row);
            self.keys.resize(row, 0);
        }
        self.keys.push(key);
    }

    /// The key of a text, a new one if it has none.
    #[inline(always)]
    pub(crate) fn find(&mut self, text: &[u8], hash: u64) -> u16 {
        if self.slots.is_empty() {
            self.slots.resize(SLOTS_MIN, 0);
        }
        let mask = self.slots.len() - 1;
        let fingerprint = (hash >> 48) as u32;
        let mut at = hash as usize & mask;
        for _ in 0..PROBES_MAX {
            let slot = self.slots[at];
            if slot == 0 {
                break;
            }
            let place = (slot & 0xffff) as usize - 1;
            if slot >> 16 == fingerprint && same(self.text(place), text) {
                return place as u16;
            }
            at = (at + 1) & mask;
        }
        self.insert(text, hash)
    }

    #[inline(always)]
    fn text(&self, place: usize) -> &[u8] {
        let start = if place == 0 { 0 } else { self.ends[place - 1] };
        &self.bytes[start as usize..self.ends[place] as usize]
    }

    #[inline(never)]
    fn insert(&mut self, text: &[u8], hash: u64) -> u16 {
        let place = self.hashes.len();
        assert!(place < usize::from(u16::MAX), "a batch has less than 65,536 rows");
        self.hashes.push(hash);
        self.bytes.extend_from_slice(text);
        self.ends.push(self.bytes.len() as u32);
        if self.hashes.len() * 2 > self.slots.len() {
            let slots = self.slots.len() * 2;
            self.slots.clear();
            self.slots.resize(slots, 0);
            for place in 0..self.hashes.len() {
                self.enter(place);
            }
        } else {
            self.enter(place);
        }
        place as u16
    }

    fn enter(&mut self, place: usize) {
        let hash = self.hashes[place];
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        for _ in 0..PROBES_MAX {
            if self.slots[at] == 0 {
                self.slots[at] = ((hash >> 48) as u32) << 16 | (place as u32 + 1);
                return;
            }
            at = (at + 1) & mask;
        }
    }

    /// The column with `rows` rows.
    ///
    /// # Errors
    /// When Arrow finds the column unsound, which would be an error here.
    pub(crate) fn finish(
        &mut self,
        rows: usize,
    ) -> Result<DictionaryArray<UInt16Type>, ArrowError> {
        if self.keys.len() < rows {
            self.nulls.gap(self.keys.len(), rows);
            self.keys.resize(rows, 0);
        }
        let keys = UInt16Array::new(
            ScalarBuffer::from(Buffer::from_slice_ref(&self.keys)),
            self.nulls.finish(rows),
        );
        let texts = strings(&self.ends, &self.bytes, None)?;
        DictionaryArray::try_new(keys, Arc::new(texts))
    }
}

/// A text column of texts that stand one behind the other, by their ends.
pub(crate) fn strings(
    ends: &[u32],
    bytes: &[u8],
    nulls: Option<NullBuffer>,
) -> Result<StringArray, ArrowError> {
    let mut offsets = Vec::with_capacity(ends.len() + 1);
    offsets.push(0i32);
    offsets.extend(ends.iter().map(|&end| end as i32));
    StringArray::try_new(
        OffsetBuffer::new(ScalarBuffer::from(offsets)),
        Buffer::from_slice_ref(bytes),
        nulls,
    )
}

/// Short texts are compared as words: a call of `memcmp` costs more than the comparison.
#[inline(always)]
fn same(a: &[u8], b: &[u8]) -> bool {
    let len = a.len();
    if len != b.len() {
        return false;
    }
    match len {
        0 => true,
        1..4 => a[0] == b[0] && a[len / 2] == b[len / 2] && a[len - 1] == b[len - 1],
        4..8 => {
            word::<4>(a, 0) == word::<4>(b, 0) && word::<4>(a, len - 4) == word::<4>(b, len - 4)
        }
        8..=16 => {
            word::<8>(a, 0) == word::<8>(b, 0) && word::<8>(a, len - 8) == word::<8>(b, len - 8)
        }
        _ => a == b,
    }
}

#[inline(always)]
fn word<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes[at..].first_chunk()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use arrow_array::Array;
    use trueup_operators::hash::stable;

    fn texts(column: &DictionaryArray<UInt16Type>) -> Vec<Option<String>> {
        let typed = column.downcast_dict::<StringArray>().unwrap();
        (0..column.len())
            .map(|row| {
                column.is_valid(row).then(|| {
                    use arrow_array::ArrayAccessor;
                    typed.value(row).to_owned()
                })
            })
            .collect()
    }

    #[test]
    fn rows_gaps_and_reuse() {
        let mut column = Dictionary::default();
        for round in 0..3u32 {
            column.clear();
            let mut expected = vec![None; 5000];
            for row in (0..5000).filter(|r| round == 0 || r % 3 != 1) {
                let text = format!("{}-{}", round, row * 7919 % 1009);
                column.push(row, text.as_bytes(), stable(text.as_bytes()));
                expected[row] = Some(text);
            }
            assert!(column.hashes.len() <= 1009);
            assert_eq!(texts(&column.finish(5000).unwrap()), expected, "round {round}");
        }
    }

    #[test]
    fn texts_that_meet_stay_apart_and_fast() {
        let mut column = Dictionary::default();
        let expected: Vec<_> = (0..20_000).map(|n| Some(format!("t{n}"))).collect();
        for (row, text) in expected.iter().flatten().enumerate() {
            column.push(row, text.as_bytes(), 7);
        }
        assert_eq!(texts(&column.finish(20_000).unwrap()), expected);
    }

    #[test]
    fn compares_texts_of_every_length() {
        for len in 0..40 {
            let a: Vec<u8> = (0..len).collect();
            assert!(same(&a, &a.clone()));
            for change in 0..a.len() {
                let mut b = a.clone();
                b[change] ^= 0x80;
                assert!(!same(&a, &b), "length {len}, byte {change}");
            }
        }
        assert!(!same(b"a", b"ab"));
    }
}
