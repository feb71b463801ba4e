//! The router put together: port, model, driver, text workers, routes. [`serve`] runs it; tests take the parts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::BuildError;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::api::{self, Answers, App, Bodies};
use crate::config::{LimitsConfig, RouterConfig};
use crate::cors::{self, Origins};
use crate::driver::{self, DriverConfig, DriverHandle, EngineStatus};
use crate::engine::Connector;
use crate::engine::grpc::GrpcConnector;
use crate::event::{Delivery, Failure};
use crate::metrics::Metrics;
use crate::model::{Model, ModelError};
use crate::names::ModelNames;
use crate::report::BusyReport;
use crate::server::{self, Drain, ListenError};
use crate::stream::Generator;
use crate::tokenizer::TokenizerPool;

/// Steps' deliveries that wait for the text worker; beyond that the driver makes no more plans.
const DELIVERIES_CAPACITY: usize = 64;
/// Between two rounds of moving the driver's samples into the histograms' buckets.
const UPKEEP: Duration = Duration::from_secs(5);
/// Rounds of upkeep from one line about a busy server to the next.
const ROUNDS_PER_REPORT: u32 = 2;
/// When the driver is gone, for the last events of its requests.
const LAST_EVENTS: Duration = Duration::from_secs(1);
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
    #[error("the driver's thread has ended unexpectedly")]
    DriverEnded,
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
            Self::Listen(_) | Self::DriverEnded | Self::Metrics(_) | Self::Thread { .. } => 1,
            Self::Usage(_) => 2,
            Self::Model(_) | Self::ModelPanic => 3,
        }
    }
}

fn thread(what: &'static str) -> impl Fn(std::io::Error) -> ServeError {
    move |source| ServeError::Thread { what, source }
}

/// A router that is not bound to a port. Needs a Tokio runtime around it.
#[derive(Debug)]
pub struct Router {
    app: Arc<App>,
    origins: Origins,
}

impl Router {
    /// Starts driver, tokenizer threads and text worker.
    pub fn start<C>(config: &RouterConfig, model: Model, connector: C) -> Result<Self, ServeError>
    where
        C: Connector + Send + 'static,
    {
        check_limits(&config.limits)?;
        let (deliveries, outbox) = mpsc::channel(DELIVERIES_CAPACITY);
        let driver = driver::spawn(DriverConfig::from(config), connector, deliveries)
            .map_err(thread("the driver's thread"))?;
        Self::over(config, model, driver, outbox)
    }

    /// The same over a driver that the caller runs.
    pub fn over(
        config: &RouterConfig,
        model: Model,
        driver: DriverHandle,
        outbox: mpsc::Receiver<Vec<Delivery>>,
    ) -> Result<Self, ServeError> {
        let limits = &config.limits;
        let positions = model.max_positions.unwrap_or(DEFAULT_POSITIONS);
        let max_total_tokens = limits.max_total_tokens.unwrap_or(positions);
        let max_input_tokens = limits.max_input_tokens.unwrap_or(max_total_tokens);
        let metrics = Arc::new(Metrics::new(max_input_tokens, max_total_tokens)?);
        let tokenizers = TokenizerPool::new(&model.tokenizer, limits.validation_workers)
            .map_err(thread("the tokenizer threads"))?;
        let generator = Generator::new(
            driver.commands,
            outbox,
            Arc::clone(&model.vocabulary),
            Arc::clone(&metrics),
            limits.max_concurrent_requests,
        );
        let app = App {
            limits: limits.clone(),
            http: config.http.clone(),
            names: ModelNames::new(config, &model.name),
            bodies: Bodies::new(limits),
            answers: Answers::default(),
            model,
            tokenizers,
            generator,
            status: driver.status,
            stats: driver.stats,
            metrics,
            draining: CancellationToken::new(),
        };
        Ok(Self {
            app: Arc::new(app),
            origins: Origins::new(&config.http.cors_allow_origin),
        })
    }

    /// All routes.
    pub fn routes(&self) -> axum::Router {
        cors::allow(api::router(&self.app), self.origins.clone())
    }

    /// No new request is taken from now on.
    pub fn drain(&self) {
        self.app.draining.cancel();
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
/// taken one is known at once; whoever connects is answered as soon as the tokenizer has been read.
pub async fn serve(config: RouterConfig, shutdown: CancellationToken) -> Result<(), ServeError> {
    check_limits(&config.limits)?;
    let (listener, address) = server::bind(&config.http.hostname, config.http.port).await?;
    let model = config.model.clone();
    let tokenizer_config = config.http.tokenizer_config_path.clone();
    let loading =
        tokio::task::spawn_blocking(move || Model::load_with(&model, tokenizer_config.as_deref()));
    let model = loading.await.map_err(|_| ServeError::ModelPanic)??;
    let connector = GrpcConnector::new(config.engine.shard_sockets.clone());
    let router = Router::start(&config, model, connector)?;
    tracing::info!("listening on http://{address}");
    let timeout = Duration::from_secs(config.http.graceful_termination_timeout);
    router.serve(listener, timeout, shutdown).await
}

impl Router {
    /// Serves until `shutdown` is cancelled and the drain has ended, or until the driver is gone, which is an error.
    pub async fn serve(
        &self,
        listener: TcpListener,
        timeout: Duration,
        shutdown: CancellationToken,
    ) -> Result<(), ServeError> {
        let upkeep = tokio::spawn(upkeep(Arc::clone(&self.app)));
        let draining = tokio::spawn({
            let (app, shutdown) = (Arc::clone(&self.app), shutdown.clone());
            async move {
                shutdown.cancelled().await;
                app.draining.cancel();
            }
        });
        let drain = Drain {
            signal: shutdown,
            timeout,
            expired: || self.end_requests(),
        };
        let outcome = tokio::select! {
            () = server::run(listener, self.routes(), drain) => Ok(()),
            () = gone(self.app.status.clone()) => {
                tokio::time::sleep(LAST_EVENTS).await;
                Err(ServeError::DriverEnded)
            }
        };
        upkeep.abort();
        draining.abort();
        outcome
    }
}

/// Waits until nobody is left who could say how the engine stands.
async fn gone(mut status: watch::Receiver<EngineStatus>) {
    while status.changed().await.is_ok() {}
}

async fn upkeep(app: Arc<App>) {
    let mut interval = tokio::time::interval(UPKEEP);
    let mut report = BusyReport::new(app.stats.get().scheduler, Instant::now());
    loop {
        for _ in 0..ROUNDS_PER_REPORT {
            interval.tick().await;
            app.metrics.upkeep(&app.stats);
        }
        if let Some(busy) = report.look(app.stats.get().scheduler, Instant::now()) {
            busy.log();
        }
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
