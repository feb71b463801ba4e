//! The gRPC service (`proto/penstock/v1/generation.proto`): the native routes in another form, with their parameters,
//! limits, records and scheduler. Beside it health and reflection.

mod convert;
mod deadline;
mod health;
mod status;
mod stream;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use futures_util::StreamExt;
use http_body_util::{BodyStream, StreamBody};
use tokio::sync::OwnedSemaphorePermit;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Extensions, Status};
use tonic_health::pb::health_server::HealthServer;
use tonic_reflection::server::Builder;

use self::deadline::Deadline;
use self::health::ServerHealth;
use self::status::fail;
use self::stream::MessageStream;
use super::AppState;
use super::generate::{admitted, tokenizer_error};
use super::native::{Shape, start};
use super::record::Record;
use super::tenant::tenant;
use crate::error::ApiError;
use crate::public_pb as pb;
use crate::public_pb::generation_server::{Generation, GenerationServer};
use crate::tokenize::tokens;
use crate::validation::Draft;

const GENERATE: &str = "/penstock.v1.Generation/Generate";
const GENERATE_STREAM: &str = "/penstock.v1.Generation/GenerateStream";
const TOKENIZE: &str = "/penstock.v1.Generation/Tokenize";
const INFO: &str = "/penstock.v1.Generation/Info";

/// All services. Unknown ones are answered by `unknown_method`.
pub(super) fn routes(app: &AppState) -> axum::Router {
    // Sizes are limited where bodies are read.
    let service = Service {
        app: Arc::clone(app),
    };
    let generation = GenerationServer::new(service).max_decoding_message_size(usize::MAX);
    let generation = Routes::new(generation)
        .into_axum_router()
        .reset_fallback()
        .route_layer(from_fn_with_state(Arc::clone(app), receive));
    let reflection = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let is_valid = "the descriptors were compiled with the code";
    let reflection = Routes::new(reflection().build_v1().expect(is_valid))
        .add_service(reflection().build_v1alpha().expect(is_valid))
        .into_axum_router()
        .reset_fallback()
        .route_layer(from_fn_with_state(Arc::clone(app), until_drain));
    Routes::new(HealthServer::new(ServerHealth::new(app)))
        .into_axum_router()
        .reset_fallback()
        .merge(reflection)
        .merge(generation)
}

/// The answer to a gRPC call of something that is not served.
pub(super) fn unknown_method(path: &str) -> Response {
    Status::unimplemented(format!("no gRPC method `{path}`")).into_http()
}

/// The room that a request's body takes.
#[derive(Clone, Debug)]
struct Room {
    _room: Arc<OwnedSemaphorePermit>,
}

/// Ends the questions of a call with the drain, which waits for running calls; with the last question the call ends too.
async fn until_drain(State(app): State<AppState>, request: Request, next: Next) -> Response {
    let draining = app.draining.clone().cancelled_owned();
    let request = request.map(|body| {
        let frames = BodyStream::new(body).take_until(Box::pin(draining));
        Body::new(StreamBody::new(frames))
    });
    next.run(request).await
}

/// Reads a request to its end, as those of other routes are read: tonic would take as many as are sent.
async fn receive(State(app): State<AppState>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match app.receive(body).await {
        Ok(received) => {
            let room = Arc::new(received.room);
            parts.extensions.insert(Room { _room: room });
            let tokenizes = parts.uri.path() == TOKENIZE;
            let request = Request::from_parts(parts, received.bytes.into());
            let response = next.run(request).await;
            if !tokenizes {
                return response;
            }
            let answer = app.answers.whole(response).await;
            answer.unwrap_or_else(|error| status::status(&error).into_http())
        }
        Err(error) => {
            let mut record = Record::new(&app.metrics, route(parts.uri.path()));
            fail(&mut record, &error).into_http()
        }
    }
}

/// The path as the log names it.
fn route(path: &str) -> &'static str {
    [GENERATE, GENERATE_STREAM, TOKENIZE, INFO]
        .into_iter()
        .find(|route| *route == path)
        .unwrap_or("/penstock.v1.Generation")
}

/// What is asked for, by whom, and until when.
fn lower(
    message: pb::GenerateRequest,
    metadata: &MetadataMap,
    deadline: Deadline,
    streams: bool,
) -> (String, Draft, Shape) {
    let (inputs, mut draft, shape) = convert::lower(message, streams);
    draft.tenant = tenant(metadata.as_ref());
    draft.deadline = deadline.instant();
    (inputs, draft, shape)
}

#[derive(Debug)]
struct Service {
    app: AppState,
}

impl Service {
    async fn whole(
        &self,
        (inputs, draft, shape): (String, Draft, Shape),
        mut extensions: Extensions,
        record: &mut Record,
    ) -> Result<pb::GenerateResponse, ApiError> {
        let running = start(&self.app, inputs, draft, record).await?;
        extensions.remove::<Room>();
        let seed = running.seed;
        let answer = running.collect(record).await?;
        Ok(convert::answer(answer, &shape, seed))
    }
}

#[tonic::async_trait]
impl Generation for Service {
    async fn generate(
        &self,
        request: tonic::Request<pb::GenerateRequest>,
    ) -> Result<tonic::Response<pb::GenerateResponse>, Status> {
        let mut record = Record::new(&self.app.metrics, GENERATE);
        let (metadata, extensions, message) = request.into_parts();
        let answer = async {
            let deadline = Deadline::of(&metadata)?;
            let asked = lower(message, &metadata, deadline, false);
            let whole = self.whole(asked, extensions, &mut record);
            deadline.bound(whole).await
        };
        match answer.await {
            Ok(answer) => Ok(tonic::Response::new(answer)),
            Err(error) => Err(fail(&mut record, &error)),
        }
    }

    type GenerateStreamStream = MessageStream;

    async fn generate_stream(
        &self,
        request: tonic::Request<pb::GenerateRequest>,
    ) -> Result<tonic::Response<MessageStream>, Status> {
        let mut record = Record::new(&self.app.metrics, GENERATE_STREAM);
        let (metadata, extensions, message) = request.into_parts();
        let started = async {
            let deadline = Deadline::of(&metadata)?;
            let (inputs, draft, shape) = lower(message, &metadata, deadline, true);
            let starting = async {
                let mut running = start(&self.app, inputs, draft, &mut record).await?;
                admitted([&mut running]).await?;
                Ok(running)
            };
            Ok::<_, ApiError>((deadline.bound(starting).await?, shape, deadline))
        };
        let started = started.await;
        drop(extensions);
        match started {
            Ok((running, shape, deadline)) => {
                let stream = MessageStream::new(running, shape, deadline, record);
                Ok(tonic::Response::new(stream))
            }
            Err(error) => Err(fail(&mut record, &error)),
        }
    }

    /// As `/tokenize`: neither counted nor logged, since nothing is generated.
    async fn tokenize(
        &self,
        request: tonic::Request<pb::TokenizeRequest>,
    ) -> Result<tonic::Response<pb::TokenizeResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let job = move |tokenizer: &tokenizers::Tokenizer| {
            let tokens = tokens(tokenizer, &message.inputs, true);
            let tokens = tokens.map_err(|error| tokenizer_error("inputs", &error))?;
            Ok::<_, ApiError>(convert::tokens(tokens))
        };
        let answer = async {
            self.app.ready()?;
            let tokens = async { self.app.tokenizers.run(job).await? };
            Deadline::of(&metadata)?.bound(tokens).await
        };
        let answer = answer.await;
        drop(extensions);
        answer
            .map(tonic::Response::new)
            .map_err(|error| status::status(&error))
    }

    async fn info(
        &self,
        _request: tonic::Request<pb::InfoRequest>,
    ) -> Result<tonic::Response<pb::InfoResponse>, Status> {
        Ok(tonic::Response::new(convert::info(self.app.info())))
    }
}
