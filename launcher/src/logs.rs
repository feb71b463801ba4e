//! Standard output: the launcher's own events and the lines of its children, one at a time. A thread does the writing,
//! so that a terminal or pipe that nobody reads can never keep the launcher from supervising.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use penstock_router::config::LogConfig;
use penstock_router::telemetry;
use serde_json::{Map, Value, json};
use tracing_subscriber::fmt::MakeWriter;

use crate::failure::Failure;

/// Lines that wait for the reader of standard output; more are dropped and counted.
const MAX_WAITING: usize = 8192;

/// Which child wrote a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Router,
    Shard {
        rank: u32,
    },
    /// Of `penstock_server.prepare`.
    Helper {
        name: &'static str,
    },
}

/// A handle to standard output.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    lines: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
    json: bool,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Starts the writer and makes it the target of this process's own events.
pub(crate) fn start(config: &LogConfig) -> Result<Output, Failure> {
    let filter = telemetry::filter(&config.log_level, &["launcher"])
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let (lines, waiting) = sync_channel(MAX_WAITING);
    let output = Output {
        lines,
        dropped: Arc::default(),
        json: config.json_output,
    };
    let dropped = Arc::clone(&output.dropped);
    let json = output.json;
    thread::Builder::new()
        .name("stdout".to_owned())
        .spawn(move || write_all(&waiting, &dropped, json))
        .map_err(|error| Failure::io("cannot start a thread", &error))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(output.clone())
        .with_target(false);
    if config.json_output {
        builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .init();
    } else {
        builder.with_ansi(io::stdout().is_terminal()).init();
    }
    Ok(output)
}

fn write_all(waiting: &Receiver<Message>, dropped: &AtomicU64, json: bool) {
    // Not line-buffered on purpose: each message is written whole, and flushed.
    for message in waiting {
        // A closed standard output must not stop the server; there is nobody left to tell.
        let mut stdout = io::stdout().lock();
        match message {
            Message::Line(line) => {
                let _closed = stdout.write_all(&line).and_then(|()| stdout.flush());
                let lost = dropped.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    let _closed = writeln!(stdout, "{}", dropped_notice(lost, json));
                }
            }
            Message::Flush(done) => drop(done),
        }
    }
}

impl Output {
    /// Passes a child's line on, marked with where it comes from.
    pub(crate) fn forward(&self, source: Source, line: &str) {
        let mut text = if self.json {
            json_line(source, line)
        } else {
            text_line(source, line)
        };
        text.push('\n');
        self.send(text.into_bytes());
    }

    /// Waits, for a second at most, until everything is written.
    pub(crate) fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.lines.try_send(Message::Flush(done)).is_ok() {
            let _gone = written.recv_timeout(Duration::from_secs(1));
        }
    }

    fn send(&self, line: Vec<u8>) {
        if self.lines.try_send(Message::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Self;

    fn make_writer(&'a self) -> Self::Writer {
        self.clone()
    }
}

/// The subscriber hands over one whole event per call.
impl Write for Output {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.send(event.to_vec());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn dropped_notice(lost: u64, json: bool) -> String {
    let message = format!("{lost} log lines dropped");
    if json {
        json!({"level": "WARN", "message": message}).to_string()
    } else {
        format!("WARN {message}")
    }
}

fn text_line(source: Source, line: &str) -> String {
    match source {
        Source::Router => line.to_owned(),
        // A shard's own events name their rank; a traceback or a library's print does not.
        Source::Shard { rank } if line.contains(&format!(" rank={rank} ")) => line.to_owned(),
        Source::Shard { rank } => format!("[shard {rank}] {line}"),
        Source::Helper { name } => format!("[{name}] {line}"),
    }
}

/// A child's JSON object passes with its rank added; anything else (a warning of a library, a traceback) is wrapped.
fn json_line(source: Source, line: &str) -> String {
    let mut object = match serde_json::from_str::<Map<String, Value>>(line) {
        Ok(object) => object,
        Err(_) => Map::from_iter([
            ("level".to_owned(), json!("WARN")),
            ("message".to_owned(), json!(line)),
        ]),
    };
    match source {
        Source::Router => object.entry("process").or_insert_with(|| json!("router")),
        Source::Helper { name } => object.entry("process").or_insert_with(|| json!(name)),
        Source::Shard { rank } => {
            object.entry("process").or_insert_with(|| json!("shard"));
            object.entry("rank").or_insert_with(|| json!(rank))
        }
    };
    Value::Object(object).to_string()
}

/// The shard's level for a tracing filter: its first directive without a target decides.
pub(crate) fn shard_level(filter: &str) -> &'static str {
    let plain = filter
        .split(',')
        .map(str::trim)
        .find(|directive| !directive.contains(['=', '[']));
    match plain.unwrap_or("info").to_ascii_lowercase().as_str() {
        "trace" | "debug" => "debug",
        "warn" | "warning" => "warning",
        "error" | "off" => "error",
        _ => "info",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_lines_of_shards_carry_their_rank() {
        assert_eq!(
            text_line(Source::Shard { rank: 3 }, "loaded"),
            "[shard 3] loaded"
        );
        assert_eq!(
            text_line(Source::Shard { rank: 3 }, "INFO rank=3 loaded"),
            "INFO rank=3 loaded"
        );
        assert_eq!(text_line(Source::Router, "ready"), "ready");
    }

    #[test]
    fn the_notice_has_the_form_of_the_lines_around_it() {
        assert_eq!(dropped_notice(3, false), "WARN 3 log lines dropped");
        assert_eq!(
            dropped_notice(3, true),
            r#"{"level":"WARN","message":"3 log lines dropped"}"#
        );
    }

    #[test]
    fn json_lines_stay_one_object_whatever_a_child_prints() {
        let shard = Source::Shard { rank: 1 };
        assert_eq!(
            json_line(shard, r#"{"level":"INFO","message":"loaded","rank":1}"#),
            r#"{"level":"INFO","message":"loaded","rank":1,"process":"shard"}"#
        );
        assert_eq!(
            json_line(shard, "Trace\"back"),
            r#"{"level":"WARN","message":"Trace\"back","process":"shard","rank":1}"#
        );
        assert_eq!(json_line(Source::Router, "{}"), r#"{"process":"router"}"#);
    }

    #[test]
    fn the_shards_level_is_the_filters_plain_directive() {
        for (filter, level) in [
            ("info", "info"),
            ("WARN", "warning"),
            ("penstock_router=debug,error", "error"),
            ("penstock_router=debug", "info"),
            ("trace", "debug"),
        ] {
            assert_eq!(shard_level(filter), level, "{filter}");
        }
    }
}
