//! The names of the log's files: which events of a partition a file has. Of two files, one of which lies within the
//! other, the greater one was made of the other. Knows no file's content.

use std::path::{Path, PathBuf};

use model::Result;

use crate::error::io;

/// A file of the log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Segment {
    pub(super) partition: i32,
    /// How often the partition's offsets have begun anew.
    pub(super) epoch: u32,
    /// The first offset in it, and the last.
    pub(super) first: i64,
    pub(super) last: i64,
    /// The folder of its date.
    pub(super) folder: PathBuf,
}

impl Segment {
    pub(super) fn path(&self) -> PathBuf {
        let Self { partition, epoch, first, last, folder } = self;
        folder.join(format!("p{partition}-e{epoch}-{first:019}-{last:019}.parquet"))
    }

    fn parse(path: &Path) -> Option<Self> {
        let parts: Vec<&str> = path.file_name()?.to_str()?.strip_suffix(".parquet")?.split('-').collect();
        let [partition, epoch, first, last] = parts[..] else { return None };
        Some(Self {
            partition: partition.strip_prefix('p')?.parse().ok()?,
            epoch: epoch.strip_prefix('e')?.parse().ok()?,
            first: first.parse().ok()?,
            last: last.parse().ok()?,
            folder: path.parent()?.to_path_buf(),
        })
    }

    fn holds(&self, other: &Self) -> bool {
        (self.partition, self.epoch, &self.folder) == (other.partition, other.epoch, &other.folder)
            && self.first <= other.first
            && other.last <= self.last
    }
}

/// The folders of a log, by date.
pub(super) fn folders(root: &Path) -> Result<Vec<PathBuf>> {
    Ok(read(root)?.into_iter().filter(|path| path.is_dir()).collect())
}

/// The files that count of some folders, by folder, partition and offset; and those whose events another one has.
pub(super) fn list(folders: &[PathBuf]) -> Result<(Vec<Segment>, Vec<Segment>)> {
    let (mut kept, mut spent): (Vec<Segment>, Vec<Segment>) = (Vec::new(), Vec::new());
    for folder in folders {
        let mut found: Vec<Segment> = read(folder)?.iter().filter_map(|path| Segment::parse(path)).collect();
        // The greatest comes first of those that begin at one offset.
        found.sort_by_key(|s| (s.partition, s.epoch, s.first, -s.last));
        for segment in found {
            let within = kept.last().is_some_and(|last| last.holds(&segment));
            if within { spent.push(segment) } else { kept.push(segment) }
        }
    }
    Ok((kept, spent))
}

fn read(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| io("listing", folder, e))?,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()).map_err(|e| io("listing", folder, e)));
    let mut paths = paths.collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}
