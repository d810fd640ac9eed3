//! Substrait's scalar functions by their names, as DataFusion's.
//!
//! Source: `extensions/functions_{arithmetic,boolean,comparison,rounding,logarithmic,string,datetime}.yaml`.

use std::collections::HashMap;
use std::ops::{Add, Div, Mul, Neg, Not, Rem, Sub};
use std::sync::Arc;

use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{Expr, Operator, ScalarUDF, binary_expr, when};
use datafusion::prelude::SessionContext;
use model::{Error, Result};

/// The functions that a plan declares.
pub(super) struct Functions {
    names: HashMap<u32, String>,
    known: HashMap<&'static str, Arc<ScalarUDF>>,
}

/// Functions under Substrait's name and DataFusion's.
const SCALAR: [(&str, &str); 38] = [
    ("abs", "abs"),
    ("sqrt", "sqrt"),
    ("exp", "exp"),
    ("power", "power"),
    ("sign", "signum"),
    ("ceil", "ceil"),
    ("floor", "floor"),
    ("round", "round"),
    ("ln", "ln"),
    ("log10", "log10"),
    ("log2", "log2"),
    ("sin", "sin"),
    ("cos", "cos"),
    ("tan", "tan"),
    ("asin", "asin"),
    ("acos", "acos"),
    ("atan", "atan"),
    ("atan2", "atan2"),
    ("radians", "radians"),
    ("degrees", "degrees"),
    ("is_nan", "isnan"),
    ("coalesce", "coalesce"),
    ("nullif", "nullif"),
    ("least", "least"),
    ("greatest", "greatest"),
    ("concat", "concat"),
    ("lower", "lower"),
    ("upper", "upper"),
    ("trim", "btrim"),
    ("ltrim", "ltrim"),
    ("rtrim", "rtrim"),
    ("lpad", "lpad"),
    ("rpad", "rpad"),
    ("replace", "replace"),
    ("reverse", "reverse"),
    ("repeat", "repeat"),
    ("substring", "substr"),
    ("char_length", "character_length"),
];
/// More of them, whose first argument is an option or a pattern.
const MORE: [(&str, &str); 6] = [
    ("starts_with", "starts_with"),
    ("ends_with", "ends_with"),
    ("contains", "contains"),
    ("strpos", "strpos"),
    ("extract", "date_part"),
    ("initcap", "initcap"),
];

/// Functions that DataFusion computes of the arguments that are not null; by Substrait's definition their
/// result is null where any argument is.
const NULL_OF_NULL: [&str; 3] = ["concat", "least", "greatest"];

impl Functions {
    /// The functions declared, by anchor.
    pub(super) fn new<'a>(declared: impl Iterator<Item = (u32, &'a str)>, context: &SessionContext) -> Self {
        let names =
            declared.map(|(anchor, name)| (anchor, name.split(':').next().unwrap_or(name).to_owned())).collect();
        let all = SCALAR.into_iter().chain(MORE);
        let known = all.filter_map(|(name, ours)| context.udf(ours).ok().map(|f| (name, f))).collect();
        Self { names, known }
    }

    /// A call.
    ///
    /// Errors: a function that is not known here, by its name; the wrong number of arguments.
    pub(super) fn call(&self, anchor: u32, arguments: Vec<Expr>) -> Result<Expr> {
        let name = self.names.get(&anchor).map_or("", String::as_str);
        if let Some(function) = self.known.get(name) {
            return Ok(if NULL_OF_NULL.contains(&name) {
                null_of_null(function, arguments)?
            } else {
                function.call(arguments)
            });
        }
        let number = arguments.len();
        let wrong = || Error::invalid(format!("its Substrait plan calls {name} with {number} arguments"));
        if matches!(name, "and" | "or") {
            return balanced(name, arguments).ok_or_else(wrong);
        }
        let mut arguments = arguments.into_iter();
        let mut next = || arguments.next().ok_or_else(wrong);
        let call = match name {
            "add" | "multiply" | "subtract" | "divide" | "modulus" | "modulo" => two(name, next()?, next()?),
            name if comparison(name).is_some() => two(name, next()?, next()?),
            "not" => next()?.not(),
            "negate" => next()?.neg(),
            "is_null" => next()?.is_null(),
            "is_not_null" => next()?.is_not_null(),
            "is_true" => next()?.is_true(),
            "is_false" => next()?.is_false(),
            "is_not_true" => next()?.is_not_true(),
            "is_not_false" => next()?.is_not_false(),
            "between" => next()?.between(next()?, next()?),
            "like" => next()?.like(next()?),
            _ => {
                let shown = if name.is_empty() {
                    format!("function {anchor}, which it does not declare")
                } else {
                    format!("the function {name}, which is not known here")
                };
                return Err(Error::invalid(format!("its Substrait plan calls {shown}")));
            }
        };
        if arguments.next().is_some() { Err(wrong()) } else { Ok(call) }
    }
}

fn null_of_null(function: &Arc<ScalarUDF>, arguments: Vec<Expr>) -> Result<Expr> {
    let nulls = arguments.iter().map(|a| a.clone().is_null()).collect();
    let Some(any_null) = balanced("or", nulls) else { return Ok(function.call(arguments)) };
    when(any_null.not(), function.call(arguments)).end().map_err(super::refused)
}

/// All of them, as a tree that is no deeper than it must be. `None` where there are none.
fn balanced(name: &str, mut arguments: Vec<Expr>) -> Option<Expr> {
    if arguments.len() < 2 {
        return arguments.pop();
    }
    let behind = arguments.split_off(arguments.len() / 2);
    Some(two(name, balanced(name, arguments)?, balanced(name, behind)?))
}

fn comparison(name: &str) -> Option<Operator> {
    Some(match name {
        "equal" => Operator::Eq,
        "not_equal" => Operator::NotEq,
        "lt" => Operator::Lt,
        "lte" => Operator::LtEq,
        "gt" => Operator::Gt,
        "gte" => Operator::GtEq,
        "is_distinct_from" => Operator::IsDistinctFrom,
        "is_not_distinct_from" => Operator::IsNotDistinctFrom,
        _ => return None,
    })
}

fn two(name: &str, a: Expr, b: Expr) -> Expr {
    match (name, comparison(name)) {
        (_, Some(operator)) => binary_expr(a, operator, b),
        ("and", _) => a.and(b),
        ("or", _) => a.or(b),
        ("add", _) => a.add(b),
        ("subtract", _) => a.sub(b),
        ("multiply", _) => a.mul(b),
        ("divide", _) => a.div(b),
        _ => a.rem(b),
    }
}
