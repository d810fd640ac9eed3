//! How the store is read: the tier, then the overlay, then runs, and what an older store has in sled. Knows no writer.

use std::convert::Infallible;
use std::sync::{Arc, PoisonError};

use model::ports::{Read, RowSink, Table};
use model::{EntityKeys, Kind as ErrorKind, Result};

use super::layout::{self, Entry, Kind};
use super::runs::{Fault, Reader};
use super::tier::Part;
use super::{Shared, closed, disk};

/// Keys fetched in one go before a read lets other tasks run.
const READ_CHUNK: usize = 64;
/// Rows looked up in the tier in one go before a read lets other tasks run.
const ROW_CHUNK: usize = 1024;
/// A row that the tier does not have: of which table and key, and the how manieth it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Missing<'k> {
    table: usize,
    entity: &'k [u8],
    asked: usize,
}

/// Hands over a row that the tier has; gives how many that is.
fn push_part(sink: &mut dyn RowSink, table: usize, part: Option<&Part<'_>>) -> usize {
    let row = if let Some(Part::Row(row)) = part { Some(*row) } else { None };
    sink.push(table, row);
    usize::from(row.is_some())
}

/// Hands over a row that was fetched; gives how many that is.
fn push_entry(sink: &mut dyn RowSink, table: usize, entry: &Entry) -> usize {
    let row = if let Entry::Row(row) = entry { Some(row.borrowed()) } else { None };
    sink.push(table, row);
    usize::from(row.is_some())
}

impl Shared {
    /// What is stored under an entity's key, by the overlay and the disk alone.
    pub(super) fn fetch(&self, db: &::sled::Db, reader: &mut Reader<'_>, kind: Kind, key: &[u8]) -> Result<Entry> {
        if let Some(entry) = self.overlay.get(key) {
            return Ok(entry);
        }
        if let Some(entry) = reader.get(key).map_err(|fault| self.fault(fault))? {
            return Ok(entry);
        }
        let Some(value) = db.get(key).map_err(disk::failed_to("read"))? else {
            // the drainer may have taken it out meanwhile, which it put into a run before
            let found = reader.get(key).map_err(|fault| self.fault(fault))?;
            return Ok(found.unwrap_or(Entry::Absent));
        };
        layout::open_entry(kind, key, &value).ok_or_else(|| self.damaged(key))
    }

    pub(super) fn fault(&self, fault: Fault) -> model::Error {
        let failed = |what: String| model::Error::new(ErrorKind::Unavailable, what);
        match fault {
            Fault::Damaged(key) => self.damaged(&key),
            Fault::Io(e) => {
                failed("the online store failed to read or write its files: check the disk and its free space".into())
                    .with_cause(e)
            }
            Fault::Unreadable(run) => failed(format!(
                "the rows and window states that were written to {} cannot be read back: check the disk",
                run.display()
            )),
        }
    }

    pub(super) fn damaged(&self, key: &[u8]) -> model::Error {
        let what = layout::describe(key);
        self.metrics.damaged(&what);
        let advice = match layout::address(key) {
            Some(layout::Address::Entity { .. }) => "clear the view and materialize it again, or restore a copy",
            _ => "restore the store's directory from a copy, or move it away and materialize again",
        };
        model::Error::new(
            ErrorKind::Internal,
            format!("{what} is damaged in the online store (its checksum does not match): {advice}"),
        )
    }

    /// Looks up some keys of one table, by its prefix. What the tier does not have is fetched in the order of the keys.
    fn look_up<'k>(&self, kind: Kind, prefix: &[u8], keys: impl Iterator<Item = &'k [u8]>) -> Result<Vec<Entry>> {
        let mut key = prefix.to_vec();
        let mut missing = Vec::new();
        let mut out = Vec::new();
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let db = db.as_ref().ok_or_else(closed)?;
        for (at, entity) in keys.enumerate() {
            key.truncate(prefix.len());
            key.extend_from_slice(entity);
            out.push(self.tier.get(&key).unwrap_or_else(|| {
                missing.push((entity, at));
                Entry::Absent
            }));
        }
        missing.sort_unstable();
        if kind == Kind::State {
            // most are of entities that were never there
            self.runs.touch(prefix, missing.iter().map(|(entity, _)| *entity));
        }
        let mut reader = self.runs.reader();
        for (entity, at) in &missing {
            key.truncate(prefix.len());
            key.extend_from_slice(entity);
            out[*at] = self.fetch_and_keep(db, &mut reader, kind, &key)?;
        }
        self.count_tier(out.len() - missing.len(), missing.len());
        Ok(out)
    }

    pub(super) async fn read_all<T>(
        &self,
        kind: Kind,
        reads: &[Read],
        pick: impl Fn(Entry) -> Option<T>,
    ) -> Result<Vec<Vec<Option<T>>>> {
        let mut answer = Vec::with_capacity(reads.len());
        let mut since_yield = 0;
        for read in reads {
            let prefix = layout::table_prefix(kind, &read.table);
            let mut column = Vec::with_capacity(read.keys.len());
            for keys in read.keys.chunks(READ_CHUNK) {
                if since_yield >= READ_CHUNK {
                    tokio::task::yield_now().await;
                    since_yield = 0;
                }
                since_yield += keys.len();
                let entries = self.look_up(kind, &prefix, keys.iter().map(model::EntityKey::as_bytes))?;
                column.extend(entries.into_iter().map(&pick));
            }
            answer.push(column);
        }
        Ok(answer)
    }

    /// Hands over the rows of some keys of every table, up to the first that the tier does not have; gives how many were
    /// there, and what it did not have: the numbers of key and table.
    fn push_known<'k>(
        &self,
        prefixes: &[Vec<u8>],
        entities: &(impl Iterator<Item = &'k [u8]> + Clone),
        sink: &mut dyn RowSink,
    ) -> (usize, Vec<Missing<'k>>) {
        let (mut found, mut asked, mut missing) = (0, 0, Vec::new());
        let read = self.tier.read(prefixes, entities.clone(), |entity, table, part| {
            if part.is_none() {
                missing.push(Missing { table, entity, asked });
            } else if missing.is_empty() {
                found += push_part(sink, table, part.as_ref());
            }
            asked += 1;
            Ok::<(), Infallible>(())
        });
        let Ok(()) = read;
        (found, missing)
    }

    /// Goes on where [`Shared::push_known`] ended, with what was fetched of that; gives how many were there.
    fn push_fetched<'k>(
        &self,
        prefixes: &[Vec<u8>],
        entities: &(impl Iterator<Item = &'k [u8]> + Clone),
        fetched: &[(usize, Entry)],
        sink: &mut dyn RowSink,
    ) -> Result<usize> {
        let Some((first, _)) = fetched.first() else { return Ok(0) };
        let (mut found, mut fetched) = (0, fetched.iter().peekable());
        let (skipped, mut asked) = (first / prefixes.len(), first / prefixes.len() * prefixes.len());
        self.tier.read(prefixes, entities.clone().skip(skipped), |entity, table, part| {
            let known = fetched.next_if(|(at, _)| *at == asked);
            if let Some((_, entry)) = known {
                found += push_entry(sink, table, entry);
            } else if asked >= *first {
                if part.is_some() {
                    found += push_part(sink, table, part.as_ref());
                } else {
                    // it was there, and had to make room
                    let (mut fetched, mut reader) = (Vec::new(), self.runs.reader());
                    self.fetch_some(&mut reader, prefixes, &[Missing { table, entity, asked }], &mut fetched)?;
                    found += fetched.iter().map(|(_, entry)| push_entry(sink, table, entry)).sum::<usize>();
                }
            }
            asked += 1;
            Ok::<(), model::Error>(())
        })?;
        Ok(found)
    }

    /// Fetches what is missing, and says which is whose.
    fn fetch_some(
        &self,
        reader: &mut Reader<'_>,
        prefixes: &[Vec<u8>],
        missing: &[Missing<'_>],
        fetched: &mut Vec<(usize, Entry)>,
    ) -> Result<()> {
        self.with_db(|db| {
            for Missing { table, entity, asked } in missing {
                let key = [&prefixes[*table], *entity].concat();
                fetched.push((*asked, self.fetch_and_keep(db, reader, Kind::Row, &key)?));
            }
            Ok(())
        })
    }

    /// What is stored under a key that the tier does not know.
    fn fetch_and_keep(&self, db: &::sled::Db, reader: &mut Reader<'_>, kind: Kind, key: &[u8]) -> Result<Entry> {
        let ticket = self.tier.ticket(key);
        let entry = self.fetch(db, reader, kind, key)?;
        // who asks for an absent state is mostly about to write it, and the runs' filters know of absence themselves
        let keeps = kind == Kind::Row || entry != Entry::Absent;
        if let Some(ticket) = ticket.filter(|_| keeps) {
            self.tier.fill(ticket, key, &entry);
        }
        Ok(entry)
    }

    fn count_tier(&self, hits: usize, misses: usize) {
        if self.tier.is_on() {
            self.metrics.tier_hits.increment(hits as u64);
            self.metrics.tier_misses.increment(misses as u64);
            if misses > 0 {
                self.metrics.tier_bytes.set(self.tier.bytes() as f64);
            }
        }
    }

    pub(super) async fn read_rows(
        &self,
        tables: &[Arc<Table>],
        keys: &EntityKeys,
        sink: &mut dyn RowSink,
    ) -> Result<()> {
        let prefixes: Vec<_> = tables.iter().map(|table| layout::table_prefix(Kind::Row, table)).collect();
        let (mut found, mut misses, mut start) = (0, 0, 0);
        let chunk = (ROW_CHUNK / tables.len().max(1)).max(1);
        while start < keys.len() {
            let entities = keys.iter().skip(start).take(chunk);
            let (there, mut missing) = self.push_known(&prefixes, &entities, sink);
            found += there;
            if !missing.is_empty() {
                missing.sort_unstable();
                let mut fetched = Vec::with_capacity(missing.len());
                let mut reader = self.runs.reader();
                for (at, some) in missing.chunks(READ_CHUNK).enumerate() {
                    if at > 0 {
                        tokio::task::yield_now().await;
                    }
                    self.fetch_some(&mut reader, &prefixes, some, &mut fetched)?;
                }
                fetched.sort_unstable_by_key(|(asked, _)| *asked);
                found += self.push_fetched(&prefixes, &entities, &fetched, sink)?;
                misses += missing.len();
            }
            start += chunk;
            if start < keys.len() {
                tokio::task::yield_now().await;
            }
        }
        let asked = tables.len() * keys.len();
        self.count_tier(asked - misses, misses);
        self.traffic.rows_counted(found, asked - found);
        Ok(())
    }
}
