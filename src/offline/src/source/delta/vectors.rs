//! Deletion vectors: which rows of a table's files are gone, as the log says it itself or a file beside it does. Each is held
//! against its checksum, its size and its count. Knows no Parquet.
//!
//! Source: "Deletion Vectors" and "Deletion Vector Format" in the Delta transaction log protocol.

use std::collections::BTreeMap;
use std::path::Path as FilePath;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use model::{Error, Result};
use object_store::path::Path;
use percent_encoding::percent_decode_str;
use roaring::RoaringTreemap;

use super::actions::{Add, Vector};
use super::{FETCHES, unsupported};
use crate::engine::blocking;
use crate::store::Bucket;

/// Of a `RoaringBitmapArray` in the portable form, the only one that tables have.
const MAGIC: u32 = 1_681_511_377;
/// Of the files.
const VERSION: u8 = 1;
/// How long a UUID is in base 85.
const UUID: usize = 20;

/// Where a table is.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    pub(super) bucket: &'a Bucket,
    /// Its key in the bucket.
    pub(super) root: &'a Path,
    /// Its directory, if it is on this machine.
    pub(super) local: Option<&'a FilePath>,
    /// For messages.
    pub(super) name: &'a str,
}

/// The rows that are gone, by the number of their file. A file of vectors is fetched once.
///
/// Errors: a vector that is damaged, gone, or outside of the table.
pub(super) async fn read(table: &Table<'_>, adds: &[Add]) -> Result<BTreeMap<usize, RoaringTreemap>> {
    let mut deleted = BTreeMap::new();
    let mut files: BTreeMap<Path, Vec<(usize, Part)>> = BTreeMap::new();
    for (i, add) in adds.iter().enumerate() {
        let Some(vector) = &add.deletion_vector else { continue };
        if vector.storage_type == "i" {
            let bad = |what: String| damaged(table.name, &format!("for {} in its log", add.path), &what);
            deleted.insert(i, inline(vector).map_err(bad)?);
        } else {
            files.entry(table.file(vector)?).or_default().push((i, Part::of(vector)));
        }
    }
    let fetched = stream::iter(files).map(|(path, parts)| table.fetch(path, parts)).buffered(FETCHES);
    let fetched: Vec<Vec<(usize, RoaringTreemap)>> = fetched.try_collect().await?;
    deleted.extend(fetched.into_iter().flatten());
    Ok(deleted)
}

impl Table<'_> {
    /// The file that a vector is in, by its key.
    fn file(&self, vector: &Vector) -> Result<Path> {
        let text = vector.path_or_inline_dv.as_str();
        let below = match vector.storage_type.as_str() {
            "u" => relative(text).ok_or_else(|| damaged(self.name, text, "is no UUID in base 85"))?,
            "p" => self.absolute(text).ok_or_else(|| {
                unsupported(
                    self.name,
                    &format!("a deletion vector outside of itself, {text} (a shallow clone)"),
                    "copy it",
                )
            })?,
            other => {
                return Err(unsupported(
                    self.name,
                    &format!("deletion vectors stored as '{other}'"),
                    "write it without",
                ));
            }
        };
        let root = self.root.as_ref();
        self.bucket.path(&if root.is_empty() { below } else { format!("{root}/{below}") })
    }

    /// What is behind the table in a whole path, percent-encoded as those of files are.
    fn absolute(&self, text: &str) -> Option<String> {
        let text = percent_decode_str(text).decode_utf8().ok()?;
        let Some(directory) = self.local else {
            let url = |text: &str| text.replacen("s3a://", "s3://", 1);
            let table = url(&self.bucket.url(self.root.as_ref()));
            return Some(url(&text).strip_prefix(table.trim_end_matches('/'))?.strip_prefix('/')?.to_owned());
        };
        let path = text.strip_prefix("file:").map_or(&*text, |path| path.strip_prefix("//").unwrap_or(path));
        let (path, real) = (FilePath::new(path), directory.canonicalize());
        let below = path.strip_prefix(directory).ok().or_else(|| path.strip_prefix(real.ok()?).ok())?;
        below.to_str().map(str::to_owned)
    }

    async fn fetch(&self, path: Path, parts: Vec<(usize, Part)>) -> Result<Vec<(usize, RoaringTreemap)>> {
        let (table, name) = (self.name.to_owned(), self.bucket.url(path.as_ref()));
        let Some(meta) = self.bucket.head(&path).await? else {
            return Err(damaged(&table, &name, "is not there any more (vacuumed?)"));
        };
        let bytes = self.bucket.read(&meta, None).await?;
        blocking(move || {
            let read = |(i, part): (usize, Part)| Ok((i, part.read(&bytes).map_err(|e| damaged(&table, &name, &e))?));
            parts.into_iter().map(read).collect()
        })
        .await
    }
}

fn damaged(table: &str, name: &str, what: impl AsRef<str>) -> Error {
    let what = what.as_ref();
    Error::invalid(format!(
        "the Delta table {table} cannot be read: its deletion vector {name} {what}: restore that file, or the table to an \
         earlier version"
    ))
}

/// A vector in a file.
struct Part {
    offset: u64,
    size: u64,
    cardinality: u64,
}

impl Part {
    fn of(vector: &Vector) -> Self {
        // Who writes none has one vector a file, behind the version.
        Self { offset: vector.offset.unwrap_or(1), size: vector.size_in_bytes, cardinality: vector.cardinality }
    }

    /// Its rows: of a file that is a byte for the version, then vectors, each of its size (big-endian), its bytes and their CRC-32.
    fn read(&self, file: &Bytes) -> Result<RoaringTreemap, String> {
        match file.first() {
            Some(&VERSION) => {}
            Some(other) => return Err(format!("is of the version {other}, not {VERSION}")),
            None => return Err("is empty".to_owned()),
        }
        let short = || format!("ends before byte {}", self.offset.saturating_add(self.size).saturating_add(8));
        let begin = usize::try_from(self.offset).map_err(|_| short())?;
        let (size, rest) = file.get(begin..).and_then(<[u8]>::split_first_chunk).ok_or_else(short)?;
        let size = u32::from_be_bytes(*size);
        if u64::from(size) != self.size {
            return Err(format!("has {size} bytes at {begin}, and {} by the log", self.size));
        }
        let (data, rest) = rest.split_at_checked(size as usize).ok_or_else(short)?;
        let (checksum, _) = rest.split_first_chunk().ok_or_else(short)?;
        if crc32fast::hash(data) != u32::from_be_bytes(*checksum) {
            return Err(format!("is damaged: the checksum of its {size} bytes at {begin} is another"));
        }
        bitmap(data, self.cardinality)
    }
}

fn inline(vector: &Vector) -> Result<RoaringTreemap, String> {
    let bytes = base85(&vector.path_or_inline_dv).ok_or("is not in base 85")?;
    // What is encoded is filled up to four bytes.
    let size = usize::try_from(vector.size_in_bytes).ok().filter(|size| size.next_multiple_of(4) == bytes.len());
    let data = size.and_then(|size| bytes.get(..size));
    bitmap(data.ok_or_else(|| format!("has {} bytes, not {}", bytes.len(), vector.size_in_bytes))?, vector.cardinality)
}

/// Bitmaps by the upper halves of their rows, behind the magic number.
fn bitmap(data: &[u8], cardinality: u64) -> Result<RoaringTreemap, String> {
    let (magic, mut rest) = data.split_first_chunk().ok_or("is too short")?;
    let magic = u32::from_le_bytes(*magic);
    if magic != MAGIC {
        return Err(format!("is in no known form: it begins with {magic}, not {MAGIC}"));
    }
    let rows = RoaringTreemap::deserialize_from(&mut rest).map_err(|e| format!("is damaged: {e}"))?;
    if !rest.is_empty() {
        return Err(format!("is damaged: {} bytes are behind its bitmaps", rest.len()));
    }
    if rows.len() != cardinality {
        return Err(format!("is damaged: it has {} rows, and {cardinality} by the log", rows.len()));
    }
    Ok(rows)
}

/// The path below the table: a folder, if there is one, and a UUID.
fn relative(text: &str) -> Option<String> {
    let (folder, id) = text.split_at_checked(text.len().checked_sub(UUID)?)?;
    let id = uuid::Uuid::from_slice(&base85(id)?).ok()?;
    let file = format!("deletion_vector_{id}.bin");
    Some(if folder.is_empty() { file } else { format!("{folder}/{file}") })
}

/// Source: ZeroMQ RFC 32 (Z85).
fn base85(text: &str) -> Option<Vec<u8>> {
    const DIGITS: &[u8; 85] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
    let words = text.as_bytes().chunks_exact(5);
    let is_whole = words.remainder().is_empty();
    let word = |word: &[u8]| {
        word.iter().try_fold(0_u32, |number, byte| {
            let digit = DIGITS.iter().position(|digit| digit == byte)?;
            number.checked_mul(85)?.checked_add(digit as u32)
        })
    };
    let words = words.map(|bytes| word(bytes).map(u32::to_be_bytes)).collect::<Option<Vec<_>>>()?;
    is_whole.then(|| words.concat())
}

#[cfg(test)]
mod tests;
