//! Rows a second into a store on disk: 500 rows of 300 bytes a batch, four writers at once, overwriting
//! 100,000 entities. For a look, not for a comparison.
//!
//! `cargo run --release -p online --example write_rate -- DIRECTORY [memory|flush|fsync] [SECONDS]`;
//! the directory should be on the disk that is meant, and is left behind.

use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use model::ports::{OnlineStore, Read, RowWrite, Table, WriteBatch};
use model::row::{Column, Version};
use model::{EntityKey, Row, Timestamp};
use online::sled::{Durability, Settings, Store};

const WRITERS: u64 = 4;
const BATCH: u64 = 500;
const ENTITIES: u64 = 100_000;

fn key(n: u64) -> EntityKey {
    EntityKey::from_bytes(format!("{n:040}").as_bytes())
}

fn batch(table: &Arc<Table>, number: u64) -> WriteBatch {
    let version = Version { event: Timestamp(number as i64), created: Timestamp(0) };
    let row = |n: u64| RowWrite {
        table: Arc::clone(table),
        // A large odd step visits the entities in no order.
        key: key((number * BATCH + n).wrapping_mul(7_919) % ENTITIES),
        row: Row::pack(vec![Column { id: 1, value: vec![n as u8; 272].into(), version }]),
    };
    WriteBatch { rows: (0..BATCH).map(row).collect(), ..WriteBatch::default() }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let bad = |what: &str| Error::new(ErrorKind::InvalidInput, what.to_owned());
    let path = arguments.next().ok_or_else(|| bad("name a directory"))?;
    let durability = match arguments.next().as_deref() {
        Some("memory") => Durability::Memory,
        Some("flush") => Durability::Flush,
        None | Some("fsync") => Durability::Fsync,
        Some(_) => return Err(bad("the durability is memory, flush or fsync")),
    };
    let seconds = arguments.next().map_or(Ok(10), |s| s.parse()).map_err(Error::other)?;
    let store = Store::open(Settings { durability, ..Settings::new(path) }).map_err(Error::other)?;
    let table = Arc::new(Table::new("p", "v"));
    let batches = AtomicU64::new(0);
    let start = Instant::now();
    let runtime = || tokio::runtime::Builder::new_current_thread().build();
    std::thread::scope(|scope| {
        let write = || -> Result<()> {
            runtime()?.block_on(async {
                while start.elapsed() < Duration::from_secs(seconds) {
                    let number = batches.fetch_add(1, Ordering::Relaxed);
                    store.write(batch(&table, number)).await.map_err(Error::other)?;
                }
                Ok(())
            })
        };
        let writers: Vec<_> = (0..WRITERS).map(|_| scope.spawn(write)).collect();
        writers.into_iter().try_for_each(|w| w.join().map_err(|_| Error::other("a writer panicked"))?)
    })?;
    let took = start.elapsed().as_secs_f64();
    let rows = batches.load(Ordering::Relaxed) * BATCH;
    println!("{rows} rows in {took:.1} s: {:.0} rows/s ({durability:?})", rows as f64 / took);

    runtime()?.block_on(async {
        let reads = [Read { table: Arc::clone(&table), keys: (0..100).map(|n| key(n * 997 % ENTITIES)).collect() }];
        let start = Instant::now();
        for _ in 0..1000 {
            store.read(&reads).await.map_err(Error::other)?;
        }
        println!("100 rows in one read: {:.1} µs", start.elapsed().as_secs_f64() * 1e6 / 1000.0);
        store.close().await.map_err(Error::other)
    })
}
