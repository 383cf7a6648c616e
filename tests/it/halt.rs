//! What cannot be decided away ends the run: no view shows an epoch that is not whole, and nobody
//! waits for ever. Through the library, where a job of one's own can bring a worker to its end, and
//! through the program, whose exit code tells the supervisor.

use crate::{
    server::Home,
    traffic::{click, now_us, verdict},
};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use std::{
    fs,
    path::Path,
    sync::mpsc,
    time::{Duration, UNIX_EPOCH},
};
use trueup::{
    EngineSettings, Event, EventTime, Host, Job, Output, PerEvent, RollupSpec, Rows, Source,
};
use trueup_operators::time::HOUR_US;

/// How long an end may take that nobody has to wait for.
const SOON: Duration = Duration::from_secs(20);

/// What the ledger of a step is to meet.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Good,
    /// Cannot be read back from its frame.
    Unreadable,
    /// The job's closure panics on it.
    Panicking,
}

#[derive(Clone, Serialize)]
struct Step {
    number: u64,
    at_us: i64,
    kind: Kind,
}

impl<'de> Deserialize<'de> for Step {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Step, D::Error> {
        #[derive(Deserialize)]
        struct Written {
            number: u64,
            at_us: i64,
            kind: Kind,
        }
        let Written { number, at_us, kind } = Written::deserialize(from)?;
        match kind {
            Kind::Unreadable => Err(D::Error::custom("the step cannot be read")),
            _ => Ok(Step { number, at_us, kind }),
        }
    }
}

impl Event for Step {
    const DIMENSIONS: &'static [&'static str] = &["walk"];

    fn id(&self) -> String {
        self.number.to_string()
    }
    fn time(&self) -> EventTime {
        EventTime(self.at_us)
    }
    fn texts(&self) -> Vec<&str> {
        vec!["walk"]
    }
}

trueup::group! { struct Steps { steps, panicking } counting steps }

struct Walk;

impl Job<1> for Walk {
    type Batch = Rows<Step>;
    type Metrics = Steps;

    fn rollups(&self) -> Vec<RollupSpec> {
        vec![RollupSpec::new("steps", &["walk"])]
    }
    fn topology<'s>(&self, steps: Source<'s, Rows<Step>>) -> Output<'s, 1, Steps> {
        let count = |step: &Step, _valid| {
            assert!(step.kind != Kind::Panicking, "this step is one too many");
            Steps { steps: 1, panicking: 0 }
        };
        steps.dedupe().sum(PerEvent::new(&self.rollups(), count)).accumulate().views()
    }
}

fn steps(numbers: std::ops::Range<u64>, kind: Kind) -> Vec<Step> {
    let at_us = UNIX_EPOCH.elapsed().unwrap().as_micros() as i64 - HOUR_US;
    numbers.map(|number| Step { number, at_us, kind }).collect()
}

/// Runs until a step of this kind ends the run; what it says.
fn ended_by(kind: Kind) -> String {
    let dir = tempfile::tempdir().unwrap();
    let open = |dir: &Path| Host::open(dir, Walk, Default::default(), EngineSettings::default());
    let host = open(dir.path()).unwrap();
    host.send(&steps(0..1_000, Kind::Good)).unwrap();
    let shown = host.settle().unwrap();
    let before = host.rows("steps_hour").unwrap();
    assert_eq!(before[0].figures, [1_000, 0]);

    // One bad step among many good ones, in one epoch or several: none of them is shown.
    let mut sent = steps(1_000..9_000, Kind::Good);
    sent.extend(steps(9_000..9_001, kind));
    sent.extend(steps(9_001..12_000, Kind::Good));
    host.send(&sent).unwrap();
    let fault = host.settle().unwrap_err().to_string();
    let visible = host.engine().lag().visible;
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(host.engine().lag().visible, visible, "an epoch became visible after the fault");
    assert!(visible >= shown);
    assert_eq!(host.rows("steps_hour").unwrap(), before, "a part of an epoch is shown");

    let (over, is_over) = mpsc::channel();
    std::thread::spawn(move || {
        host.close();
        over.send(()).unwrap();
    });
    is_over.recv_timeout(SOON).expect("the workers do not end");
    fault
}

#[test]
fn a_frame_that_cannot_be_decoded_ends_the_run_and_shows_nothing_of_its_epoch() {
    let fault = ended_by(Kind::Unreadable);
    assert!(fault.contains("the step cannot be read"), "{fault}");
}

#[test]
fn a_job_that_panics_ends_the_run_and_shows_nothing_of_its_epoch() {
    let fault = ended_by(Kind::Panicking);
    assert!(fault.contains("panic"), "{fault}");
}

/// A verdict needs an event whose frame has since been damaged: no figure is guessed.
#[test]
fn an_event_that_cannot_be_read_back_ends_the_program_with_70() {
    let config = "[flow]\nread_back_bytes_max = \"1KiB\"\n[log]\ntail_bytes_max = \"4KiB\"\n";
    let home = Home::new(config);
    let mut server = home.start();
    let client = server.client();
    let events: Vec<_> = (0..200).map(|n| click(&format!("gone_{n}"), now_us())).collect();
    client.collect(&events).expect(202);
    // What comes after pushes the first out of memory.
    for nth in 0..20 {
        let more: Vec<_> = (0..200).map(|n| click(&format!("{nth}_{n}"), now_us())).collect();
        client.collect(&more).expect(202);
    }
    assert_eq!(client.settled().counted, 4_200);

    damage_first_frames(&home.data().join("journal"));
    client.judge(&[verdict("gone_7", "invalid", now_us())]).expect(202);
    let status = server.wait();
    assert_eq!(status.code(), Some(70), "{}", home.stderr());
    assert!(home.stderr().contains("read back"), "{}", home.stderr());
}

/// Changes a byte in every 200 of the first 64 KiB behind the segment's header.
fn damage_first_frames(journal: &Path) {
    let mut paths: Vec<_> = fs::read_dir(journal).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "seg"));
    paths.sort();
    let mut bytes = fs::read(&paths[0]).unwrap();
    let end = bytes.len().min(64 << 10);
    bytes[4_096..end].iter_mut().step_by(200).for_each(|byte| *byte ^= 0x10);
    let file = fs::OpenOptions::new().write(true).open(&paths[0]).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
}
