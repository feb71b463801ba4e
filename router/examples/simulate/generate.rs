//! Made-up traces. None is a recording: lengths and rates are stated here and nowhere else.

use clap::ValueEnum;

use crate::random::Random;
use crate::sim::trace::{Entry, Segment};

/// Seconds that a user takes to answer, beside the time that reading takes.
const THINK_S: f64 = 10.0;
/// Answers are read, or at least shown, at this many tokens a second.
const READ_RATE: f64 = 30.0;
const CHAT_MAX_TOKENS: u32 = 1024;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Kind {
    /// Conversations of 1 to 8 turns below one of 8 system prompts of 200 to 1,500 tokens; answers of some 200 tokens
    /// where 1,024 are allowed
    Chat,
    /// Agents with a fixed prefix of 8,000 tokens each, short suffixes, answers of some 60 tokens where 2,048 are allowed
    Agents,
    /// One request in twelve is a document of 8,000 to 24,000 tokens; the others are short chats
    Documents,
    /// Short chats; from a third of the time to two thirds ten times as many
    Burst,
}

/// What to generate.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    kind: Kind,
    /// Requests a second; conversations a second for chats
    #[arg(long, default_value_t = 4.0)]
    rate: f64,
    #[arg(long, default_value_t = 120.0)]
    seconds: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Agents with a prefix of their own
    #[arg(long, default_value_t = 16)]
    agents: u32,
}

/// Requests from second 0 to `seconds`, in order of arrival.
pub(crate) fn trace(args: &Args) -> Vec<Entry> {
    let &Args {
        kind,
        rate,
        seconds,
        seed,
        agents,
    } = args;
    let mut random = Random::new(seed);
    let mut entries = Vec::new();
    let mut at = 0.0;
    let mut number = 0u64;
    loop {
        let is_burst = matches!(kind, Kind::Burst) && (seconds / 3.0..seconds / 1.5).contains(&at);
        at += random.interval(if is_burst { rate * 10.0 } else { rate });
        if at >= seconds {
            break;
        }
        number += 1;
        let name = format!("{seed}/{number}");
        match kind {
            Kind::Chat => conversation(&mut random, at, &name, &mut entries),
            Kind::Agents => entries.push(agent(&mut random, at, agents, name)),
            Kind::Documents if number.is_multiple_of(12) => {
                let tokens = random.between(8000, 24_000);
                let output_tokens = random.length(200.0, 0.5, CHAT_MAX_TOKENS);
                entries.push(entry(at, vec![segment(name, tokens)], output_tokens));
            }
            Kind::Documents | Kind::Burst => entries.push(short(&mut random, at, name)),
        }
    }
    entries.retain(|entry| entry.arrival_s < seconds);
    entries.sort_by(|a, b| a.arrival_s.total_cmp(&b.arrival_s));
    entries
}

fn segment(id: String, tokens: u32) -> Segment {
    Segment { id, tokens }
}

fn entry(arrival_s: f64, prompt: Vec<Segment>, output_tokens: u32) -> Entry {
    Entry {
        arrival_s,
        prompt,
        answer: None,
        output_tokens,
        max_tokens: CHAT_MAX_TOKENS,
        class: None,
        tenant: None,
    }
}

fn short(random: &mut Random, at: f64, name: String) -> Entry {
    let prompt = segment(name, random.length(150.0, 0.8, 2000));
    entry(at, vec![prompt], random.length(150.0, 0.7, CHAT_MAX_TOKENS))
}

fn agent(random: &mut Random, at: f64, agents: u32, name: String) -> Entry {
    let prefix = segment(format!("agent {}", random.between(1, agents)), 8000);
    let suffix = segment(name, random.length(200.0, 0.8, 4000));
    let mut entry = entry(at, vec![prefix, suffix], random.length(60.0, 0.8, 2048));
    entry.max_tokens = 2048;
    entry
}

/// Turns whose prompts begin with all that was said before.
fn conversation(random: &mut Random, start: f64, name: &str, entries: &mut Vec<Entry>) {
    let system = random.between(1, 8);
    let mut said = vec![segment(
        format!("system {system}"),
        200 + (system - 1) * 185,
    )];
    let mut at = start;
    for turn in 1..=random.between(1, 8) {
        let question = random.length(60.0, 1.0, 4000);
        said.push(segment(format!("{name} question {turn}"), question));
        let output_tokens = random.length(180.0, 0.7, CHAT_MAX_TOKENS);
        let answer = format!("{name} answer {turn}");
        let mut entry = entry(at, said.clone(), output_tokens);
        entry.answer = Some(answer.clone());
        entries.push(entry);
        said.push(segment(answer, output_tokens));
        at += f64::from(output_tokens) / READ_RATE + random.interval(1.0 / THINK_S);
    }
}
