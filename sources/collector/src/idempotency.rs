//! `Idempotency-Key`: a request that is sent again with its key gets the first answer, and its
//! events are not looked at again.
//!
//! Keys are per token. Bodies are compared as they are once inflated: a sender that packs its body
//! again for a retry need not get the same bytes. A key with another body is a mistake of the
//! sender (422); a key whose first request is still being worked on is told to come again (409).
//! Only answers of 202 are kept: after an error the request may be tried afresh. What is kept is
//! bounded by number, bytes and age, the oldest goes first; a key that was forgotten costs nothing
//! but work, because the events' own ids make them duplicates.

use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};
use trueup_operators::problem::Problem;

/// The longest key.
pub(crate) const KEY_BYTES_MAX: usize = 255;

/// Token and key.
type Key = (usize, Arc<str>);

/// Answers by key.
pub(crate) struct Idempotency {
    keys_max: usize,
    bytes_max: usize,
    kept_us: i64,
    answers: Mutex<Answers>,
}

#[derive(Default)]
struct Answers {
    by_key: HashMap<Key, Entry>,
    /// Finished ones in the order of their end, and when they expire.
    order: VecDeque<(Key, i64)>,
    bytes: usize,
}

struct Entry {
    body_hash: u64,
    /// `None`: being worked on.
    answer: Option<Bytes>,
}

/// What to do with a request.
pub(crate) enum Claim {
    /// Work on it.
    New(Guard),
    /// It was answered before.
    Answered(Bytes),
}

/// A key that is being worked on. Dropped without an answer it is free again.
pub(crate) struct Guard {
    store: Option<Arc<Idempotency>>,
    key: Key,
    body_hash: u64,
}

impl Idempotency {
    pub(crate) fn new(keys_max: usize, bytes_max: usize, kept_us: i64) -> Idempotency {
        Idempotency { keys_max, bytes_max, kept_us, answers: Mutex::default() }
    }

    /// Takes a key for a body.
    ///
    /// # Errors
    /// 422 if the key came with another body, 409 if its request is being worked on.
    pub(crate) fn claim(
        self: &Arc<Self>,
        token: usize,
        key: &str,
        body_hash: u64,
        now_us: i64,
    ) -> Result<Claim, Problem> {
        let key: Key = (token, key.into());
        let mut answers = self.answers.lock();
        answers.expire(now_us);
        match answers.by_key.get(&key) {
            Some(entry) if entry.body_hash != body_hash => Err(reused(&key.1)),
            Some(Entry { answer: Some(answer), .. }) => Ok(Claim::Answered(answer.clone())),
            Some(_) => Err(in_progress(&key.1)),
            None => {
                answers.by_key.insert(key.clone(), Entry { body_hash, answer: None });
                Ok(Claim::New(Guard { store: Some(self.clone()), key, body_hash }))
            }
        }
    }
}

impl Answers {
    fn expire(&mut self, now_us: i64) {
        while self.order.front().is_some_and(|oldest| oldest.1 <= now_us) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((key, _)) = self.order.pop_front()
            && let Some(Entry { answer: Some(answer), .. }) = self.by_key.remove(&key)
        {
            self.bytes -= key.1.len() + answer.len();
        }
    }
}

impl Guard {
    /// Keeps the answer.
    pub(crate) fn answered(mut self, answer: Bytes, now_us: i64) {
        let Some(store) = self.store.take() else { return };
        let mut answers = store.answers.lock();
        answers.bytes += self.key.1.len() + answer.len();
        answers.order.push_back((self.key.clone(), now_us + store.kept_us));
        let entry = Entry { body_hash: self.body_hash, answer: Some(answer) };
        answers.by_key.insert(self.key.clone(), entry);
        while answers.order.len() > store.keys_max || answers.bytes > store.bytes_max {
            answers.forget_oldest();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(store) = self.store.take() {
            store.answers.lock().by_key.remove(&self.key);
        }
    }
}

#[cold]
fn reused(key: &str) -> Problem {
    Problem::new(
        422,
        "idempotency_key_reused",
        "the idempotency key was used for another body",
        format!("`Idempotency-Key: {key}` came before with another body"),
        "use a new key for every body, and the same key only to send the same body again",
    )
}

#[cold]
fn in_progress(key: &str) -> Problem {
    Problem::new(
        409,
        "idempotency_key_in_progress",
        "the first request with this idempotency key is not answered yet",
        format!("the request with `Idempotency-Key: {key}` is still being worked on"),
        "send it again after a moment to get its answer",
    )
    .retry_after(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn new(claim: Result<Claim, Problem>) -> Guard {
        match claim.unwrap() {
            Claim::New(guard) => guard,
            Claim::Answered(_) => panic!("answered before"),
        }
    }

    #[test]
    fn a_key_is_answered_once_and_again() {
        let store = Arc::new(Idempotency::new(10, 1000, 100));
        let guard = new(store.claim(0, "a", 1, 0));
        assert_eq!(store.claim(0, "a", 1, 0).map(|_| ()).unwrap_err().status, 409);
        assert_eq!(store.claim(0, "a", 2, 0).map(|_| ()).unwrap_err().status, 422);
        drop(new(store.claim(1, "a", 2, 0)));
        guard.answered(Bytes::from_static(b"first"), 0);
        match store.claim(0, "a", 1, 99).unwrap() {
            Claim::Answered(answer) => assert_eq!(answer, "first"),
            Claim::New(_) => panic!("forgotten"),
        }
        assert_eq!(store.claim(0, "a", 2, 99).map(|_| ()).unwrap_err().status, 422);
        drop(new(store.claim(0, "a", 2, 100)));
        drop(new(store.claim(0, "a", 3, 100)));
    }

    #[test]
    fn what_is_kept_is_bounded_in_number_and_bytes() {
        let store = Arc::new(Idempotency::new(10, 1000, 100));
        for n in 0..50 {
            new(store.claim(0, &format!("{n:03}"), 1, 0)).answered(Bytes::from_static(b"x"), 0);
        }
        assert_eq!(store.answers.lock().by_key.len(), 10);
        for n in 50..60 {
            let answer = Bytes::from(vec![b'x'; 397]);
            new(store.claim(0, &format!("{n:03}"), 1, 0)).answered(answer, 0);
        }
        let answers = store.answers.lock();
        assert_eq!((answers.by_key.len(), answers.order.len(), answers.bytes), (2, 2, 800));
    }
}
