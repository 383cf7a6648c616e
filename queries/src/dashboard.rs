//! The live page: a few files in the binary, so that it works offline and always fits the server.
//! Open to everyone, because it holds no data; what it shows it asks for with the visitor's token.
//! Scripts and styles come from files alone, and the header forbids everything else.

use crate::params::Name;
use axum::{
    http::header,
    response::{Html, IntoResponse, Response},
};
use trueup_operators::problem::Problem;

const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Name, type and content of every file beside the page itself.
const FILES: [(&str, &str, &str); 5] = [
    ("app.js", SCRIPT, include_str!("../dashboard/app.js")),
    ("style.css", STYLE, include_str!("../dashboard/style.css")),
    ("uplot.min.js", SCRIPT, include_str!("../dashboard/uplot.min.js")),
    ("uplot.min.css", STYLE, include_str!("../dashboard/uplot.min.css")),
    ("uplot.LICENSE", TEXT, include_str!("../dashboard/uplot.LICENSE")),
];

/// `GET /`
pub(crate) async fn page() -> Response {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Html(include_str!("../dashboard/index.html"))).into_response()
}

/// `GET /dashboard/{file}`
pub(crate) async fn asset(Name(file): Name) -> Result<Response, Problem> {
    let found = FILES.iter().find(|(name, _, _)| *name == file);
    let &(_, kind, content) = found.ok_or_else(|| {
        Problem::new(
            404,
            "unknown_route",
            "there is nothing at this path",
            format!("the live page has no file `{file}`"),
            "open `/`",
        )
    })?;
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, content).into_response())
}
