//! The SQL of a stream view: over which columns it is compiled, and what its result must have. Knows no engine.

use std::sync::Arc;

use model::ports::{Query, RowQuery, StreamSql};
use model::registry::{Field, View};
use model::schema::{beside, stream_columns};
use model::{Error, Kind, Result, ValueType};

/// A name that the stream goes by in every query, beside its source's.
const EVENTS: &str = "events";

/// The names that the one table of a view's query goes by: the stream source's, and `events`.
pub fn tables(view: &View) -> Vec<&str> {
    let source = view.stream_source.as_ref().map(|source| source.name.as_str()).filter(|name| !name.is_empty());
    source.into_iter().chain([EVENTS]).collect()
}

/// The columns of a view's messages, as its query sees them; `None` where the registry does not say them (Protobuf).
///
/// Errors: a schema that cannot be read.
pub fn columns(view: &View) -> Result<Option<Vec<Field>>> {
    let Some(source) = &view.stream_source else { return Ok(None) };
    Ok(stream_columns(source)?.map(with_metadata))
}

/// Columns of messages' values, and those that stand beside every value.
pub fn with_metadata(mut columns: Vec<Field>) -> Vec<Field> {
    let beside: Vec<Field> = beside::of_every_message().filter(|b| columns.iter().all(|c| c.name != b.name)).collect();
    columns.extend(beside);
    columns
}

/// Whether a view's SQL can be what it is, as far as the registry says: its join keys may not be known yet.
///
/// Errors: as [`compile`].
pub fn check(engine: Option<&dyn StreamSql>, view: &View) -> Result<()> {
    let Some(_) = &view.sql else {
        return if view.has_transformation && view.mode.eq_ignore_ascii_case("sql") {
            Err(Error::invalid(format!(
                "feature view '{}' of project '{}' has mode sql and no SELECT: write it in the tag larder.sql",
                view.name, view.project
            )))
        } else {
            Ok(())
        };
    };
    let Some(columns) = columns(view)? else { return Ok(()) };
    let of_view = |e: Error| {
        let message = format!("feature view '{}' of project '{}': {}", view.name, view.project, e.message());
        Error::of_class(e.kind(), e.class(), message)
    };
    compiled(engine, view, &columns, &needed(view)?).map(drop).map_err(of_view)
}

/// A view's query over these columns; `None` where it has none.
///
/// Errors (`InvalidArgument`): what [`StreamSql::compile`] refuses; a result without a join key or the event time;
/// `Unsupported` where nothing is there that runs SQL.
pub fn compile(engine: Option<&dyn StreamSql>, view: &View, columns: &[Field]) -> Result<Option<Arc<dyn RowQuery>>> {
    let mut needed = needed(view)?;
    for key in view.join_keys.iter().filter(|_| !view.is_entityless()) {
        if needed.iter().all(|(known, _)| *known != key.name) {
            needed.push((key.name.clone(), ValueType::Invalid));
        }
    }
    compiled(engine, view, columns, &needed)
}

fn compiled(
    engine: Option<&dyn StreamSql>,
    view: &View,
    columns: &[Field],
    needed: &[(String, ValueType)],
) -> Result<Option<Arc<dyn RowQuery>>> {
    let Some(text) = &view.sql else { return Ok(None) };
    let engine = engine.ok_or_else(|| {
        Error::new(Kind::Unsupported, "it has SQL, and this server was built without what runs it (feature `offline`)")
    })?;
    let query = engine.compile(Query { text, tables: &tables(view), columns, needed })?;
    let given: Vec<&str> = query.gives().iter().map(|field| field.name.as_str()).collect();
    match needed.iter().find(|(name, _)| !given.contains(&name.as_str())) {
        None => Ok(Some(query)),
        Some((name, _)) => Err(Error::invalid(format!(
            "the result of its SQL has no column '{name}', which the view needs: it has {}",
            given.join(", ")
        ))),
    }
}

/// What a view needs of its query's result beside the join keys: the event time, and what it aggregates, in the types
/// that it takes (`INVALID`: whatever it is).
///
/// Errors: aggregations that are refused.
pub fn needed(view: &View) -> Result<Vec<(String, ValueType)>> {
    let mut needed: Vec<(String, ValueType)> = super::column_types_of_sql(view)?;
    let time = view.event_time_column();
    if needed.iter().all(|(known, _)| known != time) {
        needed.push((time.to_owned(), ValueType::Invalid));
    }
    Ok(needed)
}
