use std::time::Duration;

use serde_json::json;

use crate::world::{Reply, World};

const SHORT: &str = "once upon a time";

fn greedy(max_new_tokens: u32) -> serde_json::Value {
    json!({"max_new_tokens": max_new_tokens})
}

#[tokio::test]
async fn generate_answers_with_text() {
    let world = World::new().await;
    let reply = world
        .post(
            "/generate",
            json!({"inputs": SHORT, "parameters": greedy(8)}),
        )
        .await;
    insta::assert_snapshot!(reply.show(), @r#"
200
{"generated_text":"9ubv"}
"#);
    let full = json!({"max_new_tokens": 8, "return_full_text": true});
    let reply = world
        .post("/generate", json!({"inputs": SHORT, "parameters": full}))
        .await;
    insta::assert_snapshot!(reply.show(), @r#"
200
{"generated_text":"once upon a time9ubv"}
"#);
}

#[tokio::test]
async fn details_list_tokens_and_candidates() {
    let world = World::new().await;
    let parameters = json!({"max_new_tokens": 2, "details": true, "top_n_tokens": 2, "seed": 5, "do_sample": true});
    let reply = world
        .post(
            "/generate",
            json!({"inputs": SHORT, "parameters": parameters}),
        )
        .await;
    insta::assert_snapshot!(reply.show(), @r#"
200
{"generated_text":"9u","details":{"finish_reason":"length","generated_tokens":2,"seed":5,"prefill":[],"tokens":[{"id":40,"text":"9","logprob":-0.45867515,"special":false},{"id":20,"text":"u","logprob":-0.45867515,"special":false}],"top_tokens":[[{"id":40,"text":"9","logprob":-0.45867515,"special":false},{"id":41,"text":"�","logprob":-1.4586751,"special":false}],[{"id":20,"text":"u","logprob":-0.45867515,"special":false},{"id":21,"text":"v","logprob":-1.4586751,"special":false}]]}}
"#);
}

/// `<s>`, `</s>` and `<nan>` are 43 to 45.
#[tokio::test]
async fn special_candidates_are_marked() {
    let world = World::new().await;
    let parameters =
        json!({"max_new_tokens": 30, "details": true, "top_n_tokens": 5, "ignore_eos": true});
    let body = json!({"inputs": SHORT, "parameters": parameters});
    let reply = world.post("/generate", body).await.json();
    let steps = reply["details"]["top_tokens"].as_array().unwrap();
    let candidates: Vec<_> = steps
        .iter()
        .flat_map(|step| step.as_array().unwrap())
        .collect();
    assert!(candidates.iter().any(|token| token["special"] == true));
    for token in candidates {
        assert_eq!(
            token["special"],
            token["id"].as_u64() >= Some(43),
            "{token}"
        );
    }
}

#[tokio::test]
async fn compat_answers_with_a_list_and_the_prompt() {
    let world = World::new().await;
    let reply = world
        .post("/", json!({"inputs": SHORT, "parameters": greedy(4)}))
        .await;
    insta::assert_snapshot!(reply.show(), @r#"
200
[{"generated_text":"once upon a time9ubv"}]
"#);
    let reply = world
        .post(
            "/",
            json!({"inputs": SHORT, "parameters": greedy(2), "stream": true}),
        )
        .await;
    insta::assert_snapshot!(reply.show(), @r#"
200
data: {"index":1,"token":{"id":40,"text":"9","logprob":-0.45867515,"special":false},"generated_text":null,"details":null}

data: {"index":2,"token":{"id":20,"text":"u","logprob":-0.45867515,"special":false},"generated_text":"once upon a time9u","details":null}
"#);
}

#[tokio::test]
async fn streams_have_one_event_per_token() {
    let world = World::new().await;
    let parameters = json!({"max_new_tokens": 3, "details": true});
    let reply = world
        .post(
            "/generate_stream",
            json!({"inputs": SHORT, "parameters": parameters}),
        )
        .await;
    insta::assert_snapshot!(reply.show(), @r#"
200
data: {"index":1,"token":{"id":40,"text":"9","logprob":-0.45867515,"special":false},"generated_text":null,"details":null}

data: {"index":2,"token":{"id":20,"text":"u","logprob":-0.45867515,"special":false},"generated_text":null,"details":null}

data: {"index":3,"token":{"id":1,"text":"b","logprob":-0.45867515,"special":false},"generated_text":"9ub","details":{"finish_reason":"length","generated_tokens":3,"seed":null,"input_length":17}}
"#);
    assert_eq!(reply.headers["content-type"], "text/event-stream");
    assert_eq!(reply.headers["cache-control"], "no-cache");
    assert_eq!(reply.headers["x-accel-buffering"], "no");
    assert_eq!(reply.headers["x-compute-characters"], "16");
}

/// The text of every event together, what the last one says, and the plain answer are the same; also where characters
/// are split over tokens.
#[tokio::test]
async fn a_stream_says_what_the_plain_answer_says() {
    let world = World::new().await;
    for prompt in ["a", "b c", "é", "0 1 2", "xyz.", "q,", "m é m"] {
        let body = json!({"inputs": prompt, "parameters": {"max_new_tokens": 60, "details": true}});
        let plain = world.post("/generate", body.clone()).await.json();
        let events = world.post("/generate_stream", body).await.events();
        let text: String = events
            .iter()
            .filter(|event| event["token"]["special"] == false)
            .map(|event| event["token"]["text"].as_str().unwrap())
            .collect();
        let last = events.last().unwrap();
        assert_eq!(last["generated_text"], plain["generated_text"]);
        assert_eq!(
            last["details"]["finish_reason"],
            plain["details"]["finish_reason"]
        );
        assert_eq!(text, plain["generated_text"]);
        let indices: Vec<u64> = events
            .iter()
            .map(|event| event["index"].as_u64().unwrap())
            .collect();
        assert_eq!(indices, (1..=events.len() as u64).collect::<Vec<_>>());
        let num_tokens = plain["details"]["tokens"].as_array().unwrap().len();
        assert_eq!(num_tokens, events.len());
    }
}

/// Stops at the answer's own fourth and fifth character, which are two tokens.
#[tokio::test]
async fn a_stop_string_over_two_tokens_is_kept_and_ends_the_answer() {
    let world = World::new().await;
    let body = json!({"inputs": "once upon", "parameters": greedy(8)});
    let text = world.post("/generate", body).await.json()["generated_text"]
        .as_str()
        .unwrap()
        .to_owned();
    let characters: Vec<char> = text.chars().collect();
    let stop: String = characters[3..5].iter().collect();
    let expected: String = characters[..5].iter().collect();
    let parameters = json!({"max_new_tokens": 8, "stop": [stop], "details": true});
    let body = json!({"inputs": "once upon", "parameters": parameters});
    let reply = world.post("/generate", body.clone()).await.json();
    assert_eq!(reply["generated_text"], expected);
    assert_eq!(reply["details"]["finish_reason"], "stop_sequence");
    assert_eq!(reply["details"]["generated_tokens"], 5);
    let events = world.post("/generate_stream", body).await.events();
    assert_eq!(events.last().unwrap()["generated_text"], expected);
    world.wait_for_quiet().await;
    assert_eq!(world.metric("tgi_request_success").await, 3.0);
}

/// TGI looks at the length first.
#[tokio::test]
async fn a_stop_string_with_the_last_token_counts_as_length() {
    let world = World::new().await;
    let body = json!({"inputs": "once upon", "parameters": greedy(5)});
    let text = world.post("/generate", body).await.json()["generated_text"].clone();
    let stop: String = text.as_str().unwrap().chars().skip(3).collect();
    for (max_new_tokens, reason) in [(5, "length"), (6, "stop_sequence")] {
        let parameters = json!({"max_new_tokens": max_new_tokens, "stop": [stop], "details": true});
        let body = json!({"inputs": "once upon", "parameters": parameters});
        let reply = world.post("/generate", body.clone()).await.json();
        assert_eq!(reply["generated_text"], text);
        assert_eq!(reply["details"]["finish_reason"], reason);
        let events = world.post("/generate_stream", body).await.events();
        assert_eq!(events.last().unwrap()["details"]["finish_reason"], reason);
    }
}

/// Absent parameters sample; parameters that say nothing do not.
#[tokio::test]
async fn the_rule_for_do_sample_is_tgis() {
    let world = World::new().await;
    let seed = |body: serde_json::Value| {
        let world = &world;
        async move {
            let events = world.post("/generate_stream", body).await.events();
            events.last().unwrap()["details"]["seed"].clone()
        }
    };
    let with = |parameters: serde_json::Value| json!({"inputs": "a", "parameters": parameters});
    assert!(
        seed(with(json!({"details": true, "max_new_tokens": 1})))
            .await
            .is_null()
    );
    assert!(
        seed(with(
            json!({"details": true, "max_new_tokens": 1, "do_sample": true})
        ))
        .await
        .is_u64()
    );
    assert!(
        seed(with(
            json!({"details": true, "max_new_tokens": 1, "top_k": 3})
        ))
        .await
        .is_u64()
    );
    let large = u64::MAX;
    let given = with(json!({"details": true, "max_new_tokens": 1, "top_p": 0.5, "seed": large}));
    assert_eq!(seed(given).await, large);
}

#[tokio::test]
async fn absent_max_new_tokens_is_what_is_left() {
    let world = World::new().await;
    let body = json!({"inputs": SHORT, "parameters": {"details": true, "ignore_eos": true}});
    let reply = world.post("/generate", body).await.json();
    // 80 less the prompt: 16 characters and <s>.
    assert_eq!(reply["details"]["generated_tokens"], 80 - 17);
    assert_eq!(reply["details"]["finish_reason"], "length");
    let cut = json!({"inputs": SHORT, "parameters": {"details": true, "ignore_eos": true, "truncate": 4}});
    let reply = world.post("/generate", cut).await.json();
    assert_eq!(reply["details"]["generated_tokens"], 76);
}

#[tokio::test]
async fn whole_answers_carry_times_and_counts() {
    let world = World::new().await;
    let reply = world
        .post(
            "/generate",
            json!({"inputs": SHORT, "parameters": greedy(4)}),
        )
        .await;
    let names = [
        "x-total-time",
        "x-validation-time",
        "x-queue-time",
        "x-inference-time",
        "x-time-per-token",
    ];
    for name in names {
        assert!(
            reply.headers[name].to_str().unwrap().parse::<u64>().is_ok(),
            "{name}"
        );
    }
    assert!(
        reply.headers["x-compute-time"]
            .to_str()
            .unwrap()
            .parse::<f64>()
            .unwrap()
            > 0.0
    );
    assert_eq!(reply.headers["x-compute-type"], "1-cpu");
    assert_eq!(reply.headers["x-prompt-tokens"], "17");
    assert_eq!(reply.headers["x-generated-tokens"], "4");
    assert_eq!(reply.headers["x-compute-characters"], "16");
}

#[tokio::test]
async fn errors_have_tgis_form() {
    let world = World::new().await;
    let body = json!({"inputs": "", "parameters": greedy(4)});
    insta::assert_snapshot!(world.post("/generate", body.clone()).await.show(), @r#"
422
{"error":"Input validation error: `inputs` cannot be empty","error_type":"validation"}
"#);
    // A stream says so in one event, with status 200.
    insta::assert_snapshot!(world.post("/generate_stream", body).await.show(), @r#"
200
data: {"error":"Input validation error: `inputs` cannot be empty","error_type":"validation"}
"#);
}

/// Both routes that stream, with bodies that stream.
async fn streams(world: &World, parameters: serde_json::Value) -> [Reply; 2] {
    let body = json!({"inputs": "a", "stream": true, "parameters": parameters});
    [
        world.post("/generate_stream", body.clone()).await,
        world.post("/", body).await,
    ]
}

/// 200 and an event, or with the flag the status that the error has on `/generate`.
#[tokio::test]
async fn streams_answer_bad_parameters_with_an_event_or_a_status() {
    for (flag, status) in [(false, 200), (true, 422)] {
        let world = World::with(|options| options.http.stream_error_status = flag).await;
        let body = json!({"inputs": "a", "parameters": {"max_new_tokens": 0}});
        let expected = world.post("/generate", body).await.json();
        for reply in streams(&world, json!({"max_new_tokens": 0})).await {
            assert_eq!(reply.status, status);
            let got = if flag {
                reply.json()
            } else {
                reply.events()[0].clone()
            };
            assert_eq!(got, expected);
        }
        for reply in streams(&world, json!({"max_new_tokens": 3, "ignore_eos": true})).await {
            assert_eq!(reply.status, 200);
            assert_eq!(reply.headers["content-type"], "text/event-stream");
            assert_eq!(reply.events().len(), 3);
        }
        world.wait_for_quiet().await;
    }
}

#[tokio::test]
async fn a_stream_that_gets_no_place_can_say_so_by_its_status() {
    let world = World::with(|options| {
        options.http.stream_error_status = true;
        options.limits.max_concurrent_requests = 1;
        options.step_time = Duration::from_millis(50);
    })
    .await;
    let long = json!({"inputs": "a", "parameters": {"max_new_tokens": 5, "ignore_eos": true}});
    let first = world.post("/generate_stream", long);
    let others = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        streams(&world, json!({"max_new_tokens": 1})).await
    };
    let (first, others) = tokio::join!(first, others);
    assert_eq!(first.status, 200);
    for reply in others {
        assert_eq!(reply.status, 429);
        assert_eq!(reply.headers["retry-after"], "1");
        assert_eq!(reply.json()["error_type"], "overloaded");
    }
}

/// Before the first token there is a status to say; after it there is none.
#[tokio::test]
async fn a_stream_whose_engine_is_lost_before_its_first_token_can_say_so_by_its_status() {
    for (step_ms, status) in [(60_000, 424), (10, 200)] {
        let world = World::with(|options| {
            options.http.stream_error_status = true;
            options.step_time = Duration::from_millis(step_ms);
        })
        .await;
        let body = json!({"inputs": "a", "parameters": {"ignore_eos": true}});
        let request = world.post("/generate_stream", body);
        let kill = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            world.engine.set_alive(false);
        };
        let (reply, ()) = tokio::join!(request, kill);
        assert_eq!(reply.status, status);
        assert!(
            reply.body.contains("\"error_type\":\"generation\""),
            "{}",
            reply.body
        );
        assert_eq!(reply.body.starts_with("data: "), status == 200);
        world.wait_for_quiet().await;
        let failed = world
            .metric("tgi_request_failure{err=\"generation\"}")
            .await;
        assert_eq!(failed, 1.0);
    }
}
