//! Contributions are elements of an Abelian group, so that correcting is adding the negative and
//! state is one row a key, however many events it sums.
//!
//! [`Group`] is what the two-stage sums need of a group; [`Metrics`] is the one of the ad job.

use crate::{
    event::EventType,
    money::{self, Nanos},
};
use serde::{Deserialize, Serialize};

/// A commutative group of fixed-size elements, with a count of the records that were summed.
///
/// The laws, tested for [`Metrics`]: `add` is associative and commutative, `default()` changes
/// nothing, and `add` then `sub` of one element changes nothing.
pub trait Group: Copy + Default + PartialEq + std::fmt::Debug + Send + Sync + 'static {
    /// The names of the columns that [`Group::columns`] yields, as views and reports write them.
    const COLUMNS: &'static [&'static str];

    /// Adds another element. `false`: a figure left its range and now stands at its limit; the
    /// caller raises that as an error.
    #[must_use]
    fn add(&mut self, other: &Self) -> bool;

    /// The inverse element.
    fn negated(&self) -> Self;

    /// How many records the sum stands for. A row with none is not in the view.
    fn records(&self) -> i64;

    /// The figures as integers, in the order of [`Group::COLUMNS`].
    fn columns(&self, out: &mut Vec<i64>);

    /// The figures in the units that they are summed in, before anything is rounded, in the order
    /// of [`Group::COLUMNS`]. Sums that outgrow the element are exact in these.
    fn exact(&self, out: &mut Vec<i128>) {
        let mut figures = Vec::with_capacity(Self::COLUMNS.len());
        self.columns(&mut figures);
        out.extend(figures.into_iter().map(i128::from));
    }

    /// A figure of [`Group::exact`], or a sum of such, as [`Group::columns`] writes it: in the unit
    /// of the column with this place in [`Group::COLUMNS`], rounded once.
    fn rounded(column: usize, exact: i128) -> i128 {
        let _ = column;
        exact
    }

    /// How many bytes [`Group::write`] appends. At most 65,535.
    const BYTES: usize;

    /// Appends the element as a checkpoint keeps it: exact, and the same on every machine.
    fn write(&self, out: &mut Vec<u8>);

    /// Reads what [`Group::write`] wrote. `None`: these bytes are no element.
    fn read(bytes: &[u8]) -> Option<Self>;
}

/// What an ad row sums. 40 bytes: with a 16-byte key and two words beside it a row is a cache line.
///
/// The narrow counters hold 2,147,483,647 of their kind in one row of one bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C)]
pub struct Metrics {
    /// Valid impressions.
    pub impressions: i64,
    /// The price of valid billable events.
    pub spend: Nanos,
    /// Valid clicks.
    pub clicks: i32,
    /// Valid conversions.
    pub conversions: i32,
    /// Impressions that a verdict took out.
    pub invalid_impressions: i32,
    /// Clicks that a verdict took out.
    pub invalid_clicks: i32,
    /// Conversions that a verdict took out.
    pub invalid_conversions: i32,
    /// Keeps the size a multiple of eight; always zero.
    pub reserved: i32,
}

const _: () = assert!(size_of::<Metrics>() == 40);

/// The place of `spendMicros` among the columns.
const SPEND_COLUMN: usize = 5;

impl Metrics {
    /// What one event adds: `cost` only if it is valid.
    #[inline]
    pub fn of(event: EventType, cost: Nanos, valid: bool) -> Metrics {
        let mut m = Metrics::default();
        match (event, valid) {
            (EventType::Impression, true) => m.impressions = 1,
            (EventType::Impression, false) => m.invalid_impressions = 1,
            (EventType::Click, true) => m.clicks = 1,
            (EventType::Click, false) => m.invalid_clicks = 1,
            (EventType::Conversion, true) => m.conversions = 1,
            (EventType::Conversion, false) => m.invalid_conversions = 1,
        }
        if valid {
            m.spend = cost;
        }
        m
    }
}

#[inline]
fn add_i64(a: &mut i64, b: i64) -> bool {
    let (sum, over) = a.overflowing_add(b);
    *a = if over { if b > 0 { i64::MAX } else { i64::MIN } } else { sum };
    !over
}

#[inline]
fn add_i32(a: &mut i32, b: i32) -> bool {
    let (sum, over) = a.overflowing_add(b);
    *a = if over { if b > 0 { i32::MAX } else { i32::MIN } } else { sum };
    !over
}

impl Group for Metrics {
    const COLUMNS: &'static [&'static str] = &[
        "impressions",
        "clicks",
        "conversions",
        "invalidImpressions",
        "invalidClicks",
        "spendMicros",
    ];

    #[inline]
    fn add(&mut self, other: &Self) -> bool {
        // Not `&&`: every figure is added, whichever overflows.
        add_i64(&mut self.impressions, other.impressions)
            & add_i64(&mut self.spend.0, other.spend.0)
            & add_i32(&mut self.clicks, other.clicks)
            & add_i32(&mut self.conversions, other.conversions)
            & add_i32(&mut self.invalid_impressions, other.invalid_impressions)
            & add_i32(&mut self.invalid_clicks, other.invalid_clicks)
            & add_i32(&mut self.invalid_conversions, other.invalid_conversions)
    }

    #[inline]
    fn negated(&self) -> Self {
        Metrics {
            impressions: -self.impressions,
            spend: Nanos(-self.spend.0),
            clicks: -self.clicks,
            conversions: -self.conversions,
            invalid_impressions: -self.invalid_impressions,
            invalid_clicks: -self.invalid_clicks,
            invalid_conversions: -self.invalid_conversions,
            reserved: 0,
        }
    }

    #[inline]
    fn records(&self) -> i64 {
        self.impressions
            + i64::from(self.clicks)
            + i64::from(self.conversions)
            + i64::from(self.invalid_impressions)
            + i64::from(self.invalid_clicks)
            + i64::from(self.invalid_conversions)
    }

    fn columns(&self, out: &mut Vec<i64>) {
        out.extend([
            self.impressions,
            i64::from(self.clicks),
            i64::from(self.conversions),
            i64::from(self.invalid_impressions),
            i64::from(self.invalid_clicks),
            self.spend.to_micros().0,
        ]);
    }

    fn exact(&self, out: &mut Vec<i128>) {
        out.extend([
            i128::from(self.impressions),
            i128::from(self.clicks),
            i128::from(self.conversions),
            i128::from(self.invalid_impressions),
            i128::from(self.invalid_clicks),
            i128::from(self.spend.0),
        ]);
    }

    fn rounded(column: usize, exact: i128) -> i128 {
        if column == SPEND_COLUMN { money::nanos_to_micros(exact) } else { exact }
    }

    const BYTES: usize = 36;

    /// Little-endian: `i64` impressions, `i64` nanos, five `i32` counters in the order of the
    /// fields.
    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.impressions.to_le_bytes());
        out.extend(self.spend.0.to_le_bytes());
        for counter in [
            self.clicks,
            self.conversions,
            self.invalid_impressions,
            self.invalid_clicks,
            self.invalid_conversions,
        ] {
            out.extend(counter.to_le_bytes());
        }
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (wide, narrow) = bytes.split_at_checked(16)?;
        let (narrow, rest) = narrow.as_chunks::<4>();
        let &[clicks, conversions, invalid_impressions, invalid_clicks, invalid_conversions] =
            narrow
        else {
            return None;
        };
        let wide = |at: usize| Some(i64::from_le_bytes(wide[at..].first_chunk().copied()?));
        rest.is_empty().then_some(Metrics {
            impressions: wide(0)?,
            spend: Nanos(wide(8)?),
            clicks: i32::from_le_bytes(clicks),
            conversions: i32::from_le_bytes(conversions),
            invalid_impressions: i32::from_le_bytes(invalid_impressions),
            invalid_clicks: i32::from_le_bytes(invalid_clicks),
            invalid_conversions: i32::from_le_bytes(invalid_conversions),
            reserved: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn metrics() -> impl Strategy<Value = Metrics> {
        (any::<i32>(), any::<i32>(), any::<[i8; 5]>()).prop_map(|(i, s, n)| Metrics {
            impressions: i.into(),
            spend: Nanos(s.into()),
            clicks: n[0].into(),
            conversions: n[1].into(),
            invalid_impressions: n[2].into(),
            invalid_clicks: n[3].into(),
            invalid_conversions: n[4].into(),
            reserved: 0,
        })
    }

    fn plus(mut a: Metrics, b: &Metrics) -> Metrics {
        assert!(a.add(b));
        a
    }

    proptest! {
        #[test]
        fn is_an_abelian_group(a in metrics(), b in metrics(), c in metrics()) {
            prop_assert_eq!(plus(plus(a, &b), &c), plus(a, &plus(b, &c)));
            prop_assert_eq!(plus(a, &b), plus(b, &a));
            prop_assert_eq!(plus(a, &Metrics::default()), a);
            prop_assert_eq!(plus(plus(a, &b), &b.negated()), a);
        }
    }

    proptest! {
        #[test]
        fn reads_what_it_writes_and_nothing_else(
            a in metrics(),
            wide in any::<(i64, i64)>(),
            len in 0..80_usize,
        ) {
            let a = Metrics { impressions: wide.0, spend: Nanos(wide.1), ..a };
            let mut bytes = Vec::new();
            a.write(&mut bytes);
            prop_assert_eq!(bytes.len(), Metrics::BYTES);
            prop_assert_eq!(Metrics::read(&bytes), Some(a));
            bytes.resize(len, 0);
            prop_assert_eq!(Metrics::read(&bytes).is_some(), len == Metrics::BYTES);
        }
    }

    proptest! {
        #[test]
        fn exact_figures_round_to_the_columns(a in metrics(), wide in any::<(i64, i64)>()) {
            let a = Metrics { impressions: wide.0, spend: Nanos(wide.1), ..a };
            let (mut columns, mut exact) = (Vec::new(), Vec::new());
            a.columns(&mut columns);
            a.exact(&mut exact);
            let rounded = exact.into_iter().enumerate().map(|(i, e)| Metrics::rounded(i, e));
            prop_assert!(rounded.eq(columns.into_iter().map(i128::from)));
        }
    }

    #[test]
    fn says_when_a_figure_leaves_its_range() {
        let mut m = Metrics { clicks: i32::MAX, ..Metrics::default() };
        assert!(!m.add(&Metrics { clicks: 1, impressions: 1, ..Metrics::default() }));
        assert_eq!((m.clicks, m.impressions), (i32::MAX, 1));
    }
}
