//! Threads that do the slow work of a prompt, templates and tokenizing, so that no thread that moves tokens ever waits
//! for it. Plain threads and a bounded queue: a tokenizer that spreads one text over all cores would stall the streams
//! of everybody else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use tokenizers::Tokenizer;
use tokio::sync::{mpsc, oneshot};

/// Jobs that wait; a request that finds the queue full waits in its own task.
const QUEUE_LEN: usize = 64;

type Job = Box<dyn FnOnce(&Tokenizer) + Send>;

/// A cloneable handle; the threads end when the last one is dropped.
#[derive(Clone, Debug)]
pub struct TokenizerPool {
    jobs: mpsc::Sender<Job>,
}

/// The job did not come to its end.
#[derive(Debug, thiserror::Error)]
#[error("the tokenizer failed on this prompt")]
pub struct JobFailed;

/// The tokenizer refused the text.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct EncodeError(String);

impl From<tokenizers::Error> for EncodeError {
    fn from(error: tokenizers::Error) -> Self {
        Self(error.to_string())
    }
}

impl TokenizerPool {
    /// Starts `num_workers` threads.
    pub fn new(tokenizer: &Arc<Tokenizer>, num_workers: usize) -> std::io::Result<Self> {
        tokenizers::utils::parallelism::set_parallelism(false);
        let (jobs, queue) = mpsc::channel::<Job>(QUEUE_LEN);
        let queue = Arc::new(Mutex::new(queue));
        for index in 0..num_workers {
            let queue = Arc::clone(&queue);
            let tokenizer = Arc::clone(tokenizer);
            std::thread::Builder::new()
                .name(format!("tokenizer-{index}"))
                .spawn(move || work(&queue, &tokenizer))?;
        }
        Ok(Self { jobs })
    }

    /// Runs `job` on one of the threads. A job whose caller has gone is not begun.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Tokenizer) -> T + Send + 'static,
    ) -> Result<T, JobFailed> {
        let (reply, result) = oneshot::channel();
        let job: Job = Box::new(move |tokenizer| {
            if !reply.is_closed() {
                let _ = reply.send(job(tokenizer));
            }
        });
        self.jobs.send(job).await.map_err(|_| JobFailed)?;
        result.await.map_err(|_| JobFailed)
    }
}

fn work(queue: &Mutex<mpsc::Receiver<Job>>, tokenizer: &Tokenizer) {
    loop {
        let job = queue
            .lock()
            .expect("nothing panics while it holds the queue")
            .blocking_recv();
        let Some(job) = job else { return };
        // A prompt that makes the tokenizer panic fails its own request; the thread goes on.
        if catch_unwind(AssertUnwindSafe(|| job(tokenizer))).is_err() {
            tracing::error!("the tokenizer panicked on a prompt");
        }
    }
}

/// Text to ids, with the tokenizer's own special tokens around it or not.
pub fn encode(
    tokenizer: &Tokenizer,
    text: &str,
    add_special_tokens: bool,
) -> Result<Vec<u32>, EncodeError> {
    let encoding = tokenizer.encode_fast(text, add_special_tokens)?;
    Ok(encoding.get_ids().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::tests::byte_tokenizer;

    #[tokio::test]
    async fn encodes_on_its_threads_and_survives_a_panic() {
        let pool = TokenizerPool::new(&byte_tokenizer(), 2).unwrap();
        let panicked = pool.run(|_| panic!("on purpose")).await;
        assert!(panicked.is_err());
        let ids = pool
            .run(|tokenizer| encode(tokenizer, "a</s>é", false))
            .await;
        assert_eq!(ids.unwrap().unwrap(), [97, 257, 0xc3, 0xa9]);
    }
}
