//! The spool: what is acknowledged while brokers are away reaches them later, in order.

use crate::world::{Mute, alone, await_end, beside, limit, open, settings, until};
use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    time::{Duration, Instant},
};
use trueup_kafka::{KafkaLog, KafkaSettings, Spool, SpoolSettings, system_clock};
use trueup_operators::log::{Append, Appended, Log, LogError, Topic, append_and_wait, contract};

fn spool(kafka: &Arc<KafkaLog>, dir: &Path, settings: SpoolSettings) -> Arc<Spool> {
    Arc::new(Spool::open(Arc::clone(kafka), dir, settings, system_clock()).unwrap())
}

fn small() -> SpoolSettings {
    let segment_bytes_max = 64 << 10;
    SpoolSettings { segment_bytes_max, away_after_ms: 300, ..SpoolSettings::default() }
}

fn quick(settings: KafkaSettings) -> KafkaSettings {
    KafkaSettings {
        delivery_timeout_ms: 8_000,
        ends_timeout_ms: 300,
        read_timeout_ms: 60_000,
        ..settings
    }
}

fn numbered(nth: u64) -> Append {
    let mut payload = nth.to_le_bytes().to_vec();
    payload.extend(contract::payload(nth, 700));
    contract::append(Topic::Events, (nth % 3) as u16, &payload)
}

fn number(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload[..8].try_into().unwrap())
}

type Answers = Receiver<(u64, Result<Vec<Appended>, LogError>)>;

/// Appends numbers without waiting.
fn send(log: &dyn Log, numbers: std::ops::Range<u64>) -> Answers {
    let (send, receive) = channel();
    for nth in numbers {
        let send = send.clone();
        let done = Box::new(move |result| send.send((nth, result)).unwrap());
        log.append(vec![numbered(nth)], done).unwrap();
    }
    receive
}

fn all_well(answers: Answers) -> u64 {
    answers.iter().map(|(nth, result)| assert!(result.is_ok(), "{nth}: {result:?}")).count() as u64
}

/// The numbers in each partition of Kafka, in order.
fn numbers(log: &KafkaLog) -> Vec<Vec<u64>> {
    let of = |partition| contract::all(log, Topic::Events, partition);
    (0..3).map(|p| of(p).iter().map(|f| number(&f.payload)).collect()).collect()
}

/// That Kafka has all numbers below `end`, and each first time in order; how many are repeats.
fn assert_all(log: &KafkaLog, end: u64) -> usize {
    until("the ends are known", || {
        log.ends(Topic::Events).iter().map(|at| at.offset).sum::<u64>() >= end
    });
    let mut repeats = 0;
    for (partition, found) in (0..3).zip(numbers(log)) {
        let mut seen = BTreeSet::new();
        let first: Vec<u64> = found.iter().copied().filter(|n| seen.insert(*n)).collect();
        let wanted: Vec<u64> = (0..end).filter(|n| n % 3 == partition).collect();
        assert_eq!(first, wanted, "partition {partition}");
        repeats += found.len() - wanted.len();
    }
    repeats
}

#[test]
fn a_spool_in_front_of_kafka_is_a_log_as_any_other() {
    let _beside = beside();
    let dir = tempfile::tempdir().unwrap();
    let kafka = Arc::new(open(&settings()));
    // Patient, since what is sent twice stands twice.
    let patient = SpoolSettings { away_after_ms: 20_000, ..small() };
    let spool = spool(&kafka, dir.path(), patient);
    contract::holds(&*spool);
    let status = spool.status();
    assert!(!status.away && status.drained_frames == 0, "all of it went to Kafka: {status:?}");
}

#[test]
fn while_kafka_is_away_the_spool_takes_everything_and_then_drains_in_order() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let kafka = Arc::new(open(&quick(settings())));
    let spool = spool(&kafka, dir.path(), small());
    assert_eq!(all_well(send(&*spool, 0..300)), 300);
    let mute = Mute::all();
    // Before anyone has noticed, and after.
    let began = Instant::now();
    assert_eq!(all_well(send(&*spool, 300..600)), 300);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let began = Instant::now();
    assert_eq!(all_well(send(&*spool, 600..2_000)), 1_400);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let status = spool.status();
    assert!(status.away && status.away_since.is_some(), "{status:?}");
    assert!(status.waiting_frames >= 1_700, "{status:?}");
    assert!(status.waiting_bytes > 1_700 * 768 && status.waiting_since.is_some(), "{status:?}");
    until("the drain is in trouble", || spool.status().trouble.is_some());
    drop(mute);
    // Load goes on while it drains and returns.
    let mut next = 2_000;
    until("it is back", || {
        assert_eq!(all_well(send(&*spool, next..next + 30)), 30);
        next += 30;
        !spool.status().away
    });
    let at = append_and_wait(&*spool, vec![numbered(next)]).unwrap();
    await_end(&*kafka, Topic::Events, (next % 3) as u16, at[0].offset + 1);
    let status = spool.status();
    assert_eq!((status.waiting_frames, status.waiting_bytes, status.trouble), (0, 0, None));
    assert!(status.drained_frames >= 1_700);
    let repeats = assert_all(&kafka, next + 1);
    println!("{} appended, {repeats} of them twice", next + 1);
    let journal = std::fs::read_dir(dir.path().join("journal")).unwrap();
    assert!(journal.count() <= 4, "drained segments are deleted");
}

#[test]
fn a_frame_that_kafka_refuses_holds_up_none_and_is_sent_again_by_a_later_start() {
    let _beside = beside();
    let dir = tempfile::tempdir().unwrap();
    let settings = quick(settings());
    let kafka = Arc::new(open(&settings));
    let spooler = spool(&kafka, dir.path(), small());
    // Whoever has the topic lowers its limit while we know the old one.
    limit(&settings.events_topic, 50_000);
    let large = contract::payload(4, 200_000);
    until("the limit holds", || {
        let probe = contract::append(Topic::Events, 2, &large);
        matches!(append_and_wait(&*kafka, vec![probe]), Err(LogError::Invalid { .. }))
    });
    let frame = |payload: &[u8]| contract::append(Topic::Events, 1, payload);
    let (first, third) = (contract::payload(1, 700), contract::payload(2, 900));
    let (send, receive) = channel();
    let portion = [frame(&first), frame(&large), frame(&third)];
    let done = Box::new(move |result| send.send(result).unwrap());
    spooler.append_spooled(portion.to_vec(), done).unwrap();
    receive.recv().unwrap().unwrap();
    until("it is drained", || spooler.status().waiting_frames == 0);
    until("it is direct", || !spooler.status().away);
    let status = spooler.status();
    assert_eq!((status.drained_frames, status.undeliverable_frames), (2, 1), "{status:?}");
    assert_eq!((status.waiting_bytes, &status.trouble), (0, &None));
    let kept: Vec<_> = std::fs::read_dir(dir.path().join("undeliverable")).unwrap().collect();
    assert_eq!(kept.len(), 1);
    assert!(kept[0].as_ref().unwrap().metadata().unwrap().len() > 200_000);
    let distinct = |log: &KafkaLog| -> BTreeSet<Vec<u8>> {
        let frames = contract::all(log, Topic::Events, 1).into_iter();
        frames.map(|frame| frame.payload.to_vec()).collect()
    };
    let two = BTreeSet::from([first.clone(), third.clone()]);
    until("the others are there", || distinct(&kafka) == two);
    append_and_wait(&*spooler, vec![frame(&third)]).unwrap();
    drop((spooler, kafka));

    // A start under the same limit sends it, keeps it, and goes on.
    let kafka = Arc::new(open(&settings));
    let spooler = spool(&kafka, dir.path(), small());
    append_and_wait(&*spooler, vec![frame(&first)]).unwrap();
    assert_eq!(spooler.status().undeliverable_frames, 1);
    drop((spooler, kafka));

    limit(&settings.events_topic, 1_000_000);
    let kafka = Arc::new(open(&settings));
    let spooler = spool(&kafka, dir.path(), small());
    // What the run before took last may still wait in the journal.
    until("it is sent", || {
        let status = spooler.status();
        !status.away && status.waiting_frames == 0 && status.undeliverable_frames == 0
    });
    let all = BTreeSet::from([first, third, large]);
    until("all are there", || distinct(&kafka) == all);
    assert_eq!(std::fs::read_dir(dir.path().join("undeliverable")).unwrap().count(), 0);
}

#[test]
fn a_full_spool_is_busy_and_takes_again_when_it_drains() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let kafka = Arc::new(open(&quick(settings())));
    let spool = spool(&kafka, dir.path(), SpoolSettings { spool_bytes_max: 200_000, ..small() });
    let mute = Mute::all();
    append_and_wait(&*spool, vec![numbered(0)]).unwrap();
    let mut next = 1;
    let busy = loop {
        match append_and_wait(&*spool, vec![numbered(next)]) {
            Ok(_) => next += 1,
            Err(error) => break error,
        }
    };
    match busy {
        LogError::Busy { waiting_bytes, limit_bytes: 200_000 } => {
            assert!((190_000..=200_000).contains(&waiting_bytes), "{waiting_bytes}");
        }
        other => panic!("{other:?}"),
    }
    drop(mute);
    until("it is drained", || !spool.status().away);
    for _ in 0..300 {
        append_and_wait(&*spool, vec![numbered(next)]).unwrap();
        next += 1;
    }
    assert_all(&kafka, next);
}

#[test]
fn what_waits_is_sent_by_the_next_process() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let settings = quick(settings());
    let kafka = Arc::new(open(&settings));
    let first = spool(&kafka, dir.path(), small());
    let mute = Mute::all();
    assert_eq!(all_well(send(&*first, 0..500)), 500);
    let before = first.status();
    drop((first, kafka));
    drop(mute);
    let kafka = Arc::new(open(&settings));
    let second = spool(&kafka, dir.path(), small());
    assert_eq!(before.waiting_frames, 500);
    // What comes now stays behind what waits.
    assert_eq!(all_well(send(&*second, 500..600)), 100);
    until("it is drained", || !second.status().away);
    assert_all(&kafka, 600);
    assert_eq!(second.status().waiting_bytes, 0);
}

#[test]
fn a_directory_is_free_when_its_spool_is_gone() {
    let _beside = beside();
    let dir = tempfile::tempdir().unwrap();
    let kafka = Arc::new(open(&quick(settings())));
    for nth in 0..5 {
        let first = spool(&kafka, dir.path(), small());
        until("it is direct", || !first.status().away);
        let (send, receive) = channel();
        let slow = Box::new(move |result| {
            send.send(result).unwrap();
            std::thread::sleep(Duration::from_millis(100));
        });
        first.append(vec![numbered(nth)], slow).unwrap();
        receive.recv().unwrap().unwrap();
    }
    assert_all(&kafka, 5);
}

#[test]
fn pixels_are_acknowledged_by_the_spool_and_arrive() {
    let _beside = beside();
    let dir = tempfile::tempdir().unwrap();
    let kafka = Arc::new(open(&settings()));
    let spool = spool(&kafka, dir.path(), SpoolSettings { away_after_ms: 20_000, ..small() });
    let pixels = spool.spooled_first();
    for nth in 0..300 {
        let log: &dyn Log = if nth % 2 == 0 { &*pixels } else { &*spool };
        append_and_wait(log, vec![numbered(nth)]).unwrap();
        assert!(!spool.status().away, "pixels do not lead the others astray");
    }
    until("all are in Kafka", || spool.status().waiting_frames == 0);
    assert_eq!(spool.status().drained_frames, 150);
    let mut found = numbers(&kafka).concat();
    found.sort_unstable();
    assert_eq!(found, (0..300).collect::<Vec<_>>());
}

/// Not a test of its own: the process that the next test kills, when it is told where to work.
fn be_killed(dir: &Path) -> ! {
    let topics = std::env::var("TRUEUP_SPOOL_TOPICS").unwrap();
    let kafka = Arc::new(open(&KafkaSettings { create: None, ..named(&topics) }));
    let spool = spool(&kafka, dir, small());
    let first: u64 = std::env::var("TRUEUP_SPOOL_FIRST").unwrap().parse().unwrap();
    for nth in first.. {
        let done = Box::new(move |result: Result<_, LogError>| {
            result.unwrap();
            println!("acknowledged {nth}");
        });
        if spool.append_spooled(vec![numbered(nth)], done).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if nth % 50 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    unreachable!("it is killed");
}

fn named(name: &str) -> KafkaSettings {
    KafkaSettings {
        events_topic: format!("{name}-events"),
        verdicts_topic: format!("{name}-verdicts"),
        metadata_topic: format!("{name}-metadata"),
        remap_topic: format!("{name}-remap"),
        ..settings()
    }
}

#[test]
fn a_process_killed_while_it_drains_loses_nothing_that_it_acknowledged() {
    if let Ok(dir) = std::env::var("TRUEUP_SPOOL_DIR") {
        be_killed(&PathBuf::from(dir));
    }
    let _beside = beside();
    let dir = tempfile::tempdir().unwrap();
    let topics = crate::world::unique("killed");
    let settings = named(&topics);
    let kafka = Arc::new(open(&settings));
    let mut acknowledged = BTreeSet::new();
    for round in 0..4 {
        let first: u64 = acknowledged.last().map_or(0, |last| last + 1_000_000);
        let name = "spool::a_process_killed_while_it_drains_loses_nothing_that_it_acknowledged";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env("TRUEUP_SPOOL_DIR", dir.path())
            .env("TRUEUP_SPOOL_TOPICS", &topics)
            .env("TRUEUP_SPOOL_FIRST", first.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let number = |line: String| line.strip_prefix("acknowledged ")?.parse::<u64>().ok();
        // At another place in each round; the drain runs all the time.
        let enough = 200 + round * 700;
        let heard = lines.by_ref().map_while(Result::ok).filter_map(number).take(enough);
        acknowledged.extend(heard);
        child.kill().unwrap();
        acknowledged.extend(lines.map_while(Result::ok).filter_map(number));
        child.wait().unwrap();
    }
    let spool = spool(&kafka, dir.path(), small());
    println!("{} acknowledged, {:?}", acknowledged.len(), spool.status());
    until("it is drained", || spool.status().waiting_frames == 0);
    let found: BTreeSet<u64> = numbers(&kafka).concat().into_iter().collect();
    let lost: Vec<_> = acknowledged.difference(&found).collect();
    assert!(acknowledged.len() > 3_000 && lost.is_empty(), "{lost:?}");
}
