//! A running server, asked over HTTP by a command.
//!
//! All that is compared has to be of one epoch, while the server closes ten a second: rows and
//! lists are asked for as of it, and an epoch that leaves the history meanwhile is told apart from
//! everything else that a server may refuse, so that who asks begins anew at a newer one
//! ([`of_one_epoch`]). The counts are of the newest epoch always and say of which, so they are
//! asked for first, and all else as of it.

mod aside;

use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};
use trueup_operators::time::{BucketState, Epoch, parse_rfc3339};

use crate::verify::{FIGURES, RowFigures, Served, Views};

/// The longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often all is read anew when its epoch has gone.
const ATTEMPTS: usize = 5;
/// The codes of what is no longer there, but is at a newer epoch.
const GONE: [&str; 2] = ["epoch_gone", "page_gone"];

/// Why a server did not say what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It no longer keeps the epoch.
    Gone(String),
    /// Anything else.
    Other(String),
}

impl Refused {
    fn text(self) -> String {
        match self {
            Refused::Gone(text) | Refused::Other(text) => text,
        }
    }
}

/// Reads what has to be of one epoch, and again where that has gone before all was read.
pub(super) fn of_one_epoch<T>(mut read: impl FnMut() -> Result<T, Refused>) -> Result<T, String> {
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        match read() {
            Err(Refused::Gone(said)) => last = said,
            answer => return answer.map_err(Refused::text),
        }
    }
    Err(format!(
        "{ATTEMPTS} times an epoch left the history before all of it was read, the last time: \
         {last}; let the server keep more with flow.history and flow.history_bytes_max"
    ))
}

/// A server's address and how to talk to it.
pub(super) struct Remote {
    agent: ureq::Agent,
    base: String,
    token: Option<String>,
}

/// What a server answered.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) retry_after_s: Option<u64>,
    pub(super) body: String,
}

impl Remote {
    pub(super) fn new(base: &str, token: Option<&str>) -> Remote {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build();
        Remote {
            agent: config.into(),
            base: base.trim_end_matches('/').to_owned(),
            token: token.map(str::to_owned),
        }
    }

    /// Sends a body; `Err` only when there is no answer.
    pub(super) fn send(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> Result<Answer, String> {
        let url = format!("{}{path}", self.base);
        let mut request = ureq::http::Request::builder().method(method).uri(&url);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request
            .header("content-type", content_type)
            .body(body)
            .map_err(|e| format!("{url}: {e}"))?;
        let mut response = self.agent.run(request).map_err(|e| format!("{url}: {e}"))?;
        let retry_after_s = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let status = response.status().as_u16();
        let body = response
            .body_mut()
            .with_config()
            .limit(1 << 30)
            .read_to_string()
            .map_err(|e| format!("{url}: {e}"))?;
        Ok(Answer { status, retry_after_s, body })
    }

    /// Asks for JSON; an answer other than 200 is an error.
    pub(super) fn get(&self, path: &str) -> Result<Value, String> {
        self.ask(path).map_err(Refused::text)
    }

    /// The same, where what has gone is told apart.
    pub(super) fn ask(&self, path: &str) -> Result<Value, Refused> {
        let answer = self.send("GET", path, "application/json", b"").map_err(Refused::Other)?;
        let url = format!("{}{path}", self.base);
        let body = serde_json::from_str::<Value>(&answer.body);
        match (answer.status, body) {
            (200, Ok(body)) => Ok(body),
            (200, Err(error)) => Err(Refused::Other(format!("{url}: {error}"))),
            (status, body) => {
                let said = format!("{url}: {status} {}", answer.body);
                let is_gone = body.is_ok_and(|body| GONE.iter().any(|code| body["code"] == *code));
                Err(if is_gone { Refused::Gone(said) } else { Refused::Other(said) })
            }
        }
    }

    /// All rows of all tables of one epoch, as the server shows them.
    pub(super) fn served(
        &self,
        dimensions: &BTreeMap<String, Vec<String>>,
        epoch: Epoch,
    ) -> Result<Served, Refused> {
        let mut views = Views::new();
        for (view, dimensions) in dimensions {
            let rows = views.entry(view.clone()).or_default();
            let mut token: Option<String> = None;
            loop {
                let page = match &token {
                    None => String::new(),
                    Some(token) => format!("&pageToken={token}"),
                };
                let path = format!("/v1/views/{view}?asOfEpoch={epoch}&limit=100000{page}");
                let answer = self.ask(&path)?;
                for row in answer["rows"].as_array().into_iter().flatten() {
                    let (key, figures) = row_of(row, dimensions).map_err(Refused::Other)?;
                    rows.insert(key, figures);
                }
                token = answer["nextPageToken"].as_str().map(str::to_owned);
                if token.is_none() {
                    break;
                }
            }
        }
        Ok(Served { epoch, views, kept_from_us: BTreeMap::new() })
    }
}

fn row_of(row: &Value, dimensions: &[String]) -> Result<((i64, Vec<String>), RowFigures), String> {
    let wrong = |what: &str| format!("a row has no `{what}`: {row}");
    let start = row["bucketStart"].as_str().and_then(parse_rfc3339);
    let start = start.ok_or_else(|| wrong("bucketStart"))?;
    let texts = dimensions.iter().map(|d| row[d].as_str().unwrap_or_default().to_owned()).collect();
    let mut figures = [0; FIGURES.len()];
    for (figure, name) in figures.iter_mut().zip(FIGURES) {
        *figure = row[name].as_i64().ok_or_else(|| wrong(name))?;
    }
    let version = row["version"].as_u64().ok_or_else(|| wrong("version"))?;
    let states = [
        BucketState::Provisional,
        BucketState::Settling,
        BucketState::Final,
        BucketState::Restated,
    ];
    let state = states.into_iter().find(|s| row["state"] == s.name());
    let state = state.ok_or_else(|| wrong("state"))?;
    Ok(((start, texts), RowFigures { figures, version: version as u32, state }))
}
