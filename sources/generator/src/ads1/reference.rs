//! The answers to ADS-1's Q1 by the simplest program there is: a set of ids and a map of groups.
//! A measurement counts only if its engine gave the same five numbers.

use super::{Ads1, Ads1Event};
use std::collections::{HashMap, HashSet};

/// What is compared: Q1 over all its groups, (minute, campaign, country, device).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Impressions.
    pub impressions: u64,
    /// Valid clicks.
    pub clicks: u64,
    /// Clicks that a verdict took out; 0 in Q1, where there are no verdicts.
    pub invalid_clicks: u64,
    /// The price of the valid clicks.
    pub spend_micros: u64,
    /// How many groups have an event, valid or not.
    pub groups: u64,
    /// The sum over groups of impressions²: two events in each other's group change it.
    pub squared_impressions: u64,
}

#[derive(Clone, Copy, Default)]
struct Group {
    impressions: u64,
    clicks: u64,
    invalid_clicks: u64,
    spend_micros: u64,
}

/// Computes an [`Answer`] while the stream goes by.
#[derive(Default)]
pub struct Reference {
    seen: HashSet<(u64, u64)>,
    groups: HashMap<(i64, u16, u8, u8), Group>,
}

impl Reference {
    /// Takes an event.
    pub fn add(&mut self, event: &Ads1Event) {
        if !self.seen.insert((event.id_high, event.id_low)) {
            return;
        }
        let group = self.groups.entry(group_of(event)).or_default();
        if event.click {
            group.clicks += 1;
            group.spend_micros += u64::from(event.price_micros);
        } else {
            group.impressions += 1;
        }
    }

    /// Takes a verdict on a click that was added.
    pub fn retract(&mut self, event: &Ads1Event) {
        let group = self.groups.entry(group_of(event)).or_default();
        group.clicks -= 1;
        group.invalid_clicks += 1;
        group.spend_micros -= u64::from(event.price_micros);
    }

    /// The answer so far.
    pub fn answer(&self) -> Answer {
        let mut answer = Answer { groups: self.groups.len() as u64, ..Answer::default() };
        for group in self.groups.values() {
            answer.impressions += group.impressions;
            answer.clicks += group.clicks;
            answer.invalid_clicks += group.invalid_clicks;
            answer.spend_micros += group.spend_micros;
            answer.squared_impressions += group.impressions * group.impressions;
        }
        answer
    }
}

fn group_of(event: &Ads1Event) -> (i64, u16, u8, u8) {
    (event.occurred_at_ms.div_euclid(60_000), event.campaign, event.country, event.device)
}

impl Ads1 {
    /// The answer to Q1 over the first `events`.
    pub fn reference(&self, events: u64) -> Answer {
        let mut reference = Reference::default();
        (0..events).for_each(|i| reference.add(&self.event(i)));
        reference.answer()
    }

    /// The answer to Q1+: Q1 after the verdicts that come with the first `events`.
    pub fn reference_with_verdicts(&self, events: u64) -> Answer {
        let mut reference = Reference::default();
        (0..events).for_each(|i| reference.add(&self.event(i)));
        self.verdicts(0..events).for_each(|verdict| reference.retract(&verdict.event));
        reference.answer()
    }
}
