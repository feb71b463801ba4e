//! TGI's flags, by name: each is understood on the command line and in the environment, `--help` shows it, and what does
//! nothing says so. The launcher is run with a model folder that is not there, so it gets past the flags and no further.

use std::process::{Command, Output};

use Effect::{Ignored, Refused, Works};

/// What the launcher ends with when the flags are fine.
const NO_SUCH_MODEL: i32 = 3;
const USAGE: i32 = 2;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Effect {
    Works,
    Ignored,
    Refused,
}

/// Every flag of TGI's launcher with a value that somebody might give; a switch has none.
const FLAGS: &[(&str, Option<&str>, Effect)] = &[
    ("model-id", Some("/nowhere/model"), Works),
    ("revision", Some("refs/pr/1"), Works),
    ("trust-remote-code", None, Ignored),
    ("dtype", Some("bfloat16"), Works),
    ("kv-cache-dtype", Some("fp8_e4m3fn"), Refused),
    ("tokenizer-config-path", Some("/x.json"), Works),
    ("huggingface-hub-cache", Some("/data"), Works),
    ("weights-cache-override", Some("/repository"), Ignored),
    ("env", None, Works),
    ("max-concurrent-requests", Some("128"), Works),
    ("max-best-of", Some("2"), Works),
    ("max-stop-sequences", Some("4"), Works),
    ("max-top-n-tokens", Some("5"), Works),
    ("max-client-batch-size", Some("4"), Works),
    ("max-input-tokens", Some("100"), Works),
    ("max-input-length", Some("100"), Works),
    ("max-total-tokens", Some("200"), Works),
    ("payload-limit", Some("2000000"), Works),
    ("max-image-fetch-size", Some("1073741824"), Ignored),
    ("validation-workers", Some("2"), Works),
    ("max-batch-prefill-tokens", Some("4096"), Works),
    ("max-batch-total-tokens", Some("16000"), Works),
    ("max-batch-size", Some("8"), Works),
    ("waiting-served-ratio", Some("0.3"), Ignored),
    ("max-waiting-tokens", Some("20"), Ignored),
    ("cuda-graphs", Some("1,2,4,8"), Ignored),
    ("cuda-memory-fraction", Some("0.5"), Refused),
    ("sharded", Some("false"), Works),
    ("num-shard", Some("2"), Works),
    ("shard-uds-path", Some("/tmp/shards"), Ignored),
    ("master-addr", Some("localhost"), Ignored),
    ("master-port", Some("29500"), Ignored),
    ("disable-custom-kernels", None, Ignored),
    ("quantize", Some("gptq"), Refused),
    ("rope-scaling", Some("linear"), Refused),
    ("rope-factor", Some("2.0"), Refused),
    ("lora-adapters", Some("a=/a,b=/b"), Refused),
    ("speculate", Some("2"), Refused),
    ("disable-grammar-support", None, Ignored),
    ("enable-prefill-logprobs", None, Ignored),
    ("watermark-gamma", Some("0.5"), Ignored),
    ("watermark-delta", Some("-2.0"), Ignored),
    ("json-output", None, Works),
    ("otlp-endpoint", Some("http://10.0.0.1:4317"), Ignored),
    ("otlp-service-name", Some("tgi"), Ignored),
    ("prometheus-port", Some("9000"), Ignored),
    ("usage-stats", Some("on"), Ignored),
    ("hostname", Some("127.0.0.1"), Works),
    ("port", Some("0"), Works),
    ("cors-allow-origin", Some("https://a.example"), Works),
    ("api-key", Some("secret"), Refused),
    ("ngrok", None, Ignored),
    ("ngrok-authtoken", Some("x"), Ignored),
    ("ngrok-edge", Some("x"), Ignored),
    ("graceful-termination-timeout", Some("90"), Works),
];

const BASE: [(&str, &str); 3] = [
    ("hostname", "127.0.0.1"),
    ("port", "0"),
    ("model-id", "/nowhere/model"),
];

/// A launcher with nothing in its environment, and of the usual flags all but one.
fn launcher(without: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_launcher"));
    command.env_clear();
    for (name, value) in BASE.iter().filter(|(name, _)| *name != without) {
        command.args([format!("--{name}"), (*value).to_owned()]);
    }
    command
}

fn run(command: &mut Command) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the launcher runs");
    let text = [stdout, stderr].map(|bytes| String::from_utf8(bytes).expect("it writes UTF-8"));
    (status.code(), text.concat())
}

fn variable(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

fn check(name: &str, effect: Effect, form: &str, (code, text): (Option<i32>, String)) {
    let expected = if effect == Refused {
        USAGE
    } else {
        NO_SUCH_MODEL
    };
    assert_eq!(code, Some(expected), "{form} {name}: {text}");
    let unsupported = format!("--{name} is not supported yet");
    let no_effect = format!("{unsupported} and has no effect");
    let (unsupported, no_effect) = (text.matches(&unsupported), text.matches(&no_effect));
    let counts = (unsupported.count(), no_effect.count());
    let expected = match effect {
        Works => (0, 0),
        Ignored => (1, 1),
        Refused => (1, 0),
    };
    assert_eq!(counts, expected, "{form} {name}: {text}");
}

#[test]
fn every_flag_is_understood_on_the_command_line() {
    for &(name, value, effect) in FLAGS {
        let mut command = launcher(name);
        command.arg(format!("--{name}")).args(value);
        check(name, effect, "flag", run(&mut command));
    }
}

#[test]
fn every_flag_is_understood_in_the_environment() {
    for &(name, value, effect) in FLAGS.iter().filter(|(name, ..)| *name != "env") {
        let mut command = launcher(name);
        command.env(variable(name), value.unwrap_or("true"));
        check(name, effect, "variable", run(&mut command));
    }
    // Shells use it for a file to read, so TGI does not read it either.
    let (code, text) = run(launcher("").env("ENV", "production"));
    assert_eq!(code, Some(NO_SUCH_MODEL), "{text}");
}

#[test]
fn help_shows_every_flag_under_a_heading() {
    let (code, text) = run(Command::new(env!("CARGO_BIN_EXE_launcher")).arg("--help"));
    assert_eq!(code, Some(0));
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let flags: Vec<&str> = text
        .lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with('-'))
        .flat_map(|line| line.split([' ', ',']))
        .filter_map(|word| word.strip_prefix("--"))
        .collect();
    for (name, ..) in FLAGS {
        assert!(flags.contains(name), "--{name} is not in\n{text}");
        let variable = format!("[env: {}]", variable(name));
        assert!(*name == "env" || words.contains(&variable), "{variable}");
    }
    let headings: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with(' ') && line.ends_with(':'))
        .collect();
    assert_eq!(
        headings,
        [
            "Options:",
            "Essential:",
            "Limits:",
            "Batching:",
            "Sharding:",
            "HTTP:",
            "Observability:",
            "Shard processes:",
            "Quantization:",
            "RoPE:",
            "LoRA:",
            "Speculation:",
            "Generation:",
        ]
    );
}

#[test]
fn an_empty_variable_is_an_unset_one() {
    let mut command = launcher("");
    for (name, ..) in FLAGS {
        command.env(variable(name), "");
    }
    command.env("LOG_LEVEL", "").env("STEP_DEPTH", "");
    let (code, text) = run(&mut command);
    assert_eq!(code, Some(NO_SUCH_MODEL), "{text}");
    assert!(!text.contains("WARN"), "{text}");
    let (code, text) = run(launcher("model-id").args(["--model-id", ""]));
    assert_eq!(code, Some(USAGE), "{text}");
    assert!(text.contains("--model-id"), "{text}");
}

#[test]
fn the_address_of_a_service_is_no_port() {
    let address = "tcp://10.0.0.1:80";
    let (code, text) = run(launcher("")
        .env("PORT", address)
        .env("MASTER_PORT", address)
        .env("PROMETHEUS_PORT", address));
    assert_eq!(code, Some(NO_SUCH_MODEL), "{text}");
    for name in ["PORT", "MASTER_PORT", "PROMETHEUS_PORT"] {
        let warning = format!(" {name}={address} in the environment is ignored");
        assert_eq!(text.matches(&warning).count(), 1, "{name}: {text}");
    }
    assert!(!text.contains("not supported"), "{text}");
}

#[test]
fn the_demo_is_not_served_to_whoever_set_up_a_model() {
    for (name, value) in [
        ("REVISION", "main"),
        ("QUANTIZE", "awq"),
        ("HF_MODEL_ID", "owner/model"),
        ("AIP_STORAGE_URI", "gs://bucket/model"),
    ] {
        let (code, text) = run(launcher("model-id").env(name, value));
        assert_eq!(code, Some(USAGE), "{name}: {text}");
        assert!(text.contains(name), "{name}: {text}");
        assert!(text.contains("set MODEL_ID"), "{name}: {text}");
    }
    for flag in ["--revision", "--quantize"] {
        let (code, text) = run(launcher("model-id").args([flag, "x"]));
        assert_eq!(code, Some(USAGE), "{flag}: {text}");
        assert!(text.contains(flag), "{flag}: {text}");
        assert!(text.contains("set MODEL_ID"), "{flag}: {text}");
    }
}

#[test]
fn values_that_ask_for_what_happens_anyway_are_silent() {
    let mut command = launcher("");
    command
        .env("TRUST_REMOTE_CODE", "false")
        .args(["--speculate", "0", "--usage-stats", "off"])
        .args(["--cuda-memory-fraction", "1.0"]);
    let (code, text) = run(&mut command);
    assert_eq!(code, Some(NO_SUCH_MODEL), "{text}");
    assert!(!text.contains("not supported"), "{text}");
}

#[test]
fn contradictions_are_refused() {
    for flags in [
        ["--max-input-tokens", "5", "--max-input-length", "5"],
        ["--sharded", "maybe", "--num-shard", "2"],
    ] {
        let (code, text) = run(launcher("").args(flags));
        assert_eq!(code, Some(USAGE), "{flags:?}: {text}");
        assert!(text.contains(flags[0]), "{flags:?}: {text}");
    }
}

#[test]
fn the_environment_is_described_without_secrets() {
    let mut command = launcher("");
    command.arg("-e").env("HF_TOKEN", "hf_secret");
    let (_, text) = run(&mut command);
    assert!(text.contains("environment: penstock "), "{text}");
    assert!(!text.contains("hf_secret"), "{text}");
}

#[test]
fn the_level_of_the_log_comes_from_the_environment() {
    for (level, warnings) in [("info", 1), ("Warning", 1), ("error", 0), ("ERROR", 0)] {
        let mut command = launcher("");
        command.args(["--revision", "x"]).env("LOG_LEVEL", level);
        let (code, text) = run(&mut command);
        assert_eq!(code, Some(NO_SUCH_MODEL), "{text}");
        assert_eq!(text.matches("no effect").count(), warnings, "{text}");
        assert!(text.contains("there is no folder"), "{text}");
    }
    let (code, text) = run(launcher("").env("LOG_LEVEL", "loud"));
    assert_eq!(code, Some(USAGE), "{text}");
    assert!(text.contains("--log-level \"loud\""), "{text}");
}
