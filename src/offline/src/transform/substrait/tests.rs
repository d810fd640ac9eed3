//! Plans made of messages, run over columns of known values. The results are those of Substrait's
//! definitions (`extensions/functions_*.yaml`), worked out by hand or with Rust's own arithmetic.

use std::f64::consts::PI;

use model::Kind;
use model::ports::TypedColumn;
use model::registry::View;
use model::value::proto_value::Val;
use model::value::{NULL, is_null, type_of};
use model::{Timestamp, Value};
use proptest::prelude::*;
use proto::feast::core;

use super::plan::*;
use super::*;

/// A plan that `ibis` made, with its columns.
const ROWS: &[u8] = include_bytes!("../../../../../integration-tests/rows.substrait");

fn i(value: i64) -> Value {
    Value { val: Some(Val::Int64Val(value)) }
}

fn f(value: f64) -> Value {
    Value { val: Some(Val::DoubleVal(value)) }
}

fn s(value: &str) -> Value {
    Value { val: Some(Val::StringVal(value.into())) }
}

fn b(value: bool) -> Value {
    Value { val: Some(Val::BoolVal(value)) }
}

fn name_of(at: usize) -> String {
    format!("in{at}")
}

fn view(features: &[(&str, ValueType)]) -> Arc<View> {
    let features = features.iter().map(|(name, value_type)| core::FeatureSpecV2 {
        name: (*name).into(),
        value_type: (*value_type).into(),
        ..Default::default()
    });
    let spec = core::OnDemandFeatureViewSpec { name: "v".into(), features: features.collect(), ..Default::default() };
    let view = core::OnDemandFeatureView { spec: Some(spec), meta: None };
    Arc::new(View::of_on_demand("p", view, Bytes::new(), &std::collections::BTreeMap::new()))
}

fn field(at: i32) -> Expression {
    let direct = Some(Segment { field: Some(StructField { field: at }) });
    Expression { rex: Some(Rex::Selection(Selection { direct })) }
}

fn literal(value: Lit) -> Expression {
    Expression { rex: Some(Rex::Literal(Literal { value: Some(value) })) }
}

fn call(function: u32, arguments: Vec<Expression>) -> Expression {
    let arguments = arguments.into_iter().map(|value| Argument { option: None, value: Some(value) }).collect();
    Expression { rex: Some(Rex::Function(Call { function, arguments, output: None })) }
}

fn kind(kind: TypeKind) -> Type {
    Type { kind: Some(kind) }
}

fn read(columns: usize) -> Rel {
    let schema = NamedStruct { names: (0..columns).map(name_of).collect(), types: None };
    Rel { read: Some(Read { common: None, schema: Some(schema), filter: None }), project: None }
}

/// The expressions over a relation, alone.
fn project(input: Rel, columns: usize, expressions: Vec<Expression>) -> Rel {
    let last = columns + expressions.len();
    let mapping = (columns..last).map(|at| i32::try_from(at).expect("few")).collect();
    let common = Some(Common { emit: Some(Emit { mapping }) });
    Rel { read: None, project: Some(Box::new(Project { common, input: Some(input), expressions })) }
}

/// A plan that gives one column, `out`; `function` has the anchor 1.
fn plan(function: &str, input: Rel) -> Plan {
    let function = DeclaredFunction { anchor: 1, name: format!("{function}:any") };
    let root = RelRoot { input: Some(input), names: vec!["out".into()] };
    Plan {
        extensions: vec![Declaration { function: Some(function) }],
        relations: vec![PlanRel { rel: None, root: Some(root) }],
    }
}

fn typed(columns: &[Vec<Value>]) -> Vec<TypedColumn> {
    let of = |(at, values): (usize, &Vec<Value>)| {
        let value_type = values.iter().find(|v| !is_null(v)).map_or(ValueType::Invalid, type_of);
        TypedColumn { name: name_of(at), value_type, values: values.clone() }
    };
    columns.iter().enumerate().map(of).collect()
}

fn run_bytes(bytes: &Bytes, columns: Vec<TypedColumn>, features: &[(&str, ValueType)]) -> Result<Vec<NamedColumn>> {
    let rows = columns.first().map_or(0, |c| c.values.len());
    let call = Transformation { view: view(features), rows, columns, writing: false };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(Substrait::default().run(&call, bytes))
}

fn run(plan: &Plan, columns: &[Vec<Value>], out: ValueType) -> Result<Vec<Value>> {
    let mut given = run_bytes(&plan.encode_to_vec().into(), typed(columns), &[("out", out)])?;
    assert_eq!(given.len(), 1, "one column");
    Ok(given.remove(0).values)
}

/// A function of one row of these arguments.
fn one(function: &str, arguments: &[Value], out: ValueType) -> Result<Value> {
    let fields = (0..arguments.len()).map(|at| field(i32::try_from(at).expect("few"))).collect();
    let rel = project(read(arguments.len()), arguments.len(), vec![call(1, fields)]);
    let columns: Vec<_> = arguments.iter().map(|v| vec![v.clone()]).collect();
    run(&plan(function, rel), &columns, out).map(|mut values| values.remove(0))
}

fn check(out: ValueType, cases: Vec<(&str, Vec<Value>, Value)>) {
    for (function, arguments, wanted) in cases {
        let given = one(function, &arguments, out).unwrap_or_else(|e| panic!("{function}: {}", e.message()));
        let close = match (&given.val, &wanted.val) {
            (Some(Val::DoubleVal(a)), Some(Val::DoubleVal(b))) => (a - b).abs() < 1e-12,
            _ => given == wanted,
        };
        assert!(close, "{function}({arguments:?}) is {given:?}, not {wanted:?}");
    }
}

#[test]
fn arithmetic_of_integers_wraps() {
    let cases = vec![
        ("add", vec![i(2), i(3)], i(5)),
        ("add", vec![i(i64::MAX), i(1)], i(i64::MIN)),
        ("subtract", vec![i(2), i(3)], i(-1)),
        ("subtract", vec![i(i64::MIN), i(1)], i(i64::MAX)),
        ("multiply", vec![i(-4), i(3)], i(-12)),
        ("multiply", vec![i(i64::MAX), i(2)], i(-2)),
        ("divide", vec![i(-7), i(2)], i(-3)),
        ("modulus", vec![i(-7), i(2)], i(-1)),
        ("modulo", vec![i(7), i(4)], i(3)),
        ("negate", vec![i(7)], i(-7)),
        ("abs", vec![i(-3)], i(3)),
    ];
    check(ValueType::Int64, cases);
    for function in ["divide", "modulus"] {
        let error = one(function, &[i(1), i(0)], ValueType::Int64).expect_err("no such number");
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.message().to_lowercase().contains("divide by zero"), "{}", error.message());
    }
    assert!(one("abs", &[i(i64::MIN)], ValueType::Int64).is_err(), "it has no opposite");
}

#[test]
fn arithmetic_of_floats() {
    let cases = vec![
        ("add", vec![f(0.5), i(1)], f(1.5)),
        ("divide", vec![f(1.0), f(4.0)], f(0.25)),
        ("sqrt", vec![f(9.0)], f(3.0)),
        ("exp", vec![f(0.0)], f(1.0)),
        ("power", vec![f(2.0), f(3.0)], f(8.0)),
        ("sign", vec![f(-2.5)], f(-1.0)),
        ("ceil", vec![f(1.2)], f(2.0)),
        ("floor", vec![f(-1.2)], f(-2.0)),
        ("round", vec![f(2.6)], f(3.0)),
        ("round", vec![f(-2.4)], f(-2.0)),
        ("ln", vec![f(1.0)], f(0.0)),
        ("log10", vec![f(1000.0)], f(3.0)),
        ("log2", vec![f(8.0)], f(3.0)),
        ("sin", vec![f(PI / 2.0)], f(1.0)),
        ("cos", vec![f(PI)], f(-1.0)),
        ("tan", vec![f(PI / 4.0)], f(1.0)),
        ("asin", vec![f(1.0)], f(PI / 2.0)),
        ("acos", vec![f(-1.0)], f(PI)),
        ("atan", vec![f(1.0)], f(PI / 4.0)),
        ("atan2", vec![f(1.0), f(-1.0)], f(3.0 * PI / 4.0)),
        ("radians", vec![f(180.0)], f(PI)),
        ("degrees", vec![f(PI)], f(180.0)),
    ];
    check(ValueType::Double, cases);
    check(ValueType::Bool, vec![("is_nan", vec![f(f64::NAN)], b(true)), ("is_nan", vec![f(1.0)], b(false))]);
}

#[test]
fn comparisons() {
    let cases = vec![
        ("equal", vec![i(1), i(1)], b(true)),
        ("equal", vec![i(1), f(1.5)], b(false)),
        ("not_equal", vec![s("a"), s("b")], b(true)),
        ("lt", vec![i(1), i(2)], b(true)),
        ("lt", vec![i(2), i(2)], b(false)),
        ("lte", vec![i(2), i(2)], b(true)),
        ("gt", vec![s("b"), s("a")], b(true)),
        ("gt", vec![i(2), i(2)], b(false)),
        ("gte", vec![i(2), i(3)], b(false)),
        ("between", vec![i(2), i(2), i(3)], b(true)),
        ("between", vec![i(4), i(2), i(3)], b(false)),
        ("is_distinct_from", vec![i(1), NULL], b(true)),
        ("is_distinct_from", vec![NULL, NULL], b(false)),
        ("is_not_distinct_from", vec![i(1), i(1)], b(true)),
        ("is_null", vec![NULL], b(true)),
        ("is_null", vec![i(1)], b(false)),
        ("is_not_null", vec![i(1)], b(true)),
    ];
    check(ValueType::Bool, cases);
    let cases = vec![
        ("coalesce", vec![NULL, i(5), i(6)], i(5)),
        ("nullif", vec![i(1), i(1)], NULL),
        ("nullif", vec![i(1), i(2)], i(1)),
        ("least", vec![i(3), i(1), i(2)], i(1)),
        ("greatest", vec![i(3), i(1), i(4)], i(4)),
    ];
    check(ValueType::Int64, cases);
}

#[test]
fn booleans_have_three_values() {
    let (t, no) = (|| b(true), || b(false));
    let cases = vec![
        ("and", vec![t(), t(), no()], no()),
        ("and", vec![t(), t(), t()], t()),
        ("and", vec![no(), NULL], no()),
        ("and", vec![t(), NULL], NULL),
        ("and", vec![t()], t()),
        ("or", vec![no(), no(), t()], t()),
        ("or", vec![t(), NULL], t()),
        ("or", vec![no(), NULL], NULL),
        ("not", vec![t()], no()),
        ("is_true", vec![t()], t()),
        ("is_true", vec![no()], no()),
        ("is_false", vec![no()], t()),
        ("is_not_true", vec![no()], t()),
        ("is_not_false", vec![no()], no()),
    ];
    check(ValueType::Bool, cases);
}

#[test]
fn texts() {
    let cases = vec![
        ("concat", vec![s("a"), s("b"), s("c")], s("abc")),
        ("lower", vec![s("ÄB")], s("äb")),
        ("upper", vec![s("äb")], s("ÄB")),
        ("trim", vec![s("  a ")], s("a")),
        ("ltrim", vec![s("  a ")], s("a ")),
        ("rtrim", vec![s("  a ")], s("  a")),
        ("lpad", vec![s("a"), i(3), s("xy")], s("xya")),
        ("rpad", vec![s("a"), i(3), s("xy")], s("axy")),
        ("replace", vec![s("aba"), s("a"), s("cc")], s("ccbcc")),
        ("reverse", vec![s("äbc")], s("cbä")),
        ("repeat", vec![s("ab"), i(3)], s("ababab")),
        ("substring", vec![s("hällo"), i(2), i(3)], s("äll")),
        ("initcap", vec![s("hello world")], s("Hello World")),
    ];
    check(ValueType::String, cases);
    check(ValueType::Int64, vec![("char_length", vec![s("hällo")], i(5)), ("strpos", vec![s("hello"), s("l")], i(3))]);
    let cases = vec![
        ("starts_with", vec![s("hello"), s("he")], b(true)),
        ("starts_with", vec![s("hello"), s("lo")], b(false)),
        ("ends_with", vec![s("hello"), s("lo")], b(true)),
        ("contains", vec![s("hello"), s("ell")], b(true)),
        ("contains", vec![s("hello"), s("e.l")], b(false)),
        ("like", vec![s("hello"), s("h%_o")], b(true)),
        ("like", vec![s("hello"), s("ell")], b(false)),
    ];
    check(ValueType::Bool, cases);
    assert!(one("repeat", &[s("ab"), i(i64::MAX)], ValueType::String).is_err(), "no such memory");
}

/// Every function that is not about nulls gives null where an argument is null.
#[test]
fn null_of_null() {
    let numbers = |function: &'static str, number: usize| (function, vec![f(1.0); number]);
    let mut calls: Vec<(&str, Vec<Value>)> = Vec::new();
    for function in ["add", "subtract", "multiply", "divide", "modulus", "power", "atan2", "equal", "lt", "gte"] {
        calls.push(numbers(function, 2));
    }
    for function in ["least", "greatest"] {
        calls.push(numbers(function, 3));
    }
    for function in ["negate", "abs", "sqrt", "exp", "sign", "ceil", "floor", "round", "ln", "sin", "is_nan"] {
        calls.push(numbers(function, 1));
    }
    calls.push(numbers("between", 3));
    calls.push(("concat", vec![s("a"), s("b"), s("c")]));
    calls.push(("like", vec![s("a"), s("b")]));
    for function in ["starts_with", "ends_with", "contains", "strpos"] {
        calls.push((function, vec![s("a"), s("b")]));
    }
    for function in ["lower", "upper", "trim", "reverse", "char_length", "initcap"] {
        calls.push((function, vec![s("a")]));
    }
    calls.push(("replace", vec![s("a"), s("b"), s("c")]));
    for (function, arguments) in calls {
        let fields = (0..arguments.len()).map(|at| field(i32::try_from(at).expect("few"))).collect();
        let rel = project(read(arguments.len()), arguments.len(), vec![call(1, fields)]);
        // row 0 is whole, so that every column has its type; row n lacks argument n - 1
        let rows = arguments.len() + 1;
        let column = |(at, v): (usize, &Value)| (0..rows).map(|r| if r == at + 1 { NULL } else { v.clone() }).collect();
        let columns: Vec<Vec<Value>> = arguments.iter().enumerate().map(column).collect();
        let given = run(&plan(function, rel), &columns, ValueType::Invalid);
        let given = given.unwrap_or_else(|e| panic!("{function}: {}", e.message()));
        let nulls: Vec<bool> = given.iter().map(is_null).collect();
        let wanted: Vec<bool> = (0..rows).map(|row| row > 0).collect();
        assert_eq!(nulls, wanted, "{function}");
    }
}

#[test]
fn times_have_parts() {
    let at = Timestamp::parse("2026-11-22T23:05:09Z").expect("a time");
    let time = Value { val: Some(Val::UnixTimestampVal(at.micros() / 1_000_000)) };
    for (part, wanted) in [("YEAR", 2026), ("MONTH", 11), ("DAY", 22), ("HOUR", 23), ("MINUTE", 5)] {
        let option = Argument { option: Some(part.into()), value: None };
        let arguments = vec![option, Argument { option: None, value: Some(field(0)) }];
        let extract = Expression { rex: Some(Rex::Function(Call { function: 1, arguments, output: None })) };
        let rel = project(read(1), 1, vec![extract]);
        let given = run(&plan("extract", rel), &[vec![time.clone(), NULL]], ValueType::Int64);
        assert_eq!(given.expect(part), [i(wanted), NULL], "{part}");
    }
}

fn cast_of(to: TypeKind, on_failure: i32) -> Rel {
    let cast = Cast { to: Some(kind(to)), input: Some(Box::new(field(0))), on_failure };
    project(read(1), 1, vec![Expression { rex: Some(Rex::Cast(cast)) }])
}

#[test]
fn casts_fail_or_give_null_as_they_say() {
    let texts = vec![s("12"), s("x")];
    let given = run(&plan("-", cast_of(TypeKind::I64(Plain {}), 1)), std::slice::from_ref(&texts), ValueType::Int64);
    assert_eq!(given.expect("nulls"), [i(12), NULL]);
    let error = run(&plan("-", cast_of(TypeKind::I64(Plain {}), 0)), &[texts], ValueType::Int64);
    let error = error.expect_err("'x' is no number");
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.message().contains("'x'"), "{}", error.message());
    let cases = [
        (TypeKind::Fp64(Plain {}), i(2), ValueType::Double, f(2.0)),
        (TypeKind::String(Plain {}), i(2), ValueType::String, s("2")),
        (TypeKind::I32(Plain {}), f(2.9), ValueType::Int64, i(2)),
        (TypeKind::Bool(Plain {}), i(2), ValueType::Bool, b(true)),
    ];
    for (to, value, out, wanted) in cases {
        assert_eq!(run(&plan("-", cast_of(to, 0)), &[vec![value]], out).expect("casts"), [wanted]);
    }
    let wide = run(&plan("-", cast_of(TypeKind::I16(Plain {}), 0)), &[vec![i(1 << 20)]], ValueType::Int64);
    assert!(wide.is_err(), "it is too wide");
}

#[test]
fn literals_conditions_and_lists() {
    let literals = [
        (Lit::Boolean(true), ValueType::Bool, b(true)),
        (Lit::I8(-3), ValueType::Int64, i(-3)),
        (Lit::I16(-3), ValueType::Int64, i(-3)),
        (Lit::I32(-3), ValueType::Int64, i(-3)),
        (Lit::I64(i64::MIN), ValueType::Int64, i(i64::MIN)),
        (Lit::Fp32(0.5), ValueType::Double, f(0.5)),
        (Lit::Fp64(0.1), ValueType::Double, f(0.1)),
        (Lit::String("ä".into()), ValueType::String, s("ä")),
        (Lit::VarChar(VarChar { value: "ä".into() }), ValueType::String, s("ä")),
        (Lit::Null(kind(TypeKind::I64(Plain {}))), ValueType::Int64, NULL),
    ];
    for (value, out, wanted) in literals {
        let rel = project(read(1), 1, vec![literal(value.clone())]);
        let given = run(&plan("-", rel), &[vec![i(1), i(2)]], out);
        assert_eq!(given.expect("a literal"), [wanted.clone(), wanted], "{value:?}");
    }
    let integer = |n: i64| literal(Lit::I64(n));
    let clause = |condition, then| Clause { condition: Some(condition), then: Some(then) };
    let clauses = vec![
        clause(call(1, vec![field(0), integer(1)]), integer(10)),
        clause(call(1, vec![field(0), integer(2)]), integer(20)),
    ];
    for (otherwise, last) in [(Some(Box::new(field(0))), i(3)), (None, NULL)] {
        let if_then = Expression { rex: Some(Rex::IfThen(IfThen { clauses: clauses.clone(), otherwise })) };
        let given =
            run(&plan("equal", project(read(1), 1, vec![if_then])), &[vec![i(1), i(2), i(3)]], ValueType::Int64);
        assert_eq!(given.expect("a choice"), [i(10), i(20), last]);
    }
    let list = OrList { value: Some(Box::new(field(0))), options: vec![integer(1), integer(3)] };
    let rel = project(read(1), 1, vec![Expression { rex: Some(Rex::SingularOrList(list)) }]);
    let given = run(&plan("-", rel), &[vec![i(1), i(2), NULL]], ValueType::Bool);
    assert_eq!(given.expect("a list"), [b(true), b(false), NULL]);
}

#[test]
fn what_is_no_function_of_rows_is_refused_by_name() {
    let reason = |plan: &Plan| {
        let error = run(plan, &[vec![i(1)]], ValueType::Int64).expect_err("refused");
        assert_eq!(error.kind(), Kind::InvalidArgument);
        error.message().to_owned()
    };
    let other = Rel { read: None, project: None }; // a join, an aggregate, a filter, a sort, ...
    assert!(reason(&plan("-", other.clone())).contains("neither read nor project: only functions of rows"));
    assert!(reason(&plan("-", project(other, 1, vec![field(0)]))).contains("neither read nor project"));
    let mut filtered = read(1);
    filtered.read.as_mut().expect("it reads").filter = Some(literal(Lit::Boolean(true)));
    assert!(reason(&plan("-", filtered)).contains("a filter"));
    let mut two = plan("-", read(1));
    two.relations.push(two.relations[0].clone());
    assert!(reason(&two).contains("2 relations"));
    assert!(reason(&Plan::default()).contains("0 relations"));
    assert!(reason(&plan("-", project(read(1), 1, vec![field(7)]))).contains("column 7 of 1"));
    assert!(reason(&plan("-", project(read(1), 1, vec![field(-1)]))).contains("column -1 of 1"));
    assert!(reason(&plan("sum", project(read(1), 1, vec![call(1, vec![field(0)])]))).contains("the function sum"));
    assert!(reason(&plan("add", project(read(1), 1, vec![call(9, vec![])]))).contains("function 9"));
    assert!(reason(&plan("-", project(read(1), 1, vec![Expression { rex: None }]))).contains("unknown kind"));
    let names = reason(&plan("-", project(read(1), 1, vec![field(0), field(0)])));
    assert!(names.contains("names 1 columns and gives 2"), "{names}");
    let unread = reason(&plan("-", project(read(3), 3, vec![field(2)])));
    assert!(unread.contains("the column 'in1'"), "{unread}");
}

#[test]
fn a_call_has_the_arguments_that_it_must_have() {
    for (function, number) in [
        ("not", 2),
        ("not", 0),
        ("equal", 3),
        ("equal", 1),
        ("add", 1),
        ("add", 3),
        ("subtract", 3),
        ("between", 2),
        ("and", 0),
        ("sqrt", 2),
        ("is_null", 2),
    ] {
        let rel = project(read(1), 1, vec![call(1, vec![field(0); number])]);
        let error = run(&plan(function, rel), &[vec![i(1)]], ValueType::Invalid).expect_err(function);
        assert!(error.message().contains(function), "{}", error.message());
    }
}

/// Every projection may take what the one before it gives twice: a few hundred bytes that would be more
/// operations than there is memory.
#[test]
fn a_plan_that_multiplies_is_refused() {
    let mut rel = read(1);
    let mut columns = 1;
    for _ in 0..20 {
        rel = project(rel, columns, vec![call(1, vec![field(0), field(0)])]);
        columns = 1;
    }
    let error = run(&plan("add", rel), &[vec![i(1)]], ValueType::Int64).expect_err("2^20 additions");
    assert!(error.message().contains("more than 100000 operations"), "{}", error.message());
    // a wide one is not deep
    let wide = call(1, vec![call(2, vec![field(0)]); 2000]);
    let mut plan = plan("and", project(read(1), 1, vec![wide]));
    let declared = DeclaredFunction { anchor: 2, name: "is_not_null:any".into() };
    plan.extensions.push(Declaration { function: Some(declared) });
    assert_eq!(run(&plan, &[vec![i(1)]], ValueType::Bool).expect("it is true"), [b(true)]);
}

fn rows_columns(plan: &Plan) -> Vec<TypedColumn> {
    let mut rel = plan.relations[0].root.as_ref().and_then(|r| r.input.clone());
    while let Some(project) = rel.as_ref().and_then(|r| r.project.clone()) {
        rel = project.input;
    }
    let schema = rel.and_then(|r| r.read).and_then(|r| r.schema).expect("it reads");
    let column = |name: &String| TypedColumn { name: name.clone(), value_type: ValueType::Int64, values: vec![i(3)] };
    schema.names.iter().map(column).collect()
}

#[test]
fn what_ibis_made_runs() {
    let plan = Plan::decode(ROWS).expect("a plan");
    let names = plan.relations[0].root.as_ref().expect("a root").names.clone();
    let features: Vec<_> = names.iter().map(|n| (n.as_str(), ValueType::Invalid)).collect();
    let given = run_bytes(&Bytes::from_static(ROWS), rows_columns(&plan), &features).expect("it runs");
    assert_eq!(given.iter().map(|c| c.name.clone()).collect::<Vec<_>>(), names);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    /// A damaged plan is refused or computes something: it brings nothing down.
    #[test]
    fn a_damaged_plan_does_no_harm(
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>(), 0..4u8), 1..6),
    ) {
        let plan = Plan::decode(ROWS).expect("a plan");
        let names = plan.relations[0].root.as_ref().expect("a root").names.clone();
        let features: Vec<_> = names.iter().map(|n| (n.as_str(), ValueType::Invalid)).collect();
        let mut bytes = ROWS.to_vec();
        for (at, byte, how) in edits {
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte % 8),
                2 => { bytes.remove(at); }
                _ => bytes.insert(at, byte),
            }
        }
        if let Err(error) = run_bytes(&bytes.into(), rows_columns(&plan), &features) {
            prop_assert!(matches!(error.kind(), Kind::InvalidArgument), "{:?}: {}", error.kind(), error.message());
        }
    }
}
