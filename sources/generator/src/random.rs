//! Repeatable randomness: splitmix64 as a stream and with random access, and the few
//! distributions that traffic is made of. Not for secrets.
//!
//! Floating point decides nothing that must be equal between machines but the shape of demo
//! traffic; ADS-1's tables are the exception, and their check sums are tested.

/// The step of the splitmix64 stream.
pub const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finaliser of splitmix64.
#[inline]
pub const fn finalise(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A splitmix64 stream.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of a seed and a number under it: neighbours have nothing in common.
    pub const fn new(seed: u64, number: u64) -> Random {
        Random(finalise(seed ^ finalise(number.wrapping_mul(STEP) ^ STEP)))
    }

    /// The next 64 bits.
    #[inline]
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        finalise(self.0)
    }

    /// A number below `end`; 0 if `end` is 0. The bias is below 2⁻³² for what is drawn here.
    #[inline]
    pub const fn below(&mut self, end: u64) -> u64 {
        ((self.bits() as u128 * end as u128) >> 64) as u64
    }

    /// A number from `from` to before `to`.
    #[inline]
    pub const fn between(&mut self, from: i64, to: i64) -> i64 {
        from + self.below(to.saturating_sub(from) as u64) as i64
    }

    /// From 0 to before 1.
    #[inline]
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with this probability.
    #[inline]
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// One of these, all alike.
    #[inline]
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    /// Exponential with this mean: the time to the next of something that has no memory.
    #[inline]
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// Log-normal with this median: how long people take.
    pub fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        // Box and Muller; the second value is not worth keeping.
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        median * (sigma * radius * (std::f64::consts::TAU * self.unit()).cos()).exp()
    }
}

/// Weights by rank, `1 / rank^exponent`, as a guide table: slot *j* holds the smallest rank *k*
/// (from 0) with `floor(cum_k / total · slots + 0.5) > j`.
pub fn zipf_table(ranks: u16, slots: usize, exponent: f64) -> Vec<u16> {
    let weight = |rank: u16| 1.0 / (f64::from(rank) + 1.0).powf(exponent);
    let total: f64 = (0..ranks).map(weight).sum();
    let mut table = Vec::with_capacity(slots);
    let mut cumulated = 0.0;
    for rank in 0..ranks {
        cumulated += weight(rank);
        let end = if rank + 1 == ranks {
            slots
        } else {
            (cumulated / total * slots as f64 + 0.5).floor() as usize
        };
        table.resize(end.max(table.len()), rank);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions_have_their_shape() {
        let mut random = Random::new(7, 0);
        let n = 20_000;
        let mean = (0..n).map(|_| random.exponential(3.0)).sum::<f64>() / f64::from(n);
        assert!((2.9..3.1).contains(&mean), "{mean}");
        let mut times: Vec<f64> = (0..n).map(|_| random.log_normal(5.0, 0.8)).collect();
        times.sort_by(f64::total_cmp);
        assert!((4.8..5.2).contains(&times[times.len() / 2]));
        let hits = (0..n).filter(|_| random.chance(0.25)).count();
        assert!((4_700..5_300).contains(&hits), "{hits}");
        assert!((0..n).all(|_| (-3..4).contains(&random.between(-3, 4))));
        assert_eq!(random.below(0), 0);
    }

    #[test]
    fn seeds_and_numbers_give_other_streams() {
        let first = |seed, number| Random::new(seed, number).bits();
        assert_eq!(first(1, 2), first(1, 2));
        assert_ne!(first(1, 2), first(2, 1));
        assert_ne!(first(1, 2), first(1, 3));
    }
}
