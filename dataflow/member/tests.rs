//! Processes of a cluster in one process: each has a runtime, views and sockets of its own, and a
//! recorded log that all of them read. What they publish is compared, epoch by epoch, with what one
//! worker publishes that nobody stops.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    CheckpointSettings, Output, RollupSpec, Source,
    ads::{AdBatch, AdContribution},
    checkpoint::tests::{
        recorded::{record, rollups},
        resumed,
        simulated::repeat,
    },
    cluster::{ClusterSettings, Secret},
    engine::EngineSettings,
    epochs::tests::Shared,
    topology::AdJob,
};
use std::{collections::BTreeMap, net::SocketAddr, path::Path};
use timely::dataflow::operators::Inspect;
use trueup_log::Journal;
use trueup_operators::{metrics::Metrics, time::Epoch};

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

/// Each listens where the system lets it, and knows those before it: that is all it needs.
fn clusters(dir: &Path, processes: usize, threads: usize) -> Vec<Cluster> {
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut hosts = vec![anywhere.to_string(); processes];
    let open = |process: usize| {
        let secret = Secret::new(*b"known to all of these").unwrap();
        let number = dir.join(format!("generation{process}"));
        let settings = ClusterSettings {
            listen: Some(anywhere),
            threads,
            ..ClusterSettings::new("tests", secret, "1", process, hosts.clone(), number)
        };
        let cluster = Cluster::open(settings).unwrap();
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
    let shown = |member: &Member| member.tables().visible().map_or(0, |at| at.epoch);
    while members.iter().any(|member| shown(member) < upto) {
        let faults: Vec<String> = members.iter().filter_map(Member::fault).collect();
        assert!(faults.is_empty(), "{faults:?}");
        let told = || members.iter().map(|m| (shown(m), m.membership())).collect::<Vec<_>>();
        assert!(Instant::now() < until, "epoch {upto} is not visible: {:?}", told());
        std::thread::sleep(Duration::from_millis(5));
    }
    let from = members[0].current().get().loaded.as_ref().map_or(0, |loaded| loaded.epoch);
    let published = members.iter().map(|m| hashes(&*m.tables(), from, upto)).collect();
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
