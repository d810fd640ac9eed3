//! Whether a state has caught up with its stream: decided from offsets alone.
//!
//! A partition is read to its end where the next offset is there, or where the broker said so ([`Ends::end_is_here`]): the
//! last offsets of a partition may hold no message, such as the end of a transaction. A state is near where it has all
//! that the stream had at one moment, which is no longer ago than [`FRESH`]: what came since is not much.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long ago the moment may be.
pub(crate) const FRESH: Duration = Duration::from_secs(1);

/// How far a partition is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    /// The next offset; negative where it begins at the oldest message.
    pub(crate) next: i64,
    /// Up to where there is no message from `next` on, if the broker said so.
    empty_to: Option<i64>,
}

impl Reached {
    /// Read up to an offset.
    pub(crate) fn at(next: i64) -> Self {
        Self { next, empty_to: None }
    }

    /// How many messages it lacks of what is before an offset, at most.
    fn lacks(self, offset: i64) -> u64 {
        if self.has(offset) { 0 } else { (offset - self.next.max(0)).max(0).unsigned_abs() }
    }

    /// Whether it lacks nothing of what is before an offset.
    fn has(self, offset: i64) -> bool {
        self.next >= offset || self.empty_to.is_some_and(|end| end >= offset)
    }
}

/// The partitions of a topic: how far each is read, and how far it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ends {
    reached: BTreeMap<i32, Reached>,
    /// The offset behind the newest message.
    known: BTreeMap<i32, i64>,
    /// When these were true.
    asked: Option<Instant>,
}

impl Ends {
    /// Of partitions that are read from these offsets on.
    pub(crate) fn new(from: impl Iterator<Item = (i32, i64)>) -> Self {
        Self { reached: from.map(|(partition, next)| (partition, Reached::at(next))).collect(), ..Self::default() }
    }

    /// How far a partition is read; `None` where it is not.
    pub(crate) fn reached(&self, partition: i32) -> Option<Reached> {
        self.reached.get(&partition).copied()
    }

    /// The partitions that are read.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = i32> {
        self.reached.keys().copied()
    }

    /// A partition is read up to an offset.
    pub(crate) fn read(&mut self, partition: i32, next: i64) {
        self.reached.insert(partition, Reached::at(next));
    }

    /// How far all partitions went at a moment: the offset behind the newest message of each.
    pub(crate) fn told(&mut self, known: BTreeMap<i32, i64>, at: Instant) {
        (self.known, self.asked) = (known, Some(at));
    }

    /// Whether an end that the broker says is reached says more than the offsets do.
    pub(crate) fn is_open(&self, partition: i32) -> bool {
        let known = self.known.get(&partition);
        self.reached.get(&partition).is_some_and(|reached| known.is_none_or(|end| !reached.has(*end)))
    }

    /// The broker said that there is no further message in a partition, which then went to `end`. (Where one came between,
    /// it is read, and this no longer holds.)
    pub(crate) fn end_is_here(&mut self, partition: i32, end: i64) {
        if let Some(reached) = self.reached.get_mut(&partition) {
            reached.empty_to = Some(end);
        }
    }

    /// How many messages wait, at most; `None` where that is not known.
    pub(crate) fn lag(&self) -> Option<u64> {
        self.asked?;
        self.reached.iter().map(|(partition, reached)| Some(reached.lacks(*self.known.get(partition)?))).sum()
    }

    /// Whether it had, no longer than [`FRESH`] before `now`, all that the stream had then.
    pub(crate) fn is_near(&self, now: Instant) -> bool {
        let fresh = self.asked.is_some_and(|asked| now.saturating_duration_since(asked) <= FRESH);
        fresh && self.lag() == Some(0)
    }

    /// How many messages it lacks of what is before these offsets, at most.
    pub(crate) fn lacks(&self, before: &BTreeMap<i32, i64>) -> u64 {
        let of = |(partition, offset): (&i32, &i64)| Some(self.reached.get(partition)?.lacks(*offset));
        before.iter().filter_map(of).sum()
    }

    /// Whether it has all that is before these offsets.
    ///
    /// Errors: a partition that is not read.
    pub(crate) fn has_all(&self, before: &BTreeMap<i32, i64>) -> Result<bool, i32> {
        let mut all = true;
        for (partition, offset) in before {
            all &= self.reached.get(partition).ok_or(*partition)?.has(*offset);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(next: &[i64], known: &[i64]) -> (Ends, Instant) {
        let now = Instant::now();
        let mut ends = Ends::new((0..).zip(next.iter().copied()));
        ends.told((0..).zip(known.iter().copied()).collect(), now);
        (ends, now)
    }

    #[test]
    fn it_is_near_where_every_partition_has_reached_an_end_that_was_asked_for_a_moment_ago() {
        let (mut it, now) = ends(&[5, 7], &[5, 9]);
        assert_eq!((it.lag(), it.is_near(now)), (Some(2), false));
        it.read(1, 8);
        assert_eq!((it.lag(), it.is_near(now)), (Some(1), false));
        it.read(1, 9);
        assert_eq!((it.lag(), it.is_near(now)), (Some(0), true));
        assert!(it.is_near(now + FRESH));
        assert!(!it.is_near(now + FRESH + Duration::from_millis(1)), "who knows what came since");
        it.read(1, 12);
        assert!(it.is_near(now), "more than was asked for");
    }

    #[test]
    fn nothing_is_near_before_the_broker_has_answered_for_every_partition() {
        let now = Instant::now();
        let mut it = Ends::new([(0, 0), (1, 0)].into_iter());
        assert_eq!((it.lag(), it.is_near(now)), (None, false));
        it.told(BTreeMap::from([(0, 0)]), now);
        assert_eq!((it.lag(), it.is_near(now)), (None, false));
        it.told(BTreeMap::from([(0, 0), (1, 0)]), now);
        assert_eq!((it.lag(), it.is_near(now)), (Some(0), true), "an empty topic");
    }

    #[test]
    fn a_partition_that_begins_at_its_oldest_message_may_lack_all_of_it() {
        let (mut it, now) = ends(&[-1], &[50]);
        assert_eq!(it.lag(), Some(50));
        it.end_is_here(0, 50);
        assert!(it.is_near(now), "it is empty, for all of it expired");
    }

    #[test]
    fn an_end_without_a_message_is_reached_where_the_broker_says_so_until_more_comes() {
        let (mut it, now) = ends(&[5], &[6]);
        assert!(it.is_open(0));
        it.end_is_here(0, 6);
        assert!(it.is_near(now) && !it.is_open(0));
        it.told(BTreeMap::from([(0, 8)]), now);
        assert_eq!((it.lag(), it.is_near(now)), (Some(3), false));
        it.read(0, 7);
        assert_eq!(it.lag(), Some(1), "what was said before the message no longer holds");
        assert!(it.is_open(0));
    }

    #[test]
    fn it_is_level_with_positions_that_it_has_reached_and_knows_when_one_is_of_no_partition_of_its_own() {
        let (mut it, _) = ends(&[5, 7], &[9, 9]);
        assert_eq!(it.has_all(&BTreeMap::new()), Ok(true));
        assert_eq!(it.has_all(&BTreeMap::from([(0, 5), (1, 7)])), Ok(true));
        assert_eq!(it.has_all(&BTreeMap::from([(0, 5), (1, 8)])), Ok(false));
        assert_eq!(it.lacks(&BTreeMap::from([(0, 9), (1, 8)])), 5);
        assert_eq!(it.lacks(&BTreeMap::from([(0, 5), (1, 6)])), 0);
        it.end_is_here(1, 9);
        assert_eq!(it.has_all(&BTreeMap::from([(1, 9)])), Ok(true));
        assert_eq!(it.has_all(&BTreeMap::from([(2, 1)])), Err(2));
    }
}
