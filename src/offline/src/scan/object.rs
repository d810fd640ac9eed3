//! Reads ranges of an object as it was listed. Its footer is fetched once and kept for the query.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::{OBJECT_STORE_COALESCE_DEFAULT, ObjectMeta, coalesce_ranges};
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::{AsyncFileReader, MetadataFetch};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

use crate::error::damaged;
use crate::store::Bucket;

/// How much of an object's end is fetched at once, in the hope that the footer is in it.
const FOOTER_BYTES: usize = 64 << 10;

/// One reader of a Parquet object.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    bucket: Bucket,
    meta: Arc<ObjectMeta>,
    footer: Arc<ParquetMetaData>,
}

impl Reader {
    /// Fetches the footer.
    ///
    /// Errors: an object that is gone, that cannot be fetched, or is no Parquet.
    pub(super) async fn open(bucket: Bucket, meta: ObjectMeta) -> model::Result<Self> {
        let name = bucket.url(meta.location.as_ref());
        let size = meta.size;
        let empty = Footerless { bucket, meta: Arc::new(meta) };
        let reader = ParquetMetaDataReader::new().with_prefetch_hint(Some(FOOTER_BYTES));
        match reader.load_and_finish(empty.clone(), size).await {
            Ok(footer) => Ok(Self { bucket: empty.bucket, meta: empty.meta, footer: Arc::new(footer) }),
            Err(e) => Err(damaged(&name, &e)),
        }
    }

    /// The footer.
    pub(super) fn metadata(&self) -> Arc<ParquetMetaData> {
        self.footer.clone()
    }

    fn fetcher(&self) -> Footerless {
        Footerless { bucket: self.bucket.clone(), meta: self.meta.clone() }
    }
}

/// An object of which nothing is known yet.
#[derive(Clone, Debug)]
struct Footerless {
    bucket: Bucket,
    meta: Arc<ObjectMeta>,
}

impl Footerless {
    async fn read(self, range: Range<u64>) -> Result<Bytes> {
        self.bucket.read(&self.meta, Some(range)).await.map_err(|e| ParquetError::External(e.into()))
    }
}

impl MetadataFetch for Footerless {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        self.clone().read(range).boxed()
    }
}

impl AsyncFileReader for Reader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        self.fetcher().read(range).boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        let fetcher = self.fetcher();
        async move {
            coalesce_ranges(&ranges, |range| fetcher.clone().read(range), OBJECT_STORE_COALESCE_DEFAULT).await
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        let policy = options.map_or(PageIndexPolicy::Skip, ArrowReaderOptions::column_index_policy);
        async move {
            if policy == PageIndexPolicy::Skip {
                return Ok(self.footer.clone());
            }
            let mut reader =
                ParquetMetaDataReader::new_with_metadata(self.footer.as_ref().clone()).with_page_index_policy(policy);
            reader.load_page_index(self.fetcher()).await?;
            Ok(Arc::new(reader.finish()?))
        }
        .boxed()
    }
}
