//! A view's batch source: which local Parquet files it is, and what its columns are called there.
//! Knows no query: it lists files and maps names.
//!
//! Source: `feast/infra/offline_stores/file_source.py` (paths), `offline_utils.py` (field mapping).

use std::path::{Path, PathBuf};

use arrow::datatypes::{DataType, Schema};
use model::{Error, Kind, Result};
use proto::feast::core::{DataSource, data_source::Options, file_format::Format};

use crate::error::io;

/// Where a source's rows are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// One Parquet file, which may not exist yet.
    File(PathBuf),
    /// All `.parquet` files below a directory.
    Directory(PathBuf),
    /// All files whose paths match a pattern with `*`, `**` and `?`.
    Glob(String),
}

impl Location {
    /// Resolves the path of a file source; a relative one starts at `repo`.
    ///
    /// Errors (`Unsupported`): a source that is no file source, no Parquet, or not local.
    pub(crate) fn of(source: &DataSource, repo: &Path) -> Result<Self> {
        let unsupported = |what: String| {
            Err(Error::new(
                Kind::Unsupported,
                format!("data source '{}' {what}: Larder reads local Parquet files (FileSource)", source.name),
            ))
        };
        let Some(Options::FileOptions(options)) = &source.options else {
            return unsupported(format!("of type {} has no files", source.r#type().as_str_name()));
        };
        #[allow(deprecated, reason = "older SDKs say Delta so")]
        if let Some(Format::DeltaFormat(_)) = options.file_format.as_ref().and_then(|f| f.format.as_ref()) {
            return unsupported("is in the Delta format".to_owned());
        }
        if let Some((scheme, _)) = options.uri.split_once("://")
            && !scheme.eq_ignore_ascii_case("file")
        {
            return unsupported(format!("is at {}, which needs the object store '{scheme}'", options.uri));
        }
        if options.uri.is_empty() {
            return Err(Error::invalid(format!("data source '{}' has no path", source.name)));
        }
        Ok(Self::of_path(&options.uri, repo))
    }

    /// Resolves a path or `file://` URI as it is written.
    pub(crate) fn of_path(uri: &str, repo: &Path) -> Self {
        let (path, is_dir) = match uri.strip_prefix("file://") {
            Some(rest) => (rest.strip_prefix("localhost").unwrap_or(rest), rest.ends_with('/')),
            None => (uri, uri.ends_with('/')),
        };
        let path = repo.join(path);
        if path.to_string_lossy().contains(['*', '?']) && !path.exists() {
            return Self::Glob(path.to_string_lossy().into_owned());
        }
        // A path without an extension that does not exist yet is a directory to be, as in Feast.
        if path.is_dir() || is_dir || (!path.exists() && path.extension().is_none()) {
            Self::Directory(path)
        } else {
            Self::File(path)
        }
    }

    /// The path to show, and to serialise writers by.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Directory(path) => path,
            Self::Glob(pattern) => Path::new(pattern),
        }
    }

    /// The files as they are now, in the order of their paths. Blocks on the file system.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        match self {
            Self::File(path) if path.is_file() => files.push(path.clone()),
            Self::File(_) => {}
            Self::Directory(path) => walk(path, &mut files, &|p| p.extension().is_some_and(|e| e == "parquet"))?,
            Self::Glob(pattern) => {
                let fixed: PathBuf = Path::new(pattern)
                    .components()
                    .take_while(|c| !c.as_os_str().to_string_lossy().contains(['*', '?']))
                    .collect();
                walk(&fixed, &mut files, &|p| matches(pattern.as_bytes(), p.to_string_lossy().as_bytes()))?;
            }
        }
        files.sort();
        Ok(files)
    }
}

/// Collects the files below a directory that the test wants; hidden ones (`.` and `_` before the
/// name) are no data, which is also how a file in the making is kept apart.
fn walk(dir: &Path, out: &mut Vec<PathBuf>, wanted: &dyn Fn(&Path) -> bool) -> Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io("listing", dir, e)),
    };
    for entry in entries {
        let path = entry.map_err(|e| io("listing", dir, e))?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(['.', '_']));
        if hidden {
            continue;
        }
        if path.is_dir() {
            walk(&path, out, wanted)?;
        } else if wanted(&path) {
            out.push(path);
        }
    }
    Ok(())
}

/// Whether a path matches a pattern: `?` is one character, `*` any number within a path segment,
/// `**` any number of segments.
fn matches(pattern: &[u8], path: &[u8]) -> bool {
    match pattern {
        [] => path.is_empty(),
        [b'*', b'*', b'/', rest @ ..] => {
            matches(rest, path) || path.iter().enumerate().any(|(i, c)| *c == b'/' && matches(rest, &path[i + 1..]))
        }
        [b'*', b'*', rest @ ..] => (0..=path.len()).any(|i| matches(rest, &path[i..])),
        [b'*', rest @ ..] => {
            let end = path.iter().position(|c| *c == b'/').unwrap_or(path.len());
            (0..=end).any(|i| matches(rest, &path[i..]))
        }
        [b'?', rest @ ..] => path.first().is_some_and(|c| *c != b'/') && matches(rest, &path[1..]),
        [c, rest @ ..] => path.first() == Some(c) && matches(rest, &path[1..]),
    }
}

/// The name in the source of what the view calls `name`: the field mapping backwards, where the
/// source has such a column.
///
/// Errors: the source has no such column; the message lists those that it has.
pub(crate) fn column(source: &DataSource, schema: &Schema, name: &str) -> Result<String> {
    let mapped = source.field_mapping.iter().find(|(from, to)| *to == name && schema.index_of(from).is_ok());
    if let Some((from, _)) = mapped {
        return Ok(from.clone());
    }
    if schema.index_of(name).is_ok() {
        return Ok(name.to_owned());
    }
    let known: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
    Err(Error::invalid(format!(
        "data source '{}' has no column '{name}': its columns are {}",
        source.name,
        known.join(", ")
    )))
}

/// The source's name for a timestamp column that the registry names; `None` where it names none.
pub(crate) fn time_column(source: &DataSource, schema: &Schema, name: &str) -> Result<Option<String>> {
    if name.is_empty() {
        return Ok(None);
    }
    let name = column(source, schema, name)?;
    match schema.field_with_name(&name).map(arrow::datatypes::Field::data_type) {
        Ok(DataType::Timestamp(..) | DataType::Date32 | DataType::Date64) => Ok(Some(name)),
        Ok(other) => Err(Error::invalid(format!(
            "column '{name}' of data source '{}' is of type {other}, not a timestamp: write it as one",
            source.name
        ))),
        Err(e) => Err(Error::internal("a column vanished", e)),
    }
}

/// What a missing source looks like to the caller.
pub(crate) fn missing(source: &DataSource, location: &Location) -> Error {
    Error::invalid(format!(
        "data source '{}' has no Parquet file at {}: create it, or correct the path and apply again",
        source.name,
        location.path().display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(uri: &str) -> DataSource {
        let options = proto::feast::core::data_source::FileOptions { uri: uri.into(), ..Default::default() };
        DataSource { name: "s".into(), options: Some(Options::FileOptions(options)), ..DataSource::default() }
    }

    #[test]
    fn patterns_match_segments() {
        for (pattern, path, want) in [
            ("/a/*.parquet", "/a/b.parquet", true),
            ("/a/*.parquet", "/a/b/c.parquet", false),
            ("/a/**/*.parquet", "/a/b/c.parquet", true),
            ("/a/**/*.parquet", "/a/c.parquet", true),
            ("/a/part-?.parquet", "/a/part-1.parquet", true),
            ("/a/part-?.parquet", "/a/part-10.parquet", false),
            ("/a/*", "/a/", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), path.as_bytes()), want, "{pattern} {path}");
        }
    }

    #[test]
    fn a_source_is_a_file_a_directory_or_a_pattern() {
        let dir = tempfile::tempdir().expect("dir");
        let touch = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            std::fs::write(&path, b"x").expect("write");
            path
        };
        let (a, b) = (touch("d/a.parquet"), touch("d/e/b.parquet"));
        touch("d/.c.parquet.tmp");
        touch("d/.hidden.parquet");
        touch("d/_SUCCESS");
        let of = |uri: &str| Location::of(&source(uri), dir.path()).expect(uri);
        assert_eq!(of("d").files().expect("list"), [a.clone(), b.clone()]);
        assert_eq!(of("d/*.parquet").files().expect("list"), std::slice::from_ref(&a));
        assert_eq!(of(&format!("file://{}", a.display())), Location::File(a));
        assert_eq!(of("d/**/b.parquet").files().expect("list"), [b]);
        assert_eq!(of("new.parquet").files().expect("list"), Vec::<PathBuf>::new());
        for remote in ["s3://bucket/x.parquet", "gs://bucket/x"] {
            let error = Location::of(&source(remote), dir.path()).expect_err(remote);
            assert_eq!(error.kind(), Kind::Unsupported);
            assert!(error.message().contains(remote), "{}", error.message());
        }
    }
}
