//! What the log does on a good day: append, read, roll, reopen, find by time, refuse.

use super::*;
use crate::{Fsync, Repair, Retention, check, intake::Work, system_clock};
use trueup_operators::log::{append_and_wait, contract};

fn open(dir: &Path, settings: Settings) -> (Journal, Opened) {
    Journal::open(dir, settings, system_clock()).unwrap()
}

/// Appends numbered frames of mixed sizes to all partitions; what each partition then holds.
fn fill(journal: &Journal, frames: u64) -> Vec<Vec<Vec<u8>>> {
    let mut expected = vec![Vec::new(); 3];
    for nth in 0..frames {
        let payload = payload(nth, (nth as usize * 37) % 900);
        let partition = (nth % 3) as u16;
        append_and_wait(journal, vec![event(partition, &payload)]).unwrap();
        expected[usize::from(partition)].push(payload);
    }
    expected
}

fn assert_holds(log: &dyn Log, expected: &[Vec<Vec<u8>>]) {
    for (partition, expected) in expected.iter().enumerate() {
        let frames = all(log, Topic::Events, partition as u16);
        let found: Vec<&[u8]> = frames.iter().map(|frame| frame.payload.as_slice()).collect();
        assert_eq!(found, expected.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for (offset, frame) in frames.iter().enumerate() {
            assert_eq!((frame.partition, frame.offset), (partition as u16, offset as u64));
            assert_eq!((frame.schema_version, frame.records), (1, 1 + partition as u32));
            assert!((frame.payload.as_ptr() as usize).is_multiple_of(64));
        }
        assert!(frames.is_sorted_by_key(|frame| frame.log_time));
    }
}

#[test]
fn what_was_appended_is_read_from_memory_and_from_disk_and_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, opened) = open(dir.path(), small());
    assert!(opened.created);
    let expected = fill(&journal, 150);
    assert_holds(&journal, &expected);
    assert_eq!(journal.counts().frames_read, 0, "all of it is in memory");
    assert!(std::fs::read_dir(dir.path().join("journal")).unwrap().count() > 4, "it rolled");
    drop(journal);

    let no_tail = Settings { tail_bytes_max: 0, ..small() };
    let (journal, opened) = open(dir.path(), no_tail);
    assert_eq!((opened.created, opened.frames, opened.torn), (false, 150, None));
    assert_eq!(opened.indexes_rebuilt, 0);
    assert_holds(&journal, &expected);
    assert!(journal.counts().frames_read >= 150);
    fill(&journal, 0);
    let at = append_and_wait(&journal, vec![event(1, b"more")]).unwrap();
    assert_eq!(at[0].offset, 50);
    assert_eq!(all(&journal, Topic::Events, 1)[50].payload.as_slice(), b"more");
}

#[test]
fn the_journal_is_a_log_as_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path(), small());
    contract::holds(&journal);
    drop(journal);
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path(), Settings { tail_bytes_max: 0, ..small() });
    contract::holds(&journal);
}

#[test]
fn a_read_that_begins_on_disk_ends_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path(), Settings { tail_bytes_max: 10_000, ..small() });
    let expected = fill(&journal, 120);
    assert!(journal.tail_bytes() <= 10_000 && journal.tail_bytes() > 5_000);
    let frames = journal.read(Topic::Events, 0, 0, 40, usize::MAX).unwrap();
    assert_eq!(frames.len(), 40);
    let read = journal.counts().frames_read;
    assert!(read > 0 && read < 40, "{read} from disk");
    assert_holds(&journal, &expected);
}

#[test]
fn topics_are_apart_and_one_request_may_span_them() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path(), small());
    let frames = vec![
        event(2, b"a"),
        append(Topic::Verdicts, 0, b"v"),
        event(0, b"b"),
        event(2, b"c"),
        append(Topic::Remap, 0, b""),
    ];
    let at = append_and_wait(&journal, frames).unwrap();
    assert_eq!(at.iter().map(|at| at.offset).collect::<Vec<_>>(), [0, 0, 0, 1, 0]);
    assert!(at.iter().all(|each| each.log_time == at[0].log_time));
    assert_eq!(journal.partitions(Topic::Events), 3);
    assert_eq!(journal.partitions(Topic::Verdicts), 1);
    let ends = journal.ends(Topic::Events);
    assert_eq!(ends.iter().map(|end| end.offset).collect::<Vec<_>>(), [1, 0, 2]);
    assert_eq!(ends.iter().map(|end| end.records).collect::<Vec<_>>(), [1, 0, 6]);
    assert_eq!(ends.iter().map(|end| end.bytes).collect::<Vec<_>>(), [128, 0, 256]);
    assert_eq!(all(&journal, Topic::Remap, 0)[0].payload.len(), 0);
    assert_eq!(append_and_wait(&journal, Vec::new()).unwrap(), []);
}

#[test]
fn limits_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path(), Settings { queue_bytes_max: 100_000, ..small() });
    let refuse = |frame: Append| match append_and_wait(&journal, vec![frame]) {
        Err(LogError::Invalid { reason }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(refuse(event(3, b"")).contains("has 3 partitions, there is no 3"));
    assert!(refuse(Append { records: 70_000, ..event(0, b"") }).contains("70000 records"));
    assert!(refuse(event(0, &vec![0; 200_000])).contains("queue_bytes_max"));
    let huge = Buffer::from_vec(vec![0_u8; crate::PAYLOAD_BYTES_MAX + 1]);
    assert!(refuse(Append { payload: huge, ..event(0, b"") }).contains("limit of a frame"));
    assert_eq!(journal.waiting_bytes(), 0);
    for settings in [
        Settings { partitions: 0, ..small() },
        Settings { partitions: 257, ..small() },
        Settings { segment_bytes_max: 100, ..small() },
        Settings { queue_bytes_max: 0, ..small() },
    ] {
        let dir = tempfile::tempdir().unwrap();
        let refused = Journal::open(dir.path(), settings, system_clock());
        assert!(matches!(refused, Err(LogError::Invalid { .. })), "{settings:?}");
    }
    assert!("sometimes".parse::<Fsync>().is_err());
    assert_eq!("never".parse::<Fsync>().unwrap(), Fsync::Never);
}

#[test]
fn a_full_queue_is_busy_and_says_by_how_much() {
    let disk = simulated::SimulatedDisk::new(1);
    let settings = Settings { queue_bytes_max: 1_000, ..small() };
    let mut log = Stepped::open(&disk, settings, TestClock::at(5).clock()).unwrap();
    let first = log.put(vec![event(0, &[1; 700])]);
    let refused = log.put(vec![event(0, &[2; 700])]);
    match refused.lock().take() {
        Some(Err(LogError::Busy { waiting_bytes, limit_bytes })) => {
            assert_eq!((waiting_bytes, limit_bytes), (64 + 64 + 704, 1_000));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(log.turn(), Turn::Wrote);
    assert!(first.lock().take().unwrap().is_ok());
    assert!(log.write(vec![event(0, &[2; 700])]).is_ok());
    log.close();
}

#[test]
fn offsets_outside_of_what_is_held_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path(), small());
    fill(&journal, 9);
    for (from, to, offset) in [(3, 4, 3), (0, 4, 4), (2, 2, 2), (2, 1, 2), (7, 9, 7)] {
        match journal.read(Topic::Events, 0, from, to, 10) {
            Err(LogError::OutOfRange { offset: at, first: 0, end: 3, .. }) => {
                assert_eq!(at, offset, "{from}..{to}");
            }
            other => panic!("{from}..{to}: {other:?}"),
        }
    }
    assert_eq!(journal.read(Topic::Events, 0, 1, 3, 0).unwrap().len(), 1, "at least one");
    assert!(journal.read(Topic::Events, 9, 0, 1, 10).is_err());
}

#[test]
fn a_clock_that_jumps_back_does_not_turn_log_time_back() {
    let disk = simulated::SimulatedDisk::new(1);
    let clock = TestClock::at(1_000);
    let mut log = Stepped::open(&disk, small(), clock.clock()).unwrap();
    assert_eq!(log.write(vec![event(0, b"a")]).unwrap()[0].log_time, LogTime(1_000));
    clock.set(400);
    assert_eq!(log.write(vec![event(1, b"b")]).unwrap()[0].log_time, LogTime(1_000));
    clock.set(2_000);
    // A promise alone moves the floor.
    assert_eq!(log.journal.ends(Topic::Remap)[0].complete_to, LogTime(2_000));
    clock.set(1_500);
    assert_eq!(log.journal.clock_behind_us(), 500);
    assert_eq!(log.write(vec![event(2, b"c")]).unwrap()[0].log_time, LogTime(2_000));
    log.close();

    clock.set(100);
    let mut log = Stepped::open(&disk, small(), clock.clock()).unwrap();
    assert_eq!(log.opened.clock_behind_us, 1_900);
    assert_eq!(log.journal.ends(Topic::Events)[0].complete_to, LogTime(2_000));
    assert_eq!(log.write(vec![event(0, b"d")]).unwrap()[0].log_time, LogTime(2_000));
}

#[test]
fn a_frame_under_way_holds_back_its_own_partition_only() {
    let disk = simulated::SimulatedDisk::new(1);
    let clock = TestClock::at(10);
    let log = Stepped::open(&disk, small(), clock.clock()).unwrap();
    let answer = log.put(vec![event(1, b"a")]);
    let complete_to = |us: i64| {
        clock.set(us);
        let ends = log.journal.ends(Topic::Events);
        ends.iter().map(|end| end.complete_to.0).collect::<Vec<_>>()
    };
    assert_eq!(complete_to(20), [20, 20, 20], "it has no log time yet");
    let Work::Group(group) = log.journal.shared.intake.take(1 << 20, Duration::ZERO) else {
        panic!("there is a request");
    };
    assert_eq!(group.log_time, LogTime(20));
    assert_eq!(complete_to(30), [30, 20, 30]);
    log.journal.shared.intake.give_up(group.bytes);
    assert_eq!(complete_to(40), [40, 40, 40]);
    assert!(answer.lock().is_none());
}

#[test]
fn times_find_offsets() {
    let disk = simulated::SimulatedDisk::new(1);
    let clock = TestClock::at(0);
    let mut log = Stepped::open(&disk, small(), clock.clock()).unwrap();
    for us in [10, 20, 20, 30] {
        clock.set(us);
        log.write(vec![event(0, b"x")]).unwrap();
    }
    for (us, offset) in [(0, 0), (10, 0), (11, 1), (20, 1), (21, 3), (30, 3), (31, 4)] {
        assert_eq!(log.journal.offset_at(Topic::Events, 0, LogTime(us)).unwrap(), offset);
    }
    assert_eq!(log.journal.offset_at(Topic::Events, 1, LogTime(5)).unwrap(), 0);
}

#[test]
fn a_data_directory_has_one_owner_one_identity_and_one_number_of_partitions() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path(), small());
    let identity = *journal.identity();
    match Journal::open(dir.path(), small(), system_clock()) {
        Err(LogError::Invalid { reason }) => {
            assert!(reason.contains(&dir.path().display().to_string()), "{reason}");
            assert!(reason.contains("in use by another process"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    drop(journal);
    let four = Settings { partitions: 4, ..small() };
    match Journal::open(dir.path(), four, system_clock()) {
        Err(LogError::Invalid { reason }) => {
            assert!(reason.contains("created with 3 partitions"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    let (journal, _) = open(dir.path(), small());
    assert_eq!(journal.identity().hash_key.0, identity.hash_key.0);
    assert_eq!(journal.identity().installation_hex(), identity.installation_hex());
    use std::os::unix::fs::PermissionsExt;
    let mode = dir.path().join("identity").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(journal);

    std::fs::remove_file(dir.path().join("identity")).unwrap();
    let (journal, opened) = open(dir.path(), small());
    assert!(opened.created, "there was no frame yet");
    append_and_wait(&journal, vec![event(0, &[7; 9_000])]).unwrap();
    drop(journal);
    std::fs::remove_file(dir.path().join("identity")).unwrap();
    match Journal::open(dir.path(), small(), system_clock()) {
        Err(LogError::Invalid { reason }) => assert!(reason.contains("identity"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reader_stands_beside_a_running_server_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path(), small());
    let expected = fill(&journal, 60);
    let (reader, opened) = Journal::open_read_only(dir.path()).unwrap();
    assert_eq!(opened.frames, 60);
    assert_holds(&reader, &expected);
    fill(&journal, 30);
    assert_holds(&reader, &expected);
    let last = all(&journal, Topic::Events, 2).pop().unwrap();
    let (reader, _) = Journal::open_read_only(dir.path()).unwrap();
    assert_eq!(reader.ends(Topic::Events)[2].complete_to, last.log_time);
    match append_and_wait(&reader, vec![event(0, b"no")]) {
        Err(LogError::Unavailable { reason }) => assert!(reason.contains("read-only")),
        other => panic!("{other:?}"),
    }
    assert!(reader.retain(Retention::default(), |_, _| 0).is_err());
    let report = check(dir.path(), Repair::Nothing).unwrap();
    assert_eq!((report.frames(), report.torn.clone()), (90, None));
    assert_eq!(report.damage, []);
    assert_eq!(report.partitions[1].records, 2 * 30);
    assert!(check(dir.path(), Repair::CutTornWrite).is_err(), "a server is running");
    assert!(Journal::open_read_only(&dir.path().join("nothing")).is_err());
}

#[test]
fn retention_deletes_whole_segments_that_are_covered_and_offsets_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(1_000);
    let (journal, _) = Journal::open(dir.path(), small(), clock.clock()).unwrap();
    fill(&journal, 150);
    append_and_wait(&journal, vec![append(Topic::Verdicts, 0, b"one")]).unwrap();
    fill(&journal, 60);
    let before = journal.bytes_held();
    let all_but_nothing = Retention { age_us_max: None, bytes_max: Some(0) };
    let kept = journal.retain(all_but_nothing, |_, _| 0).unwrap();
    assert_eq!((kept.segments_deleted, kept.bytes_held), (0, before), "nothing is covered");
    let aged = Retention { age_us_max: Some(500), bytes_max: None };
    assert_eq!(journal.retain(aged, |_, _| u64::MAX).unwrap().segments_deleted, 0, "too young");
    let covered = |topic, _| if topic == Topic::Verdicts { 0 } else { 45 };
    let some = journal.retain(all_but_nothing, covered).unwrap();
    assert!(some.segments_deleted > 0);
    assert!(journal.first(Topic::Events, 0) > 0 && journal.first(Topic::Events, 0) <= 45);
    clock.set(2_000);
    let rest = journal.retain(aged, |_, _| u64::MAX).unwrap();
    assert_eq!(rest.bytes_held, journal.bytes_held());
    assert_eq!(before, rest.bytes_held + rest.bytes_deleted + some.bytes_deleted);
    let first = journal.first(Topic::Events, 0);
    assert!(matches!(
        journal.read(Topic::Events, 0, first - 1, first + 1, 10),
        Err(LogError::OutOfRange { .. })
    ));
    let (ends, verdicts) = (journal.ends(Topic::Events), journal.ends(Topic::Verdicts));
    drop(journal);

    // The verdict's frame is gone; its partition goes on behind it.
    let (journal, opened) = Journal::open(dir.path(), small(), clock.clock()).unwrap();
    assert_eq!(opened.segments, 1);
    assert_eq!(journal.ends(Topic::Events)[0].offset, ends[0].offset);
    assert_eq!(journal.ends(Topic::Events)[0].records, ends[0].records);
    assert_eq!(journal.ends(Topic::Events)[0].bytes, ends[0].bytes);
    assert_eq!(journal.first(Topic::Events, 0), first);
    assert_eq!(journal.first(Topic::Verdicts, 0), 1);
    assert_eq!(journal.ends(Topic::Verdicts)[0].records, verdicts[0].records);
    let at = append_and_wait(&journal, vec![append(Topic::Verdicts, 0, b"two")]).unwrap();
    assert_eq!(at[0].offset, 1);
    let report = check(dir.path(), Repair::Nothing).unwrap();
    assert_eq!((report.damage, report.partitions[0].first), (vec![], first));
}

#[test]
fn a_limit_of_frames_refuses_events_but_not_what_makes_them_visible() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::at(1_000);
    let settings = Settings { frames_max: 160, ..small() };
    let (journal, _) = Journal::open(dir.path(), settings, clock.clock()).unwrap();
    fill(&journal, 139);
    assert!(!journal.is_nearly_full());
    fill(&journal, 1);
    assert!(journal.is_nearly_full(), "seven eighths");
    fill(&journal, 20);
    let refused = |result: Result<Vec<Appended>, LogError>| match result {
        Err(LogError::Unavailable { reason }) => reason,
        other => panic!("{other:?}"),
    };
    let reason = refused(append_and_wait(&journal, vec![event(0, b"more")]));
    assert!(reason.contains("160 frames") && reason.contains("retention_bytes_max"), "{reason}");
    // Epochs are closed, so that checkpoints cover what is there, and retention makes room.
    for _ in 0..30 {
        append_and_wait(&journal, vec![append(Topic::Remap, 0, b"row")]).unwrap();
    }
    assert_eq!(journal.frames_held(), crate::FramesHeld { remap: 30, others: 160 });
    let half = Retention { age_us_max: None, bytes_max: Some(journal.bytes_held() / 2) };
    assert!(journal.retain(half, |_, _| u64::MAX).unwrap().segments_deleted > 0);
    append_and_wait(&journal, vec![event(0, b"more")]).unwrap();
    assert!(!journal.is_nearly_full());
    // The remap topic has a limit too.
    let rows = vec![append(Topic::Remap, 0, b"row"); 160];
    assert!(refused(append_and_wait(&journal, rows)).contains("remap"));
    let settings = Settings { frames_max: crate::FRAMES_HELD_MAX + 1, ..small() };
    assert!(Journal::open(&dir.path().join("other"), settings, clock.clock()).is_err());
}

#[test]
fn without_syncs_the_journal_still_survives_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let lazy = Settings { fsync: Fsync::Never, ..small() };
    let (journal, _) = open(dir.path(), lazy);
    let expected = fill(&journal, 40);
    let syncs = journal.counts().syncs;
    assert!(syncs < 10, "{syncs} syncs for 40 groups: one for each segment");
    drop(journal);
    let (journal, opened) = open(dir.path(), lazy);
    assert_eq!(opened.torn, None);
    assert_holds(&journal, &expected);
}

#[test]
fn closing_writes_what_waits_and_refuses_what_comes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path(), small());
    let (send, receive) = std::sync::mpsc::channel();
    for nth in 0..200_u64 {
        let send = send.clone();
        let done = Box::new(move |result: Result<Vec<Appended>, LogError>| {
            send.send(result.is_ok()).unwrap();
        });
        journal.append(vec![event(0, &payload(nth, 300))], done).unwrap();
    }
    journal.close();
    assert_eq!(receive.try_iter().filter(|ok| *ok).count(), 200);
    assert!(matches!(
        append_and_wait(&journal, vec![event(0, b"late")]),
        Err(LogError::Unavailable { .. })
    ));
    assert_eq!(all(&journal, Topic::Events, 0).len(), 200, "reading goes on");
}

#[test]
fn the_last_owner_may_be_a_callback() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path(), small());
    let journal = Arc::new(journal);
    let (send, receive) = std::sync::mpsc::channel();
    let owner = Arc::clone(&journal);
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let done = Box::new(move |result: Result<Vec<Appended>, LogError>| {
        wait.recv().unwrap();
        drop(owner);
        send.send(result.is_ok()).unwrap();
    });
    journal.append(vec![event(0, b"x")], done).unwrap();
    drop(journal);
    go.send(()).unwrap();
    assert!(receive.recv_timeout(Duration::from_secs(10)).unwrap());
}
