//! What a request says about its turn, and what it is told of it.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};
use http_body_util::BodyExt;
use penstock_router::event::{Failure, Output, Refusal};
use penstock_router::public_pb::generation_client::GenerationClient;
use penstock_router::public_pb::{GenerateRequest, Parameters};
use penstock_router::request::Scheduling;
use serde_json::{Value, json};
use tonic::Code;
use tonic_types::StatusExt;
use tower::ServiceExt;

use crate::scripted::{finished, started, token};
use crate::world::World;

const TENANT: &str = "x-gateway-inference-fairness-id";

/// Every route that generates, with the body of a small request in which these fields are.
fn bodies(fields: &Value) -> [(&'static str, Value); 8] {
    let native = |stream: bool| {
        let mut parameters = json!({"max_new_tokens": 1});
        merge(&mut parameters, fields);
        json!({"inputs": "a", "stream": stream, "parameters": parameters})
    };
    let v1 = |prompt: Value| {
        let mut body = json!({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}]});
        merge(&mut body, fields);
        merge(&mut body, &prompt);
        body
    };
    let completion = || v1(json!({"prompt": "a"}));
    let mut completion_alone = completion();
    completion_alone.as_object_mut().unwrap().remove("messages");
    [
        ("/generate", native(false)),
        ("/generate_stream", native(true)),
        ("/", native(false)),
        ("/v1/chat/completions", v1(json!({}))),
        ("/v1/completions", completion()),
        ("/invocations", native(false)),
        ("/invocations", v1(json!({}))),
        ("/invocations", completion_alone),
    ]
}

fn merge(body: &mut Value, fields: &Value) {
    let fields = fields.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
}

/// What the scheduler gets to see of a request on each route.
async fn seen(fields: &Value, headers: &[(&str, &str)]) -> Vec<Scheduling> {
    let (world, mut script) = World::scripted(|_| ());
    let mut all = Vec::new();
    for (path, body) in bodies(fields) {
        let mut with_type = vec![("content-type", "application/json")];
        with_type.extend_from_slice(headers);
        let body = body.to_string();
        let request = world.send(Method::POST, path, &with_type, &body);
        let (reply, request) = tokio::join!(request, script.answer());
        assert_eq!(reply.status, 200, "{path}: {}", reply.body);
        all.push(request.scheduling);
    }
    let parameters = Parameters {
        max_new_tokens: Some(1),
        priority: fields["priority"].as_i64(),
        cache_salt: fields["cache_salt"].as_str().map(str::to_owned),
        ..Parameters::default()
    };
    let mut request = tonic::Request::new(GenerateRequest {
        inputs: "a".to_owned(),
        parameters: Some(parameters),
    });
    for (name, value) in headers {
        let name: tonic::metadata::AsciiMetadataKey = name.parse().unwrap();
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    let mut client = GenerationClient::new(world.routes.clone());
    let (reply, request) = tokio::join!(client.generate(request), script.answer());
    reply.unwrap();
    all.push(request.scheduling);
    all
}

#[tokio::test]
async fn the_class_is_the_priority_of_the_body() {
    for (fields, class) in [
        (json!({}), 3),
        (json!({"priority": null}), 3),
        (json!({"priority": 0}), 3),
        (json!({"priority": 1}), 1),
        (json!({"priority": 5}), 5),
    ] {
        for scheduling in seen(&fields, &[]).await {
            assert_eq!(scheduling.class, class, "{fields}");
        }
    }
}

#[tokio::test]
async fn the_tenant_is_the_one_of_the_header() {
    let tenants = async |headers: &[(&str, &str)]| {
        let all = seen(&json!({}), headers).await;
        assert!(all.iter().all(|one| one.tenant == all[0].tenant), "{all:?}");
        all[0].tenant
    };
    assert_eq!(tenants(&[]).await, 0);
    assert_eq!(tenants(&[(TENANT, "")]).await, 0);
    let (red, blue) = (
        tenants(&[(TENANT, "red")]).await,
        tenants(&[(TENANT, "blue")]).await,
    );
    assert_ne!(red, 0);
    assert_ne!(red, blue);
    assert_eq!(red, tenants(&[(TENANT, "red")]).await);
}

#[tokio::test]
async fn the_salt_is_the_one_of_the_body() {
    let salts = async |fields: Value| {
        let all = seen(&fields, &[]).await;
        assert!(all.iter().all(|one| one.cache_salt == all[0].cache_salt));
        all[0].cache_salt
    };
    assert_eq!(salts(json!({})).await, 0);
    let (a, b) = (
        salts(json!({"cache_salt": "a"})).await,
        salts(json!({"cache_salt": "b"})).await,
    );
    assert_ne!(a, 0);
    assert_ne!(a, b);
    assert_ne!(salts(json!({"cache_salt": "x".repeat(256)})).await, 0);
}

#[tokio::test]
async fn the_queue_timeout_is_the_flags_and_the_total_one_grpcs() {
    let (world, mut script) = World::scripted(|options| {
        options.limits.queue_timeout = Some(Duration::from_millis(1500));
    });
    let mut client = GenerationClient::new(world.routes.clone());
    for deadline in [None, Some(Duration::from_secs(60))] {
        let mut request = tonic::Request::new(GenerateRequest {
            inputs: "a".to_owned(),
            parameters: None,
        });
        if let Some(deadline) = deadline {
            request.set_timeout(deadline);
        }
        let (reply, request) = tokio::join!(client.generate(request), script.answer());
        reply.unwrap();
        let Scheduling {
            queue_timeout,
            total_timeout,
            ..
        } = request.scheduling;
        assert_eq!(queue_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(total_timeout.is_some(), deadline.is_some());
        if let (Some(total), Some(deadline)) = (total_timeout, deadline) {
            assert!(total <= deadline && total > deadline / 2, "{total:?}");
        }
    }
}

fn refused(refusal: Refusal) -> Output {
    Output::Failed(Failure::Refused {
        refusal,
        retry_after_s: 7,
        waited: None,
    })
}

/// What each route that generates is asked, streaming where it can.
fn asks() -> [(&'static str, Value); 7] {
    let chat =
        |stream: bool| json!({"messages": [{"role": "user", "content": "a"}], "stream": stream});
    let native = |stream: bool| json!({"inputs": "a", "stream": stream});
    [
        ("/generate", native(false)),
        ("/generate_stream", native(true)),
        ("/", native(true)),
        ("/v1/chat/completions", chat(false)),
        ("/v1/chat/completions", chat(true)),
        ("/v1/completions", json!({"prompt": "a"})),
        ("/v1/completions", json!({"prompt": "a", "stream": true})),
    ]
}

#[tokio::test]
async fn whoever_is_turned_away_at_once_is_told_by_the_status() {
    let (world, mut script) = World::scripted(|_| ());
    for (path, body) in asks() {
        let turn_away = async {
            let request = script.submitted().await;
            // Later than the answer to a command is on a busy machine.
            tokio::time::sleep(Duration::from_millis(10)).await;
            let end = refused(Refusal::QueueFull);
            script.deliver(request.id, [end]).await;
        };
        let (reply, ()) = tokio::join!(world.post(path, body.clone()), turn_away);
        assert_eq!(reply.status, 429, "{path} {body}");
        assert_eq!(reply.headers["retry-after"], "7", "{path} {body}");
        let json = reply.json();
        assert_eq!(json["error_type"], "overloaded", "{path} {body}");
        assert!(reply.body.contains("(queue_full)"), "{}", reply.body);
    }
    let labels = world
        .metric("tgi_request_failure{err=\"overloaded\"}")
        .await;
    assert_eq!(labels, 7.0);
    assert_eq!(world.router.num_requests(), 0);
}

/// The prompts of one request are one: the other is given up.
#[tokio::test]
async fn one_prompt_of_several_turns_the_request_away() {
    let (world, mut script) = World::scripted(|_| ());
    for stream in [false, true] {
        let body = json!({"prompt": ["a", "b"], "stream": stream});
        let turn_away = async {
            let (first, second) = (script.submitted().await, script.submitted().await);
            script.deliver(first.id, [started(), token(0)]).await;
            let end = refused(Refusal::PredictedWait);
            script.deliver(second.id, [end]).await;
            first.id
        };
        let both = async { tokio::join!(world.post("/v1/completions", body), turn_away) };
        // The first prompt never ends by itself.
        let in_time = tokio::time::timeout(Duration::from_secs(10), both).await;
        let (reply, first) = in_time.expect("the second prompt's end is not waited for");
        insta::allow_duplicates! {
            insta::assert_snapshot!(reply.show(), @r#"
429
{"error":{"message":"Model is overloaded: the predicted wait exceeds this request's time limit (predicted_wait)","type":"rate_limit_error","param":null,"code":"overloaded","http_status_code":429},"error_type":"overloaded"}
"#);
        }
        script.cancelled(first).await;
    }
}

#[tokio::test]
async fn grpc_clients_that_are_turned_away_learn_when_to_come_back() {
    let (world, mut script) = World::scripted(|_| ());
    let mut client = GenerationClient::new(world.routes.clone());
    let request = GenerateRequest {
        inputs: "a".to_owned(),
        parameters: None,
    };
    for streams in [false, true] {
        let turn_away = async {
            let id = script.submitted().await.id;
            script.deliver(id, [refused(Refusal::QueueFull)]).await;
        };
        let call = async {
            if streams {
                let answer = client.generate_stream(request.clone()).await;
                answer.map(|_| ())
            } else {
                client.generate(request.clone()).await.map(|_| ())
            }
        };
        let (answer, ()) = tokio::join!(call, turn_away);
        let status = answer.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        let retry = status.get_details_retry_info().unwrap().retry_delay;
        assert_eq!(retry, Some(Duration::from_secs(7)));
        assert!(status.message().contains("(queue_full)"), "{status}");
    }
}

/// Its headers have gone by then, so it is told by an event.
#[tokio::test]
async fn a_stream_that_waits_in_vain_ends_with_an_event() {
    let (world, mut script) = World::scripted(|_| ());
    for path in ["/generate_stream", "/v1/chat/completions"] {
        let body =
            json!({"inputs": "a", "messages": [{"role": "user", "content": "a"}], "stream": true});
        let wait = async {
            let id = script.submitted().await.id;
            tokio::time::sleep(Duration::from_millis(300)).await;
            script.deliver(id, [refused(Refusal::QueueTimeout)]).await;
        };
        let (reply, ()) = tokio::join!(world.post(path, body), wait);
        assert_eq!(reply.status, 200, "{path}");
        let events = reply.events();
        let [event] = events.as_slice() else {
            panic!("one event: {}", reply.body);
        };
        assert_eq!(event["error_type"], "overloaded", "{path}");
        assert!(reply.body.contains("(queue_timeout)"), "{}", reply.body);
    }
    // A whole answer has its headers still before it.
    let wait = async {
        let id = script.submitted().await.id;
        tokio::time::sleep(Duration::from_millis(300)).await;
        script.deliver(id, [refused(Refusal::QueueTimeout)]).await;
    };
    let (reply, ()) = tokio::join!(world.post("/generate", json!({"inputs": "a"})), wait);
    assert_eq!(reply.status, 429);
    let labels = world
        .metric("tgi_request_failure{err=\"overloaded\"}")
        .await;
    assert_eq!(labels, 3.0);
}

/// The headers of a stream come before its first token if that takes long.
#[tokio::test]
async fn a_slow_first_token_does_not_hold_up_the_headers() {
    let (world, mut script) = World::scripted(|_| ());
    let request = Request::builder()
        .method(Method::POST)
        .uri("/generate_stream")
        .header("content-type", "application/json")
        .body(Body::from("{\"inputs\": \"a\"}"))
        .unwrap();
    let headers = world.routes.clone().oneshot(request);
    let in_time = tokio::time::timeout(Duration::from_secs(10), headers).await;
    let response = in_time.expect("they come").unwrap();
    assert_eq!(response.status(), 200);
    let id = script.submitted().await.id;
    script.deliver(id, [started(), token(0), finished()]).await;
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(body.starts_with(b"data: "), "{body:?}");
}

#[tokio::test]
async fn a_deadline_that_the_scheduler_keeps_is_one() {
    let (world, mut script) = World::scripted(|_| ());
    let end = async {
        let id = script.submitted().await.id;
        let end = Output::Failed(Failure::DeadlineExceeded);
        script.deliver(id, [end]).await;
    };
    let (reply, ()) = tokio::join!(world.post("/generate", json!({"inputs": "a"})), end);
    insta::assert_snapshot!(reply.show(), @r#"
504
{"error":"the deadline of this call has passed; what still ran is cancelled","error_type":"deadline_exceeded"}
"#);
    let end = async {
        let id = script.submitted().await.id;
        script.deliver(id, [started(), token(0)]).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let end = Output::Failed(Failure::DeadlineExceeded);
        script.deliver(id, [end]).await;
    };
    let (reply, ()) = tokio::join!(world.post("/generate_stream", json!({"inputs": "a"})), end);
    assert_eq!(reply.status, 200);
    let labels = world.metric("tgi_request_failure{err=\"deadline\"}").await;
    assert_eq!(labels, 2.0);
}
