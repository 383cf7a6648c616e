//! What is wrong, said so that a caller can act on it: a stable code, the value at fault, and what
//! to do. The same codes stand in error answers, in `errors[]`, in the quarantine and in metrics.

use serde::Serialize;

/// An error answer: `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// Stable text, `unknown_dimension`.
    pub code: &'static str,
    /// What the code means, the same for each occurrence.
    pub title: &'static str,
    /// What happened here; names the value at fault.
    pub detail: String,
    /// What to do.
    pub hint: String,
    /// `Retry-After`, seconds.
    #[serde(skip)]
    pub retry_after_s: Option<u32>,
}

impl Problem {
    /// A problem without a `Retry-After`.
    pub fn new(
        status: u16,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Problem {
        let (detail, hint) = (detail.into(), hint.into());
        Problem { status, code, title, detail, hint, retry_after_s: None }
    }

    /// The same, to be tried again after `seconds`.
    pub fn retry_after(mut self, seconds: u32) -> Problem {
        self.retry_after_s = Some(seconds);
        self
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}): {}; {}", self.title, self.code, self.detail, self.hint)
    }
}

impl std::error::Error for Problem {}

#[cfg(feature = "http")]
impl axum_core::response::IntoResponse for Problem {
    fn into_response(self) -> axum_core::response::Response {
        use http::header::{
            CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
        };
        let body = serde_json::json!({
            "type": format!("https://trueup.dev/problems/{}", self.code),
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "hint": self.hint,
            "requestId": format!("req_{:016x}", request_id()),
        });
        let mut response = axum_core::response::Response::new(body.to_string().into());
        *response.status_mut() = http::StatusCode::from_u16(self.status)
            .unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if self.status == 401 {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Counts up from a start that differs from process to process, so that an id names one answer.
#[cfg(feature = "http")]
fn request_id() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    hash_of_process().wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(feature = "http")]
fn hash_of_process() -> u64 {
    static START: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *START.get_or_init(|| {
        // An address of this process, moved by the loader: enough to tell two processes apart.
        crate::hash::mix(std::ptr::from_ref(&START) as u64, u64::from(std::process::id())) << 24
    })
}
