//! What is known of campaigns, ads and publishers, kept in the log's metadata topic like everything
//! else and held in memory while the collector runs.
//!
//! A frame of the topic is a JSON array of [`Record`]s. The *version* of an entry, its `ETag`, is
//! the offset of its last frame plus one: it grows with every change, survives restarts, is the
//! same on every replay, and is not used again after an entry was deleted.
//!
//! Reading is a lock around a map; writing is one writer at a time, because a change is decided
//! (`If-Match`) against what is durable. The number of entries is bounded.

use crate::collector::StartError;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value as Json;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};
use trueup_operators::{
    log::{Frame, Log, Topic},
    money::PriceBasis,
};

/// How much of the topic is read at once.
const READ_BYTES: usize = 4 * 1024 * 1024;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A campaign.
    Campaign,
    /// An ad.
    Ad,
    /// A publisher.
    Publisher,
}

/// A campaign, as `PUT /v1/campaigns/{id}` takes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Campaign {
    /// Who pays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertiser_id: Option<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How the budget is spent, in the customer's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_model: Option<String>,
    /// The budget of a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daily_budget_micros: Option<i64>,
    /// An IANA time zone: where the campaign's days begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_at: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_at: Option<String>,
    /// In the customer's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
}

/// An ad, as `PUT /v1/ads/{id}` takes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ad {
    /// The campaign that its events belong to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub campaign_id: Option<String>,
    /// Where `/click` sends people: http or https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landing_url: Option<String>,
    /// Which creative it shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creative_id: Option<String>,
    /// What its clicks and pixels cost: never taken from a query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_micros: Option<i64>,
    /// On which basis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_basis: Option<PriceBasis>,
}

/// A publisher, as `PUT /v1/publishers/{id}` takes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Publisher {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its site or app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// In the customer's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
}

/// A change, as the topic holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Of what kind.
    pub kind: Kind,
    /// Of which entry.
    pub id: String,
    /// What it is now; `None`: deleted.
    pub value: Option<Json>,
}

/// An entry.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its `ETag`.
    pub version: u64,
    /// What it is.
    pub value: Arc<Json>,
}

/// All entries.
pub struct Metadata {
    entries: RwLock<Entries>,
    entries_max: usize,
    /// Held while a change is decided and made durable.
    pub(crate) writer: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Entries {
    by_id: BTreeMap<(Kind, String), Entry>,
    /// What the decoder asks for.
    advertisers: HashMap<String, Arc<str>>,
}

impl Metadata {
    /// Reads the topic from its start.
    pub(crate) fn replay(log: &dyn Log, entries_max: usize) -> Result<Metadata, StartError> {
        let metadata = Metadata {
            entries: RwLock::default(),
            entries_max,
            writer: tokio::sync::Mutex::new(()),
        };
        let mut offset = log.first(Topic::Metadata, 0);
        let end = log.ends(Topic::Metadata).first().map_or(0, |end| end.offset);
        while offset < end {
            let frames = log.read(Topic::Metadata, 0, offset, end, READ_BYTES)?;
            // None: the rest of the range is a gap.
            offset = frames.last().map_or(end, |last| last.next);
            for frame in &frames {
                metadata.apply_frame(frame)?;
            }
        }
        Ok(metadata)
    }

    fn apply_frame(&self, frame: &Frame) -> Result<(), StartError> {
        if let Some(reason) = &frame.foreign {
            let offset = frame.offset;
            tracing::warn!(offset, %reason, "a message in the metadata topic is none of ours");
            return Ok(());
        }
        let records: Vec<Record> = serde_json::from_slice(&frame.payload).map_err(|error| {
            StartError::Metadata { offset: frame.offset, reason: error.to_string() }
        })?;
        for record in records {
            self.apply(record, frame.next);
        }
        Ok(())
    }

    /// Takes a change that is durable.
    pub(crate) fn apply(&self, record: Record, version: u64) {
        let mut entries = self.entries.write();
        if record.kind == Kind::Campaign {
            let advertiser = record.value.as_ref().and_then(|v| v["advertiserId"].as_str());
            match advertiser {
                Some(advertiser) => {
                    entries.advertisers.insert(record.id.clone(), advertiser.into());
                }
                None => {
                    entries.advertisers.remove(&record.id);
                }
            }
        }
        let key = (record.kind, record.id);
        match record.value {
            Some(value) => {
                entries.by_id.insert(key, Entry { version, value: Arc::new(value) });
            }
            None => {
                entries.by_id.remove(&key);
            }
        }
    }

    /// An entry.
    pub fn get(&self, kind: Kind, id: &str) -> Option<Entry> {
        self.entries.read().by_id.get(&(kind, id.to_owned())).cloned()
    }

    /// Entries of a kind in the order of their ids, behind `after`, at most `limit`.
    pub fn list(&self, kind: Kind, after: &str, limit: usize) -> Vec<(String, Entry)> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let from = (kind, after.to_owned());
        let from = if after.is_empty() { Included(from) } else { Excluded(from) };
        let entries = self.entries.read();
        entries
            .by_id
            .range((from, Unbounded))
            .take_while(|((k, _), _)| *k == kind)
            .take(limit)
            .map(|((_, id), entry)| (id.clone(), entry.clone()))
            .collect()
    }

    /// The least version of any entry.
    pub(crate) fn oldest_version(&self) -> Option<u64> {
        self.entries.read().by_id.values().map(|entry| entry.version).min()
    }

    /// The entries of versions up to one, as records.
    pub(crate) fn of_versions_up_to(&self, version: u64) -> Vec<Record> {
        let entries = self.entries.read();
        let old = entries.by_id.iter().filter(|(_, entry)| entry.version <= version);
        let record = |((kind, id), entry): (&(Kind, String), &Entry)| Record {
            kind: *kind,
            id: id.clone(),
            value: Some((*entry.value).clone()),
        };
        old.map(record).collect()
    }

    /// Whether there is room for another entry.
    pub(crate) fn has_room(&self) -> bool {
        self.entries.read().by_id.len() < self.entries_max
    }

    /// The advertiser of a campaign.
    pub fn advertiser_of(&self, campaign: &str) -> Option<Arc<str>> {
        self.entries.read().advertisers.get(campaign).cloned()
    }

    /// A campaign.
    pub fn campaign(&self, id: &str) -> Option<Campaign> {
        self.typed(Kind::Campaign, id)
    }

    /// An ad.
    pub fn ad(&self, id: &str) -> Option<Ad> {
        self.typed(Kind::Ad, id)
    }

    fn typed<T: DeserializeOwned>(&self, kind: Kind, id: &str) -> Option<T> {
        let entry = self.get(kind, id)?;
        match T::deserialize(&*entry.value) {
            Ok(value) => Some(value),
            Err(error) => {
                // Written by another version: what it says is kept, but cannot be used here.
                tracing::error!(?kind, id, %error, "metadata that this version cannot read");
                None
            }
        }
    }
}
