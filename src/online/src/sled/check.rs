//! Reads a whole store, its write-ahead log included, and verifies every checksum: for `larder check`,
//! with the server stopped. Changes nothing that is stored. Knows no repair.

use std::convert::Infallible;
use std::path::Path;

use bytes::Bytes;

use super::disk::{self, panic_text};
use super::layout::{self, Address, Entry, Kind};
use super::overlay::Layer;
use super::runs::{Fault, Runs};
use crate::error::Error;

/// What is read at once of each run, in bytes.
const AHEAD: u64 = 256 << 10;
/// How many damaged values are named.
const NAMED: usize = 100;

/// What a store holds, and what of it is damaged. What the write-ahead log holds counts in place of what
/// it will replace in the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows that are whole.
    pub rows: u64,
    /// Window states that are whole.
    pub states: u64,
    /// Consumer positions that are whole.
    pub positions: u64,
    /// The size of all keys and values, in bytes.
    pub bytes: u64,
    /// Groups of writes in the write-ahead log, which runs and sled will have once the store was open.
    pub log_records: u64,
    /// Values whose checksum fails, or which are not what their key says.
    pub damaged: u64,
    /// The first hundred of the damaged values, in words.
    pub named: Vec<String>,
    /// Why reading ended early, where it did: what lies behind was not looked at.
    pub unreadable: Option<String>,
}

impl Report {
    /// Whether all was read and nothing is damaged.
    pub fn is_whole(&self) -> bool {
        self.damaged == 0 && self.unreadable.is_none()
    }

    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.bytes += (key.len() + value.len()) as u64;
        let whole = match layout::address(key) {
            Some(Address::Format | Address::Runs | Address::Trimmed) => layout::unseal(key, value).map(|_| None),
            Some(Address::Entity { kind: Kind::Row, .. }) => {
                layout::open_entry(Kind::Row, key, value).map(|_| Some(&mut self.rows))
            }
            Some(Address::Entity { kind: Kind::State, .. }) => {
                layout::open_entry(Kind::State, key, value).map(|_| Some(&mut self.states))
            }
            Some(Address::Position { .. }) => layout::open_position(key, value).map(|_| Some(&mut self.positions)),
            None => None,
        };
        match whole {
            Some(Some(count)) => *count += 1,
            Some(None) => {}
            None => self.name(layout::describe(key)),
        }
    }

    fn name(&mut self, damaged: String) {
        self.damaged += 1;
        if self.named.len() < NAMED {
            self.named.push(damaged);
        }
    }

    /// What runs hold and the log does not replace.
    fn add_runs(&mut self, runs: &Runs, log: &Layer) {
        let mut merged = runs.from(&[], AHEAD);
        while merged.next(|key, value| {
            let Some(value) = value.filter(|_| !log.holds(key)) else { return };
            self.bytes += (key.len() + value.len()) as u64;
            let entry = layout::kind(key).and_then(|kind| layout::entry_of(kind, Bytes::copy_from_slice(value)));
            match entry {
                Some(Entry::Row(_)) => self.rows += 1,
                Some(Entry::State(_)) => self.states += 1,
                _ => self.name(layout::describe(key)),
            }
        }) {}
        for fault in merged.faults {
            self.name(match fault {
                Fault::Damaged(key) => layout::describe(&key),
                Fault::Unreadable(run) => format!("the rows and window states in {}", run.display()),
                Fault::Io(e) => format!("a row or window state that cannot be read ({e})"),
            });
        }
    }

    fn add_log(&mut self, layer: &Layer) {
        let counted: Result<(), Infallible> = layer.each(|key, value| {
            let count = if layout::kind(key) == Some(Kind::State) { &mut self.states } else { &mut self.rows };
            *count += u64::from(value.is_some());
            Ok(())
        });
        counted.unwrap_or_else(|never| match never {});
        self.positions += layer.positions().len() as u64;
    }
}

/// Verifies the store in a directory. Blocks while it reads all of it.
///
/// Errors: as [`super::Store::open`], and `NotFound` where there is no store.
pub fn check(path: &Path) -> Result<Report, Error> {
    let disk = disk::open_existing(path)?;
    let db = disk.db.clone();
    let mut first = Report::default();
    let log = match disk.read_log() {
        Ok(replayed) => {
            first.log_records = replayed.records;
            first.add_log(&replayed.layer);
            replayed.layer
        }
        Err(Error::Damaged { detail, .. }) => {
            first.name(detail);
            Layer::default()
        }
        Err(error) => return Err(error),
    };
    let runs = match disk.read_runs() {
        Ok(runs) => Some(runs),
        Err(Error::Damaged { detail, .. }) => {
            first.name(detail);
            None
        }
        Err(error) => return Err(error),
    };
    let reading = std::thread::Builder::new().name("online-check".into()).spawn(move || {
        let mut report = first;
        if let Some(runs) = &runs {
            report.add_runs(runs, &log);
        }
        let mut reader = runs.as_ref().map(Runs::reader);
        let mut is_replaced = |key: &[u8]| {
            let in_run = reader.as_mut().filter(|_| layout::kind(key).is_some()).map(|reader| reader.get(key));
            log.holds(key) || matches!(in_run, Some(Ok(Some(_)) | Err(_)))
        };
        for stored in db.iter() {
            match stored {
                Ok((key, _)) if is_replaced(&key) => {}
                Ok((key, value)) => report.add(&key, &value),
                Err(e) => {
                    report.unreadable = Some(e.to_string());
                    break;
                }
            }
        }
        report
    });
    let reading = reading.map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let report =
        reading.join().unwrap_or_else(|panic| Report { unreadable: Some(panic_text(&*panic)), ..Report::default() });
    if let Err(error) = disk.close() {
        tracing::warn!(%error, "the store was checked, but its files are still held");
    }
    Ok(report)
}
