use axum::http::{Method, StatusCode};

use crate::world::World;

#[tokio::test]
async fn health_is_empty_and_answers_head() {
    let world = World::new().await;
    for path in ["/health", "/"] {
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
    insta::assert_snapshot!(world.get("/info").await.show(), @r#"
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
GET /generat: 404 {"error":"no route `/generat`; the nearest are: POST /generate; GET /health; GET /info","error_type":"not_found"} allow=None
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
