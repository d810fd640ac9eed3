//! Tables that older clients upload by `do_put` and ask for by `do_get`: kept on disk under a hash of
//! their command until they are fetched or expire, so that a restart in between loses none.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::Result;

use crate::engine::blocking;
use crate::error::io;
use crate::frame::{Frame, Stored, Writer};
use crate::{Offline, Settings};

/// The spool: per upload `<hash>.cmd` with the command and `<hash>.arrows` with the table (Arrow IPC
/// stream).
#[derive(Debug)]
pub(super) struct Uploads {
    dir: PathBuf,
    ttl: Duration,
}

impl Uploads {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { dir: settings.upload_dir.clone(), ttl: settings.upload_ttl }
    }

    /// Keeps a table for its command; removes those that expired.
    pub(super) async fn store(&self, command: &[u8], frame: Frame) -> Result<()> {
        let (dir, ttl, path, command) = (self.dir.clone(), self.ttl, self.path(command), command.to_vec());
        blocking(move || {
            std::fs::create_dir_all(&dir).map_err(|e| io("creating", &dir, e))?;
            expire(&dir, ttl)?;
            let hidden = path.with_extension(format!("{}.part", uuid::Uuid::new_v4().simple()));
            let kept = keep(&frame, &command, &hidden, &path);
            if kept.is_err() {
                // best effort: the failure that matters is the one returned
                let _ = std::fs::remove_file(&hidden);
                if !path.exists() {
                    remove(&path);
                }
            }
            kept
        })
        .await
    }

    /// Whether a table is kept for the command.
    pub(super) fn contains(&self, command: &[u8]) -> bool {
        let path = self.path(command);
        fresh(&path, self.ttl) && std::fs::read(path.with_extension("cmd")).is_ok_and(|stored| stored == command)
    }

    /// The table kept for the command.
    pub(super) async fn load(&self, command: &[u8], offline: &Offline) -> Result<Option<Frame>> {
        if !self.contains(command) {
            return Ok(None);
        }
        let (path, offline) = (self.path(command), offline.clone());
        blocking(move || {
            let memory = offline.engine.reservation("entity frame");
            Ok(Some(Frame::stored(Stored::open(&path)?, memory)?))
        })
        .await
    }

    /// Drops the table of a command.
    pub(super) fn forget(&self, command: &[u8]) {
        remove(&self.path(command));
    }

    /// The commands whose tables are kept.
    pub(super) fn commands(&self) -> Result<Vec<Vec<u8>>> {
        let entries = std::fs::read_dir(&self.dir).map_err(|e| io("listing", &self.dir, e))?;
        let paths = entries.filter_map(|e| e.ok().map(|e| e.path()));
        let kept = paths.filter(|p| p.extension().is_some_and(|e| e == "arrows") && fresh(p, self.ttl));
        Ok(kept.filter_map(|p| std::fs::read(p.with_extension("cmd")).ok()).collect())
    }

    fn path(&self, command: &[u8]) -> PathBuf {
        // FNV-1a, 128 bits: the same in every process; the command beside it guards against collisions.
        let hash = command.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
            (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
        });
        self.dir.join(format!("{hash:032x}.arrows"))
    }
}

/// Writes a table beside its place, and its command, and puts it there.
fn keep(frame: &Frame, command: &[u8], hidden: &Path, path: &Path) -> Result<()> {
    let file = File::create(hidden).map_err(|e| io("creating", hidden, e))?;
    let mut writer = Writer::new(file, hidden, frame.schema())?;
    for batch in frame.batches()? {
        writer.write(&batch?)?;
    }
    writer.finish()?;
    let command_path = path.with_extension("cmd");
    std::fs::write(&command_path, command).map_err(|e| io("writing", &command_path, e))?;
    std::fs::rename(hidden, path).map_err(|e| io("writing", path, e))
}

fn fresh(path: &Path, ttl: Duration) -> bool {
    let modified = std::fs::metadata(path).and_then(|m| m.modified());
    // A time in the future is a clock that was set back: the file is fresh.
    modified.is_ok_and(|m| m.elapsed().unwrap_or_default() < ttl)
}

fn expire(dir: &Path, ttl: Duration) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(|e| io("listing", dir, e))? {
        let path = entry.map_err(|e| io("listing", dir, e))?.path();
        if !fresh(&path, ttl) {
            remove(&path);
        }
    }
    Ok(())
}

fn remove(path: &Path) {
    for path in [path.to_path_buf(), path.with_extension("cmd")] {
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), "an upload could not be removed: {error}");
        }
    }
}
