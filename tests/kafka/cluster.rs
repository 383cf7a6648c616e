//! Three processes that run the job together, Kafka in front, and everything done to them that
//! happens to machines: each view they show is the recomputed one at the end, and nothing that was
//! acknowledged is missing. What was published of the changes adds up to the same views.

use crate::{
    brokers::{alone, beside, control, count as brokers},
    changelog::{assert_views, caught_up},
    client::Client,
    fleet::{Fleet, signal},
    seed::{count, seed},
    server::{Server, TRUEUP},
    sse::{EventStream, Known},
    storm::Traffic,
    traffic::{click, now_us, wait_for},
};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
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
                        let began = Instant::now();
                        let status = server.terminate();
                        println!("  ended with {status} after {:?}", began.elapsed());
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
        // What is pending is an estimate: this process may not know of the last of them yet.
        let counts = wait_for("everything that was acknowledged", PATIENCE, || {
            let counts = server.client().settled();
            (counts.accepted >= sent).then_some(counts)
        });
        counts.check();
        println!("process {process}: {sent} acknowledged, {counts:?}");
        let ends = [counts.counted, counts.duplicate, counts.conflict, counts.quarantined];
        assert!(ends.iter().all(|&events| events > 0), "an end is missing: {counts:?}");
    }
    let marks = traffic.marks.lock().unwrap();
    let client = servers[0].client();
    let missing: Vec<&String> = marks
        .iter()
        .filter(|mark| {
            let id = mark.replace(' ', "%20");
            client.get(&format!("/v1/events/{id}")).status != 200
        })
        .collect();
    assert!(missing.is_empty(), "acknowledged, and not there: {missing:?} of {}", marks.len());
    let acknowledged = traffic.acknowledged.lock().unwrap();
    for _ in 0..ASKED {
        let (id, server) = (random.pick(&acknowledged), random.pick(&servers));
        server.client().get(&format!("/v1/events/{id}")).expect(200);
    }
    verify_and_stop(fleet, servers);
}

/// What each process shows is recomputed, and what was published of the changes is the same.
pub(crate) fn verify_and_stop(fleet: &Fleet, servers: Vec<Server<'_>>) {
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

/// What a process is told of another that is gone, and what it goes on with.
#[test]
fn while_a_process_is_away_the_other_takes_events_and_shows_what_it_has() {
    let _brokers = beside();
    let fleet = Fleet::new(2, CONFIG);
    fleet.configure(2, 1);
    let mut running: Running<'_> = (0..2).map(|process| Some(fleet.spawn(process))).collect();
    await_together(&mut running);
    let sent = |from: u64| -> Vec<Value> {
        (from..from + 50).map(|n| click(&format!("e{n}"), now_us() - 1_000_000)).collect()
    };
    let client = fleet.home(1).client();
    client.collect(&sent(0)).expect(202);
    assert_eq!(client.settled().counted, 50);
    let status = || client.get("/v1/status").expect(200).json;
    let mut stream = EventStream::subscribe(&client, "/v1/views/campaign_minute/subscribe");
    let mut known = Known::default();
    follow(&client, &mut stream, &mut known);

    // The one that leads.
    running[0].take().unwrap().kill();
    wait_for("a loss that is told", PATIENCE, || {
        (status()["cluster"]["together"] == false).then_some(())
    });
    let shown = status()["epoch"].as_u64().unwrap();
    client.collect(&sent(50)).expect(202);
    std::thread::sleep(Duration::from_millis(1_200));
    let told = status();
    assert_eq!(told["epoch"].as_u64(), Some(shown), "nothing new is shown: {told}");
    assert!(told["freshnessSeconds"].as_f64().unwrap() > 1.0, "and it says so: {told}");
    assert!(told["cluster"]["lastEnd"].as_str().unwrap().contains("process 0"), "{told}");
    client.get("/readyz").expect(200);
    let rows = client.view("campaign_minute", None).1;
    assert_eq!(rows.iter().map(|row| row["clicks"].as_i64().unwrap()).sum::<i64>(), 50);
    let event = client.get("/v1/events/e1");
    assert!([200, 503].contains(&event.status), "{}", event.json);

    running[0] = Some(fleet.spawn(0));
    await_together(&mut running);
    assert_eq!(client.settled().counted, 100);
    // The subscriber was not cut off, and has had every difference once.
    follow(&client, &mut stream, &mut known);
    let told = status();
    assert!(told["cluster"]["generations"].as_u64() >= Some(2), "{told}");
    for server in running.into_iter().flatten() {
        assert!(server.terminate().success());
    }
}

/// Takes what comes until the subscriber is where the server is; it knows the view then.
fn follow(client: &Client, stream: &mut EventStream, known: &mut Known) {
    let shown = client.get("/v1/status").expect(200).json["epoch"].as_u64();
    while known.epoch < shown {
        known.take(&stream.next().unwrap());
    }
    known.assert_is(&client.view("campaign_minute", known.epoch).1);
}

/// A job that knows nothing of processes, run by two of them.
#[test]
fn orders_run_on_kafka_in_two_processes_by_their_configuration_alone() {
    let _brokers = beside();
    let fleet = Fleet::new(2, "");
    fleet.configure(2, 1);
    let path = Path::new(TRUEUP).with_file_name("examples").join("orders");
    assert!(path.exists(), "{} is not built; run `cargo build --examples`", path.display());
    let children: Vec<Child> = (0..2)
        .map(|process| {
            let config = fleet.home(process).config_path();
            let text = fs::read_to_string(&config).unwrap();
            let data = fleet.home(process).data();
            fs::write(&config, format!("data_dir = \"{}\"\n{text}", data.display())).unwrap();
            let mut command = Command::new(&path);
            command.arg(config).arg("200").stdin(Stdio::null()).stdout(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let outputs: Vec<String> = children
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", output.status);
            String::from_utf8(output.stdout).unwrap()
        })
        .collect();
    assert_eq!(outputs[0], outputs[1]);
    let cents = |line: &str| -> i64 {
        line.trim_end_matches(']').rsplit(", ").next().unwrap().parse().unwrap()
    };
    let refunded: i64 = (0..200).step_by(10).map(|i| 100 + i).sum();
    let expected = (0..200).map(|i| 100 + i).sum::<i64>() - refunded;
    assert_eq!(outputs[0].lines().count(), 7, "{}", outputs[0]);
    assert_eq!(outputs[0].lines().map(cents).sum::<i64>(), expected, "{}", outputs[0]);
}
