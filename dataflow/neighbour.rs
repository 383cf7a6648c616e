//! What a process of a cluster asks another: about an event that another's ledger knows, for a
//! checkpoint, which the leader takes, and how full it is.
//!
//! ```text
//! u8 0 event       u32 worker, 16 bytes hash of the id   JSON, what the ledger knows, or null
//! u8 1 checkpoint                                        JSON, its epoch, or null: none are taken
//! u8 2 memory                                            JSON, what its workers hold
//! ```
//!
//! Views are not asked for: each process has all of them, so that it answers whatever becomes of
//! the others, and of one epoch without a vote.

use crate::{
    cluster::{Generation, Handler},
    engine::Engine,
    seat::LEADER,
    worker::WorkerMemory,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use trueup_operators::{hash::IdHash, ledger::Entry, time::Epoch};

/// How long an answer from memory may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the ledger of a worker of another process knows of an event.
///
/// # Errors
/// When it does not answer, or cannot.
pub(crate) fn lookup(
    generation: &Generation,
    process: usize,
    worker: usize,
    id: IdHash,
) -> Result<Option<Entry>, String> {
    let mut question = vec![0];
    question.extend((worker as u32).to_le_bytes());
    question.extend(id);
    ask(generation, process, &question, PATIENCE)
}

/// Has the leader take a checkpoint; its epoch. `None`: it takes none.
///
/// # Errors
/// Why it was not published.
pub(crate) fn checkpoint(
    generation: &Generation,
    patience: Duration,
) -> Result<Option<Epoch>, String> {
    ask(generation, LEADER, &[1], patience)
}

/// What the workers of another process hold.
///
/// # Errors
/// When it does not answer.
pub(crate) fn memory(generation: &Generation, process: usize) -> Result<Vec<WorkerMemory>, String> {
    ask(generation, process, &[2], PATIENCE)
}

fn ask<T: DeserializeOwned>(
    generation: &Generation,
    process: usize,
    question: &[u8],
    patience: Duration,
) -> Result<T, String> {
    let answer = generation.rpc().call(process, question, patience).map_err(|e| e.to_string())?;
    serde_json::from_slice(&answer).map_err(|e| format!("process {process}: {e}"))
}

/// Answers for an engine, as long as there is one; `patience` is what a checkpoint may take.
pub(crate) fn answers(engine: &Arc<Engine>, patience: Duration) -> Handler {
    let engine: Weak<Engine> = Arc::downgrade(engine);
    Arc::new(move |_, question| {
        let engine = engine.upgrade().ok_or("its part of the job has ended")?;
        let (&kind, body) = question.split_first().ok_or("an empty question")?;
        match (kind, body) {
            (0, body) => {
                let (worker, id) = body.split_first_chunk::<4>().ok_or("a question cut short")?;
                let id: IdHash = id.try_into().map_err(|_| "an id of another length")?;
                json(&engine.lookup_here(u32::from_le_bytes(*worker) as usize, id)?)
            }
            (1, []) => json(&engine.checkpoint(patience)?),
            (2, []) => json(&engine.memory()),
            (kind, _) => Err(format!("a question of kind {kind}")),
        }
    })
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, String> {
    serde_json::to_vec(value).map_err(|e| e.to_string())
}
