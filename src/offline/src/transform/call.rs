//! One call of a Python function over `feast.serving.TransformationService`, whoever serves it.

use bytes::Bytes;
use model::ports::{NamedColumn, Transformation};
use model::registry::OnDemand;
use model::{Error, Kind, Result, ValueType};
use proto::feast::serving::value_type::Value as Arrow;
use proto::feast::serving::{TransformFeaturesRequest, TransformFeaturesResponse, ValueType as Table};
use tonic::{Code, Status};

use super::columns::{decode, encode, from_batch, to_batch};
use super::{Python, Settings, pool, remote};

/// Who runs Python functions.
#[derive(Debug)]
pub(super) enum Runner {
    /// Workers of our own.
    Pool(pool::Pool),
    /// A server that was running already.
    Remote(Box<remote::Remote>),
}

impl Runner {
    /// Starts the workers in the background, or finds the server. Must be called in a tokio runtime.
    ///
    /// Errors: a directory that cannot be made, an address that is none.
    pub(super) fn start(settings: &Settings) -> Result<Self> {
        Ok(match &settings.python {
            Python::Workers { .. } => Self::Pool(pool::Pool::start(settings.clone())?),
            Python::Address(address) => Self::Remote(Box::new(remote::Remote::new(address, settings)?)),
        })
    }

    /// Waits until a worker has started.
    ///
    /// Errors: `Unavailable` where none does.
    pub(super) async fn ready(&self) -> Result<()> {
        match self {
            Self::Pool(pool) => pool.ready().await,
            Self::Remote(_) => Ok(()),
        }
    }

    /// Runs a view's function.
    pub(super) async fn run(
        &self,
        call: &Transformation,
        on_demand: &OnDemand,
        pandas: bool,
    ) -> Result<Vec<NamedColumn>> {
        let table = to_batch(&call.columns, call.rows, matches!(self, Self::Pool(_)))?;
        let request = TransformFeaturesRequest {
            on_demand_feature_view_name: call.view.name.clone(),
            project: call.view.project.clone(),
            transformation_input: Some(Table { value: Some(Arrow::ArrowValue(encode(&table)?)) }),
        };
        let mut types: Vec<(String, ValueType)> =
            call.view.features.iter().map(|f| (f.name.clone(), f.value_type)).collect();
        let keys: Vec<&str> = call.view.join_keys.iter().map(|k| k.name.as_str()).collect();
        if call.writing {
            types.extend(call.view.join_keys.iter().map(|k| (k.name.clone(), k.value_type)));
        }
        let answer = match self {
            Self::Pool(pool) => {
                let file = pool.spool(&on_demand.message)?;
                let about = serde_json::json!({ "file": file, "write": call.writing, "keys": keys });
                pool.run(request, about.to_string().into_bytes()).await?
            }
            Self::Remote(_) if !pandas => {
                return Err(Error::new(
                    Kind::Unsupported,
                    "its function is of mode python, which Feast's transformation server does not run: let larder run \
                     it (transformations: {python: /path/to/python})",
                ));
            }
            Self::Remote(remote) => remote.run(request).await?,
        };
        from_batch(&decode(table_of(answer)?)?, &call.view.name, &types)
    }
}

fn table_of(answer: TransformFeaturesResponse) -> Result<Bytes> {
    match answer.transformation_output.and_then(|t| t.value) {
        Some(Arrow::ArrowValue(bytes)) => Ok(bytes.into()),
        None => Err(Error::new(Kind::Unavailable, "the transformation server answered without a table")),
    }
}

/// What a failed call means. `None` where the connection broke: the caller knows why.
pub(super) fn refused(status: &Status) -> Option<Error> {
    match status.code() {
        // a worker's own word, or what Feast's server says where a function raised
        Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition => {
            Some(Error::invalid(status.message().to_owned()))
        }
        // with a cause it is not the server's word, but the connection's end
        Code::Unknown if std::error::Error::source(status).is_none() => Some(Error::invalid(format!(
            "its function failed: {}",
            status.message().trim_start_matches("Exception calling application: ")
        ))),
        Code::ResourceExhausted => Some(Error::new(Kind::TooLarge, status.message().to_owned())),
        _ => None,
    }
}

/// A call that ran into its deadline.
pub(super) fn too_long(deadline: std::time::Duration) -> Error {
    Error::invalid(format!(
        "its function took longer than {} ms (transformations.deadline_ms): ask for fewer rows, or mend it",
        deadline.as_millis()
    ))
}
