//! A replay of a cluster: what the processes show, and what subscribers of each have, becomes what
//! the log says, in one step.

use crate::{
    brokers::beside,
    cluster::verify_and_stop,
    dear,
    fleet::Fleet,
    server::Server,
    sse::{EventStream, Known},
    traffic::{click, now_us, wait_for},
};
use serde_json::{Value, json};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);
const CONFIG: &str = r#"
[[rollup]]
name = "campaign"
dimensions = ["campaignId"]
"#;

fn start(fleet: &Fleet) -> Vec<Server<'_>> {
    let mut servers: Vec<Server<'_>> = (0..2).map(|process| fleet.spawn(process)).collect();
    for server in &mut servers {
        server.wait_until_ready();
    }
    servers
}

fn spend(server: &Server<'_>) -> i64 {
    let (_, rows) = server.client().view("campaign_day", None);
    rows.iter().map(|row| row["spendMicros"].as_i64().unwrap()).sum()
}

/// Asked of a process that does not lead.
#[test]
fn a_replay_puts_all_processes_right() {
    let _brokers = beside();
    let fleet = Fleet::new(2, CONFIG);
    fleet.configure(2, 1);
    let homes = [fleet.home(0), fleet.home(1)];
    let servers = start(&fleet);
    let sent = |n: usize| {
        let mut event = click(&format!("k{n}"), now_us());
        event["campaignId"] = json!(format!("cmp_{}", n % 20));
        event
    };
    let events: Vec<Value> = (0..200).map(sent).collect();
    let client = servers[1].client();
    client.collect(&events[..150]).expect(202);
    assert_eq!(client.settled().counted, 150);
    servers[1].client().settled();
    let right = spend(&servers[1]);
    assert!(right > 0);
    for server in servers {
        assert!(server.terminate().success());
    }
    // The wrong one begins at the beginning.
    fleet.forget_checkpoints();
    dear::run(&homes);

    let servers = start(&fleet);
    for server in &servers {
        server.client().settled();
        assert_eq!(spend(server), right * 10);
    }
    let client = servers[1].client();
    let mut stream = EventStream::subscribe(&client, "/v1/views/campaign_minute/subscribe");
    let mut known = Known::default();
    while !known.take(&stream.next().unwrap()) {}
    let url = format!("http://{}", client.address());
    let (code, out, err) = homes[1].run(&["replay", "--server", &url]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("rows changed in one step"), "{out}{err}");
    for server in &servers {
        wait_for("the replay everywhere", PATIENCE, || (spend(server) == right).then_some(()));
    }
    client.collect(&events[150..]).expect(202);
    // What is pending is an estimate in a generation that has just begun.
    wait_for("what was sent after it", PATIENCE, || {
        (client.settled().counted == 200).then_some(())
    });
    let (at, rows) = client.view("campaign_minute", None);
    while known.epoch.is_none_or(|epoch| epoch < at) {
        known.take(&stream.next().unwrap());
    }
    known.assert_is(&rows);
    verify_and_stop(&fleet, servers);
}
