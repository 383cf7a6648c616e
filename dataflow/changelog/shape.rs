//! The messages of a view's rows as JSON. They are texts from the start: a row's key must be the
//! same to the byte in every run, since compaction and partitions go by it, and a comparison with
//! the topic compares texts. So names come in a fixed order (dimensions as the rollup has them,
//! figures by their names, as `serde_json` writes an object that it has read), without a space.

use serde_json::Value;
use std::collections::HashMap;
use trueup_operators::{
    symbols::{ABSENT, Symbol, Symbols},
    time::{Epoch, Granularity, format_rfc3339},
};
use trueup_sinks::{Catalog, RowBlock, View, ViewId, ViewKind, block::RowRef};

/// What the rows of a table look like.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) id: ViewId,
    pub(super) name: String,
    pub(super) granularity: Granularity,
    /// `"campaignId":`
    dimensions: Vec<String>,
    /// `"clicks":` and where the figure stands, by name.
    columns: Vec<(String, Column)>,
}

#[derive(Clone, Copy, Debug)]
enum Column {
    Figure(usize),
    State,
    Version,
}

/// A text as JSON.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

impl Shape {
    /// The shapes of all tables.
    pub(super) fn all(catalog: &Catalog) -> Vec<Shape> {
        catalog.views().iter().filter_map(|view| Shape::new(catalog, view)).collect()
    }

    fn new(catalog: &Catalog, view: &View) -> Option<Shape> {
        let ViewKind::Table(table) = view.kind else { return None };
        let mut columns: Vec<(String, Column)> = catalog
            .columns()
            .iter()
            .enumerate()
            .map(|(at, name)| ((*name).to_owned(), Column::Figure(at)))
            .collect();
        columns.push(("state".into(), Column::State));
        columns.push(("version".into(), Column::Version));
        columns.sort_by(|a, b| a.0.cmp(&b.0));
        let key = |name: &str| format!("{}:", quoted(name));
        Some(Shape {
            id: view.id,
            name: view.name.clone(),
            granularity: table.granularity,
            dimensions: catalog.dimensions(table).iter().map(|name| key(name)).collect(),
            columns: columns.into_iter().map(|(name, column)| (key(&name), column)).collect(),
        })
    }

    /// Everything that the rows' texts follow from, for comparing with another run's.
    pub(super) fn text(&self) -> String {
        let columns: Vec<&str> = self.columns.iter().map(|(name, _)| name.as_str()).collect();
        format!("{}({}|{})", quoted(&self.name), self.dimensions.concat(), columns.concat())
    }

    /// What names a row.
    pub(super) fn row(&self, texts: &Texts, row: &RowRef<'_>) -> String {
        let mut out = format!("{{\"bucketStart\":\"{}\"", format_rfc3339(row.start_us));
        for (name, symbol) in self.dimensions.iter().zip(row.key) {
            out.push(',');
            out.push_str(name);
            out.push_str(texts.of(*symbol));
        }
        if row.folded {
            out.push_str(",\"folded\":true");
        }
        out.push('}');
        out
    }

    /// What a row is.
    pub(super) fn figures(&self, row: &RowRef<'_>) -> String {
        let mut out = String::with_capacity(192);
        for (name, column) in &self.columns {
            out.push(if out.is_empty() { '{' } else { ',' });
            out.push_str(name);
            match column {
                Column::Figure(at) => out.push_str(&row.values[*at].to_string()),
                Column::Version => out.push_str(&row.version.to_string()),
                Column::State => out.push_str(&quoted(row.state.name())),
            }
        }
        out.push('}');
        out
    }

    /// The key of a row's messages.
    pub(super) fn key(&self, row: &str) -> String {
        format!("{}{row}}}", self.key_before_row())
    }

    /// What stands before the row in a key; behind it is a brace.
    pub(super) fn key_before_row(&self) -> String {
        format!("{{\"view\":{},\"row\":", quoted(&self.name))
    }

    /// A message.
    pub(super) fn value(
        &self,
        epoch: Epoch,
        row: &str,
        old: Option<&str>,
        new: Option<&str>,
    ) -> String {
        let (old, new) = (old.unwrap_or("null"), new.unwrap_or("null"));
        let view = quoted(&self.name);
        format!("{{\"epoch\":{epoch},\"view\":{view},\"row\":{row},\"old\":{old},\"new\":{new}}}")
    }
}

/// The texts of a block's symbols, quoted.
pub(super) struct Texts(HashMap<Symbol, String>);

impl Texts {
    /// Looks them up, all at once.
    pub(super) fn of_block(symbols: &Symbols, block: &RowBlock) -> Texts {
        let mut texts: HashMap<Symbol, String> = HashMap::new();
        for row in block.rows() {
            for &symbol in row.key.iter().filter(|symbol| **symbol != ABSENT) {
                texts.entry(symbol).or_default();
            }
        }
        symbols.with_texts(|text| {
            for (&symbol, into) in &mut texts {
                *into = quoted(&text(symbol));
            }
        });
        Texts(texts)
    }

    fn of(&self, symbol: Symbol) -> &str {
        self.0.get(&symbol).map_or("null", String::as_str)
    }
}
