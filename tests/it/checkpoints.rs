//! Checkpoints from outside: a start from one shows what a start from the whole log shows, a broken
//! one is passed over and named, and a log of which older parts are gone starts from them and from
//! nothing else.

use crate::{
    client::Client,
    seed::random,
    server::{Home, Server},
    traffic::{click, now_us, verdict, wait_for},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use trueup_generator::random::Random;

const CONFIG: &str = r#"
[time]
correction_horizon = "10m"
[checkpoint]
interval = "150ms"
whole_every = 3
"#;
const SOON: Duration = Duration::from_secs(60);

/// Clicks with ids of their own, some of them twice, and verdicts on some.
fn send(client: &Client, round: u64, random: &mut Random) {
    let at_us = now_us();
    let clicks: Vec<Value> = (0..50)
        .map(|i| {
            let mut click = click(&format!("click {}", round * 40 + i), at_us);
            click["campaignId"] = json!(format!("camp {}", random.below(5)));
            click
        })
        .collect();
    assert_eq!(client.collect(&clicks).expect(202).json["accepted"], 50);
    let judged: Vec<Value> = (0..5)
        .map(|_| {
            let id = format!("click {}", random.below(round * 40 + 50));
            verdict(&id, ["invalid", "valid"][random.below(2) as usize], now_us())
        })
        .collect();
    client.judge(&judged).expect(202);
}

fn status(client: &Client) -> Value {
    client.get("/v1/status").expect(200).json
}

/// Sends until so many more checkpoints are published.
fn send_through(client: &Client, checkpoints: u64, round: &mut u64, random: &mut Random) {
    let published = || status(client)["checkpoint"]["published"].as_u64().unwrap();
    let wanted = published() + checkpoints;
    wait_for("checkpoints", SOON, || {
        send(client, *round, random);
        *round += 1;
        (published() >= wanted).then_some(())
    });
}

/// The manifests of a home, newest last.
fn manifests(home: &Home) -> Vec<PathBuf> {
    let mut paths = files(&home.data().join("checkpoints/manifests"));
    let generation = |path: &PathBuf| -> u64 {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        stem.split_once('-').unwrap().1.parse().unwrap()
    };
    paths.sort_by_key(|path| (generation(path), path.clone()));
    paths
}

fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The newest pack that the newest manifest names.
fn newest_pack(home: &Home) -> PathBuf {
    let text = fs::read_to_string(manifests(home).pop().unwrap()).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    let pack = manifest["manifest"]["parts"][0]["pack"].as_str().unwrap();
    home.data().join("checkpoints").join(pack)
}

/// What is served is what the recomputation finds, beside the server.
fn verify(home: &Home, client: &Client) {
    client.settled().check();
    let url = format!("http://{}", client.address());
    let (code, out, err) = home.run(&["verify", "--server", &url]);
    assert_eq!(code, Some(0), "{out}\n{err}");
}

fn start_with<'h>(home: &'h Home, workers: u64) -> Server<'h> {
    home.start_with(&["--workers", &workers.to_string()])
}

#[test]
fn a_broken_newest_checkpoint_is_passed_over_and_named() {
    let mut random = random("a_broken_newest_checkpoint_is_passed_over_and_named");
    let home = Home::new(CONFIG);
    let (mut round, mut server) = (0, home.start());
    let flip = |path: &Path, random: &mut Random| {
        let mut bytes = fs::read(path).unwrap();
        let at = random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    for way in ["flip the manifest", "cut the pack", "delete the pack", "delete the manifest"] {
        send_through(&server.client(), 3, &mut round, &mut random);
        server.kill();
        let newest = manifests(&home).pop().unwrap();
        match way {
            "flip the manifest" => flip(&newest, &mut random),
            "cut the pack" => {
                let bytes = fs::read(newest_pack(&home)).unwrap();
                fs::write(newest_pack(&home), &bytes[..bytes.len() - 1]).unwrap();
            }
            "delete the pack" => fs::remove_file(newest_pack(&home)).unwrap(),
            _ => fs::remove_file(&newest).unwrap(),
        }
        let (code, out, _) = home.run(&["doctor", "--json"]);
        let told: Value = serde_json::from_str(&out).unwrap();
        let is_whole = way == "delete the manifest";
        assert_eq!((code, &told["well"]), (Some(i32::from(!is_whole)), &json!(is_whole)), "{way}");
        let broken = &told["checkpoints"][0]["broken"];
        assert_eq!(broken.is_null(), is_whole, "{way}: {broken}");
        let valid = |at: usize| told["checkpoints"][at]["valid"] == true;
        assert!(valid(usize::from(!is_whole)), "{way}: {told}");

        server = start_with(&home, 1 + random.below(4));
        let recovery = &status(&server.client())["recovery"];
        assert_eq!(recovery["checkpointsPassedOver"], u64::from(!is_whole), "{way}: {recovery}");
        assert!(recovery["fromEpoch"].as_u64().unwrap() > 0, "{way}: {recovery}");
        verify(&home, &server.client());
    }
    assert!(server.terminate().success());
    assert!(home.stderr().contains("the one before is tried"), "{}", home.stderr());
}

#[test]
fn without_any_checkpoint_the_log_is_read_from_its_beginning() {
    let mut random = random("without_any_checkpoint_the_log_is_read_from_its_beginning");
    let home = Home::new(CONFIG);
    let server = home.start();
    send_through(&server.client(), 3, &mut 0, &mut random);
    server.kill();
    for manifest in manifests(&home) {
        fs::write(manifest, "{}").unwrap();
    }
    let server = home.start();
    let recovery = &status(&server.client())["recovery"];
    assert_eq!(recovery["fromEpoch"], 0, "{recovery}");
    verify(&home, &server.client());
    // The broken ones go when there is a good one.
    wait_for("a good checkpoint", SOON, || {
        let (_, out, _) = home.run(&["doctor", "--json"]);
        let told: Value = serde_json::from_str(&out).unwrap();
        (told["checkpoints"][0]["valid"] == true).then_some(())
    });
    assert!(server.terminate().success());
    let (code, out, _) = home.run(&["doctor", "--json"]);
    assert_eq!(code, Some(0), "{out}");
}

/// Nobody sees the views go through what they showed before, with or without a checkpoint.
#[test]
fn what_is_shown_after_a_start_is_not_older_than_what_was_shown_before_it() {
    let mut random = random("what_is_shown_after_a_start_is_not_older");
    for config in [CONFIG, "[checkpoint]\ninterval = \"0s\""] {
        let home = Home::new(config);
        let mut server = home.start();
        let page = "/v1/views/audience_minute?limit=1";
        let mut shown = 0;
        for round in 0..60 {
            send(&server.client(), round, &mut random);
            shown = server.client().get(page).expect(200).json["asOfEpoch"].as_u64().unwrap();
        }
        server.kill();
        server = Server::spawn(&home, home.serve());
        let first = wait_for("an answer", SOON, || {
            // Until it listens, nobody answers.
            let answer = server.client().try_get(page).ok()?;
            if answer.status == 200 {
                return Some(answer);
            }
            assert_eq!((answer.status, &answer.problem()[..]), (503, "catching_up"));
            let detail = answer.json["detail"].as_str().unwrap();
            assert!(detail.starts_with("epoch ") && detail.contains(" of "), "{detail}");
            assert!(answer.retry_after.is_some(), "{answer:?}");
            None
        });
        let epoch = first.json["asOfEpoch"].as_u64().unwrap();
        assert!(epoch >= shown, "epoch {epoch} after {shown} was shown");
        assert_eq!(server.client().get("/readyz").status, 200);
        verify(&home, &server.client());
    }
}

#[test]
fn a_drain_takes_a_last_checkpoint_and_the_next_start_has_little_to_do() {
    let mut random = random("a_drain_takes_a_last_checkpoint");
    // None is due while the server runs.
    let home = Home::new("[checkpoint]\ninterval = \"1h\"");
    let server = home.start();
    (0..20).for_each(|round| send(&server.client(), round, &mut random));
    let counts = server.client().settled();
    assert!(status(&server.client())["checkpoint"]["lastEpoch"].is_null());
    let page = "/v1/views/audience_minute?limit=1";
    let page = server.client().get(page).expect(200).json["nextPageToken"].clone();
    assert!(server.terminate().success());
    assert_eq!(manifests(&home).len(), 1);

    let server = start_with(&home, 3);
    let told = status(&server.client());
    let (from, closed) = (told["recovery"]["fromEpoch"].as_u64(), told["closedEpoch"].as_u64());
    // An idle log closes an epoch a second.
    assert!(from.unwrap() + 5 >= closed.unwrap() && from > Some(0), "{told}");
    assert_eq!(server.client().settled().counted, counts.counted);
    // Rows have other numbers now: going on with the old ones would skip some.
    let page = format!("/v1/views/audience_minute?limit=1&pageToken={}", page.as_str().unwrap());
    assert_eq!(server.client().get(&page).expect(410).problem(), "page_gone");
    verify(&home, &server.client());
}

#[test]
fn older_parts_of_the_log_go_and_a_start_does_not_miss_them() {
    let mut random = random("older_parts_of_the_log_go_and_a_start_does_not_miss_them");
    // Of so short a horizon everything is forgotten within seconds.
    let home = Home::new(
        r#"
[log]
segment_bytes_max = "64KiB"
retention = "1s"
retention_listed = "1s"
[time]
allowed_lateness = "1s"
correction_horizon = "2s"
future_skew_max = "1s"
[checkpoint]
interval = "150ms"
"#,
    );
    let mut server = home.start();
    let first = |client: &Client| {
        let told = status(client);
        let partitions = told["partitions"].as_array().unwrap().clone();
        partitions.iter().map(|p| p["firstOffset"].as_u64().unwrap()).max().unwrap()
    };
    let campaign = server.client().put("/v1/campaigns/old", br#"{"name":"from the beginning"}"#);
    assert_eq!(campaign.status, 201);
    let mut round = 0;
    let deleted = wait_for("segments that are gone", Duration::from_secs(240), || {
        send(&server.client(), round, &mut random);
        round += 1;
        Some(first(&server.client())).filter(|&first| first > 0)
    });
    assert!(deleted > 0);
    let counts = server.client().settled();
    server.kill();
    server = start_with(&home, 1 + random.below(4));
    let after = server.client().settled();
    assert_eq!((after.counted, after.duplicate), (counts.counted, counts.duplicate));
    let campaign = server.client().get("/v1/campaigns/old").expect(200).json;
    assert_eq!(campaign["name"], "from the beginning");
    // A copy of what is remembered is still one.
    let again = click("click again", now_us());
    server.client().collect(&[again.clone()]).expect(202);
    server.client().settled();
    server.kill();
    server = home.start();
    server.client().collect(&[again]).expect(202);
    assert_eq!(server.client().settled().duplicate, after.duplicate + 1);
    assert!(server.terminate().success());

    let (code, _, err) = home.run(&["verify"]);
    assert_eq!(code, Some(2), "{err}");
    fs::remove_dir_all(home.data().join("checkpoints")).unwrap();
    let mut server = Server::spawn(&home, home.serve());
    assert_eq!(server.wait().code(), Some(2));
    let told = home.stderr();
    assert!(told.contains("no longer has its beginning"), "{told}");
}

/// An event in conflict is listed and nowhere but in the log: age does not delete it, size does,
/// and that is told.
#[test]
fn listed_events_keep_their_segment_until_size_deletes_it() {
    let config = |bytes_max: &str| {
        format!(
            r#"
[log]
segment_bytes_max = "64KiB"
retention = "1s"
retention_bytes_max = "{bytes_max}"
[time]
allowed_lateness = "1s"
correction_horizon = "2s"
future_skew_max = "1s"
[checkpoint]
interval = "150ms"
"#
        )
    };
    let home = Home::new(&config("0"));
    let mut server = home.start();
    let at_us = now_us();
    let (mut once, mut twice) = (click("in conflict", at_us), click("in conflict", at_us));
    (once["priceMicros"], twice["priceMicros"]) = (json!(1), json!(2));
    server.client().collect(&[once, twice]).expect(202);
    let listed = |client: &Client| {
        client.get("/v1/quarantine?reason=id_conflict").expect(200).json["rows"][0].clone()
    };
    let deleted = |client: &Client, of: &str| status(client)["log"][of].as_u64().unwrap();
    let mut sent = 0;
    let mut send = |client: &Client| {
        let at_us = now_us();
        let clicks: Vec<Value> = (0..50).map(|i| click(&format!("{}", sent + i), at_us)).collect();
        sent += 50;
        client.collect(&clicks).expect(202);
    };
    // The ledger remembers for 64 s: but for the list, segments would go from then on.
    let until = Instant::now() + Duration::from_secs(90);
    while Instant::now() < until {
        send(&server.client());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(deleted(&server.client(), "segmentsDeleted"), 0);
    assert_eq!(listed(&server.client())["event"]["eventId"], "in conflict");
    server.kill();

    home.configure(&config("256KiB"));
    server = home.start();
    wait_for("size to delete", SOON, || {
        send(&server.client());
        (deleted(&server.client(), "segmentsDeletedListed") > 0).then_some(())
    });
    wait_for("the event to be gone", SOON, || {
        listed(&server.client())["eventError"].is_string().then_some(())
    });
    assert!(home.stderr().contains("still listed"), "{}", home.stderr());
    assert!(server.terminate().success());
}

#[test]
fn checkpoints_of_another_directory_are_refused() {
    let mut random = random("checkpoints_of_another_directory_are_refused");
    let place = tempfile::tempdir().unwrap();
    let config = format!("{CONFIG}store = \"file://{}\"\n", place.path().display());
    let (one, other) = (Home::new(&config), Home::new(&config));
    let server = one.start();
    send_through(&server.client(), 1, &mut 0, &mut random);
    assert!(server.terminate().success());
    assert!(!files(&place.path().join("manifests")).is_empty());
    let mut server = Server::spawn(&other, other.serve());
    assert_eq!(server.wait().code(), Some(2));
    assert!(other.stderr().contains("is of the installation"), "{}", other.stderr());
}
