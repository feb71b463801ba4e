//! Answers are those of HTTP, token for token.

use penstock_router::public_pb::{
    FinishReason, GenerateRequest, InfoRequest, Parameters, Token, TokenizeRequest,
};
use serde_json::{Value, json};

use super::{STEP, all, connect, request};
use crate::connections::serve;
use crate::world::World;

/// As the native routes write it: numbers with the digits that tell an f32 from others.
fn json_token(token: &Token) -> Value {
    let logprob = token.logprob.map(|logprob| logprob.to_string());
    let logprob: Option<f64> = logprob.map(|digits| digits.parse().unwrap());
    json!({"id": token.id, "text": token.text, "logprob": logprob, "special": token.special})
}

fn json_tokens(tokens: &[Token]) -> Value {
    tokens.iter().map(json_token).collect()
}

fn json_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Unspecified => panic!("every answer has a reason"),
        FinishReason::Length => "length",
        FinishReason::EosToken => "eos_token",
        FinishReason::StopSequence => "stop_sequence",
    }
}

type Case = (fn(&mut Parameters), Value);

/// The same parameters in both forms.
fn cases() -> [Case; 4] {
    [
        (|_| (), json!({})),
        (
            |parameters| {
                parameters.do_sample = Some(true);
                parameters.seed = Some(7);
                parameters.temperature = Some(0.5);
                parameters.top_k = Some(20);
                parameters.top_p = Some(0.9);
            },
            json!({"do_sample": true, "seed": 7, "temperature": 0.5, "top_k": 20, "top_p": 0.9}),
        ),
        (
            |parameters| {
                parameters.top_n_tokens = Some(3);
                parameters.return_full_text = Some(true);
                parameters.ignore_eos = Some(true);
                parameters.repetition_penalty = Some(1.5);
                parameters.logit_bias = [(3, 50.0), (4, -20.0)].into();
            },
            json!({
                "top_n_tokens": 3, "return_full_text": true, "ignore_eos": true, "repetition_penalty": 1.5,
                "logit_bias": {"3": 50.0, "4": -20.0}
            }),
        ),
        (
            |parameters| {
                parameters.stop = ["d".to_owned()].into();
                parameters.logit_bias = [(3, 100.0)].into();
                parameters.truncate = Some(2);
            },
            json!({"stop": ["d"], "logit_bias": {"3": 100.0}, "truncate": 2}),
        ),
    ]
}

#[tokio::test]
async fn answers_are_those_of_http() {
    let world = World::new().await;
    let served = serve(&world, STEP, || ()).await;
    let mut client = connect(&served).await;
    for (change, mut json) in cases() {
        json["details"] = true.into();
        json["max_new_tokens"] = 12.into();
        let body = json!({"inputs": "hello you", "parameters": json});
        let request = request("hello you", |parameters| {
            parameters.details = Some(true);
            parameters.max_new_tokens = Some(12);
            change(parameters);
        });
        let expected = world.post("/generate", body.clone()).await.json();
        let reply = client.generate(request.clone()).await.unwrap().into_inner();
        let details = reply.details.unwrap();
        let top = details
            .top_tokens
            .iter()
            .map(|top| json_tokens(&top.tokens));
        let mut actual = json!({
            "generated_text": reply.generated_text,
            "details": {
                "finish_reason": json_reason(details.finish_reason()),
                "generated_tokens": details.generated_tokens,
                "seed": details.seed,
                "prefill": [],
                "tokens": json_tokens(&details.tokens),
            }
        });
        if !details.top_tokens.is_empty() {
            actual["details"]["top_tokens"] = top.collect();
        }
        assert_eq!(actual, expected, "{body}");

        let expected = world.post("/generate_stream", body.clone()).await.events();
        let stream = client.generate_stream(request).await.unwrap().into_inner();
        let (messages, end) = all(stream).await;
        end.unwrap();
        let actual = messages.iter().map(|message| {
            let details = message.details.as_ref().map(|details| {
                json!({
                    "finish_reason": json_reason(details.finish_reason()),
                    "generated_tokens": details.generated_tokens,
                    "seed": details.seed,
                    "input_length": details.input_length,
                })
            });
            let mut event = json!({
                "index": message.index,
                "token": json_token(message.token.as_ref().unwrap()),
                "generated_text": message.generated_text,
                "details": details,
            });
            if !message.top_tokens.is_empty() {
                event["top_tokens"] = json_tokens(&message.top_tokens);
            }
            event
        });
        assert_eq!(actual.collect::<Vec<_>>(), expected, "{body}");
    }
    world.wait_for_quiet().await;
    // Two of HTTP and two of gRPC each.
    assert_eq!(world.metric("tgi_request_count").await, 16.0);
    assert_eq!(world.metric("tgi_request_success").await, 16.0);
}

/// Without parameters tokens are drawn; with empty ones they are not; without `details` there are none.
#[tokio::test]
async fn what_is_not_set_is_absent() {
    let world = World::new().await;
    let served = serve(&world, STEP, || ()).await;
    let mut client = connect(&served).await;
    let bare = GenerateRequest {
        inputs: "a".to_owned(),
        parameters: None,
    };
    let reply = client.generate(bare).await.unwrap().into_inner();
    assert_eq!(reply.details, None);
    let zeros = request("a", |parameters| {
        parameters.top_n_tokens = Some(0);
        parameters.min_new_tokens = Some(0);
        parameters.seed = Some(0);
        parameters.max_new_tokens = Some(2);
    });
    let reply = client.generate(zeros).await.unwrap().into_inner();
    assert_eq!(reply.details, None);
    for (do_sample, seed) in [(None, None), (Some(true), Some(0))] {
        let request = request("a", |parameters| {
            parameters.details = Some(true);
            parameters.max_new_tokens = Some(2);
            parameters.do_sample = do_sample;
            parameters.seed = seed;
        });
        let reply = client.generate(request).await.unwrap().into_inner();
        assert_eq!(reply.details.unwrap().seed, seed);
    }
}

#[tokio::test]
async fn info_and_tokens_are_those_of_http() {
    let world = World::new().await;
    let served = serve(&world, STEP, || ()).await;
    let mut client = connect(&served).await;
    let info = client.info(InfoRequest {}).await.unwrap().into_inner();
    let expected = world.get("/info").await.json();
    assert_eq!(info.model_id, expected["model_id"]);
    assert_eq!(info.model_dtype.unwrap(), expected["model_dtype"]);
    assert_eq!(info.max_total_tokens.unwrap(), expected["max_total_tokens"]);
    assert_eq!(
        info.max_batch_total_tokens.unwrap(),
        expected["max_batch_total_tokens"]
    );
    let inputs = "hé".to_owned();
    let tokens = client.tokenize(TokenizeRequest { inputs }).await.unwrap();
    let tokens = tokens.into_inner().tokens.into_iter();
    let places: Vec<_> = tokens
        .map(|token| (token.text, token.start, token.stop))
        .collect();
    // The first was added.
    let expected = [("", 0, 0), ("h", 0, 1), ("é", 1, 3), ("é", 1, 3)];
    assert_eq!(
        places,
        expected.map(|(text, start, stop)| (text.to_owned(), start, stop))
    );
}
