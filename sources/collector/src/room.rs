//! The room for bodies that are in flight, and how much of it one sender may take. A body holds
//! room from its first byte on, and how long it takes to come is its sender's choice, within
//! `body_read_ms_max`; so without a share one token that sends large bodies and pauses before
//! their ends would have all others answered 429, for as long as it liked.
//!
//! # Promises
//!
//! * All bodies together never hold more than `decode_bytes_in_flight_max`, in whole pages.
//! * A token may hold as much as it leaves free. So whatever one token does, half of the room is
//!   there for the others; of what is left the next one may take half again, and so on.
//! * One body is never too much for a token, where there is room for it: a token that holds no more
//!   than `body_bytes_max` is not asked what it leaves.
//! * Who is alone (no token is configured, or one that may send anything) may take all of it.
//!
//! Nobody waits for room: a sender is told to come back, and what it held of that body is given
//! back at once.

use parking_lot::Mutex;
use std::sync::Arc;
use trueup_operators::problem::Problem;

/// Room is counted in pages.
const PAGE_BYTES: usize = 4096;

/// All of it.
pub(crate) struct Room {
    /// Pages that any token may hold, however little is left.
    body_pages: usize,
    taken: Mutex<Taken>,
}

struct Taken {
    free_pages: usize,
    /// By token.
    pages: Vec<usize>,
}

/// What one body holds. Gives it back when it is dropped.
pub(crate) struct Place {
    room: Arc<Room>,
    token: usize,
    pages: usize,
}

impl Room {
    /// For so many bytes of all bodies, of which one may have `body_bytes_max`, sent with
    /// `senders` of so many tokens.
    pub(crate) fn new(
        bytes_max: usize,
        body_bytes_max: usize,
        tokens: usize,
        senders: usize,
    ) -> Arc<Room> {
        let pages = bytes_max / PAGE_BYTES + 1;
        let body_pages = match senders {
            0 | 1 => pages,
            _ => body_bytes_max.div_ceil(PAGE_BYTES),
        };
        let taken = Taken { free_pages: pages, pages: vec![0; tokens.max(1)] };
        Arc::new(Room { body_pages, taken: Mutex::new(taken) })
    }

    /// A place for a body of which nothing has come yet.
    pub(crate) fn place(self: &Arc<Self>, token: usize) -> Place {
        Place { room: Arc::clone(self), token, pages: 0 }
    }
}

impl Place {
    /// Makes it so large that it holds `bytes`.
    ///
    /// # Errors
    /// 429 when there is no room, or none for this token.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        let more = bytes.div_ceil(PAGE_BYTES).saturating_sub(self.pages);
        if more == 0 {
            return Ok(());
        }
        let mut taken = self.room.taken.lock();
        let own = taken.pages[self.token] + more;
        let Some(left) = taken.free_pages.checked_sub(more) else {
            return Err(full(format!("there is no room for another {bytes} bytes of a body")));
        };
        if own > left.max(self.room.body_pages) {
            let (own, free) = (taken.pages[self.token], taken.free_pages);
            return Err(full(format!(
                "there is no room for another {bytes} bytes of this token's bodies: they hold {} \
                 bytes, {} are free, and a token leaves as much as it holds to others",
                own * PAGE_BYTES,
                free * PAGE_BYTES
            )));
        }
        (taken.free_pages, taken.pages[self.token]) = (left, own);
        drop(taken);
        self.pages += more;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.room.taken.lock();
        taken.free_pages += self.pages;
        taken.pages[self.token] -= self.pages;
    }
}

fn full(detail: String) -> Problem {
    Problem::new(
        429,
        "too_many_bytes_in_flight",
        "too many bytes are being worked on",
        detail,
        "send again after a moment, or raise `[limits] decode_bytes_in_flight_max`",
    )
    .retry_after(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Opens places of a body each until there are no more; the pages that they hold.
    fn take_all(room: &Arc<Room>, token: usize, body_pages: usize) -> (Vec<Place>, usize) {
        let mut places = Vec::new();
        loop {
            let mut place = room.place(token);
            let grown = (1..=body_pages).find(|pages| place.grow(pages * PAGE_BYTES).is_err());
            places.push(place);
            if grown.is_some() {
                let pages = places.iter().map(|place| place.pages).sum();
                return (places, pages);
            }
        }
    }

    #[test]
    fn each_token_leaves_as_much_as_it_takes() {
        let room = Room::new(1023 * PAGE_BYTES, 16 * PAGE_BYTES, 4, 4);
        let (first, pages) = take_all(&room, 0, 16);
        assert_eq!(pages, 512);
        let (second, pages) = take_all(&room, 1, 16);
        assert_eq!(pages, 256);
        assert!(room.place(0).grow(1).is_err(), "it holds more than there is left");
        room.place(2).grow(16 * PAGE_BYTES).unwrap();
        drop((first, second));
        let (_all, pages) = take_all(&room, 0, 16);
        assert_eq!(pages, 512, "it was given back");
    }

    #[test]
    fn one_body_is_never_too_much_and_all_of_them_never_more_than_there_is() {
        let room = Room::new(39 * PAGE_BYTES, 16 * PAGE_BYTES, 9, 9);
        let mut places: Vec<Place> = (0..3).map(|token| room.place(token)).collect();
        places[0].grow(16 * PAGE_BYTES).unwrap();
        places[1].grow(16 * PAGE_BYTES).unwrap();
        let told = places[2].grow(16 * PAGE_BYTES).unwrap_err();
        assert_eq!((told.status, told.code), (429, "too_many_bytes_in_flight"));
        places[2].grow(8 * PAGE_BYTES).unwrap();
        assert_eq!(room.taken.lock().free_pages, 0);
    }

    #[test]
    fn who_is_alone_takes_all() {
        for (tokens, senders) in [(0, 0), (1, 1), (3, 1)] {
            let room = Room::new(1023 * PAGE_BYTES, 16 * PAGE_BYTES, tokens, senders);
            assert_eq!(take_all(&room, 0, 16).1, 1024, "{senders} of {tokens} tokens");
        }
    }
}
