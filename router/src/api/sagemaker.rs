//! The two routes of Amazon's hosting. `/ping` is `/health`; `/invocations` takes the bodies of three routes and tells
//! them apart by their fields.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::record::Record;
use super::respond::ErrorStyle;
use super::{AppState, openai, tgi};
use crate::error::ApiError;
use crate::validation::ValidationError;

const ROUTE: &str = "/invocations";

/// The field that each kind of body must have.
#[derive(Debug, Deserialize)]
struct Fields {
    inputs: Option<IgnoredAny>,
    messages: Option<IgnoredAny>,
    prompt: Option<IgnoredAny>,
}

enum Kind {
    Compat,
    Chat,
    Completion,
}

impl Fields {
    /// The first that fits, in TGI's order.
    fn kind(&self) -> Result<Kind, ApiError> {
        if self.inputs.is_some() {
            Ok(Kind::Compat)
        } else if self.messages.is_some() {
            Ok(Kind::Chat)
        } else if self.prompt.is_some() {
            Ok(Kind::Completion)
        } else {
            let message = "the body must have one of `inputs` (as on `/`), `messages` (as on `/v1/chat/completions`) and \
                 `prompt` (as on `/v1/completions`). Given: none";
            Err(ValidationError::new("inputs", message.to_owned()).into())
        }
    }
}

/// Answers as the body's own route does, errors too.
pub(super) async fn invocations(State(app): State<AppState>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let arrived = async {
        app.ready()?;
        let media_type = parts.headers.clone();
        let mut whole = Request::new(body);
        *whole.headers_mut() = media_type;
        let body = app.read_body(whole).await?;
        let kind = body.parse::<Fields>()?.kind()?;
        Ok::<_, ApiError>((kind, body.into_bytes()))
    };
    match arrived.await {
        Ok((kind, bytes)) => {
            let request = Request::from_parts(parts, Body::from(bytes));
            match kind {
                Kind::Compat => tgi::serve_compat(app, request, ROUTE).await,
                Kind::Chat => openai::chat::serve(app, request, ROUTE).await,
                Kind::Completion => openai::completions::serve(app, request, ROUTE).await,
            }
        }
        Err(error) => {
            let style = ErrorStyle::Native;
            Record::new(&app.metrics, ROUTE).failed(&error, style.status(&error).as_u16());
            style.response(&error)
        }
    }
}
