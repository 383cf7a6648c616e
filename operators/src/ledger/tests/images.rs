//! Images: what is in one stays as it was, a chain of increments says what a whole one says, and
//! no bytes do more than be refused. That a ledger goes on from one as if it had never stopped is
//! for `operators/tests/ledger_reference`.

use super::{
    Dice, judge,
    rules::{Events, LATENESS, Log, NOON},
};
use crate::{
    event::Target,
    feed::{EpochTimes, ImageKind, Judgement, Located},
    hash::{IdHash, VNODES},
    ledger::{Ledger, LedgerImage, LedgerSettings, Ledgered},
    time::{LogTime, MINUTE_US},
};
use std::sync::Arc;

/// Few vnodes, so that each has many chunks.
const VNODES_USED: u64 = 3;
const GROUPS: u64 = 40;

fn id(n: u64) -> IdHash {
    let mut id = (u128::from(crate::hash::mix(n, 1)) << 64 | u128::from(n)).to_le_bytes();
    id[15] = (n % VNODES_USED) as u8 * 100;
    id
}

fn group(n: u64) -> IdHash {
    (u128::from(crate::hash::mix(n, 2)) << 64 | u128::from(crate::hash::mix(n, 3))).to_le_bytes()
}

/// A ledger that is given random events and verdicts.
struct Life {
    dice: Dice,
    ledger: Ledger,
    log: Log,
    epoch: u64,
    now_us: i64,
    /// Ids come from what is below this, mostly new ones.
    ids: u64,
    flipped: usize,
}

fn empty() -> Ledger {
    Ledger::new(LedgerSettings::new(LATENESS, 0, 1))
}

impl Life {
    fn new(test: &str) -> Life {
        let (dice, ledger, log) = (Dice::new(test), empty(), Log::default());
        Life { dice, ledger, log, epoch: 0, now_us: NOON, ids: 0, flipped: 0 }
    }

    /// An epoch some time after the last one.
    fn epoch(&mut self, after_us: i64, events: u64, verdicts: u64) {
        self.epoch += 1;
        let frontier_before = LogTime(self.now_us);
        self.now_us += after_us;
        let (frontier, latest) = (LogTime(self.now_us), LogTime(self.now_us));
        let times = EpochTimes { epoch: self.epoch, frontier_before, frontier, latest };
        self.ledger.open(times).unwrap();
        let mut batch = Events::default();
        for _ in 0..events {
            let copy = self.dice.below(20) == 0 && self.ids > 0;
            let n = if copy { self.dice.below(self.ids) } else { self.ids };
            self.ids = self.ids.max(n + 1);
            batch.ids.push(id(n));
            batch.payloads.push(n);
            batch.times_us.push(self.now_us);
            batch.groups.push((n % 4 != 0).then(|| group(n % GROUPS)));
            batch.born_invalid.push(n % 50 == 0);
        }
        let (partition, offset, log_time) = (0, self.epoch, LogTime(self.now_us));
        let located = Arc::new(Located { partition, offset, log_time, batch });
        self.log.0.insert(offset, Arc::clone(&located));
        self.ledger.enter(&located).unwrap();
        let said = (0..verdicts).map(|place| self.verdict(place as u32)).collect();
        let flipped = &mut self.flipped;
        let emit = &mut |out: Ledgered<_>| *flipped += out.rows.len();
        judge(&mut self.ledger, said, &mut self.log, emit).unwrap();
    }

    fn verdict(&mut self, place: u32) -> Judgement {
        let on_group = self.dice.below(30) == 0;
        let (target, hash) = match on_group {
            true => (Target::Impression, group(self.dice.below(GROUPS))),
            false => (Target::Event, id(self.dice.below(self.ids + 1_000))),
        };
        let invalid = self.dice.below(2) == 0;
        let (decided_at_us, log_time) = (self.now_us, LogTime(self.now_us));
        let arrival = (self.epoch, place);
        Judgement { worker: 0, target, hash, invalid, decided_at_us, log_time, arrival }
    }

    fn some_epochs(&mut self, epochs: u64) {
        for _ in 0..epochs {
            let (after_us, events) = (self.dice.below(120) as i64 * 1_000_000, 500);
            self.epoch(after_us, events, 30);
        }
    }
}

/// All sections of an image: of each vnode, then of what all share.
pub(super) fn sections(image: &LedgerImage) -> Vec<Vec<u8>> {
    let mut sections = vec![Vec::new(); VNODES + 1];
    // Not in their order.
    for vnode in (0..VNODES).rev() {
        image.write_vnode(vnode, &mut sections[vnode]);
    }
    image.write_impressions(&mut sections[VNODES]);
    sections
}

/// A ledger of a whole image and the increments after it.
pub(super) fn load(chain: &[Vec<Vec<u8>>]) -> Ledger {
    let mut ledger = empty();
    for vnode in 0..VNODES {
        let parts: Vec<&[u8]> = chain.iter().map(|of| of[vnode].as_slice()).collect();
        ledger.load_vnode(vnode, &parts).unwrap();
    }
    ledger.load_impressions(&chain.last().unwrap()[VNODES]).unwrap();
    ledger.finish_load();
    ledger.vnodes.iter().for_each(|vnode| vnode.check());
    ledger
}

#[test]
fn what_is_in_an_image_stays_as_it_was() {
    let mut life = Life::new("what_is_in_an_image_stays_as_it_was");
    life.some_epochs(30);
    for kind in [ImageKind::Whole, ImageKind::Increment] {
        let image = life.ledger.image(kind);
        assert_eq!(image.kind(), kind);
        let before = sections(&image);
        let rows: usize = before.iter().map(Vec::len).sum();
        let held = image.bytes();
        assert!(held < rows / 2 + (1 << 20), "{held} bytes are copied of {rows}");
        // Appended to, changed, and at last forgotten and swept.
        life.flipped = 0;
        life.some_epochs(20);
        assert!(life.flipped > 200, "{}", life.flipped);
        assert!(image.bytes() > held, "chunks that changed are the image's alone");
        assert_eq!(sections(&image), before, "{kind:?}: appended to and changed");
        life.epoch(200 * MINUTE_US, 3_000, 0);
        life.some_epochs(10);
        assert!(life.ledger.len() < 10_000);
        assert_eq!(sections(&image), before, "{kind:?}: forgotten");
    }
}

#[test]
fn a_chain_of_increments_is_what_a_whole_image_is() {
    let mut life = Life::new("a_chain_of_increments_is_what_a_whole_image_is");
    let (mut chain, mut forgot) = (Vec::new(), false);
    for link in 0..14 {
        // Sometimes all that was imaged is forgotten, and the increment has all there is.
        let leap_us = if life.dice.below(4) == 0 { 80 * MINUTE_US } else { 1 };
        life.epoch(leap_us, 100, 0);
        let (epochs, rows) = (life.dice.below(12), life.ledger.len());
        life.some_epochs(epochs);
        forgot |= life.ledger.len() < rows;
        let image = life.ledger.image(ImageKind::Increment);
        let kind = if link == 0 { ImageKind::Whole } else { ImageKind::Increment };
        assert_eq!(image.kind(), kind, "there is nothing to continue at first");
        chain.push(sections(&image));
        let whole = sections(&life.ledger.image(ImageKind::Whole));
        let mut loaded = load(&chain);
        assert_eq!(sections(&loaded.image(ImageKind::Whole)), whole, "link {link}");
        assert_eq!(loaded.len(), life.ledger.len());
        if life.dice.below(3) == 0 {
            // The chain goes on from a ledger that was itself loaded.
            life.ledger = loaded;
        }
    }
    assert!(forgot && life.flipped > 100);
}

#[test]
fn after_too_many_changes_the_next_image_is_whole() {
    let mut life = Life::new("after_too_many_changes_the_next_image_is_whole");
    life.some_epochs(5);
    life.ledger.flips_max = 100;
    let kinds = |life: &mut Life| life.ledger.image(ImageKind::Increment).kind();
    assert_eq!(kinds(&mut life), ImageKind::Whole);
    life.epoch(0, 10, 5);
    assert_eq!(kinds(&mut life), ImageKind::Increment);
    life.epoch(0, 0, 2_000);
    assert!(life.ledger.flips <= 100, "no more are noted");
    let image = life.ledger.image(ImageKind::Increment);
    assert_eq!(image.kind(), ImageKind::Whole);
    assert_eq!(load(&[sections(&image)]).len(), life.ledger.len());
    assert_eq!(kinds(&mut life), ImageKind::Increment);
}

#[test]
fn sharing_is_counted_once() {
    let mut life = Life::new("sharing_is_counted_once");
    life.some_epochs(60);
    let bytes = life.ledger.bytes();
    let image = life.ledger.image(ImageKind::Whole);
    let (now, alone) = (life.ledger.bytes(), image.bytes());
    assert!(now.abs_diff(bytes) < bytes / 50, "{bytes} bytes before an image, {now} after it");
    life.epoch(0, 0, 3_000);
    let more = image.bytes() - alone;
    assert!(more > 100 * size_of::<super::super::Row>() * 256, "{more} bytes were copied");
}

/// A small chain with everything in it.
fn small_chain() -> Vec<Vec<Vec<u8>>> {
    let mut life = Life::new("sections");
    let mut chain = Vec::new();
    for _ in 0..2 {
        for _ in 0..4 {
            life.epoch(2 * MINUTE_US, 12, 6);
        }
        chain.push(sections(&life.ledger.image(ImageKind::Increment)));
    }
    chain
}

#[test]
fn a_section_that_is_cut_short_is_refused() {
    let chain = small_chain();
    let [whole, increment] = [0, 1].map(|link: usize| chain[link][0].as_slice());
    assert!(empty().load_vnode(0, &[whole, increment]).is_ok());
    for cut in 0..whole.len() {
        assert!(empty().load_vnode(0, &[&whole[..cut], increment]).is_err(), "cut at {cut}");
        // The same if its length was cut as well.
        let mut short = whole[..cut].to_vec();
        if cut >= 12 {
            short[4..12].copy_from_slice(&(cut as u64).to_le_bytes());
        }
        assert!(empty().load_vnode(0, &[&short]).is_err(), "cut at {cut}");
    }
    for cut in 0..increment.len() {
        assert!(empty().load_vnode(0, &[whole, &increment[..cut]]).is_err(), "cut at {cut}");
    }
    let shared = &chain[1][VNODES];
    for cut in 0..shared.len() {
        assert!(empty().load_impressions(&shared[..cut]).is_err(), "cut at {cut}");
    }
    let error = empty().load_vnode(0, &[&whole[..50]]).unwrap_err().to_string();
    let wanted = format!("ledger, vnode 0, part 0: has 50 bytes and says {}", whole.len());
    assert_eq!(error, wanted);
}

#[test]
fn whatever_bytes_say_nothing_panics() {
    let mut dice = Dice::new("whatever_bytes_say_nothing_panics");
    let (chain, mut refused) = (small_chain(), 0);
    for _ in 0..4_000 {
        let mut parts = [0, 1].map(|link: usize| chain[link][0].clone());
        let mut shared = chain[1][VNODES].clone();
        for _ in 0..=dice.below(3) {
            let [whole, increment] = &mut parts;
            let of = [whole, increment, &mut shared];
            let section = &mut of.into_iter().nth(dice.below(3) as usize).unwrap();
            let at = dice.below(section.len() as u64) as usize;
            section[at] = if dice.below(2) == 0 { dice.next() as u8 } else { 255 };
        }
        let mut ledger = empty();
        let loaded = ledger.load_vnode(0, &[&parts[0], &parts[1]]);
        if loaded.and_then(|()| ledger.load_impressions(&shared)).is_err() {
            refused += 1;
            continue;
        }
        ledger.finish_load();
        // What is loaded may be nonsense, and the ledger may say so; it goes on.
        let mut life = Life { ledger, now_us: NOON + 16 * MINUTE_US, ..Life::new("") };
        life.epoch = life.ledger.times.map_or(1, |t| t.epoch % (1 << 40));
        life.ids = 100;
        let (now, epoch) = (LogTime(life.now_us), life.epoch + 1);
        let times = EpochTimes { epoch, frontier_before: now, frontier: now, latest: now };
        if life.ledger.open(times).is_ok() {
            let said = (0..40).map(|place| life.verdict(place)).collect();
            let judged = judge(&mut life.ledger, said, &mut life.log, &mut |_| ());
            assert!(judged.is_err() || life.ledger.len() < 200);
            sections(&life.ledger.image(ImageKind::Whole));
        }
    }
    assert!((500..4_000).contains(&refused), "{refused} of 4,000 were refused");
}

#[test]
fn what_does_not_belong_together_is_refused_by_name() {
    let chain = small_chain();
    let [whole, increment] = [0, 1].map(|link: usize| chain[link][0].as_slice());
    let refused = |vnode, parts: &[&[u8]]| {
        empty().load_vnode(vnode, parts).expect_err("it does not belong together").to_string()
    };
    assert!(refused(0, &[increment]).contains("the first part is whole"));
    assert!(refused(0, &[whole, whole]).contains("all others increments"));
    assert!(refused(100, &[whole]).contains("is of vnode 0"));
    assert!(refused(0, &[whole, increment, increment]).contains("part 2: continues at row"));
    assert!(refused(0, &[]).contains("no section"));
    assert!(refused(VNODES, &[whole]).contains("no such vnode"));
    assert!(refused(0, &[&chain[1][VNODES]]).contains("kind 6; known is version 1, kind 5"));
    let mut ledger = empty();
    ledger.load_vnode(0, &[whole]).unwrap();
    let error = ledger.load_vnode(0, &[whole]).unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
    let error = ledger.open(EpochTimes::default()).unwrap_err().to_string();
    assert!(error.contains("in the middle of loading"), "{error}");
    ledger.finish_load();
    ledger.open(EpochTimes::default()).unwrap();
}
