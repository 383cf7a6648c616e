//! Clusters whose processes are threads of this one, with sockets between them: what ends well, and
//! what is said when it cannot begin. Processes of their own are in `tests/it/mesh.rs`.
#![allow(clippy::unwrap_used)]

use super::*;
use std::{cell::RefCell, rc::Rc, time::Instant};
use timely::{
    WorkerConfig,
    dataflow::operators::{Exchange, Input, Inspect},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Members that listen at ports of their own; the hosts are known when all listen.
fn settings(dir: &tempfile::TempDir, process: usize, hosts: &[String]) -> ClusterSettings {
    let secret = Secret::new("a secret of the whole town").unwrap();
    let path = dir.path().join(format!("generation-{process}"));
    ClusterSettings {
        threads: 2,
        heartbeat: Duration::from_millis(100),
        patience: Some(PATIENCE),
        ..ClusterSettings::new("town", secret, "1", process, hosts.to_vec(), path)
    }
}

/// Addresses that were free a moment ago.
fn hosts(n: usize) -> Vec<String> {
    let listeners: Vec<_> = (0..n).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

/// The numbers below `n` that each worker gets, added up over all workers of a process.
fn sums(generation: &Generation, n: u64) -> u64 {
    let run = move |worker: &mut timely::worker::Worker, _: &Alive| {
        let (index, peers) = (worker.index() as u64, worker.peers() as u64);
        let sum = Rc::new(RefCell::new(0));
        let adding = Rc::clone(&sum);
        let (mut input, scope_input) = (timely::dataflow::InputHandle::<u64, _>::new(), adding);
        worker.dataflow::<u64, _, _>(|scope| {
            scope
                .input_from(&mut input)
                .container::<Vec<u64>>()
                .exchange(|n: &u64| *n)
                .inspect(move |n| *scope_input.borrow_mut() += n);
        });
        (0..n).filter(|n| n % peers == (index + 1) % peers).for_each(|n| input.send(n));
        drop(input);
        while worker.has_dataflows() {
            worker.step_or_park(Some(Duration::from_millis(20)));
        }
        *sum.borrow()
    };
    generation.execute(WorkerConfig::default(), run).unwrap().join().unwrap().into_iter().sum()
}

#[test]
fn what_ends_everywhere_ends_well_and_can_be_done_again() {
    let (dir, hosts) = (tempfile::tempdir().unwrap(), hosts(3));
    let members: Vec<_> = (0..3).map(|i| settings(&dir, i, &hosts)).collect();
    let run = |settings: ClusterSettings| {
        std::thread::spawn(move || {
            let cluster = Cluster::open(settings).unwrap();
            let rounds = 1..=3_u64;
            rounds.map(|round| one_round(&cluster, round)).collect::<Vec<u64>>()
        })
    };
    let threads: Vec<_> = members.into_iter().map(run).collect();
    let sums: Vec<Vec<u64>> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    for (i, n) in [10_000_u64, 20_000, 30_000].into_iter().enumerate() {
        assert_eq!(sums.iter().map(|sums| sums[i]).sum::<u64>(), n * (n - 1) / 2);
    }
}

fn one_round(cluster: &Cluster, round: u64) -> u64 {
    let generation = cluster.meet(0).unwrap();
    assert_eq!(generation.number(), round);
    let sum = sums(&generation, round * 10_000);
    generation.commit(round);
    assert!(generation.wait_visible(round, PATIENCE));
    assert!(generation.finish(PATIENCE), "{:?}", generation.failure());
    assert!(generation.execute(WorkerConfig::default(), |_, _| ()).is_err(), "once");
    sum
}

#[test]
fn a_meeting_that_never_ends_says_who_is_missing_and_who_was_refused() {
    let (dir, hosts) = (tempfile::tempdir().unwrap(), hosts(3));
    let patience = Some(Duration::from_secs(2));
    let leader = ClusterSettings { patience, ..settings(&dir, 0, &hosts) };
    let other = ClusterSettings { version: "2".into(), ..settings(&dir, 1, &hosts) };
    let leader = Cluster::open(leader).unwrap();
    let meeting = std::thread::spawn(move || leader.meet(0).map(|g| g.number()));
    let refused = Cluster::open(other).unwrap().meet(0).map(|g| g.number()).unwrap_err();
    assert!(matches!(&refused, MeetError::Refused { process: 0, refusal }
        if refusal.refused == Refused::Version));
    let said = meeting.join().unwrap().unwrap_err().to_string();
    for part in ["missing: [1, 2]", "process 1 has the version `2`, process 0 has `1`"] {
        assert!(said.contains(part), "`{said}` does not say `{part}`");
    }
}

#[test]
fn a_meeting_can_be_stopped() {
    let (dir, hosts) = (tempfile::tempdir().unwrap(), hosts(2));
    for process in [0, 1] {
        let cluster = Arc::new(Cluster::open(settings(&dir, process, &hosts)).unwrap());
        let meeting = Arc::clone(&cluster);
        let meeting = std::thread::spawn(move || meeting.meet(0).map(|g| g.number()));
        std::thread::sleep(Duration::from_millis(100));
        let stopped = Instant::now();
        cluster.stop();
        assert!(matches!(meeting.join().unwrap(), Err(MeetError::Stopped)));
        assert!(stopped.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn settings_that_cannot_be_are_refused_by_their_value() {
    let (dir, hosts) = (tempfile::tempdir().unwrap(), hosts(2));
    let good = || settings(&dir, 1, &hosts);
    let short = Duration::from_millis(100);
    let rpc = RpcLimits { response_bytes_max: 1 << 30, ..RpcLimits::default() };
    let cases = [
        (ClusterSettings { process: 2, ..good() }, "process 2 of 2"),
        (ClusterSettings { hosts: Vec::new(), ..good() }, "0 hosts"),
        (ClusterSettings { threads: 65, ..good() }, "65 worker threads"),
        (ClusterSettings { cluster: String::new(), ..good() }, "the cluster id ``"),
        (ClusterSettings { version: "v".repeat(129), ..good() }, "the version `vvv"),
        (ClusterSettings { timeout: short, ..good() }, "a timeout of 100ms"),
        (ClusterSettings { rpc, ..good() }, "response_bytes_max is 1073741824"),
    ];
    for (settings, says) in cases {
        let said = Cluster::open(settings).map(|_| ()).unwrap_err().to_string();
        assert!(said.contains(says), "`{said}` does not say `{says}`");
    }
    assert!(Secret::new("short").unwrap_err().contains("5 bytes"));
    std::fs::write(dir.path().join("generation-1"), "generation many").unwrap();
    let said = Cluster::open(good()).map(|_| ()).unwrap_err().to_string();
    assert!(said.contains("generation-1 holds no line"), "{said}");
}

#[test]
fn the_version_names_the_package_and_the_binary() {
    let version = binary_version().unwrap();
    let (package, hash) = version.split_once('+').unwrap();
    assert_eq!(package, env!("CARGO_PKG_VERSION"));
    assert!(hash.len() == 16 && u64::from_str_radix(hash, 16).is_ok(), "{version}");
    assert_eq!(binary_version().unwrap(), version);
}
