//! Subscribers that are cut off, that are slow, and that do not read at all. A subscriber adds up
//! a snapshot and differences; whatever happens to its connection, the sum is the view, to the
//! row, and nobody else notices.

use crate::{
    client::Client,
    seed::{count, seed},
    server::Home,
    sse::{EventStream, Known, Subscribed},
    traffic::{now_us, send_until_taken, wait_for},
};
use std::{
    io::ErrorKind,
    net::Shutdown,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};
use trueup_generator::{
    chaos::{Chaos, ChaosSettings},
    random::Random,
};

const CONFIG: &str = r#"
[time]
tick = "20ms"
allowed_lateness = "2m"
correction_horizon = "10m"
[flow]
history = "30s"
[queries]
message_rows_max = 40
unread_ms_max = 1000
"#;
const VIEW: &str = "audience_minute";
/// Longer than any test here.
const SENDING_MAX: Duration = Duration::from_secs(600);

/// Sends contradictions until told to stop: rows appear, change and go back. It ends by itself
/// after a while, so that a test that has failed ends too.
fn send_until(over: &AtomicBool, client: &Client, seed: u64) {
    let mut chaos = Chaos::new(seed, ChaosSettings { born_invalid: false, ..Default::default() });
    let began = Instant::now();
    while !over.load(Ordering::Relaxed) && began.elapsed() < SENDING_MAX {
        let tick = chaos.tick(now_us(), 60, 40);
        for body in &tick.bodies {
            send_until_taken(client, "/v1/events/collect", body);
        }
        if let Some(body) = &tick.verdicts {
            send_until_taken(client, "/v1/verdicts", body);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Ends the traffic also when the test fails: the scope waits for it.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads until the subscriber is at an epoch and no message of another is open.
fn read_to(stream: &mut EventStream, known: &mut Known, epoch: u64) {
    while known.epoch.is_none_or(|at| at < epoch) {
        known.take(&stream.next().unwrap());
    }
}

/// Subscribes where `known` stopped, reads for a random while, and is cut off, often in the middle
/// of a message.
fn read_and_be_cut_off(client: &Client, path: &str, known: &mut Known, random: &mut Random) {
    let mut stream = match EventStream::open(client, path, known.epoch).unwrap() {
        Subscribed::Open(stream) => stream,
        Subscribed::Refused(status, body) => {
            panic!("refused after epoch {:?}: {status} {body}", known.epoch)
        }
    };
    let socket = stream.socket();
    let cut_us = random.below(120_000);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_micros(cut_us));
            socket.shutdown(Shutdown::Both).unwrap();
        });
        while let Ok(event) = stream.next() {
            known.take(&event);
        }
    });
    known.cut_off();
}

#[test]
fn cut_off_again_and_again_the_sum_is_the_view() {
    let seed = seed("cut_off_again_and_again_the_sum_is_the_view");
    let cuts = count("TRUEUP_IT_CUTS", 100);
    let home = Home::new(CONFIG);
    let server = home.start();
    let client = server.client();
    let (over, mut random) = (AtomicBool::new(false), Random::new(seed, 1));
    let path = format!("/v1/views/{VIEW}/subscribe");
    let filtered = format!("{path}?filter=campaignId:cmp_1");
    let (mut whole, mut part) = (Known::default(), Known::default());
    std::thread::scope(|scope| {
        scope.spawn(|| send_until(&over, &client, seed));
        let _over = EndOnDrop(&over);
        for nth in 0..cuts {
            read_and_be_cut_off(&client, &path, &mut whole, &mut random);
            if nth % 4 == 0 {
                // The longer it was away, the more differences come as one.
                read_and_be_cut_off(&client, &filtered, &mut part, &mut random);
            }
        }
    });
    client.settled();
    let (epoch, rows) = client.view(VIEW, None);
    for (path, known) in [(&path, &mut whole), (&filtered, &mut part)] {
        let Subscribed::Open(mut stream) = EventStream::open(&client, path, known.epoch).unwrap()
        else {
            panic!("refused after epoch {:?}", known.epoch)
        };
        read_to(&mut stream, known, epoch);
        assert!(known.len() > 5 && known.updates > 100, "too little came: {known:?}");
    }
    // An idle log only moves buckets on; each is compared as of its own epoch.
    whole.assert_is(&client.view(VIEW, whole.epoch).1);
    let of_campaign = client.view(VIEW, part.epoch).1;
    let of_campaign: Vec<_> =
        of_campaign.into_iter().filter(|row| row["campaignId"] == "cmp_1").collect();
    part.assert_is(&of_campaign);
    assert!(!rows.is_empty());
}

#[test]
fn a_slow_reader_gets_less_often_what_adds_up_to_the_same() {
    let seed = seed("a_slow_reader_gets_less_often_what_adds_up_to_the_same");
    let home = Home::new(CONFIG);
    let server = home.start();
    let client = server.client();
    let over = AtomicBool::new(false);
    let mut stream = EventStream::subscribe(&client, &format!("/v1/views/{VIEW}/subscribe"));
    let mut known = Known::default();
    std::thread::scope(|scope| {
        scope.spawn(|| send_until(&over, &client, seed));
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(3) {
            known.take(&stream.next().unwrap());
            std::thread::sleep(Duration::from_millis(30));
        }
        over.store(true, Ordering::Relaxed);
    });
    client.settled();
    let (epoch, _) = client.view(VIEW, None);
    read_to(&mut stream, &mut known, epoch);
    known.assert_is(&client.view(VIEW, known.epoch).1);
}

/// How many subscribers the server has cut off.
fn cut_off(client: &Client) -> u64 {
    let metrics = String::from_utf8(client.get("/metrics").expect(200).body).unwrap();
    let line = metrics.lines().find_map(|l| l.strip_prefix("trueup_subscribers_cut_off_total "));
    line.map_or(0, |number| number.parse().unwrap())
}

#[test]
fn one_who_does_not_read_is_cut_off_and_nobody_waits_for_it() {
    let seed = seed("one_who_does_not_read_is_cut_off_and_nobody_waits_for_it");
    let home = Home::new(CONFIG);
    let server = home.start();
    let client = server.client();
    let over = AtomicBool::new(false);
    let path = format!("/v1/views/{VIEW}/subscribe");
    let stalled: Vec<EventStream> =
        (0..4).map(|_| EventStream::subscribe(&client, &path)).collect();
    let mut reader = EventStream::subscribe(&client, &path);
    let mut known = Known::default();
    std::thread::scope(|scope| {
        scope.spawn(|| send_until(&over, &client, seed));
        let _end = EndOnDrop(&over);
        let (began, mut last) = (Instant::now(), Instant::now());
        // The kernel holds some megabytes for each of them before the server finds out.
        while cut_off(&client) < stalled.len() as u64 {
            let told = known.epoch;
            while known.epoch == told {
                known.take(&reader.next().unwrap());
            }
            let pause = last.elapsed();
            assert!(pause < Duration::from_secs(2), "the reader waited for {pause:?}");
            assert!(began.elapsed() < Duration::from_secs(60), "they are not cut off");
            last = Instant::now();
        }
    });
    client.settled();
    let epoch = client.view(VIEW, None).0;
    read_to(&mut reader, &mut known, epoch);
    known.assert_is(&client.view(VIEW, known.epoch).1);
    // Those that did not read have what the kernel held for them, and then an end.
    for mut stream in stalled {
        let end = loop {
            if let Err(error) = stream.next() {
                break error.kind();
            }
        };
        assert!(matches!(end, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{end}");
    }
}

#[test]
fn an_epoch_that_is_gone_is_refused_and_a_new_snapshot_is_whole() {
    let seed = seed("an_epoch_that_is_gone_is_refused_and_a_new_snapshot_is_whole");
    let home = Home::new(&CONFIG.replace("30s", "1s"));
    let server = home.start();
    let client = server.client();
    let over = AtomicBool::new(false);
    let path = format!("/v1/views/{VIEW}/subscribe");
    std::thread::scope(|scope| {
        scope.spawn(|| send_until(&over, &client, seed));
        let (first, _) = wait_for("an epoch", Duration::from_secs(5), || {
            let (epoch, rows) = client.view(VIEW, None);
            (epoch > 2 && !rows.is_empty()).then_some((epoch, rows))
        });
        let body = wait_for("the epoch is gone", Duration::from_secs(10), || {
            match EventStream::open(&client, &path, Some(first)).unwrap() {
                Subscribed::Open(_) => None,
                Subscribed::Refused(status, body) => Some((status, body)),
            }
        });
        assert_eq!(body.0, 410, "{body:?}");
        assert!(body.1["code"].is_string() && body.1["hint"].is_string(), "{body:?}");
        let old = client.get(&format!("/v1/views/{VIEW}?asOfEpoch={first}"));
        assert_eq!(old.status, 410, "{old:?}");
        let ahead = EventStream::open(&client, &path, Some(u64::MAX)).unwrap();
        assert!(matches!(ahead, Subscribed::Refused(400..=499, _)), "an epoch of the future");
        over.store(true, Ordering::Relaxed);
    });
    client.settled();
    let (mut stream, mut known) = (EventStream::subscribe(&client, &path), Known::default());
    read_to(&mut stream, &mut known, client.view(VIEW, None).0);
    known.assert_is(&client.view(VIEW, known.epoch).1);
}
