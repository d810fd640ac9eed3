//! Substrait plans of on-demand views, run on DataFusion: a plan takes the columns of one named table
//! and gives columns computed row by row. The compiled plan is kept per serialized plan.
//!
//! The relations are `read` and `project`, the expressions literals, fields, functions, casts,
//! `if_then` and `in` lists: what `ibis` makes of a function of rows. (`datafusion-substrait` would take
//! all of Substrait, but its generated messages cannot be built without `protoc`.)
//!
//! Source: `feast/transformation/substrait_transformation.py`; the functions are those of Substrait's
//! `extensions/functions_*.yaml`.

mod functions;
mod plan;

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, TimeUnit};
use bytes::Bytes;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, ScalarValue};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, cast, try_cast, when};
use datafusion::prelude::{SessionContext, in_list, lit};
use model::ports::{NamedColumn, Transformation};
use model::{Error, Result, ValueType};
use prost::Message;

use super::columns::{from_batch, to_batch};
use crate::convert::utc_micros;
use crate::error::short;
use functions::Functions;
use plan::{Common, Expression, Lit, Plan, Rel, Rex, Type, TypeKind};

/// Plans that are kept.
const KEPT: usize = 256;
/// Operations that a plan may have once each projection is written out over the columns read: those of
/// projections upon projections multiply.
const OPERATIONS: usize = 100_000;

/// Runs plans.
#[derive(Default)]
pub(super) struct Substrait {
    context: SessionContext,
    compiled: Mutex<HashMap<Bytes, Arc<Compiled>>>,
}

/// A plan as expressions over the columns that it reads.
#[derive(Debug)]
struct Compiled {
    /// The columns read, with the types that the expressions expect.
    reads: Vec<(String, Option<DataType>)>,
    /// The columns given.
    gives: Vec<(String, Expr)>,
}

impl Substrait {
    /// Runs a view's plan over the columns of a call.
    ///
    /// Errors: a plan that cannot be read or is more than a function of rows, a column that is not
    /// there, a value that a function cannot take.
    pub(super) async fn run(&self, call: &Transformation, plan: &Bytes) -> Result<Vec<NamedColumn>> {
        let compiled = self.compiled(plan)?;
        let table = to_batch(&call.columns, call.rows, false)?;
        let schema = table.schema();
        let mut reads = Vec::with_capacity(compiled.reads.len());
        for (at, (name, data_type)) in compiled.reads.iter().enumerate() {
            let short_name = name.rsplit("__").next().unwrap_or(name);
            if schema.index_of(name).is_err() && schema.index_of(short_name).is_err() {
                return Err(Error::invalid(format!(
                    "its plan reads the column '{name}', which none of its sources has"
                )));
            }
            let found = if schema.index_of(name).is_ok() { name } else { short_name };
            let column = Expr::Column(Column::from_name(found));
            let typed = data_type.as_ref().map_or(column.clone(), |t| cast(column, t.clone()));
            reads.push(typed.alias(place(at)));
        }
        let wanted: Vec<(String, ValueType)> =
            call.view.features.iter().map(|f| (f.name.clone(), f.value_type)).collect();
        let gives = compiled.gives.iter().filter(|(name, _)| wanted.iter().any(|(n, _)| n == name));
        let gives: Vec<Expr> = gives.map(|(name, expr)| expr.clone().alias(name)).collect();
        if gives.is_empty() || call.rows == 0 {
            return Ok(Vec::new());
        }
        let frame = self.context.read_batch(table).and_then(|f| f.select(reads)).and_then(|f| f.select(gives));
        let frame = frame.map_err(refused)?;
        let schema = Arc::new(frame.schema().as_arrow().clone());
        let batches = frame.collect().await.map_err(refused)?;
        let out: RecordBatch = concat_batches(&schema, &batches).map_err(crate::error::arrow)?;
        from_batch(&out, &call.view.name, &wanted)
    }

    fn compiled(&self, bytes: &Bytes) -> Result<Arc<Compiled>> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = compiled.get(bytes) {
            return Ok(known.clone());
        }
        let plan = Plan::decode(bytes.clone())
            .map_err(|e| Error::invalid(format!("its Substrait plan cannot be read: {e}")))?;
        let new = Arc::new(compile(&plan, &self.context)?);
        if compiled.len() >= KEPT {
            compiled.clear();
        }
        compiled.insert(bytes.clone(), new.clone());
        Ok(new)
    }
}

impl std::fmt::Debug for Substrait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Substrait").finish_non_exhaustive()
    }
}

/// The name of a column that is read, inside.
fn place(at: usize) -> String {
    format!("c{at}")
}

fn refused(error: DataFusionError) -> Error {
    Error::invalid(format!("its plan failed: {}", short(&error.strip_backtrace()))).with_cause(error)
}

fn unsupported(what: &str) -> Error {
    Error::invalid(format!("its Substrait plan has {what}: only functions of rows are run here"))
}

/// A plan that is being compiled.
struct Compiling {
    functions: Functions,
    /// The operations that it may still have.
    left: Cell<usize>,
}

impl Compiling {
    /// Counts the operations of an expression that is used once more.
    fn spend(&self, expr: &Expr) -> Result<()> {
        let mut left = self.left.get();
        let counted = expr.apply(|_| {
            let Some(fewer) = left.checked_sub(1) else {
                return Err(DataFusionError::ResourcesExhausted(format!("it has more than {OPERATIONS} operations")));
            };
            left = fewer;
            Ok(TreeNodeRecursion::Continue)
        });
        self.left.set(left);
        counted.map(|_| ()).map_err(refused)
    }
}

fn compile(plan: &Plan, context: &SessionContext) -> Result<Compiled> {
    let declared = plan.extensions.iter().filter_map(|d| d.function.as_ref());
    let functions = Functions::new(declared.map(|f| (f.anchor, f.name.as_str())), context);
    let compiling = Compiling { functions, left: Cell::new(OPERATIONS) };
    let (rel, names) = match plan.relations.as_slice() {
        [one] => match (&one.root, &one.rel) {
            (Some(root), _) => (root.input.as_ref(), root.names.clone()),
            (None, rel) => (rel.as_ref(), Vec::new()),
        },
        several => return Err(unsupported(&format!("{} relations", several.len()))),
    };
    let mut reads = Vec::new();
    let gives = relation(rel.ok_or_else(|| unsupported("no relation"))?, &compiling, &mut reads)?;
    let names = if names.is_empty() { reads.iter().map(|(name, _)| name.clone()).collect() } else { names };
    if names.len() != gives.len() {
        return Err(Error::invalid(format!("its plan names {} columns and gives {}", names.len(), gives.len())));
    }
    Ok(Compiled { reads, gives: names.into_iter().zip(gives).collect() })
}

/// The columns of a relation as expressions over the columns read.
fn relation(rel: &Rel, compiling: &Compiling, reads: &mut Vec<(String, Option<DataType>)>) -> Result<Vec<Expr>> {
    if let Some(read) = &rel.read {
        if read.filter.is_some() {
            return Err(unsupported("a filter"));
        }
        let schema = read.schema.clone().unwrap_or_default();
        let types = schema.types.unwrap_or_default().types;
        for (at, name) in schema.names.iter().enumerate() {
            let data_type = types.get(at).and_then(|t| arrow_type(t).ok());
            reads.push((name.clone(), data_type));
        }
        let columns = (0..reads.len()).map(|at| Expr::Column(Column::from_name(place(at)))).collect();
        return emitted(read.common.as_ref(), columns, compiling);
    }
    let Some(project) = &rel.project else { return Err(unsupported("a relation that is neither read nor project")) };
    let input = project.input.as_ref().ok_or_else(|| unsupported("a projection of nothing"))?;
    let mut columns = relation(input, compiling, reads)?;
    let new = project.expressions.iter().map(|e| expression(e, &columns, compiling)).collect::<Result<Vec<_>>>()?;
    columns.extend(new);
    emitted(project.common.as_ref(), columns, compiling)
}

fn emitted(common: Option<&Common>, columns: Vec<Expr>, compiling: &Compiling) -> Result<Vec<Expr>> {
    match common.and_then(|c| c.emit.as_ref()) {
        None => Ok(columns),
        Some(emit) => emit.mapping.iter().map(|at| column(*at, &columns, compiling)).collect(),
    }
}

fn column(at: i32, columns: &[Expr], compiling: &Compiling) -> Result<Expr> {
    let found = usize::try_from(at).ok().and_then(|at| columns.get(at));
    let found = found.ok_or_else(|| Error::invalid(format!("its plan takes column {at} of {}", columns.len())))?;
    compiling.spend(found)?;
    Ok(found.clone())
}

fn expression(expression: &Expression, columns: &[Expr], compiling: &Compiling) -> Result<Expr> {
    let of = |e: &Expression| self::expression(e, columns, compiling);
    let some = |e: Option<&Expression>| e.map_or_else(|| Err(unsupported("an empty expression")), of);
    match expression.rex.as_ref().ok_or_else(|| unsupported("an expression of an unknown kind"))? {
        Rex::Literal(literal) => literal_of(literal.value.as_ref()),
        Rex::Selection(selection) => {
            let field = selection.direct.as_ref().and_then(|d| d.field.as_ref());
            let field = field.ok_or_else(|| unsupported("a reference to a part of a column"))?;
            column(field.field, columns, compiling)
        }
        Rex::Function(call) => {
            let mut arguments = Vec::with_capacity(call.arguments.len());
            for argument in &call.arguments {
                arguments.push(match (&argument.value, &argument.option) {
                    (Some(value), _) => of(value)?,
                    (None, Some(option)) => lit(option.clone()),
                    (None, None) => return Err(unsupported("a type as an argument")),
                });
            }
            compiling.functions.call(call.function, arguments)
        }
        Rex::IfThen(if_then) => {
            let mut clauses = if_then.clauses.iter();
            let first = clauses.next().ok_or_else(|| unsupported("an if without a condition"))?;
            let mut built = when(some(first.condition.as_ref())?, some(first.then.as_ref())?);
            for clause in clauses {
                built = built.when(some(clause.condition.as_ref())?, some(clause.then.as_ref())?);
            }
            match if_then.otherwise.as_deref() {
                Some(otherwise) => built.otherwise(of(otherwise)?),
                None => built.end(),
            }
            .map_err(refused)
        }
        Rex::SingularOrList(list) => {
            let options = list.options.iter().map(of).collect::<Result<_>>()?;
            Ok(in_list(some(list.value.as_deref())?, options, false))
        }
        Rex::Cast(to) => {
            let target = arrow_type(&to.to.clone().unwrap_or_default())?;
            let input = some(to.input.as_deref())?;
            Ok(if to.on_failure == 1 { try_cast(input, target) } else { cast(input, target) })
        }
    }
}

fn literal_of(literal: Option<&Lit>) -> Result<Expr> {
    let micros = |v: i64, zone: Option<&str>| ScalarValue::TimestampMicrosecond(Some(v), zone.map(Into::into));
    let narrow = |v: i32| i16::try_from(v).map_err(|_| unsupported("a literal beyond its type"));
    Ok(lit(match literal.ok_or_else(|| unsupported("a literal of an unknown type"))? {
        Lit::Boolean(v) => ScalarValue::Boolean(Some(*v)),
        Lit::I8(v) | Lit::I16(v) => ScalarValue::Int16(Some(narrow(*v)?)),
        Lit::I32(v) => ScalarValue::Int32(Some(*v)),
        Lit::I64(v) => ScalarValue::Int64(Some(*v)),
        Lit::Fp32(v) => ScalarValue::Float32(Some(*v)),
        Lit::Fp64(v) => ScalarValue::Float64(Some(*v)),
        Lit::String(v) | Lit::FixedChar(v) => ScalarValue::Utf8(Some(v.clone())),
        Lit::VarChar(v) => ScalarValue::Utf8(Some(v.value.clone())),
        Lit::Binary(v) => ScalarValue::Binary(Some(v.clone())),
        Lit::Timestamp(v) => micros(*v, None),
        Lit::TimestampTz(v) => micros(*v, Some("UTC")),
        Lit::Null(of) => ScalarValue::try_from(&arrow_type(of)?).map_err(refused)?,
    }))
}

fn arrow_type(of: &Type) -> Result<DataType> {
    Ok(match of.kind.as_ref().ok_or_else(|| unsupported("a type that no column here has"))? {
        TypeKind::Bool(_) => DataType::Boolean,
        TypeKind::I8(_) => DataType::Int8,
        TypeKind::I16(_) => DataType::Int16,
        TypeKind::I32(_) => DataType::Int32,
        TypeKind::I64(_) => DataType::Int64,
        TypeKind::Fp32(_) => DataType::Float32,
        TypeKind::Fp64(_) => DataType::Float64,
        TypeKind::String(_) | TypeKind::FixedChar(_) | TypeKind::VarChar(_) => DataType::Utf8,
        TypeKind::Binary(_) => DataType::Binary,
        TypeKind::Date(_) => DataType::Date32,
        TypeKind::Timestamp(_) => DataType::Timestamp(TimeUnit::Microsecond, None),
        TypeKind::TimestampTz(_) => utc_micros(),
        TypeKind::List(list) => {
            let element = arrow_type(list.element.as_deref().unwrap_or(&Type::default()))?;
            DataType::List(Arc::new(arrow::datatypes::Field::new("item", element, true)))
        }
    })
}

#[cfg(test)]
mod tests;
