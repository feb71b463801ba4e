//! Overload, loss of the engine, start and end.

use std::time::Duration;

use axum::http::StatusCode;
use penstock_router::engine::fake::{FakeConnector, FakeEngine};
use penstock_router::engine::{Connector, Engine, EngineError, EngineInfo, Progress};
use penstock_router::scheduler::step::{Plan, StepResult};
use penstock_router::server;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::world::World;

const STEP: Duration = Duration::from_millis(10);

fn long(path: &str) -> Value {
    if path.starts_with("/v1/chat") {
        json!({"messages": [{"role": "user", "content": "a"}], "stream": true, "ignore_eos": true})
    } else {
        json!({"inputs": "a", "prompt": "a", "stream": true, "ignore_eos": true, "parameters": {"ignore_eos": true}})
    }
}

#[tokio::test]
async fn exactly_the_surplus_is_refused() {
    let world = World::with(|options| {
        options.limits.max_concurrent_requests = 4;
        options.step_time = STEP;
    })
    .await;
    let requests = (0..7).map(|_| world.post("/generate", long("/generate")));
    let replies = futures_util::future::join_all(requests).await;
    let refused: Vec<_> = replies.iter().filter(|reply| reply.status == 429).collect();
    assert_eq!(refused.len(), 3);
    assert_eq!(
        replies.iter().filter(|reply| reply.status == 200).count(),
        4
    );
    insta::assert_snapshot!(refused[0].show(), @r#"
429
{"error":"Model is overloaded","error_type":"overloaded"}
"#);
    assert_eq!(refused[0].headers["retry-after"], "1");
    world.wait_for_quiet().await;
    assert_eq!(
        world
            .metric("tgi_request_failure{err=\"overloaded\"}")
            .await,
        3.0
    );
    assert_eq!(world.metric("tgi_request_success").await, 4.0);
    assert_eq!(world.metric("tgi_request_count").await, 7.0);
}

/// Two prompts need two places: none is taken unless both are free.
#[tokio::test]
async fn a_request_of_several_prompts_takes_a_place_for_each() {
    let world = World::with(|options| {
        options.limits.max_concurrent_requests = 2;
        options.step_time = STEP;
    })
    .await;
    let first = world.post("/generate", long("/generate"));
    let second = async {
        tokio::time::sleep(STEP * 4).await;
        world
            .post(
                "/v1/completions",
                json!({"prompt": ["a", "b"], "max_tokens": 1}),
            )
            .await
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (200, 429));
    world.wait_for_quiet().await;
}

/// Trying again would be of no use.
#[tokio::test]
async fn more_prompts_than_there_are_places_are_an_error() {
    let world = World::with(|options| options.limits.max_concurrent_requests = 1).await;
    let body = json!({"prompt": ["a", "b"], "max_tokens": 1});
    let reply = world.post("/v1/completions", body).await;
    insta::assert_snapshot!(reply.show(), @r#"
400
{"error":{"message":"Input validation error: `prompt` must have >= 1 and <= 1 prompts. Given: 2","type":"invalid_request_error","param":"prompt","code":"invalid_value","http_status_code":400},"error_type":"validation"}
"#);
}

#[tokio::test]
async fn until_the_engine_is_ready_everything_is_503() {
    let world = World::with(|options| options.alive = false).await;
    let health = world.get("/health").await;
    insta::assert_snapshot!(health.show(), @r#"
503
{"error":"the model is not ready yet: connect, 0 %","error_type":"healthcheck","phase":"connect","fraction":0.0}
"#);
    assert_eq!(health.headers["retry-after"], "5");
    assert_eq!(world.get("/ping").await.show(), health.show());
    for path in [
        "/generate",
        "/generate_stream",
        "/",
        "/v1/chat/completions",
        "/v1/completions",
        "/tokenize",
        "/chat_tokenize",
        "/invocations",
    ] {
        let reply = world.post(path, long(path)).await;
        assert_eq!(reply.status, 503, "{path}");
        assert_eq!(reply.headers["retry-after"], "5");
        let body = reply.json();
        assert!(reply.body.contains("not ready yet"), "{body}");
        assert_eq!(
            (&body["phase"], &body["fraction"]),
            (&json!("connect"), &json!(0.0))
        );
    }
    assert_eq!(world.get("/info").await.status, 200);
    world.engine.set_alive(true);
    world.wait_for_health(StatusCode::OK).await;
}

/// An engine that stays half loaded until it is let go.
struct Loading {
    fake: FakeEngine,
    gate: watch::Receiver<bool>,
}

impl Engine for Loading {
    fn info(&self) -> &EngineInfo {
        self.fake.info()
    }

    async fn warmup(&mut self, mut progress: impl FnMut(Progress)) -> Result<(), EngineError> {
        progress(Progress {
            phase: "load".to_owned(),
            fraction: 0.5,
            elapsed: STEP,
        });
        let _ = self.gate.wait_for(|open| *open).await;
        self.fake.warmup(progress).await
    }

    fn submit(&mut self, plan: &Plan) -> Result<(), EngineError> {
        self.fake.submit(plan)
    }

    async fn results(&mut self) -> Result<StepResult, EngineError> {
        self.fake.results().await
    }
}

struct Loads {
    fake: FakeConnector,
    gate: watch::Receiver<bool>,
}

impl Connector for Loads {
    type Engine = Loading;

    async fn connect(&mut self, epoch: u64) -> Result<Loading, EngineError> {
        let fake = self.fake.connect(epoch).await?;
        let gate = self.gate.clone();
        Ok(Loading { fake, gate })
    }
}

#[tokio::test]
async fn a_starting_engine_says_how_far_it_is() {
    let (go, gate) = watch::channel(false);
    let wrap = |fake| Loads { fake, gate };
    let world = World::over(|options| options.alive = false, wrap).await;
    world.engine.set_alive(true);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while world.get("/health").await.json()["phase"] != "load" {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(STEP).await;
    }
    let path = "/v1/chat/completions";
    let replies = [
        world.get("/health").await,
        world.post(path, long(path)).await,
    ];
    insta::assert_snapshot!(format!("{}\n{}", replies[0].show(), replies[1].show()), @r#"
503
{"error":"the model is not ready yet: load, 50 %","error_type":"healthcheck","phase":"load","fraction":0.5}
503
{"error":{"message":"the model is not ready yet: load, 50 %","type":"server_error","param":null,"code":"not_ready","http_status_code":503},"error_type":"healthcheck","phase":"load","fraction":0.5}
"#);
    go.send(true).unwrap();
    world.wait_for_health(StatusCode::OK).await;
    let body = json!({"inputs": "a", "parameters": {"max_new_tokens": 1}});
    assert_eq!(world.post("/generate", body).await.status, 200);
}

#[tokio::test]
async fn streams_of_a_lost_engine_end_with_an_error() {
    let world = World::with(|options| options.step_time = STEP).await;
    let paths = [
        "/generate",
        "/generate_stream",
        "/v1/chat/completions",
        "/v1/completions",
    ];
    let requests = paths.map(|path| world.post(path, long(path)));
    let kill = async {
        tokio::time::sleep(STEP * 10).await;
        world.engine.set_alive(false);
        world.wait_for_health(StatusCode::SERVICE_UNAVAILABLE).await;
    };
    let (replies, ()) = tokio::join!(futures_util::future::join_all(requests), kill);
    insta::assert_snapshot!(replies[0].show(), @r#"
424
{"error":"Request failed during generation: the model's worker stopped while this request was running; send it again","error_type":"generation"}
"#);
    insta::assert_snapshot!(replies[1].events().last().unwrap(), @r#"{"error":"Request failed during generation: the model's worker stopped while this request was running; send it again","error_type":"generation"}"#);
    for reply in &replies[2..] {
        let events = reply.events();
        assert!(events.len() > 1, "{}", reply.body);
        assert_eq!(
            events.last().unwrap()["error"]["code"],
            "generation",
            "{}",
            reply.body
        );
        assert!(!reply.body.contains("[DONE]"));
    }
    world.engine.set_alive(true);
    world.wait_for_health(StatusCode::OK).await;
    let reply = world
        .post(
            "/generate",
            json!({"inputs": "a", "parameters": {"max_new_tokens": 2}}),
        )
        .await;
    assert_eq!(reply.status, 200);
    world.wait_for_quiet().await;
    assert_eq!(
        world
            .metric("tgi_request_failure{err=\"generation\"}")
            .await,
        4.0
    );
    assert!(
        world
            .metric("tgi_batch_inference_failure{method=\"decode\"}")
            .await
            >= 1.0
    );
}

#[tokio::test]
async fn a_draining_server_takes_nothing_new_and_ends_the_rest_with_an_error() {
    let world = World::with(|options| options.step_time = STEP).await;
    let running = world.post("/generate_stream", long("/generate_stream"));
    let end = async {
        tokio::time::sleep(STEP * 8).await;
        world.router.drain();
        assert_eq!(world.get("/health").await.status, 503);
        assert_eq!(world.post("/generate", long("/generate")).await.status, 503);
        world.router.end_requests();
    };
    let (reply, ()) = tokio::join!(running, end);
    let events = reply.events();
    assert!(events.len() > 1);
    insta::assert_snapshot!(events.last().unwrap(), @r#"{"error":"Request failed during generation: the server is shutting down","error_type":"generation"}"#);
}

#[tokio::test]
async fn metrics_tell_what_happened() {
    let world = World::new().await;
    let body = json!({"inputs": "abc", "parameters": {"max_new_tokens": 5, "ignore_eos": true}});
    assert_eq!(world.post("/generate", body).await.status, 200);
    assert_eq!(
        world.post("/generate", json!({"inputs": ""})).await.status,
        422
    );
    world.wait_for_quiet().await;
    for (name, expected) in [
        ("tgi_request_count", 2.0),
        ("tgi_request_success", 1.0),
        ("tgi_request_failure{err=\"validation\"}", 1.0),
        ("tgi_request_duration_count", 1.0),
        ("tgi_request_queue_duration_count", 1.0),
        ("tgi_request_input_length_sum", 4.0),
        ("tgi_request_generated_tokens_sum", 5.0),
        ("tgi_request_max_new_tokens_sum", 5.0),
        ("penstock_time_to_first_token_duration_count", 1.0),
        ("penstock_inter_token_duration_count", 4.0),
        ("tgi_batch_inference_count{method=\"prefill\"}", 1.0),
        (
            "tgi_batch_inference_duration_count{method=\"prefill\"}",
            1.0,
        ),
        ("tgi_batch_inference_duration_count{method=\"decode\"}", 4.0),
        ("tgi_batch_forward_duration_count{method=\"decode\"}", 4.0),
        ("tgi_batch_decode_duration_count{method=\"decode\"}", 4.0),
        ("tgi_batch_max_total_tokens", 32768.0),
        ("tgi_queue_size", 0.0),
        ("penstock_engines_ready_total", 1.0),
    ] {
        assert_eq!(world.metric(name).await, expected, "{name}");
    }
    // One batch was formed; the steps that continue it form none.
    assert_eq!(world.metric("tgi_batch_next_size_count").await, 1.0);
    assert_eq!(world.metric("tgi_batch_next_size_sum").await, 1.0);
    assert_eq!(world.metric("penstock_kv_blocks_total").await, 2048.0);
}

/// Panics, and the driver with it, when a second engine is wanted.
struct PanicsOnce {
    fake: FakeConnector,
    connected: bool,
}

impl Connector for PanicsOnce {
    type Engine = FakeEngine;

    async fn connect(&mut self, epoch: u64) -> Result<FakeEngine, EngineError> {
        assert!(!self.connected, "told to panic here");
        let engine = self.fake.connect(epoch).await?;
        self.connected = true;
        Ok(engine)
    }
}

async fn world_without_driver() -> World {
    let wrap = |fake| PanicsOnce {
        fake,
        connected: false,
    };
    let world = World::over(|options| options.step_time = STEP, wrap).await;
    world.engine.set_alive(false);
    world
}

#[tokio::test]
async fn without_its_driver_a_server_is_not_ready() {
    let world = world_without_driver().await;
    // Once the status of the lost engine has passed.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let health = world.get("/health").await;
    insta::assert_snapshot!(health.show(), @r#"
503
{"error":"the server has lost its engine for good and is about to end","error_type":"healthcheck"}
"#);
    assert_eq!(world.post("/generate", long("/generate")).await.status, 503);
}

#[tokio::test]
async fn serving_ends_with_an_error_when_the_driver_is_gone() {
    let world = world_without_driver().await;
    let (listener, _) = server::bind("127.0.0.1", 0).await.unwrap();
    let serving = world.router.serve(listener, STEP, CancellationToken::new());
    let outcome = tokio::time::timeout(Duration::from_secs(60), serving).await;
    let error = outcome.expect("it does not go on without").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the driver's thread has ended unexpectedly"
    );
}
