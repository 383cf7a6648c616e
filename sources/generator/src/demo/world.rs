//! Who is in the demo: advertisers with campaigns, ads and creatives, publishers with placements,
//! and people in countries with regions and devices. Drawn once from the seed.

use crate::random::{Random, zipf_table};
use serde_json::{Value, json};
use trueup_operators::money::PriceBasis;

const CAMPAIGNS: u16 = 24;
const PUBLISHERS: u16 = 16;
const ADVERTISERS: u64 = 9;
const PEOPLE: u64 = 60_000;
/// Slots of the guide tables.
const SLOTS: usize = 4_096;

const BRANDS: [&str; 8] =
    ["Aurora", "Birch", "Cobalt", "Delta", "Ember", "Fjord", "Grove", "Harbor"];
const GOODS: [&str; 6] = ["Sneakers", "Coffee", "Travel", "Audio", "Bikes", "Insurance"];
const SITES: [&str; 8] =
    ["daily", "sports", "recipes", "weather", "games", "finance", "music", "maps"];

/// Countries by weight in percent, with regions.
const COUNTRIES: [(&str, u64, [&str; 3]); 12] = [
    ("US", 34, ["US-CA", "US-NY", "US-TX"]),
    ("DE", 14, ["DE-BE", "DE-BY", "DE-NW"]),
    ("GB", 11, ["GB-ENG", "GB-SCT", "GB-WLS"]),
    ("FR", 9, ["FR-IDF", "FR-ARA", "FR-PAC"]),
    ("IN", 8, ["IN-MH", "IN-KA", "IN-DL"]),
    ("BR", 6, ["BR-SP", "BR-RJ", "BR-MG"]),
    ("JP", 5, ["JP-13", "JP-27", "JP-14"]),
    ("ES", 4, ["ES-MD", "ES-CT", "ES-AN"]),
    ("NL", 3, ["NL-NH", "NL-ZH", "NL-UT"]),
    ("SE", 2, ["SE-AB", "SE-O", "SE-M"]),
    ("PL", 2, ["PL-14", "PL-12", "PL-02"]),
    ("AU", 2, ["AU-NSW", "AU-VIC", "AU-QLD"]),
];

const DEVICES: [(&str, u64, &str); 4] = [
    ("android", 42, "Mozilla/5.0 (Linux; Android 16; Pixel 10) AppleWebKit/537.36 Chrome/146.0"),
    ("ios", 31, "Mozilla/5.0 (iPhone; CPU iPhone OS 26_2 like Mac OS X) AppleWebKit/605.1.15"),
    ("desktop", 22, "Mozilla/5.0 (X11; Linux x86_64; rv:146.0) Gecko/20100101 Firefox/146.0"),
    ("ctv", 5, "Mozilla/5.0 (SMART-TV; Linux; Tizen 9.0) AppleWebKit/538.1 TV Safari/538.1"),
];

/// An ad with its creatives.
#[derive(Debug)]
pub(super) struct Ad {
    pub(super) id: String,
    pub(super) creatives: Vec<String>,
}

/// A campaign with what it pays.
#[derive(Debug)]
pub(super) struct Campaign {
    pub(super) id: String,
    name: String,
    pub(super) advertiser: String,
    pub(super) basis: PriceBasis,
    pub(super) price_micros: i64,
    daily_budget_micros: i64,
    /// Clicks an impression at an average placement.
    pub(super) click_rate: f64,
    pub(super) ads: Vec<Ad>,
}

/// A publisher with its placements, each with how much better than average it does.
#[derive(Debug)]
pub(super) struct Publisher {
    pub(super) id: String,
    name: String,
    pub(super) placements: Vec<(String, f64)>,
}

/// Someone who sees ads.
#[derive(Clone, Debug)]
pub(super) struct Person {
    pub(super) id: String,
    pub(super) country: &'static str,
    pub(super) region: &'static str,
    pub(super) device: &'static str,
    pub(super) user_agent: &'static str,
    pub(super) ip: String,
}

/// Everybody and everything in the demo.
#[derive(Debug)]
pub(super) struct World {
    seed: u64,
    campaigns: Vec<Campaign>,
    publishers: Vec<Publisher>,
    campaign_by_slot: Vec<u16>,
    publisher_by_slot: Vec<u16>,
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        let mut random = Random::new(seed, u64::MAX);
        World {
            seed,
            campaigns: (0..CAMPAIGNS).map(|n| campaign(n, &mut random)).collect(),
            publishers: (0..PUBLISHERS).map(|n| publisher(n, &mut random)).collect(),
            campaign_by_slot: zipf_table(CAMPAIGNS, SLOTS, 1.1),
            publisher_by_slot: zipf_table(PUBLISHERS, SLOTS, 0.9),
        }
    }

    pub(super) fn campaign(&self, random: &mut Random) -> &Campaign {
        &self.campaigns[usize::from(*random.pick(&self.campaign_by_slot))]
    }

    pub(super) fn publisher(&self, random: &mut Random) -> &Publisher {
        &self.publishers[usize::from(*random.pick(&self.publisher_by_slot))]
    }

    pub(super) fn person(&self, random: &mut Random) -> Person {
        let number = random.below(PEOPLE);
        // A person is the same whenever he is met.
        let mut own = Random::new(self.seed ^ 0x5065_6F70_6C65, number);
        let country = weighted(&COUNTRIES, |c| c.1, &mut own);
        let device = weighted(&DEVICES, |d| d.1, &mut own);
        let address = own.bits().to_be_bytes();
        Person {
            id: format!("user_{number}"),
            country: country.0,
            region: own.pick::<&str>(&country.2),
            device: device.0,
            user_agent: device.2,
            // 198.18.0.0/15 is set aside for benchmarks: nobody's address.
            ip: format!("198.{}.{}.{}", 18 + (address[0] & 1), address[1], address[2]),
        }
    }

    /// Paths and bodies to `PUT` before the first event.
    pub(super) fn metadata(&self) -> Vec<(String, Value)> {
        let mut puts = Vec::new();
        for publisher in &self.publishers {
            let body = json!({ "name": publisher.name });
            puts.push((format!("/v1/publishers/{}", publisher.id), body));
        }
        for campaign in &self.campaigns {
            let body = json!({
                "advertiserId": campaign.advertiser,
                "name": campaign.name,
                "budgetModel": campaign.basis,
                "dailyBudgetMicros": campaign.daily_budget_micros,
                "timezone": "UTC",
                "status": "active",
            });
            puts.push((format!("/v1/campaigns/{}", campaign.id), body));
        }
        for (campaign, ad) in self.campaigns.iter().flat_map(|c| c.ads.iter().map(move |a| (c, a)))
        {
            let body = json!({
                "campaignId": campaign.id,
                "landingUrl": format!("https://shop.example/{}/{}", campaign.id, ad.id),
                "creativeId": ad.creatives[0],
            });
            puts.push((format!("/v1/ads/{}", ad.id), body));
        }
        puts
    }
}

fn campaign(number: u16, random: &mut Random) -> Campaign {
    let basis = *random.pick(&[PriceBasis::Cpc, PriceBasis::Cpc, PriceBasis::Cpm, PriceBasis::Cpa]);
    let price_micros = match basis {
        PriceBasis::Cpc => random.between(60, 900) * 1_000,
        PriceBasis::Cpm => random.between(800, 9_000) * 1_000,
        PriceBasis::Cpa => random.between(4_000, 40_000) * 1_000,
    };
    let id = format!("cmp_{}", 1_001 + number);
    let ads = (0..random.between(2, 6))
        .map(|n| Ad {
            id: format!("ad_{}_{n}", 1_001 + number),
            creatives: (0..random.between(1, 4))
                .map(|c| format!("cr_{}_{n}_{c}", 1_001 + number))
                .collect(),
        })
        .collect();
    Campaign {
        id,
        name: format!("{} {}", random.pick(&BRANDS), random.pick(&GOODS)),
        advertiser: format!("adv_{}", 1 + random.below(ADVERTISERS)),
        basis,
        price_micros,
        daily_budget_micros: random.between(50, 2_000) * 1_000_000,
        click_rate: 0.01 + 0.04 * random.unit(),
        ads,
    }
}

fn publisher(number: u16, random: &mut Random) -> Publisher {
    Publisher {
        id: format!("pub_{}", 1 + number),
        name: format!("{}{}.example", random.pick(&SITES), 1 + number),
        placements: (0..random.between(3, 9))
            .map(|n| (format!("pl_{}_{n}", 1 + number), 0.4 + 1.2 * random.unit()))
            .collect(),
    }
}

fn weighted<'a, T>(from: &'a [T], weight: impl Fn(&T) -> u64, random: &mut Random) -> &'a T {
    let mut left = random.below(from.iter().map(&weight).sum());
    for item in from {
        if left < weight(item) {
            return item;
        }
        left -= weight(item);
    }
    &from[0]
}
