//! The packed row: all features of one view for one entity, with their event times, in one piece of
//! bytes; and the column-wise merge that decides which write wins.
//!
//! Knows no store: a store keeps these bytes (and adds its own checksum), and calls [`merge`].
//!
//! Layout, little-endian: `u8` version (1), `u8` flags (1: a time per column), `u16` columns n,
//! `i64` event time µs, `i64` created time µs (0 = none), n × (`u32` column id, `u32` end of value),
//! then, if flagged, n × (`i64` event time, `i64` created time), then the values: each the protobuf
//! bytes of a `feast.types.Value`. Columns are sorted by id; the id is a hash of the feature's name.

mod borrowed;

use bytes::Bytes;

use crate::time::Timestamp;
pub(crate) use borrowed::{Columns, SlimColumns};
pub use borrowed::{RowRef, Slim, Stored};

/// The id under which a feature stands in a row: FNV-1a (32 bits) of its name.
pub fn column_id(feature: &str) -> u32 {
    feature.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// When a value was true, and when it was recorded. A later [`Version`] replaces an earlier one, and
/// an equal one is a correction: the later arrival wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The event timestamp.
    pub event: Timestamp,
    /// The created timestamp; 0 where the writer gave none.
    pub created: Timestamp,
}

/// One feature's value in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// [`column_id`] of the feature's name.
    pub id: u32,
    /// The protobuf bytes of the `feast.types.Value`; empty is null.
    pub value: Bytes,
    /// When this value was true.
    pub version: Version,
}

/// A row's bytes, checked once ([`Row::open`]) and then read in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row(Bytes);

const HEADER: usize = 20;
const VERSION: u8 = 1;
const TIME_PER_COLUMN: u8 = 1;

impl Row {
    /// Packs columns (in any order; of two with one id the later stands) into a row.
    pub fn pack(columns: Vec<Column>) -> Self {
        Self::packed(None, columns)
    }

    /// [`Row::pack`] with some of a row's columns, and the newest version among all of them.
    pub fn pack_part(of_all: Version, columns: Vec<Column>) -> Self {
        Self::packed(Some(of_all), columns)
    }

    fn packed(of_all: Option<Version>, mut columns: Vec<Column>) -> Self {
        columns.reverse();
        columns.sort_by_key(|c| c.id);
        columns.dedup_by_key(|c| c.id);
        let newest = columns.iter().map(|c| c.version).max().max(of_all).unwrap_or_default();
        let shared = columns.iter().all(|c| c.version == newest);
        let values: usize = columns.iter().map(|c| c.value.len()).sum();
        // not a byte more, which rows that wait in memory would keep
        let mut out = Vec::with_capacity(HEADER + columns.len() * if shared { 8 } else { 24 } + values);
        out.extend_from_slice(&[VERSION, if shared { 0 } else { TIME_PER_COLUMN }]);
        out.extend_from_slice(&(columns.len() as u16).to_le_bytes());
        put_version(&mut out, newest);
        let mut end = 0u32;
        for column in &columns {
            end += column.value.len() as u32;
            out.extend_from_slice(&column.id.to_le_bytes());
            out.extend_from_slice(&end.to_le_bytes());
        }
        if !shared {
            for column in &columns {
                put_version(&mut out, column.version);
            }
        }
        for column in &columns {
            out.extend_from_slice(&column.value);
        }
        Self(out.into())
    }

    /// Packs values of one version; the ids ascend, none of them twice.
    ///
    /// # Panics
    /// Where there are more values than ids, or fewer.
    pub fn pack_shared<'a>(version: Version, ids: &[u32], values: impl Iterator<Item = &'a [u8]> + Clone) -> Self {
        let length: usize = values.clone().map(<[u8]>::len).sum();
        let mut out = Vec::with_capacity(HEADER + ids.len() * 8 + length);
        out.extend_from_slice(&[VERSION, 0]);
        out.extend_from_slice(&(ids.len() as u16).to_le_bytes());
        put_version(&mut out, version);
        let mut end = 0u32;
        let mut ends = values.clone();
        for id in ids {
            end += ends.next().map_or(0, <[u8]>::len) as u32;
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&end.to_le_bytes());
        }
        values.for_each(|value| out.extend_from_slice(value));
        assert_eq!(length, end as usize, "one value for each id");
        Self(out.into())
    }

    /// Checks bytes that a store returned; `None` where they are no row of this version.
    pub fn open(bytes: Bytes) -> Option<Self> {
        let row = Stored::of_checked(&bytes);
        let sane = bytes.len() >= HEADER && bytes[0] == VERSION && bytes.len() >= row.values_start();
        if !sane {
            return None;
        }
        let ends = || (0..row.len()).map(|i| row.end(i));
        let ordered = ends().zip(ends().skip(1)).all(|(a, b)| a <= b);
        let whole = row.values_start() + ends().next_back().unwrap_or(0) == bytes.len();
        let sorted = (1..row.len()).all(|i| row.id(i - 1) < row.id(i));
        (ordered && whole && sorted).then_some(Self(bytes))
    }

    /// The bytes to store.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The same row, borrowed.
    pub fn borrowed(&self) -> RowRef<'_> {
        RowRef::Stored(self.stored())
    }

    fn stored(&self) -> Stored<'_> {
        Stored::of_checked(&self.0)
    }

    /// The number of columns.
    pub fn len(&self) -> usize {
        self.stored().len()
    }

    /// Whether the row has no column.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The newest version among the columns.
    pub fn newest(&self) -> Version {
        self.stored().newest()
    }

    /// The value bytes and version of the column with this id; `None` where it was never written.
    pub fn get(&self, id: u32) -> Option<(Bytes, Version)> {
        let row = self.stored();
        row.position(id).map(|at| (self.value(at), row.version(at)))
    }

    /// All columns, in the order of their ids.
    pub fn columns(&self) -> Vec<Column> {
        let row = self.stored();
        (0..row.len()).map(|i| Column { id: row.id(i), value: self.value(i), version: row.version(i) }).collect()
    }

    fn value(&self, index: usize) -> Bytes {
        let (start, end) = self.stored().span(index);
        self.0.slice(start..end)
    }
}

fn put_version(out: &mut Vec<u8>, version: Version) {
    out.extend_from_slice(&version.event.0.to_le_bytes());
    out.extend_from_slice(&version.created.0.to_le_bytes());
}

/// The row after a write: column by column, the new value stands unless the stored one is newer.
/// `None` where nothing of the write is applied, because every column of it is stale.
pub fn merge(stored: Option<&Row>, written: &Row) -> Option<Row> {
    let Some(stored) = stored else { return Some(written.clone()) };
    if same_columns(&stored.0, &written.0) {
        return (written.newest() >= stored.newest()).then(|| written.clone());
    }
    let fresh: Vec<Column> = written
        .columns()
        .into_iter()
        .filter(|c| stored.get(c.id).is_none_or(|(_, version)| c.version >= version))
        .collect();
    if fresh.is_empty() && !written.is_empty() {
        return None;
    }
    if fresh.len() == written.len() && stored.columns().iter().all(|c| written.get(c.id).is_some()) {
        return Some(written.clone());
    }
    let mut columns = stored.columns();
    columns.extend(fresh);
    Some(Row::pack(columns))
}

/// Whether two rows have the same columns and each has one time for all of them.
fn same_columns(a: &[u8], b: &[u8]) -> bool {
    let ids = |row: &[u8]| {
        let n = usize::from(u16::from_le_bytes([row[2], row[3]]));
        (HEADER..HEADER + n * 8).step_by(8)
    };
    a[1] & TIME_PER_COLUMN == 0 && a[..4] == b[..4] && ids(a).all(|at| a[at..at + 4] == b[at..at + 4])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn column(id: u32, value: &[u8], event: i64) -> Column {
        Column {
            id,
            value: Bytes::copy_from_slice(value),
            version: Version { event: Timestamp(event), created: Timestamp(0) },
        }
    }

    /// Id, value, event time, created time.
    type Cell = (u32, Vec<u8>, i64, i64);

    fn writes() -> impl Strategy<Value = Vec<Vec<Cell>>> {
        let column = (0u32..5, proptest::collection::vec(any::<u8>(), 0..4), 0i64..4, 0i64..2);
        proptest::collection::vec(proptest::collection::vec(column, 1..5), 1..8)
    }

    #[test]
    fn a_row_takes_no_more_memory_than_its_bytes() {
        for second in [1, 2] {
            let row = Row::pack((0..10).map(|id| column(id, b"value", if id == 3 { second } else { 1 })).collect());
            let length = row.as_bytes().len();
            let bytes = row.0.try_into_mut().expect("nobody else has it");
            assert_eq!(bytes.capacity(), length);
        }
    }

    proptest! {
        /// Any sequence of partial writes leaves, per column, the last arrival among those with the
        /// greatest version: what a map from column to (version, value) would hold.
        #[test]
        fn merge_is_last_write_wins_by_column(writes in writes()) {
            let mut oracle: BTreeMap<u32, (Version, Vec<u8>)> = BTreeMap::new();
            let mut stored: Option<Row> = None;
            for write in writes {
                let mut last: BTreeMap<u32, Column> = BTreeMap::new();
                for (id, value, event, created) in write {
                    let version = Version { event: Timestamp(event), created: Timestamp(created) };
                    last.insert(id, Column { id, value: value.into(), version });
                }
                for c in last.values() {
                    let newer = oracle.get(&c.id).is_none_or(|(v, _)| c.version >= *v);
                    if newer {
                        oracle.insert(c.id, (c.version, c.value.to_vec()));
                    }
                }
                let row = Row::pack(last.into_values().collect());
                if let Some(merged) = merge(stored.as_ref(), &row) {
                    stored = Some(Row::open(merged.as_bytes().clone()).expect("opens"));
                }
            }
            let row = stored.expect("the first write is always applied");
            prop_assert_eq!(row.len(), oracle.len());
            for (id, (version, value)) in oracle {
                prop_assert_eq!(row.get(id), Some((Bytes::from(value), version)));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), fix in any::<bool>()) {
            let mut bytes = bytes;
            if fix && bytes.len() > 4 {
                bytes[0] = VERSION;
                bytes[2] %= 4;
                bytes[3] = 0;
            }
            if let Some(row) = Row::open(bytes.into()) {
                let _ = (row.columns(), row.newest(), row.get(0));
            }
        }
    }

    proptest! {
        #[test]
        fn values_of_one_version_are_packed_as_columns_are(
            values in proptest::collection::btree_map(any::<u32>(), proptest::collection::vec(any::<u8>(), 0..9), 0..6),
            event: i64, created: i64,
        ) {
            let version = Version { event: Timestamp(event), created: Timestamp(created) };
            let columns = values.iter().map(|(id, value)| Column { id: *id, value: value.clone().into(), version });
            let ids: Vec<_> = values.keys().copied().collect();
            let packed = Row::pack_shared(version, &ids, values.values().map(Vec::as_slice));
            if !ids.is_empty() {
                prop_assert_eq!(packed, Row::pack(columns.collect()));
            }
        }
    }

    #[test]
    fn a_shared_time_costs_no_time_per_column() {
        let shared = Row::pack(vec![column(1, b"ab", 5), column(2, b"c", 5)]);
        let split = Row::pack(vec![column(1, b"ab", 5), column(2, b"c", 6)]);
        assert_eq!(shared.as_bytes().len() + 2 * 16, split.as_bytes().len());
        assert_eq!(split.get(1).expect("column").1.event, Timestamp(5));
        assert_eq!(split.newest().event, Timestamp(6));
    }
}
