//! Contradictions on purpose: few ids and few campaigns, so that in a thousand events almost every
//! id is sent several times, changed, late, too late, judged, reinstated, judged by its impression,
//! judged before it comes, and taken as invalid by the collector. Prices are odd numbers and halves
//! on every basis, so that a rounding in the wrong place shows.
//!
//! Event times lie around the given now and around the edges of its horizon, many of them exactly
//! on a minute. Decision times come from a few values, so that ties are common.
//!
//! What it yields is a pure function of the seed and of the calls so far. Memory: one event an id.

use crate::{
    demo::Tick,
    event::{Event, Verdict, events_body, verdicts_body},
    random::Random,
};
use std::collections::HashMap;
use trueup_operators::{
    event::{EventType, Target},
    money::PriceBasis,
    time::{MINUTE_US, SECOND_US},
};

/// How small the world is, and where its edges are.
#[derive(Clone, Copy, Debug)]
pub struct ChaosSettings {
    /// How many event ids there are.
    pub ids: u64,
    /// How many campaigns.
    pub campaigns: u64,
    /// The correction horizon that the job runs with: events are sent around its edge.
    pub correction_horizon_us: i64,
    /// How far ahead of now an event may claim to be. Nothing is sent beyond.
    pub future_skew_us_max: i64,
    /// Whether some events are taken as invalid by the collector; only frames can carry that.
    pub born_invalid: bool,
}

impl Default for ChaosSettings {
    fn default() -> Self {
        ChaosSettings {
            ids: 300,
            campaigns: 5,
            correction_horizon_us: 10 * MINUTE_US,
            future_skew_us_max: 5 * MINUTE_US,
            born_invalid: true,
        }
    }
}

/// Random events and verdicts.
#[derive(Clone, Debug)]
pub struct Chaos {
    settings: ChaosSettings,
    random: Random,
    /// What each id was first sent with.
    first: HashMap<u64, Event>,
}

impl Chaos {
    /// The traffic of a seed.
    pub fn new(seed: u64, settings: ChaosSettings) -> Chaos {
        Chaos { settings, random: Random::new(seed, 0), first: HashMap::new() }
    }

    /// The next events, as they arrive at `now_us`.
    pub fn events(&mut self, count: usize, now_us: i64) -> Vec<Event> {
        (0..count).map(|_| self.event(now_us)).collect()
    }

    /// The next verdicts, as they arrive at `now_us`: on ids that were sent and on ids that were
    /// not yet.
    pub fn verdicts(&mut self, count: usize, now_us: i64) -> Vec<Verdict> {
        (0..count).map(|_| self.verdict(now_us)).collect()
    }

    /// The next events and verdicts as bodies for a collector.
    pub fn tick(&mut self, now_us: i64, events: usize, verdicts: usize) -> Tick {
        let json: Vec<String> = self.events(events, now_us).iter().map(Event::json).collect();
        Tick {
            bodies: vec![events_body(json.iter().map(String::as_str))],
            verdicts: verdicts_body(&self.verdicts(verdicts, now_us)),
            events,
        }
    }

    fn event(&mut self, now_us: i64) -> Event {
        let number = self.random.below(self.settings.ids);
        let draw = self.random.unit();
        if let Some(first) = self.first.get(&number) {
            if draw < 0.75 {
                return first.clone();
            }
            if draw < 0.9 {
                return contradiction(first, &mut self.random);
            }
        }
        // New, or the id of another event again: a conflict, unless the first one is forgotten.
        let event = self.fresh(number, now_us);
        self.first.insert(number, event.clone());
        event
    }

    fn fresh(&mut self, number: u64, now_us: i64) -> Event {
        let time_us = self.time_us(now_us);
        let random = &mut self.random;
        let kind = match random.below(20) {
            0..10 => EventType::Impression,
            10..17 => EventType::Click,
            _ => EventType::Conversion,
        };
        let campaign = random.below(self.settings.campaigns);
        let mut event = Event::new(
            kind,
            format!("ev_{number}"),
            time_us,
            format!("cmp_{campaign}"),
            format!("ad_{campaign}_{}", random.below(3)),
        );
        let groups = self.settings.ids / 4 + 1;
        let o = &mut event.optional;
        o.publisher_id = sometimes(random, |r| format!("pub_{}", r.below(3)));
        o.placement_id = sometimes(random, |r| format!("pl_{}", r.below(2)));
        o.advertiser_id = sometimes(random, |_| format!("adv_{campaign}"));
        o.country = sometimes(random, |r| (*r.pick(&["DE", "US", "FR"])).to_owned());
        o.region = sometimes(random, |r| (*r.pick(&["DE-BE", "US-CA"])).to_owned());
        o.device_type = sometimes(random, |r| (*r.pick(&["ios", "ctv"])).to_owned());
        o.creative_id = sometimes(random, |r| format!("cr_{}", r.below(2)));
        o.impression_id = sometimes(random, |r| format!("im_{}", r.below(groups)));
        o.price_micros = sometimes(random, price_micros);
        let bases = [PriceBasis::Cpc, PriceBasis::Cpm, PriceBasis::Cpa];
        o.price_basis = sometimes(random, |r| *r.pick(&bases));
        o.schema_version = random.chance(0.02).then_some(2);
        if self.settings.born_invalid && random.chance(0.03) {
            o.invalid_reason = Some("known_bot".to_owned());
        }
        event
    }

    fn time_us(&mut self, now_us: i64) -> i64 {
        let horizon_us = self.settings.correction_horizon_us;
        let random = &mut self.random;
        let edge_us = now_us - horizon_us - MINUTE_US;
        let time_us = match random.below(20) {
            0..10 => now_us - random.between(0, 2 * MINUTE_US),
            10..14 => now_us - random.between(0, horizon_us.max(1)),
            14..17 => edge_us + random.between(-2 * SECOND_US, 2 * SECOND_US),
            17 => edge_us - random.between(0, 10 * MINUTE_US),
            _ => now_us + random.between(0, self.settings.future_skew_us_max + 1),
        };
        if random.chance(0.2) { time_us.div_euclid(MINUTE_US) * MINUTE_US } else { time_us }
    }

    fn verdict(&mut self, now_us: i64) -> Verdict {
        let ids = self.settings.ids;
        let random = &mut self.random;
        let (target, id) = if random.chance(0.6) {
            (Target::Event, format!("ev_{}", random.below(ids)))
        } else {
            (Target::Impression, format!("im_{}", random.below(ids / 4 + 1)))
        };
        Verdict {
            target,
            id,
            invalid: random.chance(0.65),
            decided_at_us: now_us.div_euclid(SECOND_US) * SECOND_US
                - random.between(0, 6) * SECOND_US,
            reason_code: "chaos",
        }
    }
}

fn sometimes<T>(random: &mut Random, value: impl FnOnce(&mut Random) -> T) -> Option<T> {
    random.chance(0.7).then(|| value(random))
}

/// Often an odd number of half thousands: a thousandth of it is a half, which rounds to even.
fn price_micros(random: &mut Random) -> i64 {
    if random.chance(0.5) {
        500 + 1_000 * random.between(0, 9)
    } else {
        random.between(1, 2_000_000) | 1
    }
}

/// The same id with another payload.
fn contradiction(first: &Event, random: &mut Random) -> Event {
    let mut event = first.clone();
    match random.below(4) {
        0 => event.optional.price_micros = Some(event.optional.price_micros.unwrap_or(0) + 1),
        1 => event.occurred_at_us += 1,
        2 => event.campaign_id.push('x'),
        _ => {
            event.event_type = match event.event_type {
                EventType::Impression => EventType::Click,
                _ => EventType::Impression,
            }
        }
    }
    event
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::HashSet;

    const NOW_US: i64 = 1_792_929_600_000_000;

    #[test]
    fn a_seed_gives_the_same_contradictions() {
        let ticks = |seed| {
            let mut chaos = Chaos::new(seed, ChaosSettings::default());
            (0..20).map(|n| chaos.tick(NOW_US + n * SECOND_US, 50, 9)).collect::<Vec<_>>()
        };
        assert_eq!(ticks(1), ticks(1));
        assert_ne!(ticks(1), ticks(2));
        let body = &ticks(1)[0].bodies[0];
        let body: serde_json::Value = serde_json::from_slice(body).unwrap();
        assert_eq!(body["events"].as_array().unwrap().len(), 50);
    }

    #[test]
    fn contradicts_itself_in_every_way() {
        let settings = ChaosSettings::default();
        let mut chaos = Chaos::new(5, settings);
        let events = chaos.events(5_000, NOW_US);
        let mut seen: HashMap<&str, HashSet<u64>> = HashMap::new();
        let copies = events
            .iter()
            .filter(|e| !seen.entry(&e.event_id).or_default().insert(e.payload_hash()))
            .count();
        assert!(copies > 2_000, "{copies}");
        assert!(seen.values().filter(|payloads| payloads.len() > 1).count() > 200);
        let count = |is: &dyn Fn(&Event) -> bool| events.iter().filter(|e| is(e)).count();
        let edge_us = NOW_US - settings.correction_horizon_us - MINUTE_US;
        assert!(count(&|e| e.occurred_at_us < edge_us) > 100);
        assert!(count(&|e| (edge_us..edge_us + MINUTE_US).contains(&e.occurred_at_us)) > 100);
        assert!(count(&|e| e.occurred_at_us > NOW_US) > 100);
        assert!(count(&|e| e.optional.schema_version.is_some()) > 10);
        assert!(count(&|e| e.optional.invalid_reason.is_some()) > 10);
        assert!(count(&|e| e.occurred_at_us > NOW_US + settings.future_skew_us_max) == 0);
        let verdicts = chaos.verdicts(500, NOW_US);
        let decided: HashSet<i64> = verdicts.iter().map(|v| v.decided_at_us).collect();
        assert_eq!(decided.len(), 6);
    }
}
