//! Errors of queries as a caller gets them.

use axum::http::{Method, Uri};
use trueup_operators::problem::Problem;
use trueup_sinks::ReadError;

/// A wrong request: the caller must change it.
pub(crate) fn wrong(
    code: &'static str,
    detail: impl Into<String>,
    hint: impl Into<String>,
) -> Problem {
    Problem::new(400, code, "the request cannot be answered", detail, hint)
}

/// Why the views did not answer.
pub(crate) fn of_read(error: ReadError) -> Problem {
    let detail = error.to_string();
    match error {
        ReadError::NotReady => Problem::new(
            503,
            "not_ready",
            "the views hold nothing yet",
            detail,
            "wait until /readyz says 200",
        )
        .retry_after(1),
        ReadError::Gone { first, .. } => Problem::new(
            410,
            "epoch_gone",
            "the epoch is older than the history that is kept",
            detail,
            format!("begin anew with the newest epoch, or ask for epoch {first} or later"),
        ),
        ReadError::Renumbered => Problem::new(
            410,
            "page_gone",
            "the page before this one was of views that are gone",
            detail,
            "begin with the first page: a server that was started again, or came together with \
             others again, numbers its rows anew",
        ),
        // Epochs go on where they were when a server restarts, so this is an epoch of another log
        // or one that nobody was told of yet.
        ReadError::Ahead { visible, .. } => Problem::new(
            409,
            "epoch_ahead",
            "this server has not reached the epoch",
            detail,
            format!("ask for epoch {visible} or earlier, or begin anew"),
        ),
        ReadError::Overtaken { .. } => Problem::new(
            503,
            "overtaken",
            "the views change faster than the answer is read",
            detail,
            "try again, ask for a shorter range, or raise the history's bytes",
        )
        .retry_after(1),
        ReadError::TooManyRows { .. } => wrong(
            "too_many_rows",
            detail,
            "ask for a shorter range, a coarser granularity or fewer dimensions",
        ),
        ReadError::NotKept { .. } => {
            wrong("range_not_kept", detail, "begin and end on a full hour or day, or begin later")
        }
        ReadError::TooMuchToRead { .. } => {
            wrong("too_much_to_read", detail, "ask for a shorter range or a coarser granularity")
        }
    }
}

/// The answer to a path that nothing serves: the fallback of the server's router.
pub async fn unknown_route(uri: Uri) -> Problem {
    Problem::new(
        404,
        "unknown_route",
        "there is nothing at this path",
        format!("`{}` is not a path of this server", uri.path()),
        "see /openapi.json for all paths",
    )
}

/// The answer to a method that a path does not have: the other fallback.
pub async fn unknown_method(method: Method, uri: Uri) -> Problem {
    Problem::new(
        405,
        "unknown_method",
        "the path does not take this method",
        format!("`{}` does not take {method}", uri.path()),
        "see /openapi.json for the methods of each path",
    )
}
