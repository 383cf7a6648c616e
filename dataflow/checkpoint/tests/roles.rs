//! A leader and its members, one thing at a time: what is published, who is told what, and what
//! happens when one of them fails, is stopped, contradicts itself or is a zombie.

use super::{
    SETTINGS, State, Taken, at, newest, of, pack,
    simulated::{Disk, Simulated},
    state,
    together::{Links, Refusing, Together, Word, cursor, row, within_patience},
};
use crate::checkpoint::{
    Checkpoints,
    keeper::{CheckpointError, Keeper, Sections, manifests, newest_generation, read_manifest},
    manifest::Manifest,
    store::Store,
    taking::{Ended, Role, SealedPart},
};
use parking_lot::Mutex;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use trueup_operators::feed::ImageKind::{Increment, Whole};

fn stores(disk: &Disk, processes: usize) -> Vec<Arc<dyn Store>> {
    (0..processes).map(|_| Simulated::lasting(disk)).collect()
}

fn found(disk: &Disk) -> Option<(u64, u64, State)> {
    let (found, broken) = newest(&*Simulated::lasting(disk));
    assert_eq!(broken, Vec::<String>::new());
    found
}

fn manifest(disk: &Disk) -> Manifest {
    let store = Simulated::lasting(disk);
    let manifest = read_manifest(&*store, manifests(&*store).unwrap()[0]).unwrap();
    Sections::open(&*store, &manifest).unwrap().check(&*store).unwrap();
    manifest
}

#[test]
fn what_all_processes_have_is_one_checkpoint() {
    for processes in [1, 2, 3] {
        let disk = Disk::default();
        let stores = stores(&disk, processes);
        let mut together = Together::begin(&stores, 1, 0, state(20, 1), &[]).unwrap();
        for epoch in 1..10 {
            together.set(epoch, Some(vec![epoch as u8; 50]));
            together.set(epoch + 10, None);
            let kind = together.take(epoch).unwrap();
            assert_eq!(kind == Whole, epoch % 4 == 1, "epoch {epoch}");
            assert_eq!(found(&disk), Some((epoch, 1, together.state())));
            let manifest = manifest(&disk);
            assert_eq!(manifest.chain, (epoch as u32 - 1) % 4);
            let writers: Vec<u32> = manifest.parts.iter().map(|part| part.writer).collect();
            assert_eq!(writers, (0..processes as u32).collect::<Vec<_>>());
            for process in &together.processes {
                let status = process.status();
                assert_eq!((status.published, status.failed, status.failure), (epoch, 0, None));
                assert_eq!(status.last.as_ref(), Some(&manifest));
            }
            let packs = stores[0].list("packs").unwrap().len();
            assert!(packs <= 8 * processes, "{packs} packs");
        }
    }
}

#[test]
fn a_member_that_cannot_write_costs_one_checkpoint_and_the_next_is_whole() {
    let disk = Disk::default();
    let refusing = Refusing::new(Simulated::lasting(&disk));
    let mut stores = stores(&disk, 3);
    stores[2] = Arc::clone(&refusing) as Arc<dyn Store>;
    let mut together = Together::begin(&stores, 1, 0, state(20, 1), &[]).unwrap();
    together.take(1).unwrap();
    together.set(3, Some(vec![3; 33]));
    assert_eq!(together.take(2), Some(Increment));
    let before = together.state();
    refusing.refuses.store(true, Ordering::Relaxed);
    together.set(4, Some(vec![4; 44]));
    assert_eq!(together.take(3), Some(Increment));
    for process in &together.processes {
        let status = process.status();
        assert_eq!((status.published, status.failed), (2, 1));
        let failure = status.failure.unwrap();
        assert!(failure.contains("process 2") && failure.contains("is full"), "{failure}");
        assert_eq!(status.last.unwrap().epoch, 2);
    }
    assert_eq!(found(&disk), Some((2, 1, before)));
    refusing.refuses.store(false, Ordering::Relaxed);
    together.set(5, Some(vec![5; 55]));
    assert_eq!(together.take(4), Some(Whole));
    assert_eq!(found(&disk), Some((4, 1, together.state())));
    assert_eq!(together.take(5), Some(Increment));
    assert_eq!(found(&disk), Some((5, 1, together.state())));
}

#[test]
fn a_leader_that_cannot_publish_makes_the_next_one_whole_everywhere() {
    let disk = Disk::default();
    let refusing = Refusing::new(Simulated::lasting(&disk));
    let mut stores = stores(&disk, 2);
    stores[0] = Arc::clone(&refusing) as Arc<dyn Store>;
    let mut together = Together::begin(&stores, 1, 0, state(20, 1), &[]).unwrap();
    together.take(1).unwrap();
    let before = together.state();
    refusing.refuses.store(true, Ordering::Relaxed);
    together.set(6, Some(vec![6; 66]));
    together.take(2).unwrap();
    assert_eq!(found(&disk), Some((1, 1, before)));
    refusing.refuses.store(false, Ordering::Relaxed);
    assert_eq!(together.take(3), Some(Whole));
    assert_eq!(found(&disk), Some((3, 1, together.state())));
}

/// A member alone, and what it says.
fn member(disk: &Disk) -> (Arc<Checkpoints>, Arc<Mutex<Vec<SealedPart>>>) {
    let keeper = Keeper::join(Simulated::lasting(disk), SETTINGS, of(), 1, 1);
    let said = Arc::new(Mutex::new(Vec::new()));
    let says = Arc::clone(&said);
    let role = Role::Member { say: Box::new(move |part| says.lock().push(part)) };
    (Checkpoints::start(keeper, Duration::ZERO, 0, role).unwrap(), said)
}

#[test]
fn a_member_without_anything_before_refuses_an_increment() {
    let disk = Disk::default();
    let (member, said) = member(&disk);
    member.marked(&cursor(1), &row(0), Increment);
    within_patience("the member answers", || said.lock().len() == 1);
    let part = said.lock()[0].clone();
    assert_eq!((part.generation, part.epoch, part.writer), (1, 1, 1));
    let reason = part.sealed.unwrap_err();
    assert!(reason.contains("nothing to lie on in process 1"), "{reason}");
    assert_eq!(disk.lock().len(), 0, "nothing was written");
    member.stop();
}

#[test]
fn a_leader_that_contradicts_itself_gets_no_parts() {
    let disk = Disk::default();
    let (member, said) = member(&disk);
    member.marked(&cursor(1), &row(0), Whole);
    within_patience("the member answers", || said.lock().len() == 1);
    member.marked(&cursor(2), &row(1), Whole);
    member.marked(&cursor(3), &row(2), Whole);
    let parts = said.lock().clone();
    assert!(parts[0].sealed.is_ok());
    for (part, epoch) in parts[1..].iter().zip([2, 3]) {
        assert_eq!(part.epoch, epoch);
        let reason = part.sealed.clone().unwrap_err();
        assert!(reason.contains("epoch 2 was marked before 1 had ended"), "{reason}");
    }
    assert_eq!(parts.len(), 3);
    member.stop();
}

/// A manifest that is not of the epoch that it is said to be of is not believed.
#[test]
fn a_leader_that_says_what_cannot_be_is_not_believed() {
    let disk = Disk::default();
    let mut together = Together::begin(&stores(&disk, 2), 1, 0, state(9, 1), &[]).unwrap();
    together.take(1).unwrap();
    let other = manifest(&disk);
    together.links.hold();
    let kind = together.mark(2).unwrap();
    together.hand_over(1, kind);
    within_patience("the member answers", || together.links.held().len() == 1);
    let member = Arc::clone(&together.processes[1]);
    let result = Ok(Box::new(other));
    member.ended(Ended { generation: 1, epoch: 2, result, fenced: false });
    let status = member.status();
    assert_eq!((status.under_way, status.published, status.failed), (None, 1, 1));
    assert!(status.failure.unwrap().contains("says of epoch 2"));
    together.hand_over(0, kind);
    together.links.release();
    together.until_over();
    // For the leader all is well; but the member has nothing that the next could lie on.
    assert_eq!(together.take(3), Some(Increment));
    let failure = together.leader().status().failure.unwrap();
    assert!(failure.contains("nothing to lie on in process 1"), "{failure}");
    assert_eq!(together.take(4), Some(Whole));
    assert_eq!(found(&disk), Some((4, 1, together.state())));
}

#[test]
fn what_is_not_due_is_dropped() {
    let disk = Disk::default();
    let mut together = Together::begin(&stores(&disk, 3), 1, 0, state(9, 1), &[]).unwrap();
    let kind = together.mark(1).unwrap();
    let failed = |generation, epoch, writer| SealedPart {
        generation,
        epoch,
        writer,
        sealed: Err("should be dropped".into()),
    };
    for part in [failed(2, 1, 1), failed(1, 2, 1), failed(1, 1, 0), failed(1, 1, 3)] {
        together.leader().sealed(part);
    }
    let ended = |epoch| Ended { generation: 1, epoch, result: Err("no".into()), fenced: true };
    // Its part is not sealed yet; and another epoch's.
    together.processes[1].ended(ended(1));
    together.processes[1].ended(ended(7));
    together.leader().ended(ended(1));
    // Everything comes three times.
    let again = |together: &Together| {
        within_patience("two words are said", || together.links.held().len() == 2);
        together.links.held().into_iter().for_each(|word| {
            together.links.deliver(word.clone());
            together.links.deliver(word);
        });
        together.links.release();
    };
    together.links.hold();
    together.hand_over(2, kind);
    together.hand_over(1, kind);
    again(&together);
    together.links.hold();
    together.hand_over(0, kind);
    again(&together);
    together.until_over();
    assert_eq!(found(&disk), Some((1, 1, together.state())));
    for process in &together.processes {
        assert_eq!((process.status().published, process.status().failed), (1, 0));
    }
}

#[test]
fn a_leader_that_is_stopped_while_members_seal_publishes_nothing() {
    let disk = Disk::default();
    let stores = stores(&disk, 3);
    let mut together = Together::begin(&stores, 1, 0, state(20, 1), &[]).unwrap();
    together.take(1).unwrap();
    let before = together.state();
    together.links.hold();
    let kind = together.mark(2).unwrap();
    (0..3).for_each(|process| together.hand_over(process, kind));
    within_patience("both members have sealed", || together.links.held().len() == 2);
    // The leader tells nobody when it has.
    let packs = || stores[0].list("packs").unwrap().len();
    within_patience("the leader has sealed", || packs() == 6);
    let waiting = Arc::clone(&together.processes[0]);
    let waits = std::thread::spawn(move || waiting.wait(2, super::together::PATIENCE, |_| None));
    together.processes[0].stop();
    together.links.release();
    assert!(waits.join().unwrap().unwrap_err().contains("was stopped"));
    // Now the members, which still wait for an answer.
    together.stop();
    assert_eq!(found(&disk), Some((1, 1, before.clone())));
    assert_eq!(packs(), 6);

    // The same processes go on in the next generation, and what was lost goes.
    let (epoch, _, state) = found(&disk).unwrap();
    assert_eq!(newest_generation(&*stores[0]).unwrap(), 1);
    let mut next = Together::begin(&stores, 2, epoch, state, &[]).unwrap();
    assert_eq!(next.take(2), Some(Whole));
    assert_eq!(found(&disk), Some((2, 2, before)));
    assert_eq!(packs(), 6);
}

#[test]
fn parts_that_never_come_hold_nobody_up_when_all_stop() {
    let disk = Disk::default();
    let mut together = Together::begin(&stores(&disk, 2), 1, 0, state(20, 1), &[]).unwrap();
    let kind = together.mark(1).unwrap();
    together.hand_over(0, kind);
    together.stop();
    assert_eq!(found(&disk), None);
}

#[test]
fn a_generation_is_claimed_once() {
    let disk = Disk::default();
    let claim = |number| Keeper::claim_as(Simulated::lasting(&disk), SETTINGS, of(), number);
    assert_eq!(claim(5).unwrap().generation(), 5);
    for number in [5, 4] {
        let error = claim(number).err().unwrap();
        assert!(matches!(error, CheckpointError::Fenced { newer: 5, .. }), "{error}");
    }
    assert_eq!(claim(9).unwrap().generation(), 9);
    let next = Keeper::claim(Simulated::lasting(&disk), SETTINGS, of()).unwrap();
    assert_eq!(next.generation(), 10);
}

#[test]
fn a_zombie_that_leads_an_older_generation_is_fenced_and_says_so() {
    let disk = Disk::default();
    let stores = stores(&disk, 2);
    let mut zombie = Together::begin(&stores, 1, 0, state(20, 1), &[]).unwrap();
    zombie.take(1).unwrap();
    zombie.links.hold();
    zombie.set(2, Some(vec![9; 9]));
    let kind = zombie.mark(9).unwrap();
    (0..2).for_each(|process| zombie.hand_over(process, kind));
    within_patience("the member has sealed", || zombie.links.held().len() == 1);
    let (epoch, _, state) = found(&disk).unwrap();
    let mut young = Together::begin(&stores, 2, epoch, state, &[]).unwrap();
    young.take(2).unwrap();
    zombie.links.release();
    zombie.until_over();
    assert_eq!(found(&disk), Some((2, 2, young.state())));
    for process in &zombie.processes {
        let failure = process.status().failure.unwrap();
        assert!(failure.contains("generation 1 is fenced"), "{failure}");
        assert!(process.wait(99, Duration::ZERO, |_| None).is_err());
    }
    assert_eq!(zombie.mark(10), None);
    young.take(3).unwrap();
    assert_eq!(found(&disk), Some((3, 2, young.state())));
}

/// The zombie looked at the fence before the younger generation claimed.
#[test]
fn what_members_have_under_way_is_no_garbage_of_a_zombie() {
    let disk = Disk::default();
    let store = || Simulated::lasting(&disk);
    let mut zombie = Keeper::claim_as(store(), SETTINGS, of(), 1).unwrap();
    super::take(&mut zombie, 1, &state(3, 1), None).unwrap();
    let mut leader = Keeper::claim_as(store(), SETTINGS, of(), 2).unwrap();
    let member = Keeper::join(store(), SETTINGS, of(), 2, 1);
    let (all, own) = (state(6, 2), state(3, 2));
    let others: State = all.clone().into_iter().skip(3).collect();
    let sealed = pack(&member, 2, &others, None).unwrap();
    let name = "generations/00000000000000000002".to_owned();
    let bytes = disk.lock().remove(&name).unwrap();
    super::take(&mut zombie, 2, &state(3, 3), None).unwrap();
    disk.lock().insert(name, bytes);
    let packed = pack(&leader, 2, &own, None).unwrap();
    leader.publish_all(packed, &[sealed.part(1)], &at(2), Taken::default()).unwrap();
    assert_eq!(found(&disk), Some((2, 2, all)));
}

#[test]
fn a_part_that_could_not_be_loaded_is_not_named() {
    let disk = Disk::default();
    let store = || Simulated::lasting(&disk);
    let mut leader = Keeper::claim_as(store(), SETTINGS, of(), 1).unwrap();
    let join = |writer| Keeper::join(store(), SETTINGS, of(), 1, writer);
    let (mut member, other) = (join(1), join(2));
    let publish = |leader: &mut Keeper, epoch, parts: &[_]| {
        let whole = leader.wants_whole();
        let own = state(3, 1);
        let packed = pack(leader, epoch, &own, (!whole).then_some(&[])).unwrap();
        leader.publish_all(packed, parts, &at(epoch), Taken::default())
    };
    let refused = |leader: &mut Keeper, epoch, parts: &[_], why: &str| {
        let error = publish(leader, epoch, parts).unwrap_err();
        assert!(matches!(error, CheckpointError::Part { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
        assert!(leader.wants_whole());
    };
    let others: State = state(6, 2).into_iter().skip(3).collect();

    // The leader has sections 0 to 2 too.
    let same = pack(&member, 1, &state(3, 2), None).unwrap();
    refused(&mut leader, 1, &[same.part(1)], "which process 0 has too");
    // Of another epoch, of another process, and gone.
    let sealed = pack(&member, 2, &others, None).unwrap();
    refused(&mut leader, 3, &[sealed.part(1)], "due is packs/00000000000000000003-1-1.pack");
    let sealed = pack(&other, 4, &others, None).unwrap();
    refused(&mut leader, 4, &[sealed.part(1)], "due is packs/00000000000000000004-1-1.pack");
    let sealed = pack(&member, 5, &others, None).unwrap();
    disk.lock().retain(|name, _| !name.ends_with("5-1-1.pack"));
    refused(&mut leader, 5, &[sealed.part(1)], "is missing");
    assert_eq!(found(&disk), None);
    // Its index is not what was sealed.
    let sealed = pack(&member, 6, &others, None).unwrap();
    *disk.lock().values_mut().next_back().unwrap().last_mut().unwrap() ^= 1;
    refused(&mut leader, 6, &[sealed.part(1)], "checksum of its index");

    let sealed = pack(&member, 7, &others, None).unwrap();
    let published = publish(&mut leader, 7, &[sealed.part(1)]).unwrap();
    member.published(sealed, &published.manifest).unwrap();
    // An increment on what nobody keeps: the member has published something else meanwhile.
    let stray = pack(&member, 8, &others, Some(&[])).unwrap();
    let mut elsewhere = published.manifest.clone();
    elsewhere.parts.push(stray.part(1));
    let changed: Vec<_> = others.keys().take(1).cloned().collect();
    let stray = pack(&member, 9, &others, Some(&changed)).unwrap();
    elsewhere.parts.push(stray.part(1));
    member.published(stray, &elsewhere).unwrap();
    let sealed = pack(&member, 10, &others, Some(&[])).unwrap();
    refused(&mut leader, 10, &[sealed.part(1)], "which the checkpoint before does not name");
    // And a member is told of a manifest that does not name its part.
    let sealed = pack(&member, 11, &others, None).unwrap();
    assert!(member.published(sealed, &published.manifest).is_err());
    assert!(matches!(
        member.begin(12, false).err(),
        Some(CheckpointError::NothingBefore { writer: 1 })
    ));
    let sealed = pack(&member, 13, &others, None).unwrap();
    let error = member.publish(sealed, &at(13), Taken::default()).unwrap_err();
    assert!(matches!(error, CheckpointError::NotLeader { writer: 1 }), "{error}");
    assert_eq!(found(&disk).map(|(epoch, ..)| epoch), Some(7));
}

#[test]
fn words_of_links_that_are_cut_do_not_arrive() {
    let disk = Disk::default();
    let mut together = Together::begin(&stores(&disk, 2), 1, 0, state(9, 1), &[]).unwrap();
    let links: Arc<Links> = Arc::clone(&together.links);
    links.hold();
    let kind = together.mark(1).unwrap();
    (0..2).for_each(|process| together.hand_over(process, kind));
    within_patience("the member has sealed", || links.held().len() == 1);
    assert!(matches!(&links.held()[0], Word::Sealed(part) if part.sealed.is_ok()));
    links.cut();
    links.release();
    assert_eq!(together.leader().status().under_way, Some(1));
    together.stop();
    assert_eq!(found(&disk), None);
}
