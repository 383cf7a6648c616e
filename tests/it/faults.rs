//! What happens to machines: a full disk, a write that was torn, a bit that flipped, a clock that
//! jumps back, a second server, an operator who stops the first. Nothing acknowledged is lost,
//! nothing damaged is passed over in silence, and who has to act is told what about.

use crate::{
    client::Client,
    server::Home,
    sse::EventStream,
    traffic::{click, now_us, send_until_taken, wait_for},
};
use rustix::process::{Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};
use trueup_generator::{event::Event, frames::Layout};
use trueup_log::{Journal, Settings};
use trueup_operators::{
    event::EventType,
    log::{Log, Topic, append_and_wait},
    time::{HOUR_US, LogTime, SECOND_US},
};

/// One segment takes the whole test.
const CONFIG: &str = "[log]\nsegment_bytes_max = \"64MiB\"\n";

/// Sends this many clicks, one body each, and returns their ids.
fn send(client: &Client, prefix: &str, clicks: usize) -> Vec<String> {
    let ids: Vec<String> = (0..clicks).map(|n| format!("{prefix}_{n}")).collect();
    for id in &ids {
        client.collect(&[click(id, now_us())]).expect(202);
    }
    ids
}

#[track_caller]
fn all_known(client: &Client, ids: &[String]) {
    for id in ids {
        client.get(&format!("/v1/events/{id}")).expect(200);
    }
}

/// The journal's segment files, oldest first.
fn segments(data: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data.join("journal")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "seg"));
    paths.sort();
    paths
}

#[test]
fn a_second_server_on_the_same_directory_does_not_start() {
    let home = Home::new(CONFIG);
    let server = home.start();
    let data = home.data().display().to_string();
    let (code, _, stderr) = home.run(&["serve", "--listen", "127.0.0.1:1"]);
    assert!(![None, Some(0)].contains(&code), "it ended with {code:?}: {stderr}");
    assert!(stderr.contains(&data), "{data} is not named: {stderr}");
    let ids = send(&server.client(), "still", 3);
    server.client().settled();
    all_known(&server.client(), &ids);
}

#[test]
fn sigterm_drains() {
    let home = Home::new(CONFIG);
    let server = home.start();
    let (over, taken) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for sender in 0..4 {
            let (client, over, taken) = (home.client(), &over, &taken);
            scope.spawn(move || {
                for n in 0.. {
                    let id = format!("drained_{sender}_{n}");
                    let body = json!({ "events": [click(&id, now_us())] }).to_string();
                    match client.try_post("/v1/events/collect", &[], body.as_bytes()) {
                        Ok(answer) if answer.status == 202 => taken.lock().unwrap().push(id),
                        Ok(answer) => assert_eq!(answer.status, 503, "{answer:?}"),
                        Err(_) if over.load(Ordering::Relaxed) => break,
                        Err(_) => {}
                    }
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        wait_for("some events", Duration::from_secs(20), || {
            (taken.lock().unwrap().len() > 100).then_some(())
        });
        let status = server.terminate();
        over.store(true, Ordering::Relaxed);
        assert_eq!(status.code(), Some(0), "{}", home.stderr());
    });
    let ids = taken.into_inner().unwrap();
    let server = home.start();
    let client = server.client();
    let counts = client.settled();
    counts.check();
    assert!(counts.counted >= ids.len() as i64, "{} were taken: {counts:?}", ids.len());
    all_known(&client, &ids);
}

/// Without the end of its subscriptions the server would wait for them as long as it grants.
#[test]
fn sigterm_tells_subscribers_why_they_end() {
    let home = Home::new(CONFIG);
    let server = home.start();
    let client = server.client();
    send(&client, "seen", 3);
    client.settled();
    let mut stream = EventStream::subscribe(&client, "/v1/views/audience_minute/subscribe");
    let reader = std::thread::spawn(move || {
        let mut last = None;
        while let Ok(event) = stream.next() {
            last = Some(event);
        }
        last.unwrap()
    });
    let began = Instant::now();
    assert_eq!(server.terminate().code(), Some(0), "{}", home.stderr());
    assert!(began.elapsed() < Duration::from_secs(4), "it took {:?}", began.elapsed());
    let last = reader.join().unwrap();
    assert_eq!((&*last.kind, &last.data["code"]), ("error", &json!("closing")), "{last:?}");
}

#[test]
fn a_full_disk_takes_nothing_and_when_there_is_room_it_goes_on() {
    let home = Home::new(CONFIG);
    // A file may grow to 1 MiB and no further: writes fail as on a full disk. (In blocks of 1 KiB;
    // without the trap the kernel would end the process.)
    let limited = home.serve_after("trap '' XFSZ; ulimit -S -f 1024");
    let mut server = crate::server::Server::spawn(&home, limited);
    server.wait_until_ready();
    let client = server.client();
    let mut taken = Vec::new();
    let refused = wait_for("the disk is full", Duration::from_secs(60), || {
        let ids: Vec<String> = (0..200).map(|n| format!("full_{}_{n}", taken.len())).collect();
        let events: Vec<_> = ids.iter().map(|id| click(id, now_us())).collect();
        let answer = client.collect(&events);
        if answer.status != 202 {
            return Some(answer);
        }
        taken.extend(ids);
        None
    });
    assert_eq!(refused.status, 503, "{refused:?}");
    refused.problem();
    assert!(refused.retry_after.is_some(), "{refused:?}");
    // What was taken is still served, and what is refused is not counted.
    all_known(&client, &taken[..20]);
    client.get("/healthz").expect(200);

    let unlimited = Rlimit { current: None, maximum: None };
    prlimit(Some(server.pid()), Resource::Fsize, unlimited).unwrap();
    let event = json!({ "events": [click("after_the_disk_was_full", now_us())] }).to_string();
    let taken_again = std::thread::scope(|scope| {
        let sender =
            scope.spawn(|| send_until_taken(&client, "/v1/events/collect", event.as_bytes()));
        sender.join().unwrap()
    });
    assert_eq!(taken_again.json["accepted"], json!(1));
    let counts = client.settled();
    counts.check();
    assert!(counts.counted > taken.len() as i64, "{} were taken: {counts:?}", taken.len());
    kill_process(server.pid(), Signal::KILL).unwrap();
    server.wait();

    let server = home.start();
    let counts = server.client().settled();
    counts.check();
    taken.push("after_the_disk_was_full".to_owned());
    assert!(counts.counted >= taken.len() as i64, "{} were taken: {counts:?}", taken.len());
    all_known(&server.client(), &taken[taken.len() - 50..]);
}

/// As large as stderr and checkpoints may become here, and less than what is in the log by then.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// A server with more than [`FILE_BYTES_MAX`] in its one segment, for which files can grow no
/// further than that from now on: its log is full, everything else is not.
fn full<'h>(home: &'h Home, also: impl FnOnce(&Path)) -> crate::server::Server<'h> {
    let mut server = crate::server::Server::spawn(home, home.serve_after("trap '' XFSZ"));
    server.wait_until_ready();
    let (client, segment) = (server.client(), || segments(&home.data()).pop().unwrap());
    for body in 0.. {
        if fs::metadata(segment()).unwrap().len() > 2 * FILE_BYTES_MAX {
            break;
        }
        let ids = (0..500).map(|n| format!("{:0>40}_{n}", body));
        let events: Vec<_> = ids.map(|id| click(&id, now_us())).collect();
        client.collect(&events).expect(202);
    }
    client.settled();
    let full = Rlimit { current: Some(FILE_BYTES_MAX), maximum: None };
    prlimit(Some(server.pid()), Resource::Fsize, full).unwrap();
    also(&segment());
    server
}

#[test]
fn a_server_with_a_full_disk_ends_when_it_is_told_to() {
    let home = Home::new(CONFIG);
    let server = full(&home, |_| {});
    let refused = server.client().collect(&[click("refused", now_us())]);
    assert_eq!((refused.status, &*refused.problem()), (503, "log_unavailable"), "{refused:?}");
    let began = Instant::now();
    let status = server.terminate();
    assert!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
    let (code, stderr) = (status.code(), home.stderr());
    assert!([Some(0), Some(70)].contains(&code), "{status}: {stderr}");
    assert!(stderr.contains("no epoch can be closed"), "nobody is told: {stderr}");

    let server = home.start();
    server.client().settled().check();
    send(&server.client(), "room", 3);
}

/// As on a file system that is mounted read-only after an error: a write fails, and so does cutting
/// back. (The limit forbids that as well, once somebody has shortened the file.)
#[test]
fn a_log_that_can_only_be_opened_anew_ends_the_server() {
    let home = Home::new(CONFIG);
    let mut whole = None;
    let mut server = full(&home, |segment| {
        let bytes = fs::read(segment).unwrap();
        let file = fs::OpenOptions::new().write(true).open(segment).unwrap();
        file.set_len(bytes.len() as u64 - 4_096).unwrap();
        whole = Some((segment.to_owned(), bytes));
    });
    // It may have noticed by itself: an epoch a second is written to the log.
    drop(server.client().try_post("/v1/events/collect", &[], b"{\"events\":[]}"));
    let began = Instant::now();
    let status = server.wait();
    assert_eq!(status.code(), Some(70), "{status}: {}", home.stderr());
    assert!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
    let stderr = home.stderr();
    let last = stderr.lines().rev().find(|line| line.starts_with("error: ")).unwrap_or_default();
    assert!(last.contains(".seg") && last.contains("cutting it back"), "not said: {stderr}");

    let (segment, bytes) = whole.unwrap();
    fs::write(segment, bytes).unwrap();
    let server = home.start();
    server.client().settled().check();
    send(&server.client(), "anew", 3);
}

/// A disk that does not answer: the file says nothing until somebody writes into it.
#[test]
fn a_server_whose_log_does_not_open_is_alive_and_hears_sigterm() {
    let home = Home::new(CONFIG);
    let server = home.start();
    let ids = send(&server.client(), "before", 3);
    server.client().settled();
    assert_eq!(server.terminate().code(), Some(0), "{}", home.stderr());
    let (identity, aside) = (home.data().join("identity"), home.data().join("aside"));
    fs::rename(&identity, &aside).unwrap();
    let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
    rustix::fs::mknodat(rustix::fs::CWD, &identity, fifo, mode, 0).unwrap();

    let server = crate::server::Server::spawn(&home, home.serve());
    let client = server.client();
    wait_for("a sign of life", Duration::from_secs(60), || {
        client.try_get("/healthz").is_ok_and(|answer| answer.status == 200).then_some(())
    });
    for path in ["/readyz", "/v1/status", "/v1/views"] {
        let answer = client.get(path).expect(503);
        assert_eq!(answer.problem(), "opening", "{path}");
        let detail = answer.json["detail"].as_str().unwrap();
        assert!(detail.contains(&home.data().display().to_string()), "{detail}");
        assert!(answer.retry_after.is_some(), "{path}");
    }
    let refused = client.collect(&[click("refused", now_us())]).expect(503);
    assert_eq!(refused.problem(), "opening");
    let told = Instant::now();
    assert_eq!(server.terminate().code(), Some(0), "{}", home.stderr());
    assert!(told.elapsed() < Duration::from_secs(10), "it ended after {:?}", told.elapsed());

    fs::rename(&aside, &identity).unwrap();
    let server = home.start();
    server.client().settled().check();
    all_known(&server.client(), &ids);
}

#[test]
fn a_torn_write_is_cut_off_and_nothing_else() {
    let home = Home::new(CONFIG);
    let server = home.start();
    let ids = send(&server.client(), "before", 20);
    server.kill();
    // The first bytes of a frame that was being written: as the last one there is.
    let segment = segments(&home.data()).pop().unwrap();
    let bytes = fs::read(&segment).unwrap();
    let magic = bytes.len().saturating_sub(200)..bytes.len() - 7;
    let mut file = fs::OpenOptions::new().append(true).open(&segment).unwrap();
    file.write_all(&bytes[magic]).unwrap();
    drop(file);

    let server = home.start();
    let client = server.client();
    let counts = client.settled();
    counts.check();
    assert_eq!(counts.counted, ids.len() as i64, "{counts:?}");
    all_known(&client, &ids);
    let more = send(&client, "behind", 5);
    client.settled();
    all_known(&client, &more);
    assert!(
        home.stderr().contains("incomplete write"),
        "it was cut in silence:\n{}",
        home.stderr()
    );
}

#[test]
fn a_flipped_bit_is_refused_by_file_and_byte() {
    let home = Home::new(CONFIG);
    let server = home.start();
    send(&server.client(), "sound", 50);
    server.client().settled();
    assert_eq!(server.terminate().code(), Some(0));
    let (code, out, err) = home.run(&["doctor"]);
    assert_eq!(code, Some(0), "a sound directory: {out}{err}");

    let segment = segments(&home.data()).remove(0);
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 0x10;
    fs::write(&segment, &bytes).unwrap();
    let name = segment.file_name().unwrap().to_str().unwrap();

    let (code, out, err) = home.run(&["doctor"]);
    assert_eq!(code, Some(1), "{out}{err}");
    assert!(format!("{out}{err}").contains(name), "{name} is not named: {out}{err}");
    let (code, _, stderr) = home.run(&["serve", "--listen", "127.0.0.1:1"]);
    assert!([Some(1), Some(70)].contains(&code), "it ended with {code:?}: {stderr}");
    assert!(stderr.contains(name) && stderr.contains("byte"), "not named: {stderr}");
    assert_eq!(fs::read(&segment).unwrap(), bytes, "what is damaged was changed");
    let (code, _, stderr) = home.run(&["verify"]);
    assert_eq!(code, Some(2), "{stderr}");
}

#[test]
fn a_clock_that_jumps_back_makes_no_log_time_earlier() {
    let dir = tempfile::tempdir().unwrap();
    let now_us = Arc::new(AtomicI64::new(crate::traffic::now_us()));
    let clock = Arc::clone(&now_us);
    let clock = Arc::new(move || LogTime(clock.load(Ordering::Relaxed)));
    let mut last = BTreeMap::<u16, LogTime>::new();
    for opening in 0..4 {
        let (journal, opened) =
            Journal::open(dir.path(), Settings::default(), clock.clone()).unwrap();
        assert_eq!(opened.clock_behind_us > 0, opening > 0, "{opened:?}");
        let layout = Layout {
            partitions: journal.partitions(Topic::Events),
            key: journal.identity().hash_key,
        };
        for n in 0..20 {
            let at_us = now_us.load(Ordering::Relaxed);
            let id = format!("{opening}_{n}");
            let event = Event::new(EventType::Click, id, at_us, "camp_4821", "ad_99");
            let frames = layout.frames(&[event], at_us);
            let partition = frames[0].partition;
            let end = journal.ends(Topic::Events)[usize::from(partition)];
            for appended in append_and_wait(&journal, frames).unwrap() {
                // Never below what readers were told that the partition is complete to.
                assert!(appended.log_time >= end.complete_to, "{appended:?} {end:?}");
                let before = last.insert(partition, appended.log_time);
                assert!(before.is_none_or(|b| b <= appended.log_time), "{appended:?} {before:?}");
            }
            now_us
                .fetch_add(if n % 5 == 0 { -SECOND_US } else { SECOND_US / 10 }, Ordering::Relaxed);
        }
        now_us.fetch_sub(HOUR_US, Ordering::Relaxed);
    }
}
