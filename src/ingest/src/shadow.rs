//! A state that catches up with its stream beside the one that is read, so that a backfill goes over to one that lacks
//! nothing ([`service::materialize::CatchingUp`]). One thread reads all partitions of the topic with a client that joins no
//! group ([`reader`]), from the positions of the new generation on; the last checkpoint leaves them where the view's
//! consumer goes on after the commit. Knows no registry.

mod ends;
mod reader;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::ports::{BoxFuture, OnlineStore, Table};
use model::registry::{Registry, View};
use model::{Error, Kind, Result};
use service::clear::Streams as _;
use service::materialize::{CatchingUp, Level, Standing, Streams};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::feed::{Feed, group};
use crate::gate::{Closed, Gate, Leftovers};
use crate::readers;
use crate::supervisor::{Deps, unknown_entity};

/// How long the old state's consumer may take to stop, and how long the new state may take then to come to where that
/// was: meanwhile no new event is seen.
const LEVELLING: Duration = Duration::from_secs(5);

/// What catches up with streams.
pub struct Shadows {
    registry: watch::Receiver<Arc<Registry>>,
    deps: readers::Deps,
    gate: Gate,
    shutdown: CancellationToken,
}

/// What a reading thread is told.
#[derive(Clone, Debug, Default)]
struct Orders {
    /// The stream is not to be read further than the old state is.
    paused: bool,
    level: Option<Target>,
}

/// What a new state should have.
#[derive(Clone, Debug)]
struct Target {
    /// All that is before these offsets.
    offsets: BTreeMap<i32, i64>,
    /// Not later than then.
    until: Instant,
    /// Then it ends, or goes on for so long, until another process reads one of its partitions.
    follow: Duration,
}

/// What it tells.
#[derive(Clone, Debug, Default)]
struct Report {
    standing: Standing,
    /// How many times it did not come to where it was told to in time.
    missed: u64,
    /// It has what it was told to have, in the store.
    level: bool,
    /// It has ended: all that it has is in the store, or why it could not go on.
    ended: Option<std::result::Result<(), String>>,
}

/// The positions of the old state.
#[derive(Clone)]
struct Old {
    table: Arc<Table>,
    group: String,
    topic: String,
}

impl Old {
    async fn positions(&self, store: &dyn OnlineStore) -> Result<BTreeMap<i32, i64>> {
        let positions = store.positions(&self.group).await?;
        let ours = positions.into_iter().filter(|p| p.topic == self.topic && p.offset >= 0);
        Ok(ours.map(|p| (p.partition, p.offset)).collect())
    }
}

struct Shadow {
    registry: watch::Receiver<Arc<Registry>>,
    new: Arc<View>,
    store: Arc<dyn OnlineStore>,
    gate: Gate,
    old: Old,
    orders: watch::Sender<Orders>,
    reports: watch::Receiver<Report>,
    /// Dropped, it ends.
    reads: Option<DropGuard>,
}

/// The old state's consumer rests, and the new state is level with it.
struct Over {
    registry: watch::Receiver<Arc<Registry>>,
    new: Arc<View>,
    reports: watch::Receiver<Report>,
    reads: Option<DropGuard>,
    gate: Gate,
    old: Closed,
}

impl Shadows {
    /// For the consumers of the same settings, behind the same gate, until `shutdown`.
    ///
    /// Errors: a setting that cannot be.
    pub fn new(deps: &Deps, shutdown: CancellationToken) -> std::result::Result<Self, crate::Error> {
        let formats = deps.settings.check()?.with_sql(deps.stream_sql.clone());
        let (registry, gate) = (deps.registry.clone(), deps.gate.clone());
        let deps = readers::Deps {
            store: deps.store.clone(),
            clock: deps.clock.clone(),
            settings: Arc::new(deps.settings.clone()),
            formats,
            live: deps.live.clone(),
            board: deps.board.clone(),
            event_log: deps.event_log.clone(),
        };
        Ok(Self { registry, deps, gate, shutdown })
    }

    /// What the view's new state is fed by, if this process may.
    fn feed(&self, view: &Arc<View>) -> Option<Feed> {
        let settings = &self.deps.settings;
        let served = settings.projects.as_ref().is_none_or(|only| only.contains(&view.project));
        let unknown = unknown_entity(&self.registry.borrow(), view);
        let why_not = if !served {
            "its project's streams are not read by this process".to_owned()
        } else if self.deps.event_log.is_some() {
            "its events are logged by one reader at a time".to_owned()
        } else if let Some(entity) = unknown {
            format!("its entity '{entity}' is not registered")
        } else {
            match Feed::of(view, &settings.group_prefix, &self.deps.formats) {
                Ok(feed) => return feed.map(|feed| Feed { is_logged: false, ..feed }),
                // nor is it read for the old one
                Err(error) => error.message().to_owned(),
            }
        };
        tracing::info!(
            project = view.project,
            view = view.name,
            why_not,
            "the backfilled state does not catch up with the stream before it is read"
        );
        None
    }
}

impl Streams for Shadows {
    fn begin(&self, new: Arc<View>, old: Arc<View>) -> BoxFuture<'_, Result<Option<Box<dyn CatchingUp>>>> {
        Box::pin(async move {
            let Some(feed) = self.feed(&new) else { return Ok(None) };
            let prefix = &self.deps.settings.group_prefix;
            let old = Old {
                group: group(prefix, &old.project, &old.reading.group(&old.table)),
                table: Arc::clone(&old.table),
                topic: feed.topic.clone(),
            };
            let running = self.gate.enter(&new.table).await;
            let (orders, ordered) = watch::channel(Orders { paused: new.reading.paused, level: None });
            let (tell, reports) = watch::channel(Report::default());
            let stop = self.shutdown.child_token();
            let (deps, from, stopped) = (self.deps.clone(), old.clone(), stop.clone());
            let (feed, runtime) = (Arc::new(feed), Handle::current());
            let run = move || {
                let told = reader::Told { orders: ordered, stop: stopped, tell };
                reader::run(&feed, from, &deps, &runtime, told, running);
            };
            std::thread::Builder::new()
                .name(format!("ingest-{}", old.topic))
                .spawn(run)
                .map_err(|e| Error::new(Kind::Unavailable, format!("no thread to catch up with the stream: {e}")))?;
            let (registry, store, gate) = (self.registry.clone(), self.deps.store.clone(), self.gate.clone());
            let reads = Some(stop.drop_guard());
            Ok(
                Some(
                    Box::new(Shadow { registry, new, store, gate, old, orders, reports, reads }) as Box<dyn CatchingUp>
                ),
            )
        })
    }

    fn forget<'a>(&'a self, table: &'a Table) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let (gate, store) = (self.gate.clone(), self.deps.store.clone());
            let leftovers = Leftovers { gate, store, group_prefix: self.deps.settings.group_prefix.clone() };
            leftovers.forget(table).await.map(drop)
        })
    }
}

impl Shadow {
    /// What the thread's end means, if it has ended.
    fn ended(&self, report: &Report) -> Option<Result<()>> {
        let view = &self.new.name;
        let failed =
            |why| Error::new(Kind::Conflict, format!("the backfill of {view} cannot catch up with its stream: {why}"));
        Some(report.ended.clone()?.map_err(failed))
    }

    fn gone(&self) -> Error {
        let message = format!("what caught up with the stream of {} panicked; see the log above", self.new.name);
        Error::new(Kind::Internal, message)
    }
}

impl CatchingUp for Shadow {
    fn news(&mut self, paused: bool) -> BoxFuture<'_, Result<Standing>> {
        Box::pin(async move {
            self.orders.send_if_modified(|orders| std::mem::replace(&mut orders.paused, paused) != paused);
            self.reports.changed().await.map_err(|_| self.gone())?;
            let report = self.reports.borrow_and_update().clone();
            self.ended(&report).unwrap_or(Ok(()))?;
            Ok(report.standing)
        })
    }

    fn level(&mut self, follow: Duration) -> BoxFuture<'_, Result<Option<Box<dyn Level>>>> {
        Box::pin(async move {
            let table = Arc::clone(&self.old.table);
            let Ok(old) = tokio::time::timeout(LEVELLING, self.gate.close(&table)).await else { return Ok(None) };
            let Ok(offsets) = self.old.positions(&*self.store).await else { return Ok(None) };
            let missed = self.reports.borrow_and_update().missed;
            let target = Target { offsets, until: Instant::now() + LEVELLING, follow };
            self.orders.send_modify(|orders| orders.level = Some(target));
            let told = |report: &Report| report.level || report.ended.is_some() || report.missed > missed;
            let told = self.reports.wait_for(told).await.map(|report| report.clone());
            let report = told.map_err(|_| self.gone())?;
            self.ended(&report).unwrap_or(Ok(()))?;
            if !report.level {
                return Ok(None);
            }
            let (registry, reports, gate) = (self.registry.clone(), self.reports.clone(), self.gate.clone());
            let over = Over { registry, new: Arc::clone(&self.new), reports, reads: self.reads.take(), gate, old };
            Ok(Some(Box::new(over) as Box<dyn Level>))
        })
    }
}

impl Level for Over {
    fn committed(self: Box<Self>) {
        let Self { mut registry, new, mut reports, reads, gate, old } = *self;
        let table = Arc::clone(&new.table);
        let replaced = move |registry: &Arc<Registry>| {
            let now = registry.projects.get(&new.project).and_then(|p| p.views.get(&new.name));
            now.is_none_or(|now| now.table != new.table || now.reading.paused)
        };
        tokio::spawn(async move {
            let taken_over = async {
                let _ = reports.wait_for(|report| report.ended.is_some()).await;
                gate.entered(&table).await;
            };
            tokio::select! {
                _ = registry.wait_for(replaced) => {}
                () = taken_over => {}
            }
            // the old consumer does not begin again in between
            drop((reads, old));
        });
    }
}
