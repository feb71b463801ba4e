use serde_json::json;

use crate::world::World;

/// The answers are those of the routes whose bodies these are. Of the streams only the native one has the same events
/// each time.
#[tokio::test]
async fn invocations_answers_as_the_route_of_the_body() {
    let world = World::new().await;
    let chat = json!([{"role": "user", "content": "hi"}]);
    for (route, body) in [
        (
            "/",
            json!({"inputs": "hi", "parameters": {"max_new_tokens": 4}}),
        ),
        (
            "/",
            json!({"inputs": "hi", "parameters": {"max_new_tokens": 4}, "stream": true}),
        ),
        ("/", json!({"inputs": "hi", "parameters": {"top_p": 2.0}})),
        (
            "/",
            json!({"inputs": "hi", "messages": chat, "parameters": {"max_new_tokens": 2}}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": chat, "max_tokens": 4, "temperature": 0}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": chat, "model": "other"}),
        ),
        (
            "/v1/completions",
            json!({"prompt": "hi", "max_tokens": 4, "temperature": 0}),
        ),
    ] {
        let expected = world.post(route, body.clone()).await;
        let reply = world.post("/invocations", body.clone()).await;
        // The second finds in the cache what the first left there.
        let shown = reply
            .show()
            .replace(r#""cached_tokens":16"#, r#""cached_tokens":0"#);
        assert_eq!(shown, expected.show(), "{body}");
        assert_eq!(
            reply.headers["content-type"], expected.headers["content-type"],
            "{body}"
        );
    }
    // Each request counts once.
    assert_eq!(world.metric("tgi_request_count").await, 14.0);
    world.wait_for_quiet().await;
}

#[tokio::test]
async fn bodies_of_no_route_name_the_fields() {
    let world = World::new().await;
    let mut lines = Vec::new();
    for body in ["{}", "{\"inputs\": null}", "[1]", "{", "{\"inputs\": 1}"] {
        let reply = world.post_text("/invocations", body).await;
        lines.push(format!("{body} => {}", reply.show().replace('\n', " ")));
    }
    let reply = world.post_text("/invocations", &"x".repeat(2001)).await;
    lines.push(format!("2001 bytes => {}", reply.show().replace('\n', " ")));
    insta::assert_snapshot!(lines.join("\n"), @r#"
{} => 422 {"error":"Input validation error: the body must have one of `inputs` (as on `/`), `messages` (as on `/v1/chat/completions`) and `prompt` (as on `/v1/completions`). Given: none","error_type":"validation"}
{"inputs": null} => 422 {"error":"Input validation error: the body must have one of `inputs` (as on `/`), `messages` (as on `/v1/chat/completions`) and `prompt` (as on `/v1/completions`). Given: none","error_type":"validation"}
[1] => 422 {"error":"Input validation error: the body must be a JSON object. Given: a list","error_type":"validation"}
{ => 400 {"error":"the body is not valid JSON: EOF while parsing an object at line 1 column 1","error_type":"validation"}
{"inputs": 1} => 422 {"error":"Input validation error: `inputs`: invalid type: integer `1`, expected a string","error_type":"validation"}
2001 bytes => 413 {"error":"the body must have <= 2000 bytes (--payload-limit). Given: 2001","error_type":"validation"}
"#);
    assert_eq!(
        world
            .metric("tgi_request_failure{err=\"validation\"}")
            .await,
        6.0
    );
}
