//! A disk that fails while the process lives on.

use super::{simulated::*, *};

fn open(disk: &SimulatedDisk) -> Stepped {
    Stepped::open(disk, small(), TestClock::at(1).clock()).unwrap()
}

fn reason(result: Result<Vec<Appended>, LogError>) -> String {
    match result {
        Err(LogError::Unavailable { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

fn payloads(log: &Stepped, partition: u16) -> Vec<Vec<u8>> {
    let frames = all(&log.journal, Topic::Events, partition);
    frames.into_iter().map(|frame| frame.payload.to_vec()).collect()
}

#[test]
fn a_full_disk_fails_the_group_and_space_brings_the_log_back() {
    let disk = SimulatedDisk::new(1);
    let mut log = open(&disk);
    log.write(vec![event(0, b"before")]).unwrap();
    let bytes = disk.bytes_of(&segment_path(0)).len();
    disk.set_faults(Faults { bytes_max: Some(bytes as u64 + 1_000), ..Faults::default() });
    for _ in 0..3 {
        let refused = reason(log.write(vec![event(0, &[1; 2_000]), event(1, b"with it")]));
        assert!(refused.contains("00000000000000000000.seg"), "{refused}");
        assert_eq!(disk.bytes_of(&segment_path(0)).len(), bytes, "cut back");
    }
    log.write(vec![event(0, b"fits")]).unwrap();
    disk.set_faults(Faults::default());
    let at = log.write(vec![event(0, &[1; 2_000]), event(1, b"again")]).unwrap();
    assert_eq!((at[0].offset, at[1].offset), (2, 0));
    assert_eq!(log.journal.counts().groups_failed, 3);
    assert_eq!(log.journal.waiting_bytes(), 0);
    drop(log);
    let log = open(&disk.after_crash());
    let expected = [b"before".to_vec(), b"fits".to_vec(), vec![1; 2_000]];
    assert_eq!(payloads(&log, 0), expected);
    assert_eq!(payloads(&log, 1), [b"again".to_vec()]);
}

#[test]
fn every_directory_that_may_be_new_is_synced() {
    let open = |disk: &SimulatedDisk, dir: &str| {
        let clock = TestClock::at(1).clock();
        let guard = crate::clock::Guard::believing(clock);
        Journal::open_on(disk.shared(), Path::new(dir), small(), guard).map(drop)
    };
    let disk = SimulatedDisk::new(10);
    open(&disk, "a/b/c").unwrap();
    assert_eq!(disk.synced(), ["", "a", "a/b", "a/b/c", "a/b/c/journal"]);
    // What is not ours and not for us is left alone, unless the data directory stands in it.
    let root_denied = Faults { root_denied: true, ..Faults::default() };
    let disk = SimulatedDisk::new(11);
    disk.set_faults(root_denied);
    open(&disk, "/srv/trueup").unwrap();
    assert_eq!(disk.synced(), ["/srv", "/srv/trueup", "/srv/trueup/journal"]);
    let disk = SimulatedDisk::new(12);
    disk.set_faults(root_denied);
    assert!(matches!(open(&disk, "/trueup"), Err(LogError::Unavailable { .. })));
}

#[test]
fn a_system_that_gives_no_bytes_now_is_no_damage() {
    let disk = SimulatedDisk::new(9);
    let mut log = open(&disk);
    log.write(vec![event(0, b"frame")]).unwrap();
    drop(log);
    let opens = Faults { opens_failing: true, ..Faults::default() };
    let reads = Faults { reads_failing: true, ..Faults::default() };
    for (faults, why) in [(opens, "Too many open files"), (reads, "Input/output error")] {
        // What was appended before it was opened is not in memory.
        let log = open(&disk);
        disk.set_faults(faults);
        match log.journal.read(Topic::Events, 0, 0, 1, 1 << 20) {
            Err(LogError::Unavailable { reason }) => assert!(reason.contains(why), "{reason}"),
            other => panic!("{other:?}"),
        }
        drop(log);
        let opened = Stepped::open(&disk, small(), TestClock::at(1).clock());
        assert!(matches!(opened, Err(LogError::Unavailable { .. })), "{why}");
        disk.set_faults(Faults::default());
        assert_eq!(payloads(&open(&disk), 0), [b"frame".to_vec()], "it is there again");
    }
    disk.remove(&segment_path(0)).unwrap();
    let opened = Stepped::open(&disk, small(), TestClock::at(1).clock());
    assert!(matches!(opened, Err(LogError::Corrupt { .. })), "a segment that is gone is damage");
}

#[test]
fn short_writes_are_carried_on() {
    let disk = SimulatedDisk::new(2);
    let mut log = open(&disk);
    disk.set_faults(Faults { short_writes: true, ..Faults::default() });
    let expected: Vec<Vec<u8>> = (0..30).map(|nth| payload(nth, nth as usize * 40)).collect();
    for payload in &expected {
        log.write(vec![event(2, payload)]).unwrap();
    }
    drop(log);
    assert_eq!(payloads(&open(&disk.after_crash()), 2), expected);
}

#[test]
fn after_a_failed_sync_the_segment_is_cut_and_never_used_again() {
    let disk = SimulatedDisk::new(3);
    let mut log = open(&disk);
    log.write(vec![event(0, b"before")]).unwrap();
    // A mark stands behind it, not synced, and goes with what follows it.
    assert_eq!(log.turn(), Turn::Idled);
    disk.set_faults(Faults { syncs_failing: 1, ..Faults::default() });
    let failed = reason(log.write(vec![event(0, b"lost"), event(1, b"lost")]));
    assert!(failed.contains("sync"), "{failed}");
    assert_eq!(log.journal.broken(), None, "it goes on");
    assert_eq!(log.journal.ends(Topic::Events)[0].offset, 1);
    let cut = disk.bytes_of(&segment_path(0)).len();
    log.write(vec![event(0, b"after")]).unwrap();
    assert_eq!(disk.files(".seg").len(), 2, "a new segment");
    assert_eq!(disk.bytes_of(&segment_path(0)).len(), cut);
    drop(log);
    let log = open(&disk.after_crash());
    assert_eq!(payloads(&log, 0), [b"before".to_vec(), b"after".to_vec()]);
    assert!(payloads(&log, 1).is_empty());
}

#[test]
fn when_cutting_back_fails_too_nothing_is_taken_until_reopened() {
    let disk = SimulatedDisk::new(4);
    let mut log = open(&disk);
    log.write(vec![event(0, b"before")]).unwrap();
    let waiting = log.put(vec![event(0, b"first")]);
    disk.set_faults(Faults { syncs_failing: 9, cuts_failing: true, ..Faults::default() });
    assert_eq!(log.turn(), Turn::Ended);
    reason(waiting.lock().take().unwrap());
    disk.set_faults(Faults::default());
    let refused = reason(log.write(vec![event(0, b"second")]));
    assert!(refused.contains("restart"), "{refused}");
    let broken = log.journal.broken().unwrap();
    assert!(refused.contains(&broken), "{refused}: {broken}");
    assert_eq!(payloads(&log, 0), [b"before".to_vec()], "reading goes on");
    drop(log);
    let mut log = open(&disk.after_kill());
    assert_eq!(log.journal.broken(), None);
    log.write(vec![event(0, b"third")]).unwrap();
    assert_eq!(payloads(&log, 0).first(), Some(&b"before".to_vec()));
    assert_eq!(payloads(&log, 0).last(), Some(&b"third".to_vec()));
}

#[test]
fn a_segment_that_cannot_be_created_fails_the_group_and_is_tried_again() {
    let disk = SimulatedDisk::new(5);
    let mut log = open(&disk);
    let payload = payload(0, 7_000);
    log.write(vec![event(0, &payload)]).unwrap();
    log.write(vec![event(0, &payload)]).unwrap();
    disk.set_faults(Faults { renames_failing: true, ..Faults::default() });
    let refused = reason(log.write(vec![event(0, &payload)]));
    assert!(refused.contains("cannot be created"), "{refused}");
    assert_eq!(disk.files(".seg").len(), 1);
    // Something small still fits in the old one, and moves the place where the next begins.
    log.write(vec![event(0, b"small")]).unwrap();
    disk.set_faults(Faults::default());
    log.write(vec![event(0, &payload)]).unwrap();
    assert_eq!(disk.files(".seg"), [segment_path(0), segment_path(3)]);
    drop(log);
    let log = open(&disk.after_crash());
    assert_eq!(payloads(&log, 0), [payload.clone(), payload.clone(), b"small".to_vec(), payload]);
}

#[test]
fn an_index_that_cannot_be_written_costs_a_scan_and_no_frame() {
    let disk = SimulatedDisk::new(6);
    let mut log = open(&disk);
    for nth in 0..12 {
        log.write(vec![event(0, &payload(nth, 4_000))]).unwrap();
    }
    log.close();
    let indexes = disk.files(".idx");
    assert!(indexes.len() >= 3);
    disk.tamper(&indexes[0], |bytes| bytes.truncate(70));
    disk.tamper(&indexes[1], |bytes| bytes[80] ^= 4);
    let log = open(&disk);
    assert_eq!(log.opened.indexes_rebuilt, 2);
    let expected: Vec<Vec<u8>> = (0..12).map(|nth| payload(nth, 4_000)).collect();
    assert_eq!(payloads(&log, 0), expected);
    drop(log);
    let log = open(&disk);
    assert_eq!(log.opened.indexes_rebuilt, 0, "they were written anew");
    assert_eq!(payloads(&log, 0), expected);
}

#[test]
fn a_request_larger_than_a_segment_gets_one_of_its_own() {
    let disk = SimulatedDisk::new(7);
    let mut log = open(&disk);
    let large = payload(9, 40_000);
    log.write(vec![event(0, b"a")]).unwrap();
    log.write(vec![event(0, &large), event(1, &large)]).unwrap();
    log.write(vec![event(0, b"b")]).unwrap();
    assert_eq!(disk.files(".seg").len(), 3);
    drop(log);
    let log = open(&disk.after_crash());
    assert_eq!(payloads(&log, 0), [b"a".to_vec(), large.clone(), b"b".to_vec()]);
}

#[test]
fn a_sync_that_fails_in_an_empty_segment_replaces_it() {
    for renames_failing in [false, true] {
        let disk = SimulatedDisk::new(8);
        let mut log = open(&disk);
        disk.set_faults(Faults { syncs_failing: 1, ..Faults::default() });
        reason(log.write(vec![event(0, b"lost")]));
        disk.set_faults(Faults { renames_failing, ..Faults::default() });
        let next = log.write(vec![event(0, b"next")]);
        assert_eq!(next.is_err(), renames_failing);
        disk.set_faults(Faults::default());
        let last = log.write(vec![event(0, b"last")]);
        assert_eq!(disk.files(".seg"), [segment_path(0)]);
        assert_eq!(log.journal.shared.held.read().segments.len(), 1);
        let acknowledged = [(next, b"next"), (last, b"last")];
        let expected = acknowledged.iter().filter(|(result, _)| result.is_ok());
        let expected: Vec<Vec<u8>> = expected.map(|(_, payload)| payload.to_vec()).collect();
        assert!(!expected.is_empty());
        drop(log);
        assert_eq!(payloads(&open(&disk.after_crash()), 0), expected);
    }
}
