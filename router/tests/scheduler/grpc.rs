//! The driver against fake shards behind real sockets.

use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use penstock_router::driver::{DriverHandle, EngineStatus, spawn};
use penstock_router::engine::Connector;
use penstock_router::engine::fake::{FakeConfig, Faults, serve};
use penstock_router::engine::grpc::GrpcConnector;
use penstock_router::event::{Delivery, Failure, FinishReason};
use penstock_router::request::RequestId;
use tokio::sync::mpsc;

use crate::support::{collect, config, expected, ready, request, submit, wait_for};

/// Fake shards of one group, on this test's runtime.
fn serve_group(folder: &Path, faults: &[Faults]) -> Vec<PathBuf> {
    let mut fake = FakeConfig::default();
    fake.info.num_ranks = u32::try_from(faults.len()).expect("a handful of ranks");
    let mut sockets = Vec::new();
    for (&faults, rank) in faults.iter().zip(0..) {
        let socket = folder.join(format!("{rank}.sock"));
        let (fake, path) = (fake.clone(), socket.clone());
        tokio::spawn(async move { serve(&path, fake, rank, faults).await });
        sockets.push(socket);
    }
    sockets
}

fn connect(depth: u32, sockets: Vec<PathBuf>) -> (DriverHandle, mpsc::Receiver<Vec<Delivery>>) {
    let (sender, deliveries) = mpsc::channel(64);
    let handle =
        spawn(config(depth), GrpcConnector::new(sockets), sender).expect("a thread can be started");
    (handle, deliveries)
}

async fn down_reason(handle: &mut DriverHandle) -> String {
    let status = wait_for(handle, |status| matches!(status, EngineStatus::Down { .. })).await;
    let EngineStatus::Down { reason } = status else {
        unreachable!("waited for");
    };
    reason
}

#[tokio::test]
async fn two_ranks_answer_at_every_depth() {
    for depth in 1..=3 {
        let folder = tempfile::tempdir().unwrap();
        let sockets = serve_group(folder.path(), &[Faults::default(); 2]);
        let (mut handle, mut deliveries) = connect(depth, sockets);
        ready(&mut handle).await;
        for id in 0..20 {
            submit(&handle, request(id, 1 + id * 40, 10 + id)).await;
        }
        let answers = collect(&mut deliveries, 20).await;
        for id in 0..20 {
            let answer = &answers[&RequestId(id.into())];
            assert_eq!(answer.end, Some(Ok(FinishReason::Length)));
            assert_eq!(answer.ids, expected(id, 1 + id * 40, 10 + id));
        }
    }
}

#[tokio::test]
async fn ranks_that_disagree_end_the_group_and_a_higher_epoch_opens_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = Faults {
        wrong_ids_from: Some(5),
        fail_at: None,
    };
    let sockets = serve_group(folder.path(), &[Faults::default(), wrong]);
    let (mut handle, mut deliveries) = connect(2, sockets);
    for round in 0..2 {
        ready(&mut handle).await;
        submit(&handle, request(round, 8, 50)).await;
        let answers = collect(&mut deliveries, 1).await;
        let answer = &answers[&RequestId(round.into())];
        assert_eq!(answer.end, Some(Err(Failure::EngineLost)));
        assert_eq!(answer.ids, expected(round, 8, 4), "plans 1 to 4 were good");
        handle.status.mark_unchanged();
        ready(&mut handle).await;
    }
    assert!(handle.stats.get().engines_ready >= 3);
}

#[tokio::test]
async fn a_stream_that_ends_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let failing = Faults {
        wrong_ids_from: None,
        fail_at: Some(3),
    };
    let sockets = serve_group(folder.path(), &[failing]);
    let (mut handle, mut deliveries) = connect(1, sockets);
    ready(&mut handle).await;
    let mut watcher = handle.clone();
    let reason = tokio::spawn(async move { down_reason(&mut watcher).await });
    submit(&handle, request(0, 8, 50)).await;
    let answers = collect(&mut deliveries, 1).await;
    assert_eq!(answers[&RequestId(0)].ids.len(), 2);
    assert_eq!(reason.await.unwrap(), "rank 0: Internal: told to fail here");
}

#[tokio::test]
async fn sockets_in_the_wrong_order_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut sockets = serve_group(folder.path(), &[Faults::default(); 2]);
    sockets.reverse();
    let (mut handle, _deliveries) = connect(2, sockets);
    assert_eq!(
        down_reason(&mut handle).await,
        "unsupported engine: socket 0 of 2 is rank 1 of 2"
    );
}

/// The example `fake_shard`, which `cargo test` builds; ends with its standard input, that is with this test.
fn shard_process(socket: &Path) -> Child {
    let this = std::env::current_exe().expect("this test has a path");
    let program = this
        .ancestors()
        .nth(2)
        .expect("tests lie in <profile>/deps")
        .join("examples/fake_shard");
    Process::new(&program)
        .arg("--socket")
        .arg(socket)
        .arg("--step-ms=5")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}; build the examples", program.display()))
}

#[tokio::test]
async fn a_killed_shard_fails_everybody_and_a_new_process_serves() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("shard.sock");
    let mut shard = shard_process(&socket);
    let (mut handle, mut deliveries) = connect(2, vec![socket.clone()]);
    ready(&mut handle).await;
    for id in 0..8 {
        submit(&handle, request(id, 10, 2000)).await;
    }
    let first = deliveries.recv().await.unwrap();
    assert!(!first.is_empty());
    shard.kill().unwrap();
    let killed = Instant::now();
    let answers = collect(&mut deliveries, 8).await;
    down_reason(&mut handle).await;
    assert!(killed.elapsed() < Duration::from_secs(5), "a hang guard");
    for answer in answers.values() {
        assert_eq!(answer.end, Some(Err(Failure::EngineLost)));
    }
    shard.wait().unwrap();
    std::fs::remove_file(&socket).unwrap();

    let mut shard = shard_process(&socket);
    ready(&mut handle).await;
    submit(&handle, request(9, 10, 20)).await;
    let answers = collect(&mut deliveries, 1).await;
    assert_eq!(answers[&RequestId(9)].ids, expected(9, 10, 20));
    shard.kill().unwrap();
    shard.wait().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_says_nothing_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("mute.sock");
    let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let mut connector = GrpcConnector::new(vec![socket]);
    let minutes = Duration::from_secs(300);
    let attempt = tokio::time::timeout(minutes, connector.connect(1)).await;
    let error = attempt.expect("it does not wait for ever").unwrap_err();
    assert_eq!(error.to_string(), "rank 0: no answer to Info within 30 s");
}
