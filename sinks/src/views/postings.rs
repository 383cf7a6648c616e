//! Which rows of a bucket belong to a campaign: for each value of the first dimension a list of row
//! numbers that only grows, so that one hot campaign is read without looking at the others.
//!
//! A bucket has many campaigns with one row and few with a thousand, so neither a `Vec` a campaign
//! (72 bytes for a single number) nor links from row to row (a cache miss each) will do. All lists
//! of a bucket share one array of words and grow in slices of 2, 4, 8 … 128 numbers; the word
//! behind a slice holds the place of the next. That is 4 to 6 bytes a row for a hot campaign and 30
//! for one with a single row, and reading is sequential within a slice.

use hashbrown::HashTable;
use trueup_operators::{hash::mix, symbols::Symbol};

const SLICE_MIN: u32 = 2;
const SLICE_MAX: u32 = 128;

#[derive(Clone, Copy, Debug)]
struct List {
    symbol: Symbol,
    /// The first word of the first slice.
    head: u32,
    /// The next free word of the last slice.
    at: u32,
    /// The word behind the last slice, for the place of the next one.
    end: u32,
    /// How many numbers the list holds.
    len: u32,
}

/// The lists of one bucket.
#[derive(Debug, Default)]
pub(crate) struct Postings {
    lists: HashTable<List>,
    words: Vec<u32>,
}

fn hash_of(symbol: Symbol) -> u64 {
    mix(u64::from(symbol), 0)
}

/// How long the slice after one of `size` is.
fn next_size(size: u32) -> u32 {
    (size * 2).min(SLICE_MAX)
}

impl Postings {
    /// Appends a row to a symbol's list.
    pub(crate) fn push(&mut self, symbol: Symbol, row: u32) {
        let Postings { lists, words } = self;
        let list = lists
            .entry(hash_of(symbol), |l| l.symbol == symbol, |l| hash_of(l.symbol))
            .or_insert_with(|| {
                let head = words.len() as u32;
                words.resize(words.len() + SLICE_MIN as usize + 1, 0);
                List { symbol, head, at: head, end: head + SLICE_MIN, len: 0 }
            })
            .into_mut();
        if list.at == list.end {
            let begin = words.len() as u32;
            let size = next_size(slice_size(list.len));
            words.resize(words.len() + size as usize + 1, 0);
            words[list.end as usize] = begin;
            (list.at, list.end) = (begin, begin + size);
        }
        words[list.at as usize] = row;
        list.at += 1;
        list.len += 1;
    }

    /// Appends up to `max` rows of a symbol's list to `out`, from its `from`-th on.
    pub(crate) fn read(&self, symbol: Symbol, from: usize, max: usize, out: &mut Vec<u32>) {
        let Some(list) = self.lists.find(hash_of(symbol), |l| l.symbol == symbol) else { return };
        let mut left = (list.len as usize).saturating_sub(from).min(max);
        let (mut begin, mut size, mut skip) = (list.head as usize, SLICE_MIN as usize, from);
        while left > 0 {
            if skip < size {
                let take = left.min(size - skip);
                out.extend_from_slice(&self.words[begin + skip..begin + skip + take]);
                left -= take;
                skip = 0;
            } else {
                skip -= size;
            }
            if left > 0 {
                begin = self.words[begin + size] as usize;
                size = next_size(size as u32) as usize;
            }
        }
    }

    /// Whether a symbol's list has a row. Looks at all of it.
    pub(crate) fn holds(&self, symbol: Symbol, row: u32) -> bool {
        let mut rows = Vec::new();
        self.read(symbol, 0, usize::MAX, &mut rows);
        rows.contains(&row)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lists.allocation_size() + self.words.capacity() * size_of::<u32>()
    }
}

/// The size of the slice that was filled when a list reached `len` numbers.
fn slice_size(len: u32) -> u32 {
    let (mut size, mut filled) = (SLICE_MIN, SLICE_MIN);
    while filled < len {
        size = next_size(size);
        filled += size;
    }
    size
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_give_back_what_went_in_from_any_place() {
        let mut postings = Postings::default();
        let mut model: Vec<Vec<u32>> = vec![Vec::new(); 7];
        for row in 0..6_000_u32 {
            // Symbol 0 takes half of all; symbol 6 a single one.
            let symbol = if row % 2 == 0 { 0 } else { (row / 2) % 5 + 1 };
            let symbol = if row == 777 { 6 } else { symbol };
            postings.push(symbol, row);
            model[symbol as usize].push(row);
        }
        for (symbol, rows) in model.iter().enumerate() {
            for from in [0, 1, 2, 3, 5, 6, 126, 127, 254, 500, 2_999, 3_000, 4_000] {
                for max in [0, 1, 2, 3, 100, 5_000] {
                    let mut out = Vec::new();
                    postings.read(symbol as u32, from, max, &mut out);
                    let expected: Vec<u32> = rows.iter().skip(from).take(max).copied().collect();
                    assert_eq!(out, expected, "symbol {symbol} from {from} max {max}");
                }
            }
        }
        assert!(postings.holds(6, 777) && !postings.holds(6, 778) && !postings.holds(99, 0));
    }

    #[test]
    fn a_row_of_a_hot_symbol_costs_less_than_five_bytes() {
        let mut postings = Postings::default();
        for row in 0..100_000 {
            postings.push(1, row);
        }
        let used = postings.words.len() * size_of::<u32>();
        assert!(used < 100_000 * 5, "{used}");
    }
}
