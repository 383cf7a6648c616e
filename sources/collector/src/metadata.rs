//! What is known of campaigns, ads and publishers, kept in the log's metadata topic like everything
//! else and held in memory while the collector runs.
//!
//! A frame of the topic is a JSON array of [`Record`]s. The *version* of an entry, its `ETag`, is
//! the offset of its last frame plus one: it grows with every change, survives restarts, is the
//! same on every replay and in every process, and is not used again after an entry was deleted.
//!
//! The entries are what the frames say in the order of the log, and nothing else: the last change
//! of an entry wins. A frame may carry the condition of its change (`onlyIf`), which is decided at
//! its place in the log, by every reader alike; a change whose condition no longer holds there is
//! applied by nobody. It carries a number of its change, too (`change`): a frame that the log got
//! twice in a row is one change, and who made the change sees what became of it. Frames of versions
//! that knew neither are changes without a condition.
//!
//! Reading is a lock around a map. How a change comes about is told in `change`, and how the
//! topic is followed in `following`. The number of entries is bounded.

use crate::collector::StartError;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value as Json;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::AtomicU64},
};
use trueup_operators::{
    log::{Frame, Log, Topic},
    money::PriceBasis,
};

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
    /// What must be so, at this place of the log, for the change to be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_if: Option<OnlyIf>,
    /// The number of the change, drawn at random: a repeated frame has the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<u64>,
}

/// The condition of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnlyIf {
    /// There is no such entry.
    Absent,
    /// There is one.
    Present,
    /// There is one of this version.
    Version(u64),
}

impl OnlyIf {
    fn holds(self, before: Option<&Entry>) -> bool {
        match self {
            OnlyIf::Absent => before.is_none(),
            OnlyIf::Present => before.is_some(),
            OnlyIf::Version(version) => before.is_some_and(|entry| entry.version == version),
        }
    }
}

/// What became of a change at its place in the log.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The entry before it.
    pub(crate) before: Option<Entry>,
    /// Whether its condition held.
    pub(crate) is_made: bool,
    /// The entry after it.
    pub(crate) after: Option<Entry>,
}

/// An entry.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its `ETag`.
    pub version: u64,
    /// What it is.
    pub value: Arc<Json>,
    /// Which change made it.
    change: Option<u64>,
}

/// All entries.
pub struct Metadata {
    entries: RwLock<Entries>,
    entries_max: usize,
    /// Whether other processes write the topic.
    pub(crate) is_shared: bool,
    /// Held while a change is decided and made durable, where nobody else makes any.
    pub(crate) writer: tokio::sync::Mutex<()>,
    /// Held by who reads the topic on.
    pub(crate) reading: Mutex<()>,
    /// The offset up to which the topic was read.
    pub(crate) read_to: AtomicU64,
    /// Changes that somebody waits for, and what became of them.
    pub(crate) watched: Mutex<HashMap<u64, Option<Outcome>>>,
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
            is_shared: log.is_shared(),
            writer: tokio::sync::Mutex::new(()),
            reading: Mutex::default(),
            read_to: AtomicU64::new(log.first(Topic::Metadata, 0)),
            watched: Mutex::default(),
        };
        metadata.read_on(log)?;
        Ok(metadata)
    }

    /// Applies a frame. On a shared log a frame that is no metadata is somebody else's; on one of
    /// our own it is damage.
    pub(crate) fn apply_frame(&self, frame: &Frame) -> Result<(), StartError> {
        let offset = frame.offset;
        if let Some(reason) = &frame.foreign {
            tracing::warn!(offset, %reason, "a message in the metadata topic is none of ours");
            return Ok(());
        }
        let records: Vec<Record> = match serde_json::from_slice(&frame.payload) {
            Ok(records) => records,
            Err(error) if self.is_shared => {
                tracing::error!(offset, %error, "a message in the metadata topic is no metadata");
                return Ok(());
            }
            Err(error) => return Err(StartError::Metadata { offset, reason: error.to_string() }),
        };
        for record in records {
            let change = record.change;
            let outcome = self.apply(record, frame.next);
            let Some(change) = change else { continue };
            if let Some(watched) = self.watched.lock().get_mut(&change) {
                // What became of a repeated frame is what became of the first.
                watched.get_or_insert(outcome);
            }
        }
        Ok(())
    }

    /// Takes a change that is durable.
    pub(crate) fn apply(&self, record: Record, version: u64) -> Outcome {
        let Record { kind, id, value, only_if, change } = record;
        let mut entries = self.entries.write();
        let key = (kind, id);
        let before = entries.by_id.get(&key).cloned();
        let is_repeat = change.is_some() && before.as_ref().is_some_and(|e| e.change == change);
        if is_repeat || !only_if.is_none_or(|condition| condition.holds(before.as_ref())) {
            return Outcome { after: before.clone(), before, is_made: false };
        }
        if kind == Kind::Campaign {
            match value.as_ref().and_then(|value| value["advertiserId"].as_str()) {
                Some(advertiser) => {
                    entries.advertisers.insert(key.1.clone(), advertiser.into());
                }
                None => {
                    entries.advertisers.remove(&key.1);
                }
            }
        }
        let after = value.map(|value| Entry { version, value: Arc::new(value), change });
        match &after {
            Some(entry) => entries.by_id.insert(key, entry.clone()),
            None => entries.by_id.remove(&key),
        };
        Outcome { before, is_made: true, after }
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
            only_if: None,
            change: None,
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
