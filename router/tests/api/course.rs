//! What the scheduler did with a request, where its answer says so.

use std::time::Duration;

use penstock_router::event::{Output, WaitReason};
use penstock_router::public_pb as pb;
use penstock_router::public_pb::generation_client::GenerationClient;
use serde_json::{Value, json};

use crate::scripted::{Script, finished, token};
use crate::world::World;

/// A request that waited, found 12 tokens, was stopped twice, and made one token.
fn eventful() -> Vec<Output> {
    let started = Output::Started {
        queue: Duration::ZERO,
        cached_tokens: 12,
        waited: Some(WaitReason::Blocks),
    };
    vec![
        started,
        Output::Preempted,
        Output::Preempted,
        token(0),
        finished(),
    ]
}

async fn answer(script: &mut Script, num_prompts: usize) {
    for _ in 0..num_prompts {
        let id = script.submitted().await.id;
        script.deliver(id, eventful()).await;
    }
}

async fn ask(world: &World, script: &mut Script, path: &str, body: Value) -> String {
    let num_prompts = body["prompt"].as_array().map_or(1, Vec::len);
    let (reply, ()) = tokio::join!(world.post(path, body), answer(script, num_prompts));
    reply.show()
}

#[tokio::test]
async fn usage_names_the_cached_tokens() {
    let (world, mut script) = World::scripted(|_| ());
    let chat = json!({"messages": [{"role": "user", "content": "hi"}]});
    let path = "/v1/chat/completions";
    insta::assert_snapshot!(ask(&world, &mut script, path, chat).await, @r#"
200
{"id":"ID","object":"chat.completion","created":0,"model":"org/tiny","system_fingerprint":"0.1.0-native","choices":[{"index":0,"message":{"role":"assistant","content":"a"},"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":21,"completion_tokens":1,"total_tokens":22,"prompt_tokens_details":{"cached_tokens":12}}}
"#);
    let two =
        json!({"prompt": ["hi", "you"], "stream": true, "stream_options": {"include_usage": true}});
    let reply = ask(&world, &mut script, "/v1/completions", two).await;
    let usage = r#""usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,"prompt_tokens_details":{"cached_tokens":24}}}"#;
    assert!(reply.contains(usage), "{reply}");
    assert!(!reply.contains("\"scheduling\""), "{reply}");
}

#[tokio::test]
async fn scheduling_details_stand_beside_usage() {
    let (world, mut script) = World::scripted(|_| ());
    let one = r#""scheduling":{"cached_tokens":12,"waited":"blocks","preemptions":2}}"#;
    for stream in [false, true] {
        for usage in [false, true] {
            let messages = json!([{"role": "user", "content": "hi"}]);
            let body = json!({"messages": messages, "prompt": "hi", "scheduling_details": true,
                "stream": stream, "stream_options": {"include_usage": usage}});
            for path in ["/v1/chat/completions", "/v1/completions"] {
                let reply = ask(&world, &mut script, path, body.clone()).await;
                assert_eq!(reply.matches(one).count(), 1, "{path}: {reply}");
                let has_usage = reply.contains("\"usage\":{\"prompt_tokens\"");
                assert_eq!(has_usage, usage || !stream, "{path}: {reply}");
            }
        }
        let two = json!({"prompt": ["a", "b"], "scheduling_details": true, "stream": stream});
        let reply = ask(&world, &mut script, "/v1/completions", two).await;
        let sum = r#""scheduling":{"cached_tokens":24,"waited":"blocks","preemptions":4}}"#;
        assert_eq!(reply.matches(sum).count(), 1, "{reply}");
    }
}

#[tokio::test]
async fn native_details_have_it_if_asked() {
    let (world, mut script) = World::scripted(|_| ());
    let plain = json!({"inputs": "hi", "parameters": {"details": true, "max_new_tokens": 1}});
    insta::assert_snapshot!(ask(&world, &mut script, "/generate", plain.clone()).await, @r#"
200
{"generated_text":"a","details":{"finish_reason":"length","generated_tokens":1,"seed":null,"prefill":[],"tokens":[{"id":0,"text":"a","logprob":null,"special":false}]}}
"#);
    insta::assert_snapshot!(ask(&world, &mut script, "/generate_stream", plain).await, @r#"
200
data: {"index":1,"token":{"id":0,"text":"a","logprob":null,"special":false},"generated_text":"a","details":{"finish_reason":"length","generated_tokens":1,"seed":null,"input_length":3}}
"#);
    // It cannot stand there without them.
    let asked =
        json!({"inputs": "hi", "parameters": {"scheduling_details": true, "max_new_tokens": 1}});
    insta::assert_snapshot!(ask(&world, &mut script, "/generate", asked.clone()).await, @r#"
200
{"generated_text":"a","details":{"finish_reason":"length","generated_tokens":1,"seed":null,"prefill":[],"tokens":[{"id":0,"text":"a","logprob":null,"special":false}],"scheduling":{"cached_tokens":12,"waited":"blocks","preemptions":2}}}
"#);
    insta::assert_snapshot!(ask(&world, &mut script, "/generate_stream", asked).await, @r#"
200
data: {"index":1,"token":{"id":0,"text":"a","logprob":null,"special":false},"generated_text":"a","details":{"finish_reason":"length","generated_tokens":1,"seed":null,"input_length":3,"scheduling":{"cached_tokens":12,"waited":"blocks","preemptions":2}}}
"#);
}

#[tokio::test]
async fn grpc_details_have_it_if_asked() {
    let (world, mut script) = World::scripted(|_| ());
    let mut client = GenerationClient::new(world.routes.clone());
    let told = pb::Scheduling {
        cached_tokens: 12,
        waited: Some("blocks".to_owned()),
        preemptions: 2,
    };
    for (asked, expected) in [(None, None), (Some(true), Some(told))] {
        let request = pb::GenerateRequest {
            inputs: "hi".to_owned(),
            parameters: Some(pb::Parameters {
                details: Some(true),
                scheduling_details: asked,
                ..pb::Parameters::default()
            }),
        };
        let call = client.generate(request.clone());
        let (reply, ()) = tokio::join!(call, answer(&mut script, 1));
        let details = reply.unwrap().into_inner().details.unwrap();
        assert_eq!(details.scheduling, expected);
        let call = client.generate_stream(request);
        let (reply, ()) = tokio::join!(call, answer(&mut script, 1));
        let last = reply.unwrap().into_inner().message().await.unwrap();
        let details = last.unwrap().details.unwrap();
        assert_eq!(details.scheduling, expected);
    }
}
