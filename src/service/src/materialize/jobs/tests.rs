//! Jobs over a store in memory that outlives them, and that can be full.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use model::ports::BoxFuture;

use super::*;

#[derive(Default)]
struct Memory {
    records: Mutex<BTreeMap<String, Bytes>>,
    full: AtomicBool,
}

impl JobStore for Memory {
    fn load(&self) -> BoxFuture<'_, Result<Vec<(String, Bytes)>>> {
        let records = self.records.lock().expect("not poisoned").clone();
        Box::pin(async { Ok(records.into_iter().collect()) })
    }

    fn put<'a>(&'a self, id: &'a str, record: Bytes) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if self.full.load(Ordering::SeqCst) {
                return Err(Error::new(Kind::Unavailable, "the disk is full"));
            }
            self.records.lock().expect("not poisoned").insert(id.to_owned(), record);
            Ok(())
        })
    }

    fn delete<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<()>> {
        self.records.lock().expect("not poisoned").remove(id);
        Box::pin(async { Ok(()) })
    }
}

fn record(id: &str, views: &[&str], accepted_us: i64) -> Record {
    let part = |view: &&str| Part { view: (*view).to_owned(), start_us: 1, end_us: 2, ..Part::default() };
    let parts = views.iter().map(part).collect();
    Record { id: id.to_owned(), project: "p".to_owned(), parts, accepted_us, interrupted: 0 }
}

async fn open(memory: &Arc<Memory>, now: i64) -> (Jobs, Vec<Handle>) {
    let (jobs, open, _) = Jobs::open(Some(memory.clone()), Timestamp(now)).await.expect("opens");
    (jobs, open)
}

fn states(jobs: &Jobs) -> Vec<(String, State)> {
    jobs.list("p").into_iter().map(|progress| (progress.view, progress.state)).collect()
}

async fn begin(jobs: &Jobs, handle: &Handle, at: usize) {
    jobs.change(handle, at, |part| part.set_state(State::Running)).expect("is there");
    jobs.save(handle).await;
}

async fn end(jobs: &Jobs, handle: &Handle, at: usize) {
    jobs.change(handle, at, |part| part.finish(State::Done, Timestamp(9), None)).expect("is there");
    jobs.save(handle).await;
}

#[tokio::test]
async fn what_ended_is_kept_and_what_did_not_goes_on_until_it_was_interrupted_too_often() {
    let memory = Arc::new(Memory::default());
    let (jobs, open_jobs) = open(&memory, 10).await;
    assert!(open_jobs.is_empty());
    let handle = jobs.add(record("one", &["a", "b", "c"], 5)).await.expect("is free");
    let other = jobs.add(record("two", &["d"], 4)).await.expect("is free");
    begin(&jobs, &handle, 0).await;
    end(&jobs, &handle, 0).await;
    for time in 1..=INTERRUPTIONS {
        let (jobs, goes_on) = open(&memory, 20).await;
        let ids: Vec<&str> = goes_on.iter().map(|handle| handle.id.as_str()).collect();
        assert_eq!(ids, ["two", "one"], "the oldest first, after {} interruptions", time - 1);
        let waiting = [("a", State::Done), ("b", State::Waiting), ("c", State::Waiting), ("d", State::Waiting)];
        assert_eq!(states(&jobs), waiting.map(|(view, state)| (view.to_owned(), state)));
        // one of them is begun, and then there is no more server
        begin(&jobs, &goes_on[1], 1).await;
    }
    let (jobs, goes_on) = open(&memory, 30).await;
    assert_eq!(goes_on.iter().map(|handle| handle.id.as_str()).collect::<Vec<_>>(), ["two"]);
    let ended = [("a", State::Done), ("b", State::Failed), ("c", State::Failed), ("d", State::Waiting)];
    assert_eq!(states(&jobs), ended.map(|(view, state)| (view.to_owned(), state)));
    assert!(jobs.list("p")[1].error.as_ref().is_some_and(|why| why.contains("3 times")));
    assert!(jobs.list("q").is_empty());
    drop(other);
}

#[tokio::test]
async fn a_view_is_in_one_job_at_a_time_and_a_job_that_cannot_be_written_down_is_none() {
    let memory = Arc::new(Memory::default());
    let (jobs, _) = open(&memory, 10).await;
    let first = jobs.add(record("one", &["a", "b"], 1)).await.expect("is free");
    let refused = jobs.add(record("two", &["b", "c"], 2)).await.expect_err("b is busy");
    assert_eq!(refused.kind(), Kind::Conflict);
    assert!(refused.message().contains("[\"b\"]"), "{}", refused.message());
    let elsewhere = Record { project: "q".to_owned(), ..record("three", &["b"], 3) };
    jobs.add(elsewhere).await.expect("another project's view");
    end(&jobs, &first, 1).await;
    memory.full.store(true, Ordering::SeqCst);
    assert_eq!(jobs.add(record("four", &["b"], 4)).await.expect_err("the disk is full").kind(), Kind::Unavailable);
    memory.full.store(false, Ordering::SeqCst);
    jobs.add(record("five", &["b"], 5)).await.expect("nothing of it was left");
    let kept: Vec<String> = memory.records.lock().expect("not poisoned").keys().cloned().collect();
    assert_eq!(kept, ["five", "one", "three"]);
}

#[tokio::test]
async fn the_oldest_that_ended_are_forgotten_and_open_ones_never() {
    let memory = Arc::new(Memory::default());
    let (jobs, _) = open(&memory, 10).await;
    jobs.add(record("open", &["open"], 0)).await.expect("is free");
    for n in 0..KEPT + 50 {
        let handle = jobs.add(record(&format!("{n:04}"), &["v"], 1)).await.expect("is free");
        end(&jobs, &handle, 0).await;
    }
    let ids: Vec<String> = jobs.list("p").into_iter().map(|progress| progress.job).collect();
    assert_eq!((ids.len(), ids[0].as_str(), ids[KEPT].as_str()), (KEPT + 1, "0249", "open"));
    assert_eq!(memory.records.lock().expect("not poisoned").len(), KEPT + 1);
}

#[tokio::test]
async fn to_cancel_waits_for_the_end() {
    let memory = Arc::new(Memory::default());
    let (jobs, _) = open(&memory, 10).await;
    let handle = jobs.add(record("one", &["a"], 1)).await.expect("is free");
    assert_eq!(jobs.cancel("q", "one").await.expect_err("is of another project").kind(), Kind::NotFound);
    let work = async {
        handle.cancel.cancelled().await;
        jobs.change(&handle, 0, |part| part.finish(State::Cancelled, Timestamp(11), None));
        jobs.leave(&handle).await;
    };
    let (told, ()) = tokio::join!(jobs.cancel("p", "one"), work);
    assert_eq!(told.expect("is open").iter().map(|p| p.state).collect::<Vec<_>>(), [State::Cancelled]);
    assert_eq!(jobs.cancel("p", "one").await.expect_err("has ended").kind(), Kind::Conflict);
}
