//! `trueup demo`, the first thing that anybody runs: it says where to look, shows something within
//! seconds, and when its time is over it is over.

use crate::{client::Client, server::TRUEUP, traffic::wait_for};
use std::{
    fs::File,
    net::SocketAddr,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const FOR: Duration = Duration::from_secs(6);
/// From the end of its time to the end of the process: the server's grace for open connections,
/// and the drain.
const END: Duration = Duration::from_secs(15);

#[test]
fn a_demo_shows_figures_and_ends_when_its_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let address: SocketAddr = crate::server::free_port();
    let said = dir.path().join("said");
    let mut demo = Command::new(TRUEUP)
        .arg("demo")
        .args(["--listen", &address.to_string(), "--rate", "300", "--seed", "1"])
        .args(["--for", &format!("{}s", FOR.as_secs())])
        .arg("--data")
        .arg(dir.path().join("data"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let (client, began) = (Client::new(address), Instant::now());
    wait_for("the demo is ready", FOR, || {
        client.try_get("/readyz").ok().filter(|answer| answer.status == 200)
    });
    let counts = wait_for("the demo counts", FOR, || {
        Some(client.counts()).filter(|counts| counts.counted > 0)
    });
    counts.check();
    let page = client.get("/").expect(200);
    assert!(page.content_type.starts_with("text/html"), "{page:?}");
    // Everything that the page loads is here: it works without a network.
    let html = String::from_utf8(page.body).unwrap();
    for quoted in html.split('"').filter(|text| text.starts_with("/dashboard/")) {
        client.get(quoted).expect(200);
    }
    assert!(!html.contains("//cdn") && !html.contains("<script>"), "{html}");
    let described = client.get("/openapi.json").expect(200).json;
    assert!(described["paths"]["/v1/events/collect"].is_object());
    let metrics = String::from_utf8(client.get("/metrics").expect(200).body).unwrap();
    assert!(metrics.contains("# TYPE trueup_"), "{metrics}");

    let status =
        wait_for("the demo is over", FOR + END - began.elapsed(), || demo.try_wait().unwrap());
    let said = std::fs::read_to_string(&said).unwrap();
    assert_eq!(status.code(), Some(0), "{said}");
    for told in [&format!("http://{address}/")[..], "curl", "seed 1"] {
        assert!(said.contains(told), "`{told}` is not told: {said}");
    }
}
