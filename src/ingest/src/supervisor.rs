//! Has every streaming view read, as the registry changes: one actor per view, which joins the reader of its topic.
//! Knows no Kafka client.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::entity_key::DUMMY_ENTITY_ID;
use model::ports::{Clock, EventLog, OnlineStore, StreamSql};
use model::registry::{Registry, View};
use service::streams::{Board, State};
use service::windows::live::Live;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Stop};
use crate::feed::{Content, Feed};
use crate::gate::Gate;
use crate::metrics;
use crate::readers::{self, Readers};
use crate::settings::Settings;

/// What ingestion is given.
#[derive(Clone)]
pub struct Deps {
    /// The registry, as it changes.
    pub registry: watch::Receiver<Arc<Registry>>,
    /// Where rows, states and positions are written.
    pub store: Arc<dyn OnlineStore>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What can be set.
    pub settings: Settings,
    /// Through which consumers go that write.
    pub gate: Gate,
    /// Where the window states of running consumers are read.
    pub live: Arc<Live>,
    /// Where consumers say what they do.
    pub board: Arc<Board>,
    /// Where events are written down, if they are.
    pub event_log: Option<Arc<dyn EventLog>>,
    /// What runs the SQL of views, if anything does.
    pub stream_sql: Option<Arc<dyn StreamSql>>,
}

/// What should become of a view's stream.
#[derive(Clone, Debug)]
enum Want {
    /// Consume it.
    Run(Arc<Feed>),
    /// Do not, and keep what is there: it is switched off, or refused for a reason.
    Rest(Option<String>),
    /// Do not yet: this entity of the view is not registered, so its join key is not known. Feast's clients
    /// apply a view before its entities.
    Wait(String),
    /// Nothing: the view is gone. What it leaves is removed by who deleted it ([`crate::gate`]); a
    /// registry file that vanished deletes nothing.
    Nothing,
}

impl Want {
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Run(a), Self::Run(b)) => a.identity == b.identity,
            (Self::Rest(a), Self::Rest(b)) => a == b,
            (Self::Wait(a), Self::Wait(b)) => a == b,
            (Self::Nothing, Self::Nothing) => true,
            _ => false,
        }
    }
}

struct Actor {
    want: watch::Sender<Want>,
    task: JoinHandle<()>,
}

type Name = (String, String);

/// Consumes the streams of all views, following the registry, until `shutdown`; returns when every
/// consumer has written its last batch and left its group. A broker that is down is no error: its
/// consumers keep trying.
///
/// Must run on a multi-threaded tokio runtime. Errors: a setting that cannot be.
pub async fn run(deps: Deps, shutdown: CancellationToken) -> Result<(), Error> {
    let formats = deps.settings.check()?.with_sql(deps.stream_sql);
    let Deps { mut registry, store, clock, settings, gate, live, board, event_log, .. } = deps;
    let settings = Arc::new(settings);
    let readers = Readers::new(readers::Deps { store, clock, settings, formats, live, board, event_log });
    let mut actors: BTreeMap<Name, Actor> = BTreeMap::new();
    loop {
        let snapshot = registry.borrow_and_update().clone();
        reconcile(&snapshot, &mut actors, &readers, &gate, &shutdown);
        tokio::select! {
            () = shutdown.cancelled() => break,
            changed = registry.changed() => if changed.is_err() {
                // no more changes can come; go on with what is there
                shutdown.cancelled().await;
                break;
            },
        }
    }
    for ((project, view), actor) in actors {
        if let Err(error) = actor.task.await {
            tracing::error!(project, view, %error, "the view's ingestion ended in a panic");
        }
    }
    readers.closed().await;
    Ok(())
}

/// Tells every view's actor what it should do now.
fn reconcile(
    registry: &Registry,
    actors: &mut BTreeMap<Name, Actor>,
    readers: &Readers,
    gate: &Gate,
    shutdown: &CancellationToken,
) {
    let deps = readers.deps();
    let only = &deps.settings.projects;
    let served = |project: &String| only.as_ref().is_none_or(|only| only.contains(project));
    let views = registry.projects.iter().filter(|(name, _)| served(name)).flat_map(|(_, p)| p.views.values());
    let name = |view: &View| (view.project.clone(), view.name.clone());
    for view in views {
        let want = match Feed::of(view, &deps.settings.group_prefix, &deps.formats) {
            Ok(Some(_)) if view.reading.paused => Want::Rest(None),
            Ok(None) => Want::Rest(None),
            found => match (unknown_entity(registry, view), found) {
                // what its key would be read from is not known, though the entity may have the name of a column
                (Some(entity), _) => Want::Wait(entity),
                (None, Ok(feed)) => {
                    let is_logged = deps.event_log.is_some();
                    feed.map_or(Want::Rest(None), |feed| Want::Run(Arc::new(Feed { is_logged, ..feed })))
                }
                (None, Err(error)) => Want::Rest(Some(error.message().to_owned())),
            },
        };
        match actors.get_mut(&name(view)) {
            Some(actor) => {
                actor.want.send_if_modified(|now| {
                    let change = !now.same(&want);
                    if change {
                        *now = want;
                    }
                    change
                });
            }
            None if matches!(want, Want::Rest(None)) => {}
            None => {
                let (sender, receiver) = watch::channel(want);
                let task = tokio::spawn(drive(name(view), receiver, readers.clone(), gate.clone(), shutdown.clone()));
                actors.insert(name(view), Actor { want: sender, task });
            }
        }
    }
    for ((project, view), actor) in actors.iter() {
        let gone = registry.projects.get(project).is_none_or(|p| !p.views.contains_key(view));
        if gone {
            actor.want.send_if_modified(|now| !matches!(std::mem::replace(now, Want::Nothing), Want::Nothing));
        }
    }
}

/// An entity of the view that is not registered.
pub(crate) fn unknown_entity(registry: &Registry, view: &View) -> Option<String> {
    let known = &registry.projects.get(&view.project)?.entities;
    let keys = view.join_keys.iter().filter(|key| key.name != DUMMY_ENTITY_ID);
    keys.map(|key| &key.entity).find(|entity| !known.contains_key(*entity)).cloned()
}

/// One view's actor: does what is wanted until something else is, or `shutdown`.
async fn drive(
    (project, view): Name,
    mut want: watch::Receiver<Want>,
    readers: Readers,
    gate: Gate,
    shutdown: CancellationToken,
) {
    let mut pause = Duration::ZERO;
    while !shutdown.is_cancelled() {
        let wanted = want.borrow_and_update().clone();
        let wait = match wanted {
            Want::Run(feed) => {
                report_unfilled(&feed);
                readers.deps().board.state(&project, &view, State::Running);
                let running = tokio::select! {
                    running = gate.enter(&feed.view.table) => running,
                    _ = want.changed() => {
                        want.mark_changed();
                        continue;
                    }
                    () = shutdown.cancelled() => return,
                };
                let ended = read(&feed, &readers, &gate, &mut want, &shutdown).await;
                drop(running);
                match ended {
                    Ok(()) => {
                        pause = Duration::ZERO;
                        metrics::stopped(&project, &view, if shutdown.is_cancelled() { "shutdown" } else { "changed" });
                        continue;
                    }
                    Err(Stop::Restart(error)) => {
                        pause = (pause * 2).clamp(Duration::from_millis(200), readers.deps().settings.max_backoff);
                        metrics::retrying(&feed, &error, pause);
                        readers.deps().board.state(&project, &view, State::Retrying(error));
                        pause
                    }
                    Err(Stop::Blocked(reason)) => {
                        metrics::blocked(&feed, &reason);
                        readers.deps().board.state(&project, &view, State::Blocked(reason));
                        Duration::MAX
                    }
                }
            }
            Want::Rest(reason) => {
                if let Some(reason) = reason {
                    metrics::refused(&project, &view, &reason);
                    readers.deps().board.state(&project, &view, State::Blocked(reason));
                }
                Duration::MAX
            }
            Want::Wait(entity) => {
                metrics::waiting(&project, &view, &entity);
                let reason = format!("its entity '{entity}' is not registered");
                readers.deps().board.state(&project, &view, State::Blocked(reason));
                Duration::MAX
            }
            Want::Nothing => {
                metrics::gone(&project, &view);
                Duration::MAX
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            changed = want.changed() => {
                pause = Duration::ZERO;
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(wait), if wait < Duration::MAX => {}
        }
    }
}

/// Reads the view's stream until that ends, `shutdown`, something else is wanted, or its table is closed.
async fn read(
    feed: &Arc<Feed>,
    readers: &Readers,
    gate: &Gate,
    want: &mut watch::Receiver<Want>,
    shutdown: &CancellationToken,
) -> Result<(), Stop> {
    let stop = shutdown.child_token();
    let mut reading = std::pin::pin!(readers.read(feed, stop.clone()));
    tokio::select! {
        outcome = &mut reading => outcome,
        _ = want.changed() => {
            want.mark_changed();
            stop.cancel();
            reading.await
        }
        () = gate.closing(&feed.view.table) => {
            stop.cancel();
            reading.await
        }
    }
}

/// Says which features nothing fills.
fn report_unfilled(feed: &Feed) {
    for field in &feed.view.features {
        let filled = match &feed.content {
            Content::Rows(features) => features.iter().any(|f| f.id == model::row::column_id(&field.name)),
            Content::Windows { spec, .. } => spec.features().iter().any(|f| f.name() == field.name),
        };
        if !filled {
            metrics::unfilled(feed, &field.name);
        }
    }
}
