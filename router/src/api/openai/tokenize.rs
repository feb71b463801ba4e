//! `POST /chat_tokenize`: the prompt that a chat becomes, as text and as tokens. TGI's route, so its errors are native;
//! its body is that of a chat.

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Serialize;

use super::chat::{NAMES, lower};
use super::read;
use crate::api::AppState;
use crate::api::generate::tokenizer_error;
use crate::api::respond::{ErrorStyle, json_text};
use crate::error::ApiError;
use crate::tokenize::{Token, tokens};
use crate::validation::{Limits, check};

#[derive(Debug, Serialize)]
struct ChatTokens {
    tokenize_response: Vec<Token>,
    templated_text: String,
}

pub(in crate::api) async fn handle(State(app): State<AppState>, request: Request) -> Response {
    match answer(&app, request).await {
        Ok(response) => response,
        Err(error) => ErrorStyle::Native.response(&error),
    }
}

async fn answer(app: &AppState, request: Request) -> Result<Response, ApiError> {
    let (body, sampling) = read(app, request).await?;
    let (messages, draft, _) = lower(&body, sampling)?;
    // What chat refuses is refused here too: otherwise this would show a prompt that no answer is given to.
    let facts = app.ready()?;
    check(draft, &Limits::new(&app.limits, &facts), 0)?;
    let job = {
        let app = AppState::clone(app);
        move |tokenizer: &tokenizers::Tokenizer| {
            let templated_text = app.render(&messages)?;
            let tokens = tokens(tokenizer, &templated_text, false);
            let answer = ChatTokens {
                tokenize_response: tokens.map_err(|error| tokenizer_error(NAMES.inputs, &error))?,
                templated_text,
            };
            Ok::<_, ApiError>(json_text(&answer))
        }
    };
    let json = app.tokenizers.run(job).await??;
    drop(body);
    app.answers.respond(json)
}
