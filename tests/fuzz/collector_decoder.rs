//! Any bytes as a body of events, in each format. `entries.rs` says what must hold.
#![no_main]

mod entries;

libfuzzer_sys::fuzz_target!(
    // The collector catches what Arrow's reader panics on; only a panic that is not caught counts.
    init: drop(std::panic::take_hook()),
    |bytes: &[u8]| entries::decode_a_body(bytes)
);
