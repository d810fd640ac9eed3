//! The store's files: opening them, and making what sled has written durable. Knows no row.
//!
//! sled's `flush` hands its log to the operating system (`sync_file_range`), which does not survive a
//! power loss; `fdatasync` on the `db` file behind it does. Values too large for the log (pages above
//! 128 KiB) become files in `blobs/`, which sled never synchronizes: they are, here.
//! `larder-format` beside sled's files says what the directory is, before sled touches it and also
//! when sled, finding its log unreadable, would start afresh. The write-ahead log is in `wal`; sled
//! knows up to which segment it has everything, so that neither a lost nor a left-over segment is taken
//! for what it is not.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use model::Kind as ErrorKind;

use super::Settings;
use super::layout::{self, FORMAT, FORMAT_KEY, Kind, OLDER_FORMATS, RUNS_KEY, TRIMMED_KEY, seal, unseal};
use super::runs::{self, Fault, InTree, Runs};
use super::wal::{self, Damage, Replayed, Wal};
use crate::error::Error;
use crate::space;

const MARKER: &str = "larder-format";
/// How long closing waits for sled's background threads to let go of the lock.
const RELEASE: Duration = Duration::from_secs(10);

/// By how much sled's files may grow, at most, with what is put into it: it writes pages, not entries.
const GROWTH: u64 = 16;

/// An open directory.
pub(crate) struct Disk {
    pub(crate) db: ::sled::Db,
    path: PathBuf,
    data: File,
    /// Blob files that are synchronized, by name, with length and time of change.
    blobs: HashMap<OsString, (u64, Option<SystemTime>)>,
}

impl Disk {
    /// Makes everything that is in sled so far survive a power loss.
    pub(crate) fn make_durable(&mut self) -> model::Result<()> {
        self.db.flush().map_err(failed_to("flush"))?;
        self.sync().map_err(|e| {
            model::Error::new(ErrorKind::Unavailable, "the online store cannot be synchronized to disk").with_cause(e)
        })
    }

    /// That there is room for sled to go on; `sparing` is that what it holds back is written first, so that the
    /// disk says how full it is.
    pub(crate) fn room(&self, sparing: bool) -> model::Result<()> {
        if sparing {
            self.db.flush().map_err(failed_to("flush"))?;
        }
        space::check(&self.path)
    }

    /// Whether so many bytes may be too many for the disk.
    pub(crate) fn is_short_of(&self, bytes: u64) -> bool {
        space::free(&self.path).is_some_and(|free| free < bytes.saturating_mul(GROWTH).saturating_add(space::RESERVE))
    }

    /// Where the write-ahead log is.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join(wal::DIRECTORY)
    }

    /// Opens the runs that sled lists; changes nothing.
    pub(crate) fn read_runs(&self) -> Result<Runs, Error> {
        let path = &self.path;
        let list = match self.db.get(RUNS_KEY).map_err(|e| sled_error(path, e))? {
            None => Vec::new(),
            Some(stored) => unseal(RUNS_KEY, &stored).and_then(runs::decode).ok_or_else(|| Error::Damaged {
                path: path.clone(),
                detail: format!("the checksum of {} does not match", layout::describe(RUNS_KEY)),
            })?,
        };
        let has = |kind: Kind| {
            let first = self.db.scan_prefix([kind as u8]).next();
            first.transpose().map(|first| first.is_some()).map_err(|e| sled_error(path, e))
        };
        let in_tree = InTree { rows: has(Kind::Row)?, states: has(Kind::State)? };
        Runs::open(path, &list, in_tree).map_err(|fault| match fault {
            Fault::Io(source) => Error::Io { path: path.join(runs::DIRECTORY), source },
            Fault::Damaged(key) => Error::Damaged { path: path.clone(), detail: layout::describe(&key) },
            Fault::Unreadable(run) => {
                let detail = format!("the rows and window states in {} are missing or damaged", run.display());
                Error::Damaged { path: path.clone(), detail }
            }
        })
    }

    /// Puts the list of runs where it is read on opening, durable on return.
    pub(crate) fn store_runs(&mut self, list: &[runs::Listed]) -> model::Result<()> {
        let sealed = seal(RUNS_KEY, &runs::encode(list));
        self.db.insert(RUNS_KEY, sealed).map_err(failed_to("write"))?;
        self.make_durable()
    }

    /// Whether merging so many bytes leaves room to spare.
    pub(crate) fn has_room_for(&self, bytes: u64) -> bool {
        space::free(&self.path).is_none_or(|free| free > bytes.saturating_mul(2).saturating_add(space::RESERVE))
    }

    /// Reads the write-ahead log; changes nothing.
    pub(crate) fn read_log(&self) -> Result<Replayed, Error> {
        let path = &self.path;
        let damaged = |detail: String| Error::Damaged { path: path.clone(), detail };
        let trimmed = match self.db.get(TRIMMED_KEY).map_err(|e| sled_error(path, e))? {
            None => None,
            Some(stored) => {
                let number = unseal(TRIMMED_KEY, &stored).and_then(|n| n.try_into().ok()).map(u64::from_le_bytes);
                Some(number.ok_or_else(|| {
                    damaged("the checksum of the write-ahead log's last trimmed segment does not match".into())
                })?)
            }
        };
        let log = self.log();
        if trimmed.is_none() && !log.exists() {
            return Ok(Replayed::default());
        }
        wal::read(&log, trimmed).map_err(|damage| match damage {
            Damage::Found(detail) => damaged(detail),
            Damage::Io(source) => Error::Io { path: log, source },
        })
    }

    /// Reads the write-ahead log, repairs its end, and begins a new segment.
    pub(crate) fn open_log(&self) -> Result<(Replayed, Wal), Error> {
        let mut replayed = self.read_log()?;
        let log = self.log();
        let opened = (|| {
            if !log.exists() {
                fs::create_dir(&log)?;
                File::open(&self.path)?.sync_all()?;
            }
            replayed.repair(&log)?;
            Wal::create(&log, replayed.last + 1, replayed.end)
        })();
        let wal = opened.map_err(|source| Error::Io { path: log, source })?;
        if replayed.records > 0 {
            tracing::info!(records = replayed.records, bytes = replayed.bytes, "the write-ahead log was replayed");
        }
        Ok((replayed, wal))
    }

    /// Lets go of the files; returns once they can be opened again.
    pub(crate) fn close(self) -> model::Result<()> {
        let Self { db, path, .. } = self;
        drop(db);
        released(&path)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_blobs()?;
        self.data.sync_data()
    }

    fn sync_blobs(&mut self) -> io::Result<()> {
        let directory = self.path.join("blobs");
        let mut there = HashMap::new();
        let mut new = false;
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            // sled removes blobs at any time: one that is gone needs no care.
            let Some(metadata) = found(entry.metadata())? else {
                continue;
            };
            let (name, stamp) = (entry.file_name(), (metadata.len(), metadata.modified().ok()));
            if self.blobs.get(&name) != Some(&stamp) {
                let Some(file) = found(File::open(entry.path()))? else {
                    continue;
                };
                file.sync_all()?;
                new = true;
            }
            there.insert(name, stamp);
        }
        self.blobs = there;
        if new { File::open(&directory)?.sync_all() } else { Ok(()) }
    }
}

fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Opens the directory; creates it if it is not there.
pub(crate) fn open(settings: &Settings) -> Result<Disk, Error> {
    let path = &settings.path;
    let created = create(path)?;
    let marked = check_marker(path)?;
    let db = open_sled(settings)?;
    let fresh = check_format(path, &db, marked)?;
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    };
    let data = path.join("db");
    let data = File::open(&data).map_err(at(&data))?;
    let mut disk = Disk { db, path: path.clone(), data, blobs: HashMap::new() };
    if fresh || !marked {
        disk.db.insert(FORMAT_KEY, seal(FORMAT_KEY, &FORMAT.to_le_bytes())).map_err(|e| sled_error(path, e))?;
        disk.db.flush().map_err(|e| sled_error(path, e))?;
        disk.sync().map_err(at(path))?;
        let (runs, older) = (path.join(runs::DIRECTORY), path.join(runs::DIRECTORY_OF_STATES));
        if older.exists() && !runs.exists() {
            fs::rename(&older, &runs).map_err(at(&older))?;
        }
        for directory in [path.join("conf"), path.clone()].iter().chain(&created) {
            File::open(directory).and_then(|f| f.sync_all()).map_err(at(directory))?;
        }
        let marker = path.join(MARKER);
        fs::write(&marker, format!("{FORMAT}\n")).map_err(at(&marker))?;
        for file in [&marker, path] {
            File::open(file).and_then(|f| f.sync_all()).map_err(at(file))?;
        }
    }
    Ok(disk)
}

/// Opens a directory that must hold a store.
pub(crate) fn open_existing(path: &Path) -> Result<Disk, Error> {
    if !path.join("db").is_file() {
        return Err(Error::Missing { path: path.to_owned() });
    }
    open(&Settings { cache_bytes: 64 << 20, ..Settings::new(path) })
}

/// Creates the directory; gives the directories whose entries that changed.
fn create(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let missing = path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists());
    let parents = missing
        .filter_map(Path::parent)
        .map(|parent| if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() });
    let parents = parents.collect();
    fs::create_dir_all(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    Ok(parents)
}

/// Whether the marker is there; it is written last, so a store with it was created to the end.
fn check_marker(path: &Path) -> Result<bool, Error> {
    let marker = path.join(MARKER);
    let text = match fs::read_to_string(&marker) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return no_marker(path),
        Err(source) => {
            return Err(Error::Io { path: marker, source });
        }
    };
    match text.trim() {
        // The power went between the file's creation and its content: the tree knows.
        "" => Ok(false),
        found if found == FORMAT.to_string() => Ok(true),
        // Its tree says so too, and is brought up to date.
        found if found.parse().is_ok_and(|found| OLDER_FORMATS.contains(&found)) => Ok(false),
        found => Err(Error::Format { path: path.to_owned(), found: format!("'{found}'"), expected: FORMAT }),
    }
}

/// Without our marker a `db` file must at least be sled's, which writes `conf` first: sled would take
/// any other for a torn log, and cut it off.
fn no_marker(path: &Path) -> Result<bool, Error> {
    if path.join("db").exists() && !path.join("conf").exists() {
        let detail = "it holds a file 'db' that sled did not write, or sled's file 'conf' is gone".into();
        return Err(Error::Damaged { path: path.to_owned(), detail });
    }
    Ok(false)
}

/// Checks the tree's format number; gives whether it is to be written.
fn check_format(path: &Path, db: &::sled::Db, marked: bool) -> Result<bool, Error> {
    let damaged = |detail: &str| Error::Damaged { path: path.to_owned(), detail: detail.into() };
    let Some(stored) = db.get(FORMAT_KEY).map_err(|e| sled_error(path, e))? else {
        if marked {
            return Err(damaged("its data file does not hold the store any more"));
        }
        if !db.is_empty() {
            return Err(damaged("it holds a sled database that Larder did not write"));
        }
        return Ok(true);
    };
    let number = unseal(FORMAT_KEY, &stored).and_then(|n| n.try_into().ok()).map(u32::from_le_bytes);
    match number {
        Some(FORMAT) => Ok(false),
        Some(older) if OLDER_FORMATS.contains(&older) => Ok(true),
        Some(other) => Err(Error::Format { path: path.to_owned(), found: other.to_string(), expected: FORMAT }),
        None => Err(damaged("the format number's checksum does not match")),
    }
}

fn open_sled(settings: &Settings) -> Result<::sled::Db, Error> {
    let config = ::sled::Config::new()
        .path(&settings.path)
        .cache_capacity(settings.cache_bytes)
        .flush_every_ms(settings.flush_every_ms);
    let path = &settings.path;
    // sled asserts what it reads: on a thread of its own, a panic over a damaged file is an answer.
    let opening = std::thread::Builder::new()
        .name("online-open".into())
        .spawn(move || config.open())
        .map_err(|source| Error::Io { path: path.clone(), source })?;
    match opening.join() {
        Ok(opened) => opened.map_err(|e| sled_error(path, e)),
        Err(panic) => Err(Error::Damaged { path: path.clone(), detail: panic_text(&*panic) }),
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("sled panicked: {}", text.unwrap_or("without a message"))
}

fn sled_error(path: &Path, error: ::sled::Error) -> Error {
    let path = path.to_owned();
    match error {
        ::sled::Error::Io(e) if e.to_string().starts_with("could not acquire lock") => Error::Locked { path },
        ::sled::Error::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            Error::Damaged { path, detail: format!("a file ends too early: {e}") }
        }
        ::sled::Error::Io(source) => Error::Io { path, source },
        other => Error::Damaged { path, detail: other.to_string() },
    }
}

/// Turns sled's error while it runs into the port's.
pub(crate) fn failed_to(verb: &'static str) -> impl Fn(::sled::Error) -> model::Error {
    move |error| {
        let (kind, advice) = match &error {
            ::sled::Error::Io(_) => (ErrorKind::Unavailable, "check the disk and its free space"),
            _ => (ErrorKind::Internal, "stop Larder and check the store"),
        };
        model::Error::new(kind, format!("the online store failed to {verb} its data: {advice}")).with_cause(error)
    }
}

/// Waits until nobody holds the lock of the data file.
fn released(path: &Path) -> model::Result<()> {
    let failed =
        |e| model::Error::new(ErrorKind::Unavailable, "the online store's files cannot be released").with_cause(e);
    let data = File::open(path.join("db")).map_err(failed)?;
    let start = Instant::now();
    loop {
        match data.try_lock() {
            Ok(()) => return data.unlock().map_err(failed),
            Err(TryLockError::WouldBlock) if start.elapsed() < RELEASE => {
                // sled's own threads let go of the lock, and tell nobody
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(failed(e.into())),
        }
    }
}
