//! A server that answers from a list of texts: what is compared of its counts and lists, and what
//! is asked again. It is no HTTP server beyond what one client needs.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::{
    commands::remote::of_one_epoch,
    verify::{Asides, Comparison, Recomputed, SetAside, Views, compare_counts, compare_events},
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
};

/// Answers each request by its path; gives what is asked for, in order.
fn fake(
    answer: impl Fn(&str) -> (u16, Value) + Send + 'static,
) -> (Remote, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let paths = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let Some(Ok(first)) = lines.next() else { continue };
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let path = first.split(' ').nth(1).unwrap().to_owned();
            let (status, body) = answer(&path);
            paths.lock().unwrap().push(path);
            let (body, head) = (body.to_string(), "Connection: close\r\nContent-Length");
            write!(stream, "HTTP/1.1 {status} Said\r\n{head}: {}\r\n\r\n{body}", body.len())
                .unwrap();
        }
    });
    (Remote::new(&base, None), asked)
}

fn counts(told: impl Fn(&str) -> u64) -> Value {
    let names = [
        "counted",
        "duplicate",
        "conflict",
        "quarantined",
        "tooLate",
        "late",
        "verdicts",
        "retractions",
        "verdictsTooLate",
        "arithmeticErrors",
        "folded",
    ];
    let told = names.into_iter().map(|name| (name.to_owned(), json!(told(name))));
    told.chain([("asOfEpoch".to_owned(), json!(7))]).collect()
}

fn row(fate: Fate, topic: &str, offset: u64, at_s: u32) -> Value {
    json!({
        "reason": fate.code(), "topic": topic, "partition": 1, "offset": offset, "row": 2,
        "logTime": format!("2026-11-28T12:00:{at_s:02}.5Z"), "event": null,
    })
}

/// A server with one event in each list, which `told` may change.
fn with_lists(
    told: impl Fn(Fate, &mut Vec<Value>, &mut u64) + Send + 'static,
) -> (Remote, Arc<Mutex<Vec<String>>>) {
    fake(move |path| match path.split('?').next().unwrap() {
        "/v1/status" => (200, json!({ "counts": counts(|name| name.len() as u64) })),
        "/v1/quarantine" => {
            let is = |fate: &&Fate| path.contains(&format!("reason={}&", fate.code()));
            let fate = *LISTED_FATES.iter().find(is).unwrap();
            let (mut rows, mut total) = (vec![row(fate, "events", fate as u64, 1)], 1);
            told(fate, &mut rows, &mut total);
            let body = json!({ "rows": rows, "total": total, "asOfEpoch": 7 });
            (200, body)
        }
        other => (404, json!({ "code": "unknown_route", "detail": other })),
    })
}

/// What a recomputation finds that agrees with [`with_lists`].
fn recomputed() -> Recomputed {
    let aside = |fate: Fate| SetAside {
        fate,
        position: Position { partition: 1, offset: fate as u64, row: 2 },
        log_time: LogTime(parse_rfc3339("2026-11-28T12:00:01.5Z").unwrap()),
        event_id: String::new(),
    };
    let mut asides = Asides::default();
    LISTED_FATES.iter().for_each(|&fate| asides.push(aside(fate)));
    Recomputed {
        epoch: 7,
        frontier: LogTime(0),
        views: Views::new(),
        dimensions: BTreeMap::new(),
        asides,
        counts: counts_of(&counts(|name| name.len() as u64)).unwrap(),
    }
}

fn compared(remote: &Remote, recomputed: &Recomputed) -> Comparison {
    let (epoch, counts) = remote.counts().unwrap();
    let events = remote.served_events(epoch).unwrap();
    let mut comparison = crate::verify::compare(recomputed, &Views::new(), &Default::default());
    compare_counts(recomputed, &counts, &mut comparison);
    compare_events(recomputed, &events, &mut comparison);
    comparison
}

#[test]
fn each_list_and_each_count_is_compared() {
    let (same, _) = with_lists(|_, _, _| {});
    let comparison = compared(&same, &recomputed());
    assert!(comparison.is_equal(), "{comparison}");
    for &fate in LISTED_FATES {
        // Another event than there was; one time is not the same; one is gone and not counted.
        let (moved, _) = with_lists(move |of, rows, _| {
            if of == fate {
                rows[0]["offset"] = json!(99);
            }
        });
        assert_eq!(compared(&moved, &recomputed()).different, 2, "{fate:?}");
        let (later, _) = with_lists(move |of, rows, _| {
            if of == fate {
                rows[0] = row(of, "events", of as u64, 2);
            }
        });
        assert_eq!(compared(&later, &recomputed()).different, 1, "{fate:?}");
        let (fewer, _) = with_lists(move |of, rows, total| {
            if of == fate {
                rows.clear();
                *total = 0;
            }
        });
        assert_eq!(compared(&fewer, &recomputed()).different, 2, "{fate:?}");
    }
    let mut other = recomputed();
    for number in 0..Counts::NUMBERS {
        let mut numbers = other.counts.numbers();
        numbers[number] += 1;
        other.counts = Counts::of_numbers(numbers);
        let comparison = compared(&same, &other);
        assert_eq!(comparison.different, 1, "{number}: {comparison}");
        other.counts = recomputed().counts;
    }
}

#[test]
fn lists_come_in_pages_and_name_their_topic() {
    let (remote, asked) = fake(|path| {
        let of = |rows: Value, next: Value| {
            (200, json!({ "rows": rows, "total": 3, "asOfEpoch": 7, "nextPageToken": next }))
        };
        let fate = Fate::Quarantined;
        if !path.contains(fate.code()) {
            of(json!([]), Value::Null)
        } else if path.contains("pageToken=next") {
            of(json!([row(fate, "verdicts", 5, 3)]), Value::Null)
        } else {
            of(json!([row(fate, "events", 9, 2), row(fate, "events", 8, 1)]), json!("next"))
        }
    });
    let events = remote.served_events(7).unwrap();
    let of = events.iter().find(|of| of.fate == Fate::Quarantined).unwrap();
    let places: Vec<_> =
        of.events.iter().map(|i| (i.position.place(), i.position.offset)).collect();
    assert_eq!(
        places,
        [((Topic::Events, 1), 9), ((Topic::Events, 1), 8), ((Topic::Verdicts, 1), 5)]
    );
    assert!(asked.lock().unwrap().iter().all(|path| path.contains("asOfEpoch=7")));
}

#[test]
fn counts_say_as_of_which_epoch_they_are() {
    let (remote, _) = fake(|_| (200, json!({ "counts": counts(|_| 5) })));
    let (epoch, counts) = remote.counts().unwrap();
    assert_eq!((epoch, counts.fates), (7, [5; 5]));
    let (remote, _) = fake(|_| (200, json!({ "counts": { "counted": 5 } })));
    assert!(remote.counts().is_err());
}

#[test]
fn an_epoch_that_has_gone_is_left_for_a_newer_one_and_nothing_else_is() {
    let (remote, asked) = fake(|path| match path.contains("asOfEpoch=3") {
        true => (410, json!({ "code": "epoch_gone", "detail": "3 is not kept" })),
        false => (403, json!({ "code": "forbidden", "detail": "operators alone" })),
    });
    let newest = Mutex::new(2);
    let refused = of_one_epoch(|| {
        let mut newest = newest.lock().unwrap();
        *newest += 1;
        remote.served_events(*newest)
    });
    assert!(refused.unwrap_err().contains("403"), "as of epoch 4");
    assert_eq!(asked.lock().unwrap().len(), 2);
    let refused = of_one_epoch(|| remote.served_events(3)).unwrap_err();
    assert!(refused.contains("3 is not kept") && refused.contains("flow.history"), "{refused}");
}
