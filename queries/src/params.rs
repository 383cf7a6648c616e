//! The name in the path of a request, and its parameters: each is taken once, by name, and what is
//! left over is an error that names the nearest known one. A misspelt filter must never be a filter
//! that is ignored.

use crate::problems::wrong;
use axum::{
    extract::{FromRequestParts, Path, Query},
    http::{Uri, request::Parts},
};
use trueup_operators::{
    problem::Problem,
    time::{Granularity, parse_rfc3339},
};

/// The most parameters of a request.
const PARAMS_MAX: usize = 64;

/// The year 2200: every bucket up to it has a number.
const TIME_US_MAX: i64 = 7_258_118_400 * 1_000_000;

/// The name in a path.
#[derive(Debug)]
pub(crate) struct Name(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Name, Problem> {
        let name = Path::<String>::from_request_parts(parts, state).await;
        name.map(|Path(name)| Name(name)).map_err(|rejection| {
            wrong(
                "bad_path",
                format!("the path `{}` cannot be read: {rejection}", parts.uri.path()),
                "encode names in a path as the UTF-8 of a URL",
            )
        })
    }
}

/// The parameters that were not taken yet.
#[derive(Debug)]
pub(crate) struct Params {
    left: Vec<(String, String)>,
    known: Vec<&'static str>,
    question: String,
}

impl Params {
    pub(crate) fn of(uri: &Uri) -> Result<Params, Problem> {
        let Query(left) = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|e| {
            wrong("bad_query", format!("the query string is malformed: {e}"), "encode it as a URL")
        })?;
        if left.len() > PARAMS_MAX {
            return Err(wrong(
                "too_many_parameters",
                format!("{} parameters", left.len()),
                format!("send at most {PARAMS_MAX}"),
            ));
        }
        // `token` authorises where headers cannot be sent; it is never one of the query's own.
        let left: Vec<_> = left.into_iter().filter(|(name, _)| name != "token").collect();
        let mut asked: Vec<_> =
            left.iter().filter(|(name, _)| name != "pageToken" && name != "limit").collect();
        asked.sort();
        let question = format!("{} {asked:?}", uri.path());
        Ok(Params { left, known: Vec::new(), question })
    }

    /// What is asked, whichever page of it: what a page token is bound to.
    pub(crate) fn question(&self) -> &str {
        &self.question
    }

    /// Every value of a parameter that may be repeated.
    pub(crate) fn all(&mut self, name: &'static str) -> Vec<String> {
        self.known.push(name);
        let (taken, left) = std::mem::take(&mut self.left).into_iter().partition(|p| p.0 == name);
        self.left = left;
        taken.into_iter().map(|(_, value)| value).collect()
    }

    /// A parameter that may stand once.
    pub(crate) fn text(&mut self, name: &'static str) -> Result<Option<String>, Problem> {
        let mut values = self.all(name);
        if values.len() > 1 {
            return Err(wrong(
                "repeated_parameter",
                format!("`{name}` stands {} times", values.len()),
                format!("send `{name}` once"),
            ));
        }
        Ok(values.pop())
    }

    /// A parameter that must stand.
    pub(crate) fn required(&mut self, name: &'static str) -> Result<String, Problem> {
        self.text(name)?.ok_or_else(|| {
            wrong("missing_parameter", format!("`{name}` is missing"), format!("add `{name}=…`"))
        })
    }

    /// A whole number.
    pub(crate) fn number(&mut self, name: &'static str) -> Result<Option<u64>, Problem> {
        let parse = |text: String| {
            text.parse().map_err(|_| {
                wrong(
                    "bad_number",
                    format!("`{name}` is `{text}`"),
                    format!("make `{name}` a whole number"),
                )
            })
        };
        self.text(name)?.map(parse).transpose()
    }

    /// How many rows a page has: 1 to `max`.
    pub(crate) fn limit(&mut self, default: usize, max: usize) -> Result<usize, Problem> {
        match self.number("limit")? {
            None => Ok(default.min(max)),
            Some(n) if n >= 1 && n <= max as u64 => Ok(n as usize),
            Some(n) => Err(wrong(
                "bad_limit",
                format!("`limit` is {n}"),
                format!("make it 1 to {max} and follow `nextPageToken` for more"),
            )),
        }
    }

    /// A switch.
    pub(crate) fn flag(&mut self, name: &'static str, default: bool) -> Result<bool, Problem> {
        match self.text(name)?.as_deref() {
            None => Ok(default),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(wrong(
                "bad_flag",
                format!("`{name}` is `{other}`"),
                format!("make `{name}` true or false"),
            )),
        }
    }

    /// A time that must stand, µs since 1970.
    pub(crate) fn time(&mut self, name: &'static str) -> Result<i64, Problem> {
        let text = self.required(name)?;
        time(name, &text)
    }

    /// A granularity; hours when it is absent.
    pub(crate) fn granularity(&mut self) -> Result<Option<Granularity>, Problem> {
        let Some(text) = self.text("granularity")? else { return Ok(None) };
        Granularity::from_name(&text).map(Some).ok_or_else(|| {
            wrong(
                "unknown_granularity",
                format!("`granularity` is `{text}`"),
                "make it minute, hour or day",
            )
        })
    }

    /// What is left, for requests whose parameters are columns.
    pub(crate) fn rest(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.left)
    }

    /// All parameters were taken.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        let Some((name, _)) = self.left.first() else { return Ok(()) };
        let mut known = self.known;
        known.sort_unstable();
        known.dedup();
        let near = nearest(name, &known);
        let hint = match near {
            Some(near) => format!("did you mean `{near}`? Known are: {}", known.join(", ")),
            None => format!("known are: {}", known.join(", ")),
        };
        Err(wrong("unknown_parameter", format!("`{name}` is not a parameter here"), hint))
    }
}

/// Reads a time: RFC 3339; or without an offset, in UTC; or a date.
pub(crate) fn time(name: &str, text: &str) -> Result<i64, Problem> {
    let local = || -> Option<i64> {
        let civil = match text.parse::<jiff::civil::DateTime>() {
            Ok(civil) => civil,
            // `2026-02-09T14:00`: hours and minutes alone.
            Err(_) => format!("{text}:00").parse().ok()?,
        };
        Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_microsecond())
    };
    let in_range = |us: &i64| (0..=TIME_US_MAX).contains(us);
    parse_rfc3339(text).or_else(local).filter(in_range).ok_or_else(|| {
        wrong(
            "bad_time",
            format!("`{name}` is `{text}`"),
            "write a time from 1970 to 2200 as 2026-04-27T15:32:00Z (send a `+` as %2B)",
        )
    })
}

/// The known name that is at most two changes away.
pub(crate) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let short: String = name.chars().take(64).collect();
    known
        .iter()
        .map(|k| (distance(&short.to_lowercase(), &k.to_lowercase()), *k))
        .filter(|(d, _)| *d <= 2)
        .min()
        .map(|(_, k)| k)
}

/// How many letters have to be changed, added or dropped.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let change = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}
