//! A router over the fake engine, a model folder made on the spot, and a client.

use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use clap::Parser;
use http_body_util::BodyExt;
use penstock_router::Router;
use penstock_router::config::{HttpConfig, LimitsConfig, RouterConfig};
use penstock_router::engine::Connector;
use penstock_router::engine::fake::{FakeConfig, FakeConnector, FakeSwitch};
use penstock_router::model::Model;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::scripted::Script;

/// Tokens that are not special, in the byte-level alphabet: `Ġ` is a space, `Ċ` a new line, `Ã` and `©` together é.
const TOKENS: &str = "abcdefghijklmnopqrstuvwxyzĠ.,:Ċ0123456789Ã©";
/// `<s>`, `</s>`, and the integer model's NaN token.
const SPECIAL: [&str; 3] = ["<s>", "</s>", "<nan>"];

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{% if m.role == 'robot' %}
{{ raise_exception('no robots, please') }}
{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

pub(crate) struct World {
    pub(crate) router: Router,
    pub(crate) routes: axum::Router,
    pub(crate) engine: FakeSwitch,
    _folder: tempfile::TempDir,
}

/// What a test may change.
pub(crate) struct Options {
    pub(crate) limits: LimitsConfig,
    pub(crate) http: HttpConfig,
    pub(crate) step_time: Duration,
    pub(crate) alive: bool,
}

pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|_| ()).await
    }

    /// A world that is ready, unless its engine is not alive.
    pub(crate) async fn with(change: impl FnOnce(&mut Options)) -> Self {
        Self::over(change, |fake| fake).await
    }

    /// A world whose engines come from what `wrap` makes of the fake's connector.
    pub(crate) async fn over<C: Connector + Send + 'static>(
        change: impl FnOnce(&mut Options),
        wrap: impl FnOnce(FakeConnector) -> C,
    ) -> Self {
        let (folder, config, options, model) = prepare(change);
        let (connector, engine) = fake(&options);
        let router = Router::start(&config, model, wrap(connector)).unwrap();
        let world = Self {
            routes: router.routes(),
            router,
            engine,
            _folder: folder,
        };
        if options.alive {
            world.wait_for_health(StatusCode::OK).await;
        }
        world
    }

    /// A world whose driver is the test; its engine is never asked.
    pub(crate) fn scripted(change: impl FnOnce(&mut Options)) -> (Self, Script) {
        let (folder, config, options, model) = prepare(change);
        let (_, engine) = fake(&options);
        let (router, script) = Script::router(&config, model, vocab_size());
        let world = Self {
            routes: router.routes(),
            router,
            engine,
            _folder: folder,
        };
        (world, script)
    }

    pub(crate) async fn wait_for_health(&self, status: StatusCode) {
        for _ in 0..500 {
            if self.get("/health").await.status == status {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("/health did not become {status}");
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Reply {
        self.post_text(path, &body.to_string()).await
    }

    pub(crate) async fn post_text(&self, path: &str, body: &str) -> Reply {
        let json = [("content-type", "application/json")];
        self.send(Method::POST, path, &json, body).await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let response = self.routes.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Reply {
            status: parts.status,
            headers: parts.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    /// The value of a line of `/metrics`.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let metrics = self.get("/metrics").await.body;
        let line = metrics
            .lines()
            .find(|line| line.rsplit_once(' ').is_some_and(|(key, _)| key == name));
        let line = line.unwrap_or_else(|| panic!("no {name} in\n{metrics}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    /// Waits until nothing runs and every block is free.
    pub(crate) async fn wait_for_quiet(&self) {
        for _ in 0..500 {
            let used = self.metric("penstock_kv_blocks_used").await;
            let running = self.metric("penstock_running_requests").await;
            if used == 0.0 && running == 0.0 && self.router.num_requests() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("requests are still there");
    }
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }

    /// Status and body, without what differs from run to run.
    pub(crate) fn show(&self) -> String {
        format!("{}\n{}", self.status.as_u16(), redact(&self.body))
    }

    /// The JSON of each event; `[DONE]` as a string.
    pub(crate) fn events(&self) -> Vec<Value> {
        events(&self.body)
    }
}

pub(crate) fn events(body: &str) -> Vec<Value> {
    let frames = body.split_terminator("\n\n").filter(|frame| *frame != ":");
    frames
        .map(|frame| {
            let data = frame
                .strip_prefix("data: ")
                .unwrap_or_else(|| panic!("bad frame {frame:?}"));
            serde_json::from_str(data).unwrap_or_else(|_| data.into())
        })
        .collect()
}

/// Replaces ids and times.
fn redact(body: &str) -> String {
    let mut text = String::new();
    let mut rest = body;
    while let Some(at) = ["\"id\":\"chatcmpl-", "\"id\":\"cmpl-", "\"created\":1"]
        .iter()
        .filter_map(|mark| rest.find(mark))
        .min()
    {
        let end = at + rest[at..].find(',').unwrap();
        let is_id = rest[at..].starts_with("\"id\"");
        text.push_str(&rest[..at]);
        text.push_str(if is_id {
            "\"id\":\"ID\""
        } else {
            "\"created\":0"
        });
        rest = &rest[end..];
    }
    text + rest
}

#[derive(clap::Parser)]
struct Flags {
    #[command(flatten)]
    config: RouterConfig,
}

fn vocab_size() -> usize {
    TOKENS.chars().count() + SPECIAL.len()
}

fn prepare(change: impl FnOnce(&mut Options)) -> (tempfile::TempDir, RouterConfig, Options, Model) {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let mut config = config(folder.path());
    let mut options = Options {
        limits: LimitsConfig {
            max_concurrent_requests: 8,
            max_stop_sequences: 2,
            max_top_n_tokens: 5,
            max_client_batch_size: 2,
            max_input_tokens: Some(40),
            max_total_tokens: Some(80),
            payload_limit: 2000,
            validation_workers: 1,
            ..config.limits.clone()
        },
        http: config.http.clone(),
        step_time: Duration::ZERO,
        alive: true,
    };
    change(&mut options);
    config.limits = options.limits.clone();
    config.http = options.http.clone();
    let model = Model::load(folder.path(), Some("org/tiny".to_owned())).unwrap();
    (folder, config, options, model)
}

fn fake(options: &Options) -> (FakeConnector, FakeSwitch) {
    let mut fake = FakeConfig::default();
    fake.info.vocab_size = u32::try_from(vocab_size()).unwrap();
    fake.step_time = options.step_time;
    let (connector, engine) = FakeConnector::new(fake);
    engine.set_alive(options.alive);
    (connector, engine)
}

/// The defaults of every flag.
fn config(folder: &Path) -> RouterConfig {
    let folder = folder.to_str().unwrap();
    let flags = ["router", "--model-path", folder, "--shard-socket", "none"];
    Flags::parse_from(flags).config
}

fn write_model(folder: &Path) {
    let vocab: serde_json::Map<String, Value> = TOKENS
        .chars()
        .enumerate()
        .map(|(id, token)| (token.to_string(), id.into()))
        .collect();
    let num_tokens = vocab.len();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(index, content)| {
            json!({"id": num_tokens + index, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "added_tokens": added,
        "post_processor": {"type": "TemplateProcessing", "single": [bos, text("A")], "pair": [text("A"), text("B")],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [num_tokens], "tokens": ["<s>"]}}},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}
    });
    let files = [
        ("tokenizer.json", tokenizer),
        (
            "config.json",
            json!({"max_position_embeddings": 4096, "eos_token_id": num_tokens + 1}),
        ),
        (
            "tokenizer_config.json",
            json!({"chat_template": TEMPLATE, "bos_token": "<s>", "eos_token": "</s>"}),
        ),
    ];
    for (name, content) in files {
        std::fs::write(folder.join(name), content.to_string()).unwrap();
    }
}
