//! A load client that costs little: one connection a thread, bodies made before the clock starts,
//! nothing parsed but the status. What it costs is measured by its threads' own clocks and taken
//! off the process's.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// How often a body is sent again on 429 and 503.
const TRIES: u32 = 10_000;

/// What a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Media {
    Json,
    GzippedJson,
    Arrow,
}

impl Media {
    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Media::Json => "plain",
            Media::GzippedJson => "gzip",
            Media::Arrow => "arrow",
        }
    }

    fn headers(self) -> &'static str {
        match self {
            Media::Json => "content-type: application/json\r\n",
            Media::GzippedJson => "content-type: application/json\r\ncontent-encoding: gzip\r\n",
            Media::Arrow => "content-type: application/vnd.apache.arrow.stream\r\n",
        }
    }
}

/// A connection that is kept.
pub(super) struct Client {
    stream: BufReader<TcpStream>,
    host: SocketAddr,
}

impl Client {
    pub(super) fn connect(host: SocketAddr) -> Result<Client, String> {
        let stream = TcpStream::connect(host).map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        Ok(Client { stream: BufReader::new(stream), host })
    }

    /// Sends a body until it is acknowledged; how often it was refused before.
    pub(super) fn post(&mut self, path: &str, media: Media, body: &[u8]) -> Result<u32, String> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\n{}content-length: {}\r\n\r\n",
            self.host,
            media.headers(),
            body.len()
        );
        for refused in 0..TRIES {
            let stream = self.stream.get_mut();
            stream.write_all(head.as_bytes()).map_err(|e| e.to_string())?;
            stream.write_all(body).map_err(|e| e.to_string())?;
            match self.answer()? {
                (202, _) => return Ok(refused),
                (429 | 503, _) => std::thread::sleep(Duration::from_millis(5)),
                (status, text) => return Err(format!("{path}: {status} {text}")),
            }
        }
        Err(format!("{path} was refused {TRIES} times"))
    }

    /// Asks for something, once; the answer's body.
    pub(super) fn get(&mut self, path: &str) -> Result<String, String> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.host);
        self.stream.get_mut().write_all(request.as_bytes()).map_err(|e| e.to_string())?;
        match self.answer()? {
            (200, body) => Ok(body),
            (status, text) => Err(format!("{path}: {status} {text}")),
        }
    }

    fn answer(&mut self) -> Result<(u16, String), String> {
        let mut line = String::new();
        self.stream.read_line(&mut line).map_err(|e| e.to_string())?;
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status = status.ok_or_else(|| format!("no status in {line:?}"))?;
        let mut length = 0;
        loop {
            line.clear();
            self.stream.read_line(&mut line).map_err(|e| e.to_string())?;
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().map_err(|e| format!("{line:?}: {e}"))?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).map_err(|e| e.to_string())?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// CPU seconds of the calling thread.
pub(super) fn thread_cpu_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
