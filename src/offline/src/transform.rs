//! The functions of on-demand feature views: Substrait plans run here, Python ones in other processes
//! over `feast.serving.TransformationService`. Nothing is unpickled in this process.
//!
//! Knows no store and no request: it is handed columns and hands columns back.

mod call;
mod columns;
mod pool;
mod remote;
mod substrait;
mod worker;

use std::path::PathBuf;
use std::time::Duration;

use model::ports::{BoxFuture, NamedColumn, Transformation, Transformer};
use model::registry::{Function, OnDemand, View};
use model::{Error, Kind, Result};
use tokio::sync::OnceCell;

use crate::metrics;
use call::Runner;

/// Where Python functions run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Python {
    /// In workers of our own.
    Workers {
        /// The interpreter; `feast[grpcio]` is installed in it.
        interpreter: PathBuf,
        /// How many.
        workers: usize,
        /// The memory that one may have, bytes.
        memory_bytes: u64,
    },
    /// In a server that is running already.
    Address(
        /// `host:port`.
        String,
    ),
}

/// How Python functions are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where.
    pub python: Python,
    /// How long one call may take, and how long one may wait for its turn.
    pub deadline: Duration,
    /// How many calls may wait.
    pub queue: usize,
}

/// Runs the functions of on-demand views.
#[derive(Debug)]
pub struct Transformers {
    python: Option<Lazy>,
    substrait: substrait::Substrait,
}

/// What runs Python functions, once it is set up.
#[derive(Debug)]
struct Lazy {
    settings: Settings,
    runner: OnceCell<Runner>,
}

impl Lazy {
    async fn runner(&self) -> Result<&Runner> {
        self.runner.get_or_try_init(|| async { Runner::start(&self.settings) }).await
    }
}

impl Transformers {
    /// Sets it up and starts the workers, if any: in the background, so that a server that has to
    /// answer other requests need not wait for Python. Must be called in a tokio runtime.
    ///
    /// Errors: a directory that cannot be made, an address that is none.
    pub fn start(python: Option<Settings>) -> Result<Self> {
        let started = |settings| -> Result<Lazy> {
            let runner = OnceCell::new_with(Some(Runner::start(&settings)?));
            Ok(Lazy { settings, runner })
        };
        Ok(Self { python: python.map(started).transpose()?, substrait: substrait::Substrait::default() })
    }

    /// Starts the workers when the first function is to be run: for a process that may end without one.
    pub fn when_needed(python: Option<Settings>) -> Self {
        let python = python.map(|settings| Lazy { settings, runner: OnceCell::new() });
        Self { python, substrait: substrait::Substrait::default() }
    }

    async fn run(&self, call: &Transformation, on_demand: &OnDemand) -> Result<Vec<NamedColumn>> {
        match &on_demand.function {
            Function::Python { pandas } => match &self.python {
                Some(python) => python.runner().await?.run(call, on_demand, *pandas).await,
                None => Err(Error::new(
                    Kind::Unsupported,
                    "its function is Python, and this server runs none: name an interpreter that has feast[grpcio] in \
                     larder.yaml (transformations: {python: /path/to/python}), or a transformation server \
                     (transformations: {address: host:port})",
                )),
            },
            Function::Substrait(plan) => self.substrait.run(call, plan).await,
            Function::Other(why) => Err(Error::new(Kind::Unsupported, why.clone())),
        }
    }
}

impl Transformer for Transformers {
    fn transform(&self, call: Transformation) -> BoxFuture<'_, Result<Vec<NamedColumn>>> {
        Box::pin(async move {
            let Some(on_demand) = &call.view.on_demand else {
                return Err(Error::invalid(format!("Feature view {} is not computed on demand", call.view.name)));
            };
            let counted = metrics::Transformed::begin(match on_demand.function {
                Function::Substrait(_) => "substrait",
                _ => "python",
            });
            let result = self.run(&call, on_demand).await;
            counted.end(&result);
            result.map_err(|e| named(&call.view.name, &e))
        })
    }

    fn ready<'a>(&'a self, view: &'a View) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let is_python = view.on_demand.as_ref().is_some_and(|o| matches!(o.function, Function::Python { .. }));
            match self.python.as_ref().filter(|_| is_python) {
                Some(python) => python.runner().await?.ready().await.map_err(|e| named(&view.name, &e)),
                None => Ok(()),
            }
        })
    }
}

/// An error with the view's name before it.
fn named(view: &str, error: &Error) -> Error {
    let message = format!("On demand feature view {view}: {}", error.message());
    let named = Error::of_class(error.kind(), error.class(), message);
    match std::error::Error::source(error) {
        Some(cause) => named.with_cause(std::io::Error::other(cause.to_string())),
        None => named,
    }
}
