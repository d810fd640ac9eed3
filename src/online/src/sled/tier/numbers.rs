//! Numbers for what stands in many blocks: tables, and the ids of rows' columns. Knows no block.

use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::quality::RandomState;

/// Sequences, each with a number. They stay as long as this does.
pub(super) struct Numbers<T> {
    by_sequence: papaya::HashMap<Arc<[T]>, u32, RandomState>,
    by_number: papaya::HashMap<u32, Arc<[T]>, RandomState>,
    /// How many there are.
    count: Mutex<u32>,
}

impl<T> Default for Numbers<T> {
    fn default() -> Self {
        Self { by_sequence: papaya::HashMap::default(), by_number: papaya::HashMap::default(), count: Mutex::default() }
    }
}

impl<T: Clone + Eq + Hash> Numbers<T> {
    /// The number of a sequence that has one.
    pub(super) fn known(&self, sequence: &[T]) -> Option<u32> {
        self.by_sequence.pin().get(sequence).copied()
    }

    /// The number of a sequence; `None` where it has none and there are `most` already.
    pub(super) fn number(&self, sequence: &[T], most: usize) -> Option<u32> {
        if let Some(number) = self.known(sequence) {
            return Some(number);
        }
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = self.known(sequence) {
            return Some(number);
        }
        if *count as usize >= most {
            return None;
        }
        let (number, sequence): (_, Arc<[T]>) = (*count, sequence.into());
        *count += 1;
        // Whoever finds the number finds the sequence.
        self.by_number.pin().insert(number, Arc::clone(&sequence));
        self.by_sequence.pin().insert(sequence, number);
        Some(number)
    }

    /// To look up sequences.
    pub(super) fn pin(&self) -> Pinned<'_, T> {
        Pinned(self.by_number.pin())
    }
}

/// A look at all sequences.
pub(super) struct Pinned<'a, T>(papaya::HashMapRef<'a, u32, Arc<[T]>, RandomState, papaya::LocalGuard<'a>>);

impl<T> Pinned<'_, T> {
    /// The sequence with this number.
    pub(super) fn get(&self, number: u32) -> Option<&[T]> {
        self.0.get(&number).map(|sequence| &**sequence)
    }
}
