//! `GET /v1/models`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use crate::api::AppState;
use crate::api::respond::json_response;

pub(in crate::api) async fn list(State(app): State<AppState>) -> Response {
    let id = app.names.served();
    let model = json!({"id": id, "object": "model", "created": 0, "owned_by": id});
    json_response(StatusCode::OK, &json!({"object": "list", "data": [model]}))
}
