//! A running server, asked over HTTP by a command.

use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};
use trueup_operators::time::{BucketState, Epoch, parse_rfc3339};

use crate::verify::{FIGURES, RowFigures, Served, Views};

/// The longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

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
        let answer = self.send("GET", path, "application/json", b"")?;
        if answer.status != 200 {
            return Err(format!("{}{path}: {} {}", self.base, answer.status, answer.body));
        }
        serde_json::from_str(&answer.body).map_err(|e| format!("{}{path}: {e}", self.base))
    }

    /// All rows of all tables of one epoch, as the server shows them.
    pub(super) fn served(
        &self,
        dimensions: &BTreeMap<String, Vec<String>>,
        epoch: Epoch,
    ) -> Result<Served, String> {
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
                let answer = self.get(&path)?;
                for row in answer["rows"].as_array().into_iter().flatten() {
                    let (key, figures) = row_of(row, dimensions)?;
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
