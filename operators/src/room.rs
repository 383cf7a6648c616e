//! Room for bytes that come or go at their peer's pace (bodies that are being sent, answers that
//! are being read), and how much of it one token may hold. How long a peer takes is its own choice,
//! within a time; so without a share one token that asks for much and then pauses would have all
//! others turned away, for as long as it liked.
//!
//! # Promises
//!
//! * All together never hold more than there is, in whole pages.
//! * A token may hold as much as it leaves free. So whatever one token does, half of the room is
//!   there for the others; of what is left the next one may take half again, and so on.
//! * A token that holds no more than it is never asked about, or nothing but one place, may hold
//!   that wherever there is room for it.
//! * Who is alone (no token is configured, or one that may hold anything) may take all of it.
//!
//! Nobody waits for room: who gets none is to come back, and what a place held is given back at
//! once when it is dropped.

use parking_lot::Mutex;
use std::sync::Arc;

/// Room is counted in pages.
const PAGE_BYTES: usize = 4096;

/// All of it.
#[derive(Debug)]
pub struct Room {
    /// Pages that any token may hold, however little is left.
    unasked_pages: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug)]
struct Taken {
    free_pages: usize,
    /// By token.
    pages: Vec<usize>,
}

/// What one body or answer holds. Gives it back when it is dropped.
#[derive(Debug)]
pub struct Place {
    room: Arc<Room>,
    token: usize,
    pages: usize,
}

/// There is no room, or none for this token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    free_bytes: usize,
    /// What the token holds, if that is why.
    held_bytes: Option<usize>,
}

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let free = self.free_bytes;
        match self.held_bytes {
            None => write!(f, "{free} bytes are free"),
            Some(held) => write!(
                f,
                "this token holds {held} bytes, {free} are free, and a token leaves as much as it \
                 holds to others"
            ),
        }
    }
}

impl Room {
    /// For so many bytes, of which any token may hold `unasked_bytes`, held with `holders` of so
    /// many tokens.
    pub fn new(bytes_max: usize, unasked_bytes: usize, tokens: usize, holders: usize) -> Arc<Room> {
        let pages = bytes_max.div_ceil(PAGE_BYTES).max(1);
        let unasked_pages = match holders {
            0 | 1 => pages,
            _ => unasked_bytes.div_ceil(PAGE_BYTES),
        };
        let taken = Taken { free_pages: pages, pages: vec![0; tokens.max(1)] };
        Arc::new(Room { unasked_pages, taken: Mutex::new(taken) })
    }

    /// A place for something of which nothing is there yet, of the token with this number.
    pub fn place(self: &Arc<Self>, token: usize) -> Place {
        Place { room: Arc::clone(self), token, pages: 0 }
    }
}

impl Place {
    /// Makes it so large that it holds `bytes`.
    ///
    /// # Errors
    /// When there is no room, or none for this token; the place is as it was.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Full> {
        let more = bytes.div_ceil(PAGE_BYTES).saturating_sub(self.pages);
        if more == 0 {
            return Ok(());
        }
        let mut taken = self.room.taken.lock();
        let held = taken.pages[self.token];
        let full = |held_bytes| Full { free_bytes: taken.free_pages * PAGE_BYTES, held_bytes };
        let left = taken.free_pages.checked_sub(more).ok_or_else(|| full(None))?;
        let is_only_one = held == self.pages;
        if !is_only_one && held + more > left.max(self.room.unasked_pages) {
            return Err(full(Some(held * PAGE_BYTES)));
        }
        (taken.free_pages, taken.pages[self.token]) = (left, held + more);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Opens places of so many pages each until there are no more; the pages that they hold.
    fn take_all(room: &Arc<Room>, token: usize, place_pages: usize) -> (Vec<Place>, usize) {
        let mut places = Vec::new();
        loop {
            let mut place = room.place(token);
            let grown = (1..=place_pages).find(|pages| place.grow(pages * PAGE_BYTES).is_err());
            places.push(place);
            if grown.is_some() {
                let pages = places.iter().map(|place| place.pages).sum();
                return (places, pages);
            }
        }
    }

    #[test]
    fn each_token_leaves_as_much_as_it_takes() {
        let room = Room::new(1024 * PAGE_BYTES, 16 * PAGE_BYTES, 4, 4);
        let (first, pages) = take_all(&room, 0, 16);
        assert_eq!(pages, 512);
        let (second, pages) = take_all(&room, 1, 16);
        assert_eq!(pages, 256);
        let told = room.place(0).grow(1).unwrap_err().to_string();
        assert!(told.starts_with("this token holds 2097152 bytes, 1048576 are free"), "{told}");
        room.place(2).grow(16 * PAGE_BYTES).unwrap();
        drop((first, second));
        let (_all, pages) = take_all(&room, 0, 16);
        assert_eq!(pages, 512, "it was given back");
    }

    #[test]
    fn one_place_is_never_too_much_and_all_of_them_never_more_than_there_is() {
        let room = Room::new(40 * PAGE_BYTES, 8 * PAGE_BYTES, 9, 9);
        let mut places: Vec<Place> = (0..4).map(|token| room.place(token)).collect();
        places[0].grow(16 * PAGE_BYTES).unwrap();
        places[1].grow(16 * PAGE_BYTES).unwrap();
        let told = places[2].grow(16 * PAGE_BYTES).unwrap_err().to_string();
        assert_eq!(told, "32768 bytes are free");
        places[2].grow(6 * PAGE_BYTES).unwrap();
        assert!(room.place(0).grow(1).is_err(), "it holds another, and more than is left");
        places[3].grow(1).unwrap();
        places.push(room.place(2));
        places[4].grow(1).unwrap();
        assert_eq!(room.taken.lock().free_pages, 0);
    }

    #[test]
    fn who_is_alone_takes_all() {
        for (tokens, holders) in [(0, 0), (1, 1), (3, 1)] {
            let room = Room::new(1024 * PAGE_BYTES, 16 * PAGE_BYTES, tokens, holders);
            assert_eq!(take_all(&room, 0, 16).1, 1024, "{holders} of {tokens} tokens");
        }
    }
}
