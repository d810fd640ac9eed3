//! What a backfill needs of the stream: the new state has what the stream brought since the cut-over before anybody reads
//! it, and from then on all that the old one has. Knows no Kafka.

use std::sync::Arc;
use std::time::Duration;

use model::Result;
use model::ports::{BoxFuture, Table};
use model::registry::View;

/// The streams of views that are backfilled. Implemented where streams are read.
pub trait Streams: Send + Sync {
    /// Begins to apply the stream of `new`, from its cut-over on, to its state, beside that of `old`, which is read and
    /// goes on. `None` where that is not done here: the stream of this view is read elsewhere, not beside another, or not
    /// at all.
    ///
    /// Errors: no thread can be begun.
    fn begin(&self, new: Arc<View>, old: Arc<View>) -> BoxFuture<'_, Result<Option<Box<dyn CatchingUp>>>>;

    /// Stops whatever writes to the table, and forgets how far it read.
    fn forget<'a>(&'a self, table: &'a Table) -> BoxFuture<'a, Result<()>>;
}

/// A state that catches up with its stream. Dropped, it ends where it is.
pub trait CatchingUp: Send {
    /// Waits until there is news of how far it is. `paused`: nobody wants the view's stream to be read, so its end is
    /// where the old state is.
    ///
    /// Errors: it cannot go on.
    fn news(&mut self, paused: bool) -> BoxFuture<'_, Result<Standing>>;

    /// Stops what the old state is fed by, takes what that has and the new one lacks, and writes all down: the new state
    /// may be read from now on. `None`: the old one does not stop, or has more than could be taken in a short time; it
    /// goes on, and so does this. `follow`: so long after the commit other processes that read the stream may not know of
    /// it, and the new state takes what the stream brings meanwhile, until one of them does it.
    ///
    /// Errors: as [`CatchingUp::news`].
    fn level(&mut self, follow: Duration) -> BoxFuture<'_, Result<Option<Box<dyn Level>>>>;
}

/// A new state that lacks nothing that the old one has, which is not fed. Dropped, the old one goes on, and the new one not.
pub trait Level: Send {
    /// The new state is the one that is read.
    fn committed(self: Box<Self>);
}

/// How far a state is behind its stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The messages that wait; `None` where that is not known yet.
    pub lag: Option<u64>,
    /// Whether it had, a moment ago, all that the stream had then.
    pub near: bool,
    /// Why it does not come nearer: what does not answer.
    pub waits: Option<String>,
}
