//! What a client of the server says and hears: JSON over HTTP, and bytes over a socket for what no
//! client library would send.

use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};
use ureq::Agent;

/// How long any answer may take.
const ANSWER: Duration = Duration::from_secs(60);
/// The most bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// An answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) retry_after: Option<String>,
    /// `Null` when the body is no JSON.
    pub(crate) json: Value,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The same, and it has this status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }

    /// The stable code of an error answer, which must be a problem with something to do about it.
    #[track_caller]
    pub(crate) fn problem(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        assert!(self.status >= 400, "{} is no error: {text}", self.status);
        assert_eq!(self.content_type, "application/problem+json", "{text}");
        for field in ["type", "title", "code", "detail", "hint", "requestId"] {
            let value = self.json[field].as_str().unwrap_or_default();
            assert!(!value.is_empty(), "the problem has no `{field}`: {text}");
        }
        assert_eq!(self.json["status"], json!(self.status), "{text}");
        self.json["code"].as_str().unwrap().to_owned()
    }
}

/// A client with connections of its own.
#[derive(Clone)]
pub(crate) struct Client {
    agent: Agent,
    address: SocketAddr,
    token: Option<String>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Client {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(ANSWER))
            .max_redirects(0)
            .build();
        Client { agent: config.into(), address, token: None }
    }

    /// The same, with a token.
    pub(crate) fn with_token(&self, token: &str) -> Client {
        Client { token: Some(token.to_owned()), ..self.clone() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Asks; an error when no whole answer came.
    pub(crate) fn try_get(&self, path: &str) -> Result<Answer, ureq::Error> {
        let mut request = self.agent.get(self.url(path));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        answer(request.call()?)
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.try_get(path).unwrap_or_else(|e| panic!("GET {path}: {e}"))
    }

    /// Sends; an error when no whole answer came: then nobody knows whether it was taken.
    pub(crate) fn try_post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, ureq::Error> {
        let mut request = self.agent.post(self.url(path));
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        answer(request.send(body)?)
    }

    #[track_caller]
    pub(crate) fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_post(path, headers, body).unwrap_or_else(|e| panic!("POST {path}: {e}"))
    }

    /// Puts a document.
    #[track_caller]
    pub(crate) fn put(&self, path: &str, body: &[u8]) -> Answer {
        self.put_with(path, &[], body)
    }

    /// The same, with headers.
    #[track_caller]
    pub(crate) fn put_with(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = self.agent.put(self.url(path)).header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let sent = request.send(body).and_then(answer);
        sent.unwrap_or_else(|e| panic!("PUT {path}: {e}"))
    }

    /// Sends events that are JSON values.
    #[track_caller]
    pub(crate) fn collect(&self, events: &[Value]) -> Answer {
        let body = json!({ "events": events }).to_string();
        self.post("/v1/events/collect", &[], body.as_bytes())
    }

    /// Sends verdicts that are JSON values.
    #[track_caller]
    pub(crate) fn judge(&self, verdicts: &[Value]) -> Answer {
        let body = json!({ "verdicts": verdicts }).to_string();
        self.post("/v1/verdicts", &[], body.as_bytes())
    }

    /// Sends bytes as they are and reads what comes until the server closes.
    pub(crate) fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        // The server may answer and close before it has read everything.
        drop(stream.write_all(bytes));
        drop(stream.shutdown(std::net::Shutdown::Write));
        let mut answer = Vec::new();
        drop(stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer));
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// How many events came to which end, by the names of the contract.
    #[track_caller]
    pub(crate) fn counts(&self) -> Counts {
        let status = self.get("/v1/status").expect(200).json;
        let count = |name: &str| {
            status["counts"][name].as_i64().unwrap_or_else(|| panic!("no `{name}` in {status}"))
        };
        Counts {
            received: count("received"),
            accepted: count("accepted"),
            rejected: count("rejected"),
            counted: count("counted"),
            duplicate: count("duplicate"),
            conflict: count("conflict"),
            quarantined: count("quarantined"),
            too_late: count("tooLate"),
            pending: count("pending"),
        }
    }

    /// Waits until everything that was acknowledged is in the views. The counts then.
    #[track_caller]
    pub(crate) fn settled(&self) -> Counts {
        let began = std::time::Instant::now();
        loop {
            let counts = self.counts();
            if counts.pending == 0 {
                return counts;
            }
            assert!(began.elapsed() < ANSWER, "still pending: {counts:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// All rows of a view at one epoch: the epoch and the rows, in the order of the answer.
    #[track_caller]
    pub(crate) fn view(&self, name: &str, epoch: Option<u64>) -> (u64, Vec<Value>) {
        let as_of = epoch.map_or(String::new(), |epoch| format!("&asOfEpoch={epoch}"));
        let question = format!("/v1/views/{name}?limit=1000{as_of}");
        let (mut rows, mut epoch, mut path) = (Vec::new(), epoch, question.clone());
        loop {
            let page = self.get(&path).expect(200).json;
            let at = page["asOfEpoch"].as_u64().expect("a page names its epoch");
            assert_eq!(*epoch.get_or_insert(at), at, "two pages are of two epochs");
            rows.extend(page["rows"].as_array().expect("a page has rows").iter().cloned());
            match page["nextPageToken"].as_str() {
                Some(token) => path = format!("{question}&pageToken={token}"),
                None => return (at, rows),
            }
        }
    }
}

/// `/v1/status` → `counts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) received: i64,
    pub(crate) accepted: i64,
    pub(crate) rejected: i64,
    pub(crate) counted: i64,
    pub(crate) duplicate: i64,
    pub(crate) conflict: i64,
    pub(crate) quarantined: i64,
    pub(crate) too_late: i64,
    pub(crate) pending: i64,
}

impl Counts {
    /// Nothing silent: every event that came has one end, or is on its way to it.
    #[track_caller]
    pub(crate) fn check(&self) {
        assert_eq!(self.received, self.accepted + self.rejected, "{self:?}");
        let ends = self.counted + self.duplicate + self.conflict + self.quarantined + self.too_late;
        assert_eq!(self.accepted, ends + self.pending, "{self:?}");
    }
}

fn answer(response: ureq::http::Response<ureq::Body>) -> Result<Answer, ureq::Error> {
    let text =
        |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (content_type, retry_after) = (text("content-type"), text("retry-after"));
    let status = response.status().as_u16();
    let body = response.into_body().with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
    Ok(Answer {
        status,
        content_type: content_type.unwrap_or_default(),
        retry_after,
        json: serde_json::from_slice(&body).unwrap_or(Value::Null),
        body,
    })
}
