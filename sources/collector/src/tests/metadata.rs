//! Campaigns, ads, publishers and dimensions.

use super::{
    http::{request, world, world_on, world_with},
    memory_log::{MemoryLog, Mood},
};
use crate::{Collector, NoPressure, Settings, StartError};
use arrow_buffer::Buffer;
use axum::body::Body;
use std::sync::Arc;
use trueup_operators::log::{Append, Log, Topic};

#[tokio::test]
async fn entries_have_versions_and_conditions() {
    let world = world();
    let body = r#"{"advertiserId":"adv_1","name":"Spring","dailyBudgetMicros":5000000,
        "timezone":"Europe/Berlin","startAt":"2026-04-01T00:00:00Z"}"#;
    let put = world.put("/v1/campaigns/camp_1", &[], body).await;
    assert_eq!(put.status, 201);
    let first = put.header("etag").unwrap().to_owned();
    let get = world.get("/v1/campaigns/camp_1", &[]).await;
    assert_eq!((get.status.as_u16(), get.header("etag")), (200, Some(&*first)));
    assert_eq!(get.json()["name"], "Spring");
    assert_eq!(get.json()["campaignId"], "camp_1");
    // What GET shows can be put back.
    let again = String::from_utf8(get.body).unwrap().replace("Spring", "Summer");
    let put = world.put("/v1/campaigns/camp_1", &[("if-match", &first)], &again).await;
    assert_eq!(put.status, 200);
    let second = put.header("etag").unwrap().to_owned();
    assert_ne!(first, second);
    for (name, value) in [("if-match", &*first), ("if-none-match", "*")] {
        let put = world.put("/v1/campaigns/camp_1", &[(name, value)], body).await;
        assert_eq!((put.status.as_u16(), put.code().as_str()), (412, "version_mismatch"));
    }
    let missing = world.put("/v1/campaigns/camp_2", &[("if-match", "*")], body).await;
    assert_eq!(missing.status, 412);
    let delete = |tag: &str| {
        request("DELETE", "/v1/campaigns/camp_1", "operates", &[("if-match", tag)], Body::empty())
    };
    assert_eq!(world.send(delete(&first)).await.status, 412);
    assert_eq!(world.send(delete(&second)).await.status, 204);
    assert_eq!(world.get("/v1/campaigns/camp_1", &[]).await.code(), "unknown_entry");
    let put = world.put("/v1/campaigns/camp_1", &[("if-none-match", "*")], body).await;
    assert_eq!(put.status, 201);
    assert_ne!(put.header("etag").unwrap(), second, "no version is used again");
}

#[tokio::test]
async fn what_is_put_is_checked() {
    let world = world();
    for (uri, body, named) in [
        ("/v1/ads/a", r#"{"landingUrl":"javascript:alert(1)"}"#, "landingUrl"),
        ("/v1/ads/a", r#"{"landingUrl":"ftp://example.com/"}"#, "ftp://"),
        ("/v1/ads/a", r#"{"landingUrl":"//example.com/"}"#, "//example.com/"),
        ("/v1/ads/a", r#"{"landingUrl":"https:///x"}"#, "landingUrl"),
        ("/v1/ads/a", r#"{"landingUrl":"https://example.com/\r\nx: y"}"#, "landingUrl"),
        ("/v1/ads/a", r#"{"campaignId":""}"#, "campaignId"),
        ("/v1/ads/a", r#"{"priceMicros":-1}"#, "priceMicros"),
        ("/v1/ads/a", r#"{"price":1}"#, "price"),
        ("/v1/campaigns/c", r#"{"dailyBudgetMicros":-5}"#, "dailyBudgetMicros"),
        ("/v1/campaigns/c", r#"{"dailyBudgetMicros":1.5}"#, "1.5"),
        ("/v1/campaigns/c", r#"{"startAt":"soon"}"#, "soon"),
        (
            "/v1/campaigns/c",
            r#"{"startAt":"2026-01-02T00:00:00Z","endAt":"2026-01-01T00:00:00Z"}"#,
            "endAt",
        ),
        ("/v1/publishers/p", r#"{"domain":7}"#, "7"),
        ("/v1/publishers/p", "[]", "object"),
        ("/v1/publishers/p", "{", "EOF"),
    ] {
        let answer = world.put(uri, &[], body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (400, "bad_metadata"),
            "{body}"
        );
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(named), "{body}: {detail}");
    }
    for (uri, body) in [
        ("/v1/campaigns/c", r#"{"advertiserId":"(other)"}"#),
        ("/v1/campaigns/c", r#"{"name":"(other)"}"#),
        ("/v1/ads/a", r#"{"campaignId":"(other)"}"#),
        ("/v1/ads/a", r#"{"creativeId":"(other)"}"#),
        ("/v1/publishers/p", r#"{"name":"(other)"}"#),
        ("/v1/campaigns/(other)", "{}"),
        ("/v1/ads/%28other%29", "{}"),
        ("/v1/publishers/(other)", "{}"),
    ] {
        let answer = world.put(uri, &[], body).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "reserved_text"));
        assert!(answer.json()["detail"].as_str().unwrap().contains("(other)"), "{uri} {body}");
    }
    let long = format!("/v1/ads/{}", "a".repeat(65));
    assert_eq!(world.put(&long, &[], "{}").await.status, 400);
    let large = format!(r#"{{"name":"{}"}}"#, "n".repeat(20_000));
    assert_eq!(world.put("/v1/campaigns/c", &[], &large).await.status, 413);
    for token in ["collects", "reads"] {
        let put = world.send(request("PUT", "/v1/ads/a", token, &[], "{}")).await;
        assert_eq!(put.status, 403);
    }
    assert_eq!(
        world.send(request("GET", "/v1/ads/a", "collects", &[], Body::empty())).await.status,
        403
    );
    assert!(world.log.frames(Topic::Metadata).is_empty());
}

#[tokio::test]
async fn ids_that_are_no_text_are_problems() {
    let world = world();
    for kind in ["campaigns", "ads", "publishers"] {
        for method in ["GET", "PUT", "DELETE"] {
            for id in ["%ff", "a%C3%28"] {
                let uri = format!("/v1/{kind}/{id}");
                let answer = world.send(request(method, &uri, "operates", &[], "{}")).await;
                assert_eq!(answer.code(), "bad_path", "{method} {uri}");
                assert_eq!(answer.status, 400);
            }
        }
    }
}

#[tokio::test]
async fn lists_go_page_by_page() {
    let world = world();
    for n in 0..25 {
        let uri = format!("/v1/publishers/pub_{n:02}");
        assert_eq!(world.put(&uri, &[], r#"{"name":"n"}"#).await.status, 201);
    }
    world.put("/v1/ads/zzz", &[], "{}").await;
    let (mut ids, mut after) = (Vec::new(), String::new());
    loop {
        let uri = format!("/v1/publishers?limit=10&after={after}");
        let page = world.get(&uri, &[]).await.json();
        let rows = page["publishers"].as_array().unwrap().clone();
        ids.extend(rows.iter().map(|row| row["publisherId"].as_str().unwrap().to_owned()));
        match page["nextAfter"].as_str() {
            Some(next) => after = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(ids, (0..25).map(|n| format!("pub_{n:02}")).collect::<Vec<_>>());
    assert_eq!(world.get("/v1/publishers?limit=ten", &[]).await.code(), "bad_query");
    let dimensions = world.get("/v1/dimensions", &[]).await.json();
    assert_eq!(dimensions["dimensions"][0]["name"], "campaignId");
}

#[tokio::test]
async fn the_log_brings_everything_back() {
    let log = MemoryLog::new(4);
    let world = world_on(log.clone(), Settings::default(), Arc::new(NoPressure));
    for n in 0..10 {
        let ad = format!(r#"{{"campaignId":"camp_{n}","landingUrl":"https://example.com/{n}"}}"#);
        world.put(&format!("/v1/ads/ad_{n}"), &[], &ad).await;
    }
    world.put("/v1/ads/ad_3", &[], r#"{"landingUrl":"http://example.com/new"}"#).await;
    world.send(request("DELETE", "/v1/ads/ad_4", "operates", &[], Body::empty())).await;
    world.put("/v1/campaigns/camp_1", &[], r#"{"advertiserId":"adv_1"}"#).await;
    let before = world.get("/v1/ads?limit=100", &[]).await.body;
    let later = world_on(log, Settings::default(), Arc::new(NoPressure));
    assert_eq!(later.get("/v1/ads?limit=100", &[]).await.body, before);
    let metadata = later.collector.metadata();
    assert_eq!(metadata.ad("ad_3").unwrap().landing_url.as_deref(), Some("http://example.com/new"));
    assert_eq!(metadata.ad("ad_4"), None);
    assert_eq!(metadata.advertiser_of("camp_1").as_deref(), Some("adv_1"));
}

#[tokio::test]
async fn a_change_that_is_not_durable_is_not_visible() {
    let world = world();
    world.log.set(Mood::Failing);
    assert_eq!(world.put("/v1/ads/a", &[], "{}").await.status, 503);
    assert_eq!(world.get("/v1/ads/a", &[]).await.status, 404);
}

#[tokio::test]
async fn entries_are_bounded() {
    let settings = Settings { metadata_entries_max: 2, ..Settings::default() };
    let world = world_with(settings, Arc::new(NoPressure));
    assert_eq!(world.put("/v1/ads/a", &[], "{}").await.status, 201);
    assert_eq!(world.put("/v1/campaigns/b", &[], "{}").await.status, 201);
    assert_eq!(world.put("/v1/ads/c", &[], "{}").await.code(), "metadata_full");
    assert_eq!(world.put("/v1/ads/a", &[], "{}").await.status, 200, "changing is no growing");
}

#[tokio::test]
async fn a_damaged_topic_is_named() {
    let log = MemoryLog::new(1);
    let frame = Append {
        topic: Topic::Metadata,
        partition: 0,
        schema_version: 1,
        records: 1,
        payload: Buffer::from_vec(b"nonsense".to_vec()),
    };
    log.append(vec![frame], Box::new(|_| {})).unwrap();
    let error = Collector::new(
        log,
        super::http::KEY,
        Arc::default(),
        Settings::default(),
        Arc::new(NoPressure),
        Arc::new(|| 0),
    )
    .map(|_| ())
    .unwrap_err();
    assert!(matches!(error, StartError::Metadata { offset: 0, .. }), "{error}");
}

#[tokio::test]
async fn what_only_an_old_frame_says_is_said_again() {
    let world = world();
    for (n, name) in ["a", "b", "c", "b"].into_iter().enumerate() {
        let body = format!(r#"{{"name":"{name} {n}"}}"#);
        world.put(&format!("/v1/campaigns/{name}"), &[], &body).await;
    }
    let delete = request("DELETE", "/v1/campaigns/c", "operates", &[], Body::empty());
    assert_eq!(world.send(delete).await.status, 204);
    // The frames of `a`, `b`, `c`, `b` again, and that `c` is gone.
    let collector = world.collector.clone();
    assert_eq!(collector.metadata_needed_from(), 0);
    let renewed = tokio::task::spawn_blocking(move || {
        let renewed = collector.renew_metadata(3).unwrap();
        (renewed, collector.renew_metadata(3).unwrap(), collector.metadata_needed_from())
    });
    assert_eq!(renewed.await.unwrap(), (1, 0, 3));
    for (name, value) in [("a", "a 0"), ("b", "b 3")] {
        let got = world.get(&format!("/v1/campaigns/{name}"), &[]).await;
        assert_eq!(got.json()["name"], value);
    }
    assert_eq!(world.get("/v1/campaigns/c", &[]).await.status, 404);
    let a = world.get("/v1/campaigns/a", &[]).await;
    assert_eq!(a.header("etag"), Some("\"6\""));
}
