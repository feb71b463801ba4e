//! One child process: its own group, its config on standard input, its lines pumped to the log, its end decoded.

use std::collections::VecDeque;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::logs::{Output, Source};

/// Lines kept for the report of a child's death.
const TAIL_LINES: usize = 30;
/// A longer line is passed on in pieces.
const MAX_LINE_BYTES: usize = 64 << 10;
/// How long a dead child's pipes may stay open (held by something that it started) before its death is reported.
const PIPE_GRACE: Duration = Duration::from_millis(500);

/// A running child. Dropping the handle kills its whole group.
#[derive(Debug)]
pub(crate) struct Process {
    group: Pid,
}

/// A child's end.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) source: Source,
    /// Of the shard group, counted by starts.
    pub(crate) generation: u32,
    pub(crate) status: ExitStatus,
    pub(crate) last_lines: Vec<String>,
}

/// Where a child's output and its end go.
#[derive(Clone, Debug)]
pub(crate) struct Sinks {
    pub(crate) output: Output,
    pub(crate) exits: Sender<Exit>,
}

impl Process {
    /// Starts `command` with `config` on its standard input. To be called on the main thread: the children's
    /// parent-death signal is tied to the thread that started them.
    pub(crate) fn spawn(
        mut command: Command,
        config: String,
        source: Source,
        generation: u32,
        sinks: Sinks,
    ) -> io::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        let group =
            Pid::from_raw(id.ok_or_else(|| io::Error::other("the child has no process id"))?);
        if let Some(mut stdin) = child.stdin.take() {
            tokio::spawn(async move {
                // A child that dies before it has read its config is reported by its exit.
                let _broken_pipe = stdin.write_all(config.as_bytes()).await;
            });
        }
        tokio::spawn(watch(child, source, generation, sinks));
        Ok(Self { group })
    }

    /// Asks the child, and what it started, to end.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    fn signal(&self, signal: Signal) {
        // ESRCH: the group has ended, which is what was wanted.
        let _ended = killpg(self.group, signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

async fn watch(mut child: Child, source: Source, generation: u32, sinks: Sinks) {
    let stdout = child
        .stdout
        .take()
        .map(|pipe| pump(pipe, source, sinks.output.clone()));
    let stderr = child
        .stderr
        .take()
        .map(|pipe| pump(pipe, source, sinks.output.clone()));
    let status = match child.wait().await {
        Ok(status) => status,
        Err(error) => {
            tracing::error!("waiting for a child: {error}");
            ExitStatus::from_raw(0xff00)
        }
    };
    let mut last_lines = Vec::new();
    for lines in [stdout, stderr].into_iter().flatten() {
        if let Ok(Ok(tail)) = timeout(PIPE_GRACE, lines).await {
            last_lines.extend(tail);
        }
    }
    let _shutting_down = sinks
        .exits
        .send(Exit {
            source,
            generation,
            status,
            last_lines,
        })
        .await;
}

/// Forwards lines until the pipe closes; returns the last ones.
pub(crate) fn pump(
    pipe: impl AsyncRead + Send + Unpin + 'static,
    source: Source,
    output: Output,
) -> JoinHandle<VecDeque<String>> {
    tokio::spawn(async move {
        let mut reader = BufReader::with_capacity(MAX_LINE_BYTES, pipe);
        let mut tail = VecDeque::with_capacity(TAIL_LINES);
        while let Some(line) = next_line(&mut reader).await {
            output.forward(source, &line);
            if tail.len() == TAIL_LINES {
                tail.pop_front();
            }
            tail.push_back(line);
        }
        tail
    })
}

/// The next line without its end, cut at `MAX_LINE_BYTES`; `None` at the end of the pipe.
async fn next_line(reader: &mut (impl AsyncBufRead + Unpin)) -> Option<String> {
    let mut line = Vec::new();
    loop {
        let buffer = reader.fill_buf().await.ok()?;
        if buffer.is_empty() {
            return (!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned());
        }
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let wanted = end.unwrap_or(buffer.len()).min(MAX_LINE_BYTES - line.len());
        line.extend_from_slice(&buffer[..wanted]);
        let whole = end == Some(wanted);
        reader.consume(wanted + usize::from(whole));
        if whole || line.len() == MAX_LINE_BYTES {
            return Some(
                String::from_utf8_lossy(&line)
                    .trim_end_matches('\r')
                    .to_owned(),
            );
        }
    }
}

/// A child's status in words, with the likely cause where the signal has one.
pub(crate) fn describe(status: ExitStatus) -> String {
    let Some(number) = status.signal() else {
        return format!("ended with exit code {}", status.code().unwrap_or(-1));
    };
    let name = Signal::try_from(number)
        .map_or_else(|_| number.to_string(), |signal| signal.as_str().to_owned());
    let cause = match Signal::try_from(number) {
        Ok(Signal::SIGKILL) => {
            ": somebody killed it, or the kernel did because memory ran out (see dmesg)"
        }
        Ok(Signal::SIGBUS) => ": shared memory is probably full (in a container, raise --shm-size)",
        Ok(Signal::SIGILL) => {
            ": this processor lacks an instruction that the program was built for"
        }
        _ => "",
    };
    format!("was ended by {name}{cause}")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(bytes: &[u8]) -> Vec<String> {
        let mut reader = BufReader::with_capacity(7, bytes);
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut reader).await {
            lines.push(line);
        }
        lines
    }

    #[tokio::test]
    async fn lines_are_split_and_never_unbounded() {
        assert_eq!(
            lines(b"one\r\n\ntwo longer than a buffer\nlast").await,
            ["one", "", "two longer than a buffer", "last"]
        );
        let long = vec![b'x'; MAX_LINE_BYTES * 2 + 1];
        let sizes: Vec<_> = lines(&long).await.iter().map(String::len).collect();
        assert_eq!(sizes, [MAX_LINE_BYTES, MAX_LINE_BYTES, 1]);
        assert_eq!(lines(b"\xff\n").await, ["\u{fffd}"]);
    }

    #[test]
    fn statuses_are_decoded() {
        assert_eq!(
            describe(ExitStatus::from_raw(3 << 8)),
            "ended with exit code 3"
        );
        assert!(
            describe(ExitStatus::from_raw(9))
                .starts_with("was ended by SIGKILL: somebody killed it")
        );
        assert!(describe(ExitStatus::from_raw(7)).contains("shared memory"));
        assert_eq!(describe(ExitStatus::from_raw(15)), "was ended by SIGTERM");
    }
}
