//! A check beside a server whose retention deletes segments meanwhile: what is gone from the
//! beginning is no damage, what is gone from the middle is.

use super::{simulated::*, *};
use crate::{
    Repair, Report,
    check::check_on,
    disk::{Access, DiskFile, Lock},
};
use std::io;

/// A disk from which files are removed when one of them is opened.
struct Retaining {
    disk: SimulatedDisk,
    when: PathBuf,
    removed: Vec<PathBuf>,
}

impl Disk for Retaining {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        if path == self.when {
            // Those that a check has read before are gone already the second time.
            self.removed.iter().for_each(|path| drop(self.disk.remove(path)));
        }
        self.disk.open(path, access)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir(dir)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        self.disk.lock(path)
    }
}

/// What a check finds if some of six and more segments are removed when it opens one of them.
fn checked(when: usize, removed: std::ops::Range<usize>) -> (Report, usize) {
    let disk = SimulatedDisk::new(7);
    let mut log = Stepped::open(&disk, small(), TestClock::at(1).clock()).unwrap();
    for nth in 0..20 {
        log.write(vec![event((nth % 3) as u16, &payload(nth, 4_000))]).unwrap();
    }
    log.close();
    let segments = disk.files(".seg");
    assert!(segments.len() >= 6, "{segments:?}");
    let (when, removed) = (segments[when].clone(), segments[removed].to_vec());
    let report = check_on(&Retaining { disk, when, removed }, dir(), Repair::Nothing).unwrap();
    (report, segments.len())
}

#[test]
fn segments_that_are_deleted_while_they_are_checked_are_no_damage() {
    for (when, removed) in [(0, 0..1), (2, 0..3), (1, 0..4), (3, 0..3)] {
        let gone = removed.end;
        let (report, segments) = checked(when, removed.clone());
        assert_eq!(report.damage, [], "{removed:?} at {when}");
        // What was read before it was deleted may be told.
        let expected = if when < gone { segments - gone } else { segments };
        assert_eq!(report.segments.len(), expected, "{removed:?} at {when}");
        for partition in &report.partitions {
            let held = partition.end - partition.first;
            assert_eq!(partition.frames, held, "{removed:?} at {when}: {partition:?}");
        }
    }
}

#[test]
fn a_segment_that_is_gone_from_the_middle_is_damage() {
    let (report, _) = checked(2, 2..3);
    let [damage, ..] = &report.damage[..] else { panic!("{report:?}") };
    assert!(damage.file.ends_with(".seg"), "{damage:?}");
}
