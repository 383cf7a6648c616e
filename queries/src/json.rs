//! Rows as JSON, written straight into the body: an answer of 50,000 rows is some 12 MB, and
//! building values first would take several times as long as reading the rows.

use std::collections::HashMap;
use trueup_operators::{
    symbols::{ABSENT, Symbol, Symbols},
    time::format_rfc3339,
};
use trueup_sinks::{RowBlock, block::RowRef};

/// What a row's columns are called, and what is derived from them.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// `"publisherId":` for each dimension.
    keys: Vec<String>,
    /// `"clicks":` for each figure.
    values: Vec<String>,
    /// Where `clicks` and `impressions` stand, for the CTR.
    rate: Option<(usize, usize)>,
}

/// What a report's rows have besides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReportExtras {
    /// How long ago the log was complete to what the rows show.
    pub(crate) freshness_us: i64,
}

impl Shape {
    pub(crate) fn new<'a>(
        keys: impl IntoIterator<Item = &'a str>,
        values: impl IntoIterator<Item = &'a str>,
    ) -> Shape {
        let values: Vec<&str> = values.into_iter().collect();
        let place = |name| values.iter().position(|v| *v == name);
        Shape {
            keys: keys.into_iter().map(quoted_key).collect(),
            rate: place("clicks").zip(place("impressions")),
            values: values.into_iter().map(quoted_key).collect(),
        }
    }
}

fn quoted_key(name: &str) -> String {
    let mut out = String::new();
    push_text(&mut out, name);
    out.push(':');
    out
}

/// Writes the rows of a block.
pub(crate) struct Rows<'a> {
    shape: &'a Shape,
    texts: HashMap<Symbol, String>,
    start: (i64, String),
    digits: itoa::Buffer,
}

impl<'a> Rows<'a> {
    /// Looks the texts of a block's rows up, all at once.
    pub(crate) fn new<'b>(
        shape: &'a Shape,
        symbols: &Symbols,
        rows: impl IntoIterator<Item = RowRef<'b>>,
    ) -> Rows<'a> {
        let mut texts: HashMap<Symbol, String> = HashMap::new();
        for row in rows {
            for &symbol in row.key {
                texts.entry(symbol).or_default();
            }
        }
        symbols.with_texts(|text| {
            for (&symbol, quoted) in &mut texts {
                push_text(quoted, &text(symbol));
            }
        });
        texts.insert(ABSENT, "null".to_owned());
        let start = (i64::MIN, String::new());
        Rows { shape, texts, start, digits: itoa::Buffer::new() }
    }

    fn push_number(&mut self, out: &mut String, number: impl itoa::Integer) {
        out.push_str(self.digits.format(number));
    }

    fn push_start(&mut self, out: &mut String, start_us: i64) {
        if self.start.0 != start_us {
            self.start = (start_us, format!("\"bucketStart\":\"{}\",", format_rfc3339(start_us)));
        }
        out.push_str(&self.start.1);
    }

    fn push_columns(&mut self, out: &mut String, row: &RowRef<'_>) {
        let shape = self.shape;
        for (name, symbol) in shape.keys.iter().zip(row.key) {
            out.push_str(name);
            out.push_str(self.texts.get(symbol).map_or("null", |t| t));
            out.push(',');
        }
        for (name, &value) in shape.values.iter().zip(row.values) {
            out.push_str(name);
            self.push_number(out, value);
            out.push(',');
        }
    }

    /// A row of a view.
    pub(crate) fn push_view_row(&mut self, out: &mut String, row: &RowRef<'_>) {
        out.push('{');
        self.push_start(out, row.start_us);
        self.push_columns(out, row);
        out.push_str("\"version\":");
        self.push_number(out, row.version);
        out.push_str(",\"state\":\"");
        out.push_str(row.state.name());
        out.push_str("\"}");
    }

    /// A row of a report.
    pub(crate) fn push_report_row(
        &mut self,
        out: &mut String,
        row: &RowRef<'_>,
        extras: ReportExtras,
    ) {
        out.push('{');
        self.push_start(out, row.start_us);
        self.push_columns(out, row);
        if let Some((clicks, impressions)) = self.shape.rate {
            out.push_str("\"ctr\":");
            push_rate(out, row.values[clicks], row.values[impressions]);
            out.push(',');
        }
        out.push_str("\"version\":");
        self.push_number(out, row.version);
        out.push_str(",\"freshnessSeconds\":");
        push_seconds(out, extras.freshness_us);
        out.push_str(",\"isFinalized\":");
        out.push_str(if row.state.is_finalized() { "true" } else { "false" });
        out.push_str(",\"state\":\"");
        out.push_str(row.state.name());
        out.push_str("\"}");
    }
}

/// A block's rows as a JSON array.
pub(crate) fn view_rows(shape: &Shape, symbols: &Symbols, block: &RowBlock, out: &mut String) {
    let mut rows = Rows::new(shape, symbols, block.rows());
    out.push('[');
    for (i, row) in block.rows().enumerate() {
        if i > 0 {
            out.push(',');
        }
        rows.push_view_row(out, &row);
    }
    out.push(']');
}

/// `clicks / impressions` to 6 places, half up; `null` when there is nothing to divide by.
pub(crate) fn push_rate(out: &mut String, clicks: i64, impressions: i64) {
    use std::fmt::Write as _;
    if impressions <= 0 {
        out.push_str("null");
        return;
    }
    let (clicks, impressions) = (i128::from(clicks.max(0)), i128::from(impressions));
    let millionths = (clicks * 2_000_000 + impressions) / (2 * impressions);
    let (whole, rest) = (millionths / 1_000_000, millionths % 1_000_000);
    // Writing to a string cannot fail.
    write!(out, "{whole}.{rest:06}").unwrap_or_default();
}

/// µs as seconds with three places, never negative.
pub(crate) fn push_seconds(out: &mut String, us: i64) {
    use std::fmt::Write as _;
    let ms = us.max(0) / 1_000;
    write!(out, "{}.{:03}", ms / 1_000, ms % 1_000).unwrap_or_default();
}

/// A text as a JSON string.
pub(crate) fn push_text(out: &mut String, text: &str) {
    let is_plain = |b: u8| b >= 0x20 && b != b'"' && b != b'\\';
    if text.bytes().all(is_plain) {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        out.push_str(&serde_json::Value::from(text).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_six_places() {
        for (clicks, impressions, text) in [
            (0, 0, "null"),
            (3, 0, "null"),
            (0, 7, "0.000000"),
            (1, 3, "0.333333"),
            (2, 3, "0.666667"),
            (1, 2_000_000, "0.000001"),
            (7, 2, "3.500000"),
            (i64::MAX, 1, "9223372036854775807.000000"),
        ] {
            let mut out = String::new();
            push_rate(&mut out, clicks, impressions);
            assert_eq!(out, text);
        }
    }

    #[test]
    fn texts_are_escaped() {
        for text in ["", "plain", "\"", "a\\b", "tab\t", "é", "\u{1}"] {
            let mut out = String::new();
            push_text(&mut out, text);
            assert_eq!(serde_json::from_str::<String>(&out).ok().as_deref(), Some(text));
        }
    }
}
