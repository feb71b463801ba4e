//! Calls that do not end well: each with its status, and nothing left behind.

use std::time::Duration;

use axum::http::StatusCode;
use penstock_router::public_pb::generation_client::GenerationClient;
use penstock_router::public_pb::{GenerateRequest, InfoRequest, Parameters, TokenizeRequest};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use super::{STEP, all, connect, request};
use crate::connections::serve;
use crate::world::World;

/// A client without a connection: what a deadline does to it is the server's doing.
fn inside(world: &World) -> GenerationClient<axum::Router> {
    GenerationClient::new(world.routes.clone())
}

/// Left alone, it takes 78 steps.
fn long() -> GenerateRequest {
    request("a", |parameters| parameters.ignore_eos = Some(true))
}

/// Code, field, reason, seconds until another try, and the message.
fn show(status: &Status) -> String {
    let details = status.get_error_details();
    let field = details.bad_request().map(|bad| {
        let [violation] = bad.field_violations.as_slice() else {
            panic!("one field: {bad:?}");
        };
        assert_eq!(violation.description, status.message());
        violation.field.clone()
    });
    let retry = details.retry_info().and_then(|info| info.retry_delay);
    let reason = details.error_info().map(|info| info.reason.as_str());
    format!(
        "{:?} {} field={} retry={}: {}",
        status.code(),
        reason.unwrap_or("-"),
        field.as_deref().unwrap_or("-"),
        retry.map_or("-".to_owned(), |delay| format!("{delay:?}")),
        status.message()
    )
}

#[tokio::test]
async fn bad_inputs_name_the_field() {
    let world = World::new().await;
    let served = serve(&world, STEP, || ()).await;
    let mut client = connect(&served).await;
    let changes: [fn(&mut Parameters); 10] = [
        |parameters| parameters.temperature = Some(0.0),
        |parameters| parameters.top_p = Some(f64::NAN),
        |parameters| parameters.max_new_tokens = Some(-1),
        |parameters| parameters.max_new_tokens = Some(1000),
        |parameters| parameters.stop = vec!["x".to_owned(); 3],
        |parameters| parameters.logit_bias = [(1000, 1.0)].into(),
        |parameters| parameters.adapter_id = Some("x".to_owned()),
        |parameters| parameters.best_of = Some(2),
        |parameters| parameters.priority = Some(6),
        |parameters| parameters.cache_salt = Some(String::new()),
    ];
    let mut requests = vec![request("", |_| ()), request(&"a".repeat(2000), |_| ())];
    requests.extend(changes.map(|change| request("a", change)));
    let mut answers = Vec::new();
    for request in requests {
        let whole = client.generate(request.clone()).await.unwrap_err();
        let stream = client.generate_stream(request).await.unwrap_err();
        assert_eq!(show(&stream), show(&whole));
        answers.push(show(&whole));
    }
    let mut odd = Request::new(long());
    let timeout = "100x".parse().unwrap();
    odd.metadata_mut().insert("grpc-timeout", timeout);
    answers.push(show(&inside(&world).generate(odd).await.unwrap_err()));
    insta::assert_snapshot!(answers.join("\n"), @r#"
InvalidArgument INVALID_VALUE field=inputs retry=-: Input validation error: `inputs` cannot be empty
ResourceExhausted PAYLOAD_TOO_LARGE field=- retry=-: the body must have <= 2000 bytes (--payload-limit). Given: more
InvalidArgument INVALID_VALUE field=temperature retry=-: Input validation error: `temperature` must be strictly positive (> 0). Given: 0
InvalidArgument INVALID_VALUE field=top_p retry=-: Input validation error: `top_p` must be finite and at most 3.4028235e38. Given: NaN
InvalidArgument INVALID_VALUE field=max_new_tokens retry=-: Input validation error: `max_new_tokens` must be strictly positive (>= 1). Given: -1
InvalidArgument INVALID_VALUE field=max_new_tokens retry=-: Input validation error: `inputs` tokens + `max_new_tokens` must be <= 80. Given: 2 `inputs` tokens and 1000 `max_new_tokens`
InvalidArgument INVALID_VALUE field=stop retry=-: Input validation error: `stop` supports up to 2 stop sequences. Given: 3
InvalidArgument INVALID_VALUE field=logit_bias retry=-: Input validation error: `logit_bias` keys must be token ids < 46. Given: "1000"
InvalidArgument INVALID_VALUE field=adapter_id retry=-: Input validation error: `adapter_id` is not supported yet
InvalidArgument INVALID_VALUE field=best_of retry=-: Input validation error: `best_of` is not supported yet
InvalidArgument INVALID_VALUE field=priority retry=-: Input validation error: `priority` must be >= 0 and <= 5. Given: 6
InvalidArgument INVALID_VALUE field=cache_salt retry=-: Input validation error: `cache_salt` must have >= 1 and <= 256 bytes. Given: 0
InvalidArgument INVALID_VALUE field=grpc-timeout retry=-: Input validation error: `grpc-timeout` must be at most 8 digits and one of H, M, S, m, u, n. Given: "100x"
"#);

    let name = "tgi_request_failure{err=\"validation\"}";
    assert_eq!(world.metric(name).await, 25.0);
}

#[tokio::test]
async fn overload_says_when_to_try_again() {
    let world = World::with(|options| {
        options.limits.max_concurrent_requests = 1;
        options.step_time = STEP;
    })
    .await;
    let served = serve(&world, STEP, || ()).await;
    let mut client = connect(&served).await;
    let mut first = client.generate_stream(long()).await.unwrap().into_inner();
    first.message().await.unwrap().unwrap();
    let refused = client.generate(long()).await.unwrap_err();
    assert_eq!(
        show(&refused),
        "ResourceExhausted OVERLOADED field=- retry=1s: Model is overloaded"
    );
    let refused = client.generate_stream(long()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    drop(first);
    world.wait_for_quiet().await;
    let failed = |label| format!("tgi_request_failure{{err=\"{label}\"}}");
    assert_eq!(world.metric(&failed("overloaded")).await, 2.0);
    assert_eq!(world.metric(&failed("dropped")).await, 1.0);
}

#[tokio::test]
async fn without_an_engine_calls_are_unavailable() {
    let world = World::with(|options| {
        options.alive = false;
        options.step_time = STEP;
    })
    .await;
    let served = serve(&world, STEP, || ()).await;
    let mut client = connect(&served).await;
    let early = client.generate(long()).await.unwrap_err();
    assert_eq!(
        show(&early),
        "Unavailable NOT_READY field=- retry=5s: the model is not ready yet: connect, 0 %"
    );
    let inputs = "hi".to_owned();
    let early = client.tokenize(TokenizeRequest { inputs }).await;
    assert_eq!(
        show(&early.unwrap_err()),
        "Unavailable NOT_READY field=- retry=5s: the model is not ready yet: connect, 0 %"
    );
    let info = client.info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.model_dtype, info.max_total_tokens), (None, Some(80)));
    world.engine.set_alive(true);
    world.wait_for_health(StatusCode::OK).await;
    let mut stream = client.generate_stream(long()).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    world.engine.set_alive(false);
    let (_, end) = all(stream).await;
    insta::assert_snapshot!(
        show(&end.unwrap_err()),
        @"Unavailable GENERATION field=- retry=-: Request failed during generation: the model's worker stopped while this request was running; send it again"
    );
}

/// 78 steps of 100 ms against a deadline of 150 ms.
#[tokio::test]
async fn a_deadline_ends_the_request() {
    let world = World::with(|options| options.step_time = STEP * 10).await;
    let mut client = inside(&world);
    let late = || {
        let mut request = Request::new(long());
        request.set_timeout(STEP * 15);
        request
    };
    let expected = "DeadlineExceeded DEADLINE_EXCEEDED field=- retry=-: the deadline of this call has passed; what \
                    still ran is cancelled";
    assert_eq!(show(&client.generate(late()).await.unwrap_err()), expected);
    world.wait_for_quiet().await;
    let stream = client.generate_stream(late()).await.unwrap().into_inner();
    let (messages, end) = all(stream).await;
    assert!(messages.len() < 78);
    assert_eq!(show(&end.unwrap_err()), expected);
    world.wait_for_quiet().await;
    assert_eq!(
        world.metric("tgi_request_failure{err=\"deadline\"}").await,
        2.0
    );
    // One that is met changes nothing.
    let one = request("a", |parameters| parameters.max_new_tokens = Some(1));
    let mut early = Request::new(one);
    early.set_timeout(Duration::from_secs(60));
    assert!(client.generate(early).await.is_ok());
}

/// Left alone, each would run for 7.8 s: longer than the wait for quiet.
#[tokio::test]
async fn a_call_that_is_cancelled_frees_its_request() {
    let world = World::with(|options| options.step_time = STEP * 10).await;
    let served = serve(&world, STEP, || ()).await;
    let mut client = connect(&served).await;
    let mut stream = client.generate_stream(long()).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    assert_eq!(world.router.num_requests(), 1);
    drop(stream);
    world.wait_for_quiet().await;
    let mut other = client.clone();
    let call = tokio::spawn(async move { other.generate(long()).await });
    while world.metric("penstock_running_requests").await < 1.0 {
        tokio::time::sleep(STEP).await;
    }
    call.abort();
    world.wait_for_quiet().await;
    assert_eq!(
        world.metric("tgi_request_failure{err=\"dropped\"}").await,
        2.0
    );
}

#[tokio::test]
async fn a_drain_lets_calls_end() {
    let world = World::with(|options| options.step_time = STEP).await;
    let served = serve(&world, Duration::from_secs(60), || panic!("it has time")).await;
    let mut client = connect(&served).await;
    let mut stream = client.generate_stream(long()).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    world.router.drain();
    let refused = client.generate(long()).await.unwrap_err();
    assert_eq!(
        show(&refused),
        "Unavailable NOT_READY field=- retry=5s: the server is shutting down"
    );
    served.stop.cancel();
    let (messages, end) = all(stream).await;
    end.unwrap();
    assert_eq!(messages.len(), 77);
    drop(client);
    let done = tokio::time::timeout(Duration::from_secs(30), served.done);
    done.await.unwrap().unwrap();
}
