//! An event as it was sent: borrowed values by field, before any check. One [`Sent`] serves all
//! events of a body; clearing it is writing three words.

use crate::{
    fault::{EXTRA_BYTES_MAX, EXTRA_FIELDS_MAX, Fault},
    fields::{COUNT, Field, FieldSet, is_private},
    scan::{Member, Memo, Place, Scanner, Syntax, Value},
};

/// A field that is not in the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extra<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) value: Value<'a>,
}

/// The most fields of one event that are not in the table, and the most bytes of them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExtrasMax {
    pub(crate) fields: usize,
    pub(crate) bytes: usize,
}

impl ExtrasMax {
    pub(crate) const OF_A_BODY: ExtrasMax =
        ExtrasMax { fields: EXTRA_FIELDS_MAX, bytes: EXTRA_BYTES_MAX };
}

/// The fields of one event.
pub(crate) struct Sent<'a> {
    /// Fields that were there, `null` or not.
    pub(crate) seen: FieldSet,
    /// Fields that were there with a value.
    pub(crate) present: FieldSet,
    /// The values of `present`; what stands elsewhere is of an earlier event.
    pub(crate) values: [Value<'a>; COUNT],
    /// Hashes of texts, by field: payload hashes are made of them, and dictionaries find texts by
    /// them. Those of `hashed` came with the values, the others are made by the checks.
    pub(crate) hashes: [u64; COUNT],
    pub(crate) hashed: FieldSet,
    /// Fields that are not in the table.
    pub(crate) extras: Vec<Extra<'a>>,
    pub(crate) extra_bytes: usize,
    pub(crate) extras_max: ExtrasMax,
    /// The first thing that was wrong with the event's form.
    pub(crate) fault: Option<Fault<'a>>,
}

impl Default for Sent<'_> {
    fn default() -> Self {
        Sent {
            seen: 0,
            present: 0,
            values: [Value::Null; COUNT],
            hashes: [0; COUNT],
            hashed: 0,
            extras: Vec::new(),
            extra_bytes: 0,
            extras_max: ExtrasMax::OF_A_BODY,
            fault: None,
        }
    }
}

impl<'a> Sent<'a> {
    /// Forgets the last event.
    pub(crate) fn clear(&mut self) {
        self.seen = 0;
        self.present = 0;
        self.hashed = 0;
        self.extras.clear();
        self.extra_bytes = 0;
        self.fault = None;
    }

    /// Whether the field has a value.
    pub(crate) fn has(&self, field: Field) -> bool {
        self.present & field.bit() != 0
    }

    /// The field's value.
    pub(crate) fn get(&self, field: Field) -> Option<&Value<'a>> {
        self.has(field).then(|| &self.values[field as usize])
    }

    /// The field's value, if it is a text.
    pub(crate) fn text(&self, field: Field) -> Option<&'a [u8]> {
        match self.get(field) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Sets a known field.
    #[inline(always)]
    pub(crate) fn put(&mut self, field: Field, value: Value<'a>) {
        let bit = field.bit();
        if self.seen & bit != 0 {
            self.flag(Fault::Duplicate(field.name().as_bytes()));
            return;
        }
        self.seen |= bit;
        if !matches!(value, Value::Null) {
            self.present |= bit;
            self.values[field as usize] = value;
        }
    }

    /// Sets a known field to a text whose hash is known.
    #[inline(always)]
    pub(crate) fn put_hashed(&mut self, field: Field, value: Value<'a>, hash: u64) {
        self.put(field, value);
        self.hashed |= field.bit();
        self.hashes[field as usize] = hash;
    }

    /// Adds a field that is not in the table; not one that is another spelling of what is kept as
    /// a hash alone.
    pub(crate) fn put_extra(&mut self, name: &'a [u8], value: Value<'a>, bytes: usize) {
        if is_private(name) {
            return;
        }
        if self.extras.iter().any(|extra| extra.name == name) {
            self.flag(Fault::Duplicate(name));
        }
        self.extra_bytes += name.len() + bytes;
        let ExtrasMax { fields, bytes } = self.extras_max;
        if self.extras.len() == fields {
            self.flag(Fault::TooManyFields { fields_max: fields });
        } else if self.extra_bytes > bytes {
            self.flag(Fault::ExtraTooLarge { bytes: self.extra_bytes, bytes_max: bytes });
        } else {
            self.extras.push(Extra { name, value });
        }
    }

    /// Notes what is wrong, unless something is already.
    #[cold]
    pub(crate) fn flag(&mut self, fault: Fault<'a>) {
        self.fault.get_or_insert(fault);
    }
}

/// Reads an object; the scanner stands at its opening brace. What is wrong with the fields goes
/// into [`Sent::fault`].
///
/// # Errors
/// When the text is no JSON.
pub(crate) fn read<'a>(
    scanner: &mut Scanner<'a>,
    memo: &mut Memo,
    sent: &mut Sent<'a>,
) -> Result<(), Syntax> {
    sent.clear();
    scanner.expect(b'{', "expected an object")?;
    let mut place = Place::FIRST;
    loop {
        match scanner.member(place, memo)? {
            Member::Known { field, quoted } => {
                let value =
                    if quoted { Value::Text(scanner.string()?) } else { scanner.value()? };
                sent.put(field, value);
                place = Place::after(field);
            }
            Member::Unknown(name) => {
                let start = scanner.at;
                let value = scanner.value()?;
                sent.put_extra(name, value, scanner.at - start);
                place = Place::UNKNOWN;
            }
            Member::End => return Ok(()),
        }
    }
}
