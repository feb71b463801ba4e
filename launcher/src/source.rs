//! Where the model is: a folder, or the name of a model of a hub, which is fetched while the port already answers.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use penstock_router::error::Progress;
use penstock_router::server::{self, Drain};
use penstock_router::signals::StopSignals;
use penstock_router::starting;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::args::ModelArgs;
use crate::checkpoint;
use crate::failure::Failure;
use crate::helper::{Event, Helper};
use crate::logs::Output;
use crate::preflight::Early;
use crate::safetensors;

/// From one line about a download to the next.
const PROGRESS: Duration = Duration::from_secs(5);

/// What `--model-id` names.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Folder {
        folder: PathBuf,
        /// Under which it is served, where that is not the folder's.
        name: Option<String>,
    },
    Hub {
        model_id: String,
    },
}

/// A model's folder on this machine.
#[derive(Debug)]
pub(crate) struct Located {
    pub(crate) folder: PathBuf,
    pub(crate) name: Option<String>,
    /// The hub's commit.
    pub(crate) commit: Option<String>,
    /// Where that is not the folder's own.
    pub(crate) tokenizer: Option<PathBuf>,
}

/// `penstock_server.prepare.hub`'s request.
#[derive(Serialize)]
struct HubRequest<'a> {
    model_id: &'a str,
    revision: Option<&'a str>,
    cache_dir: Option<&'a Path>,
}

/// Fetches what is not there yet, and makes a tokenizer's file where there is none. `None`: a signal came first.
pub(crate) async fn locate(
    early: &Early,
    args: &ModelArgs,
    output: &Output,
    signals: &mut StopSignals,
) -> Result<Option<Located>, Failure> {
    let work = async {
        let mut located = match &early.source {
            Source::Folder { folder, name } => Located {
                folder: folder.clone(),
                name: name.clone(),
                commit: None,
                tokenizer: None,
            },
            Source::Hub { model_id } => fetch(model_id, early, args, output).await?,
        };
        checkpoint::check_config(&located.folder)?;
        if checkpoint::lacks_tokenizer(&located.folder) {
            located.tokenizer = Some(convert(&located.folder, early, output).await?);
        }
        Ok(located)
    };
    tokio::select! {
        located = work => located.map(Some),
        name = signals.next() => {
            info!("{name}: stopped before the start; what has been fetched stays for the next one");
            Ok(None)
        }
    }
}

async fn fetch(
    model_id: &str,
    early: &Early,
    args: &ModelArgs,
    output: &Output,
) -> Result<Located, Failure> {
    let begin = Instant::now();
    let waiting = Waiting::start(early).await?;
    info!("fetching {model_id} into the cache, as far as it is not there");
    let request = HubRequest {
        model_id,
        revision: args.revision.as_deref(),
        cache_dir: args.huggingface_hub_cache.as_deref(),
    };
    let mut helper = Helper::start(&early.python, "hub", request, output).await?;
    let mut found = None;
    let mut last_line = Instant::now();
    loop {
        match helper.next().await? {
            Event::Metadata { folder, commit } => {
                info!("{model_id} is at commit {commit}");
                // A model that cannot be served is refused before its weights come.
                let config = checkpoint::check_config(&folder)?;
                safetensors::check_index(&folder)?;
                if config.has_weight_files(args.load_format) {
                    helper.say(&serde_json::Map::new()).await;
                } else {
                    helper.finish();
                }
                found = Some((folder, commit));
            }
            Event::Progress { done, total } => {
                waiting.progress(done, total);
                if last_line.elapsed() >= PROGRESS {
                    last_line = Instant::now();
                    info!("{}", describe(done, total, begin.elapsed()));
                }
            }
            Event::Done | Event::Tokenizer { .. } => break,
            Event::Failed { message, .. } => return Err(Failure::Failed(message)),
        }
    }
    waiting.end().await;
    let (folder, commit) =
        found.ok_or_else(|| Failure::Failed("the download ended without a folder".to_owned()))?;
    info!(
        "{model_id} is there after {:.1} s: {}",
        begin.elapsed().as_secs_f64(),
        folder.display()
    );
    Ok(Located {
        folder,
        name: Some(model_id.to_owned()),
        commit: Some(commit),
        tokenizer: None,
    })
}

#[expect(clippy::cast_precision_loss, reason = "for a person")]
fn describe(done: u64, total: u64, elapsed: Duration) -> String {
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    format!(
        "fetched {:.2} of {:.2} GB after {} s",
        gigabytes(done),
        gigabytes(total),
        elapsed.as_secs()
    )
}

/// The path of a `tokenizer.json` made of a folder's older files.
async fn convert(folder: &Path, early: &Early, output: &Output) -> Result<PathBuf, Failure> {
    #[derive(Serialize)]
    struct Request<'a> {
        folder: &'a Path,
    }
    warn!(
        "{} has no tokenizer.json: making one from its other files",
        folder.display()
    );
    let mut helper = Helper::start(&early.python, "tokenizer", Request { folder }, output).await?;
    helper.finish();
    loop {
        if let Event::Tokenizer { path } = helper.next().await? {
            return Ok(path);
        }
    }
}

/// The port while nothing is served yet: every request is told how far the download is.
struct Waiting {
    progress: watch::Sender<Progress>,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl Waiting {
    async fn start(early: &Early) -> Result<Self, Failure> {
        let address = early.address;
        let (listener, _) = server::bind(&address.ip().to_string(), address.port())
            .await
            .map_err(|error| Failure::Failed(error.to_string()))?;
        let (progress, seen) = watch::channel(Progress {
            phase: "download".to_owned(),
            fraction: 0.0,
        });
        let stop = CancellationToken::new();
        let drain = Drain {
            signal: stop.clone(),
            timeout: Duration::from_secs(1),
            expired: || {},
        };
        let server = tokio::spawn(server::run(listener, starting::routes(seen), drain));
        Ok(Self {
            progress,
            stop,
            server,
        })
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "a fraction for a person"
    )]
    fn progress(&self, done: u64, total: u64) {
        self.progress.send_modify(|progress| {
            progress.fraction = if total == 0 {
                1.0
            } else {
                (done as f64 / total as f64) as f32
            };
        });
    }

    /// Leaves the port to the router.
    async fn end(mut self) {
        self.stop.cancel();
        let _ended = (&mut self.server).await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.server.abort();
    }
}
