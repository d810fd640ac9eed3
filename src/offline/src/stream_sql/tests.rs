//! Queries run, and queries refused.

use model::Kind;

use super::*;

const COLUMNS: [(&str, ValueType); 5] = [
    ("card", ValueType::String),
    ("amount", ValueType::Double),
    ("items", ValueType::Int64),
    ("ts", ValueType::UnixTimestamp),
    ("Mixed", ValueType::String),
];

fn compile(text: &str, needed: &[(&str, ValueType)]) -> Result<Arc<dyn RowQuery>> {
    let columns = COLUMNS.map(|(name, value_type)| Field { name: name.to_owned(), value_type });
    let needed: Vec<_> = needed.iter().map(|(name, t)| ((*name).to_owned(), *t)).collect();
    Sql::default().compile(Query { text, tables: &["card_tx", "events"], columns: &columns, needed: &needed })
}

fn text(v: &str) -> Value {
    Value { val: Some(Val::StringVal(v.to_owned())) }
}

fn float(v: f64) -> Value {
    Value { val: Some(Val::DoubleVal(v)) }
}

fn int(v: i64) -> Value {
    Value { val: Some(Val::Int64Val(v)) }
}

/// Runs over rows of card, amount, items, ts.
fn run(query: &dyn RowQuery, rows: &[[Value; 4]]) -> Result<Selected> {
    let columns: Vec<Vec<Value>> =
        query.reads().iter().map(|&at| rows.iter().map(|row| row[at].clone()).collect()).collect();
    query.run(&columns, rows.len())
}

fn rows() -> [[Value; 4]; 4] {
    [
        [text("a"), float(10.0), int(1), int(1_000_001)],
        [text("B"), float(-3.5), int(2), int(2_000_002)],
        [text("c"), NULL, int(3), int(3_000_003)],
        [NULL, float(0.25), int(4), NULL],
    ]
}

#[test]
fn it_filters_and_computes_row_by_row() {
    let sql = "SELECT lower(card) AS card, amount * 2 AS twice, items, ts FROM card_tx WHERE amount > 0";
    let query = compile(sql, &[]).expect("compiles");
    let names: Vec<(&str, ValueType)> = query.gives().iter().map(|f| (f.name.as_str(), f.value_type)).collect();
    let types = [ValueType::String, ValueType::Double, ValueType::Int64, ValueType::UnixTimestamp];
    assert_eq!(names, ["card", "twice", "items", "ts"].into_iter().zip(types).collect::<Vec<_>>());
    let selected = run(&*query, &rows()).expect("runs");
    assert_eq!(selected.rows, [0, 3], "a null is not above 0");
    assert_eq!(selected.columns[0], [text("a"), NULL]);
    assert_eq!(selected.columns[1], [float(20.0), float(0.5)]);
    assert_eq!(selected.columns[3], [int(1_000_001), NULL], "times to the microsecond");
}

#[test]
fn subqueries_and_with_are_written_out() {
    let sql = "WITH big AS (SELECT card, amount AS a, ts FROM events WHERE amount > -5), \
               named AS (SELECT card AS c, a + 1 AS a, ts FROM big WHERE card IS NOT NULL) \
               SELECT c AS card, a * 10 AS a, ts FROM (SELECT * FROM named) n WHERE n.a < 5";
    let query = compile(sql, &[]).expect("compiles");
    let selected = run(&*query, &rows()).expect("runs");
    assert_eq!(selected.rows, [1]);
    assert_eq!(selected.columns[1], [float(-25.0)]);
    assert_eq!(query.reads(), [0, 1, 3], "only what the result needs");
}

#[test]
fn what_is_needed_is_widened_and_never_narrowed() {
    let sql = "SELECT items AS amount, CAST(items AS SMALLINT) AS n, ts FROM events";
    let needed = [("amount", ValueType::Double), ("n", ValueType::Int64)];
    let query = compile(sql, &needed).expect("compiles");
    let selected = run(&*query, &rows()).expect("runs");
    assert_eq!(selected.columns[0][1], float(2.0));
    assert_eq!(selected.columns[1][1], int(2));
    let narrow = compile("SELECT amount AS n, ts FROM events", &[("n", ValueType::Int64)]).expect_err("refused");
    assert_eq!(narrow.kind(), Kind::InvalidArgument);
    assert!(narrow.message().contains("'n'") && narrow.message().contains("INT64"), "{}", narrow.message());
}

#[test]
fn a_row_that_fails_is_an_error() {
    let query = compile("SELECT card, 10 / items AS share, ts FROM events", &[]).expect("compiles");
    let bad = [[text("a"), NULL, int(0), int(1)]];
    let error = run(&*query, &bad).expect_err("no division by zero");
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.message().to_lowercase().contains("divide by zero"), "{}", error.message());
    assert_eq!(run(&*query, &rows()[..1]).expect("runs").columns[1], [int(10)]);
}

#[test]
fn no_rows_give_no_rows() {
    let query = compile("SELECT card, 1 AS one, ts FROM events WHERE amount > 0", &[]).expect("compiles");
    let selected = run(&*query, &[]).expect("runs");
    assert_eq!((selected.rows.len(), selected.columns.len()), (0, 3));
    let constant = compile("SELECT 1 AS one FROM events", &[]).expect("compiles");
    assert_eq!(constant.run(&[], 2).expect("runs"), Selected { rows: vec![0, 1], columns: vec![vec![int(1); 2]] });
}

#[test]
fn what_is_more_than_a_function_of_a_row_is_refused_by_name() {
    for (sql, why) in [
        ("SELECT card, sum(amount) AS a FROM events GROUP BY card", "Aggregate"),
        ("SELECT DISTINCT card FROM events", "Distinct"),
        ("SELECT card FROM events ORDER BY ts", "Sort"),
        ("SELECT card FROM events LIMIT 1", "Limit"),
        ("SELECT a.card FROM events a JOIN events b ON a.card = b.card", "Join"),
        ("SELECT card FROM events UNION ALL SELECT card FROM events", "Union"),
        ("SELECT card, row_number() OVER (ORDER BY ts) AS n FROM events", "Window"),
        ("SELECT card, now() AS n FROM events", "now()"),
        ("SELECT card, random() AS n FROM events", "random()"),
        ("SELECT card FROM events WHERE amount > (SELECT max(amount) FROM events)", "subquery"),
        ("SELECT card FROM events WHERE card IN (SELECT card FROM events)", "subquery"),
        ("SELECT card, card FROM events", "card"),
        ("SELECT card, amount AS card FROM events", "card"),
        ("SELECT nothing FROM events", "nothing"),
        ("SELECT card FROM elsewhere", "elsewhere"),
        ("SELECT 1 AS one", "EmptyRelation"),
        ("SELECT card FROM", "SQL"),
        ("CREATE TABLE x AS SELECT card FROM events", "SQL"),
        ("SELECT Mixed FROM events", "Mixed"),
    ] {
        let error = compile(sql, &[]).expect_err(sql);
        assert_eq!(error.kind(), Kind::InvalidArgument, "{sql}");
        assert!(error.message().contains(why), "{sql}: {}", error.message());
    }
    compile("SELECT \"Mixed\" FROM events", &[]).expect("a quoted name keeps its case");
}

#[test]
fn a_query_that_grows_beyond_measure_is_refused() {
    let mut sql = "SELECT amount AS a FROM events".to_owned();
    for level in 0..16 {
        sql = format!("SELECT a + a AS a FROM ({sql}) t{level}");
    }
    let error = compile(&sql, &[]).expect_err("two to the sixteen");
    assert!(error.message().contains("operations"), "{}", error.message());
}

#[test]
fn a_query_that_nests_beyond_measure_is_refused() {
    let long = format!("SELECT amount{} AS a FROM events", " + amount".repeat(1_500));
    let error = compile(&long, &[]).expect_err("deeper than a stack");
    assert!(error.message().contains("in one another"), "{}", error.message());
    let brackets = format!("SELECT {}amount{} AS a FROM events", "(".repeat(5_000), ")".repeat(5_000));
    assert_eq!(compile(&brackets, &[]).expect_err("deeper than the parser takes").kind(), Kind::InvalidArgument);
    let error = compile(&format!("SELECT {} AS a FROM events", "1".repeat(20_000)), &[]).expect_err("too long");
    assert!(error.message().contains("bytes"), "{}", error.message());
}
