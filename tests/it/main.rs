//! The end-to-end tests, in one binary: what a client, an operator or an attacker sees of the
//! built program, and what the library promises over a whole run.
//!
//! | module | what must hold |
//! |---|---|
//! | [`replay`] | 1, 2 and 4 workers publish the same in every epoch, and what `verify` finds |
//! | [`first_curl`] | the README's first minutes, every figure written out |
//! | [`demo`] | what is run first: shows something, and ends when its time is over |
//! | [`chaos`] | killed with -9 under contradictory traffic: nothing lost, nothing twice |
//! | [`finality`] | provisional, settling, final, and where what comes at each stage ends |
//! | [`subscribe`] | cut off, slow or stalled, a subscriber's sum is the view |
//! | [`bad_input`] | what no client should send has a defined answer and harms nobody |
//! | [`faults`] | full disk, torn write, flipped bit, clock, second server, SIGTERM |
//! | [`halt`] | a fault ends the run, and nothing of its epoch is shown |
//! | [`doubt`] | `verify`, `replay`, and settings that would decide history anew |
//! | [`restated`] | a replay that publishes: one step for whoever reads, and it stays |
//! | [`checkpoints`] | starts from checkpoints, broken ones, a log of which older parts are gone |
//! | [`command_line`] | exit codes, messages, configuration, generated traffic |
//! | [`orders`] | another job, killed with -9 again and again, is right in the end |
//! | [`fuzzed`] | the fuzz targets' entry points over a corpus and random changes to it |
//! | [`mesh`] | processes of a cluster: killed, stopped, cut off, strangers; they meet again |
//! | [`tidy`] | the style of the sources, as a test |
//!
//! Randomised tests print their seed; `TRUEUP_SEED` repeats a run. `TRUEUP_IT_EVENTS`,
//! `TRUEUP_IT_KILLS` and `TRUEUP_IT_CUTS` make the runs larger than everyday use has time for, as
//! `.ci/run` does.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
// One event as a slice of one reads better as `&[event.clone()]` in a test.
#![allow(clippy::cloned_ref_to_slice_refs)]

mod bad_input;
mod chaos;
mod checkpoints;
mod client;
mod command_line;
mod dear;
mod demo;
mod doubt;
mod faults;
mod finality;
mod first_curl;
mod fuzzed;
mod halt;
mod mesh;
mod mutate;
mod orders;
mod replay;
mod restated;
mod seed;
mod server;
mod sse;
mod storm;
mod subscribe;
mod tidy;
mod traffic;
