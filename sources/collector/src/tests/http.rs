//! A collector under test and requests to it.

use super::memory_log::MemoryLog;
use crate::{Collector, NoPressure, Pressure, Settings};
use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use serde_json::Value;
use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};
use tower_service::Service;
use trueup_operators::{
    access::{Access, Role, Token},
    hash::HashKey,
};

/// 2026-04-27T15:32:11Z, the time at which the tests stand still.
pub(super) const NOW_US: i64 = 1_777_303_931_000_000;
pub(super) const KEY: HashKey = HashKey([9; 16]);

pub(super) struct World {
    pub(super) log: Arc<MemoryLog>,
    pub(super) collector: Collector,
    pub(super) router: Router,
    pub(super) clock: Arc<AtomicI64>,
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The code of a problem, checked for its form.
    pub(super) fn code(&self) -> String {
        let json = self.json();
        assert_eq!(self.headers["content-type"], "application/problem+json", "{json}");
        assert_eq!(json["status"], self.status.as_u16());
        for name in ["type", "title", "code", "detail", "hint", "requestId"] {
            assert!(json[name].as_str().is_some_and(|text| !text.is_empty()), "{name}: {json}");
        }
        json["code"].as_str().unwrap().to_owned()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

pub(super) fn tokens() -> Access {
    let token = |token: &str, role, publishers: &[&str]| Token {
        token: token.into(),
        role,
        publishers: publishers.iter().map(|p| (*p).to_owned()).collect(),
    };
    Access::new(vec![
        token("collects", Role::Collector, &[]),
        token("bound", Role::Collector, &["pub_17", "pub_18"]),
        token("judges", Role::Fraud, &[]),
        token("reads", Role::Reader, &[]),
        token("operates", Role::Operator, &[]),
    ])
}

pub(super) fn world() -> World {
    world_with(Settings::default(), Arc::new(NoPressure))
}

pub(super) fn world_with(settings: Settings, pressure: Arc<dyn Pressure>) -> World {
    world_on(MemoryLog::new(4), settings, pressure)
}

pub(super) fn world_on(
    log: Arc<MemoryLog>,
    settings: Settings,
    pressure: Arc<dyn Pressure>,
) -> World {
    let clock = Arc::new(AtomicI64::new(NOW_US));
    let ticks = clock.clone();
    let collector = Collector::new(
        log.clone(),
        KEY,
        Arc::new(tokens()),
        settings,
        pressure,
        Arc::new(move || ticks.load(Ordering::Relaxed)),
    )
    .unwrap();
    World { log, router: collector.router(), collector, clock }
}

impl World {
    pub(super) async fn send(&self, request: Request<Body>) -> Answer {
        let mut router = self.router.clone();
        let response = router.call(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, 1 << 24).await.unwrap().to_vec();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// Sends a body of events with the token that may.
    pub(super) async fn collect(&self, body: impl Into<Body>) -> Answer {
        self.collect_as("collects", &[], body).await
    }

    pub(super) async fn collect_as(
        &self,
        token: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        self.send(request("POST", "/v1/events/collect", token, headers, body)).await
    }

    pub(super) async fn get(&self, uri: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(request("GET", uri, "reads", headers, Body::empty())).await
    }

    pub(super) async fn put(&self, uri: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.send(request("PUT", uri, "operates", headers, body.to_owned())).await
    }
}

pub(super) fn request(
    method: &str,
    uri: &str,
    token: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(uri);
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.into()).unwrap()
}

/// A good event; `more` is put behind its last field.
pub(super) fn event(id: &str, more: &str) -> String {
    format!(
        r#"{{"eventId":"{id}","eventType":"click","occurredAt":"2026-04-27T15:32:10Z",{}{more}}}"#,
        r#""campaignId":"camp_4821","adId":"ad_99""#
    )
}

pub(super) fn batch(events: &[String]) -> String {
    format!(r#"{{"events":[{}]}}"#, events.join(","))
}

pub(super) const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");
