//! Routes that are no reports and no subscriptions.
use super::*;

#[tokio::test]
async fn views_are_listed_with_columns_keys_and_rows() {
    let mut f = Fixture::new().await;
    assert_eq!(f.problem("/v1/views").await, (503, "not_ready".into()));
    f.add(&[("2026-04-27T11:59:00Z", ["c1", "p1", "SE", "ios"], metrics(1, 0, 0))]);
    f.add(&[("2026-04-27T11:58:00Z", ["c1", "p1", "DE", "ios"], metrics(1, 0, 0))]);
    let answer = f.get("/v1/views").await.json();
    let views = answer["views"].as_array().unwrap();
    let names: Vec<_> = views.iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 11);
    assert_eq!((names[0], names[9], names[10]), ("audience_minute", "late_events", "quarantine"));
    let columns: Vec<_> =
        views[0]["columns"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(
        json!(columns),
        json!([
            "bucketStart",
            "campaignId",
            "publisherId",
            "country",
            "deviceType",
            "impressions",
            "clicks",
            "conversions",
            "invalidImpressions",
            "invalidClicks",
            "spendMicros",
            "version",
            "state"
        ])
    );
    assert_eq!(views[0]["key"].as_array().unwrap().len(), 5);
    let rows: Vec<_> = views.iter().map(|v| v["rows"].as_u64().unwrap()).collect();
    assert_eq!(rows[..4], [2, 2, 2, 0]);
    assert_eq!(answer["asOfEpoch"], 1);
}

#[tokio::test]
async fn a_view_is_read_by_filters_pages_and_epochs() {
    let mut f = Fixture::new().await;
    let mut all = Vec::new();
    for minute in 0..6 {
        for country in ["SE", "DE", ""] {
            let at = format!("2026-04-27T11:5{minute}:00Z");
            all.push((at, ["c1", "p\"1", country, "ios"], metrics(1, 0, 5)));
        }
    }
    let rows: Vec<_> = all.iter().map(|(at, key, m)| (at.as_str(), *key, *m)).collect();
    let first = f.add(&rows);
    f.add(&rows[..1]);
    let path = "/v1/views/audience_minute";
    let row = &f.rows(&format!("{path}?country=SE&limit=1")).await[0];
    assert_eq!(
        row,
        &json!({
            "bucketStart": "2026-04-27T11:50:00Z", "campaignId": "c1", "publisherId": "p\"1",
            "country": "SE", "deviceType": "ios", "impressions": 2, "clicks": 0, "conversions": 0,
            "invalidImpressions": 0, "invalidClicks": 0, "spendMicros": 10, "version": 2,
            "state": "settling",
        })
    );
    assert_eq!(f.rows(&format!("{path}?asOfEpoch={first}&country=SE")).await[0]["impressions"], 1);
    assert_eq!(f.rows(&format!("{path}?country=")).await[0]["country"], Value::Null);
    assert_eq!(f.rows(&format!("{path}?state=final")).await.len(), 0);
    assert_eq!(f.rows(&format!("{path}?campaignId=nobody")).await.len(), 0);
    assert_eq!(f.rows(&format!("{path}?bucketStart=2026-04-27T11:53:00Z")).await.len(), 3);
    let range = format!("{path}?from=2026-04-27T11:53:00Z&to=2026-04-27T11:55:00Z");
    assert_eq!(f.rows(&range).await.len(), 6);
    let (mut paged, mut next) = (Vec::new(), String::new());
    loop {
        let answer = f.get(&format!("{path}?limit=4{next}")).await.json();
        paged.extend(answer["rows"].as_array().unwrap().clone());
        // What comes meanwhile does not change the pages that follow.
        f.add(&rows);
        let Some(token) = answer["nextPageToken"].as_str() else { break };
        next = format!("&pageToken={token}");
    }
    assert_eq!(paged.len(), 18);
    assert_eq!(paged.iter().map(|r| r["impressions"].as_i64().unwrap()).sum::<i64>(), 19);
    let other = format!("{path}?limit=4&country=SE{next}");
    assert_eq!(f.problem(&other).await, (400, "bad_page_token".into()));
}

#[tokio::test]
async fn wrong_questions_name_what_is_wrong() {
    let mut f = Fixture::new().await;
    f.add(&[]);
    let view = "/v1/views/audience_minute";
    for (path, status, code) in [
        ("/v1/views/audience_minut", 404, "unknown_view"),
        ("/v1/views?x=1", 400, "unknown_parameter"),
        ("/v1/nothing", 404, "unknown_route"),
        ("/dashboard/nothing.js", 404, "unknown_route"),
        (&format!("{view}?contry=SE"), 400, "unknown_column"),
        (&format!("{view}?clicks=3"), 400, "unknown_column"),
        (&format!("{view}?country=SE&country=DE"), 400, "repeated_parameter"),
        (&format!("{view}?state=done"), 400, "unknown_state"),
        (&format!("{view}?bucketStart=yesterday"), 400, "bad_time"),
        (&format!("{view}?limit=0"), 400, "bad_limit"),
        (&format!("{view}?limit=x"), 400, "bad_number"),
        (&format!("{view}?limit=1&limit=2"), 400, "repeated_parameter"),
        (&format!("{view}?pageToken=x"), 400, "bad_page_token"),
        (&format!("{view}?asOfEpoch=9"), 409, "epoch_ahead"),
        ("/v1/views/quarantine?country=SE", 400, "unknown_column"),
        ("/v1/views/quarantine?reason=too_late", 400, "unknown_reason"),
        ("/v1/quarantine?reason=counted", 400, "unknown_reason"),
        ("/v1/quarantine?limit=1001", 400, "bad_limit"),
        ("/v1/quarantine?events=none", 400, "bad_flag"),
        ("/v1/events/e2", 404, "unknown_event"),
    ] {
        assert_eq!(f.problem(path).await, (status, code.into()), "{path}");
    }
    let hint = f.get("/v1/views/audience_minut").await.json()["hint"].to_string();
    assert!(hint.contains("did you mean `audience_minute`?"), "{hint}");
    let posted = f.ask("POST", "/v1/views", &[]).await;
    assert_eq!(posted.problem(), (405, "unknown_method".into()));
    let many: String = (0..65).map(|i| format!("a{i}=1&")).collect();
    let answer = f.get(&format!("/v1/views?{many}")).await;
    assert_eq!(answer.problem(), (400, "too_many_parameters".into()));
}

#[tokio::test]
async fn the_quarantine_reads_events_back() {
    let mut f = Fixture::new().await;
    let incidents = [
        incident(Fate::Conflict, 12),
        incident(Fate::Quarantined, 13),
        incident(Fate::TooLate, 14),
        incident(Fate::Duplicate, 15),
    ];
    f.epoch(&[], &incidents);
    let rows = f.rows("/v1/quarantine").await;
    assert_eq!(
        rows,
        [
            json!({
                "reason": "unknown_schema_version", "topic": "events", "partition": 1,
                "offset": 13, "row": 2,
                "logTime": "2026-04-27T12:00:00Z", "event": null,
                "eventError": "offset 13 is no longer in the log",
            }),
            json!({
                "reason": "id_conflict", "topic": "events", "partition": 1,
                "offset": 12, "row": 2,
                "logTime": "2026-04-27T12:00:00Z", "event": { "eventId": "e12" },
            }),
        ]
    );
    assert_eq!(f.rows("/v1/quarantine?reason=id_conflict").await, rows[1..]);
    assert_eq!(f.rows("/v1/quarantine?reason=too_late").await[0]["offset"], 14);
    let copies = f.rows("/v1/quarantine?reason=duplicate").await;
    assert_eq!((copies.len(), &copies[0]["reason"]), (1, &json!("duplicate")));
    assert_eq!(copies[0]["event"]["eventId"], "e15");
    let places = f.rows("/v1/quarantine?events=false&limit=2000").await;
    assert_eq!(places.len(), 2);
    assert!(places.iter().zip(&rows).all(|(place, row)| place["offset"] == row["offset"]));
    assert!(places.iter().all(|place| place.get("event").is_none()), "{places:?}");
    assert_eq!(f.rows("/v1/views/late_events").await[0]["reason"], "too_late");
    let first = f.get("/v1/quarantine?limit=1").await.json();
    assert_eq!((first["rows"][0].clone(), &first["total"]), (rows[0].clone(), &json!(2)));
    let token = first["nextPageToken"].as_str().unwrap();
    let second = f.rows(&format!("/v1/quarantine?limit=1&pageToken={token}")).await;
    assert_eq!(second, rows[1..]);
}

#[tokio::test]
async fn tokens_open_what_their_roles_cover() {
    let tokens = vec![
        token("r", Role::Reader),
        token("a", Role::Analyst),
        token("o", Role::Operator),
        token("c", Role::Collector),
    ];
    let mut f = Fixture::with(Limits::default(), tokens, 1 << 20).await;
    f.add(&[]);
    let range = "from=2026-04-27T11:00:00Z&to=2026-04-27T12:00:00Z";
    let report = format!("/v1/reports/campaigns/c1?{range}");
    let totals = format!("/v1/reports/totals?{range}");
    let analytics = "/api/v1/analytics?campaign_id=c1&start=2026-04-27&end=2026-04-28".to_owned();
    for (path, readers, analysts) in [
        (report.as_str(), 200, 200),
        (analytics.as_str(), 200, 200),
        (totals.as_str(), 403, 200),
        ("/v1/reports/top", 403, 200),
        ("/v1/views", 200, 200),
        ("/v1/views/audience_day", 200, 200),
        ("/v1/views/quarantine", 403, 403),
        ("/v1/views/late_events/subscribe", 403, 403),
        ("/v1/quarantine", 403, 403),
        ("/v1/status", 403, 403),
        ("/v1/events/e1", 403, 403),
        ("/metrics", 403, 403),
    ] {
        assert_eq!(f.problem(path).await.0, 401, "{path}");
        assert_eq!(f.get_as("wrong", path).await.problem().0, 401, "{path}");
        assert_eq!(f.get_as("c", path).await.problem().0, 403, "{path}");
        assert_eq!(f.get_as("r", path).await.status, readers, "{path}");
        assert_eq!(f.get_as("a", path).await.status, analysts, "{path}");
        if !path.ends_with("/subscribe") {
            assert_eq!(f.get_as("o", path).await.status, 200, "{path}");
        }
        // In an address a token is good for subscriptions alone.
        let in_address = format!("{path}{}token=c", if path.contains('?') { "&" } else { "?" });
        let expected = if path.ends_with("/subscribe") { 403 } else { 401 };
        assert_eq!(f.problem(&in_address).await.0, expected, "{path}");
    }
    for path in ["/healthz", "/readyz", "/openapi.json", "/", "/dashboard/app.js"] {
        assert_eq!(f.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn health_readiness_metrics_status_and_events() {
    let f = Fixture::new().await;
    assert_eq!(f.get("/healthz").await.body, "ok\n");
    assert_eq!(f.get("/readyz").await.body, "ready\n");
    f.runtime.unready.store(true, Ordering::Relaxed);
    assert_eq!(f.problem("/readyz").await, (503, "catching_up".into()));
    assert_eq!(f.get("/healthz").await.status, 200);
    let metrics = f.get("/metrics").await;
    assert_eq!(metrics.body, "trueup_up 1\n");
    assert!(metrics.headers["content-type"].starts_with("text/plain; version=0.0.4"));
    assert_eq!(f.get("/v1/status").await.json(), json!({ "epoch": 1 }));
    assert_eq!(f.get("/v1/events/e1").await.json()["fate"], "counted");
    let long = "e".repeat(129);
    assert_eq!(f.problem(&format!("/v1/events/{long}")).await, (404, "unknown_event".into()));
    f.runtime.unready.store(false, Ordering::Relaxed);
    f.queries.close();
    assert_eq!(f.problem("/readyz").await, (503, "closing".into()));
}

#[tokio::test]
async fn the_page_works_offline_and_allows_no_inline_script() {
    let f = Fixture::new().await;
    let page = f.get("/").await;
    let policy = &page.headers["content-security-policy"];
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe-inline"), "{policy}");
    assert_eq!(page.headers["x-content-type-options"], "nosniff");
    // The name of SVG's vocabulary is an address that nobody fetches.
    let names = page.body.replace("http://www.w3.org/2000/svg", "");
    assert!(!names.contains("http://") && !names.contains("https://"));
    assert!(!page.body.contains(" style=") && !page.body.contains(" onclick="));
    // Every script and style that the page names is served, and none is written into it.
    let mut named = 0;
    for part in page.body.split(['"', '\'']).filter(|p| p.starts_with("/dashboard/")) {
        let file = f.get(part).await;
        assert_eq!(file.status, 200, "{part}");
        assert_eq!(file.headers["x-content-type-options"], "nosniff");
        let kind = if part.ends_with(".css") { "text/css" } else { "text/javascript" };
        assert!(file.headers["content-type"].starts_with(kind), "{part}");
        assert!(file.body.len() > 500, "{part}");
        named += 1;
    }
    assert!(named >= 4, "{named}");
    for script in page.body.split("<script").skip(1) {
        assert!(script.split('>').next().unwrap().contains("src="));
    }
    assert!(f.get("/dashboard/uplot.LICENSE").await.body.contains("MIT License"));
}

#[tokio::test]
async fn the_description_names_every_route() {
    let f = Fixture::new().await;
    let paths = f.get("/openapi.json").await.json()["paths"].clone();
    for path in [
        "/v1/reports/campaigns/{campaignId}",
        "/api/v1/analytics",
        "/v1/reports/totals",
        "/v1/reports/top",
        "/v1/views",
        "/v1/views/{name}",
        "/v1/views/{name}/subscribe",
        "/v1/quarantine",
        "/v1/events/{eventId}",
        "/v1/status",
        "/healthz",
        "/readyz",
        "/metrics",
        "/openapi.json",
        "/",
    ] {
        assert!(paths[path]["get"].is_object(), "{path} is not described");
    }
    for path in ["/v1/events/collect", "/v1/verdicts"] {
        assert!(paths[path]["post"].is_object(), "{path} is not described");
    }
}

#[tokio::test]
async fn what_is_said_of_an_unknown_event_is_what_the_description_says() {
    let mut f = Fixture::new().await;
    f.add(&[]);
    let hint = f.get("/v1/events/e2").await.json()["hint"].as_str().unwrap().to_owned();
    // An acknowledged event that no view holds yet is answered 404, too.
    assert!(hint.contains("from when the views hold it"), "{hint}");
    let event = f.get("/openapi.json").await.json()["paths"]["/v1/events/{eventId}"].clone();
    let described = event["get"]["description"].as_str().unwrap();
    assert!(described.contains(&hint), "{described}");
}

#[tokio::test]
async fn too_many_queries_are_turned_away() {
    let limits = Limits { queries_max: 0, ..Limits::default() };
    let mut f = Fixture::with(limits, vec![], 1 << 20).await;
    f.add(&[]);
    let answer = f.get("/v1/views").await;
    assert_eq!(answer.problem(), (429, "too_many_queries".into()));
    assert_eq!(answer.headers["retry-after"], "1");
}

#[tokio::test]
async fn names_in_paths_that_are_no_text_are_problems() {
    let mut f = Fixture::new().await;
    f.add(&[]);
    for path in [
        "/v1/reports/campaigns/%ff?from=2026-04-27&to=2026-04-28",
        "/v1/views/%ff",
        "/v1/views/%ff/subscribe",
        "/v1/events/%ff",
        "/dashboard/%ff",
    ] {
        assert_eq!(f.problem(path).await, (400, "bad_path".into()), "{path}");
    }
}

#[tokio::test]
async fn while_the_views_come_back_an_epoch_ahead_is_worth_waiting_for() {
    let mut f = Fixture::new().await;
    f.add(&[]);
    let range = "from=2026-04-27T11:00:00Z&to=2026-04-27T12:00:00Z";
    let paths = [
        "/v1/views/audience_minute?asOfEpoch=9".to_owned(),
        "/v1/views/audience_minute/subscribe?lastEventId=9".to_owned(),
        format!("/v1/reports/campaigns/c1?{range}&asOfEpoch=9"),
        "/v1/views/late_events?asOfEpoch=9".to_owned(),
    ];
    for (is_behind, expected) in [(true, (503, "catching_up")), (false, (409, "epoch_ahead"))] {
        f.runtime.unready.store(is_behind, Ordering::Relaxed);
        for path in &paths {
            let answer = f.get(path).await;
            assert_eq!(answer.problem(), (expected.0, expected.1.into()), "{path}");
            let retry_after = answer.headers.get("retry-after").map(String::as_str);
            assert_eq!(retry_after, is_behind.then_some("1"), "{path}");
        }
    }
    // What was shown once is shown all the while.
    f.runtime.unready.store(true, Ordering::Relaxed);
    assert_eq!(f.get("/v1/views/audience_minute?asOfEpoch=0").await.status, 200);
}

#[tokio::test]
async fn nothing_is_shown_before_the_views_are_as_far_as_the_log_was() {
    let mut f = Fixture::new().await;
    f.add(&[]);
    let range = "from=2026-04-27T11:00:00Z&to=2026-04-27T12:00:00Z";
    let of_views = [
        format!("/v1/reports/campaigns/c1?{range}"),
        format!("/api/v1/analytics?campaign_id=c1&{range}"),
        format!("/v1/reports/totals?{range}"),
        format!("/v1/reports/top?metric=clicks&by=country&{range}"),
        "/v1/views".to_owned(),
        "/v1/views/audience_minute".to_owned(),
        "/v1/views/audience_minute/subscribe".to_owned(),
        "/v1/quarantine".to_owned(),
        "/v1/events/e1".to_owned(),
    ];
    f.runtime.hides.store(true, Ordering::Relaxed);
    for path in &of_views {
        let answer = f.get(path).await;
        assert_eq!(answer.problem(), (503, "catching_up".into()), "{path}");
        assert_eq!(answer.headers["retry-after"], "1", "{path}");
        assert!(answer.body.contains("epoch 3 of 9"), "{path}: {}", answer.body);
    }
    for path in ["/v1/status", "/healthz", "/metrics", "/openapi.json", "/", "/dashboard/app.js"] {
        assert_eq!(f.get(path).await.status, 200, "{path}");
    }
    f.runtime.hides.store(false, Ordering::Relaxed);
    for path in of_views.iter().filter(|path| !path.ends_with("/subscribe")) {
        let answer = f.get(path).await;
        assert!(answer.status < 500, "{path}: {}", answer.body);
    }
}
