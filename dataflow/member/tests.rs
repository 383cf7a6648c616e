//! Processes of a cluster in one process: each has a runtime, views and sockets of its own, and a
//! recorded log that all of them read. What they publish is compared, epoch by epoch, with what one
//! worker publishes that nobody stops.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    CheckpointSettings, Output, RollupSpec, Source,
    ads::{AdBatch, AdContribution},
    checkpoint::{
        keeper::{manifests, read_manifest},
        store::{Objects, Store},
        tests::{
            flaky::Flaky,
            recorded::{record, rollups},
            resumed,
            simulated::repeat,
        },
    },
    cluster::{ClusterSettings, Secret},
    engine::EngineSettings,
    epochs::tests::Shared,
    topology::AdJob,
};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};
use timely::dataflow::operators::Inspect;
use trueup_log::Journal;
use trueup_operators::{
    log::{Frame, Log, LogLayer, Topic},
    metrics::Metrics,
    time::Epoch,
};

const EPOCHS: Epoch = 120;
const PATIENCE: Duration = Duration::from_secs(60);

type Hashes = BTreeMap<Epoch, u64>;

fn settings(threads: usize, upto: Epoch, partitioned_by_id: bool) -> EngineSettings {
    EngineSettings { partitioned_by_id, ..resumed::settings(threads, upto) }
}

fn home(dir: &Path, store: Option<&Path>, engine: EngineSettings) -> Home<AdJob, 4> {
    home_of(AdJob { rollups: rollups() }, dir, store, engine)
}

/// On a log that does not know that all who read it are one process.
fn home_of<J: Job<4>>(
    job: J,
    dir: &Path,
    store: Option<&Path>,
    engine: EngineSettings,
) -> Home<J, 4> {
    let (journal, _) = Journal::open_read_only(dir).unwrap();
    resumed::home(job, Arc::new(Shared(journal)), store, engine)
}

/// A process, which knows those before it: that is all it needs. It listens where the system lets
/// it.
fn cluster(dir: &Path, process: usize, threads: usize, hosts: &[String]) -> Cluster {
    let secret = Secret::new(*b"known to all of these").unwrap();
    let number = dir.join(format!("generation{process}"));
    let settings = ClusterSettings {
        listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        threads,
        ..ClusterSettings::new("tests", secret, "1", process, hosts.to_vec(), number)
    };
    Cluster::open(settings).unwrap()
}

fn clusters(dir: &Path, processes: usize, threads: usize) -> Vec<Cluster> {
    let mut hosts = vec!["127.0.0.1:0".to_owned(); processes];
    let open = |process: usize| {
        let cluster = cluster(dir, process, threads, &hosts);
        hosts[process] = cluster.address().unwrap().to_string();
        cluster
    };
    (0..processes).map(open).collect()
}

fn hashes(tables: &dyn Tables, from: Epoch, upto: Epoch) -> Hashes {
    let hash = |epoch| (epoch, tables.epoch_hash(epoch).unwrap());
    (from + 1..=upto).map(hash).collect()
}

/// What one worker publishes that goes through the whole log at once.
fn whole(log: &Path) -> Hashes {
    let run = home(log, None, settings(1, EPOCHS, true)).alone().unwrap();
    run.engine.catch_up(PATIENCE).unwrap();
    run.engine.stop();
    hashes(&*run.tables, 0, EPOCHS)
}

/// A cluster that goes on to an epoch; where it began, and what each process has published.
fn session(
    log: &Path,
    store: &Path,
    [processes, threads]: [usize; 2],
    upto: Epoch,
    partitioned_by_id: bool,
) -> (Epoch, Vec<Hashes>) {
    let start = |cluster| {
        let home = home(log, Some(store), settings(threads, upto, partitioned_by_id));
        Member::start(home, cluster).unwrap()
    };
    let members: Vec<Member> = clusters(store, processes, threads).into_iter().map(start).collect();
    let until = Instant::now() + PATIENCE;
    let shown = |member: &Member| member.served().visible().map_or(0, |at| at.epoch);
    while members.iter().any(|member| shown(member) < upto) {
        let faults: Vec<String> = members.iter().filter_map(Member::fault).collect();
        assert!(faults.is_empty(), "{faults:?}");
        let told = || members.iter().map(|m| (shown(m), m.membership())).collect::<Vec<_>>();
        assert!(Instant::now() < until, "epoch {upto} is not visible: {:?}", told());
        std::thread::sleep(Duration::from_millis(5));
    }
    let from = members[0].current().get().loaded.as_ref().map_or(0, |loaded| loaded.epoch);
    let published = members.iter().map(|m| hashes(&**m.served(), from, upto)).collect();
    for member in &members {
        assert_eq!(member.membership().generations, 1);
        member.stop();
    }
    (from, published)
}

#[test]
fn what_is_published_does_not_depend_on_how_many_processes_there_are() {
    let test = "what_is_published_does_not_depend_on_how_many_processes_there_are";
    let (mut random, seed) = repeat(test);
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    record(&log, seed, EPOCHS);
    let whole = whole(&log);
    let mut resumed = 0;
    for shuffled in [false, true] {
        let store = dir.path().join(format!("store-{shuffled}"));
        // Each shape begins at the checkpoint of the one before.
        let (mut upto, mut path) = (0, format!("TRUEUP_SEED={seed}, shuffled: {shuffled}"));
        for shape in [[1, 1], [3, 1], [2, 2], [1, 2], [2, 1]] {
            upto = if shape == [2, 1] { EPOCHS } else { upto + 10 + random.below(20) };
            let (from, published) = session(&log, &store, shape, upto, !shuffled);
            path = format!("{path}; {shape:?}, {from}..={upto}");
            resumed += u64::from(from > 0);
            for (process, hashes) in published.iter().enumerate() {
                for (epoch, hash) in hashes {
                    assert_eq!(*hash, whole[epoch], "{path}: process {process}, epoch {epoch}");
                }
            }
        }
    }
    assert!(resumed >= 6, "{resumed} of 10 began with a checkpoint");
}

/// The ad job, with an operator that does not survive its first batch on worker 1.
struct Panics(AdJob);

impl Job<4> for Panics {
    type Batch = AdBatch;
    type Metrics = Metrics;

    fn rollups(&self) -> Vec<RollupSpec> {
        self.0.rollups()
    }

    fn topology<'s>(&self, source: Source<'s, AdBatch>) -> Output<'s, 4, Metrics> {
        let deduped = source.dedupe();
        let stream = deduped.stream();
        let worker = stream.scope().index();
        stream.inspect(move |_| assert_ne!(worker, 1, "as the test asked"));
        deduped.sum(AdContribution::new(&self.0.rollups)).accumulate().views()
    }
}

/// The next generation would meet the same batch: who panics ends, and the others wait for it.
#[test]
fn a_panic_is_the_fault_of_its_process_and_of_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    record(&log, 1, 20);
    let settings = EngineSettings { checkpoint: CheckpointSettings::OFF, ..settings(1, 20, true) };
    let start = |cluster| {
        let job = Panics(AdJob { rollups: rollups() });
        Member::start(home_of(job, &log, None, settings), cluster).unwrap()
    };
    let members: Vec<Member> = clusters(dir.path(), 2, 1).into_iter().map(start).collect();
    let until = Instant::now() + PATIENCE;
    while members[1].fault().is_none() {
        assert!(Instant::now() < until, "{:?}", members[1].membership());
        std::thread::sleep(Duration::from_millis(5));
    }
    let fault = members[1].fault().unwrap();
    assert!(fault.contains("panic"), "{fault}");
    while members[0].membership().together {
        assert!(Instant::now() < until, "{:?}", members[0].membership());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(members[0].fault(), None);
    let end = members[0].membership().last_end.unwrap();
    assert!(end.contains("process 1"), "{end}");
    members.iter().for_each(Member::stop);
}

/// Of what a member's store does not give nothing is known: it leaves, all meet again, and all
/// begin with the same checkpoint as if it had answered at once.
#[test]
fn a_member_whose_store_does_not_answer_for_a_while_costs_no_checkpoint() {
    let seed = repeat("a_member_whose_store_does_not_answer_for_a_while_costs_no_checkpoint").1;
    let dir = tempfile::tempdir().unwrap();
    let (log, store) = (dir.path().join("log"), dir.path().join("store"));
    record(&log, seed, 60);
    session(&log, &store, [2, 1], 50, true);
    let names = || manifests(&Objects::in_dir(&store).unwrap()).unwrap();
    let newest = names()[0];
    let objects: Arc<dyn Store> = Arc::new(Objects::in_dir(&store).unwrap());
    // More than the leader would wait for: of a checkpoint that is wrong it would be told then.
    let flaky = Flaky::new(objects, 1, u64::from(LOADS_MAX) + 2);
    let start = |(process, cluster): (usize, Cluster)| {
        let mut home = home(&log, Some(&store), settings(1, 60, true));
        if process == 1 {
            let (_, decided) = home.store.take().unwrap();
            home.store = Some((Arc::clone(&flaky) as Arc<_>, decided));
        }
        Member::start(home, cluster).unwrap()
    };
    let clusters = clusters(&store, 2, 1);
    let members: Vec<Member> = clusters.into_iter().enumerate().map(start).collect();
    let until = Instant::now() + PATIENCE;
    let shown = |member: &Member| member.served().visible().map_or(0, |at| at.epoch);
    while members.iter().any(|member| shown(member) < 60) {
        let told: Vec<_> = members.iter().map(|m| (shown(m), m.fault(), m.membership())).collect();
        assert!(Instant::now() < until, "epoch 60 is not visible: {told:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(flaky.is_well(), "not all has failed that was to fail");
    for member in &members {
        let run = member.current().get();
        let loaded = run.loaded.as_ref().map(|loaded| loaded.epoch);
        assert_eq!((loaded, run.passed_over), (Some(newest.epoch), 0));
        assert!(member.membership().generations > 1 && member.fault().is_none());
    }
    members.iter().for_each(Member::stop);
}

/// A log whose remap topic has lost its first rows, or loses them while it is read.
struct Shortened(Shared, AtomicU64);

impl LogLayer for Shortened {
    fn below(&self) -> &dyn Log {
        &self.0
    }

    fn first(&self, topic: Topic, partition: u16) -> u64 {
        let first = self.below().first(topic, partition);
        if topic == Topic::Remap { self.1.load(Ordering::SeqCst) } else { first }
    }

    fn read(
        &self,
        topic: Topic,
        partition: u16,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Frame>, LogError> {
        let first = LogLayer::first(self, topic, partition);
        if from < first {
            return Err(LogError::OutOfRange { topic, partition, offset: from, first, end: to });
        }
        self.below().read(topic, partition, from, to, bytes_max)
    }
}

/// What the oldest checkpoint needs is enough for all that comes: for a start, and for processes
/// that meet again when one of them was lost.
#[test]
fn processes_meet_again_on_a_log_that_has_lost_its_beginning() {
    let seed = repeat("processes_meet_again_on_a_log_that_has_lost_its_beginning").1;
    let dir = tempfile::tempdir().unwrap();
    let (recorded, store) = (dir.path().join("log"), dir.path().join("store"));
    record(&recorded, seed, 60);
    session(&recorded, &store, [2, 1], 50, true);
    let objects = Objects::in_dir(&store).unwrap();
    let names = manifests(&objects).unwrap();
    let needed = |&name| read_manifest(&objects, name).unwrap().at().unwrap().remap_offset;
    let first = names.iter().map(needed).min().unwrap();
    let log = || {
        let (journal, _) = Journal::open_read_only(&recorded).unwrap();
        Arc::new(Shortened(Shared(journal), AtomicU64::new(first)))
    };
    let start = |cluster| {
        let job = AdJob { rollups: rollups() };
        let home = resumed::home(job, log(), Some(&store), settings(1, 60, true));
        Member::start(home, cluster).unwrap()
    };
    let until = Instant::now() + PATIENCE;
    let wait = |members: &[Member], generation: u64| {
        let shown = |member: &Member| member.served().visible().map_or(0, |at| at.epoch);
        let is_there = |member: &Member| shown(member) == 60 && member.membership().together;
        let has_met = |member: &Member| member.membership().generation >= generation;
        while !members.iter().all(|member| is_there(member) && has_met(member)) {
            let told: Vec<_> = members.iter().map(|m| (m.fault(), m.membership())).collect();
            assert!(Instant::now() < until, "{told:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let mut members: Vec<Member> = clusters(&store, 2, 1).into_iter().map(start).collect();
    wait(&members, 1);
    let met = members[0].membership().generation;
    let lost = members.remove(1);
    lost.stop();
    drop(lost);
    let leader = members[0].cluster.address().unwrap().to_string();
    members.push(start(cluster(&store, 1, 1, &[leader, "127.0.0.1:0".to_owned()])));
    wait(&members, met + 1);
    members.iter().for_each(Member::stop);
}
