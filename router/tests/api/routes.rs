use std::collections::BTreeSet;

use axum::http::{Method, StatusCode};

use crate::world::World;

#[tokio::test]
async fn health_is_empty_and_answers_head() {
    let world = World::new().await;
    for path in ["/health", "/", "/ping"] {
        let reply = world.get(path).await;
        assert_eq!((reply.status.as_u16(), reply.body.as_str()), (200, ""));
    }
    for path in ["/health", "/metrics"] {
        let reply = world.send(Method::HEAD, path, &[], "").await;
        assert_eq!((reply.status.as_u16(), reply.body.as_str()), (200, ""));
    }
}

#[tokio::test]
async fn info_states_the_limits() {
    let world = World::new().await;
    let reply = world.get("/info").await;
    let info = reply.json();
    assert_eq!(info["sha"], serde_json::json!(penstock_router::commit()));
    assert_eq!(
        info["docker_label"],
        serde_json::json!(penstock_router::docker_label())
    );
    insta::assert_snapshot!(reply.show(), @r#"
200
{"model_id":"org/tiny","model_sha":null,"model_pipeline_tag":"text-generation","max_concurrent_requests":8,"max_best_of":2,"max_stop_sequences":2,"max_input_tokens":40,"max_total_tokens":80,"validation_workers":1,"max_client_batch_size":2,"router":"text-generation-router","version":"0.1.0","sha":null,"docker_label":null,"model_dtype":"int32","model_device_type":"cpu","max_batch_total_tokens":32768}
"#);
}

#[tokio::test]
async fn unknown_routes_and_methods_name_what_there_is() {
    let world = World::new().await;
    let mut answers = Vec::new();
    for (method, path) in [
        (Method::GET, "/generat"),
        (Method::POST, "/v1/chat/completion"),
        (Method::GET, "/generate"),
        (Method::DELETE, "/v1/models"),
        (Method::PUT, "/"),
    ] {
        let reply = world.send(method.clone(), path, &[], "").await;
        let allow = reply
            .headers
            .get("allow")
            .map(|value| value.to_str().unwrap().to_owned());
        answers.push(format!(
            "{method} {path}: {} allow={allow:?}",
            reply.show().replace('\n', " ")
        ));
    }
    insta::assert_snapshot!(answers.join("\n"), @r#"
GET /generat: 404 {"error":"no route `/generat`; the nearest are: POST /generate; GET /ping; GET /health","error_type":"not_found"} allow=None
POST /v1/chat/completion: 404 {"error":{"message":"no route `/v1/chat/completion`; the nearest are: POST /v1/chat/completions; POST /v1/completions; POST /chat_tokenize","type":"invalid_request_error","param":null,"code":"not_found","http_status_code":404},"error_type":"not_found"} allow=None
GET /generate: 405 {"error":"`/generate` does not accept GET; it accepts: POST","error_type":"method_not_allowed"} allow=Some("POST")
DELETE /v1/models: 405 {"error":{"message":"`/v1/models` does not accept DELETE; it accepts: GET","type":"invalid_request_error","param":null,"code":"method_not_allowed","http_status_code":405},"error_type":"method_not_allowed"} allow=Some("GET")
PUT /: 405 {"error":"`/` does not accept PUT; it accepts: GET, POST","error_type":"method_not_allowed"} allow=Some("GET, POST")
"#);
}

/// Every path is served by the methods that the table lists, and by no other.
#[tokio::test]
async fn the_table_of_routes_is_right() {
    let world = World::new().await;
    for (path, methods) in penstock_router::api::routes() {
        let reply = world.send(Method::PATCH, path, &[], "").await;
        assert_eq!(reply.headers["allow"], methods, "{path}");
        for method in [Method::GET, Method::POST] {
            let allowed = methods.contains(method.as_str());
            let reply = world.send(method, path, &[], "").await;
            assert_eq!(reply.status != 405, allowed, "{path}");
        }
    }
}

/// The rows about routes in docs/from-tgi.md: method and path, and whether it is there.
fn documented() -> Vec<(String, String, bool)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/from-tgi.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, section) = text.split_once("\n## Routes\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut rows = Vec::new();
    for row in section.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let mut method = "";
        for (index, part) in cells[1].split('`').enumerate() {
            if index % 2 == 0 {
                method = part
                    .split([',', ' '])
                    .rfind(|word| !word.is_empty())
                    .unwrap_or(method);
            } else if part.starts_with('/') {
                rows.push((method.to_owned(), part.to_owned(), cells[2] != "not yet"));
            }
        }
    }
    rows
}

#[tokio::test]
async fn the_documentation_knows_every_route() {
    let served: BTreeSet<(String, String)> = penstock_router::api::routes()
        .flat_map(|(path, methods)| {
            let methods = methods.split(", ");
            methods.map(move |method| (method.to_owned(), path.to_owned()))
        })
        .collect();
    let (there, missing): (Vec<_>, Vec<_>) =
        documented().into_iter().partition(|(.., there)| *there);
    let there: BTreeSet<_> = there
        .into_iter()
        .map(|(method, path, _)| (method, path))
        .collect();
    assert_eq!(there, served);
    assert!(!missing.is_empty());
    let world = World::new().await;
    for (_, path, _) in missing {
        let path = path.replace("...", "x");
        assert_eq!(
            world.get(&path).await.status,
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
}

#[tokio::test]
async fn browsers_are_told_that_every_origin_may_read() {
    let world = World::new().await;
    let asking = [
        ("origin", "https://a.example"),
        ("access-control-request-method", "POST"),
    ];
    let reply = world.send(Method::OPTIONS, "/generate", &asking, "").await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!(reply.headers["access-control-allow-origin"], "*");
    let reply = world.send(Method::GET, "/nowhere", &asking, "").await;
    assert_eq!(reply.status, StatusCode::NOT_FOUND);
    assert_eq!(reply.headers["access-control-allow-origin"], "*");
}
