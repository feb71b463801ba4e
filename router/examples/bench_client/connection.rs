//! One request on a connection of its own, which the server closes at the end of the answer.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBuf, TcpMaxSeg};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket,
};
use nix::time::{ClockId, clock_gettime};

use crate::Target;

/// Stamps start again from 0 at this many microseconds.
const STAMP_RANGE: u32 = 1 << 23;
const STAMP: &[u8] = b"\"logprob\":-";
/// Of a client that does not read: with the segments of the loopback the kernel keeps megabytes for it.
const NARROW_SEGMENT: u32 = 536;
const NARROW_BUFFER: usize = 4096;
/// Of one that reads at last.
const WIDE_BUFFER: usize = 4 << 20;
/// What a stream that was not cut ends with.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// What came in during a window.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) tokens: u64,
    /// Writes of the server.
    pub(crate) chunks: u64,
    pub(crate) bytes: u64,
    /// From a token's stamp until it was read, in microseconds.
    pub(crate) latencies: Vec<u32>,
}

/// The answer so far.
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    /// What is left of it to send.
    request: Vec<u8>,
    pub(crate) started: Instant,
    pub(crate) first_token: Option<Instant>,
    pub(crate) tokens: u32,
    head: Vec<u8>,
    head_ended: bool,
    tail: Vec<u8>,
    line: Line,
}

fn new_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Inet, SockType::Stream, flags, None)
}

/// Where in a body the last byte was.
#[derive(Clone, Copy)]
enum Line {
    Inside,
    /// Of a chunk that only shows that the server lives.
    Comment,
    Ended,
    /// After the empty line of an event.
    Event,
    /// After the carriage return that follows the last event of a chunk.
    Chunk,
}

impl Connection {
    pub(crate) fn open(target: &Target, tokens: u32) -> io::Result<Self> {
        Self::ask(new_socket()?, target, tokens)
    }

    /// One for which the kernel keeps as little as it can: what is not read stays in the server.
    pub(crate) fn open_narrow(target: &Target, tokens: u32) -> io::Result<Self> {
        let socket = new_socket()?;
        setsockopt(&socket, TcpMaxSeg, &NARROW_SEGMENT)?;
        setsockopt(&socket, RcvBuf, &NARROW_BUFFER)?;
        Self::ask(socket, target, tokens)
    }

    /// From now on it reads like any other.
    pub(crate) fn widen(&self) -> nix::Result<()> {
        setsockopt(&self.stream, RcvBuf, &WIDE_BUFFER)
    }

    /// Sends nothing yet, and never waits: a server whose queue is full must not keep this client from reading what others answer.
    fn ask(socket: OwnedFd, target: &Target, tokens: u32) -> io::Result<Self> {
        let started = Instant::now();
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(target.address)) {
            Ok(()) | Err(Errno::EINPROGRESS) => (),
            Err(error) => return Err(error.into()),
        }
        let body = format!(
            r#"{{"inputs":"Tell me a story","parameters":{{"max_new_tokens":{tokens},"ignore_eos":true}}}}"#
        );
        let request = format!(
            "POST /generate_stream HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        Ok(Self {
            stream: socket.into(),
            request: request.into_bytes(),
            started,
            first_token: None,
            tokens: 0,
            head: Vec::new(),
            head_ended: false,
            tail: Vec::new(),
            line: Line::Inside,
        })
    }

    /// The request, once there is a connection. True when it has gone.
    pub(crate) fn send(&mut self) -> io::Result<bool> {
        if !self.request.is_empty() {
            match self.stream.write(&self.request) {
                Ok(count) => drop(self.request.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => (),
                Err(error) => return Err(error),
            }
        }
        Ok(self.request.is_empty())
    }

    /// Takes what has come. True at the end.
    pub(crate) fn read(
        &mut self,
        buffer: &mut [u8],
        stamped: bool,
        tally: &mut Tally,
    ) -> io::Result<bool> {
        let count = match self.stream.read(buffer) {
            Ok(0) => return Ok(true),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut bytes = &buffer[..count];
        if !self.head_ended {
            let before = self.head.len();
            self.head.extend_from_slice(bytes);
            let Some(at) = self.head.windows(4).position(|end| end == b"\r\n\r\n") else {
                return Ok(false);
            };
            self.head_ended = true;
            bytes = &bytes[at + 4 - before..];
            self.head.truncate(at + 2);
        }
        tally.bytes += bytes.len() as u64;
        if stamped {
            stamps(bytes, &mut tally.latencies);
        }
        let before = self.tokens;
        self.count(bytes, tally);
        if before == 0 && self.tokens > 0 {
            self.first_token = Some(Instant::now());
        }
        self.tail
            .extend_from_slice(&bytes[bytes.len().saturating_sub(LAST_CHUNK.len())..]);
        let surplus = self.tail.len().saturating_sub(LAST_CHUNK.len());
        self.tail.drain(..surplus);
        Ok(false)
    }

    fn count(&mut self, bytes: &[u8], tally: &mut Tally) {
        let before = self.tokens;
        for &byte in bytes {
            self.line = match (self.line, byte) {
                (Line::Ended, b'\n') => {
                    self.tokens += 1;
                    Line::Event
                }
                (Line::Ended | Line::Event, b':') => Line::Comment,
                (Line::Event | Line::Comment, b'\r') => Line::Chunk,
                (Line::Comment, _) => Line::Comment,
                (Line::Chunk, b'\n') => {
                    tally.chunks += 1;
                    Line::Inside
                }
                (_, b'\n') => Line::Ended,
                _ => Line::Inside,
            };
        }
        tally.tokens += u64::from(self.tokens - before);
    }

    /// Of the answer; 0 if there was none.
    pub(crate) fn status(&self) -> u16 {
        let status = self
            .head
            .get(9..12)
            .and_then(|status| str::from_utf8(status).ok());
        status.and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    pub(crate) fn has_header(&self, name: &str) -> bool {
        let head = String::from_utf8_lossy(&self.head).to_lowercase();
        head.contains(&format!("\r\n{name}: "))
    }

    /// The stream ended as it should, with all its tokens.
    pub(crate) fn is_whole(&self, tokens: u32) -> bool {
        self.status() == 200 && self.tokens == tokens && self.tail == LAST_CHUNK
    }
}

fn stamps(bytes: &[u8], latencies: &mut Vec<u32>) {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000);
    let now = u32::try_from(now.rem_euclid(STAMP_RANGE.into())).unwrap_or(0);
    let found = bytes.windows(STAMP.len()).enumerate();
    for (at, _) in found.filter(|(_, window)| *window == STAMP) {
        let digits = bytes[at + STAMP.len()..].iter();
        let stamp = digits
            .take_while(|byte| byte.is_ascii_digit())
            .fold(0, |stamp: u32, digit| {
                stamp.wrapping_mul(10).wrapping_add(u32::from(digit - b'0'))
            });
        // A stamp whose rest is in the next read is too small by far, and there are next to none.
        latencies.push((now + STAMP_RANGE - stamp % STAMP_RANGE) % STAMP_RANGE);
    }
}
