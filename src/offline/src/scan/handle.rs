//! Reads ranges of an open file without moving its cursor, so that readers can share the handle.

use std::fs::File;
use std::io;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

/// One reader of an open Parquet file.
#[derive(Debug)]
pub(super) struct Reader {
    file: Arc<File>,
    /// The same file with a cursor of its own, where the system opens it again: what is read behind a cursor needs no
    /// room that is cleared before.
    cursor: Option<Arc<Mutex<File>>>,
    footer: Option<Arc<ParquetMetaData>>,
}

impl Reader {
    /// A second handle to the same open file; its footer, where that is known, is not read again.
    pub(super) fn new(file: &File, footer: Option<Arc<ParquetMetaData>>) -> io::Result<Self> {
        let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let cursor = again.ok().map(|again| Arc::new(Mutex::new(again)));
        Ok(Self { file: Arc::new(file.try_clone()?), cursor, footer })
    }

    fn read(file: &File, cursor: Option<&Mutex<File>>, ranges: Vec<Range<u64>>) -> io::Result<Vec<Bytes>> {
        let mut cursor = cursor.map(|cursor| cursor.lock().unwrap_or_else(PoisonError::into_inner));
        let bytes = |range: Range<u64>| {
            let length = range.end - range.start;
            let Some(file) = &mut cursor else {
                let mut bytes = vec![0; length as usize];
                file.read_exact_at(&mut bytes, range.start)?;
                return Ok(bytes.into());
            };
            let mut bytes = Vec::with_capacity(length as usize);
            file.seek(SeekFrom::Start(range.start))?;
            (&mut **file).take(length).read_to_end(&mut bytes)?;
            if bytes.len() as u64 == length { Ok(bytes.into()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        };
        ranges.into_iter().map(bytes).collect()
    }
}

impl AsyncFileReader for Reader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        let ranges = self.get_byte_ranges(vec![range]);
        async move { ranges.await?.pop().ok_or_else(|| ParquetError::General("no bytes were read".into())) }.boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        let (file, cursor) = (self.file.clone(), self.cursor.clone());
        async move {
            let read = tokio::task::spawn_blocking(move || Self::read(&file, cursor.as_deref(), ranges)).await;
            Ok(read.map_err(|e| ParquetError::External(e.into()))??)
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        let file = self.file.clone();
        let policy = options.map_or(PageIndexPolicy::Skip, ArrowReaderOptions::column_index_policy);
        let footer = self.footer.clone();
        async move {
            if let (PageIndexPolicy::Skip, Some(footer)) = (policy, &footer) {
                return Ok(footer.clone());
            }
            let parse = move || match footer {
                None => ParquetMetaDataReader::new().with_page_index_policy(policy).parse_and_finish(file.as_ref()),
                Some(footer) => {
                    let mut reader = ParquetMetaDataReader::new_with_metadata(footer.as_ref().clone());
                    reader = reader.with_page_index_policy(policy);
                    reader.read_page_indexes(file.as_ref())?;
                    reader.finish()
                }
            };
            let parsed = tokio::task::spawn_blocking(parse).await;
            Ok(Arc::new(parsed.map_err(|e| ParquetError::External(e.into()))??))
        }
        .boxed()
    }
}
