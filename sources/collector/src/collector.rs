//! What all routes share: the log, the key, the tokens, the limits and what they count.

use crate::{
    body::{Bounds, Held},
    decode::Decoder,
    following::Follower,
    idempotency::Idempotency,
    inflate::Inflater,
    metadata::Metadata,
    names::Metric,
    pixel_group::PixelGroup,
    pool::Pool,
    rate::{IpWindows, TokenRates},
    settings::{InvalidSetting, Settings},
};
use axum::http::{HeaderMap, header};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use trueup_operators::{
    access::{Access, Action},
    hash::HashKey,
    log::{Log, LogError, Topic},
    problem::Problem,
    room::Room,
};

/// The clock: µs since 1970. The collector is the only part that stamps events with it.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// Real backpressure: how far the dataflow is behind the log.
pub trait Pressure: Send + Sync + 'static {
    /// Whether more events may come.
    ///
    /// # Errors
    /// 429 `dataflow_behind`, or 503 when nothing is taken for longer, with a `Retry-After`.
    fn check(&self) -> Result<(), Problem>;
}

/// No dataflow to wait for.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPressure;

impl Pressure for NoPressure {
    fn check(&self) -> Result<(), Problem> {
        Ok(())
    }
}

/// Why a collector cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A limit cannot be used.
    #[error(transparent)]
    Settings(#[from] InvalidSetting),
    /// The log's metadata cannot be read.
    #[error("the metadata topic cannot be read: {0}")]
    Log(#[from] LogError),
    /// A frame of metadata is not what was written.
    #[error("offset {offset} of the metadata topic is no metadata: {reason}")]
    Metadata {
        /// The frame.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody can follow what other processes say of metadata.
    #[error("the thread that follows the metadata topic cannot start: {0}")]
    Thread(std::io::Error),
}

/// The collector. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Collector(pub(crate) Arc<Inner>);

/// A decoder and an inflater, for one body at a time.
pub(crate) struct Desk {
    pub(crate) decoder: Decoder,
    pub(crate) inflater: Inflater,
}

/// Where the collector appends.
pub struct Logs {
    /// What is sent in bodies: durable when it is acknowledged, refused while that cannot be.
    pub intake: Arc<dyn Log>,
    /// What comes by pixels, which are answered whatever happens.
    pub answering: Arc<dyn Log>,
}

impl<L: Log> From<Arc<L>> for Logs {
    fn from(log: Arc<L>) -> Logs {
        Logs { intake: Arc::clone(&log) as Arc<dyn Log>, answering: log }
    }
}

impl From<Arc<dyn Log>> for Logs {
    fn from(log: Arc<dyn Log>) -> Logs {
        Logs { intake: Arc::clone(&log), answering: log }
    }
}

pub(crate) struct Inner {
    /// Ends first, so that nobody holds the log any more.
    _follower: Option<Follower>,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) answering: Arc<dyn Log>,
    pub(crate) key: HashKey,
    pub(crate) access: Arc<Access>,
    pub(crate) settings: Settings,
    pub(crate) pressure: Arc<dyn Pressure>,
    pub(crate) clock: Clock,
    pub(crate) metadata: Arc<Metadata>,
    pub(crate) idempotency: Arc<Idempotency>,
    pub(crate) rates: TokenRates,
    pub(crate) clicks: IpWindows,
    pub(crate) pixels: PixelGroup,
    pub(crate) held: Arc<Held>,
    requests: Arc<Semaphore>,
    pub(crate) decode_slots: Arc<Semaphore>,
    pub(crate) desks: Pool<Desk>,
    rejected: AtomicU64,
}

impl Collector {
    /// Opens the collector: reads the metadata from the log, and follows it there if the log is
    /// shared.
    ///
    /// # Errors
    /// When a setting cannot be used, or the metadata cannot be read or followed.
    pub fn new(
        logs: impl Into<Logs>,
        key: HashKey,
        access: Arc<Access>,
        settings: Settings,
        pressure: Arc<dyn Pressure>,
        clock: Clock,
    ) -> Result<Collector, StartError> {
        settings.check()?;
        let Logs { intake: log, answering } = logs.into();
        let metadata = Arc::new(Metadata::replay(&*log, settings.metadata_entries_max)?);
        let follower = match log.is_shared() {
            true => Some(Follower::start(Arc::clone(&metadata), Arc::clone(&log))),
            false => None,
        };
        let threads = settings.decode_threads();
        let Settings { decode_bytes_in_flight_max, body_bytes_max, .. } = settings;
        let (tokens, senders) = (access.len(), access.senders());
        let room = Room::new(decode_bytes_in_flight_max, body_bytes_max, tokens, senders);
        let now_us = clock();
        Ok(Collector(Arc::new(Inner {
            _follower: follower.transpose().map_err(StartError::Thread)?,
            idempotency: Arc::new(Idempotency::new(
                settings.idempotency_keys_max,
                settings.idempotency_bytes_max,
                settings.idempotency_ms as i64 * 1000,
            )),
            rates: TokenRates::new(settings.events_per_second_max, access.len(), now_us),
            clicks: IpWindows::new(settings.clicks_per_minute_per_ip_max, settings.ip_windows_max),
            pixels: PixelGroup::new(settings.pixels_in_flight_max),
            held: Arc::new(Held::new(room, 2 * threads)),
            requests: Arc::new(Semaphore::new(settings.requests_in_flight_max)),
            decode_slots: Arc::new(Semaphore::new(threads)),
            desks: Pool::new(threads),
            rejected: AtomicU64::new(0),
            log,
            answering,
            key,
            access,
            settings,
            pressure,
            clock,
            metadata,
        })))
    }

    /// Events that broke a rule since the start (received = accepted + rejected).
    pub fn rejected(&self) -> u64 {
        self.0.rejected.load(Ordering::Relaxed)
    }

    /// Campaigns, ads and publishers.
    pub fn metadata(&self) -> Arc<Metadata> {
        self.0.metadata.clone()
    }
}

/// Who sent a request, as far as a body of events is concerned.
pub(crate) struct Sender {
    pub(crate) token: usize,
    pub(crate) publishers: Vec<String>,
}

impl Inner {
    pub(crate) fn now_us(&self) -> i64 {
        (self.clock)()
    }

    /// Checks the token of a request.
    pub(crate) fn sender(&self, headers: &HeaderMap, action: Action) -> Result<Sender, Problem> {
        let authorization = headers.get(header::AUTHORIZATION).and_then(|h| h.to_str().ok());
        let identity = self.access.check(authorization, action)?;
        Ok(Sender { token: identity.index, publishers: identity.publishers.to_vec() })
    }

    /// Whether there is a place among the requests in flight: who would find none when its body is
    /// whole need not send it. Nothing is taken yet.
    pub(crate) fn has_place(&self) -> Result<(), Problem> {
        match self.requests.available_permits() {
            0 => Err(self.no_place()),
            _ => Ok(()),
        }
    }

    /// A place among the requests in flight, for one whose body is whole: how long it takes then is
    /// no longer up to its sender.
    pub(crate) fn enter(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.requests.clone().try_acquire_owned().map_err(|_| self.no_place())
    }

    fn no_place(&self) -> Problem {
        Problem::new(
            429,
            "too_many_requests_in_flight",
            "too many requests are being worked on",
            format!("{} requests are in flight", self.settings.requests_in_flight_max),
            "send larger batches on fewer connections, or send again after a moment",
        )
        .retry_after(1)
    }

    pub(crate) fn bounds(&self) -> Bounds {
        Bounds {
            bytes_max: self.settings.body_bytes_max,
            time_max: Duration::from_millis(self.settings.body_read_ms_max),
        }
    }

    pub(crate) fn desk(&self) -> Desk {
        self.desks.take(|| Desk {
            decoder: Decoder::new(self.key, self.log.partitions(Topic::Events))
                .text_bytes_max(self.settings.body_decoded_bytes_max),
            inflater: Inflater::default(),
        })
    }

    pub(crate) fn count_rejected(&self, reasons: &[(&'static str, usize)]) {
        for &(reason, events) in reasons {
            self.rejected.fetch_add(events as u64, Ordering::Relaxed);
            Metric::EventsRejected.add_by("reason", reason, events);
        }
    }
}

/// The declared length of a body.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// A header's text; `None` if it is not there or no text.
pub(crate) fn header_text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}
