//! A run that is thrown away and gone on with: at random epochs images are taken, whole ones and
//! chains of increments, some of which are lost; some epochs later all workers are gone, and
//! another number of them goes on behind the last image that was stored. What they say, and what
//! they know in the end, is what a run without all that says and knows.

use crate::{
    Said, environment, expected, run,
    schedule::{Dice, EpochInput, PARTITIONS, Schedule},
    seeds,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use trueup_operators::{
    feed::ImageKind,
    hash::{VNODES, partition_of_vnode},
    ledger::{Ledger, LedgerImage},
};

/// What a checkpoint consists of: for each vnode a whole section and those of increments.
#[derive(Clone, Debug, Default)]
struct Stored {
    vnodes: BTreeMap<usize, Vec<Vec<u8>>>,
    impressions: Vec<u8>,
    increments: usize,
}

/// An image that is to be taken.
#[derive(Clone, Copy, Debug)]
struct Mark {
    kind: ImageKind,
    lost: bool,
}

/// From one start of the workers to the next. The default is a whole run without images.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leg {
    /// Epochs up to this are in what is loaded.
    after: u64,
    /// The last epoch before the workers are gone; `None`: they are not.
    until: Option<u64>,
    marks: BTreeMap<u64, Mark>,
    loaded: Option<Arc<Stored>>,
    stored: Arc<Mutex<Stored>>,
}

/// The worker that owns a vnode.
fn owner(vnode: usize, peers: usize) -> usize {
    usize::from(partition_of_vnode(vnode, PARTITIONS)) % peers
}

impl Leg {
    pub(crate) fn epochs<'s>(
        &self,
        schedule: &'s Schedule,
    ) -> impl Iterator<Item = &'s EpochInput> {
        let (after, until) = (self.after, self.until.unwrap_or(u64::MAX));
        let within = move |e: &&EpochInput| after < e.times.epoch && e.times.epoch <= until;
        schedule.epochs.iter().filter(within)
    }

    pub(crate) fn mark(&self, epoch: u64) -> Option<ImageKind> {
        self.marks.get(&epoch).map(|mark| mark.kind)
    }

    /// Loads what the leg begins with.
    pub(crate) fn load(&self, me: usize, peers: usize, ledger: &mut Ledger) {
        let Some(stored) = &self.loaded else { return };
        for (&vnode, parts) in stored.vnodes.iter().filter(|(v, _)| owner(**v, peers) == me) {
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            ledger.load_vnode(vnode, &parts).unwrap();
        }
        ledger.load_impressions(&stored.impressions).unwrap();
        ledger.finish_load();
    }

    /// Writes the images that were taken on a worker.
    pub(crate) fn store(&self, me: usize, peers: usize, images: &[(u64, LedgerImage)]) {
        let taken: Vec<u64> = images.iter().map(|(epoch, _)| *epoch).collect();
        assert!(taken.iter().eq(self.marks.keys()), "{taken:?} were taken of {:?}", self.marks);
        let mut stored = self.stored.lock().unwrap();
        let kept = images.iter().filter(|(epoch, _)| !self.marks[epoch].lost);
        for (_, image) in kept {
            for vnode in (0..VNODES).filter(|&vnode| owner(vnode, peers) == me) {
                let mut section = Vec::new();
                image.write_vnode(vnode, &mut section);
                let chain = stored.vnodes.entry(vnode).or_default();
                if image.kind() == ImageKind::Whole {
                    chain.clear();
                }
                chain.push(section);
            }
            stored.increments += usize::from(image.kind() == ImageKind::Increment);
            if me == 0 {
                stored.impressions.clear();
                image.write_impressions(&mut stored.impressions);
            }
        }
    }

    /// The leg after some epoch, of which the workers that are loaded were the last.
    fn random(dice: &mut Dice, before: Option<(u64, Stored)>, last: u64) -> Leg {
        let (after, loaded) = before.unzip();
        let after = after.unwrap_or(0);
        let stored = Arc::new(Mutex::new(loaded.clone().unwrap_or_default()));
        let loaded = loaded.map(Arc::new);
        let until = after + 1 + dice.below(25);
        let mut leg = Leg { after, until: Some(until), marks: BTreeMap::new(), loaded, stored };
        if until >= last {
            leg.until = None;
        }
        let mut follows = leg.loaded.is_some();
        for epoch in after + 1..=until.min(last) {
            // The first is never lost, so that each leg gets somewhere.
            if leg.marks.is_empty() || dice.percent(25) {
                let increment = follows && dice.percent(75);
                let kind = if increment { ImageKind::Increment } else { ImageKind::Whole };
                let lost = !leg.marks.is_empty() && dice.percent(20);
                leg.marks.insert(epoch, Mark { kind, lost });
                follows = !lost;
            }
        }
        leg
    }

    /// The last epoch of which an image was stored, and what is stored.
    fn end(&self) -> Option<(u64, Stored)> {
        let epoch = self.marks.iter().rfind(|(_, mark)| !mark.lost).map(|(&epoch, _)| epoch)?;
        Some((epoch, self.stored.lock().unwrap().clone()))
    }
}

#[test]
fn the_ledger_goes_on_from_its_images_as_if_it_had_never_stopped() {
    let (mut legs, mut increments) = (0, 0);
    let seeds = seeds(environment("TRUEUP_CASES").unwrap_or(100));
    for &seed in &seeds {
        println!("TRUEUP_SEED={seed}");
        let schedule = Arc::new(Schedule::random(seed));
        let expected = expected(&schedule);
        let undisturbed = run(&schedule, 1, seed, &Leg::default());
        let last = schedule.epochs.len() as u64;
        let mut dice = Dice(seed ^ 0x1EDE);
        let mut before = None;
        loop {
            let leg = Leg::random(&mut dice, before, last);
            let workers = [1, 2, 4][dice.below(3) as usize];
            let ran = run(&schedule, workers, seed, &leg);
            legs += 1;
            for input in leg.epochs(&schedule) {
                let (epoch, nothing) = (input.times.epoch, Said::default());
                let said = [&ran.said, &expected].map(|s| s.get(&epoch).unwrap_or(&nothing));
                let after = leg.after;
                assert_eq!(said[0], said[1], "seed {seed}, {workers} after {after}, {epoch}");
            }
            before = leg.end();
            increments += before.as_ref().map_or(0, |(_, stored)| stored.increments);
            if leg.until.is_none() {
                assert_eq!(ran.entries, undisturbed.entries, "seed {seed}: what is known");
                assert_eq!(ran.rows, undisturbed.rows, "seed {seed}: how much is known");
                break;
            }
        }
    }
    println!("{legs} legs, {increments} increments");
    assert!(seeds.len() < 10 || (legs > 2 * seeds.len() && increments > legs), "too few");
}
