//! Three processes that run the job together, Kafka in front, and everything done to them that
//! happens to machines: each view they show is the recomputed one at the end, and nothing that was
//! acknowledged is missing. What was published of the changes adds up to the same views.

use crate::{
    brokers::{alone, beside, control, count as brokers},
    changelog::{assert_views, caught_up},
    fleet::{Fleet, signal},
    seed::{count, seed},
    server::Server,
    storm::Traffic,
    traffic::wait_for,
};
use rustix::process::Signal;
use std::{
    sync::{LazyLock, atomic::Ordering},
    time::{Duration, Instant},
};
use trueup_generator::random::Random;

const CONFIG: &str = r#"
[time]
allowed_lateness = "2m"
correction_horizon = "10m"
future_skew_max = "5m"
[[rollup]]
name = "campaign"
dimensions = ["campaignId"]
[[rollup]]
name = "campaign_country_device"
dimensions = ["campaignId", "country", "deviceType"]
"#;
const PROCESSES: usize = 3;
/// Of the acknowledged events, so many are asked for one by one.
const ASKED: usize = 60;
const PATIENCE: Duration = Duration::from_secs(120);

/// So that what was done can be compared with what the processes say.
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The processes that run; none where one is not wanted.
type Running<'f> = Vec<Option<Server<'f>>>;

/// What is done to them.
#[derive(Clone, Copy, Debug)]
enum Blow {
    /// A process is killed, and started again after a while.
    Kill,
    /// It is stopped for a while: connected, and mute.
    Stop,
    /// It is cut off from the others for a while.
    Cut,
    /// A broker is killed and started again.
    Broker,
    /// All are stopped, and another number of them starts with another number of workers.
    Rescale,
}

const BLOWS: [Blow; 5] = [Blow::Kill, Blow::Stop, Blow::Cut, Blow::Broker, Blow::Rescale];

fn start(fleet: &Fleet, processes: usize, threads: usize) -> Running<'_> {
    fleet.configure(processes, threads);
    (0..PROCESSES).map(|process| (process < processes).then(|| fleet.spawn(process))).collect()
}

/// Waits until all are in one generation and show everything.
fn await_together(running: &mut Running<'_>) {
    for server in running.iter_mut().flatten() {
        server.wait_until_ready();
    }
    for server in running.iter().flatten() {
        wait_for("all processes together", PATIENCE, || {
            let status = server.client().get("/v1/status").expect(200).json;
            let is_together = status["cluster"]["together"] == true && status["caughtUp"] == true;
            is_together.then_some(())
        });
    }
}

/// A process that found a fault in itself has ended, as it should; an operator starts it again.
fn supervise<'f>(fleet: &'f Fleet, running: &mut Running<'f>) {
    for (process, slot) in running.iter_mut().enumerate() {
        if let Some(status) = slot.as_mut().and_then(Server::ended) {
            println!("process {process} ended with {status}");
            assert_eq!(status.code(), Some(70), "{}", fleet.home(process).stderr());
            *slot = Some(fleet.spawn(process));
        }
    }
}

/// Sleeps, and starts what ends meanwhile.
fn pass<'f>(fleet: &'f Fleet, running: &mut Running<'f>, ms: u64) {
    let until = Instant::now() + Duration::from_millis(ms);
    while Instant::now() < until {
        supervise(fleet, running);
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn strike<'f>(fleet: &'f Fleet, running: &mut Running<'f>, blow: Blow, random: &mut Random) {
    let present: Vec<usize> = (0..PROCESSES).filter(|&p| running[p].is_some()).collect();
    let process = *random.pick(&present);
    // Shorter and longer than what a lost process is found by.
    let ms = 200 + random.below(4_000);
    println!("{:?}: {blow:?} {process} for {ms} ms", BEGAN.elapsed());
    match blow {
        Blow::Kill => {
            running[process].take().unwrap().kill();
            pass(fleet, running, ms);
            running[process] = Some(fleet.spawn(process));
        }
        Blow::Stop => {
            signal(running[process].as_ref().unwrap(), Signal::STOP);
            std::thread::sleep(Duration::from_millis(ms));
            signal(running[process].as_ref().unwrap(), Signal::CONT);
        }
        Blow::Cut => {
            fleet.cut_off(process, true);
            pass(fleet, running, ms);
            fleet.cut_off(process, false);
        }
        Blow::Broker => {
            let broker = 1 + random.below(brokers() as u64) as usize;
            control("kill", broker);
            pass(fleet, running, ms);
            control("restart", broker);
        }
        Blow::Rescale => {
            let (processes, threads) = (1 + random.below(3) as usize, 1 + random.below(2) as usize);
            println!("  to {processes} × {threads}");
            for server in running.iter_mut().filter_map(Option::take) {
                match random.chance(0.5) {
                    true => server.kill(),
                    false => {
                        let status = server.terminate();
                        assert!(status.code().is_some_and(|code| [0, 70].contains(&code)));
                    }
                }
            }
            *running = start(fleet, processes, threads);
        }
    }
}

#[test]
fn whatever_happens_to_its_processes_a_cluster_loses_nothing_and_counts_nothing_twice() {
    let _brokers = alone();
    let seed =
        seed("whatever_happens_to_its_processes_a_cluster_loses_nothing_and_counts_nothing_twice");
    let seconds = count("TRUEUP_IT_CHAOS_S", 60);
    let mut random = Random::new(seed, 1);
    let fleet = Fleet::new(PROCESSES, CONFIG);
    let mut traffic = Traffic::new(seed, 200_000);
    // What three processes without optimisation bear on two cores, each with all views.
    traffic.pause = Duration::from_millis(250);
    traffic.bodies_left.store(u64::MAX, Ordering::Relaxed);
    let mut running = start(&fleet, PROCESSES, 1);
    await_together(&mut running);
    std::thread::scope(|scope| {
        for process in 0..PROCESSES {
            let client = fleet.home(process).client();
            let traffic = &traffic;
            scope.spawn(move || traffic.send(&client));
        }
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut nth = 0;
        while Instant::now() < until {
            // Each kind once, then whatever comes.
            let blow = BLOWS.get(nth).copied().unwrap_or_else(|| *random.pick(&BLOWS));
            strike(&fleet, &mut running, blow, &mut random);
            let ms = 500 + random.below(4_000);
            pass(&fleet, &mut running, ms);
            nth += 1;
        }
        // A spool is drained by the process that has it: all come back before the senders end.
        for server in running.iter_mut().filter_map(Option::take) {
            server.kill();
        }
        running = start(&fleet, PROCESSES, 1);
        await_together(&mut running);
        traffic.bodies_left.store(0, Ordering::Relaxed);
    });
    await_together(&mut running);
    examine(&fleet, running, &traffic, &mut random);
}

/// Everything is there, everywhere, and right.
fn examine(fleet: &Fleet, running: Running<'_>, traffic: &Traffic, random: &mut Random) {
    let servers: Vec<Server<'_>> = running.into_iter().flatten().collect();
    for server in &servers {
        wait_for("a spool is drained", PATIENCE, || {
            let status = server.client().get("/v1/status").expect(200).json;
            (status["log"]["spool"]["waitingFrames"] == 0).then_some(())
        });
    }
    let sent = traffic.acknowledged_events.load(Ordering::Relaxed) as i64;
    for (process, server) in servers.iter().enumerate() {
        let counts = server.client().settled();
        counts.check();
        println!("process {process}: {sent} acknowledged, {counts:?}");
        assert!(counts.accepted >= sent, "process {process}: {sent} acknowledged, {counts:?}");
        let ends = [counts.counted, counts.duplicate, counts.conflict, counts.quarantined];
        assert!(ends.iter().all(|&events| events > 0), "an end is missing: {counts:?}");
    }
    let acknowledged = traffic.acknowledged.lock().unwrap();
    for _ in 0..ASKED {
        let (id, server) = (random.pick(&acknowledged), random.pick(&servers));
        server.client().get(&format!("/v1/events/{id}")).expect(200);
    }
    for (process, server) in servers.iter().enumerate() {
        let url = format!("http://{}", server.client().address());
        let (code, out, err) = fleet.home(process).run(&["verify", "--server", &url]);
        assert_eq!(code, Some(0), "process {process}: {out}\n{err}");
    }
    let client = servers[0].client();
    println!("{}", caught_up(&client));
    let consumed = assert_views(&client, &fleet.changelog);
    println!("{} messages in {} transactions", consumed.messages, consumed.uppers.len());
    for server in servers {
        assert!(server.terminate().success());
    }
}

#[test]
fn a_cluster_shows_everywhere_what_was_sent_anywhere() {
    let _brokers = beside();
    let seed = seed("a_cluster_shows_everywhere_what_was_sent_anywhere");
    let fleet = Fleet::new(2, CONFIG);
    let traffic = Traffic::new(seed, 20_000);
    fleet.configure(2, 2);
    let mut running: Running<'_> = (0..2).map(|process| Some(fleet.spawn(process))).collect();
    await_together(&mut running);
    std::thread::scope(|scope| {
        for process in 0..2 {
            let client = fleet.home(process).client();
            let traffic = &traffic;
            scope.spawn(move || traffic.send(&client));
        }
    });
    examine(&fleet, running, &traffic, &mut Random::new(seed, 2));
}
