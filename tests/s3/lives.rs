//! A server whose checkpoints are in a bucket: killed, it goes on from the newest; while the bucket
//! is away, it goes on without.

use crate::{
    buckets::{endpoint, fresh},
    client::Client,
    proxy::Proxy,
    server::{Home, Server},
    traffic::{click, now_us, verdict, wait_for},
};
use serde_json::Value;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(90);

fn home(bucket: &str) -> Home {
    Home::new(&format!(
        "[checkpoint]\ninterval = \"150ms\"\nwhole_every = 3\nstore = \"s3://{bucket}/of-one\"\n"
    ))
}

/// Clicks, some of which were sent before, and a verdict on one.
fn send(client: &Client, round: u64) {
    let ids = (0..40).map(|i| format!("click {}", round * 30 + i));
    let clicks: Vec<Value> = ids.map(|id| click(&id, now_us())).collect();
    assert_eq!(client.collect(&clicks).expect(202).json["accepted"], 40);
    client.judge(&[verdict(&format!("click {}", round * 30), "invalid", now_us())]).expect(202);
}

fn checkpoint(client: &Client) -> Value {
    client.get("/v1/status").expect(200).json["checkpoint"].clone()
}

/// Sends until one of the figures of checkpoints has grown by so much.
fn send_until(client: &Client, figure: &str, grown: u64, round: &mut u64) {
    let figure = || checkpoint(client)[figure].as_u64().unwrap();
    let wanted = figure() + grown;
    wait_for("checkpoints", SOON, || {
        send(client, *round);
        *round += 1;
        (figure() >= wanted).then_some(())
    });
}

fn verify(home: &Home, client: &Client) {
    client.settled().check();
    let url = format!("http://{}", client.address());
    let (code, out, err) = home.run(&["verify", "--server", &url]);
    assert_eq!(code, Some(0), "{out}\n{err}");
}

#[test]
fn killed_with_9_it_goes_on_from_the_bucket() {
    let bucket = fresh();
    let home = home(&bucket);
    let (mut round, mut server) = (0, home.start());
    for workers in ["1", "3", "2"] {
        send_until(&server.client(), "published", 4, &mut round);
        let before = server.client().settled();
        let last = checkpoint(&server.client())["lastEpoch"].as_u64().unwrap();
        server.kill();
        server = home.start_with(&["--workers", workers]);
        let recovery = server.client().get("/v1/status").expect(200).json["recovery"].clone();
        assert!(recovery["fromEpoch"].as_u64().unwrap() >= last, "{recovery}, not from {last}");
        assert_eq!(recovery["checkpointsPassedOver"], 0, "{recovery}");
        assert_eq!(server.client().settled().counted, before.counted);
        verify(&home, &server.client());
    }
    assert!(server.terminate().success());
    let (code, out, err) = home.run(&["doctor", "--json"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let told: Value = serde_json::from_str(&out).unwrap();
    assert!(told["checkpoints"][0]["valid"] == true, "{told}");
    assert!(!home.data().join("checkpoints").exists(), "they are in the bucket alone");

    // What is in there is of this data directory.
    let stranger = self::home(&bucket);
    let mut refused = Server::spawn(&stranger, stranger.serve());
    assert_eq!(refused.wait().code(), Some(2));
    assert!(stranger.stderr().contains("is of the installation"), "{}", stranger.stderr());
}

#[test]
fn a_bucket_that_is_away_costs_checkpoints_and_not_the_run() {
    let bucket = fresh();
    let home = home(&bucket);
    let far = endpoint().strip_prefix("http://").unwrap().to_owned();
    let network = Proxy::start(far);
    let mut command = home.serve();
    command.env("AWS_ENDPOINT", format!("http://{}", network.address()));
    command.env("AWS_TIMEOUT", "1s").env("AWS_CONNECT_TIMEOUT", "1s");
    let mut server = Server::spawn(&home, command);
    server.wait_until_ready();
    let (client, mut round) = (server.client(), 0);
    send_until(&client, "published", 2, &mut round);
    assert_eq!(checkpoint(&client)["failures"], 0);

    network.swallow(true);
    send_until(&client, "failures", 2, &mut round);
    let told = checkpoint(&client);
    assert!(told["failure"].as_str().is_some_and(|failure| !failure.is_empty()), "{told}");
    verify(&home, &client);
    network.swallow(false);
    send_until(&client, "published", 2, &mut round);
    let told = checkpoint(&client);
    assert!(told["failure"].is_null(), "{told}");
    verify(&home, &client);

    // Away at the end: the run ends well, and the next one reads on from what is there.
    network.swallow(true);
    send(&client, round);
    let counts = client.settled();
    assert!(server.terminate().success(), "{}", home.stderr());
    assert!(home.stderr().contains("the next start reads on"), "{}", home.stderr());
    let server = home.start();
    assert_eq!(server.client().settled().counted, counts.counted);
    verify(&home, &server.client());
    assert!(server.terminate().success());
}
