//! Random batches against a naive oracle: maps that do what the port's documentation says, column by
//! column. Knows no store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use model::ports::{Position, Read, RowWrite, StateWrite, Table, WriteBatch, Written};
use model::row::{Column, Version, column_id};
use model::{EntityKey, Row, Timestamp};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{FEATURES, Subject, block_on, key, table};

const TABLES: [(&str, &str); 4] = [("a", "bc"), ("ab", "c"), ("a", "b"), ("", "abc")];
const ENTITIES: [&str; 5] = ["", "c", "cc", "d", "e"];
const GROUPS: [&str; 2] = ["g", "gg"];

#[derive(Clone, Debug)]
enum Step {
    Write { rows: Vec<RowStep>, states: Vec<(usize, usize, Option<u8>)>, positions: Vec<(usize, i32, i64)> },
    Clear(usize),
    Reopen,
}

#[derive(Clone, Debug)]
struct RowStep {
    table: usize,
    entity: usize,
    /// By number of the feature: event, created, value.
    columns: BTreeMap<usize, (i64, i64, u8)>,
}

fn step() -> impl Strategy<Value = Step> {
    let at = || (0..TABLES.len(), 0..ENTITIES.len());
    let columns = btree_map(0..FEATURES.len(), (-2i64..4, 0i64..2, any::<u8>()), 1..4);
    let row = (at(), columns).prop_map(|((table, entity), columns)| RowStep { table, entity, columns });
    let state = (at(), any::<Option<u8>>()).prop_map(|((table, entity), state)| (table, entity, state));
    let position = (0..GROUPS.len(), 0i32..2, any::<i64>());
    let write = (vec(row, 0..8), vec(state, 0..4), vec(position, 0..3));
    prop_oneof![
        12 => write.prop_map(|(rows, states, positions)| Step::Write { rows, states, positions }),
        2 => (0..TABLES.len()).prop_map(Step::Clear),
        1 => Just(Step::Reopen),
    ]
}

/// A row's columns by id.
type Columns = BTreeMap<u32, (Version, Vec<u8>)>;

/// What a store should hold.
#[derive(Default)]
struct Oracle {
    rows: BTreeMap<(usize, usize), Columns>,
    states: BTreeMap<(usize, usize), Vec<u8>>,
    positions: BTreeMap<(usize, i32), i64>,
}

impl Oracle {
    fn write(
        &mut self,
        rows: &[RowStep],
        states: &[(usize, usize, Option<u8>)],
        positions: &[(usize, i32, i64)],
    ) -> Written {
        let mut written = Written::default();
        for (at, step) in (0..).zip(rows) {
            let stored = self.rows.entry((step.table, step.entity)).or_default();
            let mut news = false;
            for (&id, &(event, created, value)) in &step.columns {
                let version = version(event, created);
                let id = column_id(FEATURES[id]);
                if stored.get(&id).is_none_or(|(at, _)| version >= *at) {
                    stored.insert(id, (version, super::value(&payload(value)).to_vec()));
                    news = true;
                }
            }
            if news {
                written.applied += 1;
            } else {
                written.stale.push(at);
            }
        }
        for &(table, entity, state) in states {
            match state {
                Some(state) => drop(self.states.insert((table, entity), payload(state))),
                None => drop(self.states.remove(&(table, entity))),
            }
        }
        self.positions.extend(positions.iter().map(|&(group, partition, offset)| ((group, partition), offset)));
        written
    }

    fn clear(&mut self, table: usize) -> u64 {
        let before = self.rows.len() + self.states.len();
        self.rows.retain(|(t, _), _| *t != table);
        self.states.retain(|(t, _), _| *t != table);
        (before - self.rows.len() - self.states.len()) as u64
    }
}

/// A value of 0 to 5,100 bytes.
fn payload(value: u8) -> Vec<u8> {
    vec![value; usize::from(value) * 20]
}

fn version(event: i64, created: i64) -> Version {
    Version { event: Timestamp(event), created: Timestamp(created) }
}

fn tables() -> Vec<Arc<Table>> {
    TABLES.iter().map(|(project, view)| table(project, view)).collect()
}

fn position(group: usize, partition: i32, offset: i64) -> Position {
    let (group, topic) = (GROUPS[group].into(), "t".into());
    Position { group, topic, partition, offset, max_event: Timestamp(offset) }
}

fn batch(rows: Vec<RowStep>, states: Vec<(usize, usize, Option<u8>)>, positions: Vec<(usize, i32, i64)>) -> WriteBatch {
    let tables = tables();
    let row = |step: RowStep| {
        let column = |(id, (event, created, value))| Column {
            id: column_id(FEATURES[id]),
            value: super::value(&payload(value)),
            version: version(event, created),
        };
        RowWrite {
            table: Arc::clone(&tables[step.table]),
            key: key(ENTITIES[step.entity]),
            row: Row::pack(step.columns.into_iter().map(column).collect()),
        }
    };
    let state = |(table, entity, state): (usize, usize, Option<u8>)| StateWrite {
        table: Arc::clone(&tables[table]),
        key: key(ENTITIES[entity]),
        state: state.map(|s| payload(s).into()),
    };
    WriteBatch {
        rows: rows.into_iter().map(row).collect(),
        states: states.into_iter().map(state).collect(),
        positions: positions.into_iter().map(|(g, p, o)| position(g, p, o)).collect(),
        ..WriteBatch::default()
    }
}

/// Runs random steps on stores that `make` makes, and shrinks what fails.
pub(super) fn run<S: Subject>(make: &impl Fn() -> S) {
    let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&vec(step(), 1..25), |steps| {
        block_on(async {
            let (mut subject, mut oracle) = (make(), Oracle::default());
            for step in steps {
                match step {
                    Step::Write { rows, states, positions } => {
                        let expected = oracle.write(&rows, &states, &positions);
                        let written = subject.store().write(batch(rows, states, positions)).await;
                        prop_assert_eq!(written.expect("writes"), expected);
                    }
                    Step::Clear(table) => {
                        let cleared = subject.store().clear(&tables()[table]).await;
                        prop_assert_eq!(cleared.expect("clears"), oracle.clear(table));
                    }
                    Step::Reopen => subject = subject.reopen().await,
                }
                compare(&subject, &oracle).await?;
            }
            let subject = subject.reopen().await;
            compare(&subject, &oracle).await
        })
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

async fn compare<S: Subject>(subject: &S, oracle: &Oracle) -> Result<(), TestCaseError> {
    let keys: Vec<EntityKey> = ENTITIES.iter().map(|name| key(name)).collect();
    let reads: Vec<Read> = tables().into_iter().map(|table| Read { table, keys: keys.clone() }).collect();
    let rows = subject.store().read(&reads).await.expect("reads");
    let states = subject.store().read_states(&reads).await.expect("reads");
    for table in 0..TABLES.len() {
        for entity in 0..ENTITIES.len() {
            let expected = oracle.rows.get(&(table, entity)).map(|columns| {
                let column = |(&id, (version, value)): (&u32, &(Version, Vec<u8>))| Column {
                    id,
                    value: value.clone().into(),
                    version: *version,
                };
                columns.iter().map(column).collect::<Vec<_>>()
            });
            prop_assert_eq!(rows[table][entity].as_ref().map(Row::columns), expected);
            let expected = oracle.states.get(&(table, entity)).map(|s| Bytes::copy_from_slice(s));
            prop_assert_eq!(&states[table][entity], &expected);
        }
    }
    for (index, group) in GROUPS.iter().enumerate() {
        let stored = subject.store().positions(group).await.expect("reads");
        let expected: BTreeSet<Position> =
            oracle.positions.iter().filter(|((g, _), _)| *g == index).map(|(&(g, p), &o)| position(g, p, o)).collect();
        prop_assert_eq!(stored.len(), expected.len());
        prop_assert_eq!(stored.into_iter().collect::<BTreeSet<_>>(), expected);
    }
    Ok(())
}
