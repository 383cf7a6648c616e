//! The routes of the collector.

use crate::{
    collect::collect,
    collector::Collector,
    metadata::Kind,
    metadata_routes::{delete, dimensions, get, list, put},
    names::Metric,
    pixel::{click, conversion, impression},
    verdicts::judge,
};
use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    middleware::{Next, from_fn},
    response::Response,
    routing,
};

impl Collector {
    /// All routes. The client's IP is that of `ConnectInfo<SocketAddr>`: serve the router with
    /// `into_make_service_with_connect_info`, or behind `trusted_proxies`.
    pub fn router(&self) -> Router {
        let mut router = Router::new()
            .route("/v1/events/collect", routing::post(collect))
            .route("/v1/verdicts", routing::post(judge))
            .route("/v1/dimensions", routing::get(dimensions))
            .route("/click", routing::get(click))
            .route("/i", routing::get(impression))
            .route("/conversion", routing::get(conversion));
        for kind in [Kind::Campaign, Kind::Ad, Kind::Publisher] {
            let one = routing::get(move |s, p, h| get(kind, s, p, h))
                .put(move |s, p, r| put(kind, s, p, r))
                .delete(move |s, p, h| delete(kind, s, p, h));
            let path = format!("/v1/{}", kind.plural());
            router = router
                .route(&format!("{path}/{{id}}"), one)
                .route(&path, routing::get(move |s, q, h| list(kind, s, q, h)));
        }
        router
            .layer(from_fn(count))
            // Bodies have limits of their own, which name themselves.
            .layer(DefaultBodyLimit::disable())
            .with_state(self.clone())
    }
}

async fn count(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let status = match response.status().as_u16() {
        200..300 => "2xx",
        300..400 => "3xx",
        429 => "429",
        400..500 => "4xx",
        503 => "503",
        _ => "5xx",
    };
    Metric::Requests.add_by("status", status, 1);
    response
}
