//! What keeps several processes that write one store out of each other's way. Knows no store.

/// The class of the error that a write gets whose fences another process has passed; of any other conflict it is not.
pub const FENCED: &str = "Fenced";

/// What stands in the store before a state is written, as far as its writer knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Before {
    /// Whatever it is.
    #[default]
    Any,
    /// Nothing.
    Absent,
    /// The state of this tag ([`super::OnlineStore::tag`]).
    Tagged(u64),
}

/// A partition that a writer has claimed ([`super::OnlineStore::claim`]): who claims it later fences it off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The consumer group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The claim's number: the greatest holds.
    pub epoch: u64,
}
