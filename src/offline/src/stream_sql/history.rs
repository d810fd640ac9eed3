//! The history of a view with SQL: its batch source has messages as they come, and goes through the query; its event log
//! has what the query made of them, and stands behind it. Knows no join.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::logical_expr::{Expr, cast, lit};
use datafusion::prelude::{DataFrame, SessionContext};
use model::registry::View;
use model::{Error, Result};
use proto::feast::core::DataSource;
use service::windows::sql;

use super::{Plan, schema_of};
use crate::convert::utc_micros;
use crate::engine::ident;
use crate::error::engine;
use crate::event_log::{ARRIVED, LOGGED, name_in_log};
use crate::source::{column, time_column};

/// What a view's history goes through.
#[derive(Clone)]
pub(crate) struct Through {
    plan: Plan,
    /// The columns that the query reads, made of the source's.
    inputs: Vec<Expr>,
    /// The event log, and the query's columns in it.
    log: Option<(Arc<dyn TableProvider>, Vec<Expr>)>,
    /// When the source's rows became known, where that is told of any row: when they were created, by the source's column,
    /// or when they happened, by the query's.
    known: Option<Known>,
    schema: SchemaRef,
}

#[derive(Clone)]
enum Known {
    Created(String),
    Happened(String),
}

impl Through {
    /// For a view whose batch source has the columns of `raw`. `log` are the files of its event log and their columns.
    ///
    /// Errors: a query that the source's columns do not do for, with the source's name.
    pub(crate) fn new(
        context: &SessionContext,
        view: &View,
        text: &str,
        (source, raw): (&DataSource, &SchemaRef),
        log: Option<(Arc<dyn TableProvider>, SchemaRef)>,
    ) -> Result<Self> {
        let of_source = |e: Error| {
            let message = format!("feature view '{}' over data source '{}': {}", view.name, source.name, e.message());
            Error::of_class(e.kind(), e.class(), message)
        };
        // As the messages have them, where the registry says how: then the same is computed.
        let (known, from): (SchemaRef, Vec<String>) = if let Some(columns) = sql::columns(view)? {
            let here = columns.into_iter().filter_map(|c| Some((column(source, raw, &c.name).ok()?, c)));
            let (from, columns): (Vec<String>, Vec<_>) = here.unzip();
            (schema_of(&columns), from)
        } else {
            let renamed = |field: &Arc<Field>| {
                let name = source.field_mapping.get(field.name()).unwrap_or(field.name());
                Arc::new(field.as_ref().clone().with_name(name))
            };
            let names = raw.fields().iter().map(|field| field.name().clone()).collect();
            (Arc::new(Schema::new(raw.fields().iter().map(renamed).collect::<Vec<_>>())), names)
        };
        let needed = sql::needed(view)?;
        let plan = Plan::new(context, text, &sql::tables(view), &known, &needed).map_err(of_source)?;
        let inputs = plan.reads(&known).into_iter().map(|at| {
            let (field, from) = (known.field(at), &from[at]);
            let given = raw.field_with_name(from).map(Field::data_type);
            let same = given.is_ok_and(|given| given == field.data_type());
            let typed = if same { ident(from) } else { cast(ident(from), field.data_type().clone()) };
            typed.alias(field.name())
        });
        let inputs = inputs.collect();
        let mut fields: Vec<Field> =
            plan.columns.iter().map(|c| Field::new(&c.name, c.data_type.clone(), true)).collect();
        if log.is_some() {
            fields.push(Field::new(LOGGED, DataType::Int64, true));
        }
        let happened = log.is_some().then(|| Known::Happened(view.event_time_column().to_owned()));
        let known = time_column(source, raw, &source.created_timestamp_column)?.map(Known::Created).or(happened);
        if known.is_some() {
            fields.push(Field::new(ARRIVED, utc_micros(), true));
        }
        let log = log.map(|(files, logged)| {
            // What no aggregation asks for is not in the log, and nobody asks for it here.
            let columns = plan.columns.iter().map(|c| {
                let name = name_in_log(view, &c.name);
                let found = if logged.index_of(&name).is_ok() {
                    ident(&name)
                } else {
                    lit(datafusion::common::ScalarValue::Null)
                };
                cast(found, c.data_type.clone()).alias(&c.name)
            });
            (
                files,
                columns.chain([lit(1_i64).alias(LOGGED), cast(ident(ARRIVED), utc_micros()).alias(ARRIVED)]).collect(),
            )
        });
        Ok(Self { plan, inputs, log, known, schema: Arc::new(Schema::new(fields)) })
    }

    /// The columns that come out.
    pub(crate) fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// The source's rows, then the log's.
    pub(crate) fn frames(&self, context: &SessionContext, source: Arc<dyn TableProvider>) -> Result<Vec<DataFrame>> {
        let mut inputs = self.inputs.clone();
        if let Some(Known::Created(created)) = &self.known {
            inputs.push(cast(ident(created), utc_micros()).alias(ARRIVED));
        }
        let rows = context.read_table(source).and_then(|rows| rows.select(inputs)).map_err(engine)?;
        let columns: Vec<Expr> = self.plan.columns.iter().map(|column| ident(&column.name)).collect();
        let logged = self.log.as_ref().map(|_| lit(0_i64).alias(LOGGED));
        let (rows, known) = match &self.known {
            None => (self.plan.over(rows, &[])?, None),
            Some(Known::Created(_)) => (self.plan.over(rows, &[ARRIVED])?, Some(ident(ARRIVED))),
            Some(Known::Happened(time)) => (self.plan.over(rows, &[])?, Some(cast(ident(time), utc_micros()))),
        };
        let behind = logged.into_iter().chain(known.map(|known| known.alias(ARRIVED)));
        let rows = rows.select(columns.into_iter().chain(behind).collect::<Vec<_>>()).map_err(engine)?;
        let Some((files, columns)) = &self.log else { return Ok(vec![rows]) };
        let logged = context.read_table(files.clone()).and_then(|rows| rows.select(columns.clone())).map_err(engine)?;
        Ok(vec![rows, logged])
    }
}
