//! A subscriber as browsers are: Server-Sent Events over HTTP/1.1, `Last-Event-ID` when it comes
//! back. It reads the socket itself, so that a test can cut the connection in the middle of an
//! event, or stop reading.
//!
//! A subscriber that was cut off knows the view as of the last event that carried an `id`, and
//! drops what came behind it: that is what the id is for.

use crate::client::Client;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Error, ErrorKind, Read, Write},
    net::TcpStream,
    time::Duration,
};

/// The longest line or chunk that a server may send.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// One event of the stream.
#[derive(Clone, Debug)]
pub(crate) struct SseEvent {
    pub(crate) kind: String,
    pub(crate) id: Option<u64>,
    pub(crate) data: Value,
}

/// An open stream of events.
pub(crate) struct EventStream {
    lines: BufReader<Chunked>,
    socket: TcpStream,
}

/// What the server answered to a subscription.
pub(crate) enum Subscribed {
    Open(EventStream),
    /// The status and the body.
    Refused(u16, Value),
}

impl EventStream {
    /// Subscribes. `path` with its query, `last` the epoch to go on from.
    pub(crate) fn open(client: &Client, path: &str, last: Option<u64>) -> io::Result<Subscribed> {
        let mut socket = TcpStream::connect(client.address())?;
        socket.set_read_timeout(Some(Duration::from_secs(30)))?;
        let last = last.map_or(String::new(), |id| format!("last-event-id: {id}\r\n"));
        let host = client.address();
        write!(
            socket,
            "GET {path} HTTP/1.1\r\nhost: {host}\r\naccept: text/event-stream\r\n{last}\r\n"
        )?;
        let mut reader = BufReader::new(socket.try_clone()?);
        let (status, chunked, length) = read_head(&mut reader)?;
        if status != 200 {
            let mut body = Vec::new();
            reader.take(length.unwrap_or(0)).read_to_end(&mut body)?;
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            return Ok(Subscribed::Refused(status, body));
        }
        let body = Chunked { reader, left: 0, chunked, ended: false };
        Ok(Subscribed::Open(EventStream { lines: BufReader::new(body), socket }))
    }

    /// Subscribes and must be let in.
    #[track_caller]
    pub(crate) fn subscribe(client: &Client, path: &str) -> EventStream {
        match EventStream::open(client, path, None).unwrap() {
            Subscribed::Open(stream) => stream,
            Subscribed::Refused(status, body) => panic!("{path}: {status} {body}"),
        }
    }

    /// The connection, to be cut by another thread.
    pub(crate) fn socket(&self) -> TcpStream {
        self.socket.try_clone().unwrap()
    }

    /// The next event.
    pub(crate) fn next(&mut self) -> io::Result<SseEvent> {
        let (mut kind, mut id, mut data) = ("message".to_owned(), None, String::new());
        loop {
            let mut line = String::new();
            let bytes = self.lines.by_ref().take(LINE_BYTES_MAX).read_line(&mut line)?;
            if bytes == 0 || !line.ends_with('\n') {
                return Err(Error::new(ErrorKind::UnexpectedEof, "the stream ended"));
            }
            let line = line.trim_end_matches(['\r', '\n']);
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if line.is_empty() && !data.is_empty() => {
                    let data = serde_json::from_str(&data)
                        .map_err(|e| Error::other(format!("{e} in `{data}`")))?;
                    return Ok(SseEvent { kind, id, data });
                }
                "event" => kind = value.to_owned(),
                "id" => id = value.parse().ok(),
                "data" => data += value,
                // A comment, `retry`, or the end of an event without data.
                _ => {}
            }
        }
    }
}

/// The status, whether the body is chunked, and its length if that is told.
fn read_head(reader: &mut impl BufRead) -> io::Result<(u16, bool, Option<u64>)> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.ok_or_else(|| Error::other(format!("no answer: `{line}`")))?;
    let (mut chunked, mut length) = (false, None);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(Error::new(ErrorKind::UnexpectedEof, "the head ended"));
        }
        let lower = line.trim_end().to_ascii_lowercase();
        match lower.split_once(": ") {
            None => return Ok((status, chunked, length)),
            Some(("transfer-encoding", value)) => chunked = value == "chunked",
            Some(("content-length", value)) => length = value.parse().ok(),
            Some(_) => {}
        }
    }
}

/// The body of an answer, out of its chunks.
struct Chunked {
    reader: BufReader<TcpStream>,
    left: u64,
    chunked: bool,
    ended: bool,
}

impl Read for Chunked {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if !self.chunked {
            return self.reader.read(out);
        }
        if self.left == 0 && !self.ended {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            if line.is_empty() {
                return Ok(0);
            }
            self.left = u64::from_str_radix(line.trim(), 16)
                .map_err(|e| Error::other(format!("{e} in the chunk length `{line}`")))?;
            self.ended = self.left == 0;
        }
        if self.ended {
            return Ok(0);
        }
        let most = out.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let bytes = self.reader.read(&mut out[..most])?;
        self.left -= bytes as u64;
        if self.left == 0 && bytes > 0 {
            let mut end = [0; 2];
            self.reader.read_exact(&mut end)?;
        }
        Ok(bytes)
    }
}

/// What a subscriber knows of a view: every row with how often it is there, which is once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    rows: BTreeMap<String, i64>,
    /// Updates behind the last event with an id.
    open: Vec<(String, i64)>,
    /// A snapshot has begun and is not whole.
    in_snapshot: bool,
    /// The epoch of the last event with an id.
    pub(crate) epoch: Option<u64>,
    /// Diffs that were applied.
    pub(crate) updates: u64,
}

impl Known {
    /// Takes an event. True: the view is known as of `epoch` now.
    pub(crate) fn take(&mut self, event: &SseEvent) -> bool {
        match event.kind.as_str() {
            "snapshot" => {
                if !self.in_snapshot {
                    // A snapshot is all there is.
                    (self.in_snapshot, self.rows) = (true, BTreeMap::new());
                    self.open.clear();
                }
                let rows = event.data["rows"].as_array().expect("a snapshot has rows");
                self.open.extend(rows.iter().map(|row| (canonical(row), 1)));
            }
            "diff" => {
                let updates = event.data["updates"].as_array().expect("a diff has updates");
                self.open.extend(updates.iter().map(|update| {
                    let diff = update["diff"].as_i64().expect("an update has a diff");
                    (canonical(&update["row"]), diff)
                }));
                self.updates += updates.len() as u64;
            }
            "progress" => {}
            other => panic!("an event of the kind `{other}`: {}", event.data),
        }
        let Some(id) = event.id else { return false };
        assert!(self.epoch.is_none_or(|e| e <= id), "epoch {id} after {:?}", self.epoch);
        for (row, diff) in self.open.drain(..) {
            *self.rows.entry(row).or_default() += diff;
        }
        self.rows.retain(|_, times| *times != 0);
        self.in_snapshot = false;
        self.epoch = Some(id);
        true
    }

    /// The connection is gone, and with it what no id was seen for.
    pub(crate) fn cut_off(&mut self) {
        self.open.clear();
        if self.in_snapshot {
            // A part of a snapshot is nothing to go on from.
            *self = Known { updates: self.updates, ..Known::default() };
        }
    }

    /// Must be these rows, each once.
    #[track_caller]
    pub(crate) fn assert_is(&self, rows: &[Value]) {
        let expected: BTreeMap<String, i64> = rows.iter().map(|r| (canonical(r), 1)).collect();
        let differ: Vec<_> = expected
            .iter()
            .filter(|&(row, times)| self.rows.get(row) != Some(times))
            .map(|(row, times)| format!("the view has {times} × {row}"))
            .chain(
                self.rows
                    .iter()
                    .filter(|&(row, times)| expected.get(row) != Some(times))
                    .map(|(row, times)| format!("the subscriber has {times} × {row}")),
            )
            .collect();
        let shown = differ.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
        assert!(
            differ.is_empty(),
            "{} of {} rows differ at epoch {:?}:\n{shown}",
            differ.len(),
            expected.len(),
            self.epoch
        );
    }

    /// How many rows it has.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }
}

/// A row with its fields in one order.
fn canonical(row: &Value) -> String {
    let fields: BTreeMap<&String, &Value> =
        row.as_object().expect("a row is an object").iter().collect();
    serde_json::to_string(&fields).unwrap()
}
