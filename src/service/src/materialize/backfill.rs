//! The backfill of a windowed view: its state is built from the raw events before a cut-over time, in a table beside the
//! one that is read; then it takes what the stream has from the cut-over on, of which only events of that time and later
//! are applied ([`model::registry::Reading`]): none is missed at the seam, and none counted twice. When it lacks nothing
//! that the old one has, one commit of the registry goes over to it, and the stream is read on from where it stands.
//!
//! What a crash, a failure or a cancel leaves of the new table is removed before it is built again, or at once; the old
//! state is read until the commit. Knows no Kafka and no file.

use std::sync::Arc;
use std::time::Duration;

use model::ports::{Table, WriteBatch};
use model::registry::View;
use model::{Result, Timestamp};
use tokio_util::sync::CancellationToken;

use super::catch_up::{Level, Standing};
use super::jobs::{Handle, Phase};
use super::record::Part;
use super::runner::{Broken, unless_stopped};
use super::{Shared, choose};
use crate::metrics;
use crate::windows::{self, Rebuild};

impl Shared {
    /// A view's state from its raw events, and the registry over to it.
    pub(super) async fn states(
        &self,
        handle: &Handle,
        at: usize,
        part: &Part,
        view: &Arc<View>,
        shutdown: &CancellationToken,
    ) -> Result<(), Broken> {
        let table = Arc::new(view.generation_table(part.generation));
        let registry = self.ports.catalog.snapshot();
        let now = registry.projects.get(&view.project).and_then(|p| p.views.get(&view.name));
        if now.is_some_and(|now| now.table == table) {
            // a crash came between the commit and the note that the job is done
            return Ok(());
        }
        let built = self.build(handle, at, part, view, &table, shutdown).await;
        if built.is_err() {
            // a job that waits for the next start removes it then; what fails here is only space
            if let Err(error) = self.remove(&table).await {
                tracing::warn!(view = view.name, %error, "what an unfinished backfill left could not be removed");
            }
        }
        built
    }

    /// Removes a state that nobody reads, and how far its stream was read.
    async fn remove(&self, table: &Table) -> Result<()> {
        if let Some(streams) = &self.ports.streams {
            streams.forget(table).await?;
        }
        self.ports.store.clear(table).await.map(drop)
    }

    async fn build(
        &self,
        handle: &Handle,
        at: usize,
        part: &Part,
        view: &Arc<View>,
        table: &Arc<Table>,
        shutdown: &CancellationToken,
    ) -> Result<(), Broken> {
        let (start, cut_over) = (Timestamp(part.start_us), Timestamp(part.end_us));
        let (spec, columns) = (windows::spec_of(view)?, windows::columns(view));
        let began = self.ports.clock.now();
        self.remove(table).await?;
        let open = self.ports.log.events(view, &columns, start..cut_over);
        let mut events = unless_stopped(handle, shutdown, open).await?;
        let mut rebuild = Rebuild::new(view, &spec, Arc::clone(table), began);
        let mut entities = 0;
        while let Some(states) = unless_stopped(handle, shutdown, rebuild.next(&mut *events)).await? {
            entities += states.len() as u64;
            if !states.is_empty() {
                let _until_written = self.ports.catalog.writing_rows().await;
                self.check_unchanged(view)?;
                self.ports.store.write(WriteBatch { states, ..WriteBatch::default() }).await?;
            }
            let (read, skipped) = (rebuild.applied + rebuild.too_old, events.skipped());
            self.jobs.change(handle, at, |part| (part.rows, part.applied, part.skipped) = (read, entities, skipped));
        }
        let seconds = (self.ports.clock.now().micros() - began.micros()) as f64 / 1e6;
        metrics::materialized(&view.project, &view.name, rebuild.applied, entities, events.skipped(), seconds);
        let level = self.catch_up(handle, at, part, view, shutdown).await?;
        self.ports.catalog.cut_over(view, part.generation, start, cut_over).await?;
        if let Some(level) = level {
            level.committed();
        }
        tracing::info!(
            project = view.project,
            view = view.name,
            events = rebuild.applied,
            too_old = rebuild.too_old,
            entities,
            %cut_over,
            "backfilled: the stream goes on from the cut-over"
        );
        Ok(())
    }

    /// Has the new state take what the stream brought since the cut-over, until it lacks nothing that the old one has.
    /// Gives what keeps the old one from going on, until the commit.
    async fn catch_up(
        &self,
        handle: &Handle,
        at: usize,
        part: &Part,
        view: &Arc<View>,
        shutdown: &CancellationToken,
    ) -> Result<Option<Box<dyn Level>>, Broken> {
        let Some(streams) = &self.ports.streams else { return Ok(None) };
        let reading = (*view.reading).clone().cut_over_at(part.generation, Timestamp(part.end_us));
        let new = Arc::new(view.in_generation(reading));
        let begun = streams.begin(new, Arc::clone(view));
        let Some(mut behind) = unless_stopped(handle, shutdown, begun).await? else { return Ok(None) };
        self.jobs.change(handle, at, |part| part.begin(Phase::CatchingUp));
        self.jobs.save(handle).await;
        loop {
            let now = self.unchanged(view, |now| choose::same_rows(view, now) && choose::same_stream(view, now))?;
            let paused = now.is_some_and(|now| now.reading.paused);
            let Standing { lag, near, waits } = unless_stopped(handle, shutdown, behind.news(paused)).await?;
            self.jobs.change(handle, at, |part| (part.lag, part.waits) = (lag, waits));
            if !near {
                continue;
            }
            let alone = paused || !self.ports.store.is_shared();
            let follow = if alone { Duration::ZERO } else { self.ports.catalog.heard_after() };
            if let Some(level) = unless_stopped(handle, shutdown, behind.level(follow)).await? {
                return Ok(Some(level));
            }
        }
    }
}
