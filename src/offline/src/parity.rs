//! A windowed view's features for given entities at one time, by the way of every training set: what the parity check
//! holds against the online side.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{Field, Schema};
use futures::StreamExt;
use model::registry::View;
use model::{EntityKey, Error, Kind, Result, Timestamp, Value};

use crate::Offline;
use crate::convert::{arrow_type, from_values, timestamps, to_values, utc_micros};
use crate::error::arrow as arrow_error;
use crate::plan::{AskedView, HistoricalRequest};
use crate::verbs::Entities;

const TIME: &str = "event_timestamp";

impl Offline {
    pub(crate) async fn windows_of(&self, view: &View, keys: &[EntityKey], at: Timestamp) -> Result<Vec<Vec<Value>>> {
        let mut by_name: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for key in keys {
            for (name, value) in key.decode()? {
                by_name.entry(name).or_default().push(value);
            }
        }
        let (mut fields, mut columns): (Vec<Field>, Vec<ArrayRef>) = (Vec::new(), Vec::new());
        for key in &view.join_keys {
            let values = by_name.get(&key.name).map(Vec::as_slice).unwrap_or_default();
            let target = arrow_type(key.value_type, None);
            columns.push(from_values(values, &target)?);
            fields.push(Field::new(&key.name, target, true));
        }
        columns.push(timestamps(Int64Array::from(vec![at.micros(); keys.len()]), &utc_micros()));
        fields.push(Field::new(TIME, utc_micros(), true));
        let schema = Arc::new(Schema::new(fields));
        let mut frame = self.frame(schema.clone());
        frame.push(RecordBatch::try_new(schema, columns).map_err(arrow_error)?).await?;
        let request = HistoricalRequest {
            project: view.project.clone(),
            views: vec![AskedView { name: view.name.clone(), ..AskedView::default() }],
            // what is asked online is there at once
            known: Some(false),
            refs: view.features.iter().map(|f| format!("{}:{}", view.name, f.name)).collect(),
            ..HistoricalRequest::default()
        };
        let mut export = self.historical(&request, Entities::Frame(frame)).await?;
        let mut found: Vec<Vec<Value>> = vec![Vec::with_capacity(keys.len()); view.features.len()];
        while let Some(batch) = export.batches.next().await {
            let batch = batch?;
            for (feature, values) in view.features.iter().zip(&mut found) {
                let column = batch.column_by_name(&feature.name).ok_or_else(|| {
                    Error::new(Kind::Internal, format!("the training set has no column {}", feature.name))
                })?;
                values.extend(to_values(column, feature.value_type)?);
            }
        }
        Ok(found)
    }
}
