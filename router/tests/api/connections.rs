//! What only shows on a real socket: clients that leave, clients that do not read, and the accept loop's end.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::http::{Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use penstock_router::public_pb::{GenerateRequest, Parameters};
use penstock_router::server::{self, Drain};
use prost::Message;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::world::World;

const STEP: Duration = Duration::from_millis(10);

pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) stop: CancellationToken,
    pub(crate) done: JoinHandle<()>,
}

pub(crate) async fn serve(
    world: &World,
    timeout: Duration,
    expired: impl FnOnce() + Send + 'static,
) -> Served {
    let (listener, _) = server::bind("127.0.0.1", 0).await.unwrap();
    serve_on(listener, world, timeout, expired)
}

fn serve_on(
    listener: TcpListener,
    world: &World,
    timeout: Duration,
    expired: impl FnOnce() + Send + 'static,
) -> Served {
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let drain = Drain {
        signal: stop.clone(),
        timeout,
        expired,
    };
    let done = tokio::spawn(server::run(listener, world.routes.clone(), drain));
    Served {
        address,
        stop,
        done,
    }
}

/// Sends a request and returns the connection without reading.
async fn send(address: SocketAddr, path: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = head(path, body.len()) + body;
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

fn head(path: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
}

fn long() -> String {
    json!({"inputs": "a", "parameters": {"ignore_eos": true}}).to_string()
}

/// Left alone, each would run for 7.8 s: longer than the wait for quiet.
#[tokio::test]
async fn a_client_that_leaves_frees_its_request() {
    let world = World::with(|options| options.step_time = 10 * STEP).await;
    let served = serve(&world, STEP, || ()).await;
    for (number, path) in ["/generate", "/generate_stream"].into_iter().enumerate() {
        let mut stream = send(served.address, path, &long()).await;
        if path == "/generate_stream" {
            let mut start = [0; 64];
            stream.read_exact(&mut start).await.unwrap();
        } else {
            tokio::time::sleep(STEP * 30).await;
        }
        assert_eq!(world.router.num_requests(), 1);
        drop(stream);
        world.wait_for_quiet().await;
        let dropped = world.metric("tgi_request_failure{err=\"dropped\"}").await;
        assert_eq!(dropped, number as f64 + 1.0);
    }
}

/// A client that never reads does not keep its request running past its end, and delays nobody.
#[tokio::test]
async fn a_client_that_does_not_read_holds_nobody_up() {
    let world = World::new().await;
    let served = serve(&world, STEP, || ()).await;
    let mut silent = send(served.address, "/generate_stream", &long()).await;
    let body = json!({"inputs": "b", "parameters": {"max_new_tokens": 50, "ignore_eos": true}});
    assert_eq!(world.post("/generate", body).await.status, 200);
    world.wait_for_quiet().await;
    // All of it is still there.
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).ends_with("0\r\n\r\n") {
        silent.read_buf(&mut text).await.unwrap();
    }
    let events = String::from_utf8_lossy(&text).matches("data: ").count();
    assert_eq!(events, 78);
}

/// A world whose answers are larger than every buffer on the way: about 2 MB.
async fn world_of_long_answers() -> World {
    World::with(|options| {
        options.limits.max_concurrent_requests = 1;
        options.limits.max_total_tokens = Some(4000);
    })
    .await
}

fn much() -> String {
    json!({"inputs": "a", "parameters": {"ignore_eos": true, "top_n_tokens": 5}}).to_string()
}

/// Waits until the answer has been made, then lets a minute pass and waits for its place to be free.
async fn wait_until_cut(world: &World) {
    while world.metric("penstock_running_requests").await > 0.0 {
        tokio::time::sleep(STEP).await;
    }
    tokio::time::sleep(STEP * 10).await;
    assert_eq!(world.router.num_requests(), 1, "the answer is not taken");
    for _ in 0..2 {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(35)).await;
        tokio::time::resume();
        tokio::time::sleep(STEP * 5).await;
    }
    for _ in 0..100 {
        if world.router.num_requests() == 0 {
            return;
        }
        tokio::time::sleep(STEP).await;
    }
    panic!("a client that does not read keeps its place");
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_its_place() {
    let world = world_of_long_answers().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(4096).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let served = serve_on(socket.listen(8).unwrap(), &world, STEP, || ());
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut silent = socket.connect(served.address).await.unwrap();
    let request = head("/generate_stream", much().len()) + &much();
    silent.write_all(request.as_bytes()).await.unwrap();
    wait_until_cut(&world).await;
    // What it had not taken is gone, and it can tell.
    let mut rest = Vec::new();
    let _reset = silent.read_to_end(&mut rest).await;
    assert!(!String::from_utf8_lossy(&rest).ends_with("0\r\n\r\n"));
    assert_eq!(
        world.metric("tgi_request_failure{err=\"dropped\"}").await,
        1.0
    );
}

/// Sends a request over HTTP/2 whose answer is not read, and waits until it is cut: the connection lives and answers
/// pings; it is one stream's window that stays shut.
async fn leave_unread(path: &str, content_type: &str, body: Vec<u8>) -> Response<Incoming> {
    let world = world_of_long_answers().await;
    let served = serve(&world, STEP, || ()).await;
    let stream = TcpStream::connect(served.address).await.unwrap();
    let (mut client, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1000)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::post(format!("http://{}{path}", served.address))
        .header("content-type", content_type)
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    wait_until_cut(&world).await;
    assert!(!connection.is_finished());
    response
}

#[tokio::test]
async fn a_stream_that_is_not_read_loses_its_place() {
    let body = much().into_bytes();
    let response = leave_unread("/generate_stream", "application/json", body).await;
    // It ends with a reset, not like a whole answer.
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test]
async fn a_grpc_stream_that_is_not_read_loses_its_place() {
    let parameters = Parameters {
        ignore_eos: Some(true),
        top_n_tokens: Some(5),
        ..Parameters::default()
    };
    let message = GenerateRequest {
        inputs: "a".to_owned(),
        parameters: Some(parameters),
    };
    let message = message.encode_to_vec();
    let mut body = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
    body.extend(message);
    let path = "/penstock.v1.Generation/GenerateStream";
    let response = leave_unread(path, "application/grpc", body).await;
    let rest = response.into_body().collect().await.unwrap();
    assert_eq!(rest.trailers().unwrap()["grpc-status"], "10");
}

/// Bodies that are on their way are limited together, not only one by one.
#[tokio::test]
async fn bodies_in_flight_are_limited() {
    let world = World::with(|options| options.limits.max_concurrent_requests = 1).await;
    let served = serve(&world, STEP, || ()).await;
    let body =
        |length: usize| json!({"inputs": "a".repeat(length), "parameters": {"max_new_tokens": 1}});
    let part = head("/generate", 1900) + &" ".repeat(1800);
    let deadline = Instant::now() + Duration::from_secs(60);
    // Until a slow body was there first. Where it was not, the body after it is read: 1000 tokens are too many.
    let (slow, refused) = loop {
        let mut slow = TcpStream::connect(served.address).await.unwrap();
        slow.write_all(part.as_bytes()).await.unwrap();
        tokio::time::sleep(STEP * 5).await;
        let answer = world.post("/generate", body(1000)).await;
        if answer.status == 429 || Instant::now() > deadline {
            break (slow, answer);
        }
    };
    insta::assert_snapshot!(refused.show(), @r#"
429
{"error":"too many request bodies are on their way","error_type":"overloaded"}
"#);
    assert_eq!(world.post("/generate", body(10)).await.status, 200);
    drop(slow);
    while world.post("/generate", body(1000)).await.status != 422 {
        assert!(Instant::now() < deadline, "the room is not given back");
        tokio::time::sleep(STEP).await;
    }
}

/// Reads one answer, which has a length.
async fn read_answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let (_, length) = head.split_once("content-length: ").unwrap();
            let length: usize = length.lines().next().unwrap().parse().unwrap();
            if body.len() >= length {
                return text.into_owned();
            }
        }
        let read = stream.read_buf(&mut answer).await.unwrap();
        assert_ne!(read, 0, "{}", String::from_utf8_lossy(&answer));
    }
}

/// Some errors are known before the body has arrived. The next request on the connection must not be lost.
#[tokio::test]
async fn a_connection_goes_on_after_an_early_error() {
    let ready = World::new().await;
    let starting = World::with(|options| options.alive = false).await;
    let ready = serve(&ready, STEP, || ()).await.address;
    let starting = serve(&starting, STEP, || ()).await.address;
    for (address, path, length, early, status) in [
        (starting, "/generate", 10, 0, 503),
        (starting, "/v1/completions", 1000, 0, 503),
        (ready, "/health", 10, 0, 405),
        (ready, "/nowhere", 100_000, 10, 404),
        (ready, "/generate", 100_000, 2100, 413),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        for _ in 0..2 {
            let request = head(path, length) + &" ".repeat(length);
            let (early, late) = request.split_at(request.len() - length + early);
            stream.write_all(early.as_bytes()).await.unwrap();
            tokio::time::sleep(STEP).await;
            stream.write_all(late.as_bytes()).await.unwrap();
            let answer = read_answer(&mut stream).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{answer}"
            );
            assert!(!answer.contains("connection: close"), "{answer}");
        }
    }
}

/// Nor must a client take a connection for one that goes on: here the body never comes, or only if it is asked for.
#[tokio::test]
async fn an_answer_says_that_its_connection_ends() {
    let world = World::new().await;
    let served = serve(&world, STEP, || ()).await;
    for header in ["x-none: x", "expect: 100-continue"] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        let head = head("/nowhere", 10).replace("host: x", &format!("host: x\r\n{header}"));
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn a_name_is_looked_up() {
    for (hostname, address) in [
        ("localhost", "127.0.0.1"),
        ("[::1]", "::1"),
        ("no..name", "0.0.0.0"),
    ] {
        let (_, bound) = server::bind(hostname, 0).await.unwrap();
        assert_eq!(bound.ip().to_string(), address);
        assert_ne!(bound.port(), 0);
    }
}

/// Unless the machine has no IPv6 at all.
#[tokio::test]
async fn the_ipv6_wildcard_serves_both_kinds_of_addresses() {
    let world = World::new().await;
    let Ok((listener, bound)) = server::bind("::", 0).await else {
        return;
    };
    let _served = serve_on(listener, &world, STEP, || ());
    for ip in ["127.0.0.1", "::1"] {
        let address = SocketAddr::new(ip.parse().unwrap(), bound.port());
        let mut stream = TcpStream::connect(address).await.unwrap();
        for (method, path) in [
            ("GET", "/health"),
            ("HEAD", "/health"),
            ("HEAD", "/metrics"),
        ] {
            let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
            }
            let answer = String::from_utf8(answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        }
    }
}

#[tokio::test]
async fn a_drain_waits_for_running_requests() {
    let world = World::with(|options| options.step_time = STEP).await;
    let served = serve(&world, Duration::from_secs(60), || panic!("it has time")).await;
    let body = json!({"inputs": "a", "parameters": {"max_new_tokens": 10, "ignore_eos": true}});
    let mut running = send(served.address, "/generate_stream", &body.to_string()).await;
    let idle = TcpStream::connect(served.address).await.unwrap();
    let mut start = [0; 16];
    running.read_exact(&mut start).await.unwrap();
    served.stop.cancel();
    let mut rest = String::new();
    running.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("\"generated_text\":\""), "{rest}");
    tokio::time::timeout(Duration::from_secs(30), served.done)
        .await
        .unwrap()
        .unwrap();
    assert!(TcpStream::connect(served.address).await.is_err());
    drop(idle);
}

#[tokio::test]
async fn after_the_drain_streams_end_with_an_error_event() {
    let world = World::with(|options| {
        options.step_time = Duration::from_millis(100);
    })
    .await;
    let (expired, mut told) = tokio::sync::mpsc::channel(1);
    let served = serve(&world, STEP * 5, move || expired.try_send(()).unwrap()).await;
    let mut running = send(served.address, "/generate_stream", &long()).await;
    let mut start = [0; 16];
    running.read_exact(&mut start).await.unwrap();
    served.stop.cancel();
    told.recv().await.unwrap();
    world.router.end_requests();
    let mut rest = String::new();
    running.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("the server is shutting down"), "{rest}");
    tokio::time::timeout(Duration::from_secs(30), served.done)
        .await
        .unwrap()
        .unwrap();
}

/// HTTP/2 with prior knowledge on the same port, its preface in two pieces.
#[tokio::test]
async fn both_protocols_are_recognised() {
    let world = World::new().await;
    let served = serve(&world, STEP, || ()).await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    stream.write_all(&preface[..5]).await.unwrap();
    tokio::time::sleep(STEP * 3).await;
    stream.write_all(&preface[5..]).await.unwrap();
    // An empty SETTINGS frame.
    stream
        .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
        .await
        .unwrap();
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).await.unwrap();
    assert_eq!(frame[3], 4, "the server answers with its settings");
}
