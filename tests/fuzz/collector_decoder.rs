//! Any bytes as a body of events, in each format. `entries.rs` says what must hold.
#![no_main]

use std::panic::{Location, PanicHookInfo, set_hook};

/// The collector catches what Arrow's reader panics on; that is no finding, and thousands of them
/// are no news. A panic that nobody catches ends the run, whatever the hook does.
fn report(panic: &PanicHookInfo<'_>) {
    if !panic.location().map_or("", Location::file).contains("/arrow-") {
        eprintln!("{panic}");
    }
}

libfuzzer_sys::fuzz_target!(
    init: set_hook(Box::new(report)),
    |bytes: &[u8]| entries::decode_a_body(bytes)
);
