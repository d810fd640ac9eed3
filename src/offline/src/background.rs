//! Threads for long work, apart from those that answer online requests, which get the processor first. Knows no work.

use std::io;

use thread_priority::{ThreadPriority, ThreadPriorityValue, set_current_thread_priority};
use tokio::runtime::{Builder, Handle, Runtime};

/// Between 0 and 99, where half is what a thread has by itself: about nice 5.
const PRIORITY: u8 = 36;

/// A runtime of its own; dropping it stops what runs there.
#[derive(Debug)]
pub(crate) struct Background {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl Background {
    /// As many threads as there are cores, since they give way to others; where threads cannot be told to, half as many,
    /// so that the other half of the cores is there for requests.
    ///
    /// Errors: threads that cannot be started.
    pub(crate) fn new() -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // on a thread of its own: there is no way back
        let gives_way = std::thread::Builder::new().spawn(give_way)?.join().unwrap_or(false);
        if !gives_way {
            tracing::warn!("threads cannot be given a lower priority here: offline work gets half of the cores");
        }
        let threads = if gives_way { cores } else { cores / 2 };
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(threads.max(1)).thread_name("larder-offline").enable_all();
        builder.on_thread_start(|| {
            give_way();
        });
        let runtime = builder.build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    /// Where to spawn.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// Lowers the priority of this thread, where the system knows that of single threads. Gives whether it did.
fn give_way() -> bool {
    let lower = ThreadPriorityValue::try_from(PRIORITY).map(ThreadPriority::Crossplatform);
    cfg!(target_os = "linux") && lower.is_ok_and(|lower| set_current_thread_priority(lower).is_ok())
}

impl Drop for Background {
    fn drop(&mut self) {
        // A runtime that waits for its threads must not be dropped by a task.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
