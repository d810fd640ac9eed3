//! A materialization as it is written down: which views, from when to when, and how far each is. Knows no store.

use bytes::Bytes;
use model::{Error, Result, Timestamp};
use prost::Message;

/// Where a view of a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum State {
    /// It waits for its turn.
    Waiting = 0,
    /// Its rows are being written.
    Running = 1,
    /// All rows are written.
    Done = 2,
    /// It ended with an error.
    Failed = 3,
    /// Somebody wanted it to end.
    Cancelled = 4,
}

impl State {
    /// Whether nothing more happens.
    pub fn has_ended(self) -> bool {
        !matches!(self, Self::Waiting | Self::Running)
    }
}

/// What is done for a view while its job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Phase {
    /// Its batch source is read.
    Reading = 0,
    /// A new state of windows takes what its stream has, before it is read.
    CatchingUp = 1,
}

/// One view of a job.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Part {
    #[prost(string, tag = "1")]
    pub(super) view: String,
    /// The number of the version that was asked for; none is the view as it is.
    #[prost(int32, optional, tag = "2")]
    pub(super) version: Option<i32>,
    #[prost(int64, tag = "3")]
    pub(super) start_us: i64,
    #[prost(int64, tag = "4")]
    pub(super) end_us: i64,
    #[prost(enumeration = "State", tag = "5")]
    pub(super) state: i32,
    #[prost(int64, tag = "6")]
    pub(super) began_us: i64,
    #[prost(int64, optional, tag = "7")]
    pub(super) ended_us: Option<i64>,
    #[prost(uint64, tag = "8")]
    pub(super) rows: u64,
    #[prost(uint64, tag = "9")]
    pub(super) applied: u64,
    #[prost(uint64, tag = "10")]
    pub(super) skipped: u64,
    #[prost(string, optional, tag = "11")]
    pub(super) error: Option<String>,
    /// For windows: the generation of their state that is being made, beside the one that is read.
    #[prost(int64, tag = "12")]
    pub(super) generation: i64,
    #[prost(enumeration = "Phase", tag = "13")]
    pub(super) phase: i32,
    /// Messages of the stream that the new state lacks.
    #[prost(uint64, optional, tag = "14")]
    pub(super) lag: Option<u64>,
    /// What does not answer.
    #[prost(string, optional, tag = "15")]
    pub(super) waits: Option<String>,
}

/// A job.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Record {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(string, tag = "2")]
    pub(super) project: String,
    #[prost(message, repeated, tag = "3")]
    pub(super) parts: Vec<Part>,
    #[prost(int64, tag = "4")]
    pub(super) accepted_us: i64,
    /// How often the server went down, without being told to, while it ran.
    #[prost(uint32, tag = "5")]
    pub(super) interrupted: u32,
}

impl Record {
    pub(super) fn has_ended(&self) -> bool {
        self.parts.iter().all(|part| part.state().has_ended())
    }

    pub(super) fn bytes(&self) -> Bytes {
        Bytes::from(self.encode_to_vec())
    }

    pub(super) fn read(id: &str, bytes: Bytes) -> Result<Self> {
        Self::decode(bytes).map_err(|e| Error::internal(format!("the stored materialization '{id}' is damaged"), e))
    }
}

impl Part {
    /// Ends it.
    pub(super) fn finish(&mut self, state: State, now: Timestamp, error: Option<String>) {
        self.set_state(state);
        self.ended_us = Some(now.micros());
        self.error = error;
        self.begin(Phase::Reading);
    }

    /// What is done now.
    pub(super) fn begin(&mut self, phase: Phase) {
        self.set_phase(phase);
        (self.lag, self.waits) = (None, None);
    }
}
