//! Metadata on a log that several processes append to: what one is told, all know.

use super::{
    http::{Answer, World, request, world_on},
    memory_log::{MemoryLog, Mood},
};
use crate::{NoPressure, Settings};
use arrow_buffer::Buffer;
use axum::{body::Body, http::Request};
use serde_json::json;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use trueup_operators::log::{Append, Log, Topic};

const AD: &str = "/v1/ads/ad_1";
const CLICK: &str = "/click?ad_id=ad_1&event_id=e1";

fn processes() -> (Arc<MemoryLog>, World, World) {
    let log = MemoryLog::shared(2);
    let process = || world_on(log.clone(), Settings::default(), Arc::new(NoPressure));
    let (one, other) = (process(), process());
    (log, one, other)
}

fn page(name: &str) -> String {
    json!({ "landingUrl": format!("https://shop.example/{name}") }).to_string()
}

fn tag(answer: &Answer) -> String {
    answer.header("etag").unwrap().to_owned()
}

fn anonymous(uri: &str) -> Request<Body> {
    request("GET", uri, "", &[], Body::empty())
}

/// Asks until the answer has a status.
async fn until(world: &World, uri: &str, status: u16) -> Answer {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let token = if uri.starts_with("/v1/") { "reads" } else { "" };
        let answer = world.send(request("GET", uri, token, &[], Body::empty())).await;
        if answer.status == status {
            return answer;
        }
        assert!(Instant::now() < until, "{uri} stays at {}", answer.status);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn append(log: &MemoryLog, payload: &str) {
    let frame = Append {
        topic: Topic::Metadata,
        partition: 0,
        schema_version: 1,
        records: 1,
        payload: Buffer::from_vec(payload.as_bytes().to_vec()),
    };
    log.append(vec![frame], Box::new(|_| {})).unwrap();
}

#[tokio::test]
async fn what_one_process_is_told_the_others_know() {
    let (_log, one, other) = processes();
    assert_eq!(other.send(anonymous(CLICK)).await.code(), "unknown_ad");
    let first = one.put(AD, &[], &page("a")).await;
    assert_eq!(first.status, 201);
    let answer = until(&other, CLICK, 302).await;
    assert_eq!(answer.header("location"), Some("https://shop.example/a"));
    assert_eq!(tag(&until(&other, AD, 200).await), tag(&first), "one version everywhere");
    one.put("/v1/campaigns/c", &[], r#"{"advertiserId":"adv"}"#).await;
    until(&other, "/v1/campaigns/c", 200).await;
    assert_eq!(other.collector.metadata().advertiser_of("c").as_deref(), Some("adv"));
    let gone = request("DELETE", AD, "operates", &[], Body::empty());
    assert_eq!(other.send(gone).await.status, 204);
    until(&one, CLICK, 404).await;
}

#[tokio::test]
async fn a_version_of_one_process_is_a_condition_at_another() {
    let (_log, one, other) = processes();
    // At once, before the other can have followed by itself.
    let first = tag(&one.put(AD, &[], &page("a")).await);
    let second = other.put(AD, &[("if-match", &first)], &page("b")).await;
    assert_eq!(second.status, 200, "{}", String::from_utf8_lossy(&second.body));
    let lost = one.put(AD, &[("if-match", &first)], &page("c")).await;
    assert_eq!((lost.status.as_u16(), lost.code().as_str()), (412, "version_mismatch"));
    assert_eq!(one.put(AD, &[("if-none-match", "*")], &page("c")).await.status, 412);
    let gone = request("DELETE", AD, "operates", &[("if-match", &tag(&second))], Body::empty());
    assert_eq!(one.send(gone).await.status, 204);
    let none = request("DELETE", AD, "operates", &[], Body::empty());
    assert_eq!(other.send(none).await.code(), "unknown_entry");
    assert_eq!(other.put(AD, &[("if-match", "*")], &page("d")).await.status, 412);
    assert_eq!(other.put(AD, &[("if-none-match", "*")], &page("d")).await.status, 201);
}

/// Waits until the log holds so many appends back.
async fn is_held(log: &MemoryLog, appends: usize) {
    let until = Instant::now() + Duration::from_secs(10);
    while log.held() < appends {
        assert!(Instant::now() < until, "{} of {appends} appends came", log.held());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Two changes, both decided before the log has either of them.
async fn at_once(headers: &[(&str, &str)]) -> (World, World, [Answer; 2]) {
    let (log, one, other) = processes();
    let first = tag(&one.put(AD, &[], &page("0")).await);
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| (*name, if *value == "first" { &*first } else { value }))
        .collect();
    log.set(Mood::Slow);
    let (a, b) = (page("a"), page("b"));
    let released = async {
        is_held(&log, 2).await;
        log.set(Mood::Well);
        log.release();
    };
    let (a, b, ()) = tokio::join!(one.put(AD, &headers, &a), other.put(AD, &headers, &b), released);
    (one, other, [a, b])
}

#[tokio::test]
async fn of_two_changes_of_one_version_the_log_takes_the_first() {
    let (one, other, answers) = at_once(&[("if-match", "first")]).await;
    let mut statuses = answers.each_ref().map(|answer| answer.status.as_u16());
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412], "one of them wins, and one alone");
    let [won, lost] = match answers[0].status.as_u16() {
        200 => answers,
        _ => {
            let [a, b] = answers;
            [b, a]
        }
    };
    assert_eq!(lost.code(), "version_mismatch");
    for world in [&one, &other] {
        let entry = world.get(AD, &[]).await;
        assert_eq!((tag(&entry), entry.json()), (tag(&won), won.json()));
    }
}

#[tokio::test]
async fn of_two_changes_without_a_condition_the_log_takes_the_last() {
    let (one, other, answers) = at_once(&[]).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    let last = answers.iter().max_by_key(|answer| answer.json()["version"].as_u64()).unwrap();
    for world in [&one, &other] {
        let until = Instant::now() + Duration::from_secs(10);
        while tag(&world.get(AD, &[]).await) != tag(last) {
            assert!(Instant::now() < until);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(world.get(AD, &[]).await.json(), last.json());
    }
}

#[tokio::test]
async fn while_the_log_is_away_a_change_waits_and_a_condition_is_refused() {
    let (log, one, other) = processes();
    let first = tag(&one.put(AD, &[], &page("a")).await);
    until(&other, AD, 200).await;
    log.set(Mood::Away);
    let refused = one.put(AD, &[("if-match", &first)], &page("b")).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (503, "metadata_behind"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(log.held(), 0, "nothing was taken of what is refused");
    let waits = one.put(AD, &[], &page("c")).await;
    assert_eq!((waits.status.as_u16(), waits.header("etag")), (202, None));
    assert_eq!(waits.json()["pending"], true);
    assert_eq!(tag(&one.get(AD, &[]).await), first, "visible once the log holds it");
    log.set(Mood::Well);
    log.release();
    for world in [&one, &other] {
        let until = Instant::now() + Duration::from_secs(10);
        while world.get(AD, &[]).await.json()["landingUrl"] != "https://shop.example/c" {
            assert!(Instant::now() < until);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    assert_eq!(tag(&one.get(AD, &[]).await), tag(&other.get(AD, &[]).await));
}

#[tokio::test]
async fn a_change_that_goes_away_with_the_log_is_said_to_be_undecided() {
    let (log, one, _other) = processes();
    let first = tag(&one.put(AD, &[], &page("a")).await);
    log.set(Mood::Slow);
    let body = page("b");
    let taken = async {
        is_held(&log, 1).await;
        // It is durable somewhere, but not where it can be read.
        log.set(Mood::Unreadable);
        log.release();
    };
    let headers = [("if-match", &*first)];
    let (answer, ()) = tokio::join!(one.put(AD, &headers, &body), taken);
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "change_undecided"));
    assert!(answer.header("retry-after").is_some());
    log.set(Mood::Well);
    let until = Instant::now() + Duration::from_secs(10);
    while one.get(AD, &[]).await.json()["landingUrl"] != "https://shop.example/b" {
        assert!(Instant::now() < until, "who follows goes on when the log can be read again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_the_log_has_twice_counts_once() {
    let (log, one, other) = processes();
    let first = tag(&one.put(AD, &[], &page("a")).await);
    let second = one.put(AD, &[("if-match", &first)], &page("b")).await;
    let frames = log.frames(Topic::Metadata);
    for frame in &frames {
        append(&log, std::str::from_utf8(&frame.payload).unwrap());
    }
    // The first again, without a condition, is the last in the log; the second's no longer holds.
    let end = 2 * frames.len() as u64;
    let third = format!("\"{}\"", end - 1);
    for world in [&one, &other] {
        let until = Instant::now() + Duration::from_secs(10);
        while tag(&world.get(AD, &[]).await) != third {
            assert!(Instant::now() < until, "{second:?}", second = tag(&second));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(world.get(AD, &[]).await.json()["landingUrl"], "https://shop.example/a");
    }
    // The same twice in a row is one change.
    let fourth = tag(&one.put(AD, &[], &page("d")).await);
    let last = log.frames(Topic::Metadata).pop().unwrap();
    append(&log, std::str::from_utf8(&last.payload).unwrap());
    let after = one.put(AD, &[("if-match", &fourth)], &page("e")).await;
    assert_eq!(after.status, 200, "its version is that of the first copy");
}

#[tokio::test]
async fn what_is_no_metadata_is_passed_over_by_all() {
    let (log, one, other) = processes();
    append(&log, "nonsense");
    append(&log, r#"[{"kind":"ad","id":"old","value":{"campaignId":"c"}}]"#);
    for world in [&one, &other] {
        until(world, "/v1/ads/old", 200).await;
    }
    let third = world_on(log, Settings::default(), Arc::new(NoPressure));
    assert_eq!(third.get("/v1/ads/old", &[]).await.status, 200);
}

#[tokio::test]
async fn who_follows_ends_with_the_collector() {
    let (log, one, other) = processes();
    drop((one, other));
    assert_eq!(Arc::strong_count(&log), 1, "nothing holds the log any more");
}
