//! The bridge between a registered windowed view and `window`: its definition with typed columns,
//! values in and out, the answer from stored state, and state rebuilt from history.
//!
//! Knows no Kafka, store or file: it is given bytes, values and times. Online reads, the ingest
//! pipeline and historical retrieval all come through here, so that they agree.

mod fold;
pub mod live;
mod rebuild;
pub mod sql;

use std::collections::BTreeMap;

use bytes::Bytes;
use model::registry::{Field, View};
use model::value::proto_value::Val;
use model::{EntityKey, Error, Kind, Result, Timestamp, Value, ValueType, schema, value};
use window::{AggregationDef, Answer, ColumnType, Output, Scalar, Spec, State, Tiling};

use crate::metrics;

pub use fold::{Event as FoldEvent, FoldError, Folded, fold};
pub use rebuild::{Rebuild, whole, whole_columns};

const SECOND: i64 = 1_000_000;

/// What an entity's windows answer: the time of the latest event in them, and a value per feature of the view; `None`
/// where the entity is unknown.
pub type Windowed = Option<(Timestamp, Vec<Value>)>;

/// The view's windows, checked: its columns typed by the schema of its Kafka source, or, where it
/// has none, by what its functions and features need.
///
/// Errors (`InvalidArgument`, with the feature, function, column and reason): whatever
/// [`window::Spec::new`] refuses, a schema that cannot be read, a feature whose registered type
/// cannot hold what its function gives.
pub fn spec_of(view: &View) -> Result<Spec> {
    let refuse =
        |reason: &str| Error::invalid(format!("feature view '{}' of project '{}': {reason}", view.name, view.project));
    let types = column_types(view).map_err(|e| refuse(e.message()))?;
    let defs: Vec<AggregationDef> = view
        .aggregations
        .iter()
        .map(|a| AggregationDef {
            feature: a.feature.clone(),
            column: a.column.clone(),
            function: a.function.clone(),
            window_us: a.window_us,
            slide_us: a.slide_us,
        })
        .collect();
    let tiling = Tiling { enabled: view.tiling_hop_us > 0, hop_us: view.tiling_hop_us };
    let spec = Spec::new(&defs, tiling, |column| types.get(column).copied()).map_err(|e| refuse(&e.to_string()))?;
    for (made, aggregation) in spec.features().iter().zip(&view.aggregations) {
        let Some(field) = view.feature(made.name()) else { continue };
        if !holds(field.value_type, made.output()) {
            return Err(refuse(&format!(
                "feature `{}` = `{}` over column `{}`: it gives {}, which the registered type {} cannot hold: register \
                 {} instead",
                made.name(),
                aggregation.function,
                aggregation.column,
                made.output(),
                field.value_type.as_str_name(),
                natural(made.output()).as_str_name(),
            )));
        }
    }
    Ok(spec)
}

/// The columns of the stream that the view aggregates, each once, in the order in which
/// [`Spec::columns`] has them and events must supply them.
pub fn columns(view: &View) -> Vec<String> {
    let mut columns: Vec<String> =
        view.aggregations.iter().map(|a| a.column.clone()).filter(|c| !c.is_empty()).collect();
    columns.sort();
    columns.dedup();
    columns
}

/// A value as an event carries it. A timestamp becomes microseconds, a decimal the nearest double; lists, maps and the
/// like, which can only be counted, become a mark that is not null.
pub fn to_scalar(value: &Value) -> Scalar {
    match &value.val {
        None | Some(Val::NullVal(_)) => Scalar::Null,
        Some(Val::BoolVal(v)) => Scalar::Bool(*v),
        Some(Val::Int32Val(v)) => Scalar::Int(i64::from(*v)),
        Some(Val::Int64Val(v)) => Scalar::Int(*v),
        Some(Val::UnixTimestampVal(v)) => Scalar::Int(v.saturating_mul(SECOND)),
        Some(Val::FloatVal(v)) => Scalar::Float(f64::from(*v)),
        Some(Val::DoubleVal(v)) => Scalar::Float(*v),
        Some(Val::StringVal(v) | Val::UuidVal(v) | Val::TimeUuidVal(v)) => Scalar::Text(v.as_str().into()),
        Some(Val::BytesVal(v)) => Scalar::Bytes(v.as_slice().into()),
        Some(Val::DecimalVal(v)) => v.trim().parse().map_or(Scalar::Null, Scalar::Float),
        Some(_) => Scalar::Bool(true),
    }
}

/// An answer as the feature's registered type has it.
///
/// An integer beyond INT32 is clamped where the feature is INT32, as `window` clamps to 64 bits, so
/// that one absurd event leaves an entity readable. Errors (`Internal`): a type that [`spec_of`]
/// would have refused.
pub fn to_value(scalar: Scalar, target: ValueType) -> Result<Value> {
    use ValueType as T;
    let val = match (scalar, target) {
        (Scalar::Null, _) => return Ok(value::NULL),
        (Scalar::Int(v), T::Int64 | T::Invalid) => Val::Int64Val(v),
        (Scalar::Int(v), T::Int32) => Val::Int32Val(v.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32),
        (Scalar::Int(v), T::Double) => Val::DoubleVal(v as f64),
        (Scalar::Int(v), T::Float) => Val::FloatVal(v as f32),
        (Scalar::Int(v), T::UnixTimestamp) => Val::UnixTimestampVal(v.div_euclid(SECOND)),
        (Scalar::Float(v), T::Double | T::Invalid) => Val::DoubleVal(v),
        (Scalar::Float(v), T::Float) => Val::FloatVal(v as f32),
        (Scalar::Bool(v), T::Bool | T::Invalid) => Val::BoolVal(v),
        (Scalar::Text(v), T::String | T::Invalid) => Val::StringVal(v.to_string()),
        (Scalar::Text(v), T::Uuid) => Val::UuidVal(v.to_string()),
        (Scalar::Text(v), T::TimeUuid) => Val::TimeUuidVal(v.to_string()),
        (Scalar::Bytes(v), T::Bytes | T::Invalid) => Val::BytesVal(v.to_vec()),
        (Scalar::List(list), target) => return to_list(&list, target),
        (Scalar::Counts(counts), T::Map | T::Invalid) => {
            let count = |n: &i64| Value { val: Some(Val::Int64Val(*n)) };
            let val = counts.iter().map(|(category, n)| (category.to_string(), count(n))).collect();
            Val::MapVal(proto::feast::types::Map { val })
        }
        (scalar, target) => {
            return Err(Error::new(
                Kind::Internal,
                format!("a window gave {}, which is no {}", scalar.type_name(), target.as_str_name()),
            ));
        }
    };
    Ok(Value { val: Some(val) })
}

/// A list as the feature's registered type has it; where none is registered, as its first value is.
fn to_list(list: &[Scalar], target: ValueType) -> Result<Value> {
    let element = element_of_list(target).unwrap_or(ValueType::Invalid);
    let values = list.iter().map(|scalar| to_value(scalar.clone(), element)).collect::<Result<Vec<Value>>>()?;
    let target = match values.first().map(value::type_of) {
        Some(ValueType::Bool) if target == ValueType::Invalid => ValueType::BoolList,
        Some(ValueType::Int64) if target == ValueType::Invalid => ValueType::Int64List,
        Some(ValueType::Double) if target == ValueType::Invalid => ValueType::DoubleList,
        Some(ValueType::String) if target == ValueType::Invalid => ValueType::StringList,
        Some(ValueType::Bytes) if target == ValueType::Invalid => ValueType::BytesList,
        _ => target,
    };
    value::collect(target, values).ok_or_else(|| {
        Error::new(Kind::Internal, format!("a window gave a list, which is no {}", target.as_str_name()))
    })
}

/// The view's features at `at` from an entity's stored state: the time of the latest event in its
/// windows, and one value per feature in the order of `view.features`. `None` where the entity is
/// unknown at `at`. A feature that no aggregation makes is null.
///
/// Errors: those of [`decode`].
pub fn answer(key: &EntityKey, state: &[u8], spec: &Spec, view: &View, at: Timestamp) -> Result<Windowed> {
    answer_of(&decode(key, state, spec, view)?, spec, view, at)
}

/// An entity's stored state.
///
/// Errors: `Unavailable` where it was built for another definition of the view; `Internal` where it is damaged, which
/// names view and entity and is counted.
pub fn decode(key: &EntityKey, state: &[u8], spec: &Spec, view: &View) -> Result<State> {
    State::decode(spec, state).map_err(|error| match error.kind() {
        window::Kind::Corrupt => {
            let entity = entity_name(key);
            metrics::state_damaged(&view.project, &view.name, &entity, &error);
            Error::internal(
                format!(
                    "the stored window state of entity {entity} of feature view '{}' of project '{}' is damaged",
                    view.name, view.project
                ),
                error,
            )
        }
        _ => state_error(view, error),
    })
}

/// An entity as a person reads it: its join keys and values, or the key's bytes where they are none.
fn entity_name(key: &EntityKey) -> String {
    let Ok(parts) = key.decode() else { return format!("{:02x?}", key.as_bytes()) };
    let text = |value: &Value| match &value.val {
        Some(Val::StringVal(text)) => text.clone(),
        Some(Val::Int32Val(number)) => number.to_string(),
        Some(Val::Int64Val(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    parts.iter().map(|(name, value)| format!("{name}={}", text(value))).collect::<Vec<_>>().join(", ")
}

fn answer_of(state: &State, spec: &Spec, view: &View, at: Timestamp) -> Result<Windowed> {
    valued(state.evaluate(spec, at.micros()), spec, view)
}

/// An answer as features of the view.
fn valued(answer: Option<Answer>, spec: &Spec, view: &View) -> Result<Windowed> {
    let Some(answer) = answer else { return Ok(None) };
    if answer.saturated {
        tracing::warn!(
            project = view.project,
            view = view.name,
            "a window's integer is beyond 64 bits and was clamped: the sum of its column is too large"
        );
    }
    Ok(Some((Timestamp(answer.event_ts_us), values(answer.values, spec, view)?)))
}

/// The values of a [`window::Answer`] in the order of `view.features`, in their registered types.
pub fn values(answer: Vec<Scalar>, spec: &Spec, view: &View) -> Result<Vec<Value>> {
    let mut answer: Vec<Option<Scalar>> = answer.into_iter().map(Some).collect();
    view.features
        .iter()
        .map(|field| {
            let at = spec.features().iter().position(|made| made.name() == field.name);
            let scalar = at.and_then(|at| answer.get_mut(at)?.take());
            scalar.map_or(Ok(value::NULL), |s| to_value(s, field.value_type))
        })
        .collect()
}

/// What a failure of stored state means for the caller.
pub fn state_error(view: &View, error: window::Error) -> Error {
    match error.kind() {
        window::Kind::DefinitionChanged => Error::new(
            Kind::Unavailable,
            format!(
                "the windows of feature view '{0}' of project '{1}' changed since its state was built: rebuild it from \
                 its batch source (`larder backfill {0}`), or delete the view and apply it again to rebuild it from \
                 the stream",
                view.name, view.project
            ),
        )
        .with_cause(error),
        _ => Error::internal(
            format!("the window state of an entity of feature view '{}' cannot be read", view.name),
            error,
        ),
    }
}

/// A state's bytes; `None` where nothing is left in it.
pub fn encode(state: &State, spec: &Spec) -> Option<Bytes> {
    encode_with(state, spec, &mut Vec::new())
}

/// The same, by way of a buffer that may be used again.
fn encode_with(state: &State, spec: &Spec, buffer: &mut Vec<u8>) -> Option<Bytes> {
    (!state.is_empty()).then(|| {
        buffer.clear();
        state.encode(spec, buffer);
        Bytes::copy_from_slice(buffer)
    })
}

/// The types of the columns that the view may aggregate, by name.
fn column_types(view: &View) -> Result<BTreeMap<String, ColumnType>> {
    // behind SQL the columns are what is needed of them: it is compiled to give that
    if let Some(source) = view.stream_source.as_ref().filter(|_| view.sql.is_none())
        && let Some(fields) = schema::stream_columns(source)?
    {
        // a decimal is a number where a function takes it for one; where it is only counted it is as ever
        let is_number = |name: &str| {
            let mut over = view.aggregations.iter().filter(|a| a.column == name);
            over.any(|a| needed(&a.function, None) != ColumnType::Other)
        };
        let typed = |field: Field| match field.value_type {
            ValueType::Decimal if is_number(&field.name) => (field.name, ColumnType::Float),
            other => (field.name, column_type(other)),
        };
        return Ok(fields.into_iter().map(typed).collect());
    }
    let mut types = BTreeMap::new();
    for aggregation in view.aggregations.iter().filter(|a| !a.column.is_empty()) {
        let known = view.join_keys.iter().find(|k| k.name == aggregation.column).map(|k| k.value_type);
        let known = known.or_else(|| view.feature(&aggregation.column).map(|f| f.value_type));
        let wanted = known.map_or_else(
            || needed(&aggregation.function, view.feature(&aggregation.feature).map(|f| f.value_type)),
            column_type,
        );
        types.entry(aggregation.column.clone()).and_modify(|ty| *ty = stricter(*ty, wanted)).or_insert(wanted);
    }
    Ok(types)
}

/// The types that the functions and features need of the columns that SQL gives.
fn column_types_of_sql(view: &View) -> Result<Vec<(String, ValueType)>> {
    let value_type = |column: ColumnType| match column {
        ColumnType::Bool => ValueType::Bool,
        ColumnType::Int => ValueType::Int64,
        ColumnType::Float => ValueType::Double,
        ColumnType::Timestamp => ValueType::UnixTimestamp,
        ColumnType::Text => ValueType::String,
        ColumnType::Bytes => ValueType::Bytes,
        ColumnType::Other => ValueType::Invalid,
    };
    Ok(column_types(view)?.into_iter().map(|(name, column)| (name, value_type(column))).collect())
}

/// The type that a column must have for a function whose feature has this type.
fn needed(function: &str, feature: Option<ValueType>) -> ColumnType {
    let name = function.split('(').next().unwrap_or_default().trim();
    match name {
        "count"
        | "seconds_since_last"
        | "seconds_since_first"
        | "decayed_count"
        | "session_count"
        | "session_duration" => ColumnType::Other,
        "min" | "max" | "first" | "last" | "min_last_k" | "max_last_k" => {
            feature.map_or(ColumnType::Float, column_type)
        }
        "first_k" | "last_k" | "top_k" | "bottom_k" => {
            feature.map_or(ColumnType::Float, |list| element_of_list(list).map_or(ColumnType::Other, column_type))
        }
        "histogram" => ColumnType::Text,
        "sum" | "sum_last_k" | "session_sum" if matches!(feature, Some(ValueType::Int32 | ValueType::Int64)) => {
            ColumnType::Int
        }
        _ => ColumnType::Float,
    }
}

/// Of what two functions need of one column, the type that serves both: anything can be counted, and
/// integers are taken as floats.
fn stricter(a: ColumnType, b: ColumnType) -> ColumnType {
    match (a, b) {
        (ColumnType::Other, ty) | (ty, ColumnType::Other) => ty,
        (ColumnType::Int, ColumnType::Float) => ColumnType::Float,
        (a, _) => a,
    }
}

fn column_type(value_type: ValueType) -> ColumnType {
    use ValueType as T;
    match value_type {
        T::Bool => ColumnType::Bool,
        T::Int32 | T::Int64 => ColumnType::Int,
        T::Float | T::Double => ColumnType::Float,
        T::UnixTimestamp => ColumnType::Timestamp,
        T::String | T::Uuid | T::TimeUuid => ColumnType::Text,
        T::Bytes => ColumnType::Bytes,
        _ => ColumnType::Other,
    }
}

fn holds(target: ValueType, output: Output) -> bool {
    let column = match output {
        Output::One(column) => Some((target, column)),
        Output::List(column) => element_of_list(target).map(|element| (element, column)),
        Output::Counts => return target == ValueType::Map,
    };
    column.is_some_and(|(target, column)| holds_one(target, column))
}

/// What the elements of a list type are; sets would drop what came twice.
fn element_of_list(target: ValueType) -> Option<ValueType> {
    let is_list = target.as_str_name().ends_with("_LIST");
    value::element_type(target).filter(|_| is_list)
}

fn holds_one(target: ValueType, column: ColumnType) -> bool {
    use ValueType as T;
    match column {
        ColumnType::Int => matches!(target, T::Int32 | T::Int64 | T::Float | T::Double),
        ColumnType::Float => matches!(target, T::Float | T::Double),
        ColumnType::Timestamp => target == T::UnixTimestamp,
        ColumnType::Bool => target == T::Bool,
        ColumnType::Text => matches!(target, T::String | T::Uuid | T::TimeUuid),
        ColumnType::Bytes => target == T::Bytes,
        ColumnType::Other => false,
    }
}

fn natural(output: Output) -> ValueType {
    use ValueType as T;
    match output {
        Output::One(ColumnType::Int) => T::Int64,
        Output::One(ColumnType::Float | ColumnType::Other) => T::Double,
        Output::One(ColumnType::Timestamp) => T::UnixTimestamp,
        Output::One(ColumnType::Bool) => T::Bool,
        Output::One(ColumnType::Text) => T::String,
        Output::One(ColumnType::Bytes) => T::Bytes,
        Output::List(ColumnType::Int) => T::Int64List,
        Output::List(ColumnType::Float | ColumnType::Other) => T::DoubleList,
        Output::List(ColumnType::Timestamp) => T::UnixTimestampList,
        Output::List(ColumnType::Bool) => T::BoolList,
        Output::List(ColumnType::Text) => T::StringList,
        Output::List(ColumnType::Bytes) => T::BytesList,
        Output::Counts => T::Map,
    }
}

#[cfg(test)]
mod tests;
