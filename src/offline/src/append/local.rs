//! Local files: written under a hidden name, made durable, and renamed.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::StreamExt;
use model::Result;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use super::properties;
use crate::engine::blocking;
use crate::error::{arrow as arrow_error, damaged, io, parquet as parquet_error};
use crate::history::Export;
use crate::source::Location;

/// Writes the batches into a new file of a directory, or behind those of a file. Blocks.
pub(super) fn append(location: &Location, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<u64> {
    let target = match location {
        Location::Directory(dir) => dir.join(format!("{}.parquet", uuid::Uuid::new_v4().simple())),
        file => file.path(),
    };
    let old = if target.is_file() { Some(File::open(&target).map_err(|e| io("opening", &target, e))?) } else { None };
    let bad = |e: &_| damaged(&target.display().to_string(), e);
    let schema = match &old {
        Some(file) => {
            ArrowReaderMetadata::load(file, ArrowReaderOptions::default()).map_err(|e| bad(&e))?.schema().clone()
        }
        None => schema.clone(),
    };
    let mut part = Part::begin(&target, &schema)?;
    if let Some(file) = old {
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(ParquetRecordBatchReaderBuilder::build);
        for batch in reader.map_err(|e| bad(&e))? {
            part.write(&batch.map_err(arrow_error)?)?;
        }
    }
    let before = part.rows;
    for batch in batches {
        part.write(&RecordBatch::try_new(schema.clone(), batch.columns().to_vec()).map_err(arrow_error)?)?;
    }
    let rows = part.rows - before;
    part.commit()?;
    Ok(rows)
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
        part.commit()?;
        for old in replaced.into_iter().filter(|old| *old != target) {
            std::fs::remove_file(&old).map_err(|e| io("removing", &old, e))?;
        }
        Ok(rows)
    })
    .await
}

/// A file in the making, beside its target; removed unless it is committed.
struct Part {
    target: PathBuf,
    hidden: PathBuf,
    writer: Option<ArrowWriter<File>>,
    rows: u64,
}

impl Part {
    fn begin(target: &Path, schema: &SchemaRef) -> Result<Self> {
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

    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        match &mut self.writer {
            Some(writer) => writer.write(batch).map_err(|e| parquet_error("writing", &self.target, e)),
            None => Ok(()),
        }
    }

    fn commit(mut self) -> Result<()> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let file = writer.into_inner().map_err(|e| parquet_error("writing", &self.target, e))?;
        file.sync_all().map_err(|e| io("writing", &self.target, e))?;
        std::fs::rename(&self.hidden, &self.target).map_err(|e| io("replacing", &self.target, e))?;
        let dir = self.target.parent().unwrap_or(Path::new("."));
        File::open(dir).and_then(|d| d.sync_all()).map_err(|e| io("syncing", dir, e))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Committed files are gone from here; of the others nothing may stay behind.
        let _ = std::fs::remove_file(&self.hidden);
    }
}
