//! The events of the Yahoo Streaming Benchmark, for comparing with what others published: 100
//! campaigns of 10 ads, seven text fields, about 253 bytes a line. A job keeps the views (a third),
//! joins ad to campaign, and counts by campaign in windows of 10 s of event time.
//!
//! As in the original's catch-up mode, event time advances by 10 ms an event and nothing is late;
//! users and pages are drawn from 100 each. Event *i* is a pure function of the seed and *i*.

use crate::random::Random;
use std::io::Write;

/// How many campaigns.
pub const CAMPAIGNS: u64 = 100;
/// How many ads a campaign has.
pub const ADS_PER_CAMPAIGN: u64 = 10;
/// How far event time advances with each event.
pub const STEP_MS: i64 = 10;

const USERS: u64 = 100;
const AD_TYPES: [&str; 5] = ["banner", "modal", "sponsored-search", "mail", "mobile"];
const EVENT_TYPES: [&str; 3] = ["view", "click", "purchase"];

/// The stream of a seed.
#[derive(Clone, Copy, Debug)]
pub struct Ysb {
    seed: u64,
}

/// What an id is of.
#[derive(Clone, Copy)]
enum Kind {
    User = 1,
    Page = 2,
    Ad = 3,
    Campaign = 4,
}

impl Ysb {
    /// The stream of a seed.
    pub const fn new(seed: u64) -> Ysb {
        Ysb { seed }
    }

    /// Ad and campaign, a line each ad: the table that the job joins with.
    pub fn ads(&self) -> impl Iterator<Item = (String, String)> + use<> {
        let this = *self;
        (0..CAMPAIGNS * ADS_PER_CAMPAIGN)
            .map(move |ad| (this.uuid(Kind::Ad, ad), this.uuid(Kind::Campaign, campaign_of(ad))))
    }

    /// The campaign, by number, of event `i` if the job counts it, and its time.
    pub fn counted(&self, i: u64, start_ms: i64) -> Option<(u64, i64)> {
        let draw = self.draw(i);
        (EVENT_TYPES[draw.event_type] == "view")
            .then(|| (campaign_of(draw.ad), start_ms + i as i64 * STEP_MS))
    }

    /// Appends event `i` of a stream that starts at `start_ms`, with its line end.
    pub fn line(&self, i: u64, start_ms: i64, out: &mut Vec<u8>) {
        let draw = self.draw(i);
        writeln!(
            out,
            concat!(
                r#"{{"user_id": "{}", "page_id": "{}", "ad_id": "{}", "ad_type": "{}", "#,
                r#""event_type": "{}", "event_time": "{}", "ip_address": "1.2.3.4"}}"#
            ),
            self.uuid(Kind::User, draw.user),
            self.uuid(Kind::Page, draw.page),
            self.uuid(Kind::Ad, draw.ad),
            AD_TYPES[draw.ad_type],
            EVENT_TYPES[draw.event_type],
            start_ms + i as i64 * STEP_MS,
        )
        .expect("writing to memory");
    }

    fn draw(&self, i: u64) -> Draw {
        let mut random = Random::new(self.seed, i);
        Draw {
            user: random.below(USERS),
            page: random.below(USERS),
            ad: random.below(CAMPAIGNS * ADS_PER_CAMPAIGN),
            ad_type: random.below(AD_TYPES.len() as u64) as usize,
            event_type: random.below(EVENT_TYPES.len() as u64) as usize,
        }
    }

    /// A version 4 UUID.
    fn uuid(&self, kind: Kind, number: u64) -> String {
        let mut random = Random::new(self.seed ^ (kind as u64) << 56, number);
        let high = random.bits() & !0xF000 | 0x4000;
        let low = random.bits() & !(0b11 << 62) | 0b10 << 62;
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            high >> 16 & 0xFFFF,
            high & 0xFFFF,
            low >> 48,
            low & 0xFFFF_FFFF_FFFF
        )
    }
}

struct Draw {
    user: u64,
    page: u64,
    ad: u64,
    ad_type: usize,
    event_type: usize,
}

const fn campaign_of(ad: u64) -> u64 {
    ad / ADS_PER_CAMPAIGN
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn lines_are_what_the_original_writes() {
        let ysb = Ysb::new(5);
        let campaigns: HashMap<String, String> = ysb.ads().collect();
        assert_eq!(campaigns.len(), 1_000);
        let mut distinct: Vec<&String> = campaigns.values().collect();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), 100);

        let (mut views, mut bytes) = (0, 0);
        for i in 0..3_000 {
            let mut line = Vec::new();
            ysb.line(i, 1_700_000_000_000, &mut line);
            bytes += line.len() - 1;
            let event: serde_json::Value = serde_json::from_slice(&line).unwrap();
            assert_eq!(event["event_time"], (1_700_000_000_000 + i * 10).to_string());
            let campaign = campaigns.get(event["ad_id"].as_str().unwrap()).unwrap();
            let counted = ysb.counted(i, 1_700_000_000_000);
            assert_eq!(counted.is_some(), event["event_type"] == "view");
            if let Some((number, time_ms)) = counted {
                views += 1;
                assert_eq!(*campaign, ysb.uuid(Kind::Campaign, number));
                assert_eq!(time_ms, 1_700_000_000_000 + i as i64 * 10);
            }
        }
        assert!((900..1_100).contains(&views), "{views}");
        // The published mean is 252.9.
        assert!((252..=254).contains(&(bytes / 3_000)), "{}", bytes / 3_000);
    }
}
