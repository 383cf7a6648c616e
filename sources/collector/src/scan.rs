//! A JSON scanner for flat objects that repeat. It checks the full grammar of RFC 8259 and hands
//! out each member as slices of the body; nothing is built and nothing is copied, except strings
//! that have escapes.
//!
//! Why not a general parser: decoding is the wall of the whole system, and a general parser spends
//! most of its time finding out what it could have known. A sender writes every event alike, so
//! the bytes between two values (`,"country":"`) are nearly always those that followed the same
//! field in the event before. [`Memo`] remembers them, and one 32-byte comparison then stands for
//! the comma, the key, the colon and the lookup of the key. When it does not match, the slow way
//! reads the key and remembers the new bytes. The end of a string is found 32 bytes at a time.
//!
//! The text must be valid UTF-8 before it is scanned: slices are cut only at ASCII bytes, so each
//! slice is valid UTF-8 as well.
//!
//! Limits: nesting of [`DEPTH_MAX`]; a body of less than 4 GiB. Whatever the bytes are, the scanner
//! ends, with an error that names the byte, and never reads outside the text.
//!
//! Two errors are those of a value and not of the text: half of a surrogate pair, which a sender
//! makes who cuts a text in the midst of an emoji, and nesting beyond the limit. The grammar still
//! says where the value ends, and [`Scanner::pass`] goes there.

use crate::{
    fields::Field,
    wide::{first_bytes_equal, special_mask},
};
use bumpalo::Bump;

/// The deepest nesting of arrays and objects in an unknown field.
pub(crate) const DEPTH_MAX: u32 = 64;

const LONE_SURROGATE: &str = "half of a surrogate pair in a string";
const TOO_DEEP: &str = "nested too deep (64 levels are the limit)";

/// Where and why a text is no JSON of the expected shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Syntax {
    /// The byte.
    pub(crate) at: usize,
    /// What is wrong there.
    pub(crate) what: &'static str,
}

impl Syntax {
    /// Whether a text was cut within a character.
    pub(crate) fn is_lone_surrogate(&self) -> bool {
        self.what == LONE_SURROGATE
    }

    /// Whether a value is nested too deep.
    pub(crate) fn is_too_deep(&self) -> bool {
        self.what == TOO_DEEP
    }

    /// Whether the value has an end all the same, which [`Scanner::pass`] finds.
    pub(crate) fn has_an_end(&self) -> bool {
        self.is_lone_surrogate() || self.is_too_deep()
    }
}

/// A value as it stands in the text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    /// A string, escapes resolved.
    Text(&'a [u8]),
    /// A whole number of 64 bits, with its sign.
    Integer(i64),
    /// Any other number, as written.
    Number(&'a [u8]),
    /// A time in µs since 1970, from a column that holds times.
    Micros(i64),
    /// `true`, `false`, an array or an object, as written.
    Raw(&'a [u8]),
    /// `null`.
    Null,
}

impl Value<'_> {
    /// About how long it is, written.
    pub(crate) const fn bytes_about(&self) -> usize {
        match self {
            Value::Text(text) | Value::Number(text) | Value::Raw(text) => text.len() + 2,
            _ => 20,
        }
    }
}

/// What comes next in an object.
pub(crate) enum Member<'a> {
    /// A known field; the scanner stands before its value, or, if `quoted`, behind the opening
    /// quote of its value.
    Known { field: Field, quoted: bool },
    /// Another field; the scanner stands before its value.
    Unknown(&'a [u8]),
    /// The object has ended.
    End,
}

/// How far a member is: which bytes may come before it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(u8);

impl Place {
    /// Behind the opening brace.
    pub(crate) const FIRST: Place = Place(crate::fields::COUNT as u8);
    /// Behind a field that is not known.
    pub(crate) const UNKNOWN: Place = Place(crate::fields::COUNT as u8 + 1);

    /// Behind a known field.
    pub(crate) fn after(field: Field) -> Place {
        Place(field as u8)
    }
}

const STEP_BYTES: usize = 32;

/// The bytes from one value to the next and the field that they announce.
#[derive(Clone, Copy)]
struct Step {
    bytes: [u8; STEP_BYTES],
    /// 0: nothing is remembered.
    len: u8,
    field: Field,
    quoted: bool,
}

/// What followed each field the last time, in texts of one kind: what [`Scanner::new`] reads and
/// what [`Scanner::of_lines`] reads have a memo each.
pub(crate) struct Memo([Step; crate::fields::COUNT + 1]);

impl Default for Memo {
    fn default() -> Self {
        let nothing = Step { bytes: [0; STEP_BYTES], len: 0, field: Field::EventId, quoted: false };
        Memo([nothing; crate::fields::COUNT + 1])
    }
}

impl Memo {
    #[inline(always)]
    fn predict(&self, place: Place, text: &[u8], at: usize) -> Option<&Step> {
        let step = self.0.get(place.0 as usize)?;
        let window = text.get(at..at + STEP_BYTES)?;
        (step.len != 0 && first_bytes_equal(window, &step.bytes, step.len)).then_some(step)
    }

    fn remember(&mut self, place: Place, bytes: &[u8], field: Field, quoted: bool) {
        if let Some(step) = self.0.get_mut(place.0 as usize)
            && bytes.len() <= STEP_BYTES
        {
            step.bytes[..bytes.len()].copy_from_slice(bytes);
            (step.len, step.field, step.quoted) = (bytes.len() as u8, field, quoted);
        }
    }
}

/// A position in a text.
pub(crate) struct Scanner<'a> {
    pub(crate) text: &'a [u8],
    pub(crate) at: usize,
    /// Holds strings that had escapes.
    arena: &'a Bump,
    /// A line feed ends the record: it is no white space.
    lines: bool,
    /// What [`Syntax::has_an_end`] is no error: the end is looked for, and nothing is kept.
    passing: bool,
}

impl<'a> Scanner<'a> {
    /// At the start of a document.
    pub(crate) fn new(text: &'a [u8], arena: &'a Bump) -> Self {
        Scanner { text, at: 0, arena, lines: false, passing: false }
    }

    /// At the start of a text of one document a line.
    pub(crate) fn of_lines(text: &'a [u8], arena: &'a Bump) -> Self {
        Scanner { text, at: 0, arena, lines: true, passing: false }
    }

    /// The byte here; `None` at the end.
    #[inline(always)]
    pub(crate) fn byte(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    pub(crate) fn error<T>(&self, what: &'static str) -> Result<T, Syntax> {
        Err(Syntax { at: self.at, what })
    }

    /// Goes to the next byte that is no white space and returns it.
    #[inline(always)]
    pub(crate) fn space(&mut self) -> Option<u8> {
        match self.byte() {
            Some(b) if b > b' ' => Some(b),
            _ => self.space_slow(),
        }
    }

    fn space_slow(&mut self) -> Option<u8> {
        while let Some(b) = self.byte() {
            match b {
                b' ' | b'\t' | b'\r' => {}
                b'\n' if !self.lines => {}
                _ => return Some(b),
            }
            self.at += 1;
        }
        None
    }

    /// Takes this byte, white space before it allowed.
    pub(crate) fn expect(&mut self, byte: u8, what: &'static str) -> Result<(), Syntax> {
        if self.space() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            self.error(what)
        }
    }

    /// Goes to the next member of an object. The scanner stands behind the opening brace
    /// ([`Place::FIRST`]) or behind a value.
    #[inline(always)]
    pub(crate) fn member(&mut self, place: Place, memo: &mut Memo) -> Result<Member<'a>, Syntax> {
        if let Some(step) = memo.predict(place, self.text, self.at) {
            self.at += step.len as usize;
            return Ok(Member::Known { field: step.field, quoted: step.quoted });
        }
        self.member_slow(place, memo)
    }

    #[inline(never)]
    fn member_slow(&mut self, place: Place, memo: &mut Memo) -> Result<Member<'a>, Syntax> {
        let start = self.at;
        match self.space() {
            Some(b'}') => {
                self.at += 1;
                return Ok(Member::End);
            }
            Some(b',') if place != Place::FIRST => self.at += 1,
            _ if place == Place::FIRST => {}
            _ => return self.error("expected `,` or `}` after a value"),
        }
        let name = self.key()?;
        let Some(field) = Field::of(name) else { return Ok(Member::Unknown(name)) };
        let quoted = self.byte() == Some(b'"');
        self.at += usize::from(quoted);
        memo.remember(place, &self.text[start..self.at], field, quoted);
        Ok(Member::Known { field, quoted })
    }

    /// A key and its colon; ends before the value.
    pub(crate) fn key(&mut self) -> Result<&'a [u8], Syntax> {
        self.expect(b'"', "expected a field name in double quotes")?;
        let name = self.string()?;
        self.expect(b':', "expected `:` after a field name")?;
        self.space();
        Ok(name)
    }

    /// A string; the scanner stands behind its opening quote.
    #[inline(always)]
    pub(crate) fn string(&mut self) -> Result<&'a [u8], Syntax> {
        let start = self.at;
        let end = string_special(self.text, start);
        if self.text.get(end) == Some(&b'"') {
            self.at = end + 1;
            return Ok(&self.text[start..end]);
        }
        self.string_slow(start, end)
    }

    #[inline(never)]
    fn string_slow(&mut self, start: usize, first: usize) -> Result<&'a [u8], Syntax> {
        // Resolving an escape never makes a text longer.
        let mut out = bumpalo::collections::Vec::new_in(self.arena);
        out.extend_from_slice(&self.text[start..first]);
        self.at = first;
        loop {
            match self.byte() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out.into_bump_slice());
                }
                Some(b'\\') => {
                    let c = self.escape()?;
                    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                Some(_) => return self.error("a control character in a string must be escaped"),
                None => return self.error("the text ends inside a string"),
            }
            let end = string_special(self.text, self.at);
            out.extend_from_slice(&self.text[self.at..end]);
            self.at = end;
        }
    }

    /// An escape; the scanner stands at the backslash.
    fn escape(&mut self) -> Result<char, Syntax> {
        let Some(&letter) = self.text.get(self.at + 1) else {
            return self.error("the text ends inside a string");
        };
        let c = match letter {
            b'"' | b'\\' | b'/' => letter as char,
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode_escape(),
            _ => return self.error("no such escape in a string"),
        };
        self.at += 2;
        Ok(c)
    }

    fn unicode_escape(&mut self) -> Result<char, Syntax> {
        let first = self.hex4(self.at + 2)?;
        let mut code = u32::from(first);
        let mut len = 6;
        if (0xD800..0xDC00).contains(&first)
            && self.text.get(self.at + 6..self.at + 8) == Some(b"\\u")
        {
            let second = self.hex4(self.at + 8)?;
            if (0xDC00..0xE000).contains(&second) {
                code =
                    0x1_0000 + ((u32::from(first) - 0xD800) << 10) + (u32::from(second) - 0xDC00);
                len = 12;
            }
        }
        let c = match char::from_u32(code) {
            Some(c) => c,
            None if self.passing => char::REPLACEMENT_CHARACTER,
            None => return self.error(LONE_SURROGATE),
        };
        self.at += len;
        Ok(c)
    }

    fn hex4(&self, at: usize) -> Result<u16, Syntax> {
        let digits = self.text.get(at..at + 4).unwrap_or_default();
        let value = digits
            .iter()
            .try_fold(0u16, |value, &d| Some(value << 4 | (d as char).to_digit(16)? as u16));
        match value {
            Some(value) if digits.len() == 4 => Ok(value),
            _ => self.error("expected four hexadecimal digits after `\\u`"),
        }
    }

    /// Any value, nested ones checked and taken as written.
    pub(crate) fn value(&mut self) -> Result<Value<'a>, Syntax> {
        let first = self.space();
        let start = self.at;
        match first {
            Some(b'"') => {
                self.at += 1;
                self.string().map(Value::Text)
            }
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b'n') => self.literal(b"null").map(|()| Value::Null),
            Some(_) => {
                self.skip()?;
                Ok(Value::Raw(&self.text[start..self.at]))
            }
            None => self.error("the text ends where a value should be"),
        }
    }

    fn literal(&mut self, word: &'static [u8]) -> Result<(), Syntax> {
        if self.text[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(())
        } else {
            self.error("expected a value")
        }
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.byte(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - start
    }

    fn number(&mut self) -> Result<Value<'a>, Syntax> {
        const NO_DIGIT: &str = "expected a digit";
        let start = self.at;
        self.at += usize::from(self.byte() == Some(b'-'));
        let first = self.at;
        let whole = self.digits();
        if whole == 0 {
            return self.error(NO_DIGIT);
        }
        if whole > 1 && self.text[first] == b'0' {
            return Err(Syntax { at: first, what: "a number must not start with 0" });
        }
        let mut integer = true;
        if self.byte() == Some(b'.') {
            self.at += 1;
            integer = false;
            if self.digits() == 0 {
                return self.error(NO_DIGIT);
            }
        }
        if matches!(self.byte(), Some(b'e' | b'E')) {
            self.at += 1;
            integer = false;
            self.at += usize::from(matches!(self.byte(), Some(b'+' | b'-')));
            if self.digits() == 0 {
                return self.error(NO_DIGIT);
            }
        }
        let written = &self.text[start..self.at];
        Ok(match whole {
            _ if !integer => Value::Number(written),
            ..=18 => {
                let digits = self.text[first..self.at].iter();
                let value = digits.fold(0, |v, d| v * 10 + i64::from(d - b'0'));
                Value::Integer(if first > start { -value } else { value })
            }
            _ => long_integer(written),
        })
    }

    /// Goes behind a value of any kind, whatever its texts hold and however deep it is.
    ///
    /// # Errors
    /// When it is no JSON: then nobody knows where it ends.
    pub(crate) fn pass(&mut self) -> Result<(), Syntax> {
        self.passing = true;
        let result = self.skip();
        self.passing = false;
        result
    }

    /// Checks a value of any kind and goes behind it, without recursion: which of the open levels
    /// are objects is kept in bits, [`DEPTH_MAX`] to a word.
    pub(crate) fn skip(&mut self) -> Result<(), Syntax> {
        let mut objects: u64 = 0;
        // The words of the levels around those; there are none but while passing.
        let mut around = Vec::new();
        let mut depth = 0;
        loop {
            // A value starts here.
            match self.space() {
                Some(open @ (b'{' | b'[')) => {
                    if depth > 0 && depth % DEPTH_MAX == 0 {
                        if !self.passing {
                            return self.error(TOO_DEEP);
                        }
                        around.push(objects);
                    }
                    depth += 1;
                    objects = objects << 1 | u64::from(open == b'{');
                    self.at += 1;
                    let close = if open == b'{' { b'}' } else { b']' };
                    if self.space() != Some(close) {
                        if open == b'{' {
                            self.key()?;
                        }
                        continue;
                    }
                }
                _ => self.scalar()?,
            }
            // A value, or an empty container still to be closed, ends here.
            loop {
                if depth == 0 {
                    return Ok(());
                }
                let object = objects & 1 == 1;
                match self.space() {
                    Some(b'}') if object => {}
                    Some(b']') if !object => {}
                    Some(b',') => {
                        self.at += 1;
                        if object {
                            self.key()?;
                        }
                        break;
                    }
                    _ => return self.error("expected `,` or the end of an array or object"),
                }
                self.at += 1;
                depth -= 1;
                objects >>= 1;
                if depth > 0 && depth % DEPTH_MAX == 0 {
                    objects = around.pop().unwrap_or_default();
                }
            }
        }
    }

    fn scalar(&mut self) -> Result<(), Syntax> {
        match self.byte() {
            Some(b'"') => {
                self.at += 1;
                self.string().map(drop)
            }
            Some(b'-' | b'0'..=b'9') => self.number().map(drop),
            Some(b't') => self.literal(b"true"),
            Some(b'f') => self.literal(b"false"),
            Some(b'n') => self.literal(b"null"),
            Some(_) => self.error("expected a value"),
            None => self.error("the text ends where a value should be"),
        }
    }
}

/// A whole number that may be too long for 64 bits.
#[cold]
fn long_integer(written: &[u8]) -> Value<'_> {
    let integer = std::str::from_utf8(written).ok().and_then(|text| text.parse().ok());
    integer.map_or(Value::Number(written), Value::Integer)
}

/// The first `"`, `\` or control character at or after `at`; the length of the text if none.
#[inline(always)]
fn string_special(text: &[u8], mut at: usize) -> usize {
    while let Some(window) = text.get(at..at + 32) {
        let mask = special_mask(window);
        if mask != 0 {
            return at + mask.trailing_zeros() as usize;
        }
        at += 32;
    }
    while let Some(&b) = text.get(at) {
        if b == b'"' || b == b'\\' || b < 0x20 {
            break;
        }
        at += 1;
    }
    at
}
