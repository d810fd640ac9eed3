//! The verb "streams": how far the streams of a project's views are read; paused, resumed, and from another place. What
//! is wanted stands in the registry ([`model::registry::Reading`]), so that it outlives the server and holds for every
//! process that shares it. Knows no Kafka and no protocol.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::ports::OnlineStore;
use model::registry::{Start, View};
use model::{Result, Timestamp, schema};

use crate::catalog::Catalog;

/// What a view's consumer is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It reads.
    Running,
    /// Somebody wants it not to.
    Paused,
    /// It failed and starts again by itself.
    Retrying(String),
    /// It waits until the view, or its state, is changed.
    Blocked(String),
    /// The view is switched off, or not served online.
    Off,
    /// No consumer of this process; perhaps one of another.
    Elsewhere,
}

impl State {
    /// Its name and, where there is one, the reason.
    pub fn parts(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Running => ("running", None),
            Self::Paused => ("paused", None),
            Self::Retrying(why) => ("retrying", Some(why)),
            Self::Blocked(why) => ("blocked", Some(why)),
            Self::Off => ("off", None),
            Self::Elsewhere => ("elsewhere", None),
        }
    }
}

/// How far a partition is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Partition {
    /// Its number.
    pub number: i32,
    /// The next offset, as of the last checkpoint; `None` where none was stored yet.
    pub position: Option<i64>,
    /// Messages that wait, as the consumer last heard; `None` where it did not.
    pub lag: Option<i64>,
    /// The latest event time less the view's watermark delay.
    pub watermark: Option<Timestamp>,
}

/// One view's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The view.
    pub view: String,
    /// The topic.
    pub topic: String,
    /// The consumer group.
    pub group: String,
    /// What its consumer does.
    pub state: State,
    /// Events from before it come from a backfill.
    pub cut_over: Option<Timestamp>,
    /// Its partitions.
    pub partitions: Vec<Partition>,
}

/// Where consumers say what they do, for those who ask.
#[derive(Debug, Default)]
pub struct Board(Mutex<BTreeMap<(String, String), Note>>);

#[derive(Debug, Default)]
struct Note {
    state: Option<State>,
    lags: BTreeMap<i32, i64>,
}

impl Board {
    /// What a view's consumer does now.
    pub fn state(&self, project: &str, view: &str, state: State) {
        let mut notes = self.notes();
        let note = notes.entry((project.to_owned(), view.to_owned())).or_default();
        if state != State::Running {
            note.lags.clear();
        }
        note.state = Some(state);
    }

    /// How many messages wait in a partition.
    pub fn lag(&self, project: &str, view: &str, partition: i32, lag: i64) {
        self.notes().entry((project.to_owned(), view.to_owned())).or_default().lags.insert(partition, lag);
    }

    fn notes(&self) -> MutexGuard<'_, BTreeMap<(String, String), Note>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells of, and steers, the streams of one project.
#[derive(Clone)]
pub struct Streams {
    /// What is registered.
    pub catalog: Arc<Catalog>,
    /// Where the positions are.
    pub store: Arc<dyn OnlineStore>,
    /// What this process' consumers do.
    pub board: Arc<Board>,
    /// What the names of the consumer groups begin with.
    pub group_prefix: String,
    /// The project.
    pub project: String,
}

impl Streams {
    /// The same for another project.
    #[must_use]
    pub fn of_project(&self, project: &str) -> Self {
        Self { project: project.to_owned(), ..self.clone() }
    }

    /// The streams of all views that have one.
    ///
    /// Errors: no such project; the stores'.
    pub async fn list(&self) -> Result<Vec<Stream>> {
        let registry = self.catalog.refreshed().await?;
        let mut streams = Vec::new();
        for view in registry.project(&self.project)?.views.values() {
            streams.extend(self.stream(view).await?);
        }
        Ok(streams)
    }

    /// The stream of one view.
    ///
    /// Errors: no such view, or one without a stream; the stores'.
    pub async fn of_view(&self, view: &str) -> Result<Option<Stream>> {
        let registry = self.catalog.refreshed().await?;
        let view = registry.project(&self.project)?.view(view, &self.project)?;
        self.stream(view).await
    }

    /// Reads a view's stream no more until it is resumed.
    ///
    /// Errors: no such view, or one without a stream.
    pub async fn pause(&self, view: &str) -> Result<()> {
        self.catalog.pause_stream(&self.project, view, true).await
    }

    /// Reads it again from where it was.
    ///
    /// Errors: as [`Streams::pause`].
    pub async fn resume(&self, view: &str) -> Result<()> {
        self.catalog.pause_stream(&self.project, view, false).await
    }

    /// Reads it from another place on. The windows of a windowed view are built anew from there.
    ///
    /// Errors: as [`Streams::pause`].
    pub async fn seek(&self, view: &str, start: Start) -> Result<()> {
        self.catalog.seek_stream(&self.project, view, start).await
    }

    async fn stream(&self, view: &View) -> Result<Option<Stream>> {
        let Some(kafka) = view.stream_source.as_deref().and_then(schema::kafka) else { return Ok(None) };
        let group = format!("{}.{}.{}", self.group_prefix, view.project, view.reading.group(&view.table));
        let stored = self.store.positions(&group).await?;
        let stored: BTreeMap<i32, _> = stored
            .into_iter()
            .filter(|p| p.topic == kafka.topic && p.offset >= 0)
            .map(|p| (p.partition, (p.offset, p.max_event)))
            .collect();
        let notes = self.board.notes();
        let note = notes.get(&(view.project.clone(), view.name.clone()));
        let state = if view.reading.paused {
            State::Paused
        } else if view.disabled || !view.online {
            State::Off
        } else {
            note.and_then(|note| note.state.clone()).unwrap_or(State::Elsewhere)
        };
        let lags = note.map(|note| note.lags.clone()).unwrap_or_default();
        drop(notes);
        let numbers: BTreeSet<i32> = stored.keys().chain(lags.keys()).copied().collect();
        let partitions = numbers.into_iter().map(|number| {
            let of_number = stored.get(&number);
            let seen = of_number.map(|(_, max_event)| *max_event).filter(|time| *time > Timestamp::MIN);
            Partition {
                number,
                position: of_number.map(|(offset, _)| *offset),
                lag: lags.get(&number).copied(),
                watermark: seen.map(|time| Timestamp(time.micros().saturating_sub(kafka.watermark_delay_us))),
            }
        });
        Ok(Some(Stream {
            view: view.name.clone(),
            topic: kafka.topic.clone(),
            group,
            state,
            cut_over: view.reading.cut_over(),
            partitions: partitions.collect(),
        }))
    }
}
