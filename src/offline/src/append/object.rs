//! Objects: a new one below a prefix, or one in the place of the one that was read, if it still is the
//! same. An object is there as a whole or not at all.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use futures::StreamExt;
use model::{Error, Kind, Result};
use object_store::buffered::BufWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, AsyncArrowWriter};
use parquet::errors::ParquetError;

use super::{behind, properties};
use crate::engine::blocking;
use crate::error::{arrow as arrow_error, damaged};
use crate::history::Export;
use crate::source::listing::At;
use crate::source::location::{Shape, objects};
use crate::store::Bucket;

/// The greatest single object that rows are appended to: it is written anew in memory.
const APPEND_BYTES: u64 = 256 << 20;
/// How often an append is begun again because another was faster.
pub(super) const TRIES: usize = 10;

/// Writes the batches as a new object below a prefix, or behind those of an object.
///
/// Errors: `TooLarge` for a single object that should be a directory, `Conflict` where others always
/// were faster.
pub(super) async fn append(bucket: &Bucket, key: &str, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<u64> {
    let rows = batches.iter().map(|b| b.num_rows() as u64).sum();
    for _ in 0..TRIES {
        let (shape, mut found) = objects(bucket, key).await?;
        let path = match shape {
            Shape::Directory => bucket.path(key)?.join(format!("{}.parquet", uuid::Uuid::new_v4().simple())),
            _ => bucket.path(key)?,
        };
        let old = found.pop().filter(|_| shape == Shape::File).and_then(|(at, _)| match at {
            At::Object(_, meta) => Some(*meta),
            At::Local(_) => None,
        });
        if let Some(meta) = old.as_ref().filter(|m| m.size > APPEND_BYTES) {
            return Err(Error::new(
                Kind::TooLarge,
                format!(
                    "{} has {} bytes, and an object is written anew with each append: make the source a directory \
                     (a prefix that ends with /), where each append is a new object",
                    bucket.url(key),
                    meta.size
                ),
            ));
        }
        let before = match &old {
            None => None,
            Some(meta) => match bucket.read(meta, None).await {
                Err(e) if e.kind() == Kind::Conflict => continue,
                read => Some(read?),
            },
        };
        let (name, schema, batches) = (bucket.url(key), schema.clone(), batches.to_vec());
        let bytes = blocking(move || encode(&name, before, &schema, &batches)).await?;
        if bucket.put(&path, bytes, old.as_ref()).await? {
            return Ok(rows);
        }
    }
    Err(Error::new(
        Kind::Conflict,
        format!("{} was always written by others in the meantime: try again", bucket.url(key)),
    ))
}

/// A Parquet file of what was there and what is new. Blocks.
fn encode(name: &str, before: Option<Bytes>, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Bytes> {
    let bad = |e: ParquetError| damaged(name, &e);
    let old = before.map(ParquetRecordBatchReaderBuilder::try_new).transpose().map_err(bad)?;
    let schema = old.as_ref().map_or(schema, ParquetRecordBatchReaderBuilder::schema).clone();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties())).map_err(bad)?;
    if let Some(old) = old {
        for batch in old.build().map_err(bad)? {
            writer.write(&batch.map_err(arrow_error)?).map_err(bad)?;
        }
    }
    for batch in batches {
        writer.write(&behind(batch, &schema, name)?).map_err(bad)?;
    }
    Ok(writer.into_inner().map_err(bad)?.into())
}

/// Writes a result over what is at a key, batch by batch.
///
/// Errors: what `exists` gives, where something is there that may not be replaced.
pub(super) async fn export(
    bucket: &Bucket,
    key: &str,
    overwrite: bool,
    mut export: Export,
    exists: impl Fn() -> Error,
) -> Result<u64> {
    let (shape, found) = objects(bucket, key).await?;
    if !found.is_empty() && !overwrite {
        return Err(exists());
    }
    let path = match shape {
        Shape::Directory => bucket.path(key)?.join(format!("{}.parquet", uuid::Uuid::new_v4().simple())),
        _ => bucket.path(key)?,
    };
    let bad = |e: ParquetError| match e {
        ParquetError::External(inner) => match inner.downcast::<object_store::Error>() {
            Ok(store) => bucket.error("writing", path.as_ref(), &store),
            Err(inner) => {
                Error::new(Kind::Unavailable, format!("writing {} failed: {inner}", bucket.url(path.as_ref())))
            }
        },
        other => Error::internal(format!("writing {} failed", bucket.url(path.as_ref())), other),
    };
    let mut upload = bucket.writer(&path);
    let written = async {
        let mut writer =
            AsyncArrowWriter::try_new(&mut upload, export.schema.clone(), Some(properties())).map_err(bad)?;
        let mut rows = 0;
        while let Some(batch) = export.batches.next().await {
            let batch = batch?;
            rows += batch.num_rows() as u64;
            writer.write(&batch).await.map_err(bad)?;
        }
        writer.close().await.map_err(bad)?;
        Ok(rows)
    };
    let rows = match written.await {
        Ok(rows) => rows,
        Err(error) => {
            give_up(&mut upload).await;
            return Err(error);
        }
    };
    for (at, _) in found {
        if let At::Object(bucket, meta) = at
            && meta.location != path
        {
            bucket.delete(&meta.location).await?;
        }
    }
    Ok(rows)
}

/// Takes the parts away that were sent; a store that does not answer removes them in its own time.
async fn give_up(upload: &mut BufWriter) {
    if let Err(error) = upload.abort().await {
        tracing::warn!("an upload that failed could not be taken away: {}", error_kind(&error));
    }
}

/// An error without what the store said, in which a credential might be.
fn error_kind(error: &object_store::Error) -> &'static str {
    match error {
        object_store::Error::NotFound { .. } => "not found",
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => "refused",
        _ => "no proper answer",
    }
}
