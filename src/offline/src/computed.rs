//! On-demand features behind joined rows: batch by batch, the columns that functions take become values, and what
//! they give becomes columns. Knows no function and nothing that runs one: that is [`crate::transform`].

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, new_empty_array};
use arrow::datatypes::{Field as ArrowField, Schema, SchemaRef};
use futures::StreamExt;
use model::plan::OnDemandPlan;
use model::ports::Transformer;
use model::registry::Field;
use model::{Error, Kind, Result, Value, ValueType};
use service::retrieve::{Given, evaluate};

use crate::convert::{arrow_type, from_values, in_column, to_values};
use crate::error::arrow as arrow_error;
use crate::history::Export;

/// Before the names of columns that are joined for functions alone.
const HIDDEN: &str = "__larder_taken_";

/// How many batches are computed at once: one function runs while the next batch waits for a worker.
const AT_ONCE: usize = 2;

/// What is computed of the joined rows.
#[derive(Debug)]
pub(crate) struct Computed {
    plan: OnDemandPlan,
    /// Per source of the plan, and per feature of it, the column of the joined rows.
    columns: Vec<Vec<String>>,
}

/// What every batch needs.
struct Work {
    computed: Computed,
    transformer: Option<Arc<dyn Transformer>>,
    /// How many of the joined columns are the entity frame's.
    frame_columns: usize,
    schema: SchemaRef,
}

impl Computed {
    /// `columns`: per source of the plan, and per feature of it, the column of the joined rows.
    pub(crate) fn new(plan: OnDemandPlan, columns: Vec<Vec<String>>) -> Self {
        Self { plan, columns }
    }

    /// The name of a column that is joined for functions alone, of the part at this place.
    pub(crate) fn hidden(part: usize, feature: &str) -> String {
        format!("{HIDDEN}{part}__{feature}")
    }

    /// Checks that the entity frame has the request data.
    ///
    /// Errors: `RequestDataNotFoundInEntityDfException`.
    pub(crate) fn expect(&self, frame: &Schema) -> Result<()> {
        match self.plan.request().find(|(name, ..)| frame.index_of(name).is_err()) {
            None => Ok(()),
            Some((name, _, view)) => Err(Error::of_class(
                Kind::NotFound,
                "RequestDataNotFoundInEntityDfException",
                format!("Feature {name} not found in the entity dataframe, but required by feature view {view}"),
            )),
        }
    }

    /// The joined rows with what is computed behind them, and without the columns that nobody asked for.
    ///
    /// Errors: a computed feature with the name of one of the entity frame's columns. Those of the functions come
    /// with the batches.
    pub(crate) fn behind(
        self,
        joined: Export,
        frame_columns: usize,
        transformer: Option<Arc<dyn Transformer>>,
    ) -> Result<Export> {
        let shown = joined.schema.fields().iter().filter(|f| !f.name().starts_with(HIDDEN));
        let mut fields: Vec<Arc<ArrowField>> = shown.cloned().collect();
        for (field, name) in self.answer() {
            if joined.schema.fields().iter().take(frame_columns).any(|f| f.name() == name) {
                return Err(Error::invalid(format!(
                    "the on demand feature {name} has the name of a column of the entity dataframe: rename the column, \
                     or set full_feature_names=True"
                )));
            }
            fields.push(Arc::new(ArrowField::new(name, arrow_type(field.value_type, None), true)));
        }
        let schema = Arc::new(Schema::new_with_metadata(fields, joined.schema.metadata().clone()));
        let work = Arc::new(Work { computed: self, transformer, frame_columns, schema: schema.clone() });
        let compute = move |batch: Result<RecordBatch>| {
            let work = work.clone();
            async move {
                let batch = batch?;
                // A server that just started is no reason to fail: this work can wait.
                for step in &work.computed.plan.steps {
                    if let Some(transformer) = &work.transformer {
                        transformer.ready(&step.view).await?;
                    }
                }
                work.batch(&batch).await
            }
        };
        Ok(Export { schema, batches: joined.batches.map(compute).buffered(AT_ONCE).boxed() })
    }

    /// The features asked for with their names in the result, in its order.
    fn answer(&self) -> impl Iterator<Item = &(Field, String)> {
        self.plan.mentioned.iter().flat_map(|&step| &self.plan.steps[step].answer)
    }
}

impl Work {
    async fn batch(&self, joined: &RecordBatch) -> Result<RecordBatch> {
        let fields = joined.schema_ref().fields();
        let shown = fields.iter().zip(joined.columns()).filter(|(f, _)| !f.name().starts_with(HIDDEN));
        let mut columns: Vec<ArrayRef> = shown.map(|(_, column)| column.clone()).collect();
        columns.extend(self.computed(joined).await?);
        RecordBatch::try_new(self.schema.clone(), columns).map_err(arrow_error)
    }

    async fn computed(&self, joined: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let Computed { plan, columns } = &self.computed;
        if joined.num_rows() == 0 {
            // No function is asked about nothing.
            return Ok(self.computed.answer().map(|(f, _)| new_empty_array(&arrow_type(f.value_type, None))).collect());
        }
        let values = |name: &str, value_type: ValueType| {
            let at = joined.schema_ref().index_of(name).map_err(arrow_error)?;
            to_values(joined.column(at), value_type).map_err(|e| in_column(name, &e))
        };
        let mut request: BTreeMap<(String, ValueType), Vec<Value>> = BTreeMap::new();
        for (name, types, _) in plan.request() {
            for value_type in types {
                request.insert((name.to_owned(), *value_type), values(name, *value_type)?);
            }
        }
        let mut entities = Vec::with_capacity(self.frame_columns);
        for field in joined.schema_ref().fields().iter().take(self.frame_columns) {
            // The frame's other columns are the caller's own: one of a type that no value has, no function sees.
            if let Ok(values) = values(field.name(), ValueType::Invalid) {
                entities.push((field.name().clone(), values));
            }
        }
        let types: BTreeMap<(usize, usize), ValueType> = plan.taken().collect();
        let read = |view: usize, feature: usize| values(&columns[view][feature], types[&(view, feature)]);
        let given = Given { rows: joined.num_rows(), entities: &entities, request: &request };
        let given = evaluate(plan, self.transformer.as_deref(), given, read).await?;
        let columns = given.into_iter().flatten().zip(self.computed.answer());
        columns
            .map(|((name, values), (field, _))| {
                from_values(&values, &arrow_type(field.value_type, None)).map_err(|e| in_column(&name, &e))
            })
            .collect()
    }
}
