//! The router put together: port, model, driver, text workers, routes. [`serve`] runs it; tests take the parts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics_exporter_prometheus::BuildError;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::api::{self, App, Bodies};
use crate::config::{LimitsConfig, RouterConfig};
use crate::driver::{self, DriverConfig};
use crate::engine::Connector;
use crate::engine::grpc::GrpcConnector;
use crate::event::Failure;
use crate::metrics::Metrics;
use crate::model::{Model, ModelError};
use crate::server::{self, Drain, ListenError};
use crate::stream::Generator;
use crate::tokenizer::TokenizerPool;

/// Steps' deliveries that wait for the text worker; beyond that the driver makes no more plans.
const DELIVERIES_CAPACITY: usize = 64;
/// Between two rounds of moving histogram samples into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);
/// Bucket edges of token counts where neither flags nor config.json say how long texts may be.
const DEFAULT_POSITIONS: usize = 4096;

/// Why a router does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("reading the model folder panicked")]
    ModelPanic,
    #[error("cannot make the metrics: {0}")]
    Metrics(#[from] BuildError),
    #[error("cannot start {what}: {source}")]
    Thread {
        what: &'static str,
        source: std::io::Error,
    },
}

impl ServeError {
    /// Of the process, by the launcher's convention: 1 a later try may succeed, 2 wrong usage, 3 not this model.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Listen(_) | Self::Metrics(_) | Self::Thread { .. } => 1,
            Self::Usage(_) => 2,
            Self::Model(_) | Self::ModelPanic => 3,
        }
    }
}

/// A router that is not bound to a port. Needs a Tokio runtime around it.
#[derive(Debug)]
pub struct Router {
    app: Arc<App>,
}

impl Router {
    /// Starts driver, tokenizer threads and text worker.
    pub fn start<C>(config: &RouterConfig, model: Model, connector: C) -> Result<Self, ServeError>
    where
        C: Connector + Send + 'static,
    {
        check_limits(&config.limits)?;
        let limits = &config.limits;
        let positions = model.max_positions.unwrap_or(DEFAULT_POSITIONS);
        let max_total_tokens = limits.max_total_tokens.unwrap_or(positions);
        let max_input_tokens = limits.max_input_tokens.unwrap_or(max_total_tokens);
        let metrics = Arc::new(Metrics::new(max_input_tokens, max_total_tokens)?);
        let (deliveries, outbox) = mpsc::channel(DELIVERIES_CAPACITY);
        let failed = |what| move |source| ServeError::Thread { what, source };
        let driver = driver::spawn(DriverConfig::from(config), connector, deliveries)
            .map_err(failed("the driver's thread"))?;
        let tokenizers = TokenizerPool::new(&model.tokenizer, limits.validation_workers)
            .map_err(failed("the tokenizer threads"))?;
        let generator = Generator::new(
            driver.commands,
            outbox,
            Arc::clone(&model.vocabulary),
            Arc::clone(&metrics),
            limits.max_concurrent_requests,
        );
        let app = App {
            limits: limits.clone(),
            bodies: Bodies::new(limits),
            model,
            tokenizers,
            generator,
            status: driver.status,
            stats: driver.stats,
            metrics,
            draining: AtomicBool::new(false),
        };
        Ok(Self { app: Arc::new(app) })
    }

    /// All routes.
    pub fn routes(&self) -> axum::Router {
        api::router(Arc::clone(&self.app))
    }

    /// No new request is taken from now on.
    pub fn drain(&self) {
        self.app.draining.store(true, Ordering::Relaxed);
    }

    /// Running requests end with an error.
    pub fn end_requests(&self) {
        self.app.generator.fail_all(&Failure::ShuttingDown);
    }

    /// Requests in the server, running and waiting.
    pub fn num_requests(&self) -> usize {
        self.app.generator.num_requests()
    }
}

/// Serves until `shutdown` is cancelled and the drain has ended. The port is bound before anything else is read, so a
/// taken one is known at once and probes get an answer while the model loads.
pub async fn serve(config: RouterConfig, shutdown: CancellationToken) -> Result<(), ServeError> {
    check_limits(&config.limits)?;
    let (listener, address) = server::bind(&config.http.hostname, config.http.port).await?;
    let folder = config.model.model_path.clone();
    let name = config.model.model_name.clone();
    let loading = tokio::task::spawn_blocking(move || Model::load(&folder, name));
    let model = loading.await.map_err(|_| ServeError::ModelPanic)??;
    let connector = GrpcConnector::new(config.engine.shard_sockets.clone());
    let router = Router::start(&config, model, connector)?;
    tracing::info!("listening on http://{address}");
    let upkeep = tokio::spawn(upkeep(Arc::clone(&router.app.metrics)));
    let draining = tokio::spawn({
        let (app, shutdown) = (Arc::clone(&router.app), shutdown.clone());
        async move {
            shutdown.cancelled().await;
            app.draining.store(true, Ordering::Relaxed);
        }
    });
    let drain = Drain {
        signal: shutdown,
        timeout: Duration::from_secs(config.http.graceful_termination_timeout),
        expired: || router.end_requests(),
    };
    server::run(listener, router.routes(), drain).await;
    upkeep.abort();
    draining.abort();
    Ok(())
}

async fn upkeep(metrics: Arc<Metrics>) {
    let mut interval = tokio::time::interval(UPKEEP);
    loop {
        interval.tick().await;
        metrics.upkeep();
    }
}

/// What is wrong without knowing the engine; each number's own range is checked with the flags.
fn check_limits(limits: &LimitsConfig) -> Result<(), ServeError> {
    if let (Some(input), Some(total)) = (limits.max_input_tokens, limits.max_total_tokens)
        && input >= total
    {
        return Err(ServeError::Usage(format!(
            "--max-input-tokens must be < --max-total-tokens ({total}). Given: {input}"
        )));
    }
    Ok(())
}
