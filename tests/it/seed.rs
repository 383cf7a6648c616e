//! Where a randomised test gets its seed and its size from. A run takes a new seed and prints it;
//! `TRUEUP_SEED` repeats a run, `TRUEUP_IT_…` makes it larger than what everyday use has time for.

use std::time::UNIX_EPOCH;
use trueup_generator::random::{Random, finalise};

/// The seed of this run of a test, printed so that a failure can be repeated.
pub(crate) fn seed(test: &str) -> u64 {
    let seed = match std::env::var("TRUEUP_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("TRUEUP_SEED is `{text}`, no number")),
        // Half as many digits are twice as easy to type.
        Err(_) => finalise(UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64) >> 32,
    };
    println!("{test}: repeat with TRUEUP_SEED={seed}");
    seed
}

/// The randomness of this run of a test.
pub(crate) fn random(test: &str) -> Random {
    Random::new(seed(test), 0)
}

/// How many: what the environment says, or what everyday use has time for.
pub(crate) fn count(variable: &str, everyday: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is `{text}`, no number")),
        Err(_) => everyday,
    }
}
