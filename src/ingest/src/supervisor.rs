//! Keeps one consumer per streaming view, as the registry changes. Knows no Kafka client: it starts
//! and stops threads that do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::ports::{Clock, OnlineStore, Table};
use model::registry::{Registry, View};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::consumer;
use crate::error::{Error, Stop};
use crate::feed::{Content, Feed, group};
use crate::settings::Settings;
use crate::{marker, metrics};

/// How long a consumer may take to leave its group: longer, and it is left to do so by itself.
const CLOSING: Duration = Duration::from_secs(5);

/// What ingestion is given.
pub struct Deps {
    /// The registry, as it changes.
    pub registry: watch::Receiver<Arc<Registry>>,
    /// Where rows, states and positions are written.
    pub store: Arc<dyn OnlineStore>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What can be set.
    pub settings: Settings,
}

/// What should become of a view's stream.
#[derive(Clone, Debug)]
enum Want {
    /// Consume it.
    Run(Arc<Feed>),
    /// Do not, and keep what is there: it is switched off, or refused for a reason.
    Rest(Option<String>),
    /// The view is gone.
    Forget { windowed: bool },
}

impl Want {
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Run(a), Self::Run(b)) => a.identity == b.identity,
            (Self::Rest(a), Self::Rest(b)) => a == b,
            (Self::Forget { .. }, Self::Forget { .. }) => true,
            _ => false,
        }
    }
}

struct Actor {
    want: watch::Sender<Want>,
    windowed: bool,
    task: JoinHandle<()>,
}

type Name = (String, String);

/// Consumes the streams of all views, following the registry, until `shutdown`; returns when every
/// consumer has written its last batch and left its group. A broker that is down is no error: its
/// consumers keep trying.
///
/// Must run on a multi-threaded tokio runtime. Errors: a setting that cannot be.
pub async fn run(deps: Deps, shutdown: CancellationToken) -> Result<(), Error> {
    deps.settings.check()?;
    let Deps { mut registry, store, clock, settings } = deps;
    let deps = consumer::Deps { store, clock, settings: Arc::new(settings) };
    let mut actors: BTreeMap<Name, Actor> = BTreeMap::new();
    loop {
        let snapshot = registry.borrow_and_update().clone();
        reconcile(&snapshot, &mut actors, &deps, &shutdown);
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
    Ok(())
}

/// Tells every view's actor what it should do now.
fn reconcile(
    registry: &Registry,
    actors: &mut BTreeMap<Name, Actor>,
    deps: &consumer::Deps,
    shutdown: &CancellationToken,
) {
    let views = || registry.projects.values().flat_map(|p| p.views.values());
    let name = |view: &View| (view.project.clone(), view.name.clone());
    for view in views() {
        let want = match Feed::of(view, &deps.settings.group_prefix) {
            Ok(Some(feed)) => Want::Run(Arc::new(feed)),
            Ok(None) => Want::Rest(None),
            Err(error) => Want::Rest(Some(error.message().to_owned())),
        };
        match actors.get_mut(&name(view)) {
            Some(actor) => {
                actor.windowed = view.is_windowed();
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
                let task = tokio::spawn(drive(name(view), receiver, deps.clone(), shutdown.clone()));
                actors.insert(name(view), Actor { want: sender, windowed: view.is_windowed(), task });
            }
        }
    }
    for ((project, view), actor) in actors.iter() {
        let gone = registry.projects.get(project).is_none_or(|p| !p.views.contains_key(view));
        if gone {
            let windowed = actor.windowed;
            actor.want.send_if_modified(|now| {
                let change = !matches!(now, Want::Forget { .. });
                *now = Want::Forget { windowed };
                change
            });
        }
    }
}

/// One view's actor: does what is wanted until something else is, or `shutdown`.
async fn drive(
    (project, view): Name,
    mut want: watch::Receiver<Want>,
    deps: consumer::Deps,
    shutdown: CancellationToken,
) {
    let mut pause = Duration::ZERO;
    while !shutdown.is_cancelled() {
        let wanted = want.borrow_and_update().clone();
        let wait = match wanted {
            Want::Run(feed) => {
                report_unfilled(&feed);
                match consume(&feed, &deps, &mut want, &shutdown).await {
                    Ok(()) => {
                        pause = Duration::ZERO;
                        metrics::stopped(&project, &view, if shutdown.is_cancelled() { "shutdown" } else { "changed" });
                        continue;
                    }
                    Err(Stop::Restart(error)) => {
                        pause = (pause * 2).clamp(Duration::from_millis(200), deps.settings.max_backoff);
                        metrics::retrying(&feed, &error, pause);
                        pause
                    }
                    Err(Stop::Blocked(reason)) => {
                        metrics::blocked(&feed, &reason);
                        Duration::MAX
                    }
                }
            }
            Want::Rest(reason) => {
                if let Some(reason) = reason {
                    metrics::refused(&project, &view, &reason);
                }
                Duration::MAX
            }
            Want::Forget { windowed } => {
                let table = Table::new(&project, &view);
                let group = group(&deps.settings.group_prefix, &project, &view);
                match marker::forget(&*deps.store, &table, &group, windowed).await {
                    Ok(()) => {
                        metrics::forgotten(&project, &view, windowed);
                        Duration::MAX
                    }
                    Err(error) => {
                        metrics::forget_failed(&project, &view, &error);
                        deps.settings.max_backoff
                    }
                }
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

/// Runs the consumer's thread until it ends, `shutdown`, or something else is wanted.
async fn consume(
    feed: &Arc<Feed>,
    deps: &consumer::Deps,
    want: &mut watch::Receiver<Want>,
    shutdown: &CancellationToken,
) -> Result<(), Stop> {
    let stop = shutdown.child_token();
    let name = (feed.view.project.clone(), feed.view.name.clone());
    let (done, mut ended) = oneshot::channel();
    let (close, closed) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name(format!("ingest-{}", feed.view.name));
    let (feed, deps, runtime, told) = (Arc::clone(feed), deps.clone(), Handle::current(), stop.clone());
    thread
        .spawn(move || {
            consumer::consume(&feed, &deps, &runtime, &told, |outcome| {
                let _ = done.send(outcome);
            });
            drop(close);
        })
        .map_err(|e| Stop::Restart(format!("no thread for the consumer: {e}")))?;
    let outcome = tokio::select! {
        outcome = &mut ended => outcome,
        _ = want.changed() => {
            want.mark_changed();
            stop.cancel();
            ended.await
        }
    };
    if tokio::time::timeout(CLOSING, closed).await.is_err() {
        metrics::closing_late(&name.0, &name.1, CLOSING);
    }
    outcome.unwrap_or_else(|_| Err(Stop::Restart("the consumer's thread panicked; see the log above".to_owned())))
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
