//! Rows read and assembled without a network: the verb, its plan, the store and the encoding of the answer, on
//! one thread. Knows no protocol.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use model::Timestamp;
use model::ports::Clock;
use model::registry::FeatureRequest;
use service::catalog::{Catalog, CatalogSettings};
use service::retrieve::{Limits, Request, Retriever};

use crate::error::{Error, Result, tried};
use crate::workload::{self, PROJECT, Shape};

const SHAPE: Shape = Shape { entities: 100, features: 50 };
/// Requests that are made before they are timed together.
const BATCH: usize = 256;

struct Now;

impl Clock for Now {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

/// CPU nanoseconds of this thread (`man 5 proc`, schedstat: its first field).
fn cpu_nanoseconds() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").map_err(tried("schedstat"))?;
    let first = text.split(' ').next().and_then(|n| n.parse().ok());
    first.ok_or_else(|| Error::Missing("/proc/thread-self/schedstat has no number".into()))
}

fn request(users: &[i64]) -> Request {
    Request {
        features: FeatureRequest::Refs(workload::references(SHAPE)),
        entities: vec![("user_id".into(), users.iter().map(|u| workload::int64(*u)).collect())],
        full_feature_names: false,
        include_feature_view_version_metadata: false,
    }
}

/// Prints rows for a CPU second, one line for each run. `data` is an online store that Larder filled.
pub(crate) fn run(registry: &Path, data: &Path, keys: u64, seconds: f64, runs: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(tried("the runtime"))?;
    runtime.block_on(async {
        let clock: Arc<dyn Clock> = Arc::new(Now);
        let registry = Arc::new(online::registry::file::Store::new(registry));
        let cache_ttl = Duration::from_hours(1);
        let settings = CatalogSettings {
            cache_ttl,
            online_versions: false,
            clear_online_rows: false,
            ..CatalogSettings::default()
        };
        let catalog = Arc::new(Catalog::open(registry, clock.clone(), settings).await?);
        let mut settings = online::sled::Settings::new(data);
        (settings.tier_bytes, settings.cache_bytes) = (4 << 30, 3 << 30);
        let store = online::sled::Store::open(settings).map_err(model::Error::from)?;
        let retriever = Retriever::new(catalog, Arc::new(store), clock, PROJECT.into(), Limits::default());

        // Every key once, so that the tier has what it holds.
        let all: Vec<i64> = (0..keys as i64).collect();
        for users in all.chunks(SHAPE.entities) {
            retriever.get_online_features(request(users)).await?;
        }
        let users = workload::users(SHAPE, keys, 10_000);
        let mut next = users.iter().cycle();
        for _ in 0..runs {
            let (start, mut cpu, mut rows) = (Instant::now(), 0, 0);
            while start.elapsed().as_secs_f64() < seconds {
                let batch: Vec<Request> = next.by_ref().take(BATCH).map(|users| request(users)).collect();
                let before = cpu_nanoseconds()?;
                for request in batch {
                    let answer = retriever.get_online_features(request).await?.encode();
                    rows += if answer.is_empty() { 0 } else { SHAPE.entities * SHAPE.views() };
                }
                cpu += cpu_nanoseconds()? - before;
            }
            println!("{:.0}", rows as f64 / (cpu.max(1) as f64 / 1e9));
        }
        Ok(())
    })
}
