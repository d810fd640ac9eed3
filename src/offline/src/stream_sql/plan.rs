//! From the text of a query to expressions over the columns of its one table. What is more than a function of one row
//! is refused here, by name.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DataFusionError, TableReference};
use datafusion::datasource::MemTable;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility, cast};
use datafusion::prelude::{DataFrame, SessionContext};
use futures::FutureExt;
use model::{Error, Result, ValueType};

use crate::convert::{arrow_type, utc_micros};
use crate::engine::ident;
use crate::error::{engine, short};

/// Bytes that a query's text may have.
const TEXT: usize = 16 << 10;
/// Operations that a query may have once its subqueries are written out over the table's columns.
const OPERATIONS: usize = 10_000;
/// Operations that may stand in one another: who evaluates them has a small stack.
const DEPTH: usize = 200;
/// The stack of who plans, bytes: what a text of that length may nest.
const STACK: usize = 64 << 20;

/// A query as expressions over its table's columns.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Which rows count.
    pub(crate) filter: Option<Expr>,
    /// The result's columns.
    pub(crate) columns: Vec<Column>,
}

/// A column of the result.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    /// Its name.
    pub(crate) name: String,
    /// What it is.
    pub(crate) expr: Expr,
    /// Its type.
    pub(crate) data_type: DataType,
}

impl Plan {
    /// Plans a query over a table of this schema, which goes by these names.
    ///
    /// Errors (`InvalidArgument`): text that is no SQL, names that are not there, what is more than a function of a row,
    /// a column of another type than is needed.
    pub(crate) fn new(
        context: &SessionContext,
        text: &str,
        tables: &[&str],
        schema: &SchemaRef,
        needed: &[(String, ValueType)],
    ) -> Result<Self> {
        if text.len() > TEXT {
            return Err(Error::invalid(format!("its SQL has {} bytes: at most {TEXT} are taken", text.len())));
        }
        let plan = || Self::planned(context, text, tables, schema, needed);
        std::thread::scope(|scope| {
            let planner = std::thread::Builder::new().name("stream-sql".to_owned()).stack_size(STACK);
            let planner =
                planner.spawn_scoped(scope, plan).map_err(|e| Error::internal("no thread to plan SQL in", e))?;
            planner.join().unwrap_or_else(|_| Err(Error::invalid("its SQL cannot be planned")))
        })
    }

    fn planned(
        context: &SessionContext,
        text: &str,
        tables: &[&str],
        schema: &SchemaRef,
        needed: &[(String, ValueType)],
    ) -> Result<Self> {
        // Of the context only functions and settings are used: tables are this query's own.
        let own = SessionContext::new_with_state(context.state());
        let table = Arc::new(MemTable::try_new(schema.clone(), vec![Vec::new()]).map_err(engine)?);
        for name in tables {
            let name = TableReference::bare(*name);
            let _ = own.deregister_table(name.clone()).map_err(engine)?;
            own.register_table(name, table.clone()).map_err(engine)?;
        }
        let state = own.state();
        let planned = state.create_logical_plan(text).now_or_never();
        for name in tables {
            let _ = own.deregister_table(TableReference::bare(*name)).map_err(engine)?;
        }
        let planned =
            planned.ok_or_else(|| Error::invalid("its SQL reads more than the stream"))?.map_err(|e| refused(&e))?;
        let relation = relation(&planned)?;
        let known = DFSchema::try_from(schema.as_ref().clone()).map_err(engine)?;
        let type_of = |expr: &Expr| -> Result<DataType> {
            let physical = own.create_physical_expr(expr.clone(), &known).map_err(|e| refused(&e))?;
            physical.data_type(schema).map_err(|e| refused(&e))
        };
        if let Some(filter) = &relation.filter {
            check(filter)?;
            type_of(filter)?;
        }
        let mut columns: Vec<Column> = Vec::with_capacity(relation.columns.len());
        for (name, expr) in relation.columns {
            check(&expr)?;
            if columns.iter().any(|column| column.name == name) {
                return Err(Error::invalid(format!(
                    "the result of its SQL has two columns '{name}': name one of them"
                )));
            }
            let given = type_of(&expr)?;
            let wanted = needed.iter().find(|(known, _)| *known == name).map_or(ValueType::Invalid, |(_, t)| *t);
            let data_type = widened(&name, &given, wanted)?;
            let expr = if data_type == given { expr } else { cast(expr, data_type.clone()) };
            columns.push(Column { name, expr, data_type });
        }
        Ok(Self { filter: relation.filter, columns })
    }

    /// The places of the columns that it reads.
    pub(crate) fn reads(&self, schema: &SchemaRef) -> Vec<usize> {
        let exprs = self.filter.iter().chain(self.columns.iter().map(|column| &column.expr));
        let read: std::collections::HashSet<String> =
            exprs.flat_map(Expr::column_refs).map(|column| column.name.clone()).collect();
        (0..schema.fields().len()).filter(|&at| read.contains(schema.field(at).name())).collect()
    }

    /// The same over a table: its rows go through the query, and keep these columns of the table.
    pub(crate) fn over(&self, frame: DataFrame, kept: &[&str]) -> Result<DataFrame> {
        let frame = match &self.filter {
            Some(filter) => frame.filter(filter.clone()).map_err(engine)?,
            None => frame,
        };
        let columns = self.columns.iter().map(|column| column.expr.clone().alias(&column.name));
        frame.select(columns.chain(kept.iter().map(|name| ident(name))).collect::<Vec<_>>()).map_err(engine)
    }
}

/// A relation's columns over those of the table, and the condition for its rows.
struct Relation {
    columns: Vec<(String, Expr)>,
    filter: Option<Expr>,
}

fn relation(plan: &LogicalPlan) -> Result<Relation> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let names = scan.projected_schema.fields().iter().map(|f| f.name().clone());
            Ok(Relation { columns: names.map(|name| (name.clone(), ident(&name))).collect(), filter: None })
        }
        LogicalPlan::SubqueryAlias(alias) => relation(&alias.input),
        LogicalPlan::Filter(filter) => {
            let mut input = relation(&filter.input)?;
            let met = input.over_table(&filter.predicate, filter.input.schema())?;
            input.filter = Some(match input.filter.take() {
                Some(before) => before.and(met),
                None => met,
            });
            Ok(input)
        }
        LogicalPlan::Projection(projection) => {
            let input = relation(&projection.input)?;
            let names = projection.schema.fields().iter().map(|f| f.name().clone());
            let columns = names.zip(&projection.expr).map(|(name, expr)| {
                Ok((name, input.over_table(expr, projection.input.schema())?.unalias_nested().data))
            });
            Ok(Relation { columns: columns.collect::<Result<_>>()?, filter: input.filter })
        }
        other => {
            let kind = format!("{}", other.display());
            let kind = kind.split([':', '(']).next().unwrap_or_default();
            Err(Error::invalid(format!(
                "its SQL has {kind}, which looks at more than one message at a time: a stream's SQL filters (WHERE), \
                 selects and computes columns of one row, and the view's aggregations come behind it"
            )))
        }
    }
}

impl Relation {
    /// An expression over this relation as one over the table.
    fn over_table(&self, expr: &Expr, schema: &DFSchema) -> Result<Expr> {
        let mut left = OPERATIONS;
        let over = expr.clone().transform(|part| {
            let Expr::Column(column) = &part else { return Ok(Transformed::no(part)) };
            let at = schema.index_of_column(column)?;
            let Some((_, expr)) = self.columns.get(at) else { return Ok(Transformed::no(part)) };
            expr.apply(|_| {
                left = left.checked_sub(1).ok_or_else(|| {
                    DataFusionError::ResourcesExhausted(format!("it has more than {OPERATIONS} operations"))
                })?;
                Ok(TreeNodeRecursion::Continue)
            })?;
            Ok(Transformed::new(expr.clone(), true, TreeNodeRecursion::Jump))
        });
        over.map(|over| over.data).map_err(|e| refused(&e))
    }
}

/// How deep operations stand in one another.
fn depth(expr: &Expr) -> usize {
    let mut deepest = 0;
    let _ = expr.apply_children(|child| {
        deepest = deepest.max(depth(child));
        Ok(TreeNodeRecursion::Continue)
    });
    deepest + 1
}

/// Whether an expression is a function of one row, the same whenever it is asked.
fn check(expr: &Expr) -> Result<()> {
    let depth = depth(expr);
    if depth > DEPTH {
        return Err(Error::invalid(format!(
            "its SQL has {depth} operations in one another: at most {DEPTH} are taken"
        )));
    }
    let mut found = None;
    let looked = expr.apply(|part| {
        let what = match part {
            Expr::AggregateFunction(_) | Expr::WindowFunction(_) => {
                "an aggregation, which is what the view's aggregations are for"
            }
            Expr::Exists(_) | Expr::InSubquery(_) | Expr::ScalarSubquery(_) | Expr::SetComparison(_) => {
                "a subquery in an expression"
            }
            Expr::Unnest(_) => "unnest, which makes several rows of one",
            Expr::Placeholder(_) => "a placeholder",
            Expr::ScalarFunction(function) if function.func.signature().volatility != Volatility::Immutable => {
                found = Some(format!("{}(), which does not depend on the row alone", function.func.name()));
                return Ok(TreeNodeRecursion::Stop);
            }
            _ => return Ok(TreeNodeRecursion::Continue),
        };
        found = Some(what.to_owned());
        Ok(TreeNodeRecursion::Stop)
    });
    looked.map_err(|e| refused(&e))?;
    match found {
        Some(what) => Err(Error::invalid(format!("its SQL has {what}: history could not be computed the same"))),
        None => Ok(()),
    }
}

/// The type that a column is given: the one that is needed, where nothing is lost on the way.
fn widened(name: &str, given: &DataType, needed: ValueType) -> Result<DataType> {
    use DataType as D;
    let is_time = matches!(given, D::Timestamp(..) | D::Date32 | D::Date64);
    let fits = match needed {
        ValueType::Bool => *given == D::Boolean,
        ValueType::Int64 => given.is_integer(),
        ValueType::Double => given.is_numeric(),
        ValueType::UnixTimestamp => is_time,
        ValueType::String => matches!(given, D::Utf8 | D::LargeUtf8 | D::Utf8View),
        ValueType::Bytes => matches!(given, D::Binary | D::LargeBinary | D::BinaryView),
        _ if is_time => return Ok(utc_micros()),
        _ => return Ok(given.clone()),
    };
    if !fits && !given.is_null() {
        return Err(Error::invalid(format!(
            "the column '{name}' of the result of its SQL is {given}, and what the view makes of it needs {}: CAST it",
            needed.as_str_name()
        )));
    }
    Ok(arrow_type(needed, None))
}

fn refused(error: &DataFusionError) -> Error {
    Error::invalid(format!("its SQL cannot be run: {}", short(&error.strip_backtrace())))
}
