//! The command line as scripts use it: exit codes, what goes to stdout, and messages that name the
//! value at fault.

use crate::server::{Home, TRUEUP};
use serde_json::Value;
use std::process::{Command, Output};

fn trueup(args: &[&str]) -> Output {
    Command::new(TRUEUP).args(args).env_remove("TRUEUP_SEED").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_effective_configuration_is_printed_and_can_be_read_again() {
    let home = Home::new("[time]\nallowed_lateness = \"7m\"\n");
    let (code, printed, stderr) = home.run(&["config"]);
    assert_eq!(code, Some(0), "{stderr}");
    let table: toml::Table = printed.parse().unwrap();
    assert_eq!(table["time"]["allowed_lateness"].as_str(), Some("7m"));
    assert_eq!(table["time"]["correction_horizon"].as_str(), Some("1d"), "a default is missing");
    home.configure(&printed);
    assert_eq!(home.run(&["config"]).1, printed);

    // Flags win over the environment, that over the file.
    home.configure("data_dir = \"/file\"\n[workers]\nthreads = 3\n");
    let run = |flags: &[&str]| {
        let mut command = Command::new(TRUEUP);
        command.arg("config").arg("--config").arg(home.config_path()).args(flags);
        let output = command.env("TRUEUP_WORKERS", "5").output().unwrap();
        text(&output.stdout).parse::<toml::Table>().unwrap()
    };
    let by_environment = run(&[]);
    assert_eq!(by_environment["data_dir"].as_str(), Some("/file"));
    assert_eq!(by_environment["workers"]["threads"].as_integer(), Some(5));
    // It is `time.future_skew_max` alone that says so.
    assert!(by_environment["limits"].get("future_skew_us_max").is_none());
    assert!(by_environment["limits"]["body_bytes_max"].is_integer());
    assert_eq!(run(&["--workers", "6"])["workers"]["threads"].as_integer(), Some(6));
}

#[test]
fn wrong_use_ends_with_2_and_says_what_is_wrong() {
    let cases: [(&str, &str); 12] = [
        ("[time]\nallowed_latenes = \"5m\"\n", "did you mean `allowed_lateness`?"),
        ("[time]\ntick = \"soon\"\n", "`soon`"),
        ("[time]\nallowed_lateness = \"2d\"\n", "correction_horizon"),
        ("[server]\nlisten = \"0.0.0.0:80\"\n", "token"),
        ("[[rollup]]\nname = \"r\"\ndimensions = [\"campaignId\", \"cuontry\"]\n", "`cuontry`"),
        ("[limits]\nbody_bytes_max = \"many\"\n", "many"),
        ("[limits]\npixel_linger_ms = 5000\n", "pixel_linger_ms"),
        ("[limits]\nfuture_skew_us_max = 5\n", "future_skew_us_max"),
        ("[queries]\npage_rows_max = 0\n", "`queries.page_rows_max` is 0; give 1 to"),
        ("[queries]\nunread_ms_max = 0\n", "`queries.unread_ms_max` is 0; give 1 to"),
        ("[queries]\nsubscribers_max = 9223372036854775807\n", "`queries.subscribers_max` is 92"),
        ("[queries]\nanswer_bytes_in_flight_max = \"lots\"\n", "`lots` is no size"),
    ];
    for (config, named) in cases {
        let home = Home::new(config);
        for command in ["config", "serve"] {
            let (code, _, stderr) = home.run(&[command]);
            assert_eq!(code, Some(2), "{config}: {stderr}");
            assert!(stderr.contains(named), "`{named}` is not in: {stderr}");
        }
        assert!(!home.data().exists(), "{config} made a data directory");
    }
    for args in [&["serv"][..], &["serve", "--dta", "x"], &["bench", "ads9"], &[]] {
        let output = trueup(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
        assert!(!output.stderr.is_empty());
    }
    let nothing = tempfile::tempdir().unwrap();
    let missing = nothing.path().join("missing").display().to_string();
    for command in ["verify", "doctor"] {
        let output = trueup(&[command, "--data", &missing]);
        assert_eq!(output.status.code(), Some(2), "{command}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(&missing), "{}", text(&output.stderr));
    }
}

/// What a process of a cluster needs is told before it takes a port or makes a directory.
#[test]
fn a_worker_is_told_what_it_lacks_before_it_takes_anything() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret").display().to_string();
    let home = Home::new(&format!(
        "[log]\nkind = \"kafka\"\n[kafka]\nbrokers = \"127.0.0.1:1\"\n\
         [checkpoint]\nstore = \"/shared\"\n[cluster]\nsecret_file = \"{secret}\"\n"
    ));
    let worker = |args: &[&str]| {
        let listen = ["worker", "--listen", &address];
        let (code, _, stderr) = home.run(&[&listen[..], args].concat());
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
        assert!(!home.data().exists(), "{args:?} made a data directory");
        stderr
    };
    for (args, named) in [
        (&["--hosts", "a:1,b", "--process", "0"][..], "`b`"),
        (&["--hosts", "a:1,b:1,a:1", "--process", "0"], "`a:1` is process 0 and process 2"),
        (&["--hosts", "a:1,b:1", "--process", "2"], "`workers.process` is 2"),
        (&["--hosts", "a:1,b:1"], "`--process`"),
        (&["--hosts", "a:1,b:1", "--process", "one"], "'one'"),
        (&["--hosts", "a:1,b:1", "--process", "1"], &secret),
    ] {
        let stderr = worker(args);
        assert!(stderr.contains(named), "`{named}` is not in: {stderr}");
        assert!(!stderr.contains(&address), "the port came first: {stderr}");
    }
    std::fs::write(&secret, "sixteen bytes or more").unwrap();
    let stderr = worker(&["--hosts", "a:1,b:1", "--process", "1"]);
    assert!(stderr.contains(&format!("cannot listen on {address}")), "{stderr}");
}

#[test]
fn a_form_that_cannot_be_written_costs_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("events");
    std::fs::write(&out, "of value").unwrap();
    let path = out.to_str().unwrap();
    for args in
        [["--workload", "demo", "--out", path], ["--workload", "ads1", "--to", "http://[::1]:9"]]
    {
        let output = trueup(&[&["generate", "--format", "batch"], &args[..]].concat());
        assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("--format batch"), "{}", text(&output.stderr));
    }
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "of value");
}

#[test]
fn generated_traffic_is_the_same_every_time() {
    for workload in ["ads1", "ysb", "demo"] {
        let generate = |seed: &str| {
            let args = ["generate", "--workload", workload, "--events", "2000", "--seed", seed];
            let output = trueup(&args);
            assert!(output.status.success(), "{}", text(&output.stderr));
            output.stdout
        };
        let lines = generate("1");
        assert_eq!(lines, generate("1"), "{workload}");
        let count = lines.split(|&b| b == b'\n').filter(|line| !line.is_empty()).count();
        // The demo comes in whole ticks, and sends some events that are no JSON on purpose.
        assert!(count >= 2_000, "{workload}: {count} lines");
        if workload != "demo" {
            assert_eq!(count, 2_000);
            let first: Value =
                serde_json::from_slice(lines.split(|&b| b == b'\n').next().unwrap()).unwrap();
            assert!(first.is_object());
        }
    }
}

#[test]
fn the_benchmark_checks_its_answer() {
    let args =
        ["bench", "ads1-engine", "--events", "500000", "--runs", "1", "--query", "q1", "--json"];
    let output = trueup(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(line.is_object(), "{line}");
}
