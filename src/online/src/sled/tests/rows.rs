//! Rows that are handed over in place: some of them known to the tier, the others fetched in another order.

use model::EntityKey;
use model::ports::RowWrite;
use model::row::RowRef;
use model::value::Value;
use model::value::proto_value::Val;

use super::*;

const ENTITIES: i64 = 700;

/// What came of each table, by the rows' times.
struct Came(Vec<Vec<Option<i64>>>);

impl RowSink for Came {
    fn push(&mut self, table: usize, row: Option<RowRef<'_>>) {
        self.0[table].push(row.map(|row| row.to_row().newest().event.0));
    }
}

fn keys(numbers: &[i64]) -> EntityKeys {
    let values: Vec<Value> = numbers.iter().map(|number| Value { val: Some(Val::Int64Val(*number)) }).collect();
    EntityKeys::encode(&[("id", &values)], numbers.len()).expect("keys")
}

/// Of each entity some tables have a row, of some none has.
fn event(table: usize, entity: i64) -> Option<i64> {
    let there = entity % 4 != table as i64 && entity % 5 != 0 && (0..ENTITIES).contains(&entity);
    there.then_some(entity * 10 + table as i64 + 1)
}

#[tokio::test]
async fn rows_come_in_the_order_of_the_keys_wherever_they_are() {
    for (tier, log) in [(0, 30_000), (9_000, 30_000), (60_000, 30_000), (60_000, 16 << 20), (32 << 20, 30_000)] {
        let of = |path: &Path| Settings { log_bytes: log, ..settings(path, tier, Durability::Flush) };
        let subject = OnDisk::with(of);
        let tables: Vec<_> = ["a", "b", "c"].map(|view| table("p", view)).to_vec();
        for some in (0..ENTITIES).collect::<Vec<_>>().chunks(50) {
            let encoded = keys(some);
            let mut rows = Vec::new();
            for (number, t) in tables.iter().enumerate() {
                for (entity, key) in some.iter().zip(encoded.iter()) {
                    let row = event(number, *entity).map(|event| row(event, 0, &[("f", &[7; 40])]));
                    let key = EntityKey::from_bytes(key);
                    rows.extend(row.map(|row| RowWrite { table: Arc::clone(t), key, row }));
                }
            }
            subject.store().write(WriteBatch { rows, ..WriteBatch::default() }).await.expect("writes");
        }
        let mut subject = subject.reopen().await;
        let mut chance = 1u64;
        for round in 0..30 {
            let mut next = |below: u64| {
                chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (chance >> 33) % below
            };
            let asked = [1, 3, 70, 700, 2000][round % 5];
            let span = [10, 100, 900][round % 3];
            let numbers: Vec<i64> = (0..asked).map(|_| next(span) as i64).collect();
            let tables = &tables[..=round % 3];
            let mut came = Came(vec![Vec::new(); tables.len()]);
            subject.store().read_rows(tables, &keys(&numbers), &mut came).await.expect("reads");
            for (table, came) in came.0.iter().enumerate() {
                let expected: Vec<_> = numbers.iter().map(|number| event(table, *number)).collect();
                assert_eq!(came, &expected, "table {table}, round {round}, tier {tier}, log {log}");
            }
            if round == 20 {
                subject = subject.reopen().await;
            }
        }
    }
}
