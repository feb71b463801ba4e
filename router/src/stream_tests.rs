use std::time::Duration;

use super::*;
use crate::event::{SampledToken, Timings};
use crate::request::SamplingParams;
use crate::text::TextStyle;
use crate::vocabulary::tests::byte_tokenizer;

struct World {
    generator: Generator,
    commands: mpsc::Receiver<Command>,
    deliveries: mpsc::Sender<Vec<Delivery>>,
}

impl World {
    fn new(max_requests: usize, num_commands: usize) -> Self {
        let (commands, inbox) = mpsc::channel(num_commands);
        let (deliveries, outbox) = mpsc::channel(8);
        let vocabulary = Arc::new(Vocabulary::new(&byte_tokenizer()));
        let metrics = Arc::new(Metrics::new(100, 200).unwrap());
        Self {
            generator: Generator::new(commands, outbox, vocabulary, metrics, max_requests),
            commands: inbox,
            deliveries,
        }
    }

    fn submit(&self, stop: &[&str]) -> Generation {
        let permit = self.generator.permits(1).unwrap().remove(0);
        let text = TextParams {
            stop: stop.iter().map(|stop| (*stop).to_owned()).collect(),
            style: TextStyle::OpenAi,
        };
        let request = request(self.generator.next_id());
        self.generator.submit(permit, request, &text).unwrap()
    }

    /// The next command to the driver; a test fails rather than waits for ever.
    async fn command(&mut self) -> Option<Command> {
        let next = self.commands.recv();
        tokio::time::timeout(Duration::from_secs(10), next)
            .await
            .expect("no command came")
    }

    async fn deliver(&self, id: RequestId, outputs: Vec<Output>) {
        let batch = outputs
            .into_iter()
            .map(|output| Delivery {
                request: id,
                output,
            })
            .collect();
        self.deliveries.send(batch).await.unwrap();
    }
}

fn request(id: RequestId) -> Request {
    Request {
        id,
        prompt_ids: Arc::from([1, 2, 3]),
        sampling: SamplingParams::greedy(0),
        max_new_tokens: 10,
        stop_ids: Arc::from([257]),
        logprobs: None,
        scheduling: crate::request::Scheduling::default(),
    }
}

fn tokens(text: &str) -> Vec<Output> {
    text.bytes()
        .map(|byte| {
            Output::Token(SampledToken {
                id: u32::from(byte),
                logprob: None,
                top: Vec::new(),
            })
        })
        .collect()
}

fn finished(reason: FinishReason) -> Output {
    Output::Finished {
        reason,
        timings: Timings {
            queue: Duration::from_millis(1),
            inference: Duration::from_millis(2),
        },
    }
}

fn text(events: &[Event]) -> String {
    events
        .iter()
        .map(|event| match event {
            Event::Token(token) => token.text.as_str(),
            Event::Finished(finished) => finished.tail.as_str(),
            Event::Failed(_) => "!",
        })
        .collect()
}

#[tokio::test]
async fn a_reader_that_comes_late_gets_everything_at_once() {
    let world = World::new(2, 8);
    let mut generation = world.submit(&[]);
    for part in ["ab", "c"] {
        world.deliver(generation.id(), tokens(part)).await;
    }
    let mut last = tokens("d");
    last.push(finished(FinishReason::Length));
    world.deliver(generation.id(), last).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let events = generation.next().await.unwrap();
    assert_eq!((events.len(), text(&events).as_str()), (5, "abcd"));
    let Some(Event::Finished(end)) = events.last() else {
        panic!("no end in {events:?}")
    };
    assert_eq!(end.usage.generated_tokens, 4);
    assert_eq!(end.usage.prompt_tokens, 3);
    assert_eq!(generation.next().await, None);
    assert_eq!(world.generator.num_requests(), 0);
}

#[tokio::test]
async fn a_stop_string_ends_the_request_without_the_reader() {
    let mut world = World::new(2, 8);
    let mut generation = world.submit(&["end"]);
    assert!(matches!(world.command().await, Some(Command::Submit(_))));
    let started = Output::Started {
        queue: Duration::from_millis(7),
        cached_tokens: 0,
        waited: None,
    };
    world.deliver(generation.id(), vec![started]).await;
    world.deliver(generation.id(), tokens("the en")).await;
    world.deliver(generation.id(), tokens("d and more")).await;
    // Nobody has read: the driver is told all the same.
    assert!(matches!(world.command().await, Some(Command::Finish(id)) if id == generation.id()));
    let events = generation.next().await.unwrap();
    assert_eq!(text(&events), "the ");
    let Some(Event::Finished(end)) = events.last() else {
        panic!("no end in {events:?}")
    };
    assert_eq!(end.reason, FinishReason::StopSequence);
    assert_eq!(end.usage.generated_tokens, 7);
    assert_eq!(end.timings.queue, Duration::from_millis(7));
    // What was on its way is ignored.
    world.deliver(generation.id(), tokens("late")).await;
    assert_eq!(generation.next().await, None);
    drop(generation);
    assert!(world.commands.try_recv().is_err());
}

#[tokio::test]
async fn dropping_the_stream_cancels_and_frees_the_permit() {
    let mut world = World::new(1, 8);
    let generation = world.submit(&[]);
    assert_eq!(
        world.generator.permits(1).unwrap_err(),
        SubmitError::Overloaded
    );
    drop(generation);
    assert!(matches!(world.command().await, Some(Command::Submit(_))));
    assert!(matches!(world.command().await, Some(Command::Cancel(_))));
    assert!(world.generator.permits(1).is_ok());
}

#[tokio::test]
async fn permits_are_taken_all_or_none() {
    let world = World::new(2, 8);
    assert!(world.generator.permits(3).is_err());
    assert_eq!(world.generator.permits(2).unwrap().len(), 2);
}

#[tokio::test]
async fn a_full_inbox_refuses_a_request_but_never_loses_a_cancellation() {
    let mut world = World::new(3, 1);
    let first = world.submit(&[]);
    let permit = world.generator.permits(1).unwrap().remove(0);
    let text = TextParams {
        stop: Vec::new(),
        style: TextStyle::Native,
    };
    let refused = world
        .generator
        .submit(permit, request(RequestId(99)), &text);
    assert_eq!(refused.unwrap_err(), SubmitError::Overloaded);
    drop(first);
    // The permit is held until the driver has room.
    assert_eq!(world.generator.num_requests(), 1);
    assert!(matches!(world.command().await, Some(Command::Submit(_))));
    assert!(matches!(world.command().await, Some(Command::Cancel(_))));
    tokio::task::yield_now().await;
    assert_eq!(world.generator.num_requests(), 0);
}

#[tokio::test]
async fn a_lost_driver_fails_every_stream() {
    let World {
        generator,
        commands,
        deliveries,
    } = World::new(2, 8);
    let world = World {
        generator,
        commands,
        deliveries,
    };
    let mut generation = world.submit(&[]);
    world.deliver(generation.id(), tokens("a")).await;
    drop(world.deliveries);
    let mut events = Vec::new();
    while let Some(more) = generation.next().await {
        events.extend(more);
    }
    assert_eq!(text(&events), "a!");
    assert!(matches!(
        events.last(),
        Some(Event::Failed(Failure::EngineLost))
    ));
}

#[tokio::test]
async fn a_panic_over_one_text_fails_that_request_only() {
    let mut world = World::new(3, 8);
    let (mut bad, mut good) = (world.submit(&[]), world.submit(&[]));
    let mailbox = Arc::clone(&bad.mailbox);
    let poisoned = std::thread::spawn(move || {
        let _text = mailbox.text.lock();
        panic!("on purpose");
    });
    assert!(poisoned.join().is_err());
    for generation in [&bad, &good] {
        world.deliver(generation.id(), tokens("a")).await;
    }
    assert_eq!(bad.next().await, Some(vec![Event::Failed(Failure::Text)]));
    assert_eq!(text(&good.next().await.unwrap()), "a");
    for _ in 0..2 {
        assert!(matches!(world.command().await, Some(Command::Submit(_))));
    }
    assert!(matches!(world.command().await, Some(Command::Cancel(id)) if id == bad.id()));
}
