//! The part of `substrait.Plan` that a transformation of rows is made of, as protobuf messages. What is
//! not in it (joins, aggregates, windows) has no meaning row by row, and is refused by name.
//!
//! Source of the field numbers: substrait-io/substrait, `proto/substrait/{plan,algebra,type}.proto`.
#![allow(missing_docs)] // the names are the specification's

use prost::{Message, Oneof};

#[derive(Clone, PartialEq, Message)]
pub(super) struct Plan {
    #[prost(message, repeated, tag = "2")]
    pub(super) extensions: Vec<Declaration>,
    #[prost(message, repeated, tag = "3")]
    pub(super) relations: Vec<PlanRel>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Declaration {
    #[prost(message, optional, tag = "3")]
    pub(super) function: Option<DeclaredFunction>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DeclaredFunction {
    #[prost(uint32, tag = "2")]
    pub(super) anchor: u32,
    /// With its signature: `add:i64_i64`.
    #[prost(string, tag = "3")]
    pub(super) name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PlanRel {
    #[prost(message, optional, tag = "1")]
    pub(super) rel: Option<Rel>,
    #[prost(message, optional, tag = "2")]
    pub(super) root: Option<RelRoot>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RelRoot {
    #[prost(message, optional, tag = "1")]
    pub(super) input: Option<Rel>,
    #[prost(string, repeated, tag = "2")]
    pub(super) names: Vec<String>,
}

/// `read` or `project`; every other relation leaves both unset.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Rel {
    #[prost(message, optional, tag = "1")]
    pub(super) read: Option<Read>,
    #[prost(message, optional, boxed, tag = "7")]
    pub(super) project: Option<Box<Project>>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Common {
    #[prost(message, optional, tag = "2")]
    pub(super) emit: Option<Emit>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Emit {
    #[prost(int32, repeated, tag = "1")]
    pub(super) mapping: Vec<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Read {
    #[prost(message, optional, tag = "1")]
    pub(super) common: Option<Common>,
    #[prost(message, optional, tag = "2")]
    pub(super) schema: Option<NamedStruct>,
    /// A filter drops rows, so none may be there.
    #[prost(message, optional, tag = "3")]
    pub(super) filter: Option<Expression>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NamedStruct {
    #[prost(string, repeated, tag = "1")]
    pub(super) names: Vec<String>,
    #[prost(message, optional, tag = "2")]
    pub(super) types: Option<Struct>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Struct {
    #[prost(message, repeated, tag = "1")]
    pub(super) types: Vec<Type>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Project {
    #[prost(message, optional, tag = "1")]
    pub(super) common: Option<Common>,
    #[prost(message, optional, tag = "2")]
    pub(super) input: Option<Rel>,
    #[prost(message, repeated, tag = "3")]
    pub(super) expressions: Vec<Expression>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Expression {
    #[prost(oneof = "Rex", tags = "1, 2, 3, 6, 8, 11")]
    pub(super) rex: Option<Rex>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Rex {
    #[prost(message, tag = "1")]
    Literal(Literal),
    #[prost(message, tag = "2")]
    Selection(Selection),
    #[prost(message, tag = "3")]
    Function(Call),
    #[prost(message, tag = "6")]
    IfThen(IfThen),
    #[prost(message, tag = "8")]
    SingularOrList(OrList),
    #[prost(message, tag = "11")]
    Cast(Cast),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Literal {
    #[prost(oneof = "Lit", tags = "1, 2, 3, 5, 7, 10, 11, 12, 13, 14, 21, 22, 27, 29")]
    pub(super) value: Option<Lit>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Lit {
    #[prost(bool, tag = "1")]
    Boolean(bool),
    #[prost(int32, tag = "2")]
    I8(i32),
    #[prost(int32, tag = "3")]
    I16(i32),
    #[prost(int32, tag = "5")]
    I32(i32),
    #[prost(int64, tag = "7")]
    I64(i64),
    #[prost(float, tag = "10")]
    Fp32(f32),
    #[prost(double, tag = "11")]
    Fp64(f64),
    #[prost(string, tag = "12")]
    String(String),
    #[prost(bytes, tag = "13")]
    Binary(Vec<u8>),
    /// µs.
    #[prost(int64, tag = "14")]
    Timestamp(i64),
    #[prost(string, tag = "21")]
    FixedChar(String),
    #[prost(message, tag = "22")]
    VarChar(VarChar),
    /// µs, UTC.
    #[prost(int64, tag = "27")]
    TimestampTz(i64),
    #[prost(message, tag = "29")]
    Null(Type),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct VarChar {
    #[prost(string, tag = "1")]
    pub(super) value: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Selection {
    #[prost(message, optional, tag = "1")]
    pub(super) direct: Option<Segment>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Segment {
    #[prost(message, optional, tag = "2")]
    pub(super) field: Option<StructField>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StructField {
    #[prost(int32, tag = "1")]
    pub(super) field: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Call {
    #[prost(uint32, tag = "1")]
    pub(super) function: u32,
    #[prost(message, repeated, tag = "4")]
    pub(super) arguments: Vec<Argument>,
    #[prost(message, optional, tag = "3")]
    pub(super) output: Option<Type>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Argument {
    /// An option's name, e.g. the unit of `extract`.
    #[prost(string, optional, tag = "1")]
    pub(super) option: Option<String>,
    #[prost(message, optional, tag = "3")]
    pub(super) value: Option<Expression>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct IfThen {
    #[prost(message, repeated, tag = "1")]
    pub(super) clauses: Vec<Clause>,
    #[prost(message, optional, boxed, tag = "2")]
    pub(super) otherwise: Option<Box<Expression>>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Clause {
    #[prost(message, optional, tag = "1")]
    pub(super) condition: Option<Expression>,
    #[prost(message, optional, tag = "2")]
    pub(super) then: Option<Expression>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct OrList {
    #[prost(message, optional, boxed, tag = "1")]
    pub(super) value: Option<Box<Expression>>,
    #[prost(message, repeated, tag = "2")]
    pub(super) options: Vec<Expression>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Cast {
    #[prost(message, optional, tag = "1")]
    pub(super) to: Option<Type>,
    #[prost(message, optional, boxed, tag = "2")]
    pub(super) input: Option<Box<Expression>>,
    /// 1 is null where the cast fails; else it is an error.
    #[prost(int32, tag = "3")]
    pub(super) on_failure: i32,
}

/// Nullability and variations do not matter here: only which one it is does.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Type {
    #[prost(oneof = "TypeKind", tags = "1, 2, 3, 5, 7, 10, 11, 12, 13, 14, 16, 21, 22, 27, 29")]
    pub(super) kind: Option<TypeKind>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Plain {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct List {
    #[prost(message, optional, boxed, tag = "1")]
    pub(super) element: Option<Box<Type>>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum TypeKind {
    #[prost(message, tag = "1")]
    Bool(Plain),
    #[prost(message, tag = "2")]
    I8(Plain),
    #[prost(message, tag = "3")]
    I16(Plain),
    #[prost(message, tag = "5")]
    I32(Plain),
    #[prost(message, tag = "7")]
    I64(Plain),
    #[prost(message, tag = "10")]
    Fp32(Plain),
    #[prost(message, tag = "11")]
    Fp64(Plain),
    #[prost(message, tag = "12")]
    String(Plain),
    #[prost(message, tag = "13")]
    Binary(Plain),
    #[prost(message, tag = "14")]
    Timestamp(Plain),
    #[prost(message, tag = "16")]
    Date(Plain),
    #[prost(message, tag = "21")]
    FixedChar(Plain),
    #[prost(message, tag = "22")]
    VarChar(Plain),
    #[prost(message, tag = "27")]
    List(List),
    #[prost(message, tag = "29")]
    TimestampTz(Plain),
}
