//! The least that streams over HTTP can cost: one thread, one epoll, events that are rendered already, one write per
//! event and stream. It answers every request with a stream; what the request says does not matter. The router's
//! benchmark has this as its peer, with events as large as the router's own, framing included.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use clap::Parser;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::time::{ClockId, clock_gettime};

const HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n\
    x-accel-buffering: no\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
const LISTENER: u64 = u64::MAX;

#[derive(Parser)]
struct Args {
    /// Of every answer
    #[arg(long, default_value_t = 256)]
    tokens: u32,
    /// Of one event, its chunk's frame included
    #[arg(long, default_value_t = 120)]
    event_bytes: usize,
    /// As fast as the sockets take them if absent
    #[arg(long)]
    steps_per_s: Option<f64>,
}

/// An answer on its way.
struct Answer {
    socket: TcpStream,
    /// The request has come.
    begun: bool,
    left: u32,
    /// Of the event that the socket took a part of.
    written: usize,
}

/// An event whose stamp can be exchanged.
struct Event {
    bytes: Vec<u8>,
    stamp_at: usize,
}

impl Event {
    fn new(num_bytes: usize) -> Self {
        let before = r#"data: {"index":1,"token":{"id":1000,"text":""#;
        let after =
            r#"","logprob":-0000000.0,"special":false},"generated_text":null,"details":null}"#;
        // The length in hexadecimal and two line ends.
        let body = num_bytes.saturating_sub(6);
        let filler = body.saturating_sub(before.len() + after.len() + 2);
        let body = format!("{before}{}{after}\n\n", "x".repeat(filler));
        let text = format!("{:x}\r\n{body}\r\n", body.len());
        let stamp_at = text.find("-0000000").map_or(0, |at| at + 1);
        Self {
            bytes: text.into_bytes(),
            stamp_at,
        }
    }

    /// Microseconds of the machine's monotonic clock, as the fake shard stamps its results.
    fn stamp(&mut self) -> nix::Result<()> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        let micros = (now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000) % (1 << 23);
        let digits = format!("{micros:07}");
        self.bytes[self.stamp_at..self.stamp_at + digits.len()].copy_from_slice(digits.as_bytes());
        Ok(())
    }
}

impl Answer {
    /// Writes the next event, or what is left of it. True at the end.
    fn step(&mut self, event: &Event) -> io::Result<bool> {
        match self.socket.write(&event.bytes[self.written..]) {
            Ok(count) => self.written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
        if self.written < event.bytes.len() {
            return Ok(false);
        }
        self.written = 0;
        self.left -= 1;
        if self.left > 0 {
            return Ok(false);
        }
        self.socket.write_all(LAST_CHUNK)?;
        Ok(true)
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    writeln!(io::stdout(), "{}", listener.local_addr()?)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut answers: Vec<Option<Answer>> = Vec::new();
    let mut event = Event::new(args.event_bytes);
    let mut events = vec![EpollEvent::empty(); 256];
    let mut next_step = Instant::now();
    loop {
        let busy = answers.iter().flatten().any(|answer| answer.begun);
        let timeout = if busy {
            let left = next_step.saturating_duration_since(Instant::now());
            EpollTimeout::try_from(left.as_millis() + u128::from(!left.is_zero()))?
        } else {
            EpollTimeout::NONE
        };
        let count = epoll.wait(&mut events, timeout)?;
        for ready in &events[..count] {
            if ready.data() == LISTENER {
                accept(&listener, &epoll, &mut answers, args.tokens)?;
            } else {
                begin(&mut answers[usize::try_from(ready.data())?]);
            }
        }
        if Instant::now() < next_step {
            continue;
        }
        if let Some(rate) = args.steps_per_s {
            next_step += Duration::from_secs_f64(1.0 / rate);
            next_step = next_step.max(Instant::now());
            event.stamp()?;
        }
        for answer in &mut answers {
            if let Some(open) = answer.as_mut().filter(|answer| answer.begun)
                && open.step(&event).unwrap_or(true)
            {
                *answer = None;
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    epoll: &Epoll,
    answers: &mut Vec<Option<Answer>>,
    tokens: u32,
) -> anyhow::Result<()> {
    while let Ok((socket, _)) = listener.accept() {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let free = answers.iter().position(Option::is_none);
        let place = free.unwrap_or_else(|| {
            answers.push(None);
            answers.len() - 1
        });
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, place as u64))?;
        answers[place] = Some(Answer {
            socket,
            begun: false,
            left: tokens,
            written: 0,
        });
    }
    Ok(())
}

/// Reads the request, which comes in one piece, or finds that the client has gone.
fn begin(place: &mut Option<Answer>) {
    let Some(answer) = place else { return };
    match answer.socket.read(&mut [0; 4096]) {
        Ok(0) | Err(_) => *place = None,
        Ok(_) if answer.begun => (),
        Ok(_) => {
            answer.begun = true;
            if answer.socket.write_all(HEAD).is_err() {
                *place = None;
            }
        }
    }
}
