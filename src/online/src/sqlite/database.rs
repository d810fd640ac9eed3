//! What is done in a transaction: batches applied, rows and states read, tables cleared. Knows neither
//! threads nor the port's futures.

use std::collections::HashMap;

use bytes::Bytes;
use model::ports::{Read, RowWrite, Table, WriteBatch, Written};
use model::row::{Column, Version, column_id};
use model::{EntityKey, Error, Result, Row, Timestamp};
use rusqlite::{Connection, OptionalExtension, Rows, ToSql, TransactionBehavior, params};

use super::layout::{self, Known};

/// A connection, and what it knows of the tables.
pub(super) struct Database {
    pub(super) connection: Connection,
    pub(super) known: Known,
}

/// What goes wrong in a transaction: SQLite's, or ours.
pub(super) enum Failure {
    Sqlite(rusqlite::Error),
    Ours(Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

impl Database {
    /// Applies batches in one transaction: each whole or not at all.
    pub(super) fn write(&mut self, batches: &[WriteBatch]) -> Result<Vec<Result<Written, Failure>>, Failure> {
        let Self { connection, known } = self;
        let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        known.refresh(&transaction)?;
        let mut results = Vec::with_capacity(batches.len());
        for batch in batches {
            let savepoint = transaction.savepoint()?;
            let result = apply(&savepoint, known, batch);
            if result.is_ok() {
                savepoint.commit()?;
            } else {
                drop(savepoint);
                known.forget();
            }
            results.push(result);
        }
        transaction.commit()?;
        Ok(results)
    }
}

fn apply(connection: &Connection, known: &mut Known, batch: &WriteBatch) -> Result<Written, Failure> {
    let mut written = Written::default();
    for (at, write) in (0..).zip(&batch.rows) {
        if apply_row(connection, known, write)? {
            written.applied += 1;
        } else {
            written.stale.push(at);
        }
    }
    for write in &batch.states {
        let (project, view, key) = (&write.table.project, &write.table.view, write.key.as_bytes());
        match &write.state {
            Some(state) => connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO _larder_states (project, view, entity_key, state) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![project, view, key, &state[..]])?,
            None => connection
                .prepare_cached("DELETE FROM _larder_states WHERE project = ?1 AND view = ?2 AND entity_key = ?3")?
                .execute(params![project, view, key])?,
        };
    }
    for p in &batch.positions {
        connection
            .prepare_cached("INSERT OR REPLACE INTO _larder_positions VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![p.group, p.topic, p.partition, p.offset, p.max_event.0])?;
    }
    Ok(written)
}

/// Merges a row as [`model::row::merge`] does. Gives whether any of it was applied.
fn apply_row(connection: &Connection, known: &mut Known, write: &RowWrite) -> Result<bool, Failure> {
    let columns = write.row.columns();
    let names = columns.iter().map(|c| write.table.feature(c.id)).collect::<Result<Vec<_>>>()?;
    known.ensure(connection, &write.table)?;
    let name = layout::table_name(&write.table);
    let stored = features(connection, &name, true, write.key.as_bytes(), |_| Ok(()))?;
    let stored: HashMap<u32, Version> = stored.into_iter().map(|(id, (), version)| (id, version)).collect();
    let mut upsert = connection.prepare_cached(&layout::upsert(&name))?;
    let mut applied = columns.is_empty();
    for (column, feature) in columns.iter().zip(names) {
        if stored.get(&column.id).is_some_and(|version| column.version < *version) {
            continue;
        }
        let Version { event, created } = column.version;
        let created = (created != Timestamp(0)).then_some(created);
        upsert.execute(params![
            write.key.as_bytes(),
            feature,
            &column.value[..],
            layout::value_text(&column.value),
            layout::to_feast(event),
            created.map(layout::to_feast),
            event.0,
            created.map(|c| c.0),
        ])?;
        applied = true;
    }
    Ok(applied)
}

/// An entity's features by column id, with what `value` makes of their values.
fn features<T>(
    connection: &Connection,
    name: &str,
    ours: bool,
    key: &[u8],
    value: impl Fn(&[u8]) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<(u32, T, Version)>> {
    let mut select = connection.prepare_cached(&layout::select(name, ours))?;
    collect(select.query([key])?, value)
}

fn collect<T>(
    mut rows: Rows<'_>,
    value: impl Fn(&[u8]) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<(u32, T, Version)>> {
    let mut out = Vec::new();
    while let Some(row) = rows.next()? {
        let id = column_id(row.get_ref(0)?.as_str()?);
        let bytes = row.get_ref(1)?.as_bytes_or_null()?.unwrap_or_default();
        let version = layout::version(row.get_ref(2)?, row.get_ref(3)?, [row.get(4)?, row.get(5)?]);
        out.push((id, value(bytes)?, version));
    }
    Ok(out)
}

/// Those of an entity's features that the part of a table has, and the newest version of all that are stored.
/// Rows that lack one of them are read whole: their newest version may be another column's.
fn part_of_row(
    connection: &Connection,
    (name, ours): (&str, bool),
    key: &[u8],
    part: &Table,
) -> rusqlite::Result<Option<Row>> {
    let asked = part.features();
    let copy = |value: &[u8]| Ok(Bytes::copy_from_slice(value));
    let mut select = connection.prepare_cached(&layout::select_some(name, ours, asked.len()))?;
    let names = asked.iter().map(|(_, name)| name as &dyn ToSql);
    let bound: Vec<&dyn ToSql> = std::iter::once(&key as &dyn ToSql).chain(names).collect();
    let mut found = collect(select.query(&bound[..])?, copy)?;
    let mut newest = found.iter().map(|(_, _, version)| *version).max();
    if found.is_empty() || found.len() < asked.len() {
        let all = features(connection, name, ours, key, copy)?;
        newest = all.iter().map(|(_, _, version)| *version).max();
        found = all.into_iter().filter(|(id, _, _)| part.feature(*id).is_ok()).collect();
    }
    let columns = found.into_iter().map(|(id, value, version)| Column { id, value, version }).collect();
    Ok(newest.map(|newest| Row::pack_part(newest, columns)))
}

/// Reads rows; a table that is not there has none. Errors: as [`layout::check_owner`].
pub(super) fn read_rows(connection: &Connection, known: &mut Known, read: &Read) -> Result<Vec<Option<Row>>, Failure> {
    let name = layout::table_name(&read.table);
    let Some(ours) = known.table(connection, &name)? else { return Ok(vec![None; read.keys.len()]) };
    layout::check_owner(connection, &read.table)?;
    let row = |key: &EntityKey| {
        if read.table.whole().is_some() {
            return Ok(part_of_row(connection, (&name, ours), key.as_bytes(), &read.table)?);
        }
        let found = features(connection, &name, ours, key.as_bytes(), |v| Ok(Bytes::copy_from_slice(v)))?;
        let columns: Vec<_> = found.into_iter().map(|(id, value, version)| Column { id, value, version }).collect();
        Ok((!columns.is_empty()).then(|| Row::pack(columns)))
    };
    read.keys.iter().map(row).collect()
}

/// Reads window states.
pub(super) fn read_states(connection: &Connection, read: &Read) -> Result<Vec<Option<Bytes>>, Failure> {
    let mut select = connection
        .prepare_cached("SELECT state FROM _larder_states WHERE project = ?1 AND view = ?2 AND entity_key = ?3")?;
    let mut state = |key: &EntityKey| {
        let found: Option<Vec<u8>> = select
            .query_row(params![read.table.project, read.table.view, key.as_bytes()], |row| row.get(0))
            .optional()?;
        Ok(found.map(Bytes::from))
    };
    read.keys.iter().map(&mut state).collect()
}

/// Removes a table's rows and states. Gives how many.
pub(super) fn clear(connection: &Connection, known: &mut Known, table: &Table) -> Result<u64, Failure> {
    let name = layout::table_name(table);
    let mut removed = 0;
    if known.table(connection, &name)?.is_some() && layout::check_owner(connection, table).is_ok() {
        let count = format!("SELECT COUNT(DISTINCT entity_key) FROM {name}");
        removed = connection.query_row(&count, [], |row| row.get::<_, i64>(0))? as u64;
        connection.execute(&format!("DELETE FROM {name}"), [])?;
        layout::disclaim(connection, table)?;
    }
    let states = connection
        .execute("DELETE FROM _larder_states WHERE project = ?1 AND view = ?2", params![table.project, table.view])?;
    Ok(removed + states as u64)
}
