//! Local files: written under a hidden name, made durable, and renamed.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::StreamExt;
use model::Result;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{behind, properties};
use crate::engine::blocking;
use crate::error::{arrow as arrow_error, damaged, io, parquet as parquet_error};
use crate::history::Export;
use crate::source::Location;

/// Writes the batches into a new file of a directory, or behind those of a file. Writers of one file
/// wait for each other, those of other processes too. Blocks.
pub(super) fn append(location: &Location, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<u64> {
    let target = match location {
        Location::Directory(dir) => dir.join(format!("{}.parquet", uuid::Uuid::new_v4().simple())),
        file => file.path(),
    };
    loop {
        let old = hold(&target)?;
        let part = rewrite(&target, old.as_ref(), schema, batches)?;
        let rows = batches.iter().map(|b| b.num_rows() as u64).sum();
        if part.commit(if old.is_some() { Place::Replaced } else { Place::New })? {
            return Ok(rows);
        }
    }
}

/// The file that is at a path, locked until it is closed; `None` where there is none.
fn hold(target: &Path) -> Result<Option<File>> {
    loop {
        let file = match File::open(target) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io("opening", target, e)),
        };
        match file.lock() {
            // Not every file system has locks; writers of this process wait for each other all the same.
            Err(e) if e.kind() != ErrorKind::Unsupported => return Err(io("locking", target, e)),
            _ => {}
        }
        // Who had the lock before may have put another file there.
        let held = file.metadata().map_err(|e| io("opening", target, e))?;
        match std::fs::metadata(target) {
            Ok(now) if (now.dev(), now.ino()) == (held.dev(), held.ino()) => return Ok(Some(file)),
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(io("opening", target, e)),
        }
    }
}

/// A file with the rows of the old one, if there is one, and the batches behind them.
fn rewrite(target: &Path, old: Option<&File>, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Part> {
    let name = target.display().to_string();
    let bad = |e: &_| damaged(&name, e);
    let Some(file) = old else {
        let mut part = Part::begin(target, schema)?;
        for batch in batches {
            part.write(&behind(batch, schema, &name)?)?;
        }
        return Ok(part);
    };
    let file = file.try_clone().map_err(|e| io("opening", target, e))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| bad(&e))?;
    let schema = reader.schema().clone();
    let mut part = Part::begin(target, &schema)?;
    for batch in reader.build().map_err(|e| bad(&e))? {
        part.write(&batch.map_err(arrow_error)?)?;
    }
    for batch in batches {
        part.write(&behind(batch, &schema, &name)?)?;
    }
    Ok(part)
}

/// Writes a result over what is at a path.
pub(super) async fn export(path: PathBuf, mut export: Export) -> Result<u64> {
    let target = if path.extension().is_some_and(|e| e == "parquet") { path.clone() } else { path.join("0.parquet") };
    let mut part = Part::begin(&target, &export.schema)?;
    while let Some(batch) = export.batches.next().await {
        let batch = batch?;
        part = blocking(move || {
            part.write(&batch)?;
            Ok(part)
        })
        .await?;
    }
    blocking(move || {
        let (rows, replaced) = (part.rows, Location::of_path(&path.to_string_lossy(), Path::new("")).files()?);
        part.commit(Place::Replaced)?;
        for old in replaced.into_iter().filter(|old| *old != target) {
            std::fs::remove_file(&old).map_err(|e| io("removing", &old, e))?;
        }
        Ok(rows)
    })
    .await
}

/// What is at the target of a file in the making.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Nothing, as far as is known.
    New,
    /// A file that goes, if there is one.
    Replaced,
}

/// A file in the making, beside its target; removed unless it is committed.
pub(crate) struct Part {
    target: PathBuf,
    hidden: PathBuf,
    writer: Option<ArrowWriter<File>>,
    rows: u64,
}

impl Part {
    pub(crate) fn begin(target: &Path, schema: &SchemaRef) -> Result<Self> {
        let dir = target.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir).map_err(|e| io("creating", dir, e))?;
        let name = target.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let hidden = dir.join(format!(".{name}.{}.part", uuid::Uuid::new_v4().simple()));
        let file = File::create_new(&hidden).map_err(|e| io("creating", &hidden, e))?;
        let mut part = Self { target: target.to_path_buf(), hidden, writer: None, rows: 0 };
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties()));
        part.writer = Some(writer.map_err(|e| parquet_error("writing", target, e))?);
        Ok(part)
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        match &mut self.writer {
            Some(writer) => writer.write(batch).map_err(|e| parquet_error("writing", &self.target, e)),
            None => Ok(()),
        }
    }

    /// Puts the file at its target, over what is there.
    pub(crate) fn commit_over(self) -> Result<()> {
        self.commit(Place::Replaced).map(drop)
    }

    /// Puts the file at its target. Gives whether it is there; a new one is not where another was faster.
    fn commit(mut self, place: Place) -> Result<bool> {
        let Some(writer) = self.writer.take() else { return Ok(true) };
        let file = writer.into_inner().map_err(|e| parquet_error("writing", &self.target, e))?;
        file.sync_all().map_err(|e| io("writing", &self.target, e))?;
        let linked = match place {
            Place::New => std::fs::hard_link(&self.hidden, &self.target),
            Place::Replaced => Err(ErrorKind::Unsupported.into()),
        };
        match linked {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(false),
            // Not every file system has links.
            Err(_) => {
                std::fs::rename(&self.hidden, &self.target).map_err(|e| io("replacing", &self.target, e))?;
            }
        }
        let dir = self.target.parent().unwrap_or(Path::new("."));
        File::open(dir).and_then(|d| d.sync_all()).map_err(|e| io("syncing", dir, e))?;
        Ok(true)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Committed files are gone from here; of the others nothing may stay behind.
        let _ = std::fs::remove_file(&self.hidden);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Array, Int64Array};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    fn batch(name: &str, value: i64) -> RecordBatch {
        RecordBatch::try_from_iter([(name, Arc::new(Int64Array::from(vec![value])) as Arc<dyn Array>)]).expect("batch")
    }

    /// As writers of several processes do it: nothing between them but the file.
    #[test]
    fn writers_of_one_file_lose_no_row_and_leave_nothing_behind() {
        let dir = tempfile::tempdir().expect("dir");
        let location = Location::File(dir.path().join("new.parquet"));
        let schema = batch("n", 0).schema();
        std::thread::scope(|scope| {
            for n in 0..24 {
                let (location, schema) = (&location, &schema);
                scope.spawn(move || assert_eq!(append(location, schema, &[batch("n", n)]).expect("append"), 1));
            }
        });
        let file = File::open(location.path()).expect("file");
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(ParquetRecordBatchReaderBuilder::build);
        let mut found: Vec<i64> = Vec::new();
        for batch in reader.expect("reader") {
            let batch = batch.expect("batch");
            let column = batch.column(0).as_any().downcast_ref::<Int64Array>().expect("n");
            found.extend(column.values());
        }
        found.sort_unstable();
        assert_eq!(found, (0..24).collect::<Vec<_>>());
        assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 1);
    }

    #[test]
    fn rows_are_not_put_behind_other_columns() {
        let dir = tempfile::tempdir().expect("dir");
        let location = Location::File(dir.path().join("a.parquet"));
        append(&location, &batch("n", 1).schema(), &[batch("n", 1)]).expect("first");
        let other = Schema::new(vec![Field::new("m", DataType::Int64, true)]);
        let error = append(&location, &Arc::new(other), &[batch("m", 2)]).expect_err("other columns");
        assert_eq!(error.kind(), model::Kind::Conflict);
        assert!(error.message().contains("a.parquet"), "{}", error.message());
    }
}
