//! Rows on disk: an Arrow IPC stream of short batches, which is read from its beginning. Knows no entity frame.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use model::{Error, Result};

use crate::error::{arrow as arrow_error, io as io_error};

/// Rows of a batch in a file: what is read back comes in so small pieces.
const ROWS: usize = 8192;

/// A file with rows.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    file: Arc<File>,
    /// The file, or the directory of one without a name.
    path: PathBuf,
}

/// Writes rows.
pub(crate) struct Writer<W: Write> {
    inner: StreamWriter<BufWriter<W>>,
    path: PathBuf,
}

impl<W: Write> Writer<W> {
    /// Begins with the schema; `path` is named where that fails.
    pub(crate) fn new(to: W, path: &Path, schema: &Schema) -> Result<Self> {
        let inner = StreamWriter::try_new(BufWriter::new(to), schema).map_err(|e| failed(path, e))?;
        Ok(Self { inner, path: path.to_owned() })
    }

    /// Writes a batch, however long; it can be read from now on.
    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        for at in (0..batch.num_rows()).step_by(ROWS) {
            let part = batch.slice(at, ROWS.min(batch.num_rows() - at));
            self.inner.write(&part).map_err(|e| failed(&self.path, e))?;
        }
        self.inner.flush().map_err(|e| failed(&self.path, e))
    }

    /// Says that nothing comes behind.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.inner.finish().map_err(|e| failed(&self.path, e))
    }
}

impl Stored {
    /// A file without a name, which is gone with its last handle however that ends, and its writer.
    pub(crate) fn nameless(dir: &Path, schema: &Schema) -> Result<(Self, Writer<File>)> {
        let file = tempfile::tempfile_in(dir).map_err(|e| io_error("creating a file in", dir, e))?;
        let writing = file.try_clone().map_err(|e| io_error("creating a file in", dir, e))?;
        let writer = Writer::new(writing, dir, schema)?;
        Ok((Self { file: Arc::new(file), path: dir.to_owned() }, writer))
    }

    /// A file that is there.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| io_error("opening", path, e))?;
        Ok(Self { file: Arc::new(file), path: path.to_owned() })
    }

    /// Reads it from its beginning.
    pub(crate) fn read(&self) -> Result<Reader> {
        let bytes = From { file: self.file.clone(), at: 0 };
        let stream = StreamReader::try_new(BufReader::new(bytes), None).map_err(|e| unread(&self.path, e))?;
        Ok(Reader { stream, path: self.path.clone() })
    }
}

/// The batches of a file.
pub(crate) struct Reader {
    stream: StreamReader<BufReader<From>>,
    path: PathBuf,
}

impl Reader {
    /// The columns.
    pub(crate) fn schema(&self) -> arrow::datatypes::SchemaRef {
        self.stream.schema()
    }
}

impl Iterator for Reader {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.stream.next().map(|batch| batch.map_err(|e| unread(&self.path, e)))
    }
}

/// A reader with a cursor of its own.
struct From {
    file: Arc<File>,
    at: u64,
}

impl Read for From {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(into, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

fn failed(path: &Path, error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, inner) => io_error("writing to", path, inner),
        other => arrow_error(other),
    }
}

fn unread(path: &Path, error: ArrowError) -> Error {
    match error {
        ArrowError::IoError(_, inner) => io_error("reading from", path, inner),
        other => arrow_error(other),
    }
}
