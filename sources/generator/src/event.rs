//! An event and a verdict as a sender knows them: by text, field by field, whatever field is unset
//! left out. [`Event::json`] is what goes over HTTP; [`crate::frames`] makes of the same event what
//! the log holds, so that a test of the engine needs no collector and no socket.

use serde::{Serialize, Serializer, ser::SerializeMap};
use trueup_operators::{
    event::{EventType, Target},
    hash::{mix, stable},
    money::PriceBasis,
    time::format_rfc3339,
};

/// An event. What is `None` is not sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the outside contract says what each field holds")]
pub struct Event {
    pub event_id: String,
    pub event_type: EventType,
    /// µs since 1970.
    #[serde(rename = "occurredAt", serialize_with = "time")]
    pub occurred_at_us: i64,
    pub campaign_id: String,
    pub ad_id: String,
    #[serde(flatten)]
    pub optional: Optional,
}

/// The fields that an event may have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the outside contract says what each field holds")]
pub struct Optional {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertiser_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publisher_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub country: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creative_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impression_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub click_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_fingerprint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_micros: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_basis: Option<PriceBasis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_micros: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Set by the collector, never sent: why it takes the event as invalid.
    #[serde(skip)]
    pub invalid_reason: Option<String>,
}

fn time<S: Serializer>(us: &i64, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(&format_rfc3339(*us))
}

impl Event {
    /// An event with only what every event must have.
    pub fn new(
        event_type: EventType,
        event_id: impl Into<String>,
        occurred_at_us: i64,
        campaign_id: impl Into<String>,
        ad_id: impl Into<String>,
    ) -> Event {
        Event {
            event_id: event_id.into(),
            event_type,
            occurred_at_us,
            campaign_id: campaign_id.into(),
            ad_id: ad_id.into(),
            optional: Optional::default(),
        }
    }

    /// The event as a JSON object.
    pub fn json(&self) -> String {
        // Texts, numbers and string keys: there is nothing in it that JSON cannot hold.
        serde_json::to_string(self).expect("an event is representable as JSON")
    }

    /// A hash of what the sender sent: two events of one id and different payloads conflict.
    pub(crate) fn payload_hash(&self) -> u64 {
        let mut hash = FieldHash::default();
        let o = &self.optional;
        hash.text("eventId", &self.event_id);
        hash.text("eventType", self.event_type.name());
        hash.number("occurredAt", self.occurred_at_us);
        hash.text("campaignId", &self.campaign_id);
        hash.text("adId", &self.ad_id);
        for (name, text) in [
            ("advertiserId", &o.advertiser_id),
            ("publisherId", &o.publisher_id),
            ("placementId", &o.placement_id),
            ("country", &o.country),
            ("region", &o.region),
            ("deviceType", &o.device_type),
            ("creativeId", &o.creative_id),
            ("impressionId", &o.impression_id),
            ("clickId", &o.click_id),
            ("userId", &o.user_id),
            ("deviceFingerprint", &o.device_fingerprint),
            ("ip", &o.ip),
            ("userAgent", &o.user_agent),
            ("source", &o.source),
        ] {
            if let Some(text) = text {
                hash.text(name, text);
            }
        }
        for (name, number) in [
            ("priceMicros", o.price_micros),
            ("priceBasis", o.price_basis.map(|b| b as i64)),
            ("valueMicros", o.value_micros),
            ("schemaVersion", o.schema_version.map(i64::from)),
        ] {
            if let Some(number) = number {
                hash.number(name, number);
            }
        }
        hash.finish()
    }
}

/// The hash of a set of fields, whatever their order. It tells payloads apart as the collector's
/// does, but is not the same number: a log is written by the one or by the other.
#[derive(Default)]
pub(crate) struct FieldHash(u64);

impl FieldHash {
    #[inline]
    pub(crate) fn text(&mut self, name: &str, text: &str) {
        self.add(name, stable(text.as_bytes()));
    }

    #[inline]
    pub(crate) fn number(&mut self, name: &str, number: i64) {
        self.add(name, stable(&number.to_le_bytes()));
    }

    #[inline]
    fn add(&mut self, name: &str, value: u64) {
        self.0 = self.0.wrapping_add(mix(stable(name.as_bytes()), value));
    }

    #[inline]
    pub(crate) const fn finish(self) -> u64 {
        self.0
    }
}

/// A verdict as a fraud system sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What `id` names.
    pub target: Target,
    /// The event's or the impression's id.
    pub id: String,
    /// Invalid, or valid (again).
    pub invalid: bool,
    /// µs since 1970; the latest wins.
    pub decided_at_us: i64,
    /// Why.
    pub reason_code: &'static str,
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(6))?;
        let target = match self.target {
            Target::Event => "eventId",
            Target::Impression => "impressionId",
        };
        map.serialize_entry(target, &self.id)?;
        map.serialize_entry("verdict", if self.invalid { "invalid" } else { "valid" })?;
        map.serialize_entry("reasonCode", self.reason_code)?;
        map.serialize_entry("decidedAt", &format_rfc3339(self.decided_at_us))?;
        map.serialize_entry("modelVersion", "generator-1")?;
        map.serialize_entry("source", "generator")?;
        map.end()
    }
}

/// A body for `POST /v1/events/collect` of events that are JSON already.
pub fn events_body<'a>(events: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let mut out = b"{\"events\":[".to_vec();
    for (i, event) in events.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(event.as_bytes());
    }
    out.extend_from_slice(b"]}");
    out
}

/// A body for `POST /v1/verdicts`; `None` if there are none.
pub fn verdicts_body(verdicts: &[Verdict]) -> Option<Vec<u8>> {
    #[derive(Serialize)]
    struct Body<'a> {
        verdicts: &'a [Verdict],
    }
    if verdicts.is_empty() {
        return None;
    }
    Some(serde_json::to_vec(&Body { verdicts }).expect("verdicts are representable as JSON"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_is_set_and_nothing_else() {
        let mut event = Event::new(EventType::Click, "e1", 1_700_000_000_500_000, "c", "a");
        event.optional.price_micros = Some(180_000);
        event.optional.price_basis = Some(PriceBasis::Cpc);
        event.optional.invalid_reason = Some("never sent".into());
        let json = concat!(
            r#"{"eventId":"e1","eventType":"click","occurredAt":"2023-11-14T22:13:20.5Z","#,
            r#""campaignId":"c","adId":"a","priceMicros":180000,"priceBasis":"cpc"}"#
        );
        assert_eq!(event.json(), json);
        let body = events_body([event.json().as_str(), "{}"]);
        assert_eq!(String::from_utf8(body), Ok(format!("{{\"events\":[{json},{{}}]}}")));
    }

    #[test]
    fn every_field_is_part_of_the_payload() {
        let event = Event::new(EventType::Click, "e1", 5, "c", "a");
        let other = |change: &dyn Fn(&mut Event)| {
            let mut other = event.clone();
            change(&mut other);
            other.payload_hash() != event.payload_hash()
        };
        assert!(!other(&|_| {}));
        assert!(other(&|e| e.occurred_at_us += 1));
        assert!(other(&|e| e.event_type = EventType::Impression));
        assert!(other(&|e| (e.campaign_id, e.ad_id) = ("a".into(), "c".into())));
        assert!(other(&|e| e.optional.price_micros = Some(0)));
        assert!(other(&|e| e.optional.region = Some(String::new())));
        assert!(!other(&|e| e.optional.invalid_reason = Some("bot".into())));
    }

    #[test]
    fn a_verdict_names_its_target() {
        let verdict = Verdict {
            target: Target::Impression,
            id: "i1".into(),
            invalid: false,
            decided_at_us: 0,
            reason_code: "appeal",
        };
        let body = verdicts_body(&[verdict]).map(|b| String::from_utf8_lossy(&b).into_owned());
        let json = concat!(
            r#"{"verdicts":[{"impressionId":"i1","verdict":"valid","reasonCode":"appeal","#,
            r#""decidedAt":"1970-01-01T00:00:00Z","modelVersion":"generator-1","#,
            r#""source":"generator"}]}"#
        );
        assert_eq!(body.as_deref(), Some(json));
        assert_eq!(verdicts_body(&[]), None);
    }
}
