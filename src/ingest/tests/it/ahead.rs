//! Batches that are decoded while the one before them is applied: whatever happens until their turn comes, what lands is
//! what would be decoded then. Knows no Kafka.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ingest::ahead::{Ahead, View, With, prepare};
use ingest::decode::avro::Writers;
use ingest::feed::Feed;
use ingest::message::{Body, Message};
use ingest::pipeline::{Batch, Progress};
use model::Timestamp;

use crate::support::{SECOND, Stream, T0};

fn feed(name: &'static str) -> Arc<Feed> {
    Arc::new(Stream::windowed(name, "localhost:9092", "t").feed())
}

fn view(member: u64, feed: &Arc<Feed>) -> View {
    View { member, feed: Arc::clone(feed), progress: BTreeMap::new(), elsewhere: BTreeSet::new() }
}

/// Events a second apart, and one message that is none.
fn messages(partition: i32, offsets: std::ops::Range<i64>) -> Vec<Message> {
    let message = |offset: i64| {
        let ts = Timestamp(T0 + offset * SECOND).to_rfc3339();
        let text = serde_json::json!({"user": format!("u{}", offset % 3), "amount": offset, "ts": ts}).to_string();
        let text = if offset % 7 == 3 { "no event".to_owned() } else { text };
        Message { partition, offset, body: Body::of(text), ..Message::default() }
    };
    offsets.map(message).collect()
}

fn with() -> With {
    With { writers: Writers::new(), now: Timestamp(T0 + 1000 * SECOND), skew_us: 0 }
}

/// What an application leaves of where views stand.
fn applied(views: &mut [View], landed: &[(u64, Batch)]) {
    for (view, (member, batch)) in views.iter_mut().zip(landed) {
        assert_eq!(view.member, *member);
        view.progress.extend(batch.progress.iter().map(|(partition, at)| (*partition, *at)));
    }
}

fn same(landed: &[(u64, Batch)], views: &[View], messages: &[Message]) {
    let now = prepare(views, messages, &with());
    assert_eq!(landed.len(), now.len());
    for ((_, landed), now) in landed.iter().zip(&now) {
        assert_eq!(landed.events, now.events);
        assert_eq!(landed.origins, now.origins);
        assert_eq!(landed.dead, now.dead);
        assert_eq!(landed.progress, now.progress);
        assert_eq!((landed.messages, &landed.late), (now.messages, &now.late));
    }
}

#[test]
fn batches_land_in_their_order_behind_one_another() {
    let feeds = [feed("a"), feed("b")];
    let mut views = vec![view(1, &feeds[0]), view(2, &feeds[1])];
    // the second stands in the middle of the second batch
    views[1].progress.insert(0, Progress { next: 15, max_event: Timestamp(T0) });
    let mut ahead = Ahead::start("t").expect("a thread");
    let batches: Vec<Vec<Message>> = (0..6).map(|n| messages(0, n * 10..n * 10 + 10)).collect();
    let mut events = 0;
    for at in 0..=batches.len() {
        let landed = match batches.get(at) {
            Some(batch) => ahead.hand_over(batch.clone(), 1, &views, with(), |_, _| true),
            None => ahead.land(&views, |_, _| true),
        };
        let landed = landed.expect("decoded");
        assert!(!ahead.is_astray(), "what was assumed is so");
        match at.checked_sub(1) {
            None => assert!(landed.is_empty(), "nothing was before it"),
            Some(before) => same(&landed, &views, &batches[before]),
        }
        applied(&mut views, &landed);
        for (_, batch) in landed {
            events += batch.events.len();
            ahead.spend(batch);
        }
    }
    assert!(!ahead.is_waiting());
    let good = |from: i64| (from..60).filter(|offset| offset % 7 != 3).count();
    assert_eq!(events, good(0) + good(15));
    assert!(views.iter().all(|view| view.progress[&0].next == 60));
}

#[test]
fn what_was_polled_of_a_partition_that_went_does_not_land() {
    let feed = feed("a");
    let views = [view(1, &feed)];
    let mut ahead = Ahead::start("t").expect("a thread");
    let both = [messages(0, 0..5), messages(1, 100..105)].concat();
    ahead.hand_over(both, 7, &views, with(), |_, _| true).expect("taken");
    let landed = ahead.land(&views, |partition, epoch| partition != 1 || epoch > 7).expect("decoded");
    same(&landed, &views, &messages(0, 0..5));
    assert_eq!(landed[0].1.progress.keys().collect::<Vec<_>>(), [&0], "nothing is told of the other's position");
    assert!(landed[0].1.origins.iter().all(|(partition, _)| *partition == 0));
}

#[test]
fn what_a_view_reads_by_itself_or_has_does_not_land() {
    let (one, two) = (feed("a"), feed("b"));
    let before = [view(1, &one), view(2, &two)];
    let batch = messages(0, 0..20);
    // one went back and reads by itself, the other was given up, and a third joined and has some of it
    let mut behind = view(1, &one);
    behind.elsewhere.insert(0);
    let mut third = view(3, &two);
    third.progress.insert(0, Progress { next: 12, max_event: Timestamp(T0) });
    let after = [behind, third];
    let mut ahead = Ahead::start("t").expect("a thread");
    ahead.hand_over(batch.clone(), 1, &before, with(), |_, _| true).expect("taken");
    let landed = ahead.land(&after, |_, _| true).expect("decoded");
    assert_eq!(landed.iter().map(|(member, _)| *member).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(landed[0].1.messages, 0);
    assert_eq!(landed[1].1.messages, 8);
    same(&landed, &after, &batch);
}

#[test]
fn what_follows_a_batch_that_was_decoded_again_is_right_too() {
    let feed = feed("a");
    let mut views = [view(1, &feed)];
    let mut ahead = Ahead::start("t").expect("a thread");
    ahead.hand_over(messages(0, 0..10), 1, &views, with(), |_, _| true).expect("taken");
    // the position is another one than when the first was handed over
    views[0].progress.insert(0, Progress { next: 5, max_event: Timestamp(T0 + 500 * SECOND) });
    let landed = ahead.hand_over(messages(0, 10..20), 1, &views, with(), |_, _| true).expect("decoded");
    assert!(ahead.is_astray(), "the second assumes where the first was to end");
    assert_eq!(landed[0].1.messages, 5);
    same(&landed, &views, &messages(0, 0..10));
    applied(&mut views, &landed);
    let landed = ahead.land(&views, |_, _| true).expect("decoded");
    same(&landed, &views, &messages(0, 10..20));
    assert_eq!(
        landed[0].1.late[&0],
        landed[0].1.events.len(),
        "all of them are behind the watermark that is known now"
    );
    applied(&mut views, &landed);
    assert!(!ahead.is_astray());
    ahead.hand_over(messages(0, 20..30), 1, &views, with(), |_, _| true).expect("taken");
    same(&ahead.land(&views, |_, _| true).expect("decoded"), &views, &messages(0, 20..30));
}
