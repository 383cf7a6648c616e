//! `/click`, `/i` and `/conversion`.

use super::{
    http::{Answer, KEY, NOW_US, World, batch, event, request, world, world_with},
    memory_log::Mood,
    rows::{Row, hex, rows},
};
use crate::{NoPressure, Settings, pixel::GIF};
use axum::{body::Body, extract::ConnectInfo, http::HeaderValue};
use serde_json::Value;
use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};
use trueup_operators::{hash::Domain, log::Topic};

const PERSON: (&str, &str) = ("user-agent", "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5)");

async fn with_ad() -> World {
    let world = world();
    let ad = r#"{"campaignId":"camp_1","landingUrl":"https://shop.example/shoes?a=1",
        "creativeId":"cr_1","priceMicros":250000}"#;
    assert_eq!(world.put("/v1/ads/ad_1", &[], ad).await.status, 201);
    world
}

async fn visit(world: &World, uri: &str, headers: &[(&str, &str)], peer: Option<&str>) -> Answer {
    let mut request = request("GET", uri, "", headers, Body::empty());
    if let Some(peer) = peer {
        let address: SocketAddr = peer.parse().unwrap();
        request.extensions_mut().insert(ConnectInfo(address));
    }
    world.send(request).await
}

fn events_of(world: &World) -> Vec<Row> {
    rows(&world.log.frames(Topic::Events), 4)
}

#[tokio::test]
async fn a_click_leads_to_the_landing_page_and_nowhere_else() {
    let world = with_ad().await;
    let uri = "/click?ad_id=ad_1&campaign_id=camp_456&creative=v2&user_id=u1&device=ios&geo=US-CA\
               &publisher=pub_1&placement=top&imp=imp_1&ts=1777303900&url=https://evil.example/";
    let answer = visit(&world, uri, &[PERSON], Some("192.0.2.1:5000")).await;
    assert_eq!(answer.status, 302);
    assert_eq!(answer.header("location"), Some("https://shop.example/shoes?a=1"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let row = &events_of(&world)[0];
    for (column, value) in [
        ("event_type", "1"),
        ("occurred_at", "1777303900000000"),
        ("campaign_id", "camp_1"),
        ("ad_id", "ad_1"),
        ("creative_id", "v2"),
        ("device_type", "ios"),
        ("country", "US"),
        ("region", "US-CA"),
        ("publisher_id", "pub_1"),
        ("placement_id", "top"),
        ("impression_id", "imp_1"),
        ("source", "redirect"),
        ("price_micros", "250000"),
        ("user_agent", PERSON.1),
    ] {
        assert_eq!(row[column], value, "{column}");
    }
    assert_eq!(row["user_hash"], hex(&KEY.hash(Domain::User, b"u1")));
    assert_eq!(row["ip_hash"], hex(&KEY.hash(Domain::Ip, b"192.0.2.1")));
    let extra: Value = serde_json::from_str(&row["extra"]).unwrap();
    assert_eq!(extra["query"]["campaign_id"], "camp_456", "the ad's campaign counts");
    assert_eq!(extra["query"]["url"], "https://evil.example/");
    assert!(!row.contains_key("invalid_reason"));
    for uri in ["/click?ad_id=ad_2", "/click", "/click?ad_id="] {
        let answer = visit(&world, uri, &[PERSON], None).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (404, "unknown_ad"));
    }
    assert_eq!(events_of(&world).len(), 1);
}

#[tokio::test]
async fn pixels_are_gifs_of_43_bytes() {
    let world = with_ad().await;
    for (uri, kind, campaign) in [
        ("/i?ad_id=ad_1", "0", "camp_1"),
        ("/i?ad_id=ad_9&campaign_id=camp_9", "0", "camp_9"),
        ("/i?ad_id=ad_9", "0", "(unknown)"),
        ("/conversion?ad_id=ad_1&value_micros=5000000&click_id=k1", "2", "camp_1"),
    ] {
        let before = world.log.frames(Topic::Events).len();
        let answer = visit(&world, uri, &[PERSON], None).await;
        assert_eq!(answer.status, 200, "{uri}");
        assert_eq!(answer.header("content-type"), Some("image/gif"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!((answer.body.len(), &answer.body[..]), (43, &GIF[..]));
        let row = &rows(&world.log.frames(Topic::Events)[before..], 4)[0];
        assert_eq!((&*row["event_type"], &*row["campaign_id"]), (kind, campaign), "{uri}");
        assert_eq!(row["occurred_at"], NOW_US.to_string());
    }
    assert_eq!(visit(&world, "/i?campaign_id=c", &[PERSON], None).await.status, 400);
}

#[tokio::test]
async fn what_breaks_a_rule_never_spoils_the_click() {
    let world = with_ad().await;
    let long = "x".repeat(100);
    let uri = format!(
        "/click?ad_id=ad_1&geo=Germany&device=a-very-long-device-type&publisher={long}&imp=\
         &ts=tomorrow&value_micros=1.5&eventId=forged&ad_id=ad_2&ad_id=ad_3&utm%20x=%22%00%C3%28"
    );
    let answer = visit(&world, &uri, &[PERSON], None).await;
    assert_eq!(answer.status, 302);
    let row = &events_of(&world)[0];
    assert_eq!((&*row["ad_id"], &*row["occurred_at"]), ("ad_1", &*NOW_US.to_string()));
    assert!(row["event_id"].starts_with("px_01"));
    let extra: Value = serde_json::from_str(&row["extra"]).unwrap();
    let query = extra["query"].as_object().unwrap();
    for (name, value) in [
        ("geo", "Germany"),
        ("device", "a-very-long-device-type"),
        ("publisher", &*long),
        ("imp", ""),
        ("ts", "tomorrow"),
        ("value_micros", "1.5"),
        ("eventId", "forged"),
        ("ad_id", "ad_2"),
        ("ad_id#2", "ad_3"),
        ("utm x", "\"\0\u{fffd}("),
    ] {
        assert_eq!(query[name], value, "{name}");
    }
    assert_eq!(query.len(), 10);
    let uri = format!("/click?ad_id=ad_1&x={}", "y".repeat(5000));
    assert_eq!(visit(&world, &uri, &[PERSON], None).await.status, 414);
    let uri = format!("/click?ad_id=ad_1{}", "&a=1".repeat(64));
    assert_eq!(visit(&world, &uri, &[PERSON], None).await.code(), "too_many_parameters");
}

#[tokio::test]
async fn the_name_that_no_event_may_have_never_spoils_the_click() {
    let world = with_ad().await;
    let uri = "/click?ad_id=ad_1&device=(other)&publisher=(other)&campaign_id=(other)\
               &event_id=(other)&region=(other)&user_id=(other)&gpp=(other)";
    let headers = [("user-agent", "(other)"), ("referer", "(other)")];
    assert_eq!(visit(&world, uri, &headers, None).await.status, 302);
    let uri = "/i?ad_id=ad_9&campaign_id=(other)";
    assert_eq!(visit(&world, uri, &headers, None).await.status, 200);
    let mut rows = events_of(&world);
    rows.sort_by(|a, b| a["ad_id"].cmp(&b["ad_id"]));
    let queries = rows.iter().map(|row| serde_json::from_str::<Value>(&row["extra"]).unwrap());
    let queries: Vec<Value> = queries.map(|extra| extra["query"].clone()).collect();
    for name in ["device", "publisher", "campaign_id", "region"] {
        assert_eq!(queries[0][name], "(other)", "{name}");
    }
    assert!(
        queries[0].get("user_id").is_none(),
        "who somebody is, is kept as a hash or not at all"
    );
    assert_eq!(queries[1]["campaign_id"], "(other)");
    assert_eq!((&*rows[0]["event_id"], &*rows[1]["campaign_id"]), ("px:(other)", "(unknown)"));
    assert!(!rows[0].contains_key("user_agent") && !rows[0].contains_key("referrer"));
}

#[tokio::test]
async fn who_somebody_is_is_never_kept_as_it_came() {
    let world = with_ad().await;
    let long = "RAW-".repeat(100);
    for uri in [
        "/click?ad_id=ad_1&user_id=u1&user_id=RAW-2&user_id=RAW-3&x=kept".to_owned(),
        format!("/click?ad_id=ad_1&user_id={long}&x=kept"),
        "/click?ad_id=ad_1&userId=RAW-1&USERID=RAW-2&user-id=RAW-3&user%5Fid=u1&x=kept".into(),
        "/i?ad_id=ad_1&ip=RAW-192.0.2.9&IP=RAW-192.0.2.9&x=kept".into(),
        "/conversion?ad_id=ad_1&user_id[]=RAW-1&user.id=RAW-2&x=kept".into(),
    ] {
        let answer = visit(&world, &uri, &[PERSON], Some("192.0.2.1:5000")).await;
        assert!(answer.status.as_u16() < 400, "{uri}");
        let frames = world.log.frames(Topic::Events);
        let last = &frames[frames.len() - 1..];
        assert!(!last[0].payload.windows(4).any(|bytes| bytes == b"RAW-"), "{uri}");
        let row = &rows(last, 4)[0];
        let extra: Value = serde_json::from_str(&row["extra"]).unwrap();
        assert_eq!(extra["query"], serde_json::json!({ "x": "kept" }), "{uri}");
        let first = Some(hex(&KEY.hash(Domain::User, b"u1")));
        let expected = first.filter(|_| uri.contains("=u1"));
        assert_eq!(row.get("user_hash"), expected.as_ref(), "{uri}");
    }
}

#[tokio::test]
async fn robots_and_floods_get_the_same_answer_and_are_marked() {
    let world = with_ad().await;
    let robot = ("user-agent", "Mozilla/5.0 (compatible; Googlebot/2.1)");
    let answer = visit(&world, "/click?ad_id=ad_1", &[robot], None).await;
    assert_eq!(answer.status, 302);
    assert_eq!(events_of(&world)[0]["invalid_reason"], "known_bot");
    let extra: Value = serde_json::from_str(&events_of(&world)[0]["extra"]).unwrap();
    assert_eq!(extra["botListVersion"], crate::bots::LIST_VERSION);
    let prefetch = ("sec-purpose", "prefetch;prerender");
    visit(&world, "/click?ad_id=ad_1", &[PERSON, prefetch], None).await;
    assert_eq!(events_of(&world)[1]["invalid_reason"], "prefetch");
    let head = request("HEAD", "/click?ad_id=ad_1", "", &[PERSON], Body::empty());
    let head = world.send(head).await;
    assert_eq!((head.status.as_u16(), head.header("location").is_some()), (302, true));
    assert_eq!(events_of(&world).len(), 2, "asking is no click");
    let visits =
        (0..150).map(|_| visit(&world, "/click?ad_id=ad_1", &[PERSON], Some("[2001:db8::1]:9")));
    let answers = futures_util::future::join_all(visits).await;
    assert!(answers.iter().all(|answer| answer.status == 302));
    let marked = |world: &World| {
        events_of(world)
            .iter()
            .filter(|row| row.get("invalid_reason").is_some_and(|r| r == "ip_click_rate"))
            .count()
    };
    assert_eq!((events_of(&world).len(), marked(&world)), (152, 50));
    // Impressions are not limited, and a minute and a half later the IP is not either.
    visit(&world, "/i?ad_id=ad_1", &[PERSON], Some("[2001:db8::1]:9")).await;
    world.clock.fetch_add(120_000_000, Ordering::Relaxed);
    visit(&world, "/click?ad_id=ad_1", &[PERSON], Some("[2001:db8::1]:9")).await;
    assert_eq!((events_of(&world).len(), marked(&world)), (154, 50));
}

#[tokio::test]
async fn the_client_is_who_the_trusted_proxy_saw() {
    let settings = Settings { trusted_proxies: 1, ..Settings::default() };
    let world = world_with(settings, Arc::new(NoPressure));
    let forwarded = ("x-forwarded-for", "203.0.113.9, 198.51.100.7");
    visit(&world, "/i?ad_id=a", &[PERSON, forwarded], Some("10.0.0.1:1")).await;
    let row = &events_of(&world)[0];
    assert_eq!(row["ip_hash"], hex(&KEY.hash(Domain::Ip, b"198.51.100.7")));
}

#[tokio::test]
async fn nobody_gets_around_the_limit_of_clicks() {
    for (proxies, forwarded) in [(0, None), (1, Some(&b"\xe9, 203.0.113.9"[..])), (1, None)] {
        let settings = Settings {
            trusted_proxies: proxies,
            clicks_per_minute_per_ip_max: 10,
            ..Settings::default()
        };
        let world = world_with(settings, Arc::new(NoPressure));
        world.put("/v1/ads/a", &[], r#"{"landingUrl":"https://shop.example/"}"#).await;
        for n in 0..15 {
            let mut click = request("GET", "/click?ad_id=a", "", &[PERSON], Body::empty());
            // Addresses of one household.
            let peer: SocketAddr = format!("[2001:db8::{n:x}]:9").parse().unwrap();
            click.extensions_mut().insert(ConnectInfo(peer));
            if let Some(forwarded) = forwarded {
                let value = HeaderValue::from_bytes(forwarded).unwrap();
                click.headers_mut().insert("x-forwarded-for", value);
            }
            assert_eq!(world.send(click).await.status, 302);
        }
        let rows = events_of(&world);
        let over = rows.iter().filter(|row| row.contains_key("invalid_reason")).count();
        assert_eq!((rows.len(), over), (15, 5), "behind {proxies} proxies");
    }
}

#[tokio::test]
async fn a_retry_with_its_event_id_is_the_same_payload() {
    let world = with_ad().await;
    let uri = "/click?ad_id=ad_1&event_id=ev_1&user_id=u1";
    visit(&world, uri, &[PERSON], Some("192.0.2.1:1")).await;
    world.clock.fetch_add(5_000_000, Ordering::Relaxed);
    visit(&world, uri, &[("user-agent", "another")], Some("192.0.2.2:1")).await;
    visit(&world, "/click?ad_id=ad_1&event_id=ev_1&user_id=u2", &[PERSON], None).await;
    let rows = events_of(&world);
    assert!(rows.iter().all(|row| row["event_id"] == "px:ev_1"));
    assert_eq!(rows[0]["payload_hash"], rows[1]["payload_hash"]);
    assert_ne!(rows[0]["payload_hash"], rows[2]["payload_hash"]);
}

#[tokio::test]
async fn a_pixel_cannot_take_an_id_away_from_a_sender() {
    let world = with_ad().await;
    visit(&world, "/conversion?ad_id=ad_1&event_id=order-123", &[PERSON], None).await;
    world.collect(batch(&[event("order-123", "")])).await;
    let mut rows = events_of(&world);
    rows.sort_by(|a, b| a["event_id"].cmp(&b["event_id"]));
    for (row, id) in rows.iter().zip(["order-123", "px:order-123"]) {
        assert_eq!(row["event_id"], id);
        assert_eq!(row["id_hash"], hex(&KEY.hash(Domain::Event, id.as_bytes())));
    }
    // The longest id that still fits, and one that does not and is kept as what it is.
    for (bytes, fits) in [(125, true), (126, false)] {
        let world = with_ad().await;
        let id = "x".repeat(bytes);
        let uri = format!("/click?ad_id=ad_1&event_id={id}");
        assert_eq!(visit(&world, &uri, &[PERSON], None).await.status, 302);
        let row = &events_of(&world)[0];
        assert_eq!(row["event_id"] == format!("px:{id}"), fits);
        assert_eq!(row.get("extra").is_some_and(|extra| extra.contains(&id)), !fits);
    }
}

#[tokio::test]
async fn clicks_wait_for_the_log_and_share_frames() {
    let world = Arc::new(with_ad().await);
    world.log.set(Mood::Slow);
    let mut tasks = Vec::new();
    for _ in 0..250 {
        let world = world.clone();
        tasks.push(tokio::spawn(async move {
            visit(&world, "/click?ad_id=ad_1", &[PERSON], None).await.status
        }));
    }
    while world.log.held() < 3 {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    assert_eq!(world.log.held(), 3, "two full groups and the rest");
    assert!(tasks.iter().all(|task| !task.is_finished()), "answered before it was durable");
    world.log.release();
    for task in tasks {
        assert_eq!(task.await.unwrap(), 302);
    }
    assert_eq!(events_of(&world).len(), 250);
    world.log.set(Mood::Failing);
    let answer = visit(&world, "/click?ad_id=ad_1", &[PERSON], None).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "log_unavailable"));
    let answer = visit(&world, "/i?ad_id=ad_1", &[PERSON], None).await;
    assert_eq!(answer.status, 503, "no GIF for an event that is lost");
}

#[tokio::test]
async fn pixels_that_share_a_frame_are_no_body() {
    let settings = Settings { body_decoded_bytes_max: 100, ..Settings::default() };
    let world = world_with(settings, Arc::new(NoPressure));
    let visits = (0..30).map(|_| visit(&world, "/i?ad_id=a", &[PERSON], None));
    let answers = futures_util::future::join_all(visits).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(events_of(&world).len(), 30);
}

#[tokio::test]
async fn waiting_clicks_are_bounded() {
    let settings = Settings { pixels_in_flight_max: 2, ..Settings::default() };
    let world = Arc::new(world_with(settings, Arc::new(NoPressure)));
    world.log.set(Mood::Slow);
    let tasks: Vec<_> = (0..2)
        .map(|_| {
            let world = world.clone();
            tokio::spawn(async move { visit(&world, "/i?ad_id=a", &[PERSON], None).await.status })
        })
        .collect();
    while world.log.held() < 1 {
        tokio::task::yield_now().await;
    }
    let answer = visit(&world, "/i?ad_id=a", &[PERSON], None).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code().as_str()),
        (503, "too_many_pixels_in_flight")
    );
    world.log.release();
    for task in tasks {
        assert_eq!(task.await.unwrap(), 200);
    }
}
