//! Dataset jobs over a registry in memory and a store that works as long as the test wants.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use model::ports::{BoxFuture, RegistryStore};
use tokio::sync::Semaphore;

use super::*;
use crate::catalog::CatalogSettings;

#[derive(Default)]
struct Memory {
    objects: Mutex<BTreeMap<(ObjectKind, String, String), Object>>,
    failing: AtomicBool,
    refused: tokio::sync::watch::Sender<u32>,
}

impl RegistryStore for Memory {
    fn load(&self) -> BoxFuture<'_, Result<Vec<Object>>> {
        let objects = self.objects.lock().expect("not poisoned").values().cloned().collect();
        Box::pin(async { Ok(objects) })
    }

    fn commit(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            if self.failing.load(Ordering::SeqCst) {
                self.refused.send_modify(|count| *count += 1);
                return Err(Error::new(Kind::Unavailable, "the disk is full"));
            }
            let mut objects = self.objects.lock().expect("not poisoned");
            for change in changes {
                match change {
                    Change::Put(o) => drop(objects.insert((o.kind, o.project.clone(), o.name.clone()), o)),
                    Change::Delete { kind, project, name } => drop(objects.remove(&(kind, project, name))),
                }
            }
            Ok(())
        })
    }

    fn stamp(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async { Ok(0) })
    }
}

/// A clock that goes on by a second whenever it is looked at.
#[derive(Default)]
struct Ticking(AtomicI64);

impl Clock for Ticking {
    fn now(&self) -> Timestamp {
        Timestamp::from_seconds(self.0.fetch_add(1, Ordering::SeqCst))
    }
}

/// Keeps a dataset for every permit that it is given.
struct Gate {
    permits: Semaphore,
    busy: AtomicUsize,
    busiest: AtomicUsize,
}

struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl DatasetStore for Gate {
    fn clear<'a>(&'a self, _path: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn keep(&self, retrieval: DatasetRetrieval) -> BoxFuture<'_, Result<KeptDataset>> {
        Box::pin(async move {
            let busy = self.busy.fetch_add(1, Ordering::SeqCst) + 1;
            let _busy = Busy(&self.busy);
            self.busiest.fetch_max(busy, Ordering::SeqCst);
            self.permits.acquire().await.expect("never closed").forget();
            if retrieval.path == "full" {
                return Err(Error::invalid("there is no room"));
            }
            let span = Timestamp(1)..=Timestamp(2);
            Ok(KeptDataset { refs: vec!["v:f".into()], join_keys: Vec::new(), span, rows: 1 })
        })
    }

    fn preview(&self, _: DatasetPreview) -> BoxFuture<'_, Result<DatasetRows>> {
        Box::pin(async { Ok(DatasetRows::default()) })
    }
}

struct World {
    memory: Arc<Memory>,
    gate: Arc<Gate>,
    catalog: Arc<Catalog>,
    datasets: Arc<Datasets>,
}

async fn world(memory: Arc<Memory>) -> World {
    let clock: Arc<dyn Clock> = Arc::new(Ticking::default());
    let settings = CatalogSettings {
        cache_ttl: Duration::ZERO,
        online_versions: false,
        clear_online_rows: false,
        ..CatalogSettings::default()
    };
    let catalog = Arc::new(Catalog::open(memory.clone(), clock.clone(), settings).await.expect("opens"));
    let spec = core::ProjectSpec { name: "p".into(), ..Default::default() };
    let project = core::Project { spec: Some(spec), meta: None }.encode_to_vec();
    catalog.apply(ObjectKind::Project, "p", project.into()).await.expect("applies");
    let gate = Gate { permits: Semaphore::new(0), busy: AtomicUsize::new(0), busiest: AtomicUsize::new(0) };
    let gate = Arc::new(gate);
    let datasets = Arc::new(Datasets::new(catalog.clone(), Some(gate.clone()), clock, "p".into()));
    World { memory, gate, catalog, datasets }
}

impl World {
    async fn submit(&self, name: &str, path: &str) -> Result<Job> {
        let request = Request {
            name: name.into(),
            project: "p".into(),
            features: vec!["v:f".into()],
            entity_source_type: "inline".into(),
            entity_keys: vec!["id".into()],
            entity_values: "1".into(),
            storage_path: path.into(),
            ..Request::default()
        };
        self.datasets.submit(request).await
    }

    fn states(&self) -> Vec<(String, State)> {
        let mut jobs = self.datasets.jobs(Some("p"), None).expect("reads");
        jobs.reverse();
        jobs.into_iter().map(|job| (job.dataset().to_owned(), job.status())).collect()
    }

    /// Until the jobs stand so, in the order in which they were submitted.
    async fn await_states(&self, want: &[State]) {
        let is = || self.states().into_iter().map(|(_, state)| state).collect::<Vec<_>>() == want;
        let waited = self.catalog.subscribe().wait_for(|_| is()).await.map(drop);
        assert!(waited.is_ok() && is(), "{:?}", self.states());
    }
}

use State::{Completed, Failed, Pending, Running};

#[tokio::test]
async fn two_run_at_once_the_oldest_first_and_a_failure_says_why() {
    let world = world(Arc::default()).await;
    for (name, path) in [("a", "x"), ("b", "full"), ("c", "x"), ("d", "x")] {
        world.submit(name, path).await.expect("submitted");
    }
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(world.datasets.clone().run(shutdown.clone()));
    world.await_states(&[Running, Running, Pending, Pending]).await;
    world.gate.permits.add_permits(4);
    world.await_states(&[Completed, Failed, Completed, Completed]).await;
    assert_eq!(world.gate.busiest.load(Ordering::SeqCst), AT_ONCE);
    let failed = world.datasets.jobs(None, Some(Failed)).expect("reads");
    assert_eq!((failed.len(), failed[0].error.as_str()), (1, "there is no room"));
    assert!(failed[0].ended().is_some_and(|end| end > failed[0].created()));
    let registry = world.catalog.snapshot();
    assert!(registry.object(ObjectKind::SavedDataset, "p", "a").is_ok());
    assert!(registry.object(ObjectKind::SavedDataset, "p", "b").is_err());
    shutdown.cancel();
    running.await.expect("ends");
}

#[tokio::test]
async fn a_stop_gives_back_what_runs_and_a_crash_fails_it() {
    let memory = Arc::new(Memory::default());
    let before = world(memory.clone()).await;
    for name in ["a", "b", "c"] {
        before.submit(name, "x").await.expect("submitted");
    }
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(before.datasets.clone().run(shutdown.clone()));
    before.await_states(&[Running, Running, Pending]).await;
    shutdown.cancel();
    running.await.expect("ends");
    before.await_states(&[Pending, Pending, Pending]).await;
    assert_eq!(before.gate.busy.load(Ordering::SeqCst), 0, "the work goes on after the stop");
    // again, and this time nobody says goodbye
    let crashing = tokio::spawn(before.datasets.clone().run(CancellationToken::new()));
    before.await_states(&[Running, Running, Pending]).await;
    crashing.abort();
    assert!(crashing.await.expect_err("aborted").is_cancelled());
    let after = world(memory).await;
    after.gate.permits.add_permits(1);
    let running = tokio::spawn(after.datasets.clone().run(shutdown));
    running.await.expect("a server that is told to stop at once still tells what failed");
    assert_eq!(
        after.states().into_iter().map(|(_, state)| state).collect::<Vec<_>>()[..2],
        [Failed, Failed],
        "{:?}",
        after.states()
    );
}

#[tokio::test]
async fn a_registry_that_cannot_be_written_delays_the_end() {
    let world = world(Arc::default()).await;
    world.submit("a", "x").await.expect("submitted");
    tokio::spawn(world.datasets.clone().run(CancellationToken::new()));
    world.await_states(&[Running]).await;
    world.memory.failing.store(true, Ordering::SeqCst);
    world.gate.permits.add_permits(1);
    world.memory.refused.subscribe().wait_for(|count| *count > 1).await.expect("there are attempts");
    assert_eq!(world.states(), [("a".to_owned(), Running)]);
    world.memory.failing.store(false, Ordering::SeqCst);
    world.await_states(&[Completed]).await;
}

#[tokio::test]
async fn so_many_wait_and_so_many_are_kept() {
    let world = world(Arc::default()).await;
    for round in 1..=KEPT / WAITING {
        for n in 0..WAITING {
            world.submit(&format!("{round}.{n}"), "full").await.expect("submitted");
        }
        let error = world.submit("one more", "full").await.expect_err("refused");
        assert_eq!(error.kind(), Kind::TooMany);
        world.gate.permits.add_permits(WAITING);
        let running = tokio::spawn(world.datasets.clone().run(CancellationToken::new()));
        world.await_states(&vec![Failed; round * WAITING]).await;
        running.abort();
    }
    // the oldest makes room
    world.submit("one more", "x").await.expect("submitted");
    let states = world.states();
    assert_eq!(states.len(), KEPT);
    assert_eq!((states[0].0.as_str(), &states[KEPT - 1]), ("1.1", &("one more".to_owned(), Pending)));
}

#[tokio::test]
async fn without_an_offline_side_nothing_is_submitted() {
    let world = world(Arc::default()).await;
    let none = Datasets::new(world.catalog.clone(), None, Arc::new(Ticking::default()), "p".into());
    assert_eq!(none.submit(Request::default()).await.expect_err("refused").kind(), Kind::Unsupported);
    assert_eq!(none.preview("p", "x", 1).await.expect_err("refused").kind(), Kind::Unsupported);
    // and nothing runs: it ends at once
    Arc::new(none).run(CancellationToken::new()).await;
}
