//! What the router makes of texts, ids and chats with a model folder's tokenizer and template, for a test that knows the
//! right answers. One JSON object a line: `{"text"}` is answered with its ids, `{"ids", "seed"}` with the text that they
//! become on their way through the text worker: one by one, in parts of random sizes, and all at once; `{"messages"}`
//! with their prompt; `{"timed"}` with what text of these ids costs in ns.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use clap::Parser;
use penstock_router::driver::Command;
use penstock_router::event::{Delivery, Event, FinishReason, Output, SampledToken, Timings};
use penstock_router::metrics::Metrics;
use penstock_router::model::Model;
use penstock_router::request::{Request, RequestId, SamplingParams, Scheduling};
use penstock_router::stream::Generator;
use penstock_router::text::{TextParams, TextStream, TextStyle};
use penstock_router::tokenizer::encode;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;

/// The fastest of these counts: it is the one that nothing else on the machine disturbed.
const NUM_TIMED_RUNS: usize = 50;

#[derive(Parser)]
struct Args {
    /// With config.json and tokenizer.json
    folder: PathBuf,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Task {
    Encode { text: String },
    Stream { ids: Vec<u32>, seed: u64 },
    Render { messages: Vec<Value> },
    Time { timed: Vec<u32> },
}

#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    Ids { ids: Vec<u32> },
    Texts { texts: [String; 3] },
    Prompt { prompt: String },
    Cost { ns: u128 },
}

/// The text worker, with this program in the driver's place.
struct World {
    model: Model,
    generator: Generator,
    commands: mpsc::Receiver<Command>,
    deliveries: mpsc::Sender<Vec<Delivery>>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut world = World::new(Model::load(&args.folder, None)?)?;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lines() {
        let answer = world.answer(serde_json::from_str(&line?)?).await?;
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
    }
    Ok(())
}

impl World {
    fn new(model: Model) -> anyhow::Result<Self> {
        let (commands, inbox) = mpsc::channel(8);
        let (deliveries, outbox) = mpsc::channel(8);
        let metrics = Arc::new(Metrics::new(100, 200)?);
        let vocabulary = Arc::clone(&model.vocabulary);
        Ok(Self {
            model,
            generator: Generator::new(commands, outbox, vocabulary, metrics, 1),
            commands: inbox,
            deliveries,
        })
    }

    async fn answer(&mut self, task: Task) -> anyhow::Result<Answer> {
        match task {
            Task::Encode { text } => Ok(Answer::Ids {
                ids: encode(&self.model.tokenizer, &text, true)?,
            }),
            Task::Stream { ids, seed } => {
                let mut random = StdRng::seed_from_u64(seed);
                let texts = [
                    self.stream(&ids, || 1).await?,
                    self.stream(&ids, || random.random_range(1..=8)).await?,
                    self.stream(&ids, || usize::MAX).await?,
                ];
                Ok(Answer::Texts { texts })
            }
            Task::Render { messages } => {
                let template = self.model.chat.as_ref().map_err(|why| anyhow!("{why}"))?;
                let prompt = template.render(&messages)?;
                Ok(Answer::Prompt { prompt })
            }
            Task::Time { timed } => {
                let runs = (0..NUM_TIMED_RUNS).map(|_| self.time(&timed));
                let ns = runs.min().context("no run")?;
                Ok(Answer::Cost { ns })
            }
        }
    }

    /// The text of these ids when `part` says how many are delivered next.
    async fn stream(
        &mut self,
        ids: &[u32],
        mut part: impl FnMut() -> usize,
    ) -> anyhow::Result<String> {
        let permit = self.generator.permits(1)?.remove(0);
        let id = self.generator.next_id();
        let mut generation = self.generator.submit(permit, request(id), &params())?;
        let command = self.commands.recv().await;
        command.context("the request did not reach the driver")?;
        let mut rest = ids;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(part().min(rest.len()));
            let mut outputs: Vec<Output> = now.iter().map(|&id| token(id)).collect();
            if later.is_empty() {
                outputs.push(Output::Finished {
                    reason: FinishReason::Length,
                    timings: Timings::default(),
                });
            }
            let batch = outputs.into_iter().map(|output| Delivery {
                request: id,
                output,
            });
            self.deliveries.send(batch.collect()).await?;
            rest = later;
        }
        let mut text = String::new();
        while let Some(events) = generation.next().await {
            for event in events {
                match event {
                    Event::Token(token) => text.push_str(&token.text),
                    Event::Finished(finished) => text.push_str(&finished.tail),
                    Event::Failed(failure) => bail!(failure),
                }
            }
        }
        Ok(text)
    }

    /// How long these tokens take to become text, in ns.
    fn time(&self, ids: &[u32]) -> u128 {
        let mut stream = TextStream::new(Arc::clone(&self.model.vocabulary), &params());
        let begin = Instant::now();
        for &id in ids {
            std::hint::black_box(stream.push(id));
        }
        std::hint::black_box(stream.finish());
        begin.elapsed().as_nanos()
    }
}

fn params() -> TextParams {
    TextParams {
        stop: Vec::new(),
        style: TextStyle::OpenAi,
    }
}

fn request(id: RequestId) -> Request {
    Request {
        id,
        prompt_ids: Arc::from([1]),
        sampling: SamplingParams::greedy(0),
        max_new_tokens: 1,
        stop_ids: Arc::from([]),
        logprobs: None,
        scheduling: Scheduling::default(),
    }
}

fn token(id: u32) -> Output {
    Output::Token(SampledToken {
        id,
        logprob: None,
        top: Vec::new(),
    })
}
