//! The end-to-end tests, in one binary: what a client, an operator or an attacker sees of the
//! built program, and what the library promises over a whole run.
//!
//! | module | what must hold |
//! |---|---|
//! | [`replay`] | 1, 2 and 4 workers publish the same in every epoch, and what `verify` finds |
//! | [`orders`] | another job, killed with -9 again and again, is right in the end |
//! | [`tidy`] | the style of the sources, as a test |
//!
//! Randomised tests print their seed; `TRUEUP_SEED` repeats a run. `TRUEUP_IT_EVENTS`,
//! `TRUEUP_IT_KILLS` and `TRUEUP_IT_CUTS` make the runs larger than everyday use has time for, as
//! `.ci/run` does.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod client;
mod orders;
mod replay;
mod seed;
mod server;
mod sse;
mod tidy;
