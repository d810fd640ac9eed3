//! Records of so many words each, in their order: one piece of memory, from whose front records go and at whose end they
//! come. Knows nothing of what the words are.

/// The records. Their width is not kept here: whoever asks says it, always the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ring {
    words: Box<[u64]>,
    head: u32,
    len: u32,
    /// How many there is room for.
    capacity: u32,
}

impl Ring {
    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    /// How many records there is room for.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// The place in memory of a record.
    fn slot(&self, at: usize) -> usize {
        let (slot, capacity) = (self.head as usize + at, self.capacity());
        if slot < capacity { slot } else { slot - capacity }
    }

    fn begin(&self, width: usize, at: usize) -> usize {
        self.slot(at) * width
    }

    /// The record of that place, which must be there.
    pub(crate) fn get(&self, width: usize, at: usize) -> &[u64] {
        let begin = self.begin(width, at);
        &self.words[begin..begin + width]
    }

    /// The same, to be changed.
    pub(crate) fn get_mut(&mut self, width: usize, at: usize) -> &mut [u64] {
        let begin = self.begin(width, at);
        &mut self.words[begin..begin + width]
    }

    /// All records.
    pub(crate) fn iter(&self, width: usize) -> impl DoubleEndedIterator<Item = &[u64]> + ExactSizeIterator {
        (0..self.len()).map(move |at| self.get(width, at))
    }

    /// The first place whose record is not so; all before it are, and none behind it.
    pub(crate) fn partition_point(&self, width: usize, is: impl Fn(&[u64]) -> bool) -> usize {
        let (mut from, mut to) = (0, self.len());
        while from < to {
            let middle = usize::midpoint(from, to);
            if is(self.get(width, middle)) { from = middle + 1 } else { to = middle }
        }
        from
    }

    /// Puts a record behind all others.
    pub(crate) fn push(&mut self, record: &[u64]) {
        let (width, at) = (record.len(), self.len());
        if at == self.capacity() {
            // each step is a copy to memory that is new
            self.resize(width, at + at.max(2));
        }
        self.len += 1;
        self.get_mut(width, at).copy_from_slice(record);
    }

    /// Puts a record before that of a place.
    pub(crate) fn insert(&mut self, at: usize, record: &[u64]) {
        self.push(record);
        let width = record.len();
        for behind in (at + 1..self.len()).rev() {
            let (from, to) = (self.begin(width, behind - 1), self.begin(width, behind));
            self.words.copy_within(from..from + width, to);
        }
        self.get_mut(width, at).copy_from_slice(record);
    }

    /// Takes records from the front.
    pub(crate) fn drop_front(&mut self, records: usize) {
        self.head = self.slot(records) as u32;
        self.len -= records as u32;
    }

    /// Makes room for so many, of which no more may be here.
    pub(crate) fn resize(&mut self, width: usize, records: usize) {
        let mut words = Vec::with_capacity(records * width);
        self.iter(width).for_each(|record| words.extend_from_slice(record));
        words.resize(records * width, 0);
        (self.words, self.head, self.capacity) = (words.into_boxed_slice(), 0, records as u32);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(u64),
        Insert(usize, u64),
        Drop(usize),
        Shrink,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => any::<u64>().prop_map(Step::Push),
            2 => (0..20usize, any::<u64>()).prop_map(|(at, word)| Step::Insert(at, word)),
            2 => (0..4usize).prop_map(Step::Drop),
            1 => Just(Step::Shrink),
        ]
    }

    proptest! {
        #[test]
        fn it_is_a_list(width in 1..4usize, steps in prop::collection::vec(step(), 0..60)) {
            let (mut ring, mut list) = (Ring::default(), VecDeque::new());
            let record = |word: u64| (0..width as u64).map(|n| word.wrapping_add(n)).collect::<Vec<_>>();
            for step in steps {
                match step {
                    Step::Push(word) => {
                        ring.push(&record(word));
                        list.push_back(record(word));
                    }
                    Step::Insert(at, word) => {
                        let at = at.min(list.len());
                        ring.insert(at, &record(word));
                        list.insert(at, record(word));
                    }
                    Step::Drop(n) => {
                        let n = n.min(list.len());
                        ring.drop_front(n);
                        list.drain(..n);
                    }
                    Step::Shrink => ring.resize(width, list.len()),
                }
                prop_assert_eq!(ring.iter(width).map(<[u64]>::to_vec).collect::<VecDeque<_>>(), list.clone());
                prop_assert!(ring.capacity() >= list.len());
            }
        }
    }
}
