//! A piece of a growing sequence that an image can have without copying it: taking an image shares
//! the pieces, and who writes to a shared piece copies it first, or takes it back if nobody holds
//! it any more. So taking an image costs a reference a piece, and what a write pays is a branch.
//!
//! A piece that is still shared when the next image is taken has not been written to since: that is
//! how an image of an increment knows what it can leave out.

use std::sync::Arc;

/// A piece: one's own, or shared with an image.
#[derive(Debug)]
pub(crate) enum Segment<T> {
    Own(Vec<T>),
    Shared(Arc<Vec<T>>),
}

impl<T: Clone> Segment<T> {
    pub(crate) const fn new() -> Self {
        Segment::Own(Vec::new())
    }

    #[inline]
    pub(crate) fn as_slice(&self) -> &[T] {
        match self {
            Segment::Own(own) => own,
            Segment::Shared(shared) => shared,
        }
    }

    /// To write to.
    #[inline]
    pub(crate) fn to_mut(&mut self) -> &mut Vec<T> {
        if let Segment::Shared(shared) = self {
            *self = Segment::Own(take_back(shared));
        }
        match self {
            Segment::Own(own) => own,
            Segment::Shared(_) => unreachable!("it was taken back"),
        }
    }

    /// Whether it was written to since it was last shared.
    pub(crate) fn is_changed(&self) -> bool {
        matches!(self, Segment::Own(_))
    }

    /// For an image.
    pub(crate) fn share(&mut self) -> Arc<Vec<T>> {
        let shared = match self {
            Segment::Own(own) => Arc::new(std::mem::take(own)),
            Segment::Shared(shared) => return Arc::clone(shared),
        };
        *self = Segment::Shared(Arc::clone(&shared));
        shared
    }

    pub(crate) fn bytes(&self) -> usize {
        let capacity = match self {
            Segment::Own(own) => own.capacity(),
            Segment::Shared(shared) => shared.capacity(),
        };
        capacity * size_of::<T>()
    }
}

#[cold]
fn take_back<T: Clone>(shared: &mut Arc<Vec<T>>) -> Vec<T> {
    match Arc::get_mut(shared) {
        Some(own) => std::mem::take(own),
        // With the room that it had: what is written to may grow as well.
        None => {
            let mut copy = Vec::with_capacity(shared.capacity());
            copy.extend_from_slice(shared);
            copy
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_keeps_what_it_has_and_the_segment_goes_on() {
        let mut segment = Segment::new();
        segment.to_mut().extend([1, 2]);
        assert!(segment.is_changed());
        let image = segment.share();
        assert!(!segment.is_changed());
        assert!(Arc::ptr_eq(&image, &segment.share()), "sharing again copies nothing");
        segment.to_mut().push(3);
        assert!(segment.is_changed());
        assert_eq!((&image[..], segment.as_slice()), (&[1, 2][..], &[1, 2, 3][..]));

        let place = segment.as_slice().as_ptr();
        drop(segment.share());
        segment.to_mut()[0] = 9;
        assert_eq!(segment.as_slice(), [9, 2, 3]);
        assert_eq!(segment.as_slice().as_ptr(), place, "nobody held it, so nothing was copied");
    }
}
