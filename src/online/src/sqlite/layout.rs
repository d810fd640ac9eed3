//! How rows lie in SQLite: Feast's layout, and what is ours beside it. Knows no thread and no port.
//!
//! A view is the table `project_view`, with one row per entity and feature: `entity_key` (the entity
//! key's bytes), `feature_name`, `value` (a `feast.types.Value`), `value_text` (the value for text
//! search), `vector_value`, `event_ts` and `created_ts`. Source:
//! `feast/infra/online_stores/sqlite.py`.
//!
//! Feast keeps times in whole seconds (`int(datetime.timestamp())`) and takes the naive UTC date-time
//! for one of the process' own time zone, on both ways: so do we, in ours. The exact times stand in two
//! columns more, `larder_event_us` and `larder_created_us`; they count only while they agree with
//! Feast's: else Feast has written since.
//!
//! Window states and consumer positions are in tables of our own; their names begin with `_`, as no
//! project's does. So is whose a table is, since names run together: view `c` of project `a_b` and view
//! `b_c` of project `a` have one. It is the first one's that we write; the other is refused.

use std::collections::HashMap;

use chrono::{DateTime, Days, Local, NaiveDateTime, TimeZone};
use model::ports::Table;
use model::row::Version;
use model::value::{Value, proto_value::Val};
use model::{Error, Kind, Timestamp};
use prost::Message;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Result};

use super::database::Failure;

/// What is ours in every database.
pub(crate) const OURS: &str = "
    CREATE TABLE IF NOT EXISTS _larder_states (
        project TEXT, view TEXT, entity_key BLOB, state BLOB NOT NULL,
        PRIMARY KEY (project, view, entity_key)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS _larder_positions (
        \"group\" TEXT, topic TEXT, partition INTEGER, \"offset\" INTEGER NOT NULL, max_event INTEGER NOT NULL,
        PRIMARY KEY (\"group\", topic, partition)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS _larder_owners (
        name TEXT PRIMARY KEY COLLATE NOCASE, project TEXT NOT NULL, view TEXT NOT NULL
    ) WITHOUT ROWID;
";

/// What Feast names the table, in quotes.
pub(crate) fn table_name(table: &Table) -> String {
    quoted(&bare_name(table))
}

fn bare_name(table: &Table) -> String {
    format!("{}_{}", table.project, table.view)
}

/// Makes the table this one's, where it is nobody's.
///
/// Errors: as [`check_owner`].
pub(super) fn claim(connection: &Connection, table: &Table) -> Result<(), Failure> {
    connection
        .prepare_cached("INSERT OR IGNORE INTO _larder_owners (name, project, view) VALUES (?1, ?2, ?3)")?
        .execute([&bare_name(table), &table.project, &table.view])?;
    check_owner(connection, table)
}

/// Makes the table nobody's again.
pub(super) fn disclaim(connection: &Connection, table: &Table) -> Result<()> {
    let mut delete = connection.prepare_cached("DELETE FROM _larder_owners WHERE name = ?1")?;
    delete.execute([bare_name(table)]).map(|_| ())
}

/// Errors: `Conflict` where another view has the table; the message names both.
pub(super) fn check_owner(connection: &Connection, table: &Table) -> Result<(), Failure> {
    let name = bare_name(table);
    let mut select = connection.prepare_cached("SELECT project, view FROM _larder_owners WHERE name = ?1")?;
    let owner: Option<(String, String)> = select.query_row([&name], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    match owner {
        Some((project, view)) if (&project, &view) != (&table.project, &table.view) => {
            let message = format!(
                "feature view {} of project {} has the SQLite table {name}, which is that of feature view \
                 {view} of project {project}: rename one of them, or keep the projects in files of their own",
                table.view, table.project
            );
            Err(Error::new(Kind::Conflict, message).into())
        }
        _ => Ok(()),
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// What is known of the tables in a database, until its schema changes.
#[derive(Default)]
pub(crate) struct Known {
    schema: i64,
    /// By quoted name: whether it has our columns; `None` where there is no such table.
    tables: HashMap<String, Option<bool>>,
}

impl Known {
    /// Forgets what an other connection may have changed; for the beginning of a transaction.
    pub(crate) fn refresh(&mut self, connection: &Connection) -> Result<()> {
        let schema = connection.prepare_cached("PRAGMA schema_version")?.query_row([], |row| row.get(0))?;
        if self.schema != schema {
            self.tables.clear();
            self.schema = schema;
        }
        Ok(())
    }

    /// Forgets everything.
    pub(crate) fn forget(&mut self) {
        self.tables.clear();
    }

    /// Whether the table has our columns; `None` where there is no such table.
    pub(crate) fn table(&mut self, connection: &Connection, name: &str) -> Result<Option<bool>> {
        if let Some(known) = self.tables.get(name) {
            return Ok(*known);
        }
        let columns = columns(connection, name)?;
        let found = (!columns.is_empty()).then(|| columns.iter().any(|c| c == "larder_created_us"));
        self.tables.insert(name.to_owned(), found);
        Ok(found)
    }

    /// Creates what is missing of the table, as `feast apply` does, and our columns.
    ///
    /// Errors: as [`check_owner`].
    pub(super) fn ensure(&mut self, connection: &Connection, table: &Table) -> Result<(), Failure> {
        let name = table_name(table);
        claim(connection, table)?;
        if self.table(connection, &name)? == Some(true) {
            return Ok(());
        }
        let index = quoted(&format!("{}_{}_ek", table.project, table.view));
        connection.execute_batch(&format!(
            "CREATE TABLE IF NOT EXISTS {name} (entity_key BLOB, feature_name TEXT, value BLOB, value_text TEXT, \
             vector_value BLOB, event_ts timestamp, created_ts timestamp, PRIMARY KEY(entity_key, feature_name));
             CREATE INDEX IF NOT EXISTS {index} ON {name} (entity_key);"
        ))?;
        let there = columns(connection, &name)?;
        for (column, kind) in [("value_text", "TEXT"), ("larder_event_us", "INTEGER"), ("larder_created_us", "INTEGER")]
        {
            if !there.iter().any(|c| c == column) {
                connection.execute_batch(&format!("ALTER TABLE {name} ADD COLUMN {column} {kind}"))?;
            }
        }
        self.tables.insert(name, Some(true));
        Ok(())
    }
}

fn columns(connection: &Connection, name: &str) -> Result<Vec<String>> {
    let mut statement = connection.prepare(&format!("PRAGMA table_info({name})"))?;
    statement.query_map([], |row| row.get(1))?.collect()
}

/// The query for an entity's features: name, value, and the four times that [`version`] takes.
pub(crate) fn select(name: &str, ours: bool) -> String {
    let ours = if ours { "larder_event_us, larder_created_us" } else { "NULL, NULL" };
    format!("SELECT feature_name, value, event_ts, created_ts, {ours} FROM {name} WHERE entity_key = ?1")
}

/// The query [`select`] for so many features alone; their names are `?2`, `?3`, and so on.
pub(crate) fn select_some(name: &str, ours: bool, features: usize) -> String {
    let places: Vec<_> = (2..features + 2).map(|at| format!("?{at}")).collect();
    format!("{} AND feature_name IN ({})", select(name, ours), places.join(", "))
}

/// The statement that sets a feature: entity key, name, value, text, event and created time as Feast
/// has them, and as we do.
pub(crate) fn upsert(name: &str) -> String {
    let columns = ["value", "value_text", "event_ts", "created_ts", "larder_event_us", "larder_created_us"];
    let set = columns.map(|c| format!("{c} = excluded.{c}")).join(", ");
    format!(
        "INSERT INTO {name} (entity_key, feature_name, {}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
         ON CONFLICT(entity_key, feature_name) DO UPDATE SET {set}",
        columns.join(", ")
    )
}

/// A feature's times: ours where they agree with Feast's. A created time of ours belongs to an event
/// time of ours.
pub(crate) fn version(event: ValueRef<'_>, created: ValueRef<'_>, [event_us, created_us]: [Option<i64>; 2]) -> Version {
    let agreed = |feasts: ValueRef<'_>, us: Option<i64>| {
        us.map(Timestamp).filter(|ours| matches!(feasts, ValueRef::Integer(seconds) if seconds == to_feast(*ours)))
    };
    match agreed(event, event_us) {
        Some(event) => Version { event, created: agreed(created, created_us).unwrap_or_else(|| feasts_time(created)) },
        None => Version { event: feasts_time(event), created: feasts_time(created) },
    }
}

/// A time as Feast writes it; older Feasts wrote ISO 8601.
fn feasts_time(value: ValueRef<'_>) -> Timestamp {
    match value {
        ValueRef::Integer(seconds) => from_feast(seconds),
        ValueRef::Real(seconds) => from_feast(seconds as i64),
        ValueRef::Text(text) => {
            std::str::from_utf8(text).ok().and_then(|t| Timestamp::parse(t).ok()).unwrap_or_default()
        }
        ValueRef::Null | ValueRef::Blob(_) => Timestamp(0),
    }
}

/// `int(naive_utc.timestamp())` in Python.
pub(crate) fn to_feast(time: Timestamp) -> i64 {
    let us = time.0.saturating_sub(local_offset(time.0.div_euclid(1_000_000)) * 1_000_000);
    us / 1_000_000
}

/// `datetime.fromtimestamp(seconds)` in Python, taken for UTC.
fn from_feast(seconds: i64) -> Timestamp {
    let local = DateTime::from_timestamp(seconds, 0).map(|t| t.with_timezone(&Local).naive_local());
    Timestamp::from_seconds(local.map_or(seconds, |t| t.and_utc().timestamp()))
}

/// How far the process' time zone is ahead of UTC when its clocks show this time, in seconds. What they
/// show twice is the first time; what they skip is on the clock of the day before.
fn local_offset(seconds: i64) -> i64 {
    let offset = |shown: NaiveDateTime| {
        Local.from_local_datetime(&shown).earliest().map(|t| i64::from(t.offset().local_minus_utc()))
    };
    let shown = DateTime::from_timestamp(seconds, 0).map(|t| t.naive_utc());
    let before = || shown.and_then(|t| t.checked_sub_days(Days::new(1))).and_then(offset);
    shown.and_then(offset).or_else(before).unwrap_or_default()
}

/// What Feast writes into `value_text` (`extract_text_and_num` in `helpers.py`).
pub(crate) fn value_text(value: &[u8]) -> Option<String> {
    Some(match Value::decode(value).ok()?.val? {
        Val::StringVal(v) => v,
        Val::Int64Val(v) => v.to_string(),
        Val::Int32Val(v) => v.to_string(),
        Val::DoubleVal(v) => python_float(v),
        Val::FloatVal(v) => python_float(f64::from(v)),
        Val::BoolVal(v) => if v { "True" } else { "False" }.to_owned(),
        _ => return None,
    })
}

/// `str(v)` in Python.
fn python_float(v: f64) -> String {
    if !v.is_finite() {
        return v.to_string().to_lowercase();
    }
    let scientific = format!("{v:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or_default() {
        e if (-4..16).contains(&e) => format!("{v:?}"),
        e => format!("{digits}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From Python's `str(float)`.
    #[test]
    fn numbers_are_written_as_python_writes_them() {
        for (v, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (f64::from(0.1f32), "0.10000000149011612"),
            (0.0001, "0.0001"),
            (0.000_01, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (1e300, "1e+300"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(python_float(v), text);
        }
    }

    #[test]
    fn ours_counts_while_it_agrees_with_feasts() {
        let us = 1_767_225_600_123_456;
        let (event, created) = (to_feast(Timestamp(us)), to_feast(Timestamp(us + 1_000_000)));
        let ours = [Some(us), Some(us + 1_000_000)];
        let (now, later) = (ValueRef::Integer(event), ValueRef::Integer(created));
        let read = version(now, later, ours);
        assert_eq!(read, Version { event: Timestamp(us), created: Timestamp(us + 1_000_000) });
        let whole = from_feast(event);
        assert_eq!(version(now, later, [None, None]).event, whole);
        let since = version(ValueRef::Integer(event + 1), ValueRef::Null, ours);
        assert_eq!(since, Version { event: Timestamp(whole.0 + 1_000_000), created: Timestamp(0) });
        assert_eq!(version(now, ValueRef::Null, ours).created, Timestamp(0), "Feast wrote the row, in the same second");
        let text = version(ValueRef::Text(b"2026-01-01 00:00:00.123456"), ValueRef::Null, [None, None]);
        assert_eq!(text.event, Timestamp(us));
    }
}
