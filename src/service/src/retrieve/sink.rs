//! What takes a read's rows from the store, for the views of one group. Knows no request.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use model::Row;
use model::answer::Gather;
use model::ports::RowSink;
use model::row::RowRef;

/// The views of one group, each taking the rows of its table.
pub(super) struct Gathers(pub(super) Vec<Gather>);

impl RowSink for Gathers {
    fn push(&mut self, table: usize, row: Option<RowRef<'_>>) {
        self.0[table].push(row);
    }
}

/// Takes one row for each distinct entity, and gives it to all the places where that one stands: they have
/// one answer, whatever is written meanwhile.
pub(super) struct Repeated<'a, S> {
    of: &'a mut S,
    /// For each key the position where it stands first.
    first: Vec<usize>,
    /// Whether a key stands again further on.
    again: Vec<bool>,
    /// The place of the next row, for each table.
    next: Vec<usize>,
    kept: HashMap<(usize, usize), Option<Row>, RandomState>,
}

impl<'a, S: RowSink> Repeated<'a, S> {
    pub(super) fn new(of: &'a mut S, first: Vec<usize>, tables: usize) -> Self {
        let mut again = vec![false; first.len()];
        for (at, first) in first.iter().enumerate() {
            again[*first] |= *first != at;
        }
        Self { of, first, again, next: vec![0; tables], kept: HashMap::default() }
    }
}

impl<S: RowSink> RowSink for Repeated<'_, S> {
    fn push(&mut self, table: usize, row: Option<RowRef<'_>>) {
        let at = self.next[table];
        if self.again[at] {
            self.kept.insert((table, at), row.map(RowRef::to_row));
        }
        self.of.push(table, row);
        let mut next = at + 1;
        while let Some(first) = self.first.get(next).copied().filter(|first| *first != next) {
            let kept = self.kept.get(&(table, first)).and_then(Option::as_ref);
            self.of.push(table, kept.map(Row::borrowed));
            next += 1;
        }
        self.next[table] = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use model::row::{Column, Version};

    /// Notes what it is given.
    #[derive(Default)]
    struct Noted(Vec<(usize, Option<Row>)>);

    impl RowSink for Noted {
        fn push(&mut self, table: usize, row: Option<RowRef<'_>>) {
            self.0.push((table, row.map(RowRef::to_row)));
        }
    }

    fn row(value: &'static [u8]) -> Row {
        Row::pack(vec![Column { id: 1, value: Bytes::from_static(value), version: Version::default() }])
    }

    #[test]
    fn rows_stand_wherever_their_entity_stands() {
        // The keys x y x y z x, of two tables; x and z have rows.
        let mut noted = Noted::default();
        let mut sink = Repeated::new(&mut noted, vec![0, 1, 0, 1, 4, 0], 2);
        for row in [Some(row(b"x")), None, Some(row(b"z"))] {
            sink.push(0, row.as_ref().map(Row::borrowed));
            sink.push(1, None);
        }
        let of = |table| noted.0.iter().filter(move |(at, _)| *at == table).map(|(_, row)| row.clone());
        let (x, z) = (Some(row(b"x")), Some(row(b"z")));
        assert!(of(0).eq([x.clone(), None, x.clone(), None, z, x]));
        assert!(of(1).eq([None, None, None, None, None, None]));
    }
}
