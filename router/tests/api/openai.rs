use serde_json::{Value, json};

use crate::world::World;

fn chat(extra: &Value) -> Value {
    let mut body = json!({"model": "tgi", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 4});
    body.as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    body
}

fn completion(extra: &Value) -> Value {
    let mut body = json!({"prompt": "once upon", "temperature": 0, "max_tokens": 4});
    body.as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn chat_answers() {
    let world = World::new().await;
    let reply = world.post("/v1/chat/completions", chat(&json!({}))).await;
    insta::assert_snapshot!(reply.show(), @r#"
200
{"id":"ID","object":"chat.completion","created":0,"model":"org/tiny","system_fingerprint":"0.1.0-native","choices":[{"index":0,"message":{"role":"assistant","content":"djjh"},"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":21,"completion_tokens":4,"total_tokens":25,"prompt_tokens_details":{"cached_tokens":0}}}
"#);
    assert!(
        reply.json()["id"]
            .as_str()
            .unwrap()
            .starts_with("chatcmpl-")
    );
    assert_eq!(reply.headers["x-generated-tokens"], "4");
    let logprobs = chat(&json!({"max_tokens": 1, "logprobs": true, "top_logprobs": 2}));
    let reply = world.post("/v1/chat/completions", logprobs).await;
    insta::assert_snapshot!(reply.show(), @r#"
200
{"id":"ID","object":"chat.completion","created":0,"model":"org/tiny","system_fingerprint":"0.1.0-native","choices":[{"index":0,"message":{"role":"assistant","content":"d"},"logprobs":{"content":[{"token":"d","logprob":-0.45867515,"bytes":[100],"top_logprobs":[{"token":"d","logprob":-0.45867515,"bytes":[100]},{"token":"e","logprob":-1.4586751,"bytes":[101]}]}]},"finish_reason":"length"}],"usage":{"prompt_tokens":21,"completion_tokens":1,"total_tokens":22,"prompt_tokens_details":{"cached_tokens":16}}}
"#);
}

#[tokio::test]
async fn chat_streams_and_ends_with_done() {
    let world = World::new().await;
    let body =
        chat(&json!({"stream": true, "max_tokens": 1, "stream_options": {"include_usage": true}}));
    let reply = world.post("/v1/chat/completions", body).await;
    insta::assert_snapshot!(reply.show(), @r#"
200
data: {"id":"ID","object":"chat.completion.chunk","created":0,"model":"org/tiny","system_fingerprint":"0.1.0-native","choices":[{"index":0,"delta":{"role":"assistant","content":"d"},"logprobs":null,"finish_reason":"length"}],"usage":null}

data: {"id":"ID","object":"chat.completion.chunk","created":0,"model":"org/tiny","system_fingerprint":"0.1.0-native","choices":[],"usage":{"prompt_tokens":21,"completion_tokens":1,"total_tokens":22,"prompt_tokens_details":{"cached_tokens":0}}}

data: [DONE]
"#);
}

#[tokio::test]
async fn a_stream_says_what_the_plain_answer_says() {
    let world = World::new().await;
    for max_tokens in [1, 7, 50] {
        let body = chat(&json!({"max_tokens": max_tokens, "ignore_eos": true}));
        let plain = world.post("/v1/chat/completions", body).await.json();
        let body = chat(&json!({"max_tokens": max_tokens, "ignore_eos": true, "stream": true}));
        let events = world.post("/v1/chat/completions", body).await.events();
        let (done, chunks) = events.split_last().unwrap();
        assert_eq!(done, "[DONE]");
        let text: String = chunks
            .iter()
            .map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap())
            .collect();
        assert_eq!(text, plain["choices"][0]["message"]["content"]);
        assert_eq!(
            chunks.last().unwrap()["choices"][0]["finish_reason"],
            "length"
        );
    }
}

/// Removed, whether it is a string or a list, streamed or not, and although it spans two tokens.
#[tokio::test]
async fn stop_strings_are_removed() {
    let world = World::new().await;
    let plain = world
        .post("/v1/completions", completion(&json!({"max_tokens": 8})))
        .await
        .json();
    let text: Vec<char> = plain["choices"][0]["text"]
        .as_str()
        .unwrap()
        .chars()
        .collect();
    let stop: String = text[3..5].iter().collect();
    let expected: String = text[..3].iter().collect();
    for stop in [json!(stop), json!([stop, "never"])] {
        let reply = world
            .post(
                "/v1/completions",
                completion(&json!({"max_tokens": 8, "stop": stop})),
            )
            .await
            .json();
        assert_eq!(reply["choices"][0]["text"], expected);
        assert_eq!(reply["choices"][0]["finish_reason"], "stop");
        assert_eq!(reply["usage"]["completion_tokens"], 5);
        let body = completion(&json!({"max_tokens": 8, "stop": stop, "stream": true}));
        let events = world.post("/v1/completions", body).await.events();
        let streamed: String = events[..events.len() - 1]
            .iter()
            .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap())
            .collect();
        assert_eq!(streamed, expected);
    }
}

/// Special tokens are no text, so nothing is written for a minute; what counts is the silence, not the engine's pace.
#[tokio::test]
async fn a_stream_without_text_is_kept_alive() {
    let world =
        World::with(|options| options.step_time = std::time::Duration::from_millis(20)).await;
    // <s> is 43.
    let bias = json!({"stream": true, "max_tokens": 60, "logit_bias": {"43": 100}});
    let request = world.post("/v1/completions", completion(&bias));
    let pass = async {
        let second = std::time::Duration::from_secs(1);
        for _ in 0..40 {
            tokio::time::pause();
            tokio::time::advance(second).await;
            tokio::time::resume();
            tokio::time::sleep(second / 50).await;
        }
    };
    let (reply, ()) = tokio::join!(request, pass);
    let comments = reply.body.matches(":\n\n").count();
    assert!(comments >= 2, "{}", reply.body);
}

/// OpenAI's clients ask why the text ends, and a stop string is the reason even where the length would do.
#[tokio::test]
async fn a_stop_string_with_the_last_token_counts_as_stop() {
    let world = World::new().await;
    let body = completion(&json!({"max_tokens": 5}));
    let text = world.post("/v1/completions", body).await.json()["choices"][0]["text"].clone();
    let stop: String = text.as_str().unwrap().chars().skip(3).collect();
    let body = completion(&json!({"max_tokens": 5, "stop": stop}));
    let reply = world.post("/v1/completions", body).await.json();
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn completions_answer() {
    let world = World::new().await;
    let reply = world.post("/v1/completions", completion(&json!({}))).await;
    insta::assert_snapshot!(reply.show(), @r#"
200
{"id":"ID","object":"text_completion","created":0,"model":"org/tiny","system_fingerprint":"0.1.0-native","choices":[{"index":0,"text":".tvt","logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":10,"completion_tokens":4,"total_tokens":14,"prompt_tokens_details":{"cached_tokens":0}}}
"#);
    let reply = world
        .post(
            "/v1/completions",
            completion(&json!({"max_tokens": 2, "logprobs": 1})),
        )
        .await;
    insta::assert_snapshot!(reply.show(), @r#"
200
{"id":"ID","object":"text_completion","created":0,"model":"org/tiny","system_fingerprint":"0.1.0-native","choices":[{"index":0,"text":".t","logprobs":{"tokens":[".","t"],"token_logprobs":[-0.45867515,-0.45867515],"top_logprobs":[{".":-0.45867515},{"t":-0.45867515}],"text_offset":[0,1]},"finish_reason":"length"}],"usage":{"prompt_tokens":10,"completion_tokens":2,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":0}}}
"#);
}

#[tokio::test]
async fn completions_take_several_prompts_and_token_ids() {
    let world = World::new().await;
    let one = |prompt: Value| {
        let world = &world;
        async move {
            let reply = world
                .post("/v1/completions", completion(&json!({"prompt": prompt})))
                .await
                .json();
            reply["choices"][0]["text"].clone()
        }
    };
    let (a, b) = (one("a".into()).await, one("b c".into()).await);
    let both = world
        .post(
            "/v1/completions",
            completion(&json!({"prompt": ["a", "b c"]})),
        )
        .await
        .json();
    assert_eq!(both["choices"][0]["text"], a);
    assert_eq!(both["choices"][1]["text"], b);
    assert_eq!(both["usage"]["completion_tokens"], 8);
    // <s> is 43, a is 0.
    assert_eq!(one(json!([43, 0])).await, a);
    assert_eq!(one(json!([[43, 0]])).await, a);
    let body = completion(
        &json!({"prompt": ["a", "b c"], "stream": true, "stream_options": {"include_usage": true}}),
    );
    let events = world.post("/v1/completions", body).await.events();
    for (index, expected) in [a, b].iter().enumerate() {
        let text: String = events
            .iter()
            .filter(|chunk| chunk["choices"][0]["index"] == index)
            .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap())
            .collect();
        assert_eq!(&json!(text), expected);
    }
    let usage = &events[events.len() - 2];
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["total_tokens"], 2 + 4 + 4 + 4);
}

#[tokio::test]
async fn parts_and_continued_answers_reach_the_template() {
    let world = World::new().await;
    let tokens = |messages: Value| {
        let world = &world;
        async move {
            let reply = world
                .post("/v1/chat/completions", chat(&json!({"messages": messages})))
                .await;
            reply.headers["x-compute-characters"]
                .to_str()
                .unwrap()
                .parse::<usize>()
                .unwrap()
        }
    };
    let plain = tokens(json!([{"role": "user", "content": "ab"}])).await;
    assert_eq!(plain, "<s>user: ab\nassistant: ".len());
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    assert_eq!(
        tokens(json!([{"role": "user", "content": parts}])).await,
        plain
    );
    let continued = tokens(
        json!([{"role": "user", "content": "ab"}, {"role": "assistant", "content": "so, "}]),
    )
    .await;
    assert_eq!(continued, "<s>user: ab\nassistant: so, ".len());
    let calls = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": null, "tool_calls": [{}]}, {"role": "tool", "content": "b"}]);
    assert!(tokens(calls).await > plain);
}

#[tokio::test]
async fn models_are_listed_and_checked() {
    let world = World::new().await;
    insta::assert_snapshot!(world.get("/v1/models").await.show(), @r#"
200
{"object":"list","data":[{"id":"org/tiny","object":"model","created":0,"owned_by":"org/tiny"}]}
"#);
    for model in ["tgi", "org/tiny", "tiny"] {
        let reply = world
            .post("/v1/completions", completion(&json!({"model": model})))
            .await;
        assert_eq!(reply.status, 200, "{model}");
    }
    let reply = world
        .post("/v1/completions", completion(&json!({"model": "gpt-4"})))
        .await;
    insta::assert_snapshot!(reply.show(), @r#"
404
{"error":{"message":"the model `gpt-4` does not exist; `org/tiny` is served","type":"invalid_request_error","param":"model","code":"model_not_found","http_status_code":404},"error_type":"model_not_found"}
"#);
}

/// Beside its own names the model has that of the flag, and answers carry that one everywhere.
#[tokio::test]
async fn a_served_name_is_used_throughout() {
    let world =
        World::with(|options| options.http.served_model_name = Some("pet".to_owned())).await;
    insta::assert_snapshot!(world.get("/v1/models").await.show(), @r#"
200
{"object":"list","data":[{"id":"pet","object":"model","created":0,"owned_by":"pet"}]}
"#);
    for model in [
        json!(null),
        "tgi".into(),
        "pet".into(),
        "org/tiny".into(),
        "tiny".into(),
    ] {
        let reply = world
            .post("/v1/completions", completion(&json!({"model": model})))
            .await;
        assert_eq!(reply.json()["model"], "pet", "{model}");
        let streamed = chat(&json!({"model": model, "stream": true}));
        let events = world.post("/v1/chat/completions", streamed).await.events();
        assert_eq!(events[0]["model"], "pet", "{model}");
    }
    let reply = world
        .post("/v1/chat/completions", chat(&json!({"model": "dog"})))
        .await;
    assert_eq!(reply.status, 404);
    assert_eq!(
        reply.json()["error"]["message"],
        "the model `dog` does not exist; `pet` is served"
    );
    // What the model is, not what it is called.
    assert_eq!(world.get("/info").await.json()["model_id"], "org/tiny");
}

#[tokio::test]
async fn errors_have_openais_form() {
    let world = World::new().await;
    let reply = world
        .post("/v1/chat/completions", chat(&json!({"top_p": 2})))
        .await;
    insta::assert_snapshot!(reply.show(), @r#"
400
{"error":{"message":"Input validation error: `top_p` must be > 0.0 and <= 1.0. Given: 2","type":"invalid_request_error","param":"top_p","code":"invalid_value","http_status_code":400},"error_type":"validation"}
"#);
    let reply = world
        .post(
            "/v1/chat/completions",
            chat(&json!({"messages": [{"role": "robot", "content": "x"}]})),
        )
        .await;
    insta::assert_snapshot!(reply.show(), @r#"
400
{"error":{"message":"Template error: no robots, please","type":"invalid_request_error","param":"messages","code":"template_error","http_status_code":400},"error_type":"template_error"}
"#);
    // Known before the first token: a real status, also for a stream.
    let reply = world
        .post(
            "/v1/chat/completions",
            chat(&json!({"max_tokens": 0, "stream": true})),
        )
        .await;
    assert_eq!(reply.status, 400);
}
