//! From frames to the log's word that they are durable, for async code, and what a refusal of the
//! log means to a sender.

use std::sync::Arc;
use tokio::sync::oneshot;
use trueup_operators::{
    log::{Append, Appended, Log, LogError},
    problem::Problem,
};

/// Appends frames and waits until they are durable. When the future is dropped the frames may
/// become durable all the same; nobody was told.
///
/// # Errors
/// 503 when the log cannot take them now, 413 when they break a limit of the log.
pub(crate) async fn append(
    log: &Arc<dyn Log>,
    frames: Vec<Append>,
) -> Result<Vec<Appended>, Problem> {
    let (send, receive) = oneshot::channel();
    let done = Box::new(move |result| {
        // Whoever waited may have gone; the log does not care.
        drop::<Result<(), _>>(send.send(result));
    });
    log.append(frames, done).map_err(|error| refused(&error))?;
    match receive.await {
        Ok(Ok(appended)) => Ok(appended),
        Ok(Err(error)) => Err(refused(&error)),
        Err(_) => {
            Err(refused(&LogError::Unavailable { reason: "it closed before it answered".into() }))
        }
    }
}

/// What a sender is told.
pub(crate) fn refused(error: &LogError) -> Problem {
    let detail = error.to_string();
    match error {
        LogError::Busy { .. } => Problem::new(
            503,
            "log_busy",
            "the log cannot take more now",
            detail,
            "nothing was taken; send it again after a moment",
        )
        .retry_after(1),
        LogError::Invalid { .. } => Problem::new(
            413,
            "batch_too_large",
            "the batch breaks a limit of the log",
            detail,
            "send smaller batches",
        ),
        _ => {
            tracing::error!(%error, "the log cannot take events");
            Problem::new(
                503,
                "log_unavailable",
                "the log cannot be written",
                detail,
                "nothing was acknowledged; send it again later, an operator must look at the log",
            )
            .retry_after(5)
        }
    }
}
