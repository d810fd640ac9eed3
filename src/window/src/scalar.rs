//! The values that events carry and features take, and their types. Knows no wire and no store:
//! callers convert at their edge.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// One value. Cloning is cheap.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// No value.
    Null,
    /// A boolean.
    Bool(bool),
    /// A signed integer of any width, or a timestamp in microseconds since the epoch.
    Int(i64),
    /// A floating value of any width.
    Float(f64),
    /// Text.
    Text(Arc<str>),
    /// Bytes.
    Bytes(Arc<[u8]>),
    /// What a function of several values answers; no event carries one.
    List(Arc<[Scalar]>),
    /// How often each category was seen, ascending by the category's value; no event carries one.
    Counts(Arc<[(Arc<str>, i64)]>),
}

impl Scalar {
    /// Whether there is no value.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Whether it is no number, though of a type of numbers.
    pub(crate) fn is_nan(&self) -> bool {
        matches!(self, Self::Float(x) if x.is_nan())
    }

    /// The number that it is, as a double.
    pub(crate) fn number(&self) -> Option<f64> {
        match self {
            Self::Int(x) => Some(*x as f64),
            Self::Float(x) => Some(*x),
            _ => None,
        }
    }

    /// The type's name, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "Null",
            Self::Bool(_) => "Bool",
            Self::Int(_) => "Int",
            Self::Float(_) => "Float",
            Self::Text(_) => "Text",
            Self::Bytes(_) => "Bytes",
            Self::List(_) => "List",
            Self::Counts(_) => "Counts",
        }
    }

    /// The order of `min` and `max`: NaN (of either sign) is greater than every number, -0.0 less
    /// than 0.0. Values of different types, which a checked column never mixes, compare equal.
    pub(crate) fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Int(a), Self::Int(b)) => a.cmp(b),
            (Self::Float(a), Self::Float(b)) => match (a.is_nan(), b.is_nan()) {
                (false, false) => a.total_cmp(b),
                (a, b) => a.cmp(&b),
            },
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            (Self::Bytes(a), Self::Bytes(b)) => a.cmp(b),
            _ => Ordering::Equal,
        }
    }
}

/// The type of a column of the stream, or of a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ColumnType {
    /// Booleans: [`Scalar::Bool`].
    Bool,
    /// Integers of any width: [`Scalar::Int`].
    Int,
    /// Floating values of any width: [`Scalar::Float`]; integers are taken as floats.
    Float,
    /// Timestamps: [`Scalar::Int`], microseconds since the epoch.
    Timestamp,
    /// Text: [`Scalar::Text`].
    Text,
    /// Bytes: [`Scalar::Bytes`].
    Bytes,
    /// Lists, maps, structs: they can be counted. Any value that is not null stands for one.
    Other,
}

/// What a feature's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// One value of a type.
    One(ColumnType),
    /// Lists of values of a type: [`Scalar::List`].
    List(ColumnType),
    /// Counts per category: [`Scalar::Counts`].
    Counts,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(ty) => ty.fmt(f),
            Self::List(ty) => write!(f, "a list of {ty}"),
            Self::Counts => f.write_str("a map of counts"),
        }
    }
}

impl ColumnType {
    /// Whether a column of this type may hold the value.
    pub(crate) fn admits(self, value: &Scalar) -> bool {
        match value {
            Scalar::Null => true,
            Scalar::Bool(_) => matches!(self, Self::Bool | Self::Other),
            Scalar::Int(_) => matches!(self, Self::Int | Self::Timestamp | Self::Float | Self::Other),
            Scalar::Float(_) => matches!(self, Self::Float | Self::Other),
            Scalar::Text(_) => matches!(self, Self::Text | Self::Other),
            Scalar::Bytes(_) => matches!(self, Self::Bytes | Self::Other),
            Scalar::List(_) | Scalar::Counts(_) => false,
        }
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bool => "Bool",
            Self::Int => "Int",
            Self::Float => "Float",
            Self::Timestamp => "Timestamp",
            Self::Text => "Text",
            Self::Bytes => "Bytes",
            Self::Other => "Other",
        })
    }
}
