//! The services that every gRPC client knows: health and reflection, and what is answered where there is none.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use tokio_stream::StreamExt;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

use super::{STEP, channel};
use crate::connections::serve;
use crate::world::World;

const GENERATION: &str = "penstock.v1.Generation";

fn of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

#[tokio::test]
async fn health_follows_readiness() {
    let world = World::with(|options| options.alive = false).await;
    let served = serve(&world, Duration::from_secs(60), || {
        panic!("no call is left")
    })
    .await;
    let mut client = HealthClient::new(channel(&served).await);
    let watch = client.watch(of(GENERATION)).await.unwrap().into_inner();
    let mut watch = watch.map(|change| change.map(|change| change.status()));
    let unknown = client.watch(of("unknown")).await.unwrap().into_inner();
    let mut unknown = unknown.map(|change| change.map(|change| change.status()));
    let mut check = async |service| {
        let answer = client.check(of(service)).await;
        answer.map(|answer| answer.into_inner().status())
    };
    assert_eq!(check("").await.unwrap(), ServingStatus::NotServing);
    assert_eq!(check(GENERATION).await.unwrap(), ServingStatus::NotServing);
    assert_eq!(check("unknown").await.unwrap_err().code(), Code::NotFound);
    let next = watch.next().await.unwrap();
    assert_eq!(next.unwrap(), ServingStatus::NotServing);

    world.engine.set_alive(true);
    let next = watch.next().await.unwrap();
    assert_eq!(next.unwrap(), ServingStatus::Serving);
    world.wait_for_health(StatusCode::OK).await;
    assert_eq!(check("").await.unwrap(), ServingStatus::Serving);
    assert_eq!(check(GENERATION).await.unwrap(), ServingStatus::Serving);

    // The watches end with a drain: it would wait for them.
    world.router.drain();
    assert_eq!(check("").await.unwrap(), ServingStatus::NotServing);
    let next = watch.next().await.unwrap();
    assert_eq!(next.unwrap(), ServingStatus::NotServing);
    let end = watch.next().await.unwrap().unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
    let next = unknown.next().await.unwrap();
    assert_eq!(next.unwrap(), ServingStatus::ServiceUnknown);
    assert!(unknown.next().await.unwrap().is_err());
    drop(client);
    served.stop.cancel();
    let done = tokio::time::timeout(Duration::from_secs(30), served.done);
    done.await.unwrap().unwrap();
}

#[tokio::test]
async fn reflection_lists_the_services() {
    let world = World::new().await;
    let served = serve(&world, STEP, || ()).await;
    let channel = channel(&served).await;
    let expected = ["grpc.health.v1.Health", GENERATION];

    let list = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let answers = client
        .server_reflection_info(tokio_stream::once(list))
        .await;
    let answer = answers.unwrap().into_inner().message().await.unwrap();
    let answer = answer.unwrap().message_response.unwrap();
    let v1::server_reflection_response::MessageResponse::ListServicesResponse(services) = answer
    else {
        panic!("a list: {answer:?}");
    };
    let names: Vec<String> = services.service.into_iter().map(|one| one.name).collect();
    for name in expected {
        assert!(names.iter().any(|listed| listed == name), "{names:?}");
    }

    let file = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
                GENERATION.to_owned(),
            ),
        ),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let answers = client
        .server_reflection_info(tokio_stream::once(file))
        .await;
    let answer = answers.unwrap().into_inner().message().await.unwrap();
    let answer = answer.unwrap().message_response.unwrap();
    let v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(files) =
        answer
    else {
        panic!("a file: {answer:?}");
    };
    assert_eq!(files.file_descriptor_proto.len(), 1);
}

/// A client that keeps its call open, as `grpcurl` in a shell may, does not hold up a drain.
#[tokio::test]
async fn reflection_ends_with_the_drain() {
    let world = World::new().await;
    let served = serve(&world, Duration::from_secs(60), || {
        panic!("no call is left")
    })
    .await;
    let list = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let questions = tokio_stream::once(list).chain(tokio_stream::pending());
    let mut client =
        v1::server_reflection_client::ServerReflectionClient::new(channel(&served).await);
    let answers = client.server_reflection_info(questions).await;
    let mut answers = answers.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    world.router.drain();
    assert!(answers.message().await.unwrap().is_none());
    served.stop.cancel();
    let done = tokio::time::timeout(Duration::from_secs(30), served.done);
    done.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_not_served_is_unimplemented() {
    let world = World::new().await;
    for path in ["/penstock.v1.Generation/Train", "/other.Service/Call"] {
        let grpc = [("content-type", "application/grpc")];
        let reply = world.send(Method::POST, path, &grpc, "").await;
        assert_eq!(reply.status, 200, "{path}");
        assert_eq!(reply.headers["grpc-status"], "12", "{path}");
    }
    let mut client = HealthClient::new(world.routes.clone());
    let empty = client.check(Request::new(of(""))).await.unwrap();
    assert_eq!(empty.into_inner().status(), ServingStatus::Serving);
}
