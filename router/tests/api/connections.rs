//! What only shows on a real socket: clients that leave, clients that do not read, and the accept loop's end.

use std::net::SocketAddr;
use std::time::Duration;

use penstock_router::server::{self, Drain};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::world::World;

const STEP: Duration = Duration::from_millis(10);

struct Served {
    address: SocketAddr,
    stop: CancellationToken,
    done: JoinHandle<()>,
}

async fn serve(
    world: &World,
    timeout: Duration,
    expired: impl FnOnce() + Send + 'static,
) -> Served {
    let listener = server::bind("127.0.0.1", 0).await.unwrap();
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
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all((head + body).as_bytes()).await.unwrap();
    stream
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
