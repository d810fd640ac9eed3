//! Changes of how a view's stream is read: over to another generation of a windowed view's state, paused, resumed, from
//! another place. Each is one commit, which whoever shares the registry sees at once. Decides from values alone.

use std::time::Duration;

use model::ports::{Change, ObjectKind};
use model::registry::{Reading, Registry, Start, View};
use model::{Error, Kind, Result, Timestamp};

use super::{Catalog, apply, gone, view_object};

impl Catalog {
    /// Goes over to the state that a backfill of `view` made of the events in `[start, cut_over)`; what is left of the
    /// old one is noted for removal.
    ///
    /// Errors: `Conflict` where the view is not what it was when the backfill began.
    pub(crate) async fn cut_over(
        &self,
        view: &View,
        generation: i64,
        start: Timestamp,
        cut_over: Timestamp,
    ) -> Result<()> {
        let view = view.clone();
        let replaced = self.inner.replaced();
        self.change(move |registry, now| {
            let registered = registry.project(&view.project)?.view(&view.name, &view.project)?;
            let unchanged = registered.table == view.table
                && crate::windows::spec_of(registered)?.fingerprint() == crate::windows::spec_of(&view)?.fingerprint()
                && registered.join_keys == view.join_keys
                && crate::materialize::same_stream(&view, registered);
            if !unchanged {
                return Err(Error::new(
                    Kind::Conflict,
                    format!("feature view {} was changed while it was backfilled: ask again", view.name),
                ));
            }
            let reading = noted(registry, registered)?.cut_over_at(generation, cut_over);
            let object = view_object(registry, &view.project, &view.name)?;
            let mut changes = vec![Change::Put(apply::materialized(object, start, cut_over, now)?)];
            changes.extend(over(registered, &reading, replaced, now));
            Ok(changes)
        })
        .await
    }

    /// Notes for removal what an unfinished backfill left of a generation that nobody reads.
    ///
    /// Errors: the store's.
    pub(crate) async fn forsake(&self, project: &str, view: &str, generation: i64) -> Result<()> {
        let (project, view) = (project.to_owned(), view.to_owned());
        let removed = self.inner.replaced().is_some();
        self.change(move |registry, now| {
            let found = registry.projects.get(&project).and_then(|p| p.views.get(&view));
            let table = found.map(|view| view.generation_table(generation));
            let left = table.filter(|table| removed && !gone::in_use(registry, table));
            Ok(left.map(|table| Change::Put(gone::noted(&project, &table.view, now))).into_iter().collect())
        })
        .await
    }

    /// Reads the stream of a view, or does not; gives whether that changed anything.
    ///
    /// Errors: no such view; one without a stream.
    pub async fn pause_stream(&self, project: &str, view: &str, paused: bool) -> Result<()> {
        let (project, view) = (project.to_owned(), view.to_owned());
        self.change(move |registry, _| {
            let view = streaming(registry, &project, &view)?;
            let reading = noted(registry, view)?;
            if reading.paused == paused {
                return Ok(Vec::new());
            }
            Ok(vec![Change::Put(Reading { paused, ..reading }.object())])
        })
        .await
    }

    /// Reads the stream of a view from another place. The state of windows is built anew from there: an event that is
    /// read again would be counted twice.
    ///
    /// Errors: no such view; one without a stream.
    pub async fn seek_stream(&self, project: &str, view: &str, start: Start) -> Result<()> {
        let (project, view) = (project.to_owned(), view.to_owned());
        let replaced = self.inner.replaced();
        self.change(move |registry, now| {
            let view = streaming(registry, &project, &view)?;
            let reading = noted(registry, view)?;
            let reading = Reading {
                generation: now.micros().max(reading.generation + 1),
                from: start.from as i32,
                from_us: start.time.micros(),
                cut_over_us: None,
                ..reading
            };
            Ok(over(view, &reading, replaced, now).collect())
        })
        .await
    }
}

/// The changes that go over to another generation. What is left of the old one is noted for removal, if it is to be removed
/// after so long: by then nobody asks for it any more.
fn over(view: &View, reading: &Reading, replaced: Option<Duration>, now: Timestamp) -> impl Iterator<Item = Change> {
    let old = replaced.filter(|_| view.is_windowed()).map(|stays| {
        let stays = i64::try_from(stays.as_micros()).unwrap_or(i64::MAX);
        let until = Timestamp(now.micros().saturating_add(stays));
        Change::Put(gone::noted(&view.project, &view.table.view, until))
    });
    std::iter::once(Change::Put(reading.object())).chain(old)
}

/// How the stream is read now; another version of the view begins anew.
fn noted(registry: &Registry, view: &View) -> Result<Reading> {
    let first = Reading::first(view);
    let Ok(object) = registry.object(ObjectKind::StreamReading, &view.project, &view.name) else { return Ok(first) };
    let noted = Reading::read(object)?;
    Ok(if noted.table == first.table { noted } else { Reading { paused: noted.paused, ..first } })
}

/// A view whose stream can be read.
fn streaming<'a>(registry: &'a Registry, project: &str, view: &str) -> Result<&'a View> {
    let found = registry.project(project)?.view(view, project)?;
    if found.stream_source.as_deref().and_then(model::schema::kafka).is_none() {
        return Err(Error::invalid(format!("feature view {view} of project {project} has no Kafka source")));
    }
    Ok(found)
}
