//! A transformation server that was running already (`feast serve_transformations`): one HTTP/2
//! connection, made when it is first needed and again when it broke.

use std::sync::Arc;
use std::time::Duration;

use model::{Error, Kind, Result};
use proto::feast::serving::{TransformFeaturesRequest, TransformFeaturesResponse};
use rpc::stubs::feast::serving::transformation_service_client::TransformationServiceClient;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use super::Settings;
use super::call::{refused, too_long};

/// How many calls are under way at once: Feast's server has ten threads.
const AT_ONCE: usize = 10;

/// The server.
#[derive(Debug)]
pub(super) struct Remote {
    address: String,
    client: TransformationServiceClient<Channel>,
    deadline: Duration,
    queue: usize,
    free: Arc<Semaphore>,
    waiting: super::pool::Waiting,
}

impl Remote {
    /// For `host:port`. Must be called in a tokio runtime.
    pub(super) fn new(address: &str, settings: &Settings) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|e| Error::invalid(format!("transformations.address: '{address}' is not host:port: {e}")))?;
        let channel = endpoint.connect_timeout(settings.deadline).connect_lazy();
        let client = TransformationServiceClient::new(channel)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        Ok(Self {
            address: address.to_owned(),
            client,
            deadline: settings.deadline,
            queue: settings.queue,
            free: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: super::pool::Waiting::default(),
        })
    }

    /// Makes one call.
    pub(super) async fn run(&self, request: TransformFeaturesRequest) -> Result<TransformFeaturesResponse> {
        let _turn = {
            let _waiting = self.waiting.enter(self.queue)?;
            let busy =
                || Error::new(Kind::Unavailable, format!("the transformation server at {} is busy", self.address));
            timeout(self.deadline, self.free.acquire()).await.map_err(|_| busy())?.map_err(|_| busy())?
        };
        let mut client = self.client.clone();
        match timeout(self.deadline, client.transform_features(request)).await {
            Err(_) => Err(too_long(self.deadline)),
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(refused(&status).unwrap_or_else(|| {
                let message = format!("the transformation server at {} cannot be reached", self.address);
                Error::new(Kind::Unavailable, message).with_cause(status)
            })),
        }
    }
}
