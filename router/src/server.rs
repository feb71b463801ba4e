//! The accept loop: connections in, with timeouts for those that say or take nothing, and an orderly end. On a stop
//! signal nothing new is accepted, running requests get their time, then they end with an error event.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutWriter;
use tokio_util::sync::CancellationToken;

use crate::leftover;

/// For the first byte of a connection, for a request's headers, and between two requests of one connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// A client that takes nothing for so long, although there is something to take, has gone or holds its place on purpose.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// More wait in the kernel until one ends.
const MAX_CONNECTIONS: usize = 8192;
/// Of a connection, in each direction; requests have smaller headers, and longer answers go out in parts.
const BUFFER_BYTES: usize = 64 << 10;
/// Of one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// After running requests have been told to end, for their last bytes.
const LAST_BYTES: Duration = Duration::from_secs(2);
/// After an accept error, which is mostly about too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How a server ends.
#[derive(Debug)]
pub struct Drain<F> {
    /// Starts the end.
    pub signal: CancellationToken,
    /// Running requests get this long.
    pub timeout: Duration,
    /// Called when that is over, to end them with an error.
    pub expired: F,
}

/// An address where nobody can listen.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.words())]
pub struct ListenError {
    pub address: SocketAddr,
    pub source: io::Error,
}

impl ListenError {
    fn words(&self) -> String {
        let (ip, port) = (self.address.ip(), self.address.port());
        match self.source.kind() {
            io::ErrorKind::AddrInUse => format!(
                "port {port} on {ip} is taken; stop what listens there or give another --port"
            ),
            io::ErrorKind::PermissionDenied => {
                format!("port {port} needs rights that this user lacks; give a --port above 1023")
            }
            io::ErrorKind::AddrNotAvailable => format!(
                "no interface of this machine has the address {ip}; give another --hostname"
            ),
            _ => format!("cannot listen on {ip} port {port}: {}", self.source),
        }
    }
}

/// The address that `--hostname` means. A name is looked up. The machine's own name, which container runtimes put into
/// `HOSTNAME` unasked, one that nobody knows and one of another machine mean all interfaces, as in TGI.
pub fn address(hostname: &str, port: u16) -> SocketAddr {
    if let Ok(ip) = hostname.trim_matches(['[', ']']).parse::<IpAddr>() {
        return SocketAddr::new(ip, port);
    }
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let found = if first_label(own.trim()) == first_label(hostname) {
        Vec::new()
    } else {
        let found = (hostname, port).to_socket_addrs().into_iter().flatten();
        found.filter(is_local).collect()
    };
    let first = found.iter().find(|address| address.is_ipv4());
    first.or(found.first()).copied().unwrap_or_else(|| {
        tracing::warn!(
            "--hostname {hostname:?} names no address of this machine; listening on 0.0.0.0"
        );
        SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)
    })
}

/// A machine's name may be set with or without its domain.
fn first_label(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

fn is_local(address: &SocketAddr) -> bool {
    std::net::TcpListener::bind((address.ip(), 0)).is_ok()
}

/// Listens on that address; 0 is replaced by the port that was free.
pub async fn bind(hostname: &str, port: u16) -> Result<(TcpListener, SocketAddr), ListenError> {
    let address = address(hostname, port);
    let failed = |source| ListenError { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Serves until the drain has ended.
pub async fn run<F: FnOnce()>(listener: TcpListener, router: Router, drain: Drain<F>) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .max_send_buf_size(BUFFER_BYTES)
        .max_concurrent_streams(MAX_STREAMS);
    let builder = Arc::new(builder);
    let router = leftover::read(router);
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accept = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = drain.signal.cancelled() => break,
            accepted = accept => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        let builder = Arc::clone(&builder);
        let watcher = graceful.watcher();
        let signal = drain.signal.clone();
        tokio::spawn(async move {
            let _place = place;
            // A connection without a request has nothing to drain.
            let spoke = tokio::select! {
                () = signal.cancelled() => false,
                spoke = speaks(&stream) => spoke,
            };
            if !spoke || stream.set_nodelay(true).is_err() {
                return;
            }
            let mut stream = TimeoutWriter::new(stream);
            stream.set_timeout(Some(WRITE_TIMEOUT));
            let connection = builder.serve_connection(TokioIo::new(Box::pin(stream)), service);
            // Errors here are the client's: gone, not reading, or not HTTP.
            if let Err(error) = watcher.watch(connection.into_owned()).await {
                tracing::debug!(error, "connection ended");
            }
        });
    }
    drop(listener);
    end(graceful, drain).await;
}

async fn end<F: FnOnce()>(graceful: GracefulShutdown, drain: Drain<F>) {
    tracing::debug!("draining: no new connections");
    let mut shutdown = std::pin::pin!(graceful.shutdown());
    if tokio::time::timeout(drain.timeout, &mut shutdown)
        .await
        .is_ok()
    {
        tracing::debug!("drained");
        return;
    }
    let seconds = drain.timeout.as_secs();
    tracing::warn!("requests still run after {seconds} s; ending them");
    (drain.expired)();
    if tokio::time::timeout(LAST_BYTES, shutdown).await.is_err() {
        tracing::warn!("connections that do not read their answers are cut");
    }
}

/// Waits until the client has sent enough to tell HTTP/1 from HTTP/2; hyper itself would wait for that without end.
async fn speaks(stream: &TcpStream) -> bool {
    let peek = async {
        let mut bytes = [0; HTTP2_PREFACE.len()];
        loop {
            match stream.peek(&mut bytes).await {
                Ok(0) | Err(_) => return false,
                Ok(num) if num == bytes.len() || !HTTP2_PREFACE.starts_with(&bytes[..num]) => {
                    return true;
                }
                // Part of the preface: the rest makes the socket readable no sooner than these bytes do.
                Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(HEADER_TIMEOUT, peek)
        .await
        .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::*;

    /// Time stands still while anything else can happen, so the minute costs nothing.
    #[tokio::test(start_paused = true)]
    async fn connections_that_do_not_come_to_a_request_are_closed() {
        let (listener, address) = bind("127.0.0.1", 0).await.unwrap();
        let drain = Drain {
            signal: CancellationToken::new(),
            timeout: Duration::ZERO,
            expired: || (),
        };
        tokio::spawn(run(listener, Router::new(), drain));
        for sent in ["", "PRI * HT", "GET / HTTP/1.1\r\nhost: x\r\n"] {
            let begin = Instant::now();
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(sent.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            // Bytes that nobody took make the end a reset.
            if let Err(error) = client.read_to_end(&mut answer).await {
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{sent:?}");
            }
            let waited = begin.elapsed();
            assert!(waited >= HEADER_TIMEOUT, "{sent:?}: {waited:?}");
            assert!(waited < HEADER_TIMEOUT * 3, "{sent:?}: {waited:?}");
        }
    }
}
