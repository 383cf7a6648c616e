//! Reports over the socket: figures, alignment, rollups, local days, pages, and every error.
#![allow(clippy::unwrap_used)]
use crate::{
    Limits,
    tests::{Answer, Fixture, Stream, metrics, time},
};
use serde_json::{Value, json};
use trueup_operators::{
    rollup::RollupSpec,
    symbols::OTHER_TEXT,
    time::{HOUR_US, MINUTE_US},
};

async fn small() -> Fixture {
    let mut f = Fixture::new().await;
    let c1 = |country, device| ["c1", "p1", country, device];
    f.add(&[
        ("2026-04-27T11:58:10Z", c1("SE", "ios"), metrics(300, 1, 10_000)),
        ("2026-04-27T11:58:20Z", c1("DE", "ios"), metrics(100, 3, 500)),
        ("2026-04-27T11:59:59Z", c1("SE", "android"), metrics(0, 2, 700)),
        ("2026-04-27T11:59:59Z", ["c2", "p2", "SE", "ios"], metrics(9, 9, 9)),
    ]);
    f.add(&[("2026-04-27T11:58:30Z", c1("SE", "ios"), metrics(30, 0, 0))]);
    f
}

const RANGE: &str = "from=2026-04-27T11:58:30Z&to=2026-04-27T11:59:01Z&granularity=minute";

#[tokio::test]
async fn a_campaign_by_minute_and_dimensions() {
    let f = small().await;
    let path = format!("/v1/reports/campaigns/c1?{RANGE}&dimensions=country,deviceType");
    let answer = f.get(&path).await.json();
    let row = |start: &str, country, device, i, c, spend: i64, ctr: Value, version| {
        json!({
            "bucketStart": start, "country": country, "deviceType": device, "impressions": i,
            "clicks": c, "conversions": 0, "invalidImpressions": 0, "invalidClicks": 0,
            "spendMicros": spend, "ctr": ctr, "version": version, "freshnessSeconds": 1.5,
            "isFinalized": false, "state": "provisional",
        })
    };
    // Aligned outward: both minutes are whole.
    let (first, second) = ("2026-04-27T11:58:00Z", "2026-04-27T11:59:00Z");
    assert_eq!(
        answer,
        json!({
            "rows": [
                row(first, "DE", "ios", 100, 3, 500, json!(0.03), 1),
                row(first, "SE", "ios", 330, 1, 10_000, json!(0.00303), 2),
                row(second, "SE", "android", 0, 2, 700, Value::Null, 1),
            ],
            "asOfEpoch": 1, "freshnessSeconds": 1.5, "completeTo": "2026-04-27T12:00:00Z",
            "rollup": "audience", "nextPageToken": null,
        })
    );
}

#[tokio::test]
async fn fewer_dimensions_are_sums_and_versions_add_up() {
    let f = small().await;
    let rows = f.rows(&format!("/v1/reports/campaigns/c1?{RANGE}")).await;
    assert_eq!(rows.len(), 2);
    assert_eq!((&rows[0]["impressions"], &rows[0]["version"]), (&json!(430), &json!(3)));
    assert!(rows[0].get("country").is_none());
    let by_hour = "from=2026-04-27T11:00:00Z&to=2026-04-27T11:00:01Z";
    let rows = f.rows(&format!("/v1/reports/campaigns/c1?{by_hour}")).await;
    assert_eq!((rows.len(), &rows[0]["clicks"]), (1, &json!(6)));
    assert_eq!(f.rows(&format!("/v1/reports/campaigns/nobody?{by_hour}")).await.len(), 0);
    let then = f.rows(&format!("/v1/reports/campaigns/c1?{by_hour}&asOfEpoch=0")).await;
    assert_eq!(then[0]["impressions"], 400);
}

/// What there is by country and campaign, and by campaign alone, of a day with two campaigns too
/// many: those are folded.
async fn folded(rollups: &[(&str, &[&str])]) -> Fixture {
    let specs = rollups.iter().map(|(name, dimensions)| RollupSpec::new(name, dimensions));
    let mut f = Fixture::over(specs.collect(), Limits::default(), vec![], |views| views).await;
    let at = "2026-04-27T11:59:59Z";
    let mut rows = Vec::new();
    for (rollup, (_, dimensions)) in (0..).zip(rollups) {
        let key = |campaign: &'static str| -> [&'static str; 4] {
            let mut key = [""; 4];
            for (text, dimension) in key.iter_mut().zip(*dimensions) {
                *text = if *dimension == "campaignId" { campaign } else { "SE" };
            }
            key
        };
        let keeps = dimensions.len() > 1 && dimensions[0] == "campaignId";
        for (campaign, clicks) in [("c1", 7), ("c2", 5), ("c3", 3)] {
            let is_folded = campaign != "c1" && !keeps;
            let campaign = if is_folded { OTHER_TEXT } else { campaign };
            rows.push((rollup, at, key(campaign), metrics(0, clicks, 0)));
        }
    }
    f.epoch_of(&rows, &[]);
    f
}

const DAY: &str = "from=2026-04-27T00:00:00Z&to=2026-04-28T00:00:00Z&granularity=day";

#[tokio::test]
async fn a_campaign_that_a_smaller_rollup_folded_is_answered_from_one_that_did_not() {
    let f = folded(&[
        ("campaign", &["campaignId"]),
        ("place", &["country", "campaignId"]),
        ("audience", &["campaignId", "publisherId", "country", "deviceType"]),
    ])
    .await;
    for (campaign, clicks) in [("c1", 7), ("c2", 5), ("c3", 3)] {
        for more in ["", "&dimensions=country", "&timezone=Europe/Stockholm"] {
            let path = format!("/v1/reports/campaigns/{campaign}?{DAY}{more}");
            let answer = f.get(&path).await.json();
            assert_eq!(answer["rollup"], "audience", "{path}");
            assert_eq!(answer["rows"][0]["clicks"], clicks, "{path}: {answer}");
        }
    }
    let path = format!("/v1/reports/totals?{DAY}&dimensions=campaignId");
    let rows = f.rows(&path).await;
    let clicks: Vec<_> = rows.iter().map(|row| (&row["campaignId"], &row["clicks"])).collect();
    let wanted = [("c1", 7), ("c2", 5), ("c3", 3)].map(|(c, n)| (json!(c), json!(n)));
    assert_eq!(clicks, wanted.each_ref().map(|(c, n)| (c, n)));
    // Where no campaign is asked for, the smallest is as exact.
    assert_eq!(f.get(&format!("/v1/reports/totals?{DAY}")).await.json()["rollup"], "campaign");
}

#[tokio::test]
async fn a_campaign_that_may_be_folded_everywhere_is_refused_and_never_zero() {
    let f = folded(&[("campaign", &["campaignId"]), ("place", &["country", "campaignId"])]).await;
    let path = |campaign: &str, more: &str| format!("/v1/reports/campaigns/{campaign}?{DAY}{more}");
    for path in [path("c2", ""), path("c2", "&dimensions=country")] {
        let answer = f.get(&path).await;
        assert_eq!(answer.problem(), (400, "campaign_folded".into()), "{path}");
        let problem = answer.json();
        assert!(problem["detail"].as_str().unwrap().contains("`c2`"), "{problem}");
        assert!(problem["hint"].as_str().unwrap().contains("add a rollup"), "{problem}");
    }
    // Who has a row of its own in every bucket that folded any is not among the folded.
    assert_eq!(f.rows(&path("c1", "")).await[0]["clicks"], 7);
    // By country a part of it may be, and of a local day an hour.
    for more in ["&dimensions=country", "&timezone=Europe/Stockholm"] {
        let refused = f.problem(&path("c1", more)).await;
        assert_eq!(refused, (400, "campaign_folded".into()), "{more}");
    }
    // Where nothing was folded, no row is nothing.
    let before = DAY.replace("04-28", "04-27").replace("04-27T00:00:00Z&to", "04-26T00:00:00Z&to");
    assert_eq!(f.rows(&format!("/v1/reports/campaigns/c2?{before}")).await.len(), 0);
    // The folded ones together can be asked for.
    assert_eq!(f.rows(&path("(other)", "")).await[0]["clicks"], 8);
}

#[tokio::test]
async fn the_dashboard_worlds_names_give_the_same_report() {
    let f = small().await;
    let path = "/api/v1/analytics?campaign_id=c1&start=2026-04-27T11:58&end=2026-04-27T12:00\
                &granularity=minute&group_by=country,device";
    let same = "/v1/reports/campaigns/c1?from=2026-04-27T11:58:00Z&to=2026-04-27T12:00:00Z\
                &granularity=minute&dimensions=country,deviceType";
    assert_eq!(f.rows(path).await, f.rows(same).await);
    assert_eq!(f.rows(path).await.len(), 3);
    // The region rollup has both of these, and no row yet.
    let regions = path.replace("country", "region");
    let answer = f.get(&regions).await.json();
    assert_eq!(
        (answer["rollup"].as_str(), answer["rows"].as_array().map(Vec::len)),
        (Some("region"), Some(0))
    );
}

#[tokio::test]
async fn totals_and_top_are_over_all_campaigns() {
    let f = small().await;
    let range = "from=2026-04-27T11:58:00Z&to=2026-04-27T12:00:00Z";
    let totals = f.rows(&format!("/v1/reports/totals?{range}")).await;
    assert_eq!((totals.len(), &totals[0]["clicks"]), (1, &json!(15)));
    let by_minute = f.rows(&format!("/v1/reports/totals?{range}&granularity=minute")).await;
    assert_eq!(by_minute.len(), 2);
    let by_country = f.rows(&format!("/v1/reports/totals?{range}&dimensions=country")).await;
    let clicks: Vec<_> = by_country.iter().map(|r| (&r["country"], &r["clicks"])).collect();
    assert_eq!(clicks, [(&json!("DE"), &json!(3)), (&json!("SE"), &json!(12))]);
    let top = f.get("/v1/reports/top?metric=clicks&by=campaignId&window=5m&limit=10").await.json();
    let rows: Vec<_> =
        top["rows"].as_array().unwrap().iter().map(|r| (&r["campaignId"], &r["clicks"])).collect();
    assert_eq!(rows, [(&json!("c2"), &json!(9)), (&json!("c1"), &json!(6))]);
    assert_eq!(
        (&top["from"], &top["to"]),
        (&json!("2026-04-27T11:56:00Z"), &json!("2026-04-27T12:01:00Z"))
    );
    assert_eq!(f.rows("/v1/reports/top?metric=spendMicros&limit=1").await[0]["campaignId"], "c1");
    assert_eq!(f.rows("/v1/reports/top?window=1m").await.len(), 0);
}

#[tokio::test]
async fn errors_of_reports() {
    let f = small().await;
    let c = "/v1/reports/campaigns/c1";
    let both = "from=2026-04-27T00:00:00Z&to=2026-04-28T00:00:00Z";
    for (path, code) in [
        (format!("{c}?to=2026-04-27T00:00:00Z"), "missing_parameter"),
        (format!("{c}?from=2026-04-27T00:00:00Z"), "missing_parameter"),
        (format!("{c}?from=tomorrow&to=2026-04-27T00:00:00Z"), "bad_time"),
        (format!("{c}?from=1969-12-31T00:00:00Z&to=2026-04-27T00:00:00Z"), "bad_time"),
        (format!("{c}?from=2026-04-27T00:00:00Z&to=9999-01-01T00:00:00Z"), "bad_time"),
        (format!("{c}?from=2026-04-28T00:00:00Z&to=2026-04-28T00:00:00Z"), "empty_range"),
        (
            format!("{c}?from=2026-01-01T00:00:00Z&to=2026-12-01T00:00:00Z&granularity=minute"),
            "range_too_long",
        ),
        (
            // India's days are made of minutes.
            format!(
                "{c}?from=2026-01-01T00:00:00Z&to=2026-12-01T00:00:00Z&granularity=day\
                 &timezone=Asia/Kolkata"
            ),
            "range_too_long",
        ),
        (format!("{c}?{both}&granularity=week"), "unknown_granularity"),
        (format!("{c}?{both}&dimensions=contry"), "unknown_dimension"),
        (format!("{c}?{both}&dimensions=country,country"), "repeated_dimension"),
        (format!("{c}?{both}&dimensions=country,adId"), "unsupported_dimensions"),
        (format!("{c}?{both}&basis=net"), "unknown_basis"),
        (format!("{c}?{both}&timezone=Europe/Stockholm"), "timezone_needs_days"),
        (format!("{c}?{both}&granularity=day&timezone=Mars/Olympus"), "unknown_timezone"),
        (format!("{c}?{both}&dimension=country"), "unknown_parameter"),
        (format!("{c}?{both}&limit=0"), "bad_limit"),
        (format!("{c}?{both}&pageToken=1.2"), "bad_page_token"),
        (format!("{c}?{both}&asOfEpoch=-1"), "bad_number"),
        ("/api/v1/analytics?start=2026-04-27&end=2026-04-28".into(), "missing_parameter"),
        ("/v1/reports/top?metric=ctr".into(), "unknown_metric"),
        ("/v1/reports/top?window=5".into(), "bad_window"),
        ("/v1/reports/top?window=99999999999999d".into(), "bad_window"),
        ("/v1/reports/top?window=0m".into(), "bad_window"),
        ("/v1/reports/top?by=nothing".into(), "unknown_dimension"),
    ] {
        assert_eq!(f.problem(&path).await, (400, code.into()), "{path}");
    }
    let answer = f.get(&format!("{c}?{both}&dimensions=country,adId")).await.json();
    let hint = answer["hint"].as_str().unwrap();
    assert!(hint.contains("creative (campaignId, adId, creativeId, placementId by"), "{hint}");
    let answer = f.get(&format!("{c}?{both}&dimensions=contry")).await.json();
    assert!(answer["hint"].as_str().unwrap().starts_with("did you mean `country`?"));
    assert_eq!(f.problem(&format!("{c}?{both}&asOfEpoch=99")).await, (409, "epoch_ahead".into()));
}

#[tokio::test]
async fn limits_of_rows_are_errors() {
    let limits = Limits { rows_max: 2, ..Limits::default() };
    let mut f = Fixture::with(limits, vec![], 1 << 20).await;
    for publisher in ["p1", "p2", "p3"] {
        f.add(&[("2026-04-27T11:59:59Z", ["c1", publisher, "SE", "ios"], metrics(1, 0, 0))]);
    }
    let path =
        format!("/v1/reports/campaigns/c1?{RANGE}&dimensions=publisherId").replace(":01Z", ":59Z");
    assert_eq!(f.problem(&path).await, (400, "too_many_rows".into()));
    let limits = Limits { scan_rows_max: 2, ..Limits::default() };
    let mut f = Fixture::with(limits, vec![], 1 << 20).await;
    for publisher in ["p1", "p2", "p3"] {
        f.add(&[("2026-04-27T11:59:59Z", ["c1", publisher, "SE", "ios"], metrics(1, 0, 0))]);
    }
    assert_eq!(f.problem(&path).await, (400, "too_much_to_read".into()));
}

#[tokio::test]
async fn pages_are_of_one_epoch_and_make_up_the_whole() {
    let mut f = Fixture::with(Limits::default(), vec![], 200_000).await;
    let publishers = ["p1", "p2", "p3", "p4", "p5", "p6", "p7"];
    let minutes = ["2026-04-27T11:58:00Z", "2026-04-27T11:57:00Z"];
    let rows: Vec<_> = minutes
        .iter()
        .flat_map(|&m| publishers.map(|p| (m, ["c1", p, "SE", "ios"], metrics(1, 0, 1))))
        .collect();
    f.add(&rows);
    let path = "/v1/reports/campaigns/c1?from=2026-04-27T11:00:00Z&to=2026-04-27T12:00:00Z\
                &granularity=minute&dimensions=publisherId&limit=4";
    let whole = f.rows(&path.replace("limit=4", "limit=100")).await;
    let (mut paged, mut next, mut tokens) = (Vec::new(), String::new(), Vec::new());
    loop {
        let answer = f.get(&format!("{path}{next}")).await.json();
        assert_eq!(answer["asOfEpoch"], 0);
        paged.extend(answer["rows"].as_array().unwrap().clone());
        f.add(&rows);
        let Some(token) = answer["nextPageToken"].as_str() else { break };
        tokens.push(token.to_owned());
        next = format!("&pageToken={token}");
    }
    assert_eq!(paged.len(), 14);
    assert_eq!(paged, whole);
    assert_eq!(tokens.len(), 3);
    let other = format!("{path}&basis=billing&pageToken={}", tokens[0]);
    assert_eq!(f.problem(&other).await, (400, "bad_page_token".into()));
    while f.problem_of_first(&format!("{path}&pageToken={}", tokens[0])).await.is_none() {
        assert!(f.epoch < 500, "the epoch never went");
        f.add(&rows);
    }
    let gone = f.problem(&format!("{path}&pageToken={}", tokens[0])).await;
    assert_eq!(gone, (410, "epoch_gone".into()));
}

impl Fixture {
    async fn problem_of_first(&self, path: &str) -> Option<String> {
        let answer = self.get(path).await;
        (answer.status != 200).then(|| answer.problem().1)
    }
}

#[tokio::test]
async fn billing_sees_final_rows_alone() {
    let mut f = small().await;
    let path = "/v1/reports/campaigns/c1?from=2026-04-27T00:00:00Z&to=2026-04-28T00:00:00Z";
    let billing = format!("{path}&basis=billing");
    assert_eq!(f.rows(&billing).await.len(), 0);
    f.set_frontier(time("2026-04-28T12:00:00Z"));
    f.add(&[]);
    let rows = f.rows(&billing).await;
    assert_eq!(rows.len(), 1);
    assert_eq!((&rows[0]["state"], &rows[0]["isFinalized"]), (&json!("final"), &json!(true)));
    // The day goes on until midnight, and its correction horizon a day longer.
    let by_day = format!("{path}&granularity=day");
    assert_eq!(f.rows(&by_day).await[0]["state"], "settling");
    assert_eq!(f.rows(&format!("{by_day}&basis=billing")).await.len(), 0);
    let totals = "/v1/reports/totals?from=2026-04-27T11:00:00Z&to=2026-04-27T23:00:00Z";
    assert_eq!(f.rows(&format!("{totals}&basis=billing")).await.len(), 0);
    assert_eq!(f.rows(totals).await[0]["state"], "settling");
}

#[tokio::test]
async fn days_of_a_time_zone_are_its_own() {
    let mut f = Fixture::new().await;
    let key = ["c1", "p1", "SE", "ios"];
    // Summer time begins in Stockholm on 29 March 2026: that day has 23 hours.
    f.set_frontier(time("2026-03-31T00:00:00Z"));
    f.add(&[
        ("2026-03-28T22:59:59Z", key, metrics(1, 0, 0)),
        ("2026-03-28T23:00:00Z", key, metrics(10, 0, 0)),
        ("2026-03-29T21:59:59Z", key, metrics(100, 0, 0)),
        ("2026-03-29T22:00:00Z", key, metrics(1_000, 0, 0)),
    ]);
    let path = "/v1/reports/campaigns/c1?from=2026-03-29T10:00:00Z&to=2026-03-29T11:00:00Z\
                &granularity=day&timezone=";
    let rows = f.rows(&format!("{path}Europe/Stockholm")).await;
    assert_eq!((rows.len(), &rows[0]["impressions"]), (1, &json!(110)));
    assert_eq!(rows[0]["bucketStart"], "2026-03-28T23:00:00Z");
    assert_eq!(f.rows(&format!("{path}UTC")).await[0]["impressions"], 1_100);
    // India's midnight is on a half hour: from minutes.
    let rows = f.rows(&format!("{path}Asia/Kolkata")).await;
    assert_eq!(rows[0]["bucketStart"], "2026-03-28T18:30:00Z");
    assert_eq!(rows[0]["impressions"], 11);
    let wide = path.replace("T11:00", "T23:00");
    assert_eq!(f.rows(&format!("{wide}Europe/Stockholm")).await.len(), 2);
}

#[tokio::test]
async fn a_local_day_is_not_final_before_its_end() {
    let mut f = Fixture::new().await;
    let morning = "2026-04-27T06:00:00Z";
    f.add(&[(morning, ["c1", "p1", "SE", "ios"], metrics(1, 0, 0))]);
    let path = "/v1/reports/campaigns/c1?from=2026-04-27T00:00:00Z&to=2026-04-27T12:00:00Z\
                &granularity=day&timezone=Europe/Stockholm";
    // The only hour with rows is final; the local day (to 22:00 UTC) and its horizon are not over.
    f.set_frontier(time("2026-04-28T12:00:00Z"));
    f.add(&[]);
    assert_eq!(
        f.rows(&path.replace("day&timezone=Europe/Stockholm", "hour")).await[0]["state"],
        "final"
    );
    assert_eq!(f.rows(path).await[0]["state"], "settling");
    assert_eq!(f.rows(&format!("{path}&basis=billing")).await.len(), 0);
    f.set_frontier(time("2026-04-28T22:00:00Z"));
    f.add(&[]);
    assert_eq!(f.rows(&format!("{path}&basis=billing")).await[0]["state"], "final");
}

#[tokio::test]
async fn an_answer_says_when_its_range_begins_before_what_is_kept() {
    let mut f = small().await;
    let path = "/v1/reports/campaigns/c1?from=2026-04-27T11:00:00Z&to=2026-04-27T12:00:00Z\
                &granularity=minute";
    assert!(f.get(path).await.json().get("keptFrom").is_none());
    let days = 24 * HOUR_US;
    f.set_frontier(time("2026-04-27T11:59:00Z") + 4 * days);
    f.add(&[]);
    let answer = f.get(path).await.json();
    assert_eq!(answer["keptFrom"], "2026-04-27T11:59:00Z");
    assert_eq!(answer["rows"].as_array().unwrap().len(), 1);
    f.set_frontier(time("2026-04-27T12:00:00Z") + 4 * days + MINUTE_US);
    f.add(&[]);
    assert_eq!(f.rows(path).await.len(), 0);
    assert_eq!(f.rows(&path.replace("minute", "hour")).await.len(), 1);
}

#[tokio::test]
async fn a_local_day_that_lost_a_part_is_no_row() {
    let mut f = Fixture::new().await;
    let key = ["c1", "p1", "SE", "ios"];
    f.set_frontier(time("2026-04-30T00:00:00Z"));
    // In India the 27th is 18:30 to 18:30 UTC.
    let hours = ["2026-04-26T19:00:00Z", "2026-04-27T12:00:00Z", "2026-04-27T19:00:00Z"];
    f.add(&hours.map(|at| (at, key, metrics(1, 0, 0))));
    let path = "/v1/reports/campaigns/c1?from=2026-04-27T00:00:00Z&to=2026-04-28T00:00:00Z\
                &granularity=day&timezone=Asia/Kolkata";
    let days = |answer: Value| -> Vec<(Value, Value)> {
        let rows = answer["rows"].as_array().unwrap().clone();
        rows.iter().map(|r| (r["bucketStart"].clone(), r["impressions"].clone())).collect()
    };
    let first = (json!("2026-04-26T18:30:00Z"), json!(2));
    let second = (json!("2026-04-27T18:30:00Z"), json!(1));
    assert_eq!(days(f.get(path).await.json()), [first, second.clone()]);
    // Minutes are kept 24 hours and 3 days: those of the first day's evening have gone.
    f.set_frontier(time("2026-05-01T06:00:00Z"));
    f.add(&[]);
    let answer = f.get(path).await.json();
    assert_eq!(answer["keptFrom"], "2026-04-27T18:30:00Z");
    assert_eq!(days(answer), [second]);
    f.set_frontier(time("2026-05-03T00:00:00Z"));
    f.add(&[]);
    let answer = f.get(path).await.json();
    assert_eq!(answer["keptFrom"], "2026-04-29T00:00:00Z");
    assert_eq!(days(answer), []);
}

#[tokio::test]
async fn totals_over_a_range_of_which_a_part_has_gone_are_refused() {
    let mut f = Fixture::new().await;
    let key = ["c1", "p1", "SE", "ios"];
    let ats = [
        "2026-04-25T23:59:00Z",
        "2026-04-26T00:10:00Z",
        "2026-04-26T11:00:00Z",
        "2026-05-02T05:00:00Z",
        "2026-05-02T06:30:00Z",
        "2026-05-02T06:31:00Z",
    ];
    f.set_frontier(time("2026-05-02T07:00:00Z"));
    f.add(&ats.map(|at| (at, key, metrics(1, 0, 0))));
    let path = |from: &str, to: &str| format!("/v1/reports/totals?from={from}&to={to}");
    let to = "2026-05-02T06:31:00Z";
    // Days in the middle, hours and minutes at the end: minutes from a week ago are not needed.
    for (from, impressions) in
        [("2026-04-25T23:00:00Z", 5), ("2026-04-26", 4), ("2026-04-26T11:00:00Z", 3)]
    {
        let rows = f.rows(&path(from, to)).await;
        assert_eq!((rows.len(), &rows[0]["impressions"]), (1, &json!(impressions)), "{from}");
        assert_eq!(
            time(rows[0]["bucketStart"].as_str().unwrap()),
            crate::params::time("", from).unwrap()
        );
        assert_eq!(rows[0]["state"], "settling");
    }
    let hint = async |from, to| {
        let answer = f.get(&path(from, to)).await;
        assert_eq!(answer.problem(), (400, "range_not_kept".into()));
        answer.json()["hint"].as_str().unwrap().to_owned()
    };
    let first = "the first instant from which this can be answered up to";
    assert_eq!(
        hint("2026-04-26T00:05:00Z", to).await,
        format!("{first} {to} is 2026-04-26T01:00:00Z")
    );
    assert_eq!(
        hint("2026-02-03T04:05:00Z", to).await,
        format!("{first} {to} is 2026-02-04T00:00:00Z")
    );
    // No beginning helps when the end needs what has gone.
    assert!(
        hint("2026-04-26", "2026-04-26T11:01:00Z").await.starts_with("begin and end on a full")
    );
}

#[tokio::test]
async fn top_covers_the_window_that_it_names() {
    let mut f = Fixture::new().await;
    let key = |c| [c, "p1", "SE", "ios"];
    let end = "2026-05-02T06:30:20Z";
    f.set_frontier(time(end));
    f.add(&[
        ("2026-04-25T05:59:00Z", key("before"), metrics(0, 100, 0)),
        ("2026-04-25T06:10:00Z", key("first"), metrics(0, 50, 0)),
        ("2026-04-28T06:10:00Z", key("middle"), metrics(0, 40, 0)),
        ("2026-05-02T06:30:00Z", key("last"), metrics(0, 30, 0)),
        ("2026-05-02T06:31:00Z", key("after"), metrics(0, 20, 0)),
    ]);
    let top = f.get("/v1/reports/top?window=7d").await.json();
    // Minutes are kept four days, so a week begins with a full hour.
    assert_eq!(
        (&top["from"], &top["to"]),
        (&json!("2026-04-25T06:00:00Z"), &json!("2026-05-02T06:31:00Z"))
    );
    let names = |top: &Value| -> Vec<Value> {
        top["rows"].as_array().unwrap().iter().map(|r| r["campaignId"].clone()).collect()
    };
    assert_eq!(names(&top), ["first", "middle", "last"]);
    let day = f.get("/v1/reports/top?window=24h").await.json();
    assert_eq!((&day["from"], names(&day)), (&json!("2026-05-01T06:31:00Z"), vec![json!("last")]));
    assert_eq!(f.problem("/v1/reports/top?window=1000d").await, (400, "range_not_kept".into()));
    let by_minute = f.get("/v1/reports/top?window=7d&granularity=minute").await.json();
    assert_eq!(by_minute["keptFrom"], "2026-04-28T06:30:00Z");
}

#[tokio::test]
async fn top_waits_for_its_turn_and_then_takes_the_newest_epoch() {
    let limits = Limits { running_max: 1, ..Limits::default() };
    let mut f = Fixture::with(limits, vec![], 20_000).await;
    let row = ("2026-04-27T11:59:00Z", ["c1", "p1", "SE", "ios"], metrics(1, 1, 0));
    f.add(&[row]);
    let (open, opened) = std::sync::mpsc::channel::<()>();
    let queries = std::sync::Arc::clone(&f.queries);
    let first = tokio::spawn(async move {
        queries.gate.run(move || opened.recv().map_err(|_| unreachable!())).await
    });
    until(|| f.queries.gate.inside() == 1).await;
    let at = f.at;
    let top = tokio::spawn(async move {
        Answer::of(Stream::open(at, "GET", "/v1/reports/top", &[]).await).await
    });
    until(|| f.queries.gate.inside() == 2).await;
    // The history goes past the epoch that was the newest when it was asked.
    let newest = (0..100).map(|_| f.add(&[row])).last();
    open.send(()).unwrap();
    first.await.unwrap().unwrap();
    let top = top.await.unwrap();
    assert_eq!(top.status, 200, "{}", top.body);
    assert_eq!(top.json()["asOfEpoch"].as_u64(), newest);
}

async fn until(done: impl Fn() -> bool) {
    while !done() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}
