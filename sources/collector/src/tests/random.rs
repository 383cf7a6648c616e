//! Randomness that can be replayed: the seed is printed with every failure, `TRUEUP_SEED=<seed>`
//! runs that seed alone, and `TRUEUP_SEEDS=<n>` runs more of them than a test does by itself.

use trueup_operators::hash::mix;

pub(super) struct Random {
    seed: u64,
    drawn: u64,
}

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random { seed, drawn: 0 }
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        self.drawn += 1;
        (mix(self.seed, self.drawn) % end as u64) as usize
    }

    /// True once in `n` times.
    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(super) fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    pub(super) fn shuffle<T>(&mut self, values: &mut [T]) {
        for last in (1..values.len()).rev() {
            values.swap(last, self.below(last + 1));
        }
    }
}

/// Runs a test for many seeds, or for the one of the environment.
pub(super) fn for_seeds(seeds: u64, test: impl Fn(&mut Random)) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let all = 0..number("TRUEUP_SEEDS").unwrap_or(seeds);
    let range = number("TRUEUP_SEED").map_or(all, |seed| seed..seed + 1);
    for seed in range {
        let guard = Announce(seed);
        test(&mut Random::new(seed));
        std::mem::forget(guard);
    }
}

struct Announce(u64);

impl Drop for Announce {
    fn drop(&mut self) {
        eprintln!("failed with TRUEUP_SEED={}", self.0);
    }
}
