//! Local files: written under a hidden name, made durable, and renamed. Who writes a hidden file has it locked: one that
//! nobody holds is of a process that was killed, and goes with the next write beside it. Knows no request.

use std::fs::{File, OpenOptions};
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
    remove_stale(folder(&target));
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

/// The file that a result at a path is.
fn file_of(path: &Path) -> PathBuf {
    if path.extension().is_some_and(|e| e == "parquet") { path.to_path_buf() } else { path.join("0.parquet") }
}

/// Removes what killed processes left of results at a path. Blocks.
pub(crate) fn clear(path: &Path) {
    remove_stale(folder(&file_of(path)));
}

/// Writes a result over what is at a path.
pub(super) async fn export(path: PathBuf, mut export: Export) -> Result<u64> {
    let target = file_of(&path);
    let (at, schema) = (target.clone(), export.schema.clone());
    let mut part = blocking(move || {
        // Before room is asked for: what was left may be why there is none.
        remove_stale(folder(&at));
        Part::begin(&at, &schema)
    })
    .await?;
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

fn folder(target: &Path) -> &Path {
    // a bare name is in the working directory
    target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether a name is of a file in the making: `.<target>.<uuid>.part`.
fn is_part(name: &str) -> bool {
    let own = name.strip_prefix('.').and_then(|name| name.strip_suffix(".part")).and_then(|name| name.rsplit_once('.'));
    own.is_some_and(|(_, id)| id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// Removes the files that killed processes had in the making in a directory. What is locked is being written; what
/// cannot be looked at, or is where there are no locks, is left alone. Blocks.
pub(crate) fn remove_stale(dir: &Path) {
    let Ok(found) = std::fs::read_dir(dir) else { return };
    for path in found.filter_map(|entry| Some(entry.ok()?.path())) {
        let is_ours = path.file_name().is_some_and(|name| is_part(&name.to_string_lossy()));
        let Some(file) = is_ours.then(|| OpenOptions::new().write(true).open(&path).ok()).flatten() else { continue };
        if file.try_lock().is_err() {
            continue;
        }
        match std::fs::remove_file(&path) {
            Ok(()) => tracing::info!(path = %path.display(), "removed what a killed process had not finished writing"),
            // put in its place, or removed, in between
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "what a killed process had not finished writing cannot be removed");
            }
        }
    }
}

/// What is at the target of a file in the making.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Nothing, as far as is known.
    New,
    /// A file that goes, if there is one.
    Replaced,
}

/// A file in the making, beside its target, locked as long as it is open; removed unless it is committed.
pub(crate) struct Part {
    target: PathBuf,
    hidden: PathBuf,
    writer: Option<ArrowWriter<File>>,
    rows: u64,
}

impl Part {
    pub(crate) fn begin(target: &Path, schema: &SchemaRef) -> Result<Self> {
        let dir = folder(target);
        std::fs::create_dir_all(dir).map_err(|e| io("creating", dir, e))?;
        let name = target.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let (hidden, file) = loop {
            let hidden = dir.join(format!(".{name}.{}.part", uuid::Uuid::new_v4().simple()));
            let file = File::create_new(&hidden).map_err(|e| io("creating", &hidden, e))?;
            match file.lock() {
                // Not every file system has locks; on such a one nothing is removed, either.
                Err(e) if e.kind() != ErrorKind::Unsupported => return Err(io("locking", &hidden, e)),
                _ => {}
            }
            // Who looked between the two took it for one that was left.
            if hidden.exists() {
                break (hidden, file);
            }
        };
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
        let dir = folder(&self.target);
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
    fn what_killed_processes_left_goes_and_what_is_written_stays() {
        let dir = tempfile::tempdir().expect("dir");
        let id = uuid::Uuid::new_v4().simple();
        let (left, target) = (dir.path().join(format!(".a.parquet.{id}.part")), dir.path().join("a.parquet"));
        let foreign = [format!(".a.parquet.{id}.part.gz"), ".a.part".to_owned(), format!("a.parquet.{id}.part")];
        for name in &foreign {
            std::fs::write(dir.path().join(name), "").expect("writes");
        }
        std::fs::write(&left, "rows").expect("writes");
        let mut part = Part::begin(&target, &batch("n", 0).schema()).expect("begins");
        part.write(&batch("n", 1)).expect("writes");
        let location = Location::Directory(dir.path().to_path_buf());
        append(&location, &batch("n", 0).schema(), &[batch("n", 2)]).expect("append");
        assert!(!left.exists());
        assert!(part.hidden.exists(), "it is being written");
        part.commit_over().expect("commits");
        assert!(target.exists());
        let hidden = std::fs::read_dir(dir.path()).expect("dir").filter(|e| {
            let name = e.as_ref().expect("entry").file_name().to_string_lossy().into_owned();
            is_part(&name)
        });
        assert_eq!(hidden.count(), 0);
        assert!(foreign.iter().all(|name| dir.path().join(name).exists()), "those are none of ours");
    }

    /// The one who clears looks at a file that is not locked yet.
    #[test]
    fn no_file_is_lost_between_its_making_and_its_lock() {
        let dir = tempfile::tempdir().expect("dir");
        let schema = batch("n", 0).schema();
        let is_done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                    remove_stale(dir.path());
                }
            });
            for n in 0..200 {
                let target = dir.path().join(format!("{n}.parquet"));
                let committed = Part::begin(&target, &schema).and_then(Part::commit_over);
                let there = target.exists();
                is_done.store(n == 199 || committed.is_err() || !there, std::sync::atomic::Ordering::Relaxed);
                committed.expect("commits");
                assert!(there);
            }
        });
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
