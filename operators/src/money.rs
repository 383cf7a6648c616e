//! Money is an integer. Inside, sums are kept in *nanos* (a thousandth of a micro), because an
//! impression on a CPM basis costs a thousandth of its price and a sum of rounded thousandths
//! would not be exact. Rounding, half to even, happens once, when a figure is read.

use serde::{Deserialize, Serialize};

/// A millionth of the account currency.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Micros(pub i64);

/// A thousandth of a micro. `i64` holds 9.2 thousand million units of the currency.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Nanos(pub i64);

/// The highest price an event may carry: 1,000 units of the currency. With it, a row of one bucket
/// can hold nine million events of the highest price before `Nanos` ends.
pub const PRICE_MICROS_MAX: i64 = 1_000_000_000;

impl Nanos {
    /// Rounded to whole micros, half to even.
    pub const fn to_micros(self) -> Micros {
        // A thousandth of an `i64` is one.
        Micros(nanos_to_micros(self.0 as i128) as i64)
    }
}

/// A sum of nanos of any size rounded to whole micros, half to even.
pub const fn nanos_to_micros(nanos: i128) -> i128 {
    let (whole, rest) = (nanos.div_euclid(1_000), nanos.rem_euclid(1_000));
    let up = rest > 500 || (rest == 500 && whole.rem_euclid(2) == 1);
    whole + up as i128
}

/// What a price is paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum PriceBasis {
    /// A click costs the price.
    #[default]
    Cpc = 0,
    /// An impression costs a thousandth of it.
    Cpm = 1,
    /// A conversion costs it.
    Cpa = 2,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_half_to_even() {
        for (nanos, micros) in
            [(0, 0), (499, 0), (500, 0), (501, 1), (1_500, 2), (2_500, 2), (-500, 0), (-501, -1)]
        {
            assert_eq!(Nanos(nanos).to_micros(), Micros(micros), "{nanos}");
        }
    }
}
