//! Who may ask by way of a browser. A page of any site may send requests to a server on the
//! visitor's own machine, and without tokens every request is an operator's; a name of the page's
//! own that leads to the loopback even lets it read the answers. So, while access is open:
//!
//! * the name that is asked for (`Host`) has to be the loopback's, and
//! * a request that names the page it comes from (`Origin`) has to come from this server's.
//!
//! With tokens a page can do nothing, for browsers send none by themselves; but what a WebSocket
//! brings every page may read, so its `Origin` is looked at always. Programs that are no browsers
//! send no `Origin` and are let in.

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, Method, header, uri::Authority},
    middleware::{Next, from_fn},
    response::IntoResponse,
};
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};
use trueup_operators::{access::Access, problem::Problem};

/// Puts the check before everything that a server answers, its fallbacks too: comes last.
pub fn same_site(app: Router, access: Arc<Access>) -> Router {
    app.layer(from_fn(move |request: Request, next: Next| {
        let checked = check(access.is_open(), &request);
        async move {
            match checked {
                Ok(()) => next.run(request).await,
                Err(problem) => problem.into_response(),
            }
        }
    }))
}

fn check<B>(is_open: bool, request: &axum::http::Request<B>) -> Result<(), Problem> {
    let asked = asked_for(request);
    if is_open {
        check_host(asked.as_deref())?;
    }
    if is_open || is_websocket(request.method(), request.headers()) {
        check_origin(asked.as_deref(), request.headers())?;
    }
    Ok(())
}

/// The name that the request asks for. Several are none: who knows which one counts.
fn asked_for<B>(request: &axum::http::Request<B>) -> Option<String> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(String::from_utf8_lossy(host.as_bytes()).into_owned()),
        (None, _) => request.uri().authority().map(Authority::to_string),
        (Some(_), Some(_)) => Some(String::new()),
    }
}

fn is_websocket(method: &Method, headers: &HeaderMap) -> bool {
    let upgrades = headers.get_all(header::UPGRADE).iter();
    let mut names = upgrades.filter_map(|u| u.to_str().ok()).flat_map(|u| u.split(','));
    method == Method::CONNECT || names.any(|u| u.trim().eq_ignore_ascii_case("websocket"))
}

/// Who sends no name at all is no browser.
fn check_host(asked: Option<&str>) -> Result<(), Problem> {
    let Some(host) = asked else { return Ok(()) };
    if place(host, 0).is_some_and(|(name, _)| is_loopback(&name)) {
        return Ok(());
    }
    Err(Problem::new(
        403,
        "foreign_host",
        "without tokens the server answers to names of the loopback alone",
        format!("the request asks for the host `{host}`"),
        "ask for localhost or 127.0.0.1, or configure `[auth] tokens`",
    ))
}

fn is_loopback(name: &str) -> bool {
    let v6 = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
    name == "localhost"
        || name.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
        || v6.is_some_and(|n| n.parse::<Ipv6Addr>().is_ok_and(|ip| ip.is_loopback()))
}

fn check_origin(asked: Option<&str>, headers: &HeaderMap) -> Result<(), Problem> {
    let origins = headers.get_all(header::ORIGIN);
    let is_foreign = |o: &str| asked.is_none_or(|asked| !is_own(o, asked));
    let foreign =
        origins.iter().map(|o| String::from_utf8_lossy(o.as_bytes())).find(|o| is_foreign(o));
    let Some(origin) = foreign else { return Ok(()) };
    Err(Problem::new(
        403,
        "foreign_origin",
        "pages of other sites may not ask",
        format!(
            "the request comes from a page of `{origin}` and asks for the host `{}`",
            asked.unwrap_or_default()
        ),
        "open the server's own page; a proxy before the server has to pass `Host` on",
    ))
}

/// Whether a page is of the host that is asked for. What scheme the request came by is not known
/// behind a proxy, so a host without a port has the port of the page's scheme.
fn is_own(origin: &str, asked: &str) -> bool {
    let (scheme, rest) = origin.split_once("://").unwrap_or_default();
    let port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    place(rest, port).is_some_and(|page| place(asked, port) == Some(page))
}

/// Name and port of an authority.
fn place(authority: &str, default_port: u16) -> Option<(String, u16)> {
    let parsed: Authority = authority.parse().ok().filter(|_| !authority.contains('@'))?;
    Some((parsed.host().to_ascii_lowercase(), parsed.port_u16().unwrap_or(default_port)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tests::{Answer, Stream, serve_app, token};
    use axum::routing::get;
    use trueup_operators::access::Role;

    /// The code that a request is refused with.
    fn refused(is_open: bool, headers: &[(&str, &str)]) -> Option<&'static str> {
        let mut request = axum::http::Request::builder().method("POST").uri("/v1/ads/a");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(is_open, &request.body(()).unwrap()).err().map(|problem| problem.code)
    }

    #[test]
    fn without_tokens_only_names_of_the_loopback_are_answered() {
        for host in ["localhost", "LocalHost:8080", "127.0.0.1:8080", "127.9.9.9", "[::1]:8080"] {
            assert_eq!(refused(true, &[("host", host)]), None, "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example:8080", "10.0.0.1", "[::2]", "a@localhost", ""]
        {
            assert_eq!(refused(true, &[("host", host)]), Some("foreign_host"), "{host}");
            assert_eq!(refused(false, &[("host", host)]), None, "{host}");
        }
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(refused(true, &twice), Some("foreign_host"));
        assert_eq!(refused(true, &[]), None, "no browser leaves the host out");
    }

    #[test]
    fn without_tokens_pages_of_other_sites_are_refused() {
        let from = |origin| refused(true, &[("host", "localhost:8080"), ("origin", origin)]);
        assert_eq!(from("http://localhost:8080"), None);
        assert_eq!(from("http://LOCALHOST:8080"), None);
        for origin in [
            "http://evil.example",
            "http://localhost:3000",
            "http://localhost",
            "http://127.0.0.1:8080",
            "http://a@localhost:8080",
            "file://localhost:8080",
            "null",
            "",
        ] {
            assert_eq!(from(origin), Some("foreign_origin"), "{origin}");
        }
        let default_port = [("host", "localhost"), ("origin", "http://localhost:80")];
        assert_eq!(refused(true, &default_port), None);
        assert_eq!(refused(true, &[("origin", "http://localhost")]), Some("foreign_origin"));
    }

    #[test]
    fn with_tokens_only_the_origin_of_a_websocket_counts() {
        let host = ("host", "ads.example");
        let (evil, own) = (("origin", "https://evil.example"), ("origin", "https://ads.example"));
        assert_eq!(refused(false, &[host, evil]), None);
        for upgrade in ["websocket", "h2c, WebSocket"].map(|u| ("upgrade", u)) {
            assert_eq!(refused(false, &[host, upgrade, evil]), Some("foreign_origin"));
            assert_eq!(refused(false, &[host, upgrade, own]), None);
            assert_eq!(refused(false, &[host, upgrade]), None);
        }
    }

    #[tokio::test]
    async fn the_check_stands_before_routes_and_fallbacks() {
        let app = || {
            Router::new().route("/there", get(|| async { "yes" })).fallback(crate::unknown_route)
        };
        let open = serve_app(same_site(app(), Arc::default())).await;
        let tokens = Arc::new(Access::new(vec![token("o", Role::Operator)]));
        let closed = serve_app(same_site(app(), tokens)).await;
        // The client asks for the host `x`.
        for (path, status) in [("/there", 200), ("/nowhere", 404)] {
            let answer = Answer::of(Stream::open(open, "GET", path, &[]).await).await;
            assert_eq!(answer.problem(), (403, "foreign_host".into()), "{path}");
            let answer = Answer::of(Stream::open(closed, "GET", path, &[]).await).await;
            assert_eq!(answer.status, status, "{path}");
        }
    }
}
