//! The gRPC services, over a real socket unless the client itself must not look at the clock.

mod answers;
mod failures;
mod standard;

use std::time::Duration;

use penstock_router::public_pb::generation_client::GenerationClient;
use penstock_router::public_pb::{GenerateRequest, GenerateStreamResponse, Parameters};
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use crate::connections::Served;

const STEP: Duration = Duration::from_millis(10);

async fn channel(served: &Served) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", served.address)).unwrap();
    endpoint.connect().await.unwrap()
}

async fn connect(served: &Served) -> GenerationClient<Channel> {
    GenerationClient::new(channel(served).await)
}

fn request(inputs: &str, change: impl FnOnce(&mut Parameters)) -> GenerateRequest {
    let mut parameters = Parameters::default();
    change(&mut parameters);
    GenerateRequest {
        inputs: inputs.to_owned(),
        parameters: Some(parameters),
    }
}

async fn all(
    mut stream: Streaming<GenerateStreamResponse>,
) -> (Vec<GenerateStreamResponse>, Result<(), Status>) {
    let mut messages = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return (messages, Ok(())),
            Err(status) => return (messages, Err(status)),
        }
    }
}
