//! `grpc.health.v1`: serving while `/health` is 200. Answers from memory, and needs nobody to keep it up to date.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::api::AppState;
use crate::driver::EngineStatus;
use crate::public_pb::generation_server::SERVICE_NAME;

#[derive(Debug)]
pub(super) struct ServerHealth {
    app: AppState,
}

impl ServerHealth {
    pub(super) fn new(app: &AppState) -> Self {
        Self {
            app: Arc::clone(app),
        }
    }
}

/// The server as a whole, and the one service that needs the model.
fn is_known(service: &str) -> bool {
    service.is_empty() || service == SERVICE_NAME
}

fn serving(app: &AppState) -> ServingStatus {
    match app.ready() {
        Ok(_) => ServingStatus::Serving,
        Err(_) => ServingStatus::NotServing,
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[tonic::async_trait]
impl Health for ServerHealth {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if is_known(&service) {
            Ok(Response::new(response(serving(&self.app))))
        } else {
            Err(Status::not_found("no such service"))
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let watching = Watching {
            app: Arc::clone(&self.app),
            status: self.app.status.clone(),
            is_known: is_known(&request.into_inner().service),
            last: None,
            has_ended: false,
        };
        Ok(Response::new(Box::pin(unfold(watching, Watching::next))))
    }
}

/// A client that is told of every change.
struct Watching {
    app: AppState,
    status: watch::Receiver<EngineStatus>,
    is_known: bool,
    last: Option<ServingStatus>,
    has_ended: bool,
}

impl Watching {
    /// The next change. A drain waits for running calls, so it ends this one.
    async fn next(mut self) -> Option<(Result<HealthCheckResponse, Status>, Self)> {
        if self.has_ended {
            return None;
        }
        loop {
            let is_gone = self.status.has_changed().is_err();
            self.status.mark_unchanged();
            let now = if self.is_known {
                serving(&self.app)
            } else {
                ServingStatus::ServiceUnknown
            };
            if self.last.replace(now) != Some(now) {
                return Some((Ok(response(now)), self));
            }
            if is_gone || self.app.draining.is_cancelled() {
                self.has_ended = true;
                let end = Status::unavailable("the server is shutting down");
                return Some((Err(end), self));
            }
            tokio::select! {
                _ = self.status.changed() => {}
                () = self.app.draining.cancelled() => {}
            }
        }
    }
}
