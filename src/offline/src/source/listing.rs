//! What a source's location was found to hold: its files, each with what its path says of its rows.
//! Knows no Parquet.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;
use arrow::datatypes::{DataType, Field, SchemaRef, TimeUnit};
use model::{Error, Result};
use object_store::ObjectMeta;
use percent_encoding::percent_decode_str;
use roaring::RoaringTreemap;

use crate::store::Bucket;

/// Hive's name for null in a path.
pub(crate) const HIVE_NULL: &str = "__HIVE_DEFAULT_PARTITION__";

/// One file, where it is.
#[derive(Clone, Debug)]
pub(crate) enum At {
    /// On this machine.
    Local(PathBuf),
    /// In an object store, as it was listed.
    Object(Bucket, Box<ObjectMeta>),
}

impl At {
    /// The path or URL.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Local(path) => path.display().to_string(),
            Self::Object(bucket, meta) => bucket.url(meta.location.as_ref()),
        }
    }
}

/// One file of a source.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// Where it is.
    pub(crate) at: At,
    /// The values of the partition columns, in their order; `None` is null.
    pub(crate) partition: Vec<Option<String>>,
    /// The rows, by their place in it, that are in it and do not count.
    pub(crate) deleted: Option<RoaringTreemap>,
}

impl Found {
    /// A file all of whose rows count.
    pub(crate) fn whole(at: At, partition: Vec<Option<String>>) -> Self {
        Self { at, partition, deleted: None }
    }
}

/// The files of a source as they are now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listing {
    /// In the order in which they are read.
    pub(crate) files: Vec<Found>,
    /// The partition columns; where the source itself says no type, that which fits all values.
    pub(crate) partitions: Vec<Arc<Field>>,
    /// The columns in the files, where the source says so (a Delta table), else those of the files.
    pub(crate) schema: Option<SchemaRef>,
}

impl Listing {
    /// Files with their paths below the source's root, whose segments `name=value` are columns.
    ///
    /// Errors: files that do not all have the same ones.
    pub(crate) fn hive(files: Vec<(At, String)>) -> Result<Self> {
        let mut names: Option<(Vec<String>, String)> = None;
        let mut found = Vec::with_capacity(files.len());
        for (at, below) in files {
            let folders = below.rsplit_once('/').map_or("", |(folders, _)| folders);
            let pairs: Vec<(&str, &str)> = folders.split('/').filter_map(|s| s.split_once('=')).collect();
            let own: Vec<String> = pairs.iter().map(|(name, _)| decode(name)).collect();
            match &names {
                None => names = Some((own, at.name())),
                Some((first, _)) if *first == own => {}
                Some((first, file)) => {
                    let list = |names: &[String]| if names.is_empty() { "none".into() } else { names.join(", ") };
                    return Err(Error::invalid(format!(
                        "the files of a source must have the same partition columns: {} has {}, {file} has {}: move \
                         what does not belong there, or name the files by a pattern",
                        at.name(),
                        list(&own),
                        list(first)
                    )));
                }
            }
            let partition = pairs.iter().map(|(_, v)| Some(decode(v)).filter(|v| v != HIVE_NULL)).collect();
            found.push(Found::whole(at, partition));
        }
        let names = names.map(|(names, _)| names).unwrap_or_default();
        let partitions = names.into_iter().enumerate().map(|(i, name)| {
            let values: Vec<&str> = found.iter().filter_map(|f| f.partition[i].as_deref()).collect();
            Arc::new(Field::new(name, type_of(&values), true))
        });
        let partitions = partitions.collect();
        Ok(Self { files: found, partitions, schema: None })
    }

    /// Puts further files behind, which have all columns in themselves: a column of this name is 1 in their rows, 0 in
    /// those of the files before.
    ///
    /// Errors: the paths of the files before say something of their rows, or a table's own log says which files there are.
    pub(crate) fn behind(&mut self, files: Vec<At>, column: &str) -> Result<()> {
        if !files.is_empty() && (self.schema.is_some() || !self.partitions.is_empty()) {
            return Err(Error::new(
                model::Kind::Unsupported,
                "it is partitioned or a Delta table, to which an event log cannot be added: make it a plain Parquet file or directory",
            ));
        }
        if !files.is_empty() {
            self.partitions = vec![Arc::new(Field::new(column, DataType::Int64, true))];
            for file in &mut self.files {
                file.partition = vec![Some("0".to_owned())];
            }
            self.files.extend(files.into_iter().map(|at| Found::whole(at, vec![Some("1".to_owned())])));
        }
        Ok(())
    }

    /// Local files below a root.
    pub(crate) fn local(root: &Path, files: Vec<PathBuf>) -> Result<Self> {
        let below = |path: PathBuf| {
            let below = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            (At::Local(path), below)
        };
        Self::hive(files.into_iter().map(below).collect())
    }
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The type that fits all values: whole numbers, days, times (without a zone in UTC), else text. As in pyarrow,
/// `01234` is a whole number and `+1` is none; it takes numbers beyond 32 bits, days and times for text.
fn type_of(values: &[&str]) -> DataType {
    let is_day = |v: &&str| {
        let shape = |(i, c): (usize, u8)| if i == 4 || i == 7 { c == b'-' } else { c.is_ascii_digit() };
        v.len() == 10 && v.bytes().enumerate().all(shape)
    };
    if values.is_empty() {
        DataType::Utf8
    } else if values.iter().all(|v| !v.starts_with('+') && v.parse::<i64>().is_ok()) {
        DataType::Int64
    } else if values.iter().all(is_day) {
        DataType::Date32
    } else if values.iter().all(|v| string_to_timestamp_nanos(v).is_ok()) {
        DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
    } else {
        DataType::Utf8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hive(paths: &[&str]) -> Result<Listing> {
        Listing::local(Path::new("/r"), paths.iter().map(PathBuf::from).collect())
    }

    #[test]
    fn folders_with_an_equals_sign_are_columns_of_the_type_that_fits_all() {
        let listing = hive(&[
            "/r/year=2023/day=2023-12-31/city=Den%20Haag/a.parquet",
            "/r/year=2024/day=2024-01-01/city=__HIVE_DEFAULT_PARTITION__/b=c.parquet",
        ])
        .expect("listing");
        let types: Vec<_> = listing.partitions.iter().map(|f| (f.name().as_str(), f.data_type().clone())).collect();
        assert_eq!(types, [("year", DataType::Int64), ("day", DataType::Date32), ("city", DataType::Utf8)]);
        let values: Vec<_> = listing.files.iter().map(|f| f.partition.clone()).collect();
        let own = |v: &str| Some(v.to_owned());
        assert_eq!(values[0], [own("2023"), own("2023-12-31"), own("Den Haag")]);
        assert_eq!(values[1], [own("2024"), own("2024-01-01"), None]);
        assert!(hive(&["/r/a.parquet", "/r/b/c.parquet"]).expect("plain").partitions.is_empty());
    }

    #[test]
    fn leading_zeros_are_numbers_and_plus_signs_are_not_as_in_pyarrow() {
        let of = |values: &[&str]| {
            let paths: Vec<String> = values.iter().map(|v| format!("/r/z={v}/a.parquet")).collect();
            let listing = hive(&paths.iter().map(String::as_str).collect::<Vec<_>>()).expect("listing");
            listing.partitions[0].data_type().clone()
        };
        assert_eq!(of(&["01234", "99999"]), DataType::Int64);
        assert_eq!(of(&["-1", "7"]), DataType::Int64);
        for texts in [["+1", "7"], ["1.5", "2"], ["a", "1"]] {
            assert_eq!(of(&texts), DataType::Utf8, "{texts:?}");
        }
    }

    #[test]
    fn files_of_other_partitions_are_refused_by_name() {
        for paths in [["/r/year=1/a.parquet", "/r/b.parquet"], ["/r/a=1/b=1/x.parquet", "/r/b=1/a=1/x.parquet"]] {
            let error = hive(&paths).expect_err("other columns");
            assert!(paths.iter().all(|p| error.message().contains(p)), "{}", error.message());
        }
    }
}
