//! A second decoder, slow and simple, over serde_json: what it says of random bodies, the real one
//! must say too, column by column and code by code.

use super::{
    http::{KEY, NDJSON, NOW_US, world},
    random::{Random, for_seeds},
    rows::{Row, hex, rows},
};
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use trueup_operators::{hash::Domain, log::Topic};

/// An object with its members in their order, doubled ones too.
struct Pairs(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> de::Visitor<'de> for Members {
            type Value = Pairs;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        from.deserialize_map(Members)
    }
}

/// Text fields: name, column, the most bytes. In the order of the contract's checks.
const TEXTS: [(&str, &str, usize); 20] = [
    ("campaignId", "campaign_id", 64),
    ("adId", "ad_id", 64),
    ("advertiserId", "advertiser_id", 64),
    ("publisherId", "publisher_id", 64),
    ("placementId", "placement_id", 64),
    ("country", "country", 64),
    ("region", "region", 64),
    ("deviceType", "device_type", 16),
    ("creativeId", "creative_id", 64),
    ("userAgent", "user_agent", 1024),
    ("referrer", "referrer", 1024),
    ("source", "source", 64),
    ("measurementSource", "measurement_source", 64),
    ("impressionId", "impression_id", 64),
    ("auctionId", "auction_id", 64),
    ("clickId", "click_id", 64),
    ("sessionId", "session_id", 256),
    ("deviceFingerprint", "device_fingerprint", 256),
    ("userId", "", 256),
    ("ip", "", 64),
];
/// Consent carriers and their most bytes.
const CONSENT: [(&str, usize); 8] = [
    ("gdpr", 16),
    ("tcString", 4096),
    ("gpp", 4096),
    ("gppSid", 256),
    ("usPrivacy", 16),
    ("gpc", 16),
    ("coppa", 16),
    ("lmt", 16),
];
const OTHERS: [&str; 8] = [
    "eventId",
    "eventType",
    "occurredAt",
    "receivedAt",
    "priceMicros",
    "priceBasis",
    "valueMicros",
    "schemaVersion",
];

type Verdict = Result<(Row, BTreeMap<String, Value>), &'static str>;

fn text(value: &Value, bytes_max: usize) -> Result<&str, &'static str> {
    match value {
        Value::String(text) if text.is_empty() => Err("empty_field"),
        Value::String(text) if text.len() > bytes_max => Err("field_too_long"),
        Value::String(text) => Ok(text),
        _ => Err("wrong_type"),
    }
}

fn time(value: &Value) -> Result<i64, &'static str> {
    let us = match value {
        Value::String(text) if text.is_empty() => return Err("empty_field"),
        Value::String(text) => {
            text.parse::<jiff::Timestamp>().map_err(|_| "bad_time")?.as_microsecond()
        }
        _ => return Err("wrong_type"),
    };
    let bounds: [i64; 2] = ["2000-01-01T00:00:00Z", "2100-01-01T00:00:00Z"]
        .map(|t| t.parse::<jiff::Timestamp>().unwrap().as_microsecond());
    if us < bounds[0] || us >= bounds[1] { Err("time_out_of_range") } else { Ok(us) }
}

fn integer(value: &Value, min: i64, max: i64) -> Result<i64, &'static str> {
    match value {
        Value::Number(number) => match number.as_i64() {
            Some(integer) if (min..=max).contains(&integer) => Ok(integer),
            Some(_) => Err("number_out_of_range"),
            // The one number of 30 digits below, which serde_json reads as a float.
            None if number.as_f64() > Some(1e20) => Err("number_out_of_range"),
            None => Err("not_an_integer"),
        },
        _ => Err("wrong_type"),
    }
}

/// serde_json reads `-0` as a float.
fn zero(value: &mut Value) {
    if value.as_f64() == Some(0.0) {
        *value = 0.into();
    }
}

/// Judges one event: its form, required fields, texts, words, times, numbers, consent.
fn judge(pairs: &[(String, Value)]) -> Verdict {
    let mut names: Vec<&str> = pairs.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("duplicate_field");
    }
    let fields: BTreeMap<&str, &Value> =
        pairs.iter().filter(|p| !p.1.is_null()).map(|(n, v)| (n.as_str(), v)).collect();
    for name in ["eventId", "eventType", "occurredAt", "campaignId", "adId"] {
        if !fields.contains_key(name) {
            return Err("missing_field");
        }
    }
    let mut row = Row::new();
    let id = text(fields["eventId"], 128)?;
    row.insert("event_id".into(), id.into());
    row.insert("id_hash".into(), hex(&KEY.hash(Domain::Event, id.as_bytes())));
    text(fields["eventType"], 16)?;
    for (name, column, bytes_max) in TEXTS {
        let Some(value) = fields.get(name) else { continue };
        let value = text(value, bytes_max)?;
        match name {
            "userId" => {
                row.insert("user_hash".into(), hex(&KEY.hash(Domain::User, value.as_bytes())))
            }
            "ip" => row.insert("ip_hash".into(), hex(&KEY.hash(Domain::Ip, value.as_bytes()))),
            _ => row.insert(column.into(), value.into()),
        };
        if name == "impressionId" {
            let hash = KEY.hash(Domain::Impression, value.as_bytes());
            row.insert("impression_hash".into(), hex(&hash));
        }
    }
    let basis = fields.get("priceBasis").map(|value| text(value, 16)).transpose()?;
    words(&fields, basis, &mut row)?;
    let occurred = time(fields["occurredAt"])?;
    if occurred > NOW_US + 300_000_000 {
        return Err("in_the_future");
    }
    row.insert("occurred_at".into(), occurred.to_string());
    let received = fields.get("receivedAt").map_or(Ok(NOW_US), |value| time(value))?;
    row.insert("received_at".into(), received.to_string());
    numbers(&fields, &mut row)?;
    consent_and_extra(pairs, &fields, &mut row)?;
    let mut payload: BTreeMap<String, Value> =
        fields.iter().map(|(n, v)| ((*n).to_owned(), (*v).clone())).collect();
    payload.remove("receivedAt");
    payload.insert("occurredAt".into(), occurred.into());
    Ok((row, payload))
}

fn words(
    fields: &BTreeMap<&str, &Value>,
    basis: Option<&str>,
    row: &mut Row,
) -> Result<(), &'static str> {
    let kind = match text(fields["eventType"], 16)? {
        "impression" => "0",
        "click" => "1",
        "conversion" => "2",
        _ => return Err("unknown_event_type"),
    };
    row.insert("event_type".into(), kind.into());
    if let Some(country) = row.get("country")
        && (country.len() != 2 || !country.bytes().all(|b| b.is_ascii_uppercase()))
    {
        return Err("bad_country");
    }
    let basis = match basis {
        None => return Ok(()),
        Some("cpc") => "0",
        Some("cpm") => "1",
        Some("cpa") => "2",
        Some(_) => return Err("unknown_price_basis"),
    };
    row.insert("price_basis".into(), basis.into());
    Ok(())
}

fn numbers(fields: &BTreeMap<&str, &Value>, row: &mut Row) -> Result<(), &'static str> {
    if let Some(value) = fields.get("priceMicros") {
        row.insert("price_micros".into(), integer(value, 0, 1_000_000_000)?.to_string());
    }
    if let Some(value) = fields.get("valueMicros") {
        let max = 1_000_000_000_000_000;
        row.insert("value_micros".into(), integer(value, -max, max)?.to_string());
    }
    if let Some(value) = fields.get("schemaVersion") {
        row.insert("schema_version".into(), integer(value, 0, 65_535)?.to_string());
    }
    Ok(())
}

fn consent_and_extra(
    pairs: &[(String, Value)],
    fields: &BTreeMap<&str, &Value>,
    row: &mut Row,
) -> Result<(), &'static str> {
    // Of the numbers below only the one of 30 digits is long.
    let long = |value: &Value, bytes_max| match value {
        Value::String(text) => text.len() > bytes_max,
        Value::Number(number) => number.as_f64().is_some_and(|n| n > 1e20) && bytes_max < 30,
        _ => false,
    };
    if CONSENT.iter().any(|(name, max)| fields.get(name).is_some_and(|v| long(v, *max))) {
        return Err("field_too_long");
    }
    let consent: Vec<String> = CONSENT
        .iter()
        .filter_map(|(name, _)| Some(format!("{name:?}:{}", fields.get(name)?)))
        .collect();
    if !consent.is_empty() {
        row.insert("consent".into(), format!("{{{}}}", consent.join(",")));
    }
    let known = |name: &str| {
        OTHERS.contains(&name)
            || CONSENT.iter().any(|c| c.0 == name)
            || TEXTS.iter().any(|t| t.0 == name)
    };
    let extra: Vec<String> = pairs
        .iter()
        .filter(|(name, _)| !known(name))
        .map(|(name, value)| format!("{}:{value}", Value::from(name.as_str())))
        .collect();
    if !extra.is_empty() {
        row.insert("extra".into(), format!("{{{}}}", extra.join(",")));
    }
    Ok(())
}

/// Texts of JSON values for a field: mostly good ones.
fn value_for(random: &mut Random, name: &str) -> String {
    if random.one_in(60) {
        let odd = [
            "null",
            "7",
            "-0",
            "1.5",
            "1e2",
            "\"\"",
            "true",
            "[1, 2]",
            "{\"a\" : {}}",
            "\"\\u0041\\n\\\"\"",
            "123456789012345678901234567890",
            "\"é😀\"",
        ];
        return random.pick(&odd).to_owned();
    }
    let n = random.below(30);
    match name {
        "eventId" => format!("\"evt_{}\"", random.below(1 << 30)),
        "eventType" => random
            .pick(&["\"impression\"", "\"click\"", "\"conversion\"", "\"c\\u006cick\""])
            .to_owned(),
        "occurredAt" | "receivedAt" => {
            let times = [
                "2026-04-27T15:32:10Z",
                "2026-04-27T15:31:59.123Z",
                "2026-04-27T17:30:00.5+02:00",
                "2026-04-26T00:00:00.123456789Z",
                "2026-04-27T15:37:11Z",
                "2026-04-27T15:37:11.1Z",
                "2016-12-31T23:59:60Z",
                "today",
            ];
            let which = if random.one_in(10) { random.below(times.len()) } else { random.below(5) };
            format!("\"{}\"", times[which])
        }
        "country" => random.pick(&["\"US\"", "\"DE\"", "\"FR\"", "\"GB\""]).to_owned(),
        "deviceType" => random.pick(&["\"ios\"", "\"android\"", "\"ctv\""]).to_owned(),
        "priceMicros" | "valueMicros" => (n * 1000).to_string(),
        "schemaVersion" => random.pick(&["1", "1", "2"]).to_owned(),
        "priceBasis" => random.pick(&["\"cpc\"", "\"cpm\"", "\"cpa\""]).to_owned(),
        "gdpr" | "coppa" | "lmt" | "gpc" => random.pick(&["0", "1", "true"]).to_owned(),
        "gppSid" => "[7,8]".into(),
        "usPrivacy" => "\"1YNN\"".into(),
        _ if random.one_in(20) => format!("\"{}\"", "long".repeat(1 + random.below(40))),
        _ => format!("\"v{n}\""),
    }
}

fn space(random: &mut Random) -> &'static str {
    if random.one_in(12) { random.pick(&[" ", "\t", "  ", " \r"]) } else { "" }
}

/// A random event as text.
fn event(random: &mut Random, habit: &[&str]) -> String {
    let mut names: Vec<&str> = habit.to_vec();
    if random.one_in(4) {
        names.retain(|_| !random.one_in(6));
    }
    if random.one_in(4) {
        random.shuffle(&mut names);
    }
    if random.one_in(25) {
        names.push(names[random.below(names.len())]);
    }
    if random.one_in(6) {
        names.push(random.pick(&["mine", "z", "a b", "eventid", "quo\\\"te"]));
    }
    let mut text = "{".to_owned();
    for (at, name) in names.iter().enumerate() {
        if at > 0 {
            text += ",";
        }
        let spaces = [(); 4].map(|()| space(random));
        text += &format!(
            "{}\"{name}\"{}:{}{}{}",
            spaces[0],
            spaces[1],
            spaces[2],
            value_for(random, name),
            spaces[3]
        );
    }
    text + "}"
}

/// The fields that one sender sends, in its order.
fn habit(random: &mut Random) -> Vec<&'static str> {
    let mut names: Vec<&str> = TEXTS.iter().map(|t| t.0).chain(CONSENT.map(|c| c.0)).collect();
    names.retain(|_| random.one_in(3));
    names.extend(["eventId", "eventType", "occurredAt", "campaignId", "adId"]);
    names.extend(["priceMicros", "receivedAt"]);
    names.sort_unstable();
    names.dedup();
    random.shuffle(&mut names);
    names
}

fn compare(expected: &[Verdict], answer: &Value, got: Vec<Row>, payloads: &mut Payloads) {
    let good = expected.iter().filter(|verdict| verdict.is_ok()).count();
    assert_eq!(answer["accepted"], good, "{answer}");
    assert_eq!(answer["rejected"], expected.len() - good);
    let codes: Vec<(u64, &str)> = expected
        .iter()
        .enumerate()
        .filter_map(|(at, verdict)| Some((at as u64, *verdict.as_ref().err()?)))
        .take(100)
        .collect();
    let errors: Vec<(u64, &str)> = answer["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["index"].as_u64().unwrap(), e["code"].as_str().unwrap()))
        .collect();
    assert_eq!(errors, codes);
    // Partitions change the order between ids, not among the copies of one.
    let mut expected: Vec<_> = expected.iter().flatten().collect();
    expected.sort_by(|a, b| a.0["event_id"].cmp(&b.0["event_id"]));
    let mut got = got;
    got.sort_by(|a, b| a["event_id"].cmp(&b["event_id"]));
    assert_eq!(got.len(), expected.len());
    for (mut got, (row, payload)) in got.into_iter().zip(expected) {
        let hash = got.remove("payload_hash").unwrap();
        payloads.check(&hash, payload);
        // Defaults that a batch may leave out or write.
        for (column, default) in
            [("price_micros", "0"), ("price_basis", "0"), ("schema_version", "1")]
        {
            assert_eq!(
                got.remove(column).unwrap_or_else(|| default.into()),
                row.get(column).map_or(default, |value| value),
                "{column}"
            );
        }
        // Derived by a table of its own, tested there.
        assert_eq!(got.remove("consent_state").is_some(), row.contains_key("consent"));
        let extra = |row: &Row| row.get("extra").map(|e| serde_json::from_str::<Value>(e).unwrap());
        assert_eq!(extra(&got), extra(row));
        let consent =
            |row: &Row| row.get("consent").map(|e| serde_json::from_str::<Value>(e).unwrap());
        assert_eq!(consent(&got), consent(row));
        let plain = |row: &Row| {
            let mut row = row.clone();
            for column in ["extra", "consent", "price_micros", "price_basis", "schema_version"] {
                row.remove(column);
            }
            row
        };
        assert_eq!(plain(&got), plain(row));
    }
}

/// Payload hashes and payloads, one to one.
#[derive(Default)]
struct Payloads {
    by_payload: HashMap<String, String>,
    by_hash: HashMap<String, String>,
}

impl Payloads {
    fn check(&mut self, hash: &str, payload: &BTreeMap<String, Value>) {
        let payload = serde_json::to_string(payload).unwrap();
        let known = self.by_payload.entry(payload.clone()).or_insert_with(|| hash.to_owned());
        assert_eq!(known, hash, "one payload, two hashes: {payload}");
        let known = self.by_hash.entry(hash.to_owned()).or_insert_with(|| payload.clone());
        assert_eq!(*known, payload, "two payloads, one hash");
    }
}

#[test]
fn agrees_with_a_slow_decoder_on_random_bodies() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for_seeds(120, |random| {
        runtime.block_on(async {
            let world = world();
            let mut payloads = Payloads::default();
            let habit = habit(random);
            for _ in 0..3 {
                let events: Vec<String> =
                    (0..1 + random.below(60)).map(|_| event(random, &habit)).collect();
                let expected: Vec<Verdict> = events
                    .iter()
                    .map(|event| {
                        let Pairs(mut pairs) = serde_json::from_str(event).unwrap();
                        pairs.iter_mut().for_each(|pair| zero(&mut pair.1));
                        judge(&pairs)
                    })
                    .collect();
                for lines in [false, true] {
                    let before = world.log.frames(Topic::Events).len();
                    let answer = if lines {
                        world.collect_as("collects", &[NDJSON], events.join("\n")).await
                    } else {
                        world.collect(format!("{{\"events\":[{}]}}", events.join(" ,\n"))).await
                    };
                    assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(&answer.body));
                    let frames = world.log.frames(Topic::Events).split_off(before);
                    compare(&expected, &answer.json(), rows(&frames, 4), &mut payloads);
                }
            }
        });
    });
}
