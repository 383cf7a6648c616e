//! Checkpoints without a dataflow: what is written is what is read, every byte that is flipped is
//! noticed, zombies lose, and the machine may stop at any operation; alone, and when several
//! processes write one checkpoint.
#![allow(clippy::unwrap_used)]

mod crash;
mod damage;
pub(crate) mod flaky;
mod generations;
mod offers;
mod places;
pub(crate) mod recorded;
pub(crate) mod resumed;
mod roles;
pub(crate) mod simulated;
mod skewed;
mod together;
mod zombies;

use super::{
    keeper::{KeepSettings, Keeper, Packed, Published, Sections, manifests, read_manifest},
    manifest::{At, Of, Taken},
    store::Store,
};
use crate::{EngineSettings, decided::Decided};
use std::{collections::BTreeMap, sync::Arc};
use trueup_operators::{
    remap::RemapRow,
    rollup::RollupSpec,
    time::{DAY_US, Lateness, LogTime, MINUTE_US},
};

/// State as a test sees it: bytes by key.
pub(crate) type State = BTreeMap<Vec<u8>, Vec<u8>>;

const SETTINGS: KeepSettings = KeepSettings { kept: 2, whole_every: 4 };

fn of() -> Of {
    let lateness = Lateness {
        allowed_lateness_us: MINUTE_US,
        correction_horizon_us: DAY_US,
        future_skew_us_max: MINUTE_US,
    };
    let rollups = vec![RollupSpec::new("a", &["x"])];
    let decided = Decided::new(&lateness, &rollups);
    let engine = EngineSettings { lateness, ..EngineSettings::default() };
    Of { installation: "7f0c".into(), decided, rollups, engine }
}

fn at(epoch: u64) -> At {
    let row = RemapRow { epoch, ..RemapRow::origin(4, 1, 1) };
    At { row, frontier_before: LogTime(epoch as i64 * 100), remap_offset: epoch }
}

/// Writes what is `changed` of a state, or all of it.
fn pack(
    keeper: &Keeper,
    epoch: u64,
    state: &State,
    changed: Option<&[Vec<u8>]>,
) -> Result<Packed, super::keeper::CheckpointError> {
    let mut taking = keeper.begin(epoch, changed.is_none())?;
    for (key, section) in state {
        if changed.is_none_or(|changed| changed.contains(key)) {
            taking.pack.section(key, section)?;
        }
    }
    keeper.seal(taking, |key| state.contains_key(key))
}

pub(crate) fn take(
    keeper: &mut Keeper,
    epoch: u64,
    state: &State,
    changed: Option<&[Vec<u8>]>,
) -> Result<Published, super::keeper::CheckpointError> {
    let packed = pack(keeper, epoch, state, changed)?;
    keeper.publish(packed, &at(epoch), Taken::default())
}

pub(crate) fn claim(store: &Arc<dyn Store>) -> Keeper {
    Keeper::claim(Arc::clone(store), SETTINGS, of()).unwrap()
}

/// The newest checkpoint that can be loaded whole, by epoch and generation, and those that cannot
/// and are newer.
fn newest(store: &dyn Store) -> (Option<(u64, u64, State)>, Vec<String>) {
    let mut broken = Vec::new();
    for name in manifests(store).unwrap() {
        let loaded = read_manifest(store, name).and_then(|manifest| {
            let sections = Sections::open(store, &manifest)?;
            let mut state = State::new();
            for index in &sections.indexes {
                for (key, place) in &index.sections {
                    let section = index.section(store, key, place)?;
                    state.insert(key.to_vec(), section.to_vec());
                }
            }
            Ok(state)
        });
        match loaded {
            Ok(state) => return (Some((name.epoch, name.generation, state)), broken),
            Err(unread) => broken.push(unread.to_string()),
        }
    }
    (None, broken)
}

fn key(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

/// So many sections of different sizes.
pub(crate) fn state(sections: u64, seed: u8) -> State {
    (0..sections).map(|n| (key(n), vec![seed.wrapping_add(n as u8); n as usize * 37])).collect()
}
