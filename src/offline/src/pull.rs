//! `pull_latest_from_table_or_query`, `pull_all_from_table_or_query`, and a source's columns.
//!
//! Source: `feast/infra/offline_stores/dask.py`.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use futures::{StreamExt, stream};
use model::{Error, Kind, Result};
use proto::feast::core::DataSource;

use crate::engine::{Cut, Engine, Order};
use crate::error::{arrow as arrow_error, engine as engine_error};
use crate::history::Export;
use crate::keys::KeyType;
use crate::latest::Latest;
use crate::source::time_column;

/// Which rows and columns of a source to pull, by the source's names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pull {
    pub(crate) join_keys: Vec<String>,
    pub(crate) features: Vec<String>,
    pub(crate) time: String,
    pub(crate) created: Option<String>,
    /// µs, inclusive.
    pub(crate) from: Option<i64>,
    /// µs, inclusive.
    pub(crate) to: Option<i64>,
    /// Only the last row per key.
    pub(crate) latest: bool,
}

/// Pulls rows: keys, features, event time, created time; `__dummy_id` where there are no keys.
///
/// Errors: a column that the source lacks; for keys `FeastJoinKeysDuringMaterialization`.
pub(crate) async fn pull(engine: &Engine, source: &Arc<DataSource>, pull: Pull) -> Result<Export> {
    let table = engine.open(source).await?;
    let schema = table.schema.clone();
    let missing: Vec<String> =
        pull.join_keys.iter().filter(|k| schema.index_of(k).is_err()).map(|k| format!("'{k}'")).collect();
    if !missing.is_empty() {
        let wanted: Vec<String> = pull.join_keys.iter().map(|k| format!("'{k}'")).collect();
        return Err(Error::of_class(
            Kind::InvalidArgument,
            "FeastJoinKeysDuringMaterialization",
            format!(
                "The DataFrame from {} being materialized must have at least {{{}}} columns present, but these were \
                 missing: {{{}}} ",
                source.name,
                wanted.join(", "),
                missing.join(", ")
            ),
        ));
    }
    let time = time_column(source, &schema, &pull.time)?
        .ok_or_else(|| Error::invalid("timestamp_field is a mandatory parameter"))?;
    let created = time_column(source, &schema, pull.created.as_deref().unwrap_or_default())?;
    // No feature named is every column of the source.
    let features: Vec<String> = if pull.features.is_empty() {
        schema.fields().iter().map(|f| f.name().clone()).filter(|n| !pull.join_keys.contains(n)).collect()
    } else {
        let features = pull.features.iter().map(|f| crate::source::column(source, &schema, f));
        features.collect::<Result<_>>()?
    };
    let mut values = pull.join_keys.clone();
    let times = [Some(time.clone()), created.clone()].into_iter().flatten();
    for name in features.into_iter().chain(times) {
        if !values.contains(&name) {
            values.push(name);
        }
    }
    let mut fields = Vec::new();
    for name in &values {
        fields.push(schema.field_with_name(name).map_err(arrow_error)?.clone());
    }
    let entityless = pull.join_keys.is_empty();
    if entityless {
        fields.push(Field::new("__dummy_id", DataType::Utf8, false));
    }
    // Only what is sorted needs keys that compare.
    let mut keys = Vec::new();
    for name in pull.join_keys.iter().filter(|_| pull.latest) {
        let field = schema.field_with_name(name).map_err(arrow_error)?;
        keys.push((name.clone(), KeyType::of(name, model::ValueType::Invalid, field.data_type())?));
    }
    // A row without a time is in no range; the last rows are told from those without a key as they are read.
    let only_keyed = !pull.latest && (pull.from.is_some() || pull.to.is_some());
    let cut =
        Cut { keys, time, created, values, from: pull.from, to: pull.to, only_keyed, known: None, wanted: Vec::new() };
    let first = cut.values_at();
    let width = cut.values.len();
    let out = Arc::new(Schema::new(fields));
    let named = out.clone();
    let shape = move |batch: RecordBatch| {
        let mut columns: Vec<ArrayRef> = batch.columns()[first..first + width].to_vec();
        if entityless {
            columns.push(Arc::new(StringArray::from(vec!["__dummy"; batch.num_rows()])));
        }
        RecordBatch::try_new(named.clone(), columns).map_err(arrow_error)
    };
    let batches = if pull.latest {
        let latest = Latest::read(engine, &table, cut, &source.name, engine.hash_bytes(), engine.batch_rows()).await?;
        stream::try_unfold((latest, shape), |(mut latest, shape)| async move {
            match latest.next().await? {
                Some(batch) => Ok(Some((shape(batch)?, (latest, shape)))),
                None => Ok(None),
            }
        })
        .boxed()
    } else {
        let chunks = engine.read(&table, &cut, Order::File).await?;
        chunks.map(move |chunk| shape(chunk.map_err(engine_error)?)).boxed()
    };
    Ok(Export { schema: out, batches })
}

/// A source's columns with their types as pyarrow writes them: what the SDK infers a schema from.
pub(crate) fn columns_and_types(schema: &Schema) -> Result<RecordBatch> {
    let names = StringArray::from_iter_values(schema.fields().iter().map(|f| f.name()));
    let types = StringArray::from_iter_values(schema.fields().iter().map(|f| pyarrow_name(f.data_type())));
    let columns: [(&str, ArrayRef); 2] = [("name", Arc::new(names)), ("type", Arc::new(types))];
    RecordBatch::try_from_iter(columns).map_err(arrow_error)
}

fn pyarrow_name(data_type: &DataType) -> String {
    use DataType as D;
    let unit = |unit: &TimeUnit| match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    };
    match data_type {
        D::Null => "null".into(),
        D::Boolean => "bool".into(),
        D::Float16 => "halffloat".into(),
        D::Float32 => "float".into(),
        D::Float64 => "double".into(),
        D::Utf8 | D::Utf8View => "string".into(),
        D::LargeUtf8 => "large_string".into(),
        D::Binary | D::BinaryView => "binary".into(),
        D::LargeBinary => "large_binary".into(),
        D::FixedSizeBinary(n) => format!("fixed_size_binary[{n}]"),
        D::Date32 => "date32[day]".into(),
        D::Date64 => "date64[ms]".into(),
        D::Timestamp(u, None) => format!("timestamp[{}]", unit(u)),
        D::Timestamp(u, Some(zone)) => format!("timestamp[{}, tz={zone}]", unit(u)),
        // Feast's own mapping knows lists by the element name `item` only.
        D::List(f) | D::LargeList(f) => format!("list<item: {}>", pyarrow_name(f.data_type())),
        D::FixedSizeList(f, n) => format!("fixed_size_list<item: {}>[{n}]", pyarrow_name(f.data_type())),
        D::Struct(fields) => {
            let inner: Vec<String> =
                fields.iter().map(|f| format!("{}: {}", f.name(), pyarrow_name(f.data_type()))).collect();
            format!("struct<{}>", inner.join(", "))
        }
        D::Map(entries, _) => match entries.data_type() {
            D::Struct(fields) if fields.len() == 2 => {
                format!("map<{}, {}>", pyarrow_name(fields[0].data_type()), pyarrow_name(fields[1].data_type()))
            }
            other => format!("map<{}>", pyarrow_name(other)),
        },
        D::Decimal128(p, s) => format!("decimal128({p}, {s})"),
        D::Decimal256(p, s) => format!("decimal256({p}, {s})"),
        D::Dictionary(_, values) => pyarrow_name(values),
        other => other.to_string().to_lowercase(),
    }
}
