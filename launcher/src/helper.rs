//! A process of `penstock_server.prepare`, run before the shards: JSON lines in and out, its standard error in the log.
//! Dropping the handle kills it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::failure::Failure;
use crate::logs::{Output, Source};
use crate::process;

/// What such a process says, one a line.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(crate) enum Event {
    Metadata { folder: PathBuf, commit: String },
    Progress { done: u64, total: u64 },
    Tokenizer { path: PathBuf },
    Done,
    Failed { unusable: bool, message: String },
}

#[derive(Debug)]
pub(crate) struct Helper {
    name: &'static str,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Helper {
    /// Starts `penstock_server.prepare.<name>` with `request`, to which the launcher's own process id is added. To be
    /// called on the main thread, as for [`process::Process::spawn`].
    pub(crate) async fn start(
        python: &Path,
        name: &'static str,
        request: impl Serialize,
        output: &Output,
    ) -> Result<Self, Failure> {
        #[derive(Serialize)]
        struct Request<R> {
            #[serde(flatten)]
            request: R,
            parent_pid: u32,
        }
        let failed = |error: std::io::Error| {
            Failure::io(
                format!("cannot start {} ({name})", python.display()),
                &error,
            )
        };
        let mut child = Command::new(python)
            .args(["-P", "-m", &format!("penstock_server.prepare.{name}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let missing = || failed(std::io::Error::other("it has no pipes"));
        let stdout = child.stdout.take().ok_or_else(missing)?;
        if let Some(stderr) = child.stderr.take() {
            process::pump(stderr, Source::Helper { name }, output.clone());
        }
        let stdin = child.stdin.take();
        let mut helper = Self {
            name,
            child,
            stdin,
            lines: BufReader::new(stdout).lines(),
        };
        let parent_pid = std::process::id();
        helper
            .say(&Request {
                request,
                parent_pid,
            })
            .await;
        Ok(helper)
    }

    /// Sends one object. A process that has ended is noticed by [`Self::next`].
    pub(crate) async fn say(&mut self, message: &impl Serialize) {
        let mut line = serde_json::to_vec(message).expect("our own types are JSON");
        line.push(b'\n');
        if let Some(stdin) = &mut self.stdin {
            let _broken_pipe = stdin.write_all(&line).await;
        }
    }

    /// There is nothing more to say.
    pub(crate) fn finish(&mut self) {
        self.stdin = None;
    }

    /// The next event; one that tells of a failure is the error.
    pub(crate) async fn next(&mut self) -> Result<Event, Failure> {
        let line = self.lines.next_line().await.ok().flatten();
        match line.as_deref().map(serde_json::from_str) {
            Some(Ok(Event::Failed { unusable, message })) => Err(if unusable {
                Failure::Model(message)
            } else {
                Failure::Failed(message)
            }),
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(Failure::Failed(format!(
                "penstock_server.prepare.{} wrote a line that is not its own: {error}",
                self.name
            ))),
            None => {
                let status = self.child.wait().await;
                let status = status.map_or_else(|error| error.to_string(), process::describe);
                Err(Failure::Failed(format!(
                    "penstock_server.prepare.{} {status}; its lines above say why",
                    self.name
                )))
            }
        }
    }
}
