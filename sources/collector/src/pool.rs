//! Things with memory worth keeping (decoders, body buffers), lent to one request at a time. What
//! finds no room on its way back is dropped, so a burst leaves nothing behind.

use parking_lot::Mutex;

/// At most so many things that nobody uses.
pub(crate) struct Pool<T> {
    idle: Mutex<Vec<T>>,
    idle_max: usize,
}

impl<T> Pool<T> {
    pub(crate) fn new(idle_max: usize) -> Pool<T> {
        Pool { idle: Mutex::new(Vec::with_capacity(idle_max)), idle_max }
    }

    /// One that was used before, or a new one.
    pub(crate) fn take(&self, new: impl FnOnce() -> T) -> T {
        let idle = self.idle.lock().pop();
        idle.unwrap_or_else(new)
    }

    /// For the next.
    pub(crate) fn give(&self, used: T) {
        let mut idle = self.idle.lock();
        if idle.len() < self.idle_max {
            idle.push(used);
        }
    }
}
