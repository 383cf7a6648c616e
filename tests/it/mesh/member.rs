//! A member of a cluster as a process of its own: what the test sees of it, and what runs in it.

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};
use timely::{
    WorkerConfig,
    dataflow::{
        InputHandle, ProbeHandle,
        operators::{Exchange, Input, Inspect, Probe},
    },
    worker::Worker,
};
use trueup::cluster::{
    Alive, CallError, Cluster, ClusterSettings, Generation, MeetError, RpcLimits, Secret, Workers,
};

/// Without a sign of life for this long a member is lost. Long enough for a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(2_000);
/// How long a member may take to say what it is expected to.
const PATIENCE: Duration = Duration::from_secs(60);
const VARIABLE: &str = "TRUEUP_IT_MEMBER";
/// Workers of each process.
pub(crate) const THREADS: usize = 2;
const ANSWER_BYTES_MAX: usize = 1000;

/// What a member is told.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) cluster: String,
    pub(crate) secret: String,
    pub(crate) version: String,
    pub(crate) process: usize,
    pub(crate) hosts: Vec<String>,
    pub(crate) listen: String,
    pub(crate) threads: usize,
    pub(crate) number_path: PathBuf,
}

/// A running member; killed when the test is over.
pub(crate) struct Member {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    process: usize,
}

impl Member {
    pub(crate) fn start(plan: Plan) -> Member {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "mesh::member::a_member_alone_is_a_cluster", "--nocapture"])
            .env(VARIABLE, serde_json::to_string(&plan).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Member { child, stdin, lines, process: plan.process }
    }

    /// The rest of the next line that begins with this word; a panic of the member's fails.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, word: &str) -> String {
        let until = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let process = self.process;
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("process {process}: no `{word}`: {seen:#?}")
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("process {process} ended before `{word}`: {seen:#?}")
                }
            };
            let Some(said) = line.strip_prefix("member: ") else { continue };
            assert!(!said.starts_with("panic"), "process {process}: {said}");
            if let Some(rest) = said.strip_prefix(word) {
                return rest.trim().to_owned();
            }
            seen.push(said.to_owned());
        }
    }

    #[track_caller]
    pub(crate) fn number(&mut self, word: &str) -> u64 {
        self.wait_for(word).parse().unwrap()
    }

    pub(crate) fn say(&mut self, what: &str) {
        writeln!(self.stdin, "{what}").unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn tell(line: impl std::fmt::Display) {
    println!("\nmember: {line}");
}

fn settings(plan: &Plan) -> ClusterSettings {
    let secret = Secret::new(plan.secret.clone()).unwrap();
    let (hosts, path) = (plan.hosts.clone(), plan.number_path.clone());
    let (cluster, version) = (plan.cluster.clone(), plan.version.clone());
    ClusterSettings {
        listen: Some(plan.listen.parse().unwrap()),
        threads: plan.threads,
        heartbeat: TIMEOUT / 8,
        timeout: TIMEOUT,
        rpc: RpcLimits {
            calls_max: 4,
            waiting_max: 1,
            threads: 1,
            request_bytes_max: 1000,
            response_bytes_max: ANSWER_BYTES_MAX,
        },
        ..ClusterSettings::new(cluster, secret, version, plan.process, hosts, path)
    }
}

/// As a process of another test it is the member that it is told to be; by itself, one process that
/// is all of its cluster.
#[test]
fn a_member_alone_is_a_cluster() {
    if let Ok(plan) = std::env::var(VARIABLE) {
        return live(&serde_json::from_str(&plan).unwrap());
    }
    let dir = tempfile::tempdir().unwrap();
    let listen = crate::server::free_port().to_string();
    let cluster = Cluster::open(settings(&Plan {
        cluster: "alone".into(),
        secret: "nobody else is there".into(),
        version: "1".into(),
        process: 0,
        hosts: vec![listen.clone()],
        listen,
        threads: THREADS,
        number_path: dir.path().join("generation"),
    }))
    .unwrap();
    for floor in [0, 7] {
        let generation = Arc::new(cluster.meet(floor).unwrap());
        assert!(generation.number() > floor);
        assert!(matches!(cluster.meet(0), Err(MeetError::Running(n)) if n == generation.number()));
        let workers = work(&generation);
        assert!(generation.wait_visible(3, PATIENCE));
        generation.fault("enough");
        let rounds = workers.join().unwrap();
        assert!(rounds.iter().all(|rounds| *rounds >= 3), "{rounds:?}");
    }
}

/// Meets and works until it is killed or refused.
fn live(plan: &Plan) {
    std::panic::set_hook(Box::new(|panic| tell(format!("panic {panic}"))));
    let (said, orders) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if said.send(line).is_err() {
                return;
            }
        }
        // The test is over.
        std::process::exit(0);
    });
    let cluster = Cluster::open(settings(plan)).unwrap();
    tell("opened");
    loop {
        let generation = match cluster.meet(0) {
            Ok(generation) => Arc::new(generation),
            Err(error) => return tell(format!("refused {error}")),
        };
        tell(format!("met {}", generation.number()));
        let own = format!("{}", plan.process);
        generation.serve(Arc::new(move |from, question| answer(&own, from, question))).unwrap();
        let workers = work(&generation);
        obey(&generation, &orders);
        let failure = generation.failure();
        let joined = workers.join();
        if let Err(error) = joined {
            tell(format!("panic {error}"));
        }
        let alone = Arc::into_inner(generation).map(drop).is_some();
        let said = failure.map_or_else(|| "by itself".to_owned(), |failure| failure.to_string());
        tell(format!("over {said}"));
        assert!(alone, "the generation is kept by someone");
        let (threads, sockets) = left();
        tell(format!("left threads {threads}, sockets {sockets}"));
    }
}

/// Says what is visible, and does what the test says, until the generation is over.
fn obey(generation: &Arc<Generation>, orders: &Receiver<String>) {
    let mut seen = 0;
    while generation.wait(Duration::from_millis(10)).is_none() {
        let visible = generation.visible();
        if visible > seen {
            let least = generation.committed().into_iter().min().unwrap();
            assert!(generation.process() != 0 || visible <= least, "{visible} > {least}");
            tell(format!("visible {visible}"));
            seen = visible;
        }
        match orders.try_recv().as_deref() {
            Ok("fault") => generation.fault("the test says so"),
            Ok("leave") => generation.leave(),
            Ok("ask") => tell(format!("asked {}", ask(generation))),
            _ => {}
        }
    }
}

/// Threads of timely's and of links, and sockets beside the listener; given a moment to end.
fn left() -> (usize, usize) {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let ours = |name: &str| name.starts_with("timely:") || name.starts_with("link:");
        let threads = in_proc("task", |path| fs::read_to_string(path.join("comm")).ok());
        let threads = threads.iter().filter(|name| ours(name)).count();
        let files = in_proc("fd", |path| Some(fs::read_link(path).ok()?.display().to_string()));
        let sockets = files.iter().filter(|file| file.starts_with("socket:")).count() - 1;
        if (threads, sockets) == (0, 0) || Instant::now() > until {
            return (threads, sockets);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What this process has of a kind; what ends while it is looked at is left out.
fn in_proc(kind: &str, name: impl Fn(PathBuf) -> Option<String>) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/self/{kind}")).unwrap();
    entries.filter_map(|entry| name(entry.ok()?.path())).collect()
}

/// Workers that exchange numbers in rounds, and commit the rounds that all workers of the process
/// have ended. What each returns is how many rounds it ended.
fn work(generation: &Arc<Generation>) -> Workers<u64> {
    let ended: [AtomicU64; THREADS] = Default::default();
    // The workers must not keep alive what waits for them.
    let weak = Arc::downgrade(generation);
    let run = move |worker: &mut Worker, alive: &Alive| {
        let own = worker.index() % THREADS;
        rounds(worker, alive, |round| {
            ended[own].store(round, Ordering::Relaxed);
            let least = ended.iter().map(|round| round.load(Ordering::Relaxed)).min();
            if let (Some(generation), Some(least)) = (weak.upgrade(), least) {
                generation.commit(least);
            }
        })
    };
    generation.execute(WorkerConfig::default(), run).unwrap()
}

/// What a worker sends to each worker in a round.
const NUMBERS: u64 = 2_000;

fn rounds(worker: &mut Worker, alive: &Alive, commit: impl Fn(u64)) -> u64 {
    let (index, peers) = (worker.index() as u64, worker.peers() as u64);
    let mut input = InputHandle::<u64, _>::new();
    let probe = ProbeHandle::new();
    let got = std::rc::Rc::new(std::cell::Cell::new(0_u64));
    let counted = std::rc::Rc::clone(&got);
    worker.dataflow::<u64, _, _>(|scope| {
        scope
            .input_from(&mut input)
            .container::<Vec<u64>>()
            .exchange(|n: &u64| *n)
            .inspect(move |n| {
                assert_eq!(n % peers, index, "a number went astray");
                counted.set(counted.get() + 1);
            })
            .probe_with(&probe);
    });
    for round in 1.. {
        (0..NUMBERS * peers).for_each(|n| input.send(n));
        input.advance_to(round);
        while probe.less_than(&round) {
            if alive.is_over() {
                return round - 1;
            }
            worker.step_or_park(Some(Duration::from_millis(20)));
        }
        assert!(got.get() >= round * NUMBERS * peers, "round {round} is not whole");
        commit(round);
    }
    unreachable!("rounds do not end")
}

fn answer(own: &str, from: usize, question: &[u8]) -> Result<Vec<u8>, String> {
    match question {
        b"who" => Ok(format!("{own} to {from}").into_bytes()),
        b"refuse" => Err("not this".into()),
        b"large" => Ok(vec![1; ANSWER_BYTES_MAX + 1]),
        b"slow" => {
            std::thread::sleep(Duration::from_millis(500));
            Ok(Vec::new())
        }
        other => Ok(other.to_vec()),
    }
}

/// Asks process 1 all that there is to ask; what was not as expected.
fn ask(generation: &Generation) -> String {
    let rpc = generation.rpc();
    let call = |process, question: &[u8]| rpc.call(process, question, PATIENCE);
    let refused = |text: &str| Err(CallError::Refused(1, text.into()));
    let slow = rpc.call(1, b"slow", Duration::from_millis(50));
    let checks = [
        (call(1, b"who"), Ok(b"1 to 0".to_vec())),
        (call(0, b"who"), Ok(b"0 to 0".to_vec())),
        (call(1, &[7; 1000]), Ok(vec![7; 1000])),
        (call(1, &[7; 1001]), Err(CallError::TooLarge(1001, 1000))),
        (call(1, b"refuse"), refused("not this")),
        (call(1, b"large"), refused("the answer has 1001 bytes; the limit is 1000")),
        (call(2, b"who"), Err(CallError::NoProcess(2))),
        (slow, Err(CallError::Late { process: 1, within_ms: 50 })),
    ];
    for (got, expected) in checks {
        if got != expected {
            return format!("{got:?}, not {expected:?}");
        }
    }
    // One is answered, one waits, and further ones are told so at once: here or there.
    let many: Vec<_> = (0..12)
        .map(|_| {
            let rpc = rpc.clone();
            std::thread::spawn(move || rpc.call(1, b"slow", PATIENCE))
        })
        .collect();
    let many: Vec<_> = many.into_iter().map(|call| call.join().unwrap()).collect();
    let busy = |call: &&Result<_, CallError>| match call {
        Err(CallError::Busy(1)) => true,
        Err(CallError::Refused(1, text)) => text.contains("asked too much"),
        _ => false,
    };
    let (answered, busy) =
        (many.iter().filter(|c| c.is_ok()).count(), many.iter().filter(busy).count());
    match answered >= 1 && busy >= 8 && answered + busy == 12 {
        true => "all as expected".into(),
        false => format!("{many:?}"),
    }
}
