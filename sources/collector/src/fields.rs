//! The fields of an event: their names on the wire, the rule that each must pass, and the column
//! that each ends in. One table, [`FIELDS`], drives the scanner, the checks, the payload hash and
//! the Arrow body, so that adding a field is adding a line.
//!
//! Two numbers per field are part of what is stored and must never change: the column (a reader
//! finds it by name) and the tag, a hash of the field's *name*, which goes into the payload hash.
//! Reordering the table is therefore harmless, and a field that was unknown yesterday keeps its
//! share of the payload hash when it becomes known.

use trueup_operators::{event::columns, hash, money::PRICE_MICROS_MAX};

/// How a field is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Text of 1 to this many bytes.
    Text(usize),
    /// RFC 3339.
    Time,
    /// A whole number within these bounds, both included.
    Integer(i64, i64),
    /// A consent carrier: any JSON value of at most this many bytes, kept as it came.
    Consent(usize),
}

/// Where a field is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// A dictionary column of the batch, by its number there.
    Dict(usize),
    /// A plain text column, by its number there.
    Text(usize),
    /// Only its keyed hash, in a column by its number there.
    Hash(usize),
    /// A column that the row writes by itself, or (consent) shared with other fields.
    Row,
}

/// Everything that is known of a field.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) name: &'static str,
    pub(crate) rule: Rule,
    pub(crate) store: Store,
}

/// Dictionary columns in the order of their numbers.
pub(crate) const DICTS: [&str; 16] = [
    "campaign_id",
    "ad_id",
    "advertiser_id",
    "publisher_id",
    "placement_id",
    "country",
    "region",
    "device_type",
    "creative_id",
    columns::USER_AGENT,
    columns::REFERRER,
    columns::SOURCE,
    columns::MEASUREMENT_SOURCE,
    columns::CONSENT,
    columns::CONSENT_STATE,
    columns::INVALID_REASON,
];
pub(crate) const DICT_CAMPAIGN: usize = 0;
pub(crate) const DICT_AD: usize = 1;
pub(crate) const DICT_ADVERTISER: usize = 2;
pub(crate) const DICT_CONSENT: usize = 13;
pub(crate) const DICT_CONSENT_STATE: usize = 14;
pub(crate) const DICT_INVALID_REASON: usize = 15;

/// Plain text columns in the order of their numbers.
pub(crate) const TEXTS: [&str; 7] = [
    columns::EVENT_ID,
    columns::IMPRESSION_ID,
    columns::AUCTION_ID,
    columns::CLICK_ID,
    columns::SESSION_ID,
    columns::DEVICE_FINGERPRINT,
    columns::EXTRA,
];
pub(crate) const TEXT_EVENT_ID: usize = 0;
pub(crate) const TEXT_EXTRA: usize = 6;

/// Hash columns in the order of their numbers. The impression's is written beside its text.
pub(crate) const HASHES: [&str; 3] =
    [columns::IMPRESSION_HASH, columns::USER_HASH, columns::IP_HASH];
pub(crate) const HASH_IMPRESSION: usize = 0;
pub(crate) const HASH_USER: usize = 1;
pub(crate) const HASH_IP: usize = 2;

/// The most bytes of an event id, of other ids, and of free text.
pub(crate) const EVENT_ID_BYTES_MAX: usize = 128;
pub(crate) const ID_BYTES_MAX: usize = 64;
pub(crate) const LONG_ID_BYTES_MAX: usize = 256;
pub(crate) const FREE_TEXT_BYTES_MAX: usize = 1024;
pub(crate) const DEVICE_TYPE_BYTES_MAX: usize = 16;
/// A TCF or GPP string with every vendor in it is some 3 KiB.
pub(crate) const CONSENT_STRING_BYTES_MAX: usize = 4096;
/// Highest value of a conversion, either sign: a thousand million units of the currency.
pub(crate) const VALUE_MICROS_MAX: i64 = 1_000_000_000_000_000;

macro_rules! fields {
    ($($variant:ident $name:literal $rule:expr, $store:expr;)*) => {
        /// A field of an event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Field { $($variant),* }

        /// All fields, by number.
        pub(crate) static ALL: [Field; COUNT] = [$(Field::$variant),*];

        /// What is known of each, by number.
        pub(crate) const FIELDS: [Known; COUNT] =
            [$(Known { name: text($name), rule: $rule, store: $store }),*];

        /// How many there are.
        pub(crate) const COUNT: usize = [$(text($name)),*].len();

        impl Field {
            /// The field of a name on the wire.
            pub(crate) fn of(name: &[u8]) -> Option<Field> {
                match name {
                    $($name => Some(Field::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

const fn text(name: &[u8]) -> &str {
    match std::str::from_utf8(name) {
        Ok(text) => text,
        Err(_) => panic!("the table's names are ASCII"),
    }
}

use Rule::{Consent, Integer, Text, Time};
use Store::{Dict, Hash, Row, Text as Plain};

fields! {
    EventId           b"eventId"           Text(EVENT_ID_BYTES_MAX), Plain(0);
    EventType         b"eventType"         Text(16), Row;
    OccurredAt        b"occurredAt"        Time, Row;
    ReceivedAt        b"receivedAt"        Time, Row;
    CampaignId        b"campaignId"        Text(ID_BYTES_MAX), Dict(0);
    AdId              b"adId"              Text(ID_BYTES_MAX), Dict(1);
    AdvertiserId      b"advertiserId"      Text(ID_BYTES_MAX), Dict(2);
    PublisherId       b"publisherId"       Text(ID_BYTES_MAX), Dict(3);
    PlacementId       b"placementId"       Text(ID_BYTES_MAX), Dict(4);
    Country           b"country"           Text(ID_BYTES_MAX), Dict(5);
    Region            b"region"            Text(ID_BYTES_MAX), Dict(6);
    DeviceType        b"deviceType"        Text(DEVICE_TYPE_BYTES_MAX), Dict(7);
    CreativeId        b"creativeId"        Text(ID_BYTES_MAX), Dict(8);
    UserAgent         b"userAgent"         Text(FREE_TEXT_BYTES_MAX), Dict(9);
    Referrer          b"referrer"          Text(FREE_TEXT_BYTES_MAX), Dict(10);
    Source            b"source"            Text(ID_BYTES_MAX), Dict(11);
    MeasurementSource b"measurementSource" Text(ID_BYTES_MAX), Dict(12);
    ImpressionId      b"impressionId"      Text(ID_BYTES_MAX), Plain(1);
    AuctionId         b"auctionId"         Text(ID_BYTES_MAX), Plain(2);
    ClickId           b"clickId"           Text(ID_BYTES_MAX), Plain(3);
    SessionId         b"sessionId"         Text(LONG_ID_BYTES_MAX), Plain(4);
    DeviceFingerprint b"deviceFingerprint" Text(LONG_ID_BYTES_MAX), Plain(5);
    UserId            b"userId"            Text(LONG_ID_BYTES_MAX), Hash(HASH_USER);
    Ip                b"ip"                Text(ID_BYTES_MAX), Hash(HASH_IP);
    PriceMicros       b"priceMicros"       Integer(0, PRICE_MICROS_MAX), Row;
    PriceBasis        b"priceBasis"        Text(16), Row;
    ValueMicros       b"valueMicros"       Integer(-VALUE_MICROS_MAX, VALUE_MICROS_MAX), Row;
    SchemaVersion     b"schemaVersion"     Integer(0, u16::MAX as i64), Row;
    Gdpr              b"gdpr"              Consent(16), Row;
    TcString          b"tcString"          Consent(CONSENT_STRING_BYTES_MAX), Row;
    Gpp               b"gpp"               Consent(CONSENT_STRING_BYTES_MAX), Row;
    GppSid            b"gppSid"            Consent(256), Row;
    UsPrivacy         b"usPrivacy"         Consent(16), Row;
    Gpc               b"gpc"               Consent(16), Row;
    Coppa             b"coppa"             Consent(16), Row;
    Lmt               b"lmt"               Consent(16), Row;
}

const _: () = assert!(COUNT < 64, "a set of fields is one word");

/// A set of fields, a bit each.
pub(crate) type FieldSet = u64;

/// What every event must have.
pub(crate) const REQUIRED: FieldSet = Field::EventId.bit()
    | Field::EventType.bit()
    | Field::OccurredAt.bit()
    | Field::CampaignId.bit()
    | Field::AdId.bit();

/// The fields of a kind of rule. Loops over one kind have nothing to choose inside.
macro_rules! fields_with {
    ($part:ident: $pattern:pat) => {{
        let mut set = 0;
        let mut number = 0;
        while number < COUNT {
            if matches!(FIELDS[number].$part, $pattern) {
                set |= 1 << number;
            }
            number += 1;
        }
        set
    }};
}

/// Fields that are texts.
pub(crate) const TEXT_FIELDS: FieldSet = fields_with!(rule: Rule::Text(_));
/// The consent carriers.
pub(crate) const CONSENT: FieldSet = fields_with!(rule: Rule::Consent(_));
/// Fields with a dictionary column.
pub(crate) const DICT_FIELDS: FieldSet = fields_with!(store: Store::Dict(_));
/// Fields with a plain text column.
pub(crate) const PLAIN_FIELDS: FieldSet = fields_with!(store: Store::Text(_));
/// Fields of which only a hash is stored.
pub(crate) const HASHED_FIELDS: FieldSet = fields_with!(store: Store::Hash(_));

/// The most bytes of a text, by field; 0 where the field is no text.
pub(crate) static TEXT_BYTES_MAX: [usize; COUNT] = {
    let mut bytes_max = [0; COUNT];
    let mut number = 0;
    while number < COUNT {
        if let Rule::Text(max) = FIELDS[number].rule {
            bytes_max[number] = max;
        }
        number += 1;
    }
    bytes_max
};

/// The number of the column among its kind, by field; 0 where the field has none.
pub(crate) static COLUMN: [u8; COUNT] = {
    let mut column = [0; COUNT];
    let mut number = 0;
    while number < COUNT {
        if let Store::Dict(at) | Store::Text(at) | Store::Hash(at) = FIELDS[number].store {
            column[number] = at as u8;
        }
        number += 1;
    }
    column
};

/// Calls for each field of a set, lowest number first.
macro_rules! for_each_field {
    ($set:expr, $number:ident => $body:block) => {
        let mut left: $crate::fields::FieldSet = $set;
        while left != 0 {
            let $number = left.trailing_zeros() as usize;
            left &= left - 1;
            $body
        }
    };
}
pub(crate) use for_each_field;

impl Field {
    /// The field's place in a [`FieldSet`].
    pub(crate) const fn bit(self) -> FieldSet {
        1 << self as u8
    }

    /// Its name on the wire.
    pub(crate) const fn name(self) -> &'static str {
        FIELDS[self as usize].name
    }
}

/// Whether a name that is not in the table is another spelling of a field of which only a hash is
/// stored (`user_id`, `USERID`, `Ip`): letters and digits count, in either case.
pub(crate) fn is_private(name: &[u8]) -> bool {
    let letters =
        || name.iter().filter(|byte| byte.is_ascii_alphanumeric()).map(u8::to_ascii_lowercase);
    for_each_field!(HASHED_FIELDS, number => {
        let known = FIELDS[number].name.bytes().map(|byte| byte.to_ascii_lowercase());
        if letters().eq(known) {
            return true;
        }
    });
    false
}

/// The tag of a field's name in the payload hash.
pub(crate) fn tag_of(name: &[u8]) -> u64 {
    hash::stable(name)
}

/// The tags of all known fields, by number.
pub(crate) fn tags() -> [u64; COUNT] {
    FIELDS.map(|known| tag_of(known.name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_there_has_many_spellings() {
        for name in ["userId", "user_id", "USER-ID", "userid", "user.id", "user_id[]", "ip", "IP"] {
            assert!(is_private(name.as_bytes()), "{name}");
        }
        for name in ["", "_", "user", "userIds", "ipv", "zip", "tip", "sessionId", "impressionId"] {
            assert!(!is_private(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn the_table_agrees_with_itself() {
        for (number, known) in FIELDS.iter().enumerate() {
            let field = Field::of(known.name.as_bytes()).expect("a name of the table");
            assert_eq!((field as usize, field), (number, ALL[number]));
            match known.store {
                Store::Dict(i) => assert!(i < DICTS.len()),
                Store::Text(i) => assert!(i < TEXTS.len()),
                Store::Hash(i) => assert!(i < HASHES.len()),
                Store::Row => {}
            }
        }
        assert_eq!(Field::of(b"eventid"), None);
        assert_eq!(DICTS[DICT_CAMPAIGN], "campaign_id");
        assert_eq!(DICTS[DICT_AD], "ad_id");
        assert_eq!(DICTS[DICT_ADVERTISER], "advertiser_id");
        assert_eq!(DICTS[DICT_CONSENT], columns::CONSENT);
        assert_eq!(DICTS[DICT_CONSENT_STATE], columns::CONSENT_STATE);
        assert_eq!(DICTS[DICT_INVALID_REASON], columns::INVALID_REASON);
        assert_eq!(TEXTS[TEXT_EVENT_ID], columns::EVENT_ID);
        assert_eq!(TEXTS[TEXT_EXTRA], columns::EXTRA);
        assert_eq!(HASHES[HASH_IMPRESSION], columns::IMPRESSION_HASH);
    }
}
