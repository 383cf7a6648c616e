//! The parts against models of themselves, and the rules one by one. That all of it together is
//! right, with any number of workers, is for `operators/tests/ledger_reference`.
#![allow(clippy::unwrap_used)]

mod images;
mod rules;
mod steps;
mod structure;

use super::{Ledger, LedgerFault, Ledgered};
use crate::{
    event::EventBatch,
    feed::{Judgement, ReadBack},
    hash::mix,
};

/// All verdicts of an epoch, step by step to the end.
fn judge<B: EventBatch>(
    ledger: &mut Ledger,
    said: Vec<Judgement>,
    read_back: &mut impl ReadBack<B>,
    emit: &mut impl FnMut(Ledgered<B>),
) -> Result<(), LedgerFault> {
    let mut judging = ledger.judge(said)?;
    while !ledger.carry_out(&mut judging, read_back, emit)? {}
    Ok(())
}

/// Random numbers that are the same everywhere. `TRUEUP_SEED` replays, and every test prints it.
struct Dice(u64);

impl Dice {
    fn new(test: &str) -> Dice {
        let seed = std::env::var("TRUEUP_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
        println!("{test}: TRUEUP_SEED={seed}");
        Dice(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0, 5)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}
