//! The exact answer to every bad input: each names the field, the limit and the value.

use axum::http::Method;
use serde_json::{Value, json};

use crate::world::{Reply, World};

fn line(case: &str, reply: &Reply) -> String {
    format!("{case} => {} {}", reply.status.as_u16(), reply.body)
}

/// One line per case: the parameters, and what `/generate` says to them.
async fn generate(world: &World, cases: &[Value]) -> String {
    let mut lines = Vec::new();
    for parameters in cases {
        let mut given = parameters.clone();
        if given.get("max_new_tokens").is_none() {
            given["max_new_tokens"] = 1.into();
        }
        let reply = world
            .post("/generate", json!({"inputs": "a", "parameters": given}))
            .await;
        let answer = if reply.status == 200 {
            "200".to_owned()
        } else {
            reply.show().replace('\n', " ")
        };
        lines.push(format!("{parameters} => {answer}"));
    }
    lines.join("\n")
}

#[tokio::test]
async fn bodies_that_are_no_requests() {
    let world = World::new().await;
    let mut lines = Vec::new();
    let json = ("content-type", "application/json");
    for path in ["/generate", "/v1/chat/completions"] {
        for (case, headers, body) in [
            ("cut off", vec![json], "{\"inputs\": \"a"),
            ("no JSON", vec![json], "inputs=a"),
            ("empty", vec![json], ""),
            (
                "two values",
                vec![json],
                "{\"inputs\": \"a\", \"messages\": []} {}",
            ),
            ("a list", vec![json], "[1]"),
            ("nothing in it", vec![json], "{}"),
            ("no content type", vec![], "{}"),
            (
                "a form",
                vec![("content-type", "application/x-www-form-urlencoded")],
                "a=b",
            ),
        ] {
            let reply = world.send(Method::POST, path, &headers, body).await;
            lines.push(line(&format!("{path}, {case}"), &reply));
        }
        let fits = format!(
            "{{\"inputs\": 1, \"messages\": 1, \"x\": \"{}\"}}",
            "x".repeat(1963)
        );
        assert_eq!(fits.len(), 2000);
        let reply = world.post_text(path, &fits).await;
        lines.push(line(&format!("{path}, 2000 bytes"), &reply));
        let reply = world.post_text(path, &format!("{fits} ")).await;
        lines.push(line(&format!("{path}, 2001 bytes"), &reply));
    }
    insta::assert_snapshot!(lines.join("\n"), @r#"
/generate, cut off => 400 {"error":"the body is not valid JSON: EOF while parsing a string at line 1 column 13","error_type":"validation"}
/generate, no JSON => 400 {"error":"the body is not valid JSON: expected value at line 1 column 1","error_type":"validation"}
/generate, empty => 400 {"error":"the body is not valid JSON: EOF while parsing a value at line 1 column 0","error_type":"validation"}
/generate, two values => 400 {"error":"the body is not valid JSON: trailing characters at line 1 column 33","error_type":"validation"}
/generate, a list => 422 {"error":"Input validation error: the body must be a JSON object. Given: a list","error_type":"validation"}
/generate, nothing in it => 422 {"error":"Input validation error: missing field `inputs`","error_type":"validation"}
/generate, no content type => 415 {"error":"the header `Content-Type` must be application/json. Given: none","error_type":"validation"}
/generate, a form => 415 {"error":"the header `Content-Type` must be application/json. Given: \"application/x-www-form-urlencoded\"","error_type":"validation"}
/generate, 2000 bytes => 422 {"error":"Input validation error: `inputs`: invalid type: integer `1`, expected a string","error_type":"validation"}
/generate, 2001 bytes => 413 {"error":"the body must have <= 2000 bytes (--payload-limit). Given: 2001","error_type":"validation"}
/v1/chat/completions, cut off => 400 {"error":{"message":"the body is not valid JSON: EOF while parsing a string at line 1 column 13","type":"invalid_request_error","param":null,"code":"malformed_json","http_status_code":400},"error_type":"validation"}
/v1/chat/completions, no JSON => 400 {"error":{"message":"the body is not valid JSON: expected value at line 1 column 1","type":"invalid_request_error","param":null,"code":"malformed_json","http_status_code":400},"error_type":"validation"}
/v1/chat/completions, empty => 400 {"error":{"message":"the body is not valid JSON: EOF while parsing a value at line 1 column 0","type":"invalid_request_error","param":null,"code":"malformed_json","http_status_code":400},"error_type":"validation"}
/v1/chat/completions, two values => 400 {"error":{"message":"the body is not valid JSON: trailing characters at line 1 column 33","type":"invalid_request_error","param":null,"code":"malformed_json","http_status_code":400},"error_type":"validation"}
/v1/chat/completions, a list => 400 {"error":{"message":"Input validation error: the body must be a JSON object. Given: a list","type":"invalid_request_error","param":null,"code":"invalid_type","http_status_code":400},"error_type":"validation"}
/v1/chat/completions, nothing in it => 400 {"error":{"message":"Input validation error: missing field `messages`","type":"invalid_request_error","param":"messages","code":"invalid_type","http_status_code":400},"error_type":"validation"}
/v1/chat/completions, no content type => 415 {"error":{"message":"the header `Content-Type` must be application/json. Given: none","type":"invalid_request_error","param":"Content-Type","code":"unsupported_media_type","http_status_code":415},"error_type":"validation"}
/v1/chat/completions, a form => 415 {"error":{"message":"the header `Content-Type` must be application/json. Given: \"application/x-www-form-urlencoded\"","type":"invalid_request_error","param":"Content-Type","code":"unsupported_media_type","http_status_code":415},"error_type":"validation"}
/v1/chat/completions, 2000 bytes => 400 {"error":{"message":"Input validation error: `messages`: invalid type: integer `1`, expected a list","type":"invalid_request_error","param":"messages","code":"invalid_type","http_status_code":400},"error_type":"validation"}
/v1/chat/completions, 2001 bytes => 413 {"error":{"message":"the body must have <= 2000 bytes (--payload-limit). Given: 2001","type":"invalid_request_error","param":null,"code":"payload_too_large","http_status_code":413},"error_type":"validation"}
"#);
}

#[tokio::test]
async fn wrong_types_name_the_field() {
    let world = World::new().await;
    let cases = [
        json!({"temperature": "hot"}),
        json!({"max_new_tokens": 1.5}),
        json!({"max_new_tokens": true}),
        json!({"seed": -1}),
        json!({"stop": "a"}),
        json!({"stop": ["a", 1]}),
        json!({"do_sample": 1}),
        json!({"details": "yes"}),
        json!({"logit_bias": [1]}),
        json!({"logit_bias": {"1": "a"}}),
    ];
    insta::assert_snapshot!(generate(&world, &cases).await, @r#"
{"temperature":"hot"} => 422 {"error":"Input validation error: `parameters.temperature`: invalid type: string \"hot\", expected a number","error_type":"validation"}
{"max_new_tokens":1.5} => 422 {"error":"Input validation error: `parameters.max_new_tokens`: invalid type: floating point `1.5`, expected an integer","error_type":"validation"}
{"max_new_tokens":true} => 422 {"error":"Input validation error: `parameters.max_new_tokens`: invalid type: boolean `true`, expected an integer","error_type":"validation"}
{"seed":-1} => 422 {"error":"Input validation error: `parameters.seed`: invalid value: integer `-1`, expected an integer from 0 to 18446744073709551615","error_type":"validation"}
{"stop":"a"} => 422 {"error":"Input validation error: `parameters.stop`: invalid type: string \"a\", expected a list","error_type":"validation"}
{"stop":["a",1]} => 422 {"error":"Input validation error: `parameters.stop[1]`: invalid type: integer `1`, expected a string","error_type":"validation"}
{"do_sample":1} => 422 {"error":"Input validation error: `parameters.do_sample`: invalid type: integer `1`, expected a boolean","error_type":"validation"}
{"details":"yes"} => 422 {"error":"Input validation error: `parameters.details`: invalid type: string \"yes\", expected a boolean","error_type":"validation"}
{"logit_bias":[1]} => 422 {"error":"Input validation error: `parameters.logit_bias`: invalid type: list, expected an object","error_type":"validation"}
{"logit_bias":{"1":"a"}} => 422 {"error":"Input validation error: `parameters.logit_bias.1`: invalid type: string \"a\", expected a number","error_type":"validation"}
"#);
    let reply = world.post("/generate", json!({"inputs": ["a"]})).await;
    insta::assert_snapshot!(reply.show(), @r#"
422
{"error":"Input validation error: `inputs`: invalid type: list, expected a string","error_type":"validation"}
"#);
    // Null is absent, as clients that send every field have it.
    let nulls = json!({"inputs": "a", "stream": null,
        "parameters": {"max_new_tokens": 1, "temperature": null, "stop": null, "grammar": null}});
    for path in ["/generate", "/"] {
        assert_eq!(world.post(path, nulls.clone()).await.status, 200, "{path}");
    }
    let nulls = json!({"prompt": "a", "max_tokens": 1, "stream": null, "stream_options": {"include_usage": null}});
    assert_eq!(world.post("/v1/completions", nulls).await.status, 200);
    // `stream` means something on `/` only; elsewhere it is a field like any unknown one.
    let wrong = json!({"inputs": "a", "stream": "x", "parameters": {"max_new_tokens": 1}});
    assert_eq!(world.post("/generate", wrong.clone()).await.status, 200);
    insta::assert_snapshot!(world.post("/", wrong).await.show(), @r#"
422
{"error":"Input validation error: `stream`: invalid type: string \"x\", expected a boolean","error_type":"validation"}
"#);
}

#[tokio::test]
async fn parameters_at_their_limits() {
    let world = World::new().await;
    let cases = [
        json!({"temperature": -0.1}),
        json!({"temperature": 0}),
        json!({"temperature": 0.01}),
        json!({"temperature": 1e39}),
        json!({"temperature": 1e-40}),
        json!({"temperature": 1.2e-38}),
        json!({"repetition_penalty": 0}),
        json!({"repetition_penalty": 0.1}),
        json!({"repetition_penalty": 1e-40}),
        json!({"frequency_penalty": -2.01}),
        json!({"frequency_penalty": -2}),
        json!({"frequency_penalty": 2}),
        json!({"frequency_penalty": 2.01}),
        json!({"presence_penalty": 2.01}),
        json!({"top_p": 0}),
        json!({"top_p": 0.1}),
        json!({"top_p": 1e-40}),
        json!({"top_p": 1}),
        json!({"top_p": 1.01}),
        json!({"typical_p": 0}),
        json!({"typical_p": 1}),
        json!({"typical_p": 1e-40}),
        json!({"typical_p": 1.01}),
        json!({"min_p": -0.1}),
        json!({"min_p": 0}),
        json!({"min_p": 1}),
        json!({"top_k": -1}),
        json!({"top_k": 0}),
        json!({"top_k": 1}),
        json!({"top_k": 2_147_483_647}),
        json!({"top_k": 3_000_000_000_u32}),
        json!({"max_new_tokens": -1}),
        json!({"max_new_tokens": 0}),
        json!({"max_new_tokens": 77}),
        json!({"max_new_tokens": 78}),
        json!({"max_new_tokens": 79}),
        json!({"max_new_tokens": 4_294_967_296_u64}),
        json!({"min_new_tokens": -1}),
        json!({"min_new_tokens": 1}),
        json!({"min_new_tokens": 2}),
        json!({"min_new_tokens": 3_000_000_000_u32, "max_new_tokens": null}),
        json!({"stop": ["a", "b"]}),
        json!({"stop": ["a", "b", "c"]}),
        json!({"stop": [""]}),
        json!({"truncate": 0}),
        json!({"truncate": 1}),
        json!({"truncate": 39}),
        json!({"truncate": 40}),
        json!({"truncate": 41}),
        json!({"top_n_tokens": -1}),
        json!({"top_n_tokens": 5}),
        json!({"top_n_tokens": 6}),
        json!({"logit_bias": {"45": 1}}),
        json!({"logit_bias": {"46": 1}}),
        json!({"logit_bias": {"a": 1}}),
        json!({"logit_bias": {"1": 1, "+1": 1}}),
        json!({"logit_bias": {"01": 1}}),
        json!({"logit_bias": {"1": 100}}),
        json!({"logit_bias": {"1": 101}}),
        json!({"best_of": 1}),
        json!({"best_of": 2}),
        json!({"watermark": true}),
        json!({"decoder_input_details": true}),
        json!({"grammar": {"type": "regex", "value": "a"}}),
        json!({"adapter_id": "x"}),
    ];
    insta::assert_snapshot!(generate(&world, &cases).await, @r#"
{"temperature":-0.1} => 422 {"error":"Input validation error: `temperature` must be strictly positive (> 0). Given: -0.1","error_type":"validation"}
{"temperature":0} => 422 {"error":"Input validation error: `temperature` must be strictly positive (> 0). Given: 0","error_type":"validation"}
{"temperature":0.01} => 200
{"temperature":1e+39} => 422 {"error":"Input validation error: `temperature` must be finite and at most 3.4028235e38. Given: 1e39","error_type":"validation"}
{"temperature":1e-40} => 422 {"error":"Input validation error: `temperature` must be >= 1.1754944e-38. Given: 1e-40","error_type":"validation"}
{"temperature":1.2e-38} => 200
{"repetition_penalty":0} => 422 {"error":"Input validation error: `repetition_penalty` must be strictly positive (> 0). Given: 0","error_type":"validation"}
{"repetition_penalty":0.1} => 200
{"repetition_penalty":1e-40} => 422 {"error":"Input validation error: `repetition_penalty` must be >= 1.1754944e-38. Given: 1e-40","error_type":"validation"}
{"frequency_penalty":-2.01} => 422 {"error":"Input validation error: `frequency_penalty` must be >= -2.0 and <= 2.0. Given: -2.01","error_type":"validation"}
{"frequency_penalty":-2} => 200
{"frequency_penalty":2} => 200
{"frequency_penalty":2.01} => 422 {"error":"Input validation error: `frequency_penalty` must be >= -2.0 and <= 2.0. Given: 2.01","error_type":"validation"}
{"presence_penalty":2.01} => 422 {"error":"Input validation error: `presence_penalty` must be >= -2.0 and <= 2.0. Given: 2.01","error_type":"validation"}
{"top_p":0} => 422 {"error":"Input validation error: `top_p` must be > 0.0 and <= 1.0. Given: 0","error_type":"validation"}
{"top_p":0.1} => 200
{"top_p":1e-40} => 422 {"error":"Input validation error: `top_p` must be >= 1.1754944e-38. Given: 1e-40","error_type":"validation"}
{"top_p":1} => 200
{"top_p":1.01} => 422 {"error":"Input validation error: `top_p` must be > 0.0 and <= 1.0. Given: 1.01","error_type":"validation"}
{"typical_p":0} => 422 {"error":"Input validation error: `typical_p` must be > 0.0 and <= 1.0. Given: 0","error_type":"validation"}
{"typical_p":1} => 200
{"typical_p":1e-40} => 422 {"error":"Input validation error: `typical_p` must be >= 1.1754944e-38. Given: 1e-40","error_type":"validation"}
{"typical_p":1.01} => 422 {"error":"Input validation error: `typical_p` must be > 0.0 and <= 1.0. Given: 1.01","error_type":"validation"}
{"min_p":-0.1} => 422 {"error":"Input validation error: `min_p` must be >= 0.0 and < 1.0. Given: -0.1","error_type":"validation"}
{"min_p":0} => 200
{"min_p":1} => 422 {"error":"Input validation error: `min_p` must be >= 0.0 and < 1.0. Given: 1","error_type":"validation"}
{"top_k":-1} => 422 {"error":"Input validation error: `top_k` must be strictly positive (>= 1). Given: -1","error_type":"validation"}
{"top_k":0} => 422 {"error":"Input validation error: `top_k` must be strictly positive (>= 1). Given: 0","error_type":"validation"}
{"top_k":1} => 200
{"top_k":2147483647} => 200
{"top_k":3000000000} => 422 {"error":"Input validation error: `top_k` must be <= 2147483647. Given: 3000000000","error_type":"validation"}
{"max_new_tokens":-1} => 422 {"error":"Input validation error: `max_new_tokens` must be strictly positive (>= 1). Given: -1","error_type":"validation"}
{"max_new_tokens":0} => 422 {"error":"Input validation error: `max_new_tokens` must be strictly positive (>= 1). Given: 0","error_type":"validation"}
{"max_new_tokens":77} => 200
{"max_new_tokens":78} => 200
{"max_new_tokens":79} => 422 {"error":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 80. Given: 2 `inputs` tokens and 79 `max_new_tokens`","error_type":"validation"}
{"max_new_tokens":4294967296} => 422 {"error":"Input validation error: `max_new_tokens` must be <= 2147483647. Given: 4294967296","error_type":"validation"}
{"min_new_tokens":-1} => 422 {"error":"Input validation error: `min_new_tokens` must be >= 0 and <= 1 (`max_new_tokens`). Given: -1","error_type":"validation"}
{"min_new_tokens":1} => 200
{"min_new_tokens":2} => 422 {"error":"Input validation error: `min_new_tokens` must be >= 0 and <= 1 (`max_new_tokens`). Given: 2","error_type":"validation"}
{"min_new_tokens":3000000000,"max_new_tokens":null} => 422 {"error":"Input validation error: `min_new_tokens` must be >= 0 and <= 2147483647 (`max_new_tokens`). Given: 3000000000","error_type":"validation"}
{"stop":["a","b"]} => 200
{"stop":["a","b","c"]} => 422 {"error":"Input validation error: `stop` supports up to 2 stop sequences. Given: 3","error_type":"validation"}
{"stop":[""]} => 422 {"error":"Input validation error: `stop` sequences must have at least 1 character. Given: \"\"","error_type":"validation"}
{"truncate":0} => 422 {"error":"Input validation error: `truncate` must be strictly positive and <= 40. Given: 0","error_type":"validation"}
{"truncate":1} => 200
{"truncate":39} => 200
{"truncate":40} => 200
{"truncate":41} => 422 {"error":"Input validation error: `truncate` must be strictly positive and <= 40. Given: 41","error_type":"validation"}
{"top_n_tokens":-1} => 422 {"error":"Input validation error: `top_n_tokens` must be >= 0 and <= 5. Given: -1","error_type":"validation"}
{"top_n_tokens":5} => 200
{"top_n_tokens":6} => 422 {"error":"Input validation error: `top_n_tokens` must be >= 0 and <= 5. Given: 6","error_type":"validation"}
{"logit_bias":{"45":1}} => 200
{"logit_bias":{"46":1}} => 422 {"error":"Input validation error: `logit_bias` keys must be token ids < 46. Given: \"46\"","error_type":"validation"}
{"logit_bias":{"a":1}} => 422 {"error":"Input validation error: `logit_bias` keys must be token ids < 46. Given: \"a\"","error_type":"validation"}
{"logit_bias":{"1":1,"+1":1}} => 422 {"error":"Input validation error: `logit_bias` keys must be token ids < 46. Given: \"+1\"","error_type":"validation"}
{"logit_bias":{"01":1}} => 422 {"error":"Input validation error: `logit_bias` keys must be token ids < 46. Given: \"01\"","error_type":"validation"}
{"logit_bias":{"1":100}} => 200
{"logit_bias":{"1":101}} => 422 {"error":"Input validation error: `logit_bias` values must be >= -100 and <= 100. Given: 101","error_type":"validation"}
{"best_of":1} => 200
{"best_of":2} => 422 {"error":"Input validation error: `best_of` is not supported yet","error_type":"validation"}
{"watermark":true} => 422 {"error":"Input validation error: `watermark` is not supported yet","error_type":"validation"}
{"decoder_input_details":true} => 422 {"error":"Input validation error: `decoder_input_details` is not supported yet","error_type":"validation"}
{"grammar":{"type":"regex","value":"a"}} => 422 {"error":"Input validation error: `grammar` is not supported yet","error_type":"validation"}
{"adapter_id":"x"} => 422 {"error":"Input validation error: `adapter_id` is not supported yet","error_type":"validation"}
"#);
}

#[tokio::test]
async fn prompts_at_their_limits() {
    let world = World::new().await;
    let mut lines = Vec::new();
    // One token more than characters: <s>.
    for num_characters in [0, 38, 39, 40] {
        let inputs = "a".repeat(num_characters);
        let parameters = json!({"max_new_tokens": 1});
        let reply = world
            .post(
                "/generate",
                json!({"inputs": inputs, "parameters": parameters}),
            )
            .await;
        let answer = if reply.status == 200 {
            "200".to_owned()
        } else {
            reply.show().replace('\n', " ")
        };
        lines.push(format!("{num_characters} characters => {answer}"));
    }
    for (inputs, max_new_tokens) in [(9, 70), (9, 71), (79, 40)] {
        let parameters = json!({"max_new_tokens": max_new_tokens});
        let body = json!({"inputs": "a".repeat(inputs), "parameters": parameters});
        let reply = world.post("/generate", body).await;
        let answer = if reply.status == 200 {
            "200".to_owned()
        } else {
            reply.show().replace('\n', " ")
        };
        lines.push(format!(
            "{inputs} characters, {max_new_tokens} new => {answer}"
        ));
    }
    insta::assert_snapshot!(lines.join("\n"), @r#"
0 characters => 422 {"error":"Input validation error: `inputs` cannot be empty","error_type":"validation"}
38 characters => 200
39 characters => 200
40 characters => 422 {"error":"Input validation error: `inputs` must have <= 40 tokens. Given: 41","error_type":"validation"}
9 characters, 70 new => 200
9 characters, 71 new => 422 {"error":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 80. Given: 10 `inputs` tokens and 71 `max_new_tokens`","error_type":"validation"}
79 characters, 40 new => 422 {"error":"Input validation error: `inputs` tokens + `max_new_tokens` must be <= 80. Given: 80 `inputs` tokens and 40 `max_new_tokens`","error_type":"validation"}
"#);
}

#[tokio::test]
async fn openai_requests() {
    let world = World::new().await;
    let mut lines = Vec::new();
    let user = json!([{"role": "user", "content": "a"}]);
    for extra in [
        json!({"messages": []}),
        json!({"messages": "a"}),
        json!({"messages": [{"content": "a"}]}),
        json!({"messages": [{"role": "user"}]}),
        json!({"messages": [{"role": "user", "content": 1}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        json!({"messages": [{"role": "user", "content": "a".repeat(40)}]}),
        json!({"max_tokens": 0}),
        json!({"max_tokens": 1, "max_completion_tokens": 1}),
        json!({"max_completion_tokens": 100}),
        json!({"temperature": -1}),
        json!({"n": 0}),
        json!({"n": 1}),
        json!({"n": 2}),
        json!({"stop": 1}),
        json!({"stop": ["a", "b", "c"]}),
        json!({"top_logprobs": 1}),
        json!({"logprobs": true, "top_logprobs": 6}),
        json!({"tools": [{}]}),
        json!({"tools": [{}], "tool_choice": "none"}),
        json!({"response_format": {"type": "json_object"}}),
        json!({"response_format": {"type": "text"}}),
        json!({"stream_options": {"include_usage": "x"}}),
        json!({"model": 1}),
    ] {
        let mut body = json!({"messages": user.clone()});
        if extra.get("max_completion_tokens").is_none() {
            body["max_tokens"] = 1.into();
        }
        body.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let reply = world.post("/v1/chat/completions", body).await;
        let answer = if reply.status == 200 {
            "200".to_owned()
        } else {
            reply.show().replace('\n', " ")
        };
        lines.push(format!("chat {extra} => {answer}"));
    }
    for extra in [
        json!({"prompt": ""}),
        json!({"prompt": []}),
        json!({"prompt": ["a", "b", "c"]}),
        json!({"prompt": [46]}),
        json!({"prompt": [[]]}),
        json!({"prompt": {"a": 1}}),
        json!({"suffix": "a"}),
        json!({"echo": true}),
        json!({"best_of": 2}),
        json!({"logprobs": 6}),
    ] {
        let mut body = json!({"prompt": "a", "max_tokens": 1});
        body.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let reply = world.post("/v1/completions", body).await;
        let answer = if reply.status == 200 {
            "200".to_owned()
        } else {
            reply.show().replace('\n', " ")
        };
        lines.push(format!("completions {extra} => {answer}"));
    }
    insta::assert_snapshot!(lines.join("\n"), @r#"
chat {"messages":[]} => 400 {"error":{"message":"Input validation error: `messages` must have >= 1 message. Given: 0","type":"invalid_request_error","param":"messages","code":"invalid_value","http_status_code":400},"error_type":"validation"}
chat {"messages":"a"} => 400 {"error":{"message":"Input validation error: `messages`: invalid type: string \"a\", expected a list","type":"invalid_request_error","param":"messages","code":"invalid_type","http_status_code":400},"error_type":"validation"}
chat {"messages":[{"content":"a"}]} => 400 {"error":{"message":"Input validation error: `messages[0].role` must be a string. Given: nothing","type":"invalid_request_error","param":"messages[0].role","code":"invalid_type","http_status_code":400},"error_type":"validation"}
chat {"messages":[{"role":"user"}]} => 400 {"error":{"message":"Input validation error: `messages[0].content` must be a string or a list of parts. Given: nothing","type":"invalid_request_error","param":"messages[0].content","code":"invalid_type","http_status_code":400},"error_type":"validation"}
chat {"messages":[{"role":"user","content":1}]} => 400 {"error":{"message":"Input validation error: `messages[0].content` must be a string or a list of parts. Given: a number","type":"invalid_request_error","param":"messages[0].content","code":"invalid_type","http_status_code":400},"error_type":"validation"}
chat {"messages":[{"role":"user","content":[{"type":"image_url"}]}]} => 400 {"error":{"message":"Input validation error: `messages[0].content[0]`: parts of type `image_url` are not supported yet","type":"invalid_request_error","param":"messages[0].content[0]","code":"invalid_value","http_status_code":400},"error_type":"validation"}
chat {"messages":[{"role":"user","content":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}]} => 400 {"error":{"message":"Input validation error: `messages` must have <= 40 tokens. Given: 59","type":"invalid_request_error","param":"messages","code":"invalid_value","http_status_code":400},"error_type":"validation"}
chat {"max_tokens":0} => 400 {"error":{"message":"Input validation error: `max_tokens` must be strictly positive (>= 1). Given: 0","type":"invalid_request_error","param":"max_tokens","code":"invalid_value","http_status_code":400},"error_type":"validation"}
chat {"max_tokens":1,"max_completion_tokens":1} => 400 {"error":{"message":"Input validation error: `max_completion_tokens` and `max_tokens` mean the same: give one of them","type":"invalid_request_error","param":"max_completion_tokens","code":"invalid_value","http_status_code":400},"error_type":"validation"}
chat {"max_completion_tokens":100} => 400 {"error":{"message":"Input validation error: `messages` tokens + `max_completion_tokens` must be <= 80. Given: 20 `messages` tokens and 100 `max_completion_tokens`","type":"invalid_request_error","param":"max_completion_tokens","code":"invalid_value","http_status_code":400},"error_type":"validation"}
chat {"temperature":-1} => 400 {"error":{"message":"Input validation error: `temperature` must be strictly positive (> 0). Given: -1","type":"invalid_request_error","param":"temperature","code":"invalid_value","http_status_code":400},"error_type":"validation"}
chat {"n":0} => 400 {"error":{"message":"Input validation error: `n` must be strictly positive (>= 1). Given: 0","type":"invalid_request_error","param":"n","code":"invalid_value","http_status_code":400},"error_type":"validation"}
chat {"n":1} => 200
chat {"n":2} => 400 {"error":{"message":"Input validation error: `n` is not supported yet","type":"invalid_request_error","param":"n","code":"invalid_value","http_status_code":400},"error_type":"validation"}
chat {"stop":1} => 400 {"error":{"message":"Input validation error: `stop`: expected a string or a list of strings","type":"invalid_request_error","param":"stop","code":"invalid_type","http_status_code":400},"error_type":"validation"}
chat {"stop":["a","b","c"]} => 400 {"error":{"message":"Input validation error: `stop` supports up to 2 stop sequences. Given: 3","type":"invalid_request_error","param":"stop","code":"invalid_value","http_status_code":400},"error_type":"validation"}
chat {"top_logprobs":1} => 400 {"error":{"message":"Input validation error: `top_logprobs` needs `logprobs`: true","type":"invalid_request_error","param":"top_logprobs","code":"invalid_value","http_status_code":400},"error_type":"validation"}
chat {"logprobs":true,"top_logprobs":6} => 400 {"error":{"message":"Input validation error: `top_logprobs` must be >= 0 and <= 5. Given: 6","type":"invalid_request_error","param":"top_logprobs","code":"invalid_value","http_status_code":400},"error_type":"validation"}
chat {"tools":[{}]} => 400 {"error":{"message":"Input validation error: `tools` is not supported yet","type":"invalid_request_error","param":"tools","code":"invalid_value","http_status_code":400},"error_type":"validation"}
chat {"tools":[{}],"tool_choice":"none"} => 200
chat {"response_format":{"type":"json_object"}} => 400 {"error":{"message":"Input validation error: `response_format` is not supported yet","type":"invalid_request_error","param":"response_format","code":"invalid_value","http_status_code":400},"error_type":"validation"}
chat {"response_format":{"type":"text"}} => 200
chat {"stream_options":{"include_usage":"x"}} => 400 {"error":{"message":"Input validation error: `stream_options.include_usage`: invalid type: string \"x\", expected a boolean","type":"invalid_request_error","param":"stream_options.include_usage","code":"invalid_type","http_status_code":400},"error_type":"validation"}
chat {"model":1} => 400 {"error":{"message":"Input validation error: `model`: invalid type: integer `1`, expected a string","type":"invalid_request_error","param":"model","code":"invalid_type","http_status_code":400},"error_type":"validation"}
completions {"prompt":""} => 400 {"error":{"message":"Input validation error: `prompt` cannot be empty","type":"invalid_request_error","param":"prompt","code":"invalid_value","http_status_code":400},"error_type":"validation"}
completions {"prompt":[]} => 400 {"error":{"message":"Input validation error: `prompt` must have >= 1 and <= 2 prompts. Given: 0","type":"invalid_request_error","param":"prompt","code":"invalid_value","http_status_code":400},"error_type":"validation"}
completions {"prompt":["a","b","c"]} => 400 {"error":{"message":"Input validation error: `prompt` must have >= 1 and <= 2 prompts. Given: 3","type":"invalid_request_error","param":"prompt","code":"invalid_value","http_status_code":400},"error_type":"validation"}
completions {"prompt":[46]} => 400 {"error":{"message":"Input validation error: `prompt` token ids must be < 46. Given: 46","type":"invalid_request_error","param":"prompt","code":"invalid_value","http_status_code":400},"error_type":"validation"}
completions {"prompt":[[]]} => 400 {"error":{"message":"Input validation error: `prompt` cannot be empty","type":"invalid_request_error","param":"prompt","code":"invalid_value","http_status_code":400},"error_type":"validation"}
completions {"prompt":{"a":1}} => 400 {"error":{"message":"Input validation error: `prompt`: expected a string, a list of strings, a list of token ids, or a list of such lists","type":"invalid_request_error","param":"prompt","code":"invalid_type","http_status_code":400},"error_type":"validation"}
completions {"suffix":"a"} => 400 {"error":{"message":"Input validation error: `suffix` is not supported yet","type":"invalid_request_error","param":"suffix","code":"invalid_value","http_status_code":400},"error_type":"validation"}
completions {"echo":true} => 400 {"error":{"message":"Input validation error: `echo` is not supported yet","type":"invalid_request_error","param":"echo","code":"invalid_value","http_status_code":400},"error_type":"validation"}
completions {"best_of":2} => 400 {"error":{"message":"Input validation error: `best_of` is not supported yet","type":"invalid_request_error","param":"best_of","code":"invalid_value","http_status_code":400},"error_type":"validation"}
completions {"logprobs":6} => 400 {"error":{"message":"Input validation error: `logprobs` must be >= 0 and <= 5. Given: 6","type":"invalid_request_error","param":"logprobs","code":"invalid_value","http_status_code":400},"error_type":"validation"}
"#);
}

#[tokio::test]
async fn wishes_about_the_turn_and_the_cache() {
    let world = World::new().await;
    let cases = [
        json!({"priority": -1}),
        json!({"priority": 0}),
        json!({"priority": 5}),
        json!({"priority": 6}),
        json!({"priority": "high"}),
        json!({"cache_salt": ""}),
        json!({"cache_salt": "a"}),
        json!({"cache_salt": 1}),
        json!({"scheduling_details": 1}),
    ];
    let mut lines = vec![generate(&world, &cases).await];
    // Bytes count, not characters.
    let long = "é".repeat(128) + "x";
    for (case, field, value) in [
        ("6", "priority", json!(6)),
        ("empty", "cache_salt", json!("")),
        ("257 bytes", "cache_salt", json!(long)),
    ] {
        let mut body = json!({"prompt": "a", "max_tokens": 1});
        body[field] = value;
        let reply = world.post("/v1/completions", body).await;
        lines.push(line(&format!("completions, {field} {case}"), &reply));
    }
    insta::assert_snapshot!(lines.join("\n"), @r#"
{"priority":-1} => 422 {"error":"Input validation error: `priority` must be >= 0 and <= 5. Given: -1","error_type":"validation"}
{"priority":0} => 200
{"priority":5} => 200
{"priority":6} => 422 {"error":"Input validation error: `priority` must be >= 0 and <= 5. Given: 6","error_type":"validation"}
{"priority":"high"} => 422 {"error":"Input validation error: `parameters.priority`: invalid type: string \"high\", expected an integer","error_type":"validation"}
{"cache_salt":""} => 422 {"error":"Input validation error: `cache_salt` must have >= 1 and <= 256 bytes. Given: 0","error_type":"validation"}
{"cache_salt":"a"} => 200
{"cache_salt":1} => 422 {"error":"Input validation error: `parameters.cache_salt`: invalid type: integer `1`, expected a string","error_type":"validation"}
{"scheduling_details":1} => 422 {"error":"Input validation error: `parameters.scheduling_details`: invalid type: integer `1`, expected a boolean","error_type":"validation"}
completions, priority 6 => 400 {"error":{"message":"Input validation error: `priority` must be >= 0 and <= 5. Given: 6","type":"invalid_request_error","param":"priority","code":"invalid_value","http_status_code":400},"error_type":"validation"}
completions, cache_salt empty => 400 {"error":{"message":"Input validation error: `cache_salt` must have >= 1 and <= 256 bytes. Given: 0","type":"invalid_request_error","param":"cache_salt","code":"invalid_value","http_status_code":400},"error_type":"validation"}
completions, cache_salt 257 bytes => 400 {"error":{"message":"Input validation error: `cache_salt` must have >= 1 and <= 256 bytes. Given: 257","type":"invalid_request_error","param":"cache_salt","code":"invalid_value","http_status_code":400},"error_type":"validation"}
"#);
}

/// An error names the value that was given, which may be as long as the body.
#[tokio::test]
async fn what_an_error_quotes_is_short() {
    let world = World::with(|options| options.limits.payload_limit = 3_000_000).await;
    let long = "é".repeat(1_000_000);
    let fields = json!({"prompt": "a", "priority": long});
    let value = world.post("/v1/completions", fields).await.body;
    let fields = json!({"prompt": "a", "logit_bias": {long: true}});
    let key = world.post("/v1/completions", fields).await.body;
    for (reply, end) in [(value, r#"é\", expected an integer""#), (key, "é`: ")] {
        assert!(reply.contains("Input validation error: `"), "{reply:.500}");
        assert!(reply.contains(end), "{reply:.500}");
        assert!(reply.contains("\"code\":\"invalid_type\""), "{reply:.500}");
        assert!(reply.len() < 5000, "{}", reply.len());
    }
}
