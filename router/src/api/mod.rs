//! The HTTP side, gRPC included: one file or folder per dialect, each with its types and how its requests, answers and
//! errors look; shared between them are bodies, streams, records and the way to the engine. No dialect knows another,
//! and none knows seats, blocks or plans.

mod body;
mod course;
mod fallback;
mod generate;
mod grpc;
mod headers;
mod health;
mod native;
mod openai;
mod pieces;
mod record;
mod respond;
mod sagemaker;
mod sse;
mod tenant;
mod tgi;
mod watched;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{HttpConfig, LimitsConfig};
use crate::driver::{EngineFacts, EngineStatus, SharedStats};
use crate::error::{ApiError, ErrorKind, Progress};
use crate::metrics::Metrics;
use crate::model::Model;
use crate::names::ModelNames;
use crate::stream::Generator;
use crate::tokenizer::TokenizerPool;

use respond::ErrorStyle;

pub use body::Bodies;
pub use pieces::Answers;

/// What every handler sees.
pub(crate) type AppState = Arc<App>;

/// Seconds after which a client may try again while the engine is starting.
const RETRY_WHILE_STARTING: u32 = 5;

/// The parts that handlers work with.
#[derive(Debug)]
pub struct App {
    pub limits: LimitsConfig,
    pub http: HttpConfig,
    pub names: ModelNames,
    pub bodies: Bodies,
    pub answers: Answers,
    pub model: Model,
    pub tokenizers: TokenizerPool,
    pub generator: Generator,
    pub status: watch::Receiver<EngineStatus>,
    pub stats: SharedStats,
    pub metrics: Arc<Metrics>,
    /// No new work once it is cancelled.
    pub draining: CancellationToken,
}

impl App {
    /// The engine's facts, or why no request can be taken.
    fn ready(&self) -> Result<Arc<EngineFacts>, ApiError> {
        if self.draining.is_cancelled() {
            return Err(not_ready("the server is shutting down"));
        }
        // The last status says nothing once nobody is left to change it.
        if self.status.has_changed().is_err() {
            return Err(not_ready(
                "the server has lost its engine for good and is about to end",
            ));
        }
        match &*self.status.borrow() {
            EngineStatus::Ready(facts) => Ok(Arc::clone(facts)),
            EngineStatus::Starting { phase, fraction } => Err(starting(phase, *fraction)),
            EngineStatus::Down { .. } => Err(not_ready(
                "the model's worker has stopped and is being restarted",
            )),
        }
    }
}

fn not_ready(message: &str) -> ApiError {
    ApiError::new(ErrorKind::NotReady, message).retry_after(RETRY_WHILE_STARTING)
}

fn starting(phase: &str, fraction: f32) -> ApiError {
    let percent = fraction * 100.0;
    not_ready(&format!(
        "the model is not ready yet: {phase}, {percent:.0} %"
    ))
    .with_progress(phase, fraction)
}

/// The answer to a request for `path` while the start is that far.
pub(crate) fn starting_response(path: &str, progress: &Progress) -> Response {
    ErrorStyle::of_path(path).response(&starting(&progress.phase, progress.fraction))
}

/// A path, its methods as `Allow` lists them, and who serves it.
struct Route {
    path: &'static str,
    methods: &'static str,
    handlers: fn() -> MethodRouter<AppState>,
}

/// The one list of routes: the router is built from it, and the answers to unknown ones name what is in it.
const ROUTES: [Route; 13] = [
    route("/", "GET, POST", || get(health::health).post(tgi::compat)),
    route("/generate", "POST", || post(tgi::generate)),
    route("/generate_stream", "POST", || post(tgi::generate_stream)),
    route("/v1/chat/completions", "POST", || {
        post(openai::chat::handle)
    }),
    route("/v1/completions", "POST", || {
        post(openai::completions::handle)
    }),
    route("/tokenize", "POST", || post(tgi::tokenize)),
    route("/chat_tokenize", "POST", || post(openai::tokenize::handle)),
    route("/invocations", "POST", || post(sagemaker::invocations)),
    route("/ping", "GET", || get(health::health)),
    route("/v1/models", "GET", || get(openai::models::list)),
    route("/health", "GET", || get(health::health)),
    route("/info", "GET", || get(health::info)),
    route("/metrics", "GET", || get(health::metrics)),
];

const fn route(
    path: &'static str,
    methods: &'static str,
    handlers: fn() -> MethodRouter<AppState>,
) -> Route {
    Route {
        path,
        methods,
        handlers,
    }
}

/// Every path with its methods. A test asks each for each.
pub fn routes() -> impl Iterator<Item = (&'static str, &'static str)> {
    ROUTES.iter().map(|route| (route.path, route.methods))
}

/// All routes, and the gRPC services beside them.
pub fn router(app: &AppState) -> Router {
    let router = ROUTES.iter().fold(Router::new(), |router, route| {
        router.route(route.path, (route.handlers)())
    });
    router
        .fallback(fallback::unknown_route)
        .method_not_allowed_fallback(fallback::wrong_method)
        // Bodies are limited where they are read, with an answer that names the limit.
        .layer(DefaultBodyLimit::disable())
        .with_state(Arc::clone(app))
        .merge(grpc::routes(app))
}
