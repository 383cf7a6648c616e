//! `trueup demo`, the first thing that anybody runs: it says where to look, shows something within
//! seconds, and when its time is over it is over.

use crate::{client::Client, server::TRUEUP, traffic::wait_for};
use rustix::process::{Pid, Signal, kill_process};
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
    assert_ended_well(&said);
}

/// Traffic that outlives its server is refused, and says so: it would look like a failure.
fn assert_ended_well(said: &str) {
    for unwanted in ["refused", "sent again", "ERROR", "WARN", "error"] {
        let lines = said.lines().filter(|line| !line.contains("no token is configured"));
        let found: Vec<&str> = lines.filter(|line| line.contains(unwanted)).collect();
        assert!(found.is_empty(), "`{unwanted}`: {found:?}\n{said}");
    }
}

#[test]
fn a_demo_that_is_told_to_stop_ends_well_and_leaves_nothing() {
    let (dir, temporary) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let address: SocketAddr = crate::server::free_port();
    let said = dir.path().join("said");
    let demo = || {
        let mut command = Command::new(TRUEUP);
        command.arg("demo").args(["--listen", &address.to_string(), "--rate", "2000"]);
        // Away from any `trueup.toml`.
        command.current_dir(dir.path()).env("TMPDIR", temporary.path());
        command.env("TRUEUP_SEED", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    };
    let mut first = demo().stderr(File::create(&said).unwrap()).spawn().unwrap();
    let client = Client::new(address);
    wait_for("the demo counts", FOR, || {
        client.try_get("/readyz").ok().filter(|answer| answer.status == 200)?;
        Some(client.counts()).filter(|counts| counts.counted > 0)
    });
    // A second one says that the port is taken, and does nothing else.
    let second = demo().output().unwrap();
    let told = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(2), "{told}");
    assert!(told.contains(&format!("cannot listen on {address}")), "{told}");
    assert!(!told.contains("directory"), "{told}");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 1, "the first one's");

    kill_process(Pid::from_child(&first), Signal::TERM).unwrap();
    let status = wait_for("the demo is over", END, || first.try_wait().unwrap());
    let said = std::fs::read_to_string(&said).unwrap();
    assert_eq!(status.code(), Some(0), "{said}");
    assert_ended_well(&said);
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "{said}");
}

#[test]
fn a_demo_of_a_configuration_with_tokens_uses_the_operators() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("trueup.toml");
    let demo = |tokens: &str, listen: SocketAddr| {
        std::fs::write(&config, tokens).unwrap();
        let mut command = Command::new(TRUEUP);
        command.args(["demo", "--listen", &listen.to_string(), "--rate", "300", "--for", "3s"]);
        command.arg("--config").arg(&config).arg("--data").arg(dir.path().join("data"));
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let reader = "[[auth.tokens]]\ntoken = \"reads-and-no-more\"\nrole = \"reader\"\n";
    let (code, said) = demo(reader, crate::server::free_port());
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("operator"), "{said}");
    assert!(!dir.path().join("data").exists(), "it made a data directory");
    let operator = "[[auth.tokens]]\ntoken = \"does-everything\"\nrole = \"operator\"\n";
    let (code, said) = demo(&format!("{reader}{operator}"), crate::server::free_port());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("Bearer") && !said.contains("does-everything"), "{said}");
    assert_ended_well(&said);
}
