//! A journal whose segment was overwritten, cut or made longer. `entries.rs` says what must hold.
#![no_main]

use std::sync::LazyLock;

static SOUND: LazyLock<entries::SoundJournal> = LazyLock::new(entries::SoundJournal::new);

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| SOUND.read_damaged(bytes));
