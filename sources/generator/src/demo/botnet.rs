//! A botnet that comes and goes: a dozen machines behind one fingerprint click on one campaign at
//! one publisher, with and without impressions, and never buy. A fraud system judges them by event
//! or by impression, mostly late, sometimes before the click arrives, and is wrong now and then.

use super::{Demo, Due, Showing, id, invalid};
use crate::{event::Verdict, random::Random};
use trueup_operators::{
    event::{EventType, Target},
    time::SECOND_US,
};

/// The machines of a burst.
const MACHINES: u64 = 12;
/// Clicks of a burst, as a share of all events while it lasts.
const SHARE: f64 = 0.12;

/// When it comes, and what it is at.
#[derive(Debug, Default)]
pub(super) struct Botnet {
    /// The burst under way or to come; none before the first tick.
    burst: Option<Burst>,
    /// The part of a click that is left over.
    owed: f64,
}

#[derive(Clone, Debug)]
struct Burst {
    from_us: i64,
    to_us: i64,
    /// What its campaign, publisher and machines are drawn from, so that all its clicks agree.
    seed: u64,
}

impl Burst {
    fn after(time_us: i64, mean_s: f64, random: &mut Random) -> Burst {
        let from_us = time_us + super::seconds(2.0 + random.exponential(mean_s));
        let to_us = from_us + random.between(8 * SECOND_US, 20 * SECOND_US);
        Burst { from_us, to_us, seed: random.bits() }
    }
}

/// A click of the botnet, and what is to come of it.
struct Attack {
    events: Vec<String>,
    following: Vec<(i64, Due)>,
}

impl Demo {
    /// The botnet's part of a tick.
    pub(super) fn botnet_clicks(
        &mut self,
        now_us: i64,
        tick_ms: u64,
        random: &mut Random,
        out: &mut Vec<String>,
    ) {
        // The first one comes soon, so that nobody has to wait to see a retraction.
        let burst = self.botnet.burst.take().unwrap_or_else(|| Burst::after(now_us, 3.0, random));
        if now_us >= burst.to_us {
            self.botnet.burst = Some(Burst::after(now_us, 30.0, random));
            return;
        }
        if now_us >= burst.from_us {
            self.botnet.owed += self.rate_per_s * SHARE * tick_ms as f64 / 1_000.0;
            while self.botnet.owed >= 1.0 {
                self.botnet.owed -= 1.0;
                let attack = self.attack(burst.seed, now_us, random);
                out.extend(attack.events);
                for (at_us, due) in attack.following {
                    self.later(at_us, due);
                }
            }
        }
        self.botnet.burst = Some(burst);
    }

    fn attack(&self, burst: u64, now_us: i64, random: &mut Random) -> Attack {
        let mut common = Random::new(burst, 0);
        let campaign = self.world.campaign(&mut common);
        let publisher = self.world.publisher(&mut common);
        let ad = &campaign.ads[0];
        let mut person = self.world.person(&mut Random::new(burst, 1 + random.below(MACHINES)));
        person.user_agent = "Mozilla/5.0 (X11; Linux x86_64) HeadlessChrome/146.0";
        let showing = Showing {
            campaign,
            publisher: &publisher.id,
            placement: &publisher.placements[0].0,
            ad: &ad.id,
            creative: &ad.creatives[0],
            impression: id("im", random),
        };
        let fingerprint = Some(format!("fp_{burst:016x}"));
        let mut attack = Attack { events: Vec::new(), following: Vec::new() };
        let mut click = showing.event(EventType::Click, &person, now_us, random);
        click.optional.device_fingerprint.clone_from(&fingerprint);
        let target = if random.chance(0.5) {
            let mut impression =
                showing.event(EventType::Impression, &person, now_us - SECOND_US / 4, random);
            impression.optional.device_fingerprint = fingerprint;
            attack.events.push(impression.json());
            (Target::Impression, showing.impression.clone())
        } else {
            click.optional.impression_id = None;
            (Target::Event, click.event_id.clone())
        };
        if random.chance(0.01) {
            // Known before it comes: the verdict has to wait for its event.
            let arrives_us = now_us + random.between(5 * SECOND_US, 15 * SECOND_US);
            attack.following.push((arrives_us, Due::Event(click.json())));
            judge(target, now_us, random, &mut attack.following);
        } else {
            attack.events.push(click.json());
            let judged_us = now_us + random.between(10 * SECOND_US, 60 * SECOND_US);
            judge(target, judged_us, random, &mut attack.following);
        }
        attack
    }
}

/// A verdict, and for one in 25 its reversal.
fn judge(
    (target, id): (Target, String),
    at_us: i64,
    random: &mut Random,
    following: &mut Vec<(i64, Due)>,
) {
    if random.chance(0.04) {
        let reversed_us = at_us + random.between(30 * SECOND_US, 120 * SECOND_US);
        let reversal = Verdict {
            target,
            id: id.clone(),
            invalid: false,
            decided_at_us: reversed_us,
            reason_code: "appeal_upheld",
        };
        following.push((reversed_us, Due::Verdict(reversal)));
    }
    following.push((at_us, Due::Verdict(invalid(target, id, at_us, "click_velocity"))));
}
