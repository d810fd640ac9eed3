//! Reads ranges of an open file without moving its cursor, so that readers can share the handle.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

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
    footer: Option<Arc<ParquetMetaData>>,
}

impl Reader {
    /// A second handle to the same open file; its footer, where that is known, is not read again.
    pub(super) fn new(file: &File, footer: Option<Arc<ParquetMetaData>>) -> io::Result<Self> {
        Ok(Self { file: Arc::new(file.try_clone()?), footer })
    }

    fn read(file: &File, ranges: Vec<Range<u64>>) -> io::Result<Vec<Bytes>> {
        ranges
            .into_iter()
            .map(|range| {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                file.read_exact_at(&mut bytes, range.start)?;
                Ok(bytes.into())
            })
            .collect()
    }
}

impl AsyncFileReader for Reader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        let ranges = self.get_byte_ranges(vec![range]);
        async move { ranges.await?.pop().ok_or_else(|| ParquetError::General("no bytes were read".into())) }.boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        let file = self.file.clone();
        async move {
            let read = tokio::task::spawn_blocking(move || Self::read(&file, ranges)).await;
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
