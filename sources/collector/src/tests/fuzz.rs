//! Valid bodies, damaged at random: whatever comes, the decoder ends without a panic, says the same
//! as serde_json about what is JSON, and every event is either accepted or rejected.

use super::{
    http::{NOW_US, batch, event},
    random::{Random, for_seeds},
};
use crate::{Decoder, Format, Rules};
use serde_json::Value;
use trueup_operators::{hash::HashKey, problem::Problem};

fn decode(decoder: &mut Decoder, body: &[u8], format: Format) -> Result<(usize, usize), Problem> {
    let rules = Rules {
        now_us: NOW_US,
        future_skew_us_max: 0,
        events_max: 1000,
        publishers: &[],
        advertiser_of: &|_| None,
    };
    let decoded = decoder.decode(body, format, &rules)?;
    let records: u32 = decoded.frames.iter().map(|frame| frame.records).sum();
    assert_eq!(records as usize, decoded.accepted);
    let reasons: usize = decoded.reasons.iter().map(|reason| reason.1).sum();
    assert_eq!(reasons, decoded.rejected);
    assert_eq!(decoded.errors.len(), decoded.rejected.min(100));
    Ok((decoded.accepted, decoded.rejected))
}

fn body(random: &mut Random) -> Vec<u8> {
    let more = [
        "",
        r#","country":"DE","region":"é\u00e9","mine":{"a":[1,{"b":null}],"c":-1.5e-3}"#,
        r#","priceMicros":180000,"deviceType":"ios","x":[],"y":{}"#,
        r#","referrer":"https://a.example/?q=\"x\"\\","gdpr":1,"tcString":"CPXX""#,
    ];
    let events: Vec<String> =
        (0..1 + random.below(6)).map(|n| event(&format!("e{n}"), random.pick(&more))).collect();
    batch(&events).into_bytes()
}

fn damage(random: &mut Random, body: &mut Vec<u8>) {
    let at = random.below(body.len());
    let special = b"{}[]\",:\\u0129eE.-+ntf \n\x00\x1f\x7f\xc3\xff";
    match random.below(6) {
        0 => body[at] = special[random.below(special.len())],
        1 => body.insert(at, special[random.below(special.len())]),
        2 => {
            body.remove(at);
        }
        3 => body.truncate(at),
        4 => {
            let end = (at + random.below(40)).min(body.len());
            let copy = body[at..end].to_vec();
            let to = random.below(body.len());
            body.splice(to..to, copy);
        }
        _ => body[at] ^= 1 << random.below(8),
    }
    if body.is_empty() {
        body.push(b'{');
    }
}

/// Whether serde_json takes the text, at most 64 levels deep inside an event.
fn is_json(body: &[u8]) -> bool {
    serde_json::from_slice::<Value>(body).is_ok()
}

#[test]
fn damaged_json_is_judged_as_serde_json_judges_it() {
    for_seeds(400, |random| {
        let mut decoder = Decoder::new(HashKey([1; 16]), 3);
        for _ in 0..40 {
            let mut body = body(random);
            for _ in 0..1 + random.below(4) {
                damage(random, &mut body);
            }
            let text = String::from_utf8_lossy(&body).into_owned();
            match decode(&mut decoder, &body, Format::Json) {
                Ok((accepted, rejected)) => {
                    let json: Value = match serde_json::from_slice(&body) {
                        Ok(json) => json,
                        // 1e80000 is JSON, but no number of a machine: an error of its event.
                        Err(error) if error.to_string().contains("number out of range") => continue,
                        // And half of a pair is no text of serde_json.
                        Err(_) if text.contains("\\ud") => continue,
                        Err(error) => panic!("taken, but {error}: {text}"),
                    };
                    let events = json["events"].as_array().unwrap().len();
                    assert_eq!(accepted + rejected, events, "{text}");
                }
                Err(problem) if problem.code == "bad_json" || problem.code == "invalid_utf8" => {
                    let shape = serde_json::from_slice::<Value>(&body)
                        .ok()
                        .is_some_and(|json| json.get("events").is_some_and(Value::is_array));
                    let doubled = problem.detail.contains("twice");
                    assert!(!shape || doubled, "refused ({}): {text}", problem.detail);
                }
                Err(problem) => assert_eq!(problem.code, "empty_batch", "{problem}: {text}"),
            }
        }
    });
}

#[test]
fn damaged_lines_hurt_only_themselves() {
    for_seeds(200, |random| {
        let mut decoder = Decoder::new(HashKey([1; 16]), 3);
        for _ in 0..20 {
            let count = 3 + random.below(5);
            let mut lines: Vec<Vec<u8>> =
                (0..count).map(|n| event(&format!("e{n}"), r#","a":"b""#).into_bytes()).collect();
            let hurt = random.below(count);
            damage(random, &mut lines[hurt]);
            let body = lines.join(&b'\n');
            let text = String::from_utf8_lossy(&body).into_owned();
            let (accepted, rejected) = decode(&mut decoder, &body, Format::Lines).unwrap();
            let good = body
                .split(|b| *b == b'\n')
                .filter(|line| is_json(line) && line.contains(&b'{'))
                .count();
            assert!(accepted >= count - 1, "{text}");
            assert!(accepted <= good, "{text}");
            let filled =
                text.split('\n').filter(|line| !line.trim_matches([' ', '\t', '\r']).is_empty());
            assert_eq!(accepted + rejected, filled.count(), "{text}");
        }
    });
}

/// An event with white space wherever JSON allows it.
fn spread(random: &mut Random, event: &str) -> String {
    let spaces = ["", "", " ", "\n", "\r\n  ", "\t"];
    let mut out = String::new();
    for part in event.split_inclusive([',', ':', '{']) {
        out.push_str(part);
        // Not inside of a string, where these stand in a time.
        if !part.ends_with(':') || part.ends_with("\":") {
            out.push_str(random.pick(&spaces));
        }
    }
    out
}

#[test]
fn a_used_decoder_says_what_a_fresh_one_says() {
    for_seeds(100, |random| {
        let mut used = Decoder::new(HashKey([1; 16]), 3);
        for _ in 0..20 {
            let events: Vec<String> =
                (0..3).map(|n| spread(random, &event(&format!("e{n}"), ""))).collect();
            let (body, format) = match random.below(2) {
                0 => (batch(&events), Format::Json),
                _ => (events.join("\n"), Format::Lines),
            };
            let mut fresh = Decoder::new(HashKey([1; 16]), 3);
            let expected = decode(&mut fresh, body.as_bytes(), format);
            assert_eq!(decode(&mut used, body.as_bytes(), format), expected, "{format:?} {body}");
        }
    });
}

#[test]
fn damaged_arrow_streams_are_refused_or_taken() {
    let good = super::arrow::stream(&super::arrow::batch(50));
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    for_seeds(1500, |random| {
        let mut decoder = Decoder::new(HashKey([1; 16]), 3);
        let mut body = good.clone();
        for _ in 0..1 + random.below(3) {
            // Mostly in the schema and the messages, which is where the lengths are.
            let at = if random.one_in(3) { random.below(body.len()) } else { random.below(1200) };
            let at = at % body.len();
            match random.below(4) {
                0 => body.truncate(at.max(1)),
                1 => body[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
                _ => body[at] ^= 1 << random.below(8),
            }
        }
        match decode(&mut decoder, &body, Format::Arrow) {
            Ok((accepted, rejected)) => assert!(accepted + rejected <= 1000),
            Err(problem) => assert!(problem.status == 400 || problem.status == 413, "{problem}"),
        }
    });
    std::panic::set_hook(hook);
}
