//! The spool as `trueup doctor` looks at it: its journal, byte by byte, how far it is drained, and
//! whether what waits could be sent. Beside a running server, which goes on writing and draining:
//! what looks damaged is looked at twice, since a segment may have been deleted in between.

use super::{
    DRAIN_BYTES, bytes_on_disk, drained::Drained, drained::FILE, undeliverable::Undeliverable,
    unwrap_frame,
};
use std::path::Path;
use trueup_log::{Damage, Identity, Journal, Repair, Report, check};
use trueup_operators::log::{Log, LogError, Topic};

/// What is in a spool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpoolReport {
    /// Its journal, and whatever is wrong with the spool.
    pub journal: Report,
    /// Frames that are not yet in Kafka, as far as the spool knows.
    pub waiting_frames: u64,
    /// Their bytes on disk.
    pub waiting_bytes: u64,
    /// Frames that Kafka did not take and that are kept beside the journal.
    pub undeliverable_frames: u64,
}

/// Looks at the spool of a directory. `None`: there is none. Changes nothing, but for a torn write
/// that is to be cut off.
///
/// # Errors
/// When it cannot be read at all; when a repair is asked for while a server runs.
pub fn look(dir: &Path, repair: Repair) -> Result<Option<SpoolReport>, LogError> {
    if Identity::existing(dir)?.is_none() {
        return Ok(None);
    }
    let first = look_once(dir, repair)?;
    if first.journal.damage.is_empty() {
        return Ok(Some(first));
    }
    look_once(dir, repair).map(Some)
}

fn look_once(dir: &Path, repair: Repair) -> Result<SpoolReport, LogError> {
    let mut spool = SpoolReport { journal: check(dir, repair)?, ..SpoolReport::default() };
    if spool.journal.damage.is_empty()
        && let Err(damage) = spool.waiting(dir)?
    {
        spool.journal.damage.push(damage);
    }
    let kept = Undeliverable::open(dir)?;
    for name in kept.names() {
        spool.undeliverable_frames += 1;
        match kept.read(&name) {
            Ok(_) => {}
            Err(LogError::Corrupt { file, at, reason }) => {
                spool.journal.damage.push(Damage { file, at, reason });
            }
            // A server that runs may have sent it meanwhile.
            Err(_) if kept.is_gone(&name) => spool.undeliverable_frames -= 1,
            Err(error) => return Err(error),
        }
    }
    Ok(spool)
}

impl SpoolReport {
    /// Counts what waits, and looks whether it could be sent.
    fn waiting(&mut self, dir: &Path) -> Result<Result<(), Damage>, LogError> {
        let (journal, _) = Journal::open_read_only(dir)?;
        let end = journal.ends(Topic::Events).first().map_or(0, |end| end.offset);
        let held = journal.first(Topic::Events, 0)..=end;
        let mut from = match Drained::read(dir, &held)? {
            Ok(drained) => drained,
            Err(reason) => {
                let file = dir.join(FILE).display().to_string();
                let reason = format!("{reason}; a start sends all that is held to Kafka again");
                return Ok(Err(Damage { file, at: 0, reason }));
            }
        };
        while from < end {
            for frame in journal.read(Topic::Events, 0, from, end, DRAIN_BYTES)? {
                if let Err(error) = unwrap_frame(&frame) {
                    let file = dir.display().to_string();
                    return Ok(Err(Damage { file, at: frame.offset, reason: error.to_string() }));
                }
                self.waiting_frames += 1;
                self.waiting_bytes += bytes_on_disk(&frame);
                from = frame.next;
            }
        }
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{super::wrap, *};
    use std::{fs, io::Write};
    use trueup_log::{Settings, system_clock};
    use trueup_operators::log::{Append, append_and_wait};

    fn keep(journal: &Journal, count: u8) {
        for byte in 0..count {
            let payload = vec![byte; 100].into();
            let (topic, schema_version) = (Topic::Verdicts, 1);
            let append = Append { topic, partition: 0, schema_version, records: 1, payload };
            append_and_wait(journal, vec![wrap(&append).unwrap()]).unwrap();
        }
    }

    fn open(dir: &Path) -> Journal {
        let settings = Settings { partitions: 1, ..Settings::default() };
        Journal::open(dir, settings, system_clock()).unwrap().0
    }

    #[test]
    fn what_waits_is_counted_and_what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(look(dir, Repair::Nothing).unwrap(), None, "no spool yet");
        let journal = open(dir);
        keep(&journal, 5);
        Drained::open(dir, 0..=5).unwrap().advance(2).unwrap();
        // Beside the process that writes, which keeps whoever would repair out.
        let spool = look(dir, Repair::Nothing).unwrap().unwrap();
        assert_eq!((spool.waiting_frames, spool.journal.frames()), (3, 5));
        assert_eq!(spool.waiting_bytes, 3 * (64 + 128));
        look(dir, Repair::CutTornWrite).unwrap_err();
        drop(journal);

        let drained = fs::read(dir.join(FILE)).unwrap();
        fs::write(dir.join(FILE), &drained[..7]).unwrap();
        let damage = look(dir, Repair::Nothing).unwrap().unwrap().journal.damage;
        assert!(damage.len() == 1 && damage[0].file.ends_with(FILE), "{damage:?}");
        assert_eq!(fs::read(dir.join(FILE)).unwrap(), &drained[..7], "it was changed");
        fs::write(dir.join(FILE), &drained).unwrap();

        // A frame that no spool has put there.
        let journal = open(dir);
        let payload = vec![9; 100].into();
        let (topic, schema_version) = (Topic::Events, 1);
        let append = Append { topic, partition: 0, schema_version, records: 1, payload };
        append_and_wait(&journal, vec![append]).unwrap();
        drop(journal);
        let damage = look(dir, Repair::Nothing).unwrap().unwrap().journal.damage;
        assert!(damage.len() == 1 && damage[0].at == 5, "{damage:?}");

        // What Kafka did not take is counted, and named where it cannot be read.
        fs::create_dir(dir.join("undeliverable")).unwrap();
        fs::write(dir.join("undeliverable/1-2.frame"), b"torn").unwrap();
        let spool = look(dir, Repair::Nothing).unwrap().unwrap();
        assert_eq!(spool.undeliverable_frames, 1);
        let damage = &spool.journal.damage;
        assert!(damage.iter().any(|d| d.file.ends_with("1-2.frame")), "{damage:?}");
    }

    #[test]
    fn a_torn_write_is_told_and_cut_off_when_that_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        keep(&open(dir), 3);
        let segment = fs::read_dir(dir.join("journal")).unwrap();
        let mut segments = segment.map(|entry| entry.unwrap().path());
        let segment = segments.find(|path| path.extension().is_some_and(|e| e == "seg")).unwrap();
        let whole = fs::read(&segment).unwrap();
        // The beginning of a frame that was being written.
        fs::OpenOptions::new().append(true).open(&segment).unwrap().write_all(&[1; 30]).unwrap();
        let torn = look(dir, Repair::Nothing).unwrap().unwrap().journal;
        assert_eq!((torn.torn.map(|torn| torn.bytes), torn.repaired), (Some(30), false));
        assert_eq!(fs::read(&segment).unwrap().len(), whole.len() + 30, "it was changed");
        let cut = look(dir, Repair::CutTornWrite).unwrap().unwrap();
        assert!(cut.journal.repaired && cut.waiting_frames == 3, "{cut:?}");
        assert_eq!(fs::read(&segment).unwrap(), whole);
        assert_eq!(look(dir, Repair::Nothing).unwrap().unwrap().journal.torn, None);
    }
}
