//! Memory that one answer's values leave for the next one's: it is much, and needed for a short time. Knows no value.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

/// The most buffers that wait, and the most bytes of one.
const KEPT: usize = 64;
const LARGEST: usize = 256 << 10;

/// Buffers that wait for the next answers.
#[derive(Debug, Default)]
pub struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// A buffer of at least `size` bytes. What stands in it is anything.
    pub(super) fn take(self: &Arc<Self>, size: usize) -> Buffer {
        // Whoever would have to wait makes a buffer instead.
        let waiting = self.0.try_lock().ok().and_then(|mut waiting| waiting.pop());
        let mut bytes = waiting.unwrap_or_default();
        if bytes.len() < size {
            bytes.clear();
            bytes.resize(size, 0);
        }
        Buffer { bytes, home: Some(Arc::clone(self)) }
    }
}

/// A buffer, and where it goes when nobody needs it.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    home: Option<Arc<Buffers>>,
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, home: None }
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        self.bytes.clone().into()
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(home) = self.home.take().filter(|_| self.bytes.len() <= LARGEST)
            && let Ok(mut waiting) = home.0.try_lock()
            && waiting.len() < KEPT
        {
            waiting.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_unless_it_is_large() {
        let buffers = Arc::new(Buffers::default());
        let mut first = buffers.take(100);
        first[0] = 7;
        let place = first.as_ptr();
        drop(first);
        let second = buffers.take(50);
        assert_eq!((second.as_ptr(), second.len(), second[0]), (place, 100, 7));
        assert_ne!(second.clone().as_ptr(), place);
        drop(second);
        assert_eq!(buffers.take(LARGEST + 1).len(), LARGEST + 1);
        assert_eq!(buffers.0.lock().expect("no panic").len(), 0, "it was made larger, and is not kept");
    }

    #[test]
    fn not_all_buffers_are_kept() {
        let buffers = Arc::new(Buffers::default());
        let all: Vec<_> = (0..KEPT + 5).map(|_| buffers.take(8)).collect();
        drop(all);
        assert_eq!(buffers.0.lock().expect("no panic").len(), KEPT);
    }
}
