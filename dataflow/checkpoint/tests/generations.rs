//! Generation after generation of one to three processes on one store, by chance: stores refuse or
//! lose their power, processes stop in the middle, links are cut, leaders come back as zombies.
//! Whatever manifest is the newest afterwards, it loads to what all processes together had at the
//! end of its epoch, and it is no older than the last that was said to be published.

use super::{
    State, newest,
    simulated::{Disk, Simulated, repeat},
    together::{Refusing, Together, within_patience},
};
use crate::checkpoint::{
    keeper::{manifests, newest_generation, read_manifest},
    manifest::ManifestName,
    store::Store,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
};
use trueup_generator::random::Random;
use trueup_operators::feed::ImageKind;

const RUNS: u64 = 30;
const LIVES: u64 = 14;

/// How often what happened.
#[derive(Debug, Default)]
struct Seen {
    published: u64,
    failed: u64,
    stopped: u64,
    fenced: u64,
    late: u64,
}

/// A store, and what is known of what should be on it.
struct World {
    disk: Disk,
    random: Random,
    epoch: u64,
    /// What all processes had at the end of an epoch.
    truth: BTreeMap<ManifestName, State>,
    /// The newest that was said to be published.
    last: Option<ManifestName>,
    /// Leaders that were thought dead, with the words that they have not heard.
    zombies: Vec<Together>,
    seen: Seen,
}

impl World {
    fn new(seed: u64, run: u64) -> World {
        World {
            disk: Disk::default(),
            random: Random::new(seed, run),
            epoch: 0,
            truth: BTreeMap::new(),
            last: None,
            zombies: Vec::new(),
            seen: Seen::default(),
        }
    }

    /// What the next generation begins with.
    fn found(&mut self) -> (u64, State, Vec<ManifestName>) {
        let store = Simulated::lasting(&self.disk);
        let (found, _broken) = newest(&*store);
        let name = found.as_ref().map(|&(epoch, generation, _)| ManifestName { generation, epoch });
        assert!(name >= self.last, "{name:?} was found, {:?} published", self.last);
        if let (Some(name), Some((.., state))) = (name, &found) {
            assert_eq!(*state, self.truth[&name], "{name}");
        }
        let names = manifests(&*store).unwrap();
        let newer = names.into_iter().filter(|&newer| Some(newer) > name).collect();
        let (epoch, _, state) = found.unwrap_or_default();
        (epoch, state, newer)
    }

    /// Stores of so many processes, and those that can refuse.
    fn stores(&mut self, processes: usize) -> (Vec<Arc<dyn Store>>, Vec<Arc<Refusing>>) {
        let mut refusing = Vec::new();
        for _ in 0..processes {
            let stop_at = match self.random.chance(0.3) {
                true => 1 + self.random.below(60),
                false => u64::MAX,
            };
            let random = Random::new(self.random.below(u64::MAX), 1);
            let store = Simulated::new(&self.disk, stop_at, random);
            refusing.push(Refusing::new(Arc::new(store)));
        }
        (refusing.iter().map(|store| Arc::clone(store) as Arc<dyn Store>).collect(), refusing)
    }

    /// A generation, from its first word to its end.
    fn live(&mut self) {
        let (epoch, state, broken) = self.found();
        let processes = 1 + self.random.below(3) as usize;
        let (stores, refusing) = self.stores(processes);
        let generation = newest_generation(&*stores[0]).unwrap() + 1;
        let begun = Together::begin(&stores, generation, epoch, state, &broken);
        let Some(mut together) = begun else { return };
        for _ in 0..self.random.below(9) {
            for store in &refusing {
                store.refuses.store(self.random.chance(0.12), Ordering::Relaxed);
            }
            self.epoch += 1 + self.random.below(3);
            self.change(&mut together);
            let Some(kind) = together.mark(self.epoch) else { return };
            let name = ManifestName { generation, epoch: self.epoch };
            self.truth.insert(name, together.state());
            if self.random.chance(0.15) {
                return self.end(together, kind);
            }
            self.hand_over(&mut together, kind, processes);
            together.until_over();
            let status = together.leader().status();
            match status.failure {
                None => {
                    assert_eq!(status.last.unwrap().epoch, self.epoch);
                    self.last = Some(name);
                    self.seen.published += 1;
                }
                Some(_) => self.seen.failed += 1,
            }
        }
        together.stop();
    }

    fn change(&mut self, together: &mut Together) {
        for _ in 0..self.random.below(8) {
            let number = self.random.below(40);
            let bytes = vec![self.random.below(256) as u8; self.random.below(300) as usize];
            together.set(number, self.random.chance(0.7).then_some(bytes));
        }
    }

    /// So many processes hand over what they have, one after another from any of them on.
    fn hand_over(&mut self, together: &mut Together, kind: ImageKind, processes: usize) {
        let all = together.processes.len();
        let first = self.random.below(all as u64) as usize;
        (first..first + processes).for_each(|process| together.hand_over(process % all, kind));
    }

    /// A generation ends while a checkpoint is under way.
    fn end(&mut self, mut together: Together, kind: ImageKind) {
        let all = together.processes.len();
        self.seen.stopped += 1;
        match self.random.below(4) {
            // Some have not handed over anything.
            0 => {
                let some = self.random.below(all as u64) as usize;
                self.hand_over(&mut together, kind, some);
            }
            // Nothing arrives any more.
            1 => {
                together.links.cut();
                self.hand_over(&mut together, kind, all);
            }
            // They are thought dead. (One alone would not wait for anybody.)
            2 if all > 1 => {
                together.links.hold();
                self.hand_over(&mut together, kind, all);
                return self.zombies.push(together);
            }
            // The leader ends first, and what was said to it comes after.
            _ => {
                together.links.hold();
                self.hand_over(&mut together, kind, all);
                together.leader().stop();
                together.links.release();
            }
        }
        together.stop();
    }

    /// Some zombies hear what was said to them.
    fn wake(&mut self) {
        let newest = newest_generation(&*Simulated::lasting(&self.disk)).unwrap();
        let zombies = std::mem::take(&mut self.zombies);
        for zombie in zombies {
            if self.random.chance(0.5) {
                self.zombies.push(zombie);
                continue;
            }
            // What was not said when the links were held is said now, too.
            zombie.links.release();
            let leader = zombie.leader();
            within_patience("the zombie is done", || leader.status().under_way.is_none());
            let status = leader.status();
            match status.failure {
                None if leader.generation() == newest => self.seen.late += 1,
                None => panic!("generation {} published after {newest}", leader.generation()),
                Some(failure) => self.seen.fenced += u64::from(failure.contains("is fenced")),
            }
            zombie.stop();
        }
    }

    /// In the end all goes well, and nothing is left of what did not.
    fn recover(&mut self) {
        self.zombies.clear();
        let (epoch, state, broken) = self.found();
        let stores: Vec<_> = (0..3).map(|_| Simulated::lasting(&self.disk)).collect();
        let generation = newest_generation(&*stores[0]).unwrap() + 1;
        let begun = Together::begin(&stores, generation, epoch, state, &broken);
        let mut together = begun.unwrap();
        for number in 0..3 {
            self.epoch += 1;
            self.change(&mut together);
            let kind = together.take(self.epoch).unwrap();
            assert_eq!(kind == ImageKind::Whole, number == 0);
            let name = ManifestName { generation, epoch: self.epoch };
            self.truth.insert(name, together.state());
            self.last = Some(name);
            self.found();
        }
        let named: BTreeSet<String> = manifests(&*stores[0])
            .unwrap()
            .into_iter()
            .flat_map(|name| read_manifest(&*stores[0], name).unwrap().packs)
            .map(|pack| pack.name)
            .collect();
        let packs = stores[0].list("packs").unwrap().into_iter().map(|pack| pack.name);
        // A pack that no section is in any more is still needed for its index.
        let orphans: Vec<String> = packs.filter(|name| !named.contains(name)).collect();
        assert_eq!(orphans, Vec::<String>::new());
    }
}

#[test]
fn whatever_ends_a_generation_the_newest_checkpoint_is_whole() {
    let seed = repeat("whatever_ends_a_generation_the_newest_checkpoint_is_whole").1;
    let mut all = Seen::default();
    for run in 0..RUNS {
        println!("run {run}");
        let mut world = World::new(seed, run);
        for _ in 0..LIVES {
            world.live();
            world.wake();
        }
        world.recover();
        all.published += world.seen.published;
        all.failed += world.seen.failed;
        all.stopped += world.seen.stopped;
        all.fenced += world.seen.fenced;
        all.late += world.seen.late;
    }
    let Seen { published, failed, stopped, fenced, late } = all;
    assert!(published > 200 && failed > 40 && stopped > 40, "{all:?}");
    assert!(fenced > 0 && late > 0, "{all:?}");
}
