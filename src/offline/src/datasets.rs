//! The [`DatasetStore`] port: a historical retrieval whose result becomes a Parquet file, and the first
//! rows of such a file. Knows no job and no registry of datasets.
//!
//! Source: `create_dataset_from_retrieval` and `create_saved_dataset` in `feast/feature_store.py`,
//! `retrieve_saved_dataset` in `feast/infra/passthrough_provider.py`.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::{concat_batches, max, min};
use arrow::datatypes::DataType;
use futures::StreamExt;
use model::feature_ref::FeatureRef;
use model::ports::{
    BoxFuture, DatasetPreview, DatasetRetrieval, DatasetRows, DatasetStore, EntityRows, KeptDataset, NamedColumn,
    TypedColumn,
};
use model::registry::{FeatureRequest, Registry};
use model::value::{NULL, proto_value::Val};
use model::{Error, Result, Timestamp, Value, ValueType};
use proto::feast::core::{DataSource, data_source::FileOptions, data_source::Options};

use crate::convert::{arrow_type, from_values, in_column, is_text, micros, timestamps, to_values, utc_micros};
use crate::engine::blocking;
use crate::error::{arrow as arrow_error, engine as engine_error, sql as sql_error};
use crate::frame::{Frame, times};
use crate::plan::{AskedView, HistoricalRequest, Part, resolve};
use crate::pull::{Pull, pull};
use crate::source::Location;
use crate::verbs::Entities;
use crate::{Offline, append, metrics};

/// The event time column of entity rows and of what is kept.
const EVENT_TIMESTAMP: &str = "event_timestamp";
/// Columns of a file that are read as event times although they are text (`CreateDatasetFromRetrieval`
/// in `feast/registry_server.py`): the first of them that is there.
const TIME_COLUMNS: [&str; 3] = [EVENT_TIMESTAMP, "datetime", "timestamp"];

impl DatasetStore for Offline {
    fn keep(&self, retrieval: DatasetRetrieval) -> BoxFuture<'_, Result<KeptDataset>> {
        Box::pin(self.keep_dataset(retrieval))
    }

    fn clear<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let location = Location::of(&file(path), self.engine.repo(), self.engine.stores());
            // no job wrote to a place that is none, and an object is there when it is whole
            let Some(local) = location.ok().filter(|l| !matches!(l, Location::Object(..))) else { return Ok(()) };
            blocking(move || {
                append::local::clear(&local.path());
                Ok(())
            })
            .await
        })
    }

    fn preview(&self, preview: DatasetPreview) -> BoxFuture<'_, Result<DatasetRows>> {
        Box::pin(self.preview_dataset(preview))
    }
}

impl Offline {
    async fn keep_dataset(&self, retrieval: DatasetRetrieval) -> Result<KeptDataset> {
        let location = Location::of(&file(&retrieval.path), self.engine.repo(), self.engine.stores())?;
        let registry = (self.registry)();
        let request = historical(&registry, &retrieval.project, &retrieval.features)?;
        let mut join_keys = Vec::new();
        for (_, column) in resolve(&registry, &request)?.parts.iter().flat_map(Part::keys) {
            if !join_keys.iter().any(|key| key == column) {
                join_keys.push(column.to_owned());
            }
        }
        let frame = match retrieval.entities {
            EntityRows::Given { columns, times } => self.given(&columns, &times).await?,
            EntityRows::File(path) => self.in_file(&path).await?,
        };
        let (frame, span) = self.shaped(&frame, &retrieval.constants).await?;
        let Some((first, last)) = span else {
            return Err(Error::invalid("there are no entity rows with a time: nothing to retrieve"));
        };
        let export = self.historical(&request, Entities::Frame(frame)).await?;
        let rows = append::export(&self.locks, &location, &retrieval.path, retrieval.overwrite, export).await?;
        metrics::exported(rows);
        Ok(KeptDataset { refs: request.refs, join_keys, span: Timestamp(first)..=Timestamp(last), rows })
    }

    /// Entity rows as values.
    async fn given(&self, columns: &[TypedColumn], times: &[Timestamp]) -> Result<Frame> {
        let mut arrays: Vec<(&str, ArrayRef)> = Vec::new();
        for column in columns.iter().filter(|c| c.name != EVENT_TIMESTAMP) {
            arrays.push((&column.name, array(column, &column.values)?));
        }
        let times = times.iter().map(|t| t.micros()).collect::<Vec<_>>().into();
        arrays.push((EVENT_TIMESTAMP, timestamps(times, &utc_micros())));
        let batch = RecordBatch::try_from_iter(arrays).map_err(arrow_error)?;
        let mut frame = self.frame(batch.schema());
        frame.push(batch).await?;
        Ok(frame)
    }

    /// Entity rows from a Parquet file.
    async fn in_file(&self, path: &str) -> Result<Frame> {
        let source = Arc::new(file(path));
        let query = self.engine.sql("SELECT * FROM entity_rows", vec![("entity_rows".into(), source)]).await?;
        let mut rows = query.execute_stream().await.map_err(sql_error)?;
        let mut frame = self.frame(rows.schema());
        while let Some(batch) = rows.next().await {
            frame.push(batch.map_err(engine_error)?).await?;
        }
        Ok(frame)
    }

    /// The frame with the constants, and with its column of event times called as every reader of a
    /// saved dataset expects it (Feast keeps the name, and cannot read the dataset then); and its first and last time.
    async fn shaped(&self, frame: &Frame, constants: &[TypedColumn]) -> Result<(Frame, Option<(i64, i64)>)> {
        let has = |name: &str| frame.schema().field_with_name(name).ok();
        let in_text = TIME_COLUMNS.into_iter().find_map(has).filter(|field| is_text(field.data_type()));
        let time = in_text.map_or_else(|| frame.time_column(), |field| Ok(field.name()))?;
        let mut shaped: Option<Frame> = None;
        let mut span: Option<(i64, i64)> = None;
        for batch in frame.batches()? {
            let batch = batch?;
            let mut columns: Vec<(String, ArrayRef)> = Vec::new();
            for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                columns.push(match field.name() {
                    name if name == time && in_text.is_some() => {
                        (EVENT_TIMESTAMP.to_owned(), timestamps(micros(name, column)?, &utc_micros()))
                    }
                    name if name == time => (EVENT_TIMESTAMP.to_owned(), column.clone()),
                    name => (name.clone(), column.clone()),
                });
            }
            for constant in constants {
                let value = constant.values.first().cloned().unwrap_or(NULL);
                let column = array(constant, &vec![value; batch.num_rows()])?;
                match columns.iter_mut().find(|(name, _)| *name == constant.name) {
                    Some((_, there)) => *there = column,
                    None => columns.push((constant.name.clone(), column)),
                }
            }
            let columns = columns.into_iter().map(|(name, column)| (name, column, true));
            let batch = RecordBatch::try_from_iter_with_nullable(columns).map_err(arrow_error)?;
            if let Some(column) = batch.column_by_name(EVENT_TIMESTAMP) {
                let times = times(EVENT_TIMESTAMP, column)?;
                if let (Some(least), Some(greatest)) = (min(&times), max(&times)) {
                    let (first, last) = span.unwrap_or((least, greatest));
                    span = Some((first.min(least), last.max(greatest)));
                }
            }
            shaped.get_or_insert_with(|| self.frame(batch.schema())).push(batch).await?;
        }
        let shaped = shaped.ok_or_else(|| Error::invalid("there are no entity rows: nothing to retrieve"))?;
        Ok((shaped, span))
    }

    async fn preview_dataset(&self, preview: DatasetPreview) -> Result<DatasetRows> {
        let source = Arc::new(file(&preview.path));
        let mut wanted = Pull {
            join_keys: preview.join_keys,
            features: preview.features,
            time: EVENT_TIMESTAMP.to_owned(),
            from: preview.from.map(Timestamp::micros),
            to: preview.to.map(Timestamp::micros),
            ..Pull::default()
        };
        let entityless = wanted.join_keys.is_empty();
        let mut export = pull(&self.engine, &source, wanted.clone()).await?;
        let (mut first, mut missing) = (Vec::new(), preview.limit);
        while missing > 0
            && let Some(batch) = export.batches.next().await
        {
            let batch = batch?;
            let batch = batch.slice(0, batch.num_rows().min(missing));
            missing -= batch.num_rows();
            first.push(batch);
        }
        let rows = concat_batches(&export.schema, &first).map_err(arrow_error)?;
        drop(export);
        let mut columns = Vec::new();
        for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
            // what a pull gives beside the columns of a source without keys
            if !(entityless && field.name() == "__dummy_id") {
                columns.push(NamedColumn { name: field.name().clone(), values: shown(field.name(), column)? });
            }
        }
        wanted.join_keys.clear();
        wanted.features = vec![EVENT_TIMESTAMP.to_owned()];
        let mut times = pull(&self.engine, &source, wanted).await?.batches;
        let mut total = 0;
        while let Some(batch) = times.next().await {
            total += batch?.num_rows() as u64;
        }
        Ok(DatasetRows { columns, total })
    }
}

/// A column as an Arrow array of its type.
fn array(column: &TypedColumn, values: &[Value]) -> Result<ArrayRef> {
    from_values(values, &arrow_type(column.value_type, None)).map_err(|e| in_column(&column.name, &e))
}

/// A source that is this file and nothing else.
fn file(path: &str) -> DataSource {
    let options = FileOptions { uri: path.to_owned(), ..FileOptions::default() };
    DataSource { name: path.to_owned(), options: Some(Options::FileOptions(options)), ..DataSource::default() }
}

/// The retrieval as the SDK would ask for it.
///
/// Errors: no such project or feature service; a malformed reference.
fn historical(registry: &Registry, project: &str, features: &FeatureRequest) -> Result<HistoricalRequest> {
    let refs = match features {
        FeatureRequest::Service(name) => return HistoricalRequest::of_service(registry, project, name, false),
        FeatureRequest::Refs(refs) => refs,
    };
    let (mut views, mut seen) = (Vec::new(), BTreeSet::new());
    for text in refs {
        let reference = FeatureRef::parse(text)?;
        if seen.insert(reference.view.clone()) {
            views.push(AskedView { name: reference.view, ..AskedView::default() });
        }
    }
    Ok(HistoricalRequest { project: project.to_owned(), views, refs: refs.clone(), ..HistoricalRequest::default() })
}

/// A column's values to look at: times as pandas writes them.
fn shown(name: &str, column: &ArrayRef) -> Result<Vec<Value>> {
    let zone = match column.data_type() {
        DataType::Timestamp(_, Some(_)) => "+00:00",
        DataType::Timestamp(_, None) | DataType::Date32 | DataType::Date64 => "",
        _ => return to_values(column, ValueType::Invalid).map_err(|e| in_column(name, &e)),
    };
    let text = |time: i64| {
        let text = Timestamp(time).to_rfc3339().replace('T', " ");
        let text = text.trim_end_matches('Z');
        // six digits behind the seconds, or none
        match text.split_once('.') {
            Some((seconds, fraction)) => format!("{seconds}.{fraction:0<6}{zone}"),
            None => format!("{text}{zone}"),
        }
    };
    let value = |time: Option<i64>| Value { val: time.map(|time| Val::StringVal(text(time))) };
    Ok(micros(name, column)?.iter().map(value).collect())
}
