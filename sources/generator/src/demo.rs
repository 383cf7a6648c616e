//! Traffic as it is: people see ads of a few campaigns, some click, some of those buy; phones send
//! hours late, senders retry, some send nonsense, and a botnet clicks until a fraud system takes
//! its clicks out, changes its mind about a few, and sometimes judges before the click is there.
//!
//! A [`Tick`] is a pure function of the seed, of the ticks before it and of the time that it is
//! given: `tick(now)` twice from the same seed gives the same bytes. Nobody has to be "now": run
//! ticks with times of the last hours first, and a dashboard begins with a history.
//!
//! | share | of | what |
//! |---|---|---|
//! | 1 % | impressions | late by minutes to six hours (a phone without a network) |
//! | 0.8 % | events | sent again, byte by byte |
//! | 0.05 % | events | sent again with another price: a conflict |
//! | 0.1 % | events | malformed: the collector names what is wrong |
//! | 0.02 % each | impressions | 26 to 30 hours old; from the future; of an unknown schema version |
//! | 1 % | clicks | double clicks, taken out by a verdict within 20 s |
//! | one burst in about 45 s | | a botnet on one campaign; verdicts 10 to 60 s later, 4 % reversed |
//!
//! What is still to come (clicks, retries, verdicts) waits in memory, at most [`WAITING_MAX`] of
//! them; beyond that nothing follows from an event. A tick sends at most [`VERDICTS_MAX`] verdicts.

mod botnet;
#[cfg(test)]
mod tests;
mod world;

use crate::{
    event::{Event, Verdict, events_body, verdicts_body},
    random::Random,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use trueup_operators::{
    event::{EventType, Target},
    money::PriceBasis,
    time::{DAY_US, HOUR_US, MINUTE_US, SECOND_US},
};
use world::{Campaign, Person, World};

/// The most events and verdicts that wait to be sent.
pub const WAITING_MAX: usize = 1 << 20;
/// The most events in a body.
pub const BODY_EVENTS_MAX: usize = 1_000;
/// The most verdicts in a tick; more wait for the next.
pub const VERDICTS_MAX: usize = 1_000;
/// The longest tick that makes as many events as it is long.
pub const TICK_MS_MAX: u64 = 60_000;

/// Events that follow from an impression, itself included: what the rate is divided by.
const EVENTS_AN_IMPRESSION: f64 = 1.05;

/// What is to be sent in a tick.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tick {
    /// Bodies for `POST /v1/events/collect`.
    pub bodies: Vec<Vec<u8>>,
    /// A body for `POST /v1/verdicts`.
    pub verdicts: Option<Vec<u8>>,
    /// How many events the bodies hold, malformed ones included.
    pub events: usize,
}

/// What is to be sent in a tick, one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Events, as JSON objects; some are malformed.
    pub events: Vec<String>,
    /// Verdicts.
    pub verdicts: Vec<Verdict>,
}

/// What will be sent later.
#[derive(Debug)]
enum Due {
    Event(String),
    Verdict(Verdict),
}

/// The demo's traffic.
#[derive(Debug)]
pub struct Demo {
    seed: u64,
    rate_per_s: f64,
    world: World,
    ticks: u64,
    /// The part of an impression that the ticks so far have left over.
    owed: f64,
    waiting: BTreeMap<(i64, u64), Due>,
    scheduled: u64,
    botnet: botnet::Botnet,
}

/// One place where one ad is shown to one person: what its events have in common.
struct Showing<'a> {
    campaign: &'a Campaign,
    publisher: &'a str,
    placement: &'a str,
    ad: &'a str,
    creative: &'a str,
    impression: String,
}

impl Demo {
    /// Traffic of about `rate_per_s` events a second, averaged over a day.
    pub fn new(seed: u64, rate_per_s: f64) -> Demo {
        Demo {
            seed,
            rate_per_s: if rate_per_s.is_finite() { rate_per_s.clamp(0.0, 1e6) } else { 0.0 },
            world: World::new(seed),
            ticks: 0,
            owed: 0.0,
            waiting: BTreeMap::new(),
            scheduled: 0,
            botnet: botnet::Botnet::default(),
        }
    }

    /// Campaigns, ads and publishers: paths and bodies to `PUT` before the first tick.
    pub fn metadata(&self) -> Vec<(String, Value)> {
        self.world.metadata()
    }

    /// How many events and verdicts wait to be sent.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What is sent in the `tick_ms` before `now_us`, as bodies.
    pub fn tick(&mut self, now_us: i64, tick_ms: u64) -> Tick {
        let Sent { events, verdicts } = self.sent(now_us, tick_ms);
        Tick {
            bodies: events
                .chunks(BODY_EVENTS_MAX)
                .map(|chunk| events_body(chunk.iter().map(String::as_str)))
                .collect(),
            verdicts: verdicts_body(&verdicts),
            events: events.len(),
        }
    }

    /// What is sent in the `tick_ms` before `now_us`, one by one. Counts as a tick.
    pub fn sent(&mut self, now_us: i64, tick_ms: u64) -> Sent {
        let mut random = Random::new(self.seed, self.ticks);
        self.ticks += 1;
        let tick_ms = tick_ms.min(TICK_MS_MAX);
        let impressions = self.rate_per_s / EVENTS_AN_IMPRESSION * day_curve(now_us);
        self.owed += impressions * tick_ms as f64 / 1_000.0;
        let mut fresh = Vec::with_capacity(self.owed as usize);
        while self.owed >= 1.0 {
            self.owed -= 1.0;
            let since_us = random.below(tick_ms.max(1) * 1_000) as i64;
            self.impression(now_us - since_us, &mut random, &mut fresh);
        }
        self.botnet_clicks(now_us, tick_ms, &mut random, &mut fresh);
        self.due(now_us, fresh)
    }

    /// Adds what is due to what is fresh.
    fn due(&mut self, now_us: i64, mut events: Vec<String>) -> Sent {
        let later = self.waiting.split_off(&(now_us + 1, 0));
        let due = std::mem::replace(&mut self.waiting, later);
        let mut verdicts = Vec::new();
        for (at, due) in due {
            match due {
                Due::Event(json) => events.push(json),
                Due::Verdict(verdict) if verdicts.len() < VERDICTS_MAX => verdicts.push(verdict),
                Due::Verdict(_) => drop(self.waiting.insert(at, due)),
            }
        }
        Sent { events, verdicts }
    }

    fn later(&mut self, at_us: i64, due: Due) {
        if self.waiting.len() < WAITING_MAX {
            self.waiting.insert((at_us, self.scheduled), due);
            self.scheduled += 1;
        }
    }

    /// An impression at `sent_us`, with all that follows from it.
    fn impression(&mut self, sent_us: i64, random: &mut Random, out: &mut Vec<String>) {
        let person = self.world.person(random);
        let campaign = self.world.campaign(random);
        let publisher = self.world.publisher(random);
        let (placement, factor) = random.pick(&publisher.placements);
        let ad = random.pick(&campaign.ads);
        let showing = Showing {
            campaign,
            publisher: &publisher.id,
            placement,
            ad: &ad.id,
            creative: random.pick::<String>(&ad.creatives),
            impression: id("im", random),
        };
        let occurred_us = sent_us - age_us(random);
        let mut event = showing.event(EventType::Impression, &person, occurred_us, random);
        if random.chance(0.0002) {
            event.optional.schema_version = Some(9);
        }
        // Everything that follows is made before the world's borrow ends, and scheduled after.
        let mut following = Vec::new();
        if random.chance(campaign.click_rate * factor) {
            click(&showing, &person, (sent_us, occurred_us), random, &mut following);
        }
        self.emit(&event, sent_us, random, out);
        for (at_us, due) in following {
            self.later(at_us, due);
        }
    }

    /// Sends an event now, with the mistakes that senders make.
    fn emit(&mut self, event: &Event, now_us: i64, random: &mut Random, out: &mut Vec<String>) {
        let json = event.json();
        if random.chance(0.008) {
            let again_us = now_us + random.between(SECOND_US / 5, 30 * SECOND_US);
            self.later(again_us, Due::Event(json.clone()));
        }
        if random.chance(0.0005) {
            let mut other = event.clone();
            other.optional.price_micros = Some(other.optional.price_micros.unwrap_or(0) + 10_000);
            let at_us = now_us + random.between(SECOND_US, 20 * SECOND_US);
            self.later(at_us, Due::Event(other.json()));
        }
        if random.chance(0.001) {
            out.push(malformed(event, random));
        }
        out.push(json);
    }
}

impl Showing<'_> {
    /// An event of this showing with an id of its own.
    fn event(
        &self,
        event_type: EventType,
        person: &Person,
        occurred_us: i64,
        random: &mut Random,
    ) -> Event {
        let mut event =
            Event::new(event_type, id("ev", random), occurred_us, &self.campaign.id, self.ad);
        let o = &mut event.optional;
        o.publisher_id = Some(self.publisher.to_owned());
        o.placement_id = Some(self.placement.to_owned());
        o.creative_id = Some(self.creative.to_owned());
        o.impression_id = Some(self.impression.clone());
        o.country = Some(person.country.to_owned());
        o.region = Some(person.region.to_owned());
        o.device_type = Some(person.device.to_owned());
        o.user_id = Some(person.id.clone());
        o.user_agent = Some(person.user_agent.to_owned());
        o.ip = Some(person.ip.clone());
        o.source = Some("sdk".to_owned());
        let paid = matches!(
            (event_type, self.campaign.basis),
            (EventType::Click, PriceBasis::Cpc)
                | (EventType::Impression, PriceBasis::Cpm)
                | (EventType::Conversion, PriceBasis::Cpa)
        );
        if paid {
            o.price_micros = Some(self.campaign.price_micros);
            o.price_basis = Some(self.campaign.basis);
        }
        event
    }
}

/// A click some seconds after its impression, maybe a second one, maybe a conversion.
fn click(
    showing: &Showing<'_>,
    person: &Person,
    (sent_us, occurred_us): (i64, i64),
    random: &mut Random,
    following: &mut Vec<(i64, Due)>,
) {
    let after_us = seconds(random.log_normal(5.0, 0.8).min(600.0));
    let click_id = id("ck", random);
    let mut click = showing.event(EventType::Click, person, occurred_us + after_us, random);
    click.optional.click_id = Some(click_id.clone());
    let at_us = sent_us + after_us;
    following.push((at_us, Due::Event(click.json())));
    if random.chance(0.01) {
        let gap_us = random.between(80_000, 600_000);
        let mut double = showing.event(EventType::Click, person, occurred_us + after_us, random);
        double.occurred_at_us += gap_us;
        double.optional.click_id = Some(click_id.clone());
        following.push((at_us + gap_us, Due::Event(double.json())));
        let judged_us = at_us + random.between(5 * SECOND_US, 20 * SECOND_US);
        let verdict = invalid(Target::Event, double.event_id, judged_us, "double_click");
        following.push((judged_us, Due::Verdict(verdict)));
    }
    if random.chance(0.04) {
        let delay_us = seconds(random.exponential(60.0).min(3_600.0));
        let time_us = occurred_us + after_us + delay_us;
        let mut conversion = showing.event(EventType::Conversion, person, time_us, random);
        conversion.optional.click_id = Some(click_id);
        conversion.optional.value_micros = Some(random.between(5, 250) * 1_000_000);
        following.push((at_us + delay_us, Due::Event(conversion.json())));
    }
}

fn invalid(target: Target, id: String, decided_at_us: i64, reason_code: &'static str) -> Verdict {
    Verdict { target, id, invalid: true, decided_at_us, reason_code }
}

/// How long before it is sent an impression happened; negative: it claims to come from the future.
fn age_us(random: &mut Random) -> i64 {
    let draw = random.unit();
    if draw < 0.01 {
        seconds(random.log_normal(600.0, 1.2)).clamp(MINUTE_US, 6 * HOUR_US)
    } else if draw < 0.0102 {
        DAY_US + random.between(2 * HOUR_US, 6 * HOUR_US)
    } else if draw < 0.0104 {
        -random.between(20 * MINUTE_US, 2 * HOUR_US)
    } else {
        seconds(random.exponential(0.3).min(5.0))
    }
}

/// An event as a broken sender sends it.
fn malformed(event: &Event, random: &mut Random) -> String {
    let mut value = json!(event);
    match random.below(6) {
        0 => value["country"] = json!("Germany"),
        1 => drop(value.as_object_mut().and_then(|fields| fields.remove("campaignId"))),
        2 => value["priceMicros"] = json!("free"),
        3 => value["occurredAt"] = json!("yesterday"),
        4 => value["eventType"] = json!("hover"),
        _ => value["eventId"] = json!("e".repeat(200)),
    }
    value.to_string()
}

fn id(prefix: &str, random: &mut Random) -> String {
    format!("{prefix}_{:016x}{:08x}", random.bits(), random.bits() as u32)
}

fn seconds(s: f64) -> i64 {
    (s * SECOND_US as f64) as i64
}

/// How busy it is at this time of the (UTC) day; 1 on average, least at four in the morning.
fn day_curve(now_us: i64) -> f64 {
    let hour = now_us.rem_euclid(DAY_US) as f64 / HOUR_US as f64;
    1.0 - 0.45 * (std::f64::consts::TAU * (hour - 4.0) / 24.0).cos()
}
