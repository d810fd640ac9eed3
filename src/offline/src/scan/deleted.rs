//! The rows of a file that are left where some do not count. The Parquet reader gets them before any filter, so what it
//! leaves out of row groups and pages is left out of these. Knows no table format.

use arrow::array::BooleanBufferBuilder;
use datafusion::datasource::physical_plan::parquet::ParquetRowSelection;
use model::{Error, Result};
use parquet::arrow::arrow_reader::RowSelection;
use roaring::RoaringTreemap;

/// The rows of a file that count.
#[derive(Debug)]
pub(super) struct Left {
    selection: RowSelection,
    rows: u64,
}

impl Left {
    /// What is left of so many rows.
    ///
    /// Errors: a row that is not in the file.
    pub(super) fn of(deleted: &RoaringTreemap, rows: u64, name: &str) -> Result<Self> {
        let beyond = || {
            Error::invalid(format!(
                "the deletion vector of {name} has rows beyond the file's {rows}: it is of another file; restore the \
                 table to an earlier version, or write it anew"
            ))
        };
        if deleted.max().is_some_and(|last| last >= rows) {
            return Err(beyond());
        }
        let all = usize::try_from(rows).map_err(|_| beyond())?;
        // A bit for each row: runs of rows would take 32 bytes for each that is gone, and are made while a file is read.
        let mut counts = BooleanBufferBuilder::new(all);
        counts.append_n(all, true);
        for row in deleted {
            counts.set_bit(row as usize, false);
        }
        Ok(Self { selection: RowSelection::from_boolean_buffer(counts.finish()), rows: rows - deleted.len() })
    }

    /// How many there are.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// As the scan of the whole file takes it.
    pub(super) fn selection(&self) -> ParquetRowSelection {
        ParquetRowSelection::new(self.selection.clone())
    }
}

#[cfg(test)]
mod tests {
    use parquet::arrow::arrow_reader::RowSelector;

    use super::*;

    #[test]
    fn rows_are_left_between_those_that_do_not_count() {
        let of = |deleted: &[u64], rows| Left::of(&deleted.iter().copied().collect(), rows, "a.parquet");
        let selectors = |deleted: &[u64], rows| -> Vec<RowSelector> {
            let left = of(deleted, rows).expect("of this file");
            assert_eq!(left.rows(), rows - deleted.len() as u64);
            left.selection.into()
        };
        let (skip, select) = (RowSelector::skip, RowSelector::select);
        assert_eq!(selectors(&[0, 3, 4], 7), [skip(1), select(2), skip(2), select(2)]);
        assert_eq!(selectors(&[6], 7), [select(6), skip(1)]);
        assert_eq!(selectors(&[0, 1], 2), [skip(2)]);
        assert_eq!(selectors(&[], 2), [select(2)]);
        let error = of(&[1, 7], 7).expect_err("row 7 of 7");
        assert!(error.message().contains("a.parquet has rows beyond the file's 7"), "{}", error.message());
    }
}
