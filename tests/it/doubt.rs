//! The commands that doubt what a server shows, through the built program: `verify` and `replay`
//! beside a server that runs and after it ended, with and without a difference, and a configuration
//! that would decide history anew.

use crate::{
    server::{Home, Server, copy_dir},
    traffic::{click, now_us, verdict},
};
use serde_json::{Value, json};

/// A server with some events, a late one, a conflict, and a verdict.
fn with_some(home: &Home) -> Server<'_> {
    let server = home.start();
    let client = server.client();
    let hour = trueup_operators::time::HOUR_US;
    let mut events: Vec<Value> = (0..50).map(|n| click(&format!("d{n}"), now_us())).collect();
    events.push(click("early", now_us() - 2 * hour));
    events.push(click("too_early", now_us() - 30 * hour));
    let mut other = click("d1", now_us());
    other["priceMicros"] = json!(7);
    events.push(other);
    client.collect(&events).expect(202);
    client.judge(&[verdict("d3", "invalid", now_us())]).expect(202);
    let counts = client.settled();
    assert_eq!((counts.counted, counts.too_late, counts.conflict), (51, 1, 1), "{counts:?}");
    server
}

fn url(server: &Server<'_>) -> String {
    format!("http://{}", server.client().address())
}

#[test]
fn beside_a_running_server_and_after_it_nothing_differs() {
    let home = Home::new("");
    let server = with_some(&home);
    let url = url(&server);
    for args in [
        &["verify", "--json"][..],
        &["verify", "--json", "--server", &url],
        &["replay", "--dry-run", "--server", &url],
        &["doctor", "--json"],
    ] {
        let (code, out, err) = home.run(args);
        assert_eq!(code, Some(0), "{args:?}: {out}{err}");
    }
    assert_eq!(server.terminate().code(), Some(0));
    let (code, out, err) = home.run(&["verify", "--json"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["equal"], json!(true));
    assert!(report["rows"]["audience_minute"].as_u64() > Some(1), "what was compared: {report}");
}

/// The other server began with a copy of the log and took other events: every difference is found,
/// and the exit code says so.
#[test]
fn a_server_that_shows_something_else_is_found_out() {
    let (home, other) = (Home::new(""), Home::new(""));
    assert_eq!(with_some(&home).terminate().code(), Some(0));
    copy_dir(&home.data(), &other.data());
    let (mine, yours) = (home.start(), other.start());
    // A row more there than here, at the same epochs or later ones.
    yours.client().collect(&[click("one_more", now_us() - 90 * 60_000_000)]).expect(202);
    yours.client().settled();
    // Well ahead of the other, so that this log has the epoch that the other shows. (An idle log
    // closes an epoch a second, one that takes events ten.)
    for n in 0..15 {
        mine.client().collect(&[click(&format!("here_{n}"), now_us())]).expect(202);
        mine.client().settled();
    }
    let (code, out, err) = home.run(&["verify", "--json", "--server", &url(&yours)]);
    assert_eq!(code, Some(1), "{out}{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["equal"], json!(false), "{report}");
    assert!(!report["differences"].as_array().unwrap().is_empty(), "{report}");
}

/// All rows are the same, and yet an event ended another way there than here.
#[test]
fn a_server_that_lists_and_counts_something_else_is_found_out() {
    let (home, other) = (Home::new(""), Home::new(""));
    assert_eq!(with_some(&home).terminate().code(), Some(0));
    copy_dir(&home.data(), &other.data());
    let (mine, yours) = (home.start(), other.start());
    let copy = |id: &str| {
        let mut other = click(id, now_us());
        other["priceMicros"] = json!(7);
        other
    };
    yours.client().collect(&[copy("d1")]).expect(202);
    yours.client().settled();
    // Well ahead of the other, without a row that changes.
    for n in 0..15 {
        mine.client().collect(&[copy(&format!("d{n}"))]).expect(202);
        mine.client().settled();
    }
    let (code, out, err) = home.run(&["verify", "--json", "--server", &url(&yours)]);
    assert_eq!(code, Some(1), "{out}{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let views: Vec<&str> = report["differences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|difference| difference["view"].as_str().unwrap())
        .collect();
    assert!(views.contains(&"quarantine"), "{report}");
    let of_events = ["counts", "id_conflict", "quarantine"];
    assert!(views.iter().all(|view| of_events.contains(view)), "{report}");
    // Of some views alone only rows are asked for.
    let rows = ["verify", "--view", "audience_minute", "--server", &url(&yours)];
    let (code, out, err) = home.run(&rows);
    assert_eq!(code, Some(0), "{out}{err}");
}

#[test]
fn what_would_compare_nothing_or_the_wrong_thing_is_wrong_use() {
    let (home, stranger) = (Home::new(""), Home::new(""));
    let (_mine, theirs) = (with_some(&home), with_some(&stranger));
    let theirs = url(&theirs);
    for (args, named) in [
        (&["verify", "--view", "audeince_minute"][..], "audience_minute"),
        (
            &["replay", "--dry-run", "--view", "audeince_minute", "--server", &theirs],
            "audience_minute",
        ),
        (&["replay", "--dry-run"], "--server"),
        (&["verify", "--server", &theirs], "installation"),
    ] {
        let (code, out, err) = home.run(args);
        assert_eq!(code, Some(2), "{args:?}: {out}{err}");
        assert!(err.contains(named), "{args:?}: {err}");
    }
}

#[test]
fn settings_that_would_decide_history_anew_are_refused() {
    let home = Home::new("");
    drop(with_some(&home));
    home.configure("[time]\ncorrection_horizon = \"1h\"\n");
    let replay = ["replay", "--dry-run", "--server", "http://127.0.0.1:9"];
    for command in [&["serve", "--listen", "127.0.0.1:0"][..], &["verify"], &replay] {
        let (code, _, err) = home.run(command);
        assert_eq!(code, Some(2), "{command:?}: {err}");
        assert!(err.contains("correction_horizon") && err.contains("86400000000"), "{err}");
    }
    // A rollup that is new is filled from the log.
    home.configure(
        "[[rollup]]\nname = \"fresh\"\ndimensions = [\"campaignId\"]\ngranularities = [\"day\"]\n",
    );
    let server = home.start();
    server.client().settled();
    let (_, rows) = server.client().view("fresh_day", None);
    let clicks: i64 = rows.iter().map(|row| row["clicks"].as_i64().unwrap()).sum();
    assert_eq!(clicks, 50, "{rows:?}");
}
