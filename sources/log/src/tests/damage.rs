//! Bytes that are not what was written: what is cut, what is reported, and that nothing is guessed.

use super::{simulated::*, *};
use crate::{IndexState, Repair, check::check_on, disk::Access, disk::Disk, format::UNIT_BYTES};

fn open(disk: &SimulatedDisk) -> Result<Stepped, LogError> {
    Stepped::open(disk, small(), TestClock::at(1).clock())
}

/// A disk with so many groups of one frame in one segment, as kill -9 leaves it.
fn killed_after(groups: u64) -> (SimulatedDisk, usize) {
    let disk = SimulatedDisk::new(1);
    let mut log = open(&disk).unwrap();
    let header = disk.bytes_of(&segment_path(0)).len();
    for nth in 0..groups {
        log.write(vec![event(0, &payload(nth, 200))]).unwrap();
    }
    drop(log);
    (disk, header)
}

/// What a frame of [`killed_after`] takes.
const FRAME_BYTES: usize = 64 + 256;

fn corrupt_at(result: Result<Stepped, LogError>) -> (String, u64, String) {
    match result.err() {
        Some(LogError::Corrupt { file, at, reason }) => (file, at, reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flipped_bit_before_the_last_group_is_corrupt_wherever_it_is() {
    let (disk, header) = killed_after(4);
    let clean = disk.bytes_of(&segment_path(0));
    for byte in header..header + 3 * FRAME_BYTES {
        // Padding is not under any checksum and holds nothing.
        if (byte - header) % FRAME_BYTES >= 64 + 200 {
            continue;
        }
        disk.tamper(&segment_path(0), |bytes| bytes[byte] ^= 1 << (byte % 8));
        let (file, at, reason) = corrupt_at(open(&disk));
        assert!(file.ends_with("00000000000000000000.seg"));
        let frame = header + (byte - header) / FRAME_BYTES * FRAME_BYTES;
        assert_eq!(at, frame as u64, "byte {byte}: {reason}");
        disk.tamper(&segment_path(0), |bytes| *bytes = clean.clone());
    }
    assert_eq!(open(&disk).unwrap().opened.frames, 4);
}

#[test]
fn a_flipped_bit_in_a_group_that_nothing_proves_is_cut() {
    let (disk, header) = killed_after(4);
    disk.tamper(&segment_path(0), |bytes| bytes[header + 3 * FRAME_BYTES + 100] ^= 1);
    let log = open(&disk).unwrap();
    let torn = log.opened.torn.clone().unwrap();
    assert_eq!((torn.at, torn.bytes), ((header + 3 * FRAME_BYTES) as u64, FRAME_BYTES as u64));
    assert_eq!(log.journal.ends(Topic::Events)[0].offset, 3);
}

#[test]
fn a_mark_turns_the_last_group_from_doubtful_into_proven() {
    for closed in [false, true] {
        let disk = SimulatedDisk::new(1);
        let mut log = open(&disk).unwrap();
        let header = disk.bytes_of(&segment_path(0)).len();
        log.write(vec![event(0, &payload(0, 200))]).unwrap();
        if closed {
            log.close();
        } else {
            assert_eq!(log.turn(), Turn::Idled);
            drop(log);
        }
        assert_eq!(disk.bytes_of(&segment_path(0)).len(), header + FRAME_BYTES + 64);
        disk.tamper(&segment_path(0), |bytes| bytes[header + 100] ^= 1);
        let (_, at, reason) = corrupt_at(open(&disk));
        assert_eq!(at, header as u64);
        assert!(reason.contains("proves that it was durable"), "{reason}");
    }
}

#[test]
fn a_good_frame_behind_a_bad_one_of_the_same_group_proves_nothing() {
    let disk = SimulatedDisk::new(1);
    let mut log = open(&disk).unwrap();
    let header = disk.bytes_of(&segment_path(0)).len();
    log.write(vec![event(0, &payload(0, 200))]).unwrap();
    log.write((1..4).map(|nth| event(0, &payload(nth, 200))).collect()).unwrap();
    drop(log);
    // The middle one of the group's three never reached the disk.
    let start = header + 2 * FRAME_BYTES;
    disk.tamper(&segment_path(0), |bytes| bytes[start..start + FRAME_BYTES].fill(0));
    let log = open(&disk).unwrap();
    assert_eq!(log.opened.torn.as_ref().map(|torn| torn.bytes), Some(2 * FRAME_BYTES as u64));
    assert_eq!(log.journal.ends(Topic::Events)[0].offset, 2);
}

#[test]
fn tails_of_zeros_and_of_half_frames_are_cut_at_every_length() {
    let (disk, header) = killed_after(3);
    let clean = disk.bytes_of(&segment_path(0));
    for bytes in header..clean.len() {
        disk.tamper(&segment_path(0), |file| file.truncate(bytes));
        let log = open(&disk).unwrap();
        let frames = (bytes - header) / FRAME_BYTES;
        assert_eq!(log.opened.frames, frames as u64, "{bytes} bytes are left");
        let end = header + frames * FRAME_BYTES;
        let cut = log.opened.torn.as_ref().map_or(0, |torn| torn.bytes);
        assert_eq!(cut, (bytes - end) as u64);
        assert_eq!(disk.bytes_of(&segment_path(0)).len(), end);
        drop(log);
        disk.tamper(&segment_path(0), |file| *file = clean.clone());
    }
    for zeros in [1, 63, 64, 65, 4_096, 100_000] {
        disk.tamper(&segment_path(0), |file| file.resize(clean.len() + zeros, 0));
        let mut log = open(&disk).unwrap();
        assert_eq!(log.opened.torn.as_ref().map(|torn| torn.bytes), Some(zeros as u64));
        assert_eq!(log.opened.frames, 3);
        log.write(vec![event(0, b"goes on")]).unwrap();
        drop(log);
        disk.tamper(&segment_path(0), |file| *file = clean.clone());
    }
}

/// A journal of several segments, closed, and its files.
fn sealed() -> (SimulatedDisk, Vec<PathBuf>) {
    let disk = SimulatedDisk::new(1);
    let mut log = open(&disk).unwrap();
    for nth in 0..20 {
        log.write(vec![event((nth % 3) as u16, &payload(nth, 3_000))]).unwrap();
    }
    log.close();
    let segments = disk.files(".seg");
    assert!(segments.len() >= 4);
    (disk, segments)
}

#[test]
fn damage_in_a_sealed_segment_is_found_by_reading_and_by_checking() {
    let (disk, segments) = sealed();
    let header = 256;
    disk.tamper(&segments[1], |bytes| bytes[header + 700] ^= 1);
    // The index spares the opening from reading it.
    let log = open(&disk).unwrap();
    let mut damaged = 0;
    for partition in 0..3 {
        let end = log.journal.ends(Topic::Events)[usize::from(partition)].offset;
        for offset in 0..end {
            match log.journal.read(Topic::Events, partition, offset, offset + 1, 10) {
                Ok(frames) => assert_eq!(frames[0].offset, offset),
                Err(LogError::Corrupt { file, .. }) => {
                    assert_eq!(PathBuf::from(file), segments[1]);
                    damaged += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert_eq!(damaged, 1);
    drop(log);
    let report = check_on(&disk, dir(), Repair::CutTornWrite).unwrap();
    assert_eq!(report.damage.len(), 1);
    assert_eq!((report.damage[0].at, report.repaired), (header as u64, false));
    // Without its index the opening reads it, and stops there.
    disk.remove(&disk.files(".idx")[1]).unwrap();
    let (file, at, _) = corrupt_at(open(&disk));
    assert_eq!((PathBuf::from(file), at), (segments[1].clone(), header as u64));
}

#[test]
fn a_missing_shortened_or_foreign_segment_is_corrupt() {
    let (disk, segments) = sealed();
    disk.remove(&segments[1]).unwrap();
    let (file, at, reason) = corrupt_at(open(&disk));
    assert_eq!((PathBuf::from(file), at), (segments[2].clone(), 0));
    assert!(reason.contains("missing or shortened"), "{reason}");

    let (disk, segments) = sealed();
    disk.tamper(&segments[1], |bytes| bytes.truncate(4_000));
    let (file, _, reason) = corrupt_at(open(&disk));
    assert_eq!(PathBuf::from(file), segments[1]);
    assert!(reason.contains("too early"), "{reason}");

    let (disk, segments) = sealed();
    let (other, _) = sealed();
    disk.tamper(&segments[1], |bytes| *bytes = other.bytes_of(&segments[1]));
    let (_, _, reason) = corrupt_at(open(&disk));
    assert!(reason.contains("another installation"), "{reason}");

    let (disk, segments) = sealed();
    segments.iter().for_each(|path| disk.remove(path).unwrap());
    let (_, _, reason) = corrupt_at(open(&disk));
    assert!(reason.contains("holds no segment"), "{reason}");
    let report = check_on(&disk, dir(), Repair::Nothing).unwrap();
    assert_eq!(report.damage.len(), 1);
}

#[test]
fn a_damaged_segment_header_is_corrupt_even_in_the_last_segment() {
    let (disk, _) = killed_after(1);
    for byte in [0, 9, 13, 20, 30, 61, 64, 100] {
        disk.tamper(&segment_path(0), |bytes| bytes[byte] ^= 1);
        assert_eq!(corrupt_at(open(&disk)).1, 0, "byte {byte}");
        disk.tamper(&segment_path(0), |bytes| bytes[byte] ^= 1);
    }
    disk.tamper(&segment_path(0), |bytes| bytes.truncate(30));
    assert_eq!(corrupt_at(open(&disk)).1, 0);
}

#[test]
fn a_frame_inside_a_payload_is_no_frame() {
    let (disk, header) = killed_after(2);
    // The second frame's bytes, which say what was durable, sent as somebody's payload; then torn.
    let mut log = open(&disk).unwrap();
    let bytes = disk.bytes_of(&segment_path(0));
    let mut forged = bytes[header + FRAME_BYTES..].to_vec();
    forged.resize(forged.len().next_multiple_of(UNIT_BYTES as usize), 0);
    let journal = log.journal.identity().journal;
    forged[48..56].copy_from_slice(&(journal ^ 1).to_le_bytes());
    forged[44..48].copy_from_slice(&u32::MAX.to_le_bytes());
    let crc = crc32c::crc32c(&forged[..60]);
    forged[60..64].copy_from_slice(&crc.to_le_bytes());
    log.write(vec![event(0, &forged)]).unwrap();
    drop(log);
    let torn_at = header + 2 * FRAME_BYTES;
    disk.tamper(&segment_path(0), |bytes| bytes[torn_at] ^= 1);
    let log = open(&disk).unwrap();
    assert_eq!(log.opened.torn.as_ref().map(|torn| torn.at), Some(torn_at as u64));
}

#[test]
fn a_check_names_everything_and_a_repair_cuts_a_torn_write_only() {
    let (disk, segments) = sealed();
    let last = segments.last().unwrap().clone();
    let whole = disk.bytes_of(&last).len() as u64;
    disk.tamper(&last, |bytes| bytes.extend([0xEE; 1_000]));
    let indexes = disk.files(".idx");
    disk.remove(&indexes[0]).unwrap();
    disk.tamper(&indexes[1], |bytes| bytes[5] ^= 1);
    let report = check_on(&disk, dir(), Repair::Nothing).unwrap();
    assert_eq!((report.damage.clone(), report.repaired), (vec![], false));
    let torn = report.torn.clone().unwrap();
    assert_eq!((torn.at, torn.bytes), (whole, 1_000));
    assert_eq!(report.frames(), 20);
    let states: Vec<IndexState> = report.segments.iter().map(|segment| segment.index).collect();
    assert_eq!(states[..3], [IndexState::Missing, IndexState::Unusable, IndexState::Good]);
    assert_eq!(states.last(), Some(&IndexState::NotNeeded));
    assert_eq!(report.partitions.iter().map(|p| p.frames).collect::<Vec<_>>(), [7, 7, 6, 0, 0, 0]);
    assert_eq!(disk.bytes_of(&last).len() as u64, whole + 1_000, "nothing was changed");

    let report = check_on(&disk, dir(), Repair::CutTornWrite).unwrap();
    assert!(report.repaired);
    assert_eq!(disk.bytes_of(&last).len() as u64, whole);
    assert_eq!(check_on(&disk, dir(), Repair::Nothing).unwrap().torn, None);
}

#[test]
fn leftovers_of_a_crash_are_removed() {
    let (disk, segments) = sealed();
    let half = segments[1].with_added_extension("new");
    disk.open(&half, Access::Create).unwrap();
    let orphan = dir().join("journal/00000000000000009999.idx");
    disk.open(&orphan, Access::Create).unwrap();
    drop(Journal::read_only_on(disk.shared(), dir()).unwrap());
    assert_eq!(disk.files(".new"), [half], "a reader changes nothing");
    drop(open(&disk).unwrap());
    assert!(disk.files(".new").is_empty() && !disk.files(".idx").contains(&orphan));
}
