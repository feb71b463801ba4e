use serde_json::{Value, json};

use crate::world::World;

fn ids(tokens: &Value) -> Vec<u64> {
    let tokens = tokens.as_array().unwrap();
    tokens
        .iter()
        .map(|token| token["id"].as_u64().unwrap())
        .collect()
}

/// `<s>` is 43 and `</s>` 44; é has two tokens.
#[tokio::test]
async fn a_text_is_shown_with_its_added_tokens_and_places_in_bytes() {
    let world = World::new().await;
    let body = json!({"inputs": "hi é</s>", "parameters": {"truncate": 1}});
    insta::assert_snapshot!(world.post("/tokenize", body).await.show(), @r#"
200
[{"id":43,"text":"","start":0,"stop":0},{"id":7,"text":"h","start":0,"stop":1},{"id":8,"text":"i","start":1,"stop":2},{"id":26,"text":" ","start":2,"stop":3},{"id":41,"text":"é","start":3,"stop":5},{"id":42,"text":"é","start":3,"stop":5},{"id":44,"text":"</s>","start":5,"stop":9}]
"#);
    let empty = world.post("/tokenize", json!({"inputs": ""})).await.json();
    assert_eq!(ids(&empty), [43]);
}

#[tokio::test]
async fn it_shows_the_prompt_that_a_request_has() {
    let world = World::new().await;
    let text = "once upon a time, ";
    let tokens = world
        .post("/tokenize", json!({"inputs": text}))
        .await
        .json();
    let body = json!({"inputs": text, "parameters": {"max_new_tokens": 1}});
    let reply = world.post("/generate", body).await;
    let num_tokens = tokens.as_array().unwrap().len().to_string();
    assert_eq!(reply.headers["x-prompt-tokens"], num_tokens);
    // Longer than a request may be.
    let long = "a".repeat(100);
    let tokens = world
        .post("/tokenize", json!({"inputs": long}))
        .await
        .json();
    assert_eq!(tokens.as_array().unwrap().len(), 101);
    // It is no request for an answer.
    assert_eq!(world.metric("tgi_request_count").await, 1.0);
}

/// The template writes its own `<s>`, and no other is added.
#[tokio::test]
async fn a_chat_is_shown_as_text_and_tokens() {
    let world = World::new().await;
    let messages = json!([{"role": "user", "content": "hi"}]);
    let body = json!({"messages": messages, "max_tokens": 1});
    let shown = world.post("/chat_tokenize", body.clone()).await.json();
    assert_eq!(shown["templated_text"], "<s>user: hi\nassistant: ");
    let tokens = &shown["tokenize_response"];
    let answer = world.post("/v1/chat/completions", body).await.json();
    assert_eq!(
        answer["usage"]["prompt_tokens"],
        tokens.as_array().unwrap().len()
    );
    assert_eq!(
        tokens[0],
        json!({"id": 43, "text": "<s>", "start": 0, "stop": 3})
    );
    assert_eq!(ids(tokens)[1..5], [20, 18, 4, 17]);
}

#[tokio::test]
async fn what_cannot_be_tokenized_has_native_errors() {
    let world = World::new().await;
    let user = json!([{"role": "user", "content": "hi"}]);
    let mut lines = Vec::new();
    for (path, body) in [
        ("/tokenize", json!({})),
        ("/tokenize", json!({"inputs": 1})),
        ("/chat_tokenize", json!({"messages": []})),
        (
            "/chat_tokenize",
            json!({"messages": [{"role": "robot", "content": "x"}]}),
        ),
        (
            "/chat_tokenize",
            json!({"messages": user, "tools": [{"type": "function"}]}),
        ),
        ("/chat_tokenize", json!({"messages": user, "model": "x"})),
    ] {
        let reply = world.post(path, body.clone()).await;
        lines.push(format!(
            "{path} {body} => {}",
            reply.show().replace('\n', " ")
        ));
    }
    insta::assert_snapshot!(lines.join("\n"), @r#"
/tokenize {} => 422 {"error":"Input validation error: missing field `inputs`","error_type":"validation"}
/tokenize {"inputs":1} => 422 {"error":"Input validation error: `inputs`: invalid type: integer `1`, expected a string","error_type":"validation"}
/chat_tokenize {"messages":[]} => 422 {"error":"Input validation error: `messages` must have >= 1 message. Given: 0","error_type":"validation"}
/chat_tokenize {"messages":[{"role":"robot","content":"x"}]} => 422 {"error":"Template error: no robots, please","error_type":"template_error"}
/chat_tokenize {"messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function"}]} => 422 {"error":"Input validation error: `tools` is not supported yet","error_type":"validation"}
/chat_tokenize {"messages":[{"role":"user","content":"hi"}],"model":"x"} => 404 {"error":"the model `x` does not exist; `org/tiny` is served","error_type":"model_not_found"}
"#);
    let reply = world.post_text("/tokenize", &"x".repeat(2001)).await;
    assert_eq!(reply.status, 413);
}
