//! A windowed view whose definition changes: the state that was built under the old one cannot be continued under the
//! new. Decides from values alone.
//!
//! An apply that changes what the state holds is refused, with what to do; unless the view says that its state is to be
//! rebuilt: then it is registered, its reads fail with the reason until a backfill has built the new state beside the old
//! one, and its stream rests. A registry file is changed by Feast itself, past this refusal: there the same happens.

use model::ports::{Change, ObjectKind};
use model::registry::{Registry, View};
use model::{Error, Kind, Result, schema};

use crate::windows;

/// The tag by which a view says what becomes of its state when its windows change, and its one value.
const TAG: (&str, &str) = ("larder.windows", "rebuild");

/// Holds the views of `changes` against what is registered now. `next` is the registry after the changes.
///
/// Errors (`InvalidArgument`): a change that the view's state does not survive, by what changed.
pub(super) fn check(current: &Registry, next: &Registry, changes: &[Change]) -> Result<()> {
    for change in changes {
        let Change::Put(object) = change else { continue };
        if !matches!(object.kind, ObjectKind::StreamFeatureView) {
            continue;
        }
        let of = |registry: &Registry| registry.projects.get(&object.project)?.views.get(&object.name).cloned();
        let (Some(old), Some(new)) = (of(current), of(next)) else { continue };
        // another version has another table; a view that was never served has no state
        if old.table != new.table || !old.online || !(old.is_windowed() || new.is_windowed()) {
            continue;
        }
        let Some(what) = difference(&old, &new)? else { continue };
        if object.tags()?.get(TAG.0).is_some_and(|value| value == TAG.1) {
            tracing::warn!(
                project = new.project,
                view = new.name,
                what,
                "the windows of the view changed: it is not served until `larder backfill` has rebuilt its state"
            );
            continue;
        }
        let (name, (tag, value)) = (&new.name, TAG);
        return Err(Error::new(
            Kind::InvalidArgument,
            format!(
                "feature view '{name}': {what} changed, and the state that is kept for it was built under the old \
                 definition. Give it the tag {tag}={value} to have it rebuilt: apply it, then run `larder backfill {name}` \
                 (it is not served until that is done); or register the new definition under another name; or delete the \
                 view and apply it again, which rebuilds its state from what its topic still has"
            ),
        ));
    }
    Ok(())
}

/// What of the definition changed that decides what the state holds; `None` where it can be continued.
fn difference(old: &View, new: &View) -> Result<Option<&'static str>> {
    if old.is_windowed() != new.is_windowed() {
        return Ok(Some("whether it has aggregations"));
    }
    // what cannot be read any more was never kept
    let Ok(before) = windows::spec_of(old) else { return Ok(None) };
    if before.fingerprint() != windows::spec_of(new)?.fingerprint() {
        return Ok(Some("its aggregations, the types of their columns or their windows"));
    }
    let keys = |view: &View| view.join_keys.iter().map(|k| (k.name.clone(), k.value_type)).collect::<Vec<_>>();
    if keys(old) != keys(new) {
        return Ok(Some("its entity key"));
    }
    let topic = |view: &View| view.stream_source.as_deref().and_then(schema::kafka).map(|kafka| kafka.topic);
    if topic(old) != topic(new) {
        return Ok(Some("its topic"));
    }
    if old.sql != new.sql {
        return Ok(Some("its SQL"));
    }
    Ok((old.event_time_column() != new.event_time_column()).then_some("its timestamp column"))
}
