//! The fake as a real gRPC shard on a unix socket. The steps run on a thread of their own, whose sleeps are finer than
//! the timers of the event loop.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc as blocking};
use std::time::{Duration, Instant};

use futures_util::stream::{self, Stream};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::{FakeConfig, FakeShard};
use crate::engine::grpc::MAX_MESSAGE_BYTES;
use crate::engine::{PROTOCOL, wire};
use crate::pb;
use crate::pb::shard_server::{Shard, ShardServer};

/// Most plans between the stream and the thread that runs them.
const STREAM_CAPACITY: usize = 8;

/// What this shard does wrong, for tests of the router.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// From this plan on, the checksum of the sampled ids is wrong.
    pub wrong_ids_from: Option<u64>,
    /// This plan ends the stream with an error.
    pub fail_at: Option<u64>,
}

/// Serves rank `rank` on `socket`, until the task is dropped.
pub async fn serve(socket: &Path, config: FakeConfig, rank: u32, faults: Faults) -> io::Result<()> {
    let listener = UnixListener::bind(socket)?;
    let service = FakeService {
        shared: Arc::new(Shared {
            config,
            rank,
            faults,
            epoch: AtomicU64::new(0),
        }),
    };
    let service = ShardServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await
        .map_err(io::Error::other)
}

#[derive(Debug)]
struct Shared {
    config: FakeConfig,
    rank: u32,
    faults: Faults,
    /// The highest one opened.
    epoch: AtomicU64,
}

#[derive(Debug)]
struct FakeService {
    shared: Arc<Shared>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Shard for FakeService {
    type WarmupStream = Answers<pb::WarmupProgress>;
    type StepStream = Answers<pb::StepResponse>;

    async fn info(
        &self,
        _request: Request<pb::InfoRequest>,
    ) -> Result<Response<pb::InfoResponse>, Status> {
        let info = wire::info_to_wire(&self.shared.config.info, self.shared.rank);
        Ok(Response::new(info))
    }

    async fn warmup(
        &self,
        _request: Request<pb::WarmupRequest>,
    ) -> Result<Response<Self::WarmupStream>, Status> {
        let groups = &self.shared.config.info.groups;
        let ready = pb::WarmupProgress {
            phase: "ready".to_owned(),
            fraction: 1.0,
            elapsed_ms: 0,
            num_blocks: groups.iter().map(|group| group.num_blocks).collect(),
        };
        Ok(Response::new(Box::pin(stream::iter([Ok(ready)]))))
    }

    async fn step(
        &self,
        request: Request<Streaming<pb::StepRequest>>,
    ) -> Result<Response<Self::StepStream>, Status> {
        let mut requests = request.into_inner();
        let opened = match requests.message().await?.and_then(|message| message.body) {
            Some(pb::step_request::Body::Open(open)) => self.open(open)?,
            _ => {
                return Err(Status::failed_precondition(
                    "the first message must be Open",
                ));
            }
        };
        let (answers, stream) = mpsc::channel(STREAM_CAPACITY);
        answers
            .try_send(Ok(opened))
            .expect("the channel is empty and its receiver is here");
        let (plans, arrivals) = blocking::sync_channel(STREAM_CAPACITY);
        let shared = Arc::clone(&self.shared);
        let reader_answers = answers.clone();
        std::thread::spawn(move || run_steps(&shared, &arrivals, &answers));
        tokio::spawn(async move {
            while let Some(message) = requests.message().await.transpose() {
                let Some(plan) = message.ok().and_then(plan_of) else {
                    let refusal = Status::invalid_argument("only plans follow Open");
                    // A router that has gone needs no refusal.
                    let _ = reader_answers.send(Err(refusal)).await;
                    return;
                };
                if plans.try_send((Instant::now(), plan)).is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn control(
        &self,
        _request: Request<pb::ControlRequest>,
    ) -> Result<Response<pb::ControlResponse>, Status> {
        Err(Status::unimplemented("the fake takes no orders"))
    }
}

impl FakeService {
    fn open(&self, open: pb::Open) -> Result<pb::StepResponse, Status> {
        if open.protocol != PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "protocol {}; this shard speaks {PROTOCOL}",
                open.protocol
            )));
        }
        let before = self.shared.epoch.fetch_max(open.epoch, Ordering::Relaxed);
        if open.epoch <= before {
            return Err(Status::failed_precondition(format!(
                "epoch {} is not above {before}",
                open.epoch
            )));
        }
        Ok(pb::StepResponse {
            body: Some(pb::step_response::Body::Opened(pb::Opened {
                epoch: open.epoch,
            })),
        })
    }
}

fn plan_of(message: pb::StepRequest) -> Option<pb::Plan> {
    match message.body {
        Some(pb::step_request::Body::Plan(plan)) => Some(plan),
        Some(pb::step_request::Body::Open(_) | pb::step_request::Body::Mask(_)) | None => None,
    }
}

/// Runs plans one after another on the absolute clock: step k ends at max(arrival, end of k-1) + step time.
fn run_steps(
    shared: &Shared,
    arrivals: &blocking::Receiver<(Instant, pb::Plan)>,
    answers: &mpsc::Sender<Result<pb::StepResponse, Status>>,
) {
    let config = &shared.config;
    let mut shard = FakeShard::new(&shared.config.info, shared.config.model());
    let mut last_end: Option<Instant> = None;
    let mut next = None;
    while let Some((arrival, plan)) = next.take().or_else(|| arrivals.recv().ok()) {
        let answer = execute(&mut shard, shared, &plan);
        let step_time = config.step_time + config.fed_token_time * shard.num_fed();
        let end = last_end.map_or(arrival, |end| end.max(arrival)) + step_time;
        last_end = Some(end);
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        next = arrivals.try_recv().ok();
        let waiting = next.as_ref().is_some_and(|(arrival, _)| *arrival <= end);
        let failed = answer.is_err();
        let answer = answer.map(|mut result| {
            result.next_plan_waiting = waiting;
            (result.step_us, result.forward_us) = (micros(step_time), micros(step_time));
            if let Some(stamp) = config.stamp {
                let stamp = stamp().to_le_bytes();
                result.logprobs = stamp.repeat(result.logprobs.len() / stamp.len()).into();
            }
            pb::StepResponse {
                body: Some(pb::step_response::Body::Result(result)),
            }
        });
        if answers.blocking_send(answer).is_err() || failed {
            return;
        }
    }
}

fn execute(
    shard: &mut FakeShard,
    shared: &Shared,
    plan: &pb::Plan,
) -> Result<pb::StepResult, Status> {
    let Faults {
        wrong_ids_from,
        fail_at,
    } = shared.faults;
    if fail_at == Some(plan.plan_id) {
        return Err(Status::internal("told to fail here"));
    }
    let result = shard
        .execute(plan.plan_id, &plan.blob)
        .map_err(Status::invalid_argument)?;
    let mut answer = wire::result_to_wire(&result);
    let mut ids_checksum = crc32fast::hash(&answer.token_ids);
    if wrong_ids_from.is_some_and(|from| plan.plan_id >= from) {
        ids_checksum ^= 1;
    }
    if shared.rank != 0 {
        answer = pb::StepResult {
            plan_id: plan.plan_id,
            ..Default::default()
        };
    }
    answer.plan_checksum = crc32fast::hash(&plan.blob);
    answer.ids_checksum = ids_checksum;
    Ok(answer)
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
