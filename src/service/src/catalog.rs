//! The verbs over the registry: apply, get, list, delete, and what a materialization leaves behind.
//! Keeps the resolved picture of the store in memory and tells who subscribes when it changes.
//!
//! Writes are one after the other, each is durable before it is seen, and a request that is given up
//! on does not leave a write half told. There is no second picture of uncommitted changes: a write
//! that says `commit: false` is applied at once and durably, and Commit has nothing left to do.
//!
//! Knows no wire, no sled and no file. Source of the rules: `feast/infra/registry/registry.py`.

mod apply;
mod changed;
pub mod features;
pub mod gone;
mod known;
pub mod lineage;
pub mod list;
mod reading;
mod same;
pub mod versions;
pub mod whole;

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use model::ports::{Change, Clock, Object, ObjectKind, RegistryStore, StreamSql, Table};
use model::registry::Registry;
use model::{Error, Kind, Result, Timestamp};
use proto::feast::core;
use tokio::sync::watch;

/// How the catalog behaves.
#[derive(Clone, Debug, Default)]
pub struct CatalogSettings {
    /// How often the store is looked at for changes behind our back; zero is never.
    pub cache_ttl: Duration,
    /// Whether every version of a view has an online table of its own
    /// (`enable_online_feature_view_versioning`).
    pub online_versions: bool,
    /// Whether the rows of deleted views are noted for removal: somebody must then remove them
    /// ([`crate::clear`]), and views come back only when that is done.
    pub clear_online_rows: bool,
    /// What runs the SQL of stream views: they are refused without it.
    pub stream_sql: Option<Arc<dyn StreamSql>>,
}

/// The registry of all projects.
#[derive(Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn RegistryStore>,
    clock: Arc<dyn Clock>,
    picture: watch::Sender<Arc<Registry>>,
    /// The store's stamp that belongs to the picture; `None` where a write failed half-way.
    stamp: Mutex<Option<u64>>,
    writing: tokio::sync::Mutex<()>,
    clear_online_rows: bool,
    cache_ttl: Duration,
    stream_sql: Option<Arc<dyn StreamSql>>,
    /// Held to read by who writes online rows, from the look at the registry to the write.
    rows: Arc<tokio::sync::RwLock<()>>,
}

/// A state that was replaced stays so long for requests that are on their way, and so many times as long as another process
/// may take to see that it was.
const REQUESTS: Duration = Duration::from_secs(5);
const LOOKS: u32 = 2;

/// How long an apply waits for the rows of a deleted view of its name to be removed.
const CLEARING: Duration = Duration::from_mins(1);

impl Catalog {
    /// Reads the store. Where `cache_ttl` is not zero, looks for changes that often until the catalog
    /// is dropped.
    ///
    /// Errors: the store's.
    pub async fn open(store: Arc<dyn RegistryStore>, clock: Arc<dyn Clock>, settings: CatalogSettings) -> Result<Self> {
        let stamp = store.stamp().await?;
        let registry = Registry::resolve_versions(1, settings.online_versions, store.load().await?)?;
        let inner = Arc::new(Inner {
            store,
            clock,
            picture: watch::Sender::new(Arc::new(registry)),
            stamp: Mutex::new(Some(stamp)),
            writing: tokio::sync::Mutex::default(),
            clear_online_rows: settings.clear_online_rows,
            cache_ttl: settings.cache_ttl,
            stream_sql: settings.stream_sql,
            rows: Arc::default(),
        });
        if !settings.cache_ttl.is_zero() {
            tokio::spawn(keep_fresh(Arc::downgrade(&inner), settings.cache_ttl));
        }
        Ok(Self { inner })
    }

    /// The registry as it was last read. Cheap.
    pub fn snapshot(&self) -> Arc<Registry> {
        self.inner.snapshot()
    }

    /// The registry as it is in the store now: read again if the store's stamp changed.
    ///
    /// Errors: the store's; the snapshot then stays as it was.
    pub async fn refreshed(&self) -> Result<Arc<Registry>> {
        self.inner.refreshed().await
    }

    /// [`snapshot`](Self::snapshot) where a request allows a cache, else [`refreshed`](Self::refreshed).
    pub async fn registry(&self, allow_cache: bool) -> Result<Arc<Registry>> {
        if allow_cache { Ok(self.snapshot()) } else { self.refreshed().await }
    }

    /// Tells of every change; the value is the snapshot.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Registry>> {
        self.inner.picture.subscribe()
    }

    /// Registers an object in `project`, or replaces it. A project that does not exist yet is made.
    ///
    /// What the registry keeps about an object stays: its created timestamp, a view's materialization
    /// intervals, state and version number, a saved dataset's time range. An object that says what is
    /// registered already changes nothing.
    ///
    /// Errors: `InvalidArgument` for bytes that are not this message, a bad name, a window or feature
    /// that cannot be computed; `Conflict` for a name that a view of another kind has.
    pub async fn apply(&self, kind: ObjectKind, project: &str, bytes: Bytes) -> Result<()> {
        let project = project.to_owned();
        if kind.is_view() {
            let view = Object::read(kind, bytes.clone())?.name;
            self.await_cleared(&project, &view).await?;
        }
        self.change(move |registry, now| apply::apply(registry, kind, &project, bytes, now)).await
    }

    /// Waits until no rows of a deleted view of this name are left to be removed.
    ///
    /// Errors: `Unavailable` where that takes too long.
    async fn await_cleared(&self, project: &str, view: &str) -> Result<()> {
        let mut changes = self.subscribe();
        let cleared = changes.wait_for(|registry| !gone::is_pending(registry, project, view));
        match tokio::time::timeout(CLEARING, cleared).await {
            Ok(_) => Ok(()),
            Err(_) => Err(gone::still_pending(view)),
        }
    }

    /// To be held by who writes online rows, from before the look at the registry until the rows are
    /// written: rows of a deleted view are removed when all who hold it have let go.
    pub async fn writing_rows(&self) -> tokio::sync::OwnedRwLockReadGuard<()> {
        self.inner.rows.clone().read_owned().await
    }

    /// Waits until everybody has let go who is [writing rows](Self::writing_rows) now.
    pub(crate) async fn writers_ended(&self) -> tokio::sync::OwnedRwLockWriteGuard<()> {
        self.inner.rows.clone().write_owned().await
    }

    /// How long after a commit other processes may not have heard of it.
    pub(crate) fn heard_after(&self) -> Duration {
        self.inner.cache_ttl.saturating_mul(LOOKS)
    }

    /// Now, by the catalog's clock.
    pub(crate) fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    /// Takes the note away that a table's rows are to be removed.
    pub(crate) async fn cleared(&self, table: &Table) -> Result<()> {
        let (project, name) = (table.project.clone(), table.view.clone());
        self.change(move |_, _| Ok(vec![Change::Delete { kind: ObjectKind::ClearedTable, project, name }])).await
    }

    /// Removes an object; a project goes with all that is in it, and of views the online rows, a little
    /// later ([`crate::clear`]).
    ///
    /// Errors: the kind's own "does not exist".
    pub async fn delete(&self, kind: ObjectKind, project: &str, name: &str) -> Result<()> {
        let (project, name) = (project.to_owned(), name.to_owned());
        let note = self.inner.clear_online_rows;
        self.change(move |registry, _| {
            let object = registry.object(kind, &project, &name)?;
            match kind {
                ObjectKind::Project => gone::project(registry, &project, note),
                kind if kind.is_view() => gone::view(registry, object, note),
                _ => Ok(vec![Change::Delete { kind, project, name }]),
            }
        })
        .await
    }

    /// Removes a view of whatever kind.
    ///
    /// Errors: `FeatureViewNotFoundException`.
    pub async fn delete_view(&self, project: &str, name: &str) -> Result<()> {
        let (project, name) = (project.to_owned(), name.to_owned());
        let note = self.inner.clear_online_rows;
        self.change(move |registry, _| gone::view(registry, view_object(registry, &project, &name)?, note)).await
    }

    /// Records that a view was materialized over `[start, end)`, joined with the intervals that it
    /// adjoins or overlaps; its state becomes `AVAILABLE_ONLINE`.
    ///
    /// Errors: no such view, or one that is not materialized; a range that is empty.
    pub async fn materialized(&self, project: &str, view: &str, start: Timestamp, end: Timestamp) -> Result<()> {
        if start >= end {
            return Err(Error::invalid(format!("the materialized range is empty: {start} is not before {end}")));
        }
        let (project, view) = (project.to_owned(), view.to_owned());
        self.change(move |registry, now| {
            let object = view_object(registry, &project, &view)?;
            Ok(vec![Change::Put(apply::materialized(object, start, end, now)?)])
        })
        .await
    }

    /// Sets the state in a view's life.
    ///
    /// Errors: no such view, or a label view, which has no state.
    pub async fn set_view_state(&self, project: &str, view: &str, state: core::FeatureViewState) -> Result<()> {
        let (project, view) = (project.to_owned(), view.to_owned());
        self.change(move |registry, now| {
            let object = view_object(registry, &project, &view)?;
            Ok(apply::with_state(object, state, now)?.map(Change::Put).into_iter().collect())
        })
        .await
    }

    /// Makes `change` from the registry as it stands, and does it.
    pub(crate) async fn change<F>(&self, change: F) -> Result<()>
    where
        F: FnOnce(&Registry, Timestamp) -> Result<Vec<Change>> + Send + 'static,
    {
        let inner = self.inner.clone();
        // a task of its own: it goes on to its end although the request may be given up on
        let task = tokio::spawn(async move { inner.change(change).await });
        task.await.map_err(|e| Error::internal("a change of the registry was cut off", e))?
    }
}

impl Inner {
    /// How long the rows of a state stay that was replaced; `None` where nobody removes them.
    fn replaced(&self) -> Option<Duration> {
        self.clear_online_rows.then(|| REQUESTS + self.cache_ttl.saturating_mul(LOOKS))
    }

    fn snapshot(&self) -> Arc<Registry> {
        self.picture.borrow().clone()
    }

    async fn refreshed(&self) -> Result<Arc<Registry>> {
        let stamp = self.store.stamp().await?;
        if self.known() != Some(stamp) {
            let _one_at_a_time = self.writing.lock().await;
            self.reload().await?;
        }
        Ok(self.snapshot())
    }

    /// Reads the store again if its stamp is not the known one. Under `writing`.
    async fn reload(&self) -> Result<()> {
        let stamp = self.store.stamp().await?;
        if self.known() == Some(stamp) {
            return Ok(());
        }
        let objects = self.store.load().await?;
        let current = self.snapshot();
        let registry = Registry::resolve_versions(current.revision + 1, current.online_versions, objects)?;
        tracing::info!(revision = registry.revision, projects = registry.projects.len(), "read the registry again");
        self.set_known(Some(stamp));
        self.picture.send_replace(Arc::new(registry));
        Ok(())
    }

    async fn change<F>(&self, change: F) -> Result<()>
    where
        F: FnOnce(&Registry, Timestamp) -> Result<Vec<Change>> + Send,
    {
        let _one_at_a_time = self.writing.lock().await;
        self.reload().await?;
        let current = self.snapshot();
        let changes = change(&current, self.clock.now())?;
        if changes.is_empty() {
            return Ok(());
        }
        let next = current.changed(changes.iter().cloned())?;
        apply::check(&next, &changes, self.stream_sql.as_deref())?;
        changed::check(&current, &next, &changes)?;
        tell(&changes);
        self.set_known(None);
        self.store.commit(changes).await?;
        self.set_known(Some(self.store.stamp().await?));
        self.picture.send_replace(Arc::new(next));
        Ok(())
    }

    fn known(&self) -> Option<u64> {
        *self.stamp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_known(&self, stamp: Option<u64>) {
        *self.stamp.lock().unwrap_or_else(PoisonError::into_inner) = stamp;
    }
}

/// Looks at the store every `period` for as long as the catalog lives.
async fn keep_fresh(catalog: Weak<Inner>, period: Duration) {
    loop {
        tokio::time::sleep(period).await;
        let Some(inner) = catalog.upgrade() else { return };
        if let Err(error) = inner.refreshed().await {
            tracing::warn!(%error, "the registry could not be read again: serving it as it was");
        }
    }
}

/// A view's object, of whatever kind.
///
/// Errors: `FeatureViewNotFoundException`.
pub fn view_object<'a>(registry: &'a Registry, project: &str, name: &str) -> Result<&'a Object> {
    ObjectKind::VIEWS
        .into_iter()
        .find_map(|kind| registry.object(kind, project, name).ok())
        .ok_or_else(|| Error::feature_view_not_found(name, project))
}

/// The infra of a project; empty where there is none, as in Feast.
pub fn infra(registry: &Registry, project: &str) -> Bytes {
    registry.object(ObjectKind::Infra, project, "").map(|o| o.bytes.clone()).unwrap_or_default()
}

/// The changes of [`Catalog::apply`], to be part of a greater change.
pub(crate) fn applied(
    registry: &Registry,
    kind: ObjectKind,
    project: &str,
    bytes: Bytes,
    now: Timestamp,
) -> Result<Vec<Change>> {
    apply::apply(registry, kind, project, bytes, now)
}

/// One log line and one count per change.
fn tell(changes: &[Change]) {
    for change in changes {
        let (verb, kind, project, name) = match change {
            Change::Put(o) if o.kind.is_own() || o.kind == ObjectKind::FeatureViewVersion => continue,
            Change::Put(o) => ("apply", o.kind, &o.project, &o.name),
            Change::Delete { kind, .. } if kind.is_own() || *kind == ObjectKind::FeatureViewVersion => continue,
            Change::Delete { kind, project, name } => ("delete", *kind, project, name),
        };
        crate::metrics::registry_changed(verb, kind.class(), project, name);
    }
}

/// A conflict with what is registered.
fn conflict(class: &'static str, message: String) -> Error {
    Error::of_class(Kind::Conflict, class, message)
}

#[cfg(test)]
mod tests;
