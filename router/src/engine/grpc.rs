//! A group of shard processes, one per rank, behind gRPC on unix sockets. Every rank gets the same bytes in the same
//! order, and every step counts only when all ranks have acknowledged it with equal checksums.

mod acks;

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use futures_util::future::try_join_all;
use futures_util::stream::{self, SelectAll, Stream, StreamExt};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::{Connector, Engine, EngineError, EngineInfo, PROTOCOL, Progress, blob, wire};
use crate::pb;
use crate::pb::shard_client::ShardClient;
use crate::scheduler::step::{Plan, StepResult};
use acks::Acks;

/// Both directions: a long prompt with penalties travels in one registration.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// Fixed windows, so that a large plan never waits for a window update.
const WINDOW_BYTES: u32 = 8 << 20;
/// For what a shard answers from memory. Long, because importing torch may keep its interpreter busy.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// For `Open`: before it answers, a shard ends the plans that a stream before it left.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// Between two messages of warm-up, which comes in phases: reading the weights is the longest.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Plans are bounded by the depth; `Open` goes the same way.
const STREAM_CAPACITY: usize = 8;

/// Reaches the shards on these sockets, in rank order.
#[derive(Clone, Debug)]
pub struct GrpcConnector {
    sockets: Vec<PathBuf>,
}

impl GrpcConnector {
    pub fn new(sockets: Vec<PathBuf>) -> Self {
        Self { sockets }
    }
}

impl Connector for GrpcConnector {
    type Engine = GrpcEngine;

    async fn connect(&mut self, epoch: u64) -> Result<GrpcEngine, EngineError> {
        let connecting = self
            .sockets
            .iter()
            .enumerate()
            .map(|(rank, socket)| connect(rank, socket));
        let mut clients = try_join_all(connecting).await?;
        let info = common_info(&mut clients).await?;
        Ok(GrpcEngine {
            epoch,
            info,
            acks: Acks::new(clients.len()),
            clients,
            plans: Vec::new(),
            responses: SelectAll::new(),
        })
    }
}

/// Messages of all ranks, tagged with the rank. The end of a rank's stream is an item too.
type Responses = SelectAll<Pin<Box<dyn Stream<Item = (usize, Result<pb::StepResponse, String>)>>>>;

/// Open streams to all ranks of a group.
pub struct GrpcEngine {
    epoch: u64,
    info: EngineInfo,
    clients: Vec<ShardClient<Channel>>,
    /// Per rank; empty until warm-up has ended.
    plans: Vec<mpsc::Sender<pb::StepRequest>>,
    responses: Responses,
    acks: Acks,
}

impl std::fmt::Debug for GrpcEngine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("GrpcEngine")
            .field("epoch", &self.epoch)
            .field("num_ranks", &self.clients.len())
            .finish_non_exhaustive()
    }
}

impl Engine for GrpcEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    async fn warmup(&mut self, mut progress: impl FnMut(Progress)) -> Result<(), EngineError> {
        let (first, others) = self
            .clients
            .split_first_mut()
            .ok_or_else(|| EngineError::Unsupported("no shard sockets".to_owned()))?;
        let others = others
            .iter_mut()
            .zip(1..)
            .map(|(client, rank)| warm_up(rank, client, |_| ()));
        tokio::try_join!(warm_up(0, first, &mut progress), try_join_all(others))?;
        self.info = common_info(&mut self.clients).await?;
        self.open().await
    }

    fn submit(&mut self, plan: &Plan) -> Result<(), EngineError> {
        let blob = blob::encode(plan);
        self.acks.expect(plan.id, crc32fast::hash(&blob));
        for (rank, plans) in self.plans.iter().enumerate() {
            let request = step_request(plan.id, blob.clone());
            plans.try_send(request).map_err(|_| EngineError::Rank {
                rank,
                message: "its stream takes no more plans".to_owned(),
            })?;
        }
        Ok(())
    }

    async fn results(&mut self) -> Result<StepResult, EngineError> {
        loop {
            if let Some(result) = self.acks.complete()? {
                return Ok(result);
            }
            let Some((rank, response)) = self.responses.next().await else {
                return Err(EngineError::Gone);
            };
            let response = response.map_err(|message| EngineError::Rank { rank, message })?;
            let Some(pb::step_response::Body::Result(result)) = response.body else {
                return Err(EngineError::Rank {
                    rank,
                    message: "sent something other than a result".to_owned(),
                });
            };
            self.acks.take(rank, &result)?;
        }
    }
}

impl GrpcEngine {
    /// Opens the Step stream of every rank.
    async fn open(&mut self) -> Result<(), EngineError> {
        let epoch = self.epoch;
        let opening = self
            .clients
            .iter_mut()
            .enumerate()
            .map(|(rank, client)| open_stream(rank, client, epoch));
        for (rank, (plans, responses)) in try_join_all(opening).await?.into_iter().enumerate() {
            self.plans.push(plans);
            let messages = responses
                .map(move |message| (rank, message.map_err(|status| describe(&status))))
                .chain(stream::once(async move {
                    (rank, Err("closed its stream".to_owned()))
                }));
            self.responses.push(Box::pin(messages));
        }
        Ok(())
    }
}

/// The message that carries a plan.
pub fn step_request(plan_id: u64, blob: bytes::Bytes) -> pb::StepRequest {
    let plan = pb::Plan {
        plan_id,
        blob,
        adapter_loads: Vec::new(),
        encoder_inputs: Vec::new(),
    };
    pb::StepRequest {
        body: Some(pb::step_request::Body::Plan(plan)),
    }
}

async fn connect(rank: usize, socket: &Path) -> Result<ShardClient<Channel>, EngineError> {
    let path = socket.to_owned();
    // The authority is never used: the connector goes to the socket.
    let endpoint = Endpoint::from_static("http://shard.invalid")
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let connecting = endpoint.connect_with_connector(service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    }));
    let channel = answer(rank, "the connection", ANSWER_TIMEOUT, connecting)
        .await?
        .map_err(|error| EngineError::Rank {
            rank,
            message: format!(
                "no connection at {}: {}",
                socket.display(),
                root_cause(&error)
            ),
        })?;
    Ok(ShardClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

/// What all ranks say of themselves, if they agree.
async fn common_info(clients: &mut [ShardClient<Channel>]) -> Result<EngineInfo, EngineError> {
    let num_ranks = clients.len();
    let asking = clients
        .iter_mut()
        .enumerate()
        .map(|(rank, client)| async move {
            let asking = client.info(pb::InfoRequest {});
            let info = answer(rank, "Info", ANSWER_TIMEOUT, asking).await?;
            let info = info.map_err(|status| failed(rank, &status))?.into_inner();
            wire::info_from_wire(info, rank, num_ranks)
        });
    let mut infos = try_join_all(asking).await?.into_iter();
    let first = infos
        .next()
        .ok_or_else(|| EngineError::Unsupported("no shard sockets".to_owned()))?;
    for (info, rank) in infos.zip(1..) {
        if info != first {
            return Err(EngineError::Mismatch(format!(
                "rank {rank} describes itself as {info:?}, rank 0 as {first:?}"
            )));
        }
    }
    Ok(first)
}

async fn warm_up(
    rank: usize,
    client: &mut ShardClient<Channel>,
    mut progress: impl FnMut(Progress),
) -> Result<(), EngineError> {
    let asking = client.warmup(pb::WarmupRequest {});
    let messages = answer(rank, "Warmup", ANSWER_TIMEOUT, asking).await?;
    let mut messages = messages
        .map_err(|status| failed(rank, &status))?
        .into_inner();
    // The first says how far it is, the others wait for progress.
    let mut timeout = ANSWER_TIMEOUT;
    while let Some(message) = answer(rank, "Warmup", timeout, messages.message())
        .await?
        .map_err(|status| failed(rank, &status))?
    {
        timeout = PROGRESS_TIMEOUT;
        progress(Progress {
            phase: message.phase,
            fraction: message.fraction,
            elapsed: Duration::from_millis(message.elapsed_ms),
        });
    }
    Ok(())
}

/// Both directions of one rank's stream.
type StepStream = (mpsc::Sender<pb::StepRequest>, Streaming<pb::StepResponse>);

async fn open_stream(
    rank: usize,
    client: &mut ShardClient<Channel>,
    epoch: u64,
) -> Result<StepStream, EngineError> {
    let (plans, requests) = mpsc::channel(STREAM_CAPACITY);
    let open = pb::StepRequest {
        body: Some(pb::step_request::Body::Open(pb::Open {
            epoch,
            protocol: PROTOCOL,
        })),
    };
    // Before the call: it returns with the server's headers, which may come with its first message only.
    plans
        .try_send(open)
        .expect("the channel is empty and its receiver is here");
    let opening = client.step(ReceiverStream::new(requests));
    let responses = answer(rank, "Open", OPEN_TIMEOUT, opening).await?;
    let mut responses = responses
        .map_err(|status| failed(rank, &status))?
        .into_inner();
    let first = answer(rank, "Open", OPEN_TIMEOUT, responses.message())
        .await?
        .map_err(|status| failed(rank, &status))?;
    match first.and_then(|message| message.body) {
        Some(pb::step_response::Body::Opened(opened)) if opened.epoch == epoch => {
            Ok((plans, responses))
        }
        other => Err(EngineError::Rank {
            rank,
            message: format!("answered Open of epoch {epoch} with {other:?}"),
        }),
    }
}

/// What a rank answers, if it does so in time.
async fn answer<T>(
    rank: usize,
    what: &str,
    timeout: Duration,
    answer: impl Future<Output = T>,
) -> Result<T, EngineError> {
    let answer = tokio::time::timeout(timeout, answer).await;
    answer.map_err(|_| EngineError::Rank {
        rank,
        message: format!("no answer to {what} within {} s", timeout.as_secs()),
    })
}

fn failed(rank: usize, status: &tonic::Status) -> EngineError {
    EngineError::Rank {
        rank,
        message: describe(status),
    }
}

fn describe(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
