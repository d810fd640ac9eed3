//! The SQL that a stream's messages go through before they are events: filters, projections and functions of a row.
//! Knows no engine that runs it.

use std::fmt;
use std::sync::Arc;

use crate::registry::Field;
use crate::{Result, Value, ValueType};

/// A query as it is registered, and what it is to be over.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The text: one `SELECT`.
    pub text: &'a str,
    /// The names that its one table goes by.
    pub tables: &'a [&'a str],
    /// The table's columns.
    pub columns: &'a [Field],
    /// What columns of the result must be: where they are of a smaller type, they are widened.
    pub needed: &'a [(String, ValueType)],
}

/// Makes queries ready to run.
pub trait StreamSql: Send + Sync + fmt::Debug {
    /// A query of rows.
    ///
    /// Errors (`InvalidArgument`, with the reason): text that is no SQL, a column or table that is not there, whatever
    /// makes of a row more than one, or looks at more than it or at the clock, a column that cannot be what is needed.
    fn compile(&self, query: Query<'_>) -> Result<Arc<dyn RowQuery>>;
}

/// A query that gives for each row one or none. Points in time (`UNIX_TIMESTAMP`) go in and out as `INT64` µs.
pub trait RowQuery: Send + Sync + fmt::Debug {
    /// The places of the columns that it reads among [`Query::columns`].
    fn reads(&self) -> &[usize];

    /// The result's columns.
    fn gives(&self) -> &[Field];

    /// Runs it over so many rows of the columns of [`RowQuery::reads`].
    ///
    /// Errors (`InvalidArgument`): a row over which an expression fails.
    fn run(&self, columns: &[Vec<Value>], rows: usize) -> Result<Selected>;
}

/// The rows that a query left in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selected {
    /// Which rows they are made of, ascending.
    pub rows: Vec<usize>,
    /// The columns of [`RowQuery::gives`].
    pub columns: Vec<Vec<Value>>,
}
