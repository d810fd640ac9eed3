//! Threads for long work, apart from those that answer requests. Knows no work.

use tokio::runtime::{Builder, Runtime};

/// A runtime of its own; dropping it stops what runs there.
#[derive(Debug)]
pub(crate) struct Background {
    runtime: Option<Runtime>,
}

impl Background {
    /// Half of the cores, so that the other half is always there for requests.
    ///
    /// Errors: threads that cannot be started.
    pub(crate) fn new() -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads((cores / 2).max(1)).thread_name("larder-background").enable_all();
        Ok(Self { runtime: Some(builder.build()?) })
    }

    /// Runs it there; nobody waits for its end.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(work);
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // A runtime that waits for its threads must not be dropped by a task.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
