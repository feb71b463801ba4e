//! The pages of errors: written from the router's own table and from the answers that other tests assert. With
//! `PENSTOCK_UPDATE_DOCS` set, these tests write them anew; otherwise they compare.

use std::fmt::Write;
use std::path::PathBuf;

use penstock_router::error::ErrorKind;

/// Every kind, when a client meets it, and what to do then.
const KINDS: &[(ErrorKind, &str, &str)] = &[
    (ErrorKind::Malformed, "The body is not JSON", "Send JSON"),
    (
        ErrorKind::WrongType,
        "A field is absent or of another type",
        "Correct the field that the message names",
    ),
    (
        ErrorKind::MediaType,
        "The body is not announced as JSON",
        "Send `Content-Type: application/json`",
    ),
    (
        ErrorKind::TooLarge,
        "The body is larger than `--payload-limit`, or the answer would be too large",
        "Send less at once, or raise the limit",
    ),
    (
        ErrorKind::BodyTimeout,
        "The body did not arrive in time",
        "Send it faster",
    ),
    (
        ErrorKind::Validation,
        "A value is out of its range, or asks for what is not supported yet",
        "Correct the field that the message names",
    ),
    (
        ErrorKind::Template,
        "The chat template refuses these messages, or the model has none",
        "Send roles as the model expects them; see `--tokenizer-config-path`",
    ),
    (
        ErrorKind::Overloaded,
        "`--max-concurrent-requests` run or wait already, the queue is full, or the turn would not come or did not come in time",
        "Try again after `Retry-After`; add servers",
    ),
    (
        ErrorKind::NotReady,
        "The server starts, restarts its shards, or stops",
        "Try again after `Retry-After`; `/health` says how far it is",
    ),
    (
        ErrorKind::Generation,
        "The model gave this request numbers that are none",
        "Report the model and the prompt; other requests go on",
    ),
    (
        ErrorKind::EngineLost,
        "A shard ended while the request ran",
        "Send it again; see the log for the shard's last lines",
    ),
    (
        ErrorKind::Deadline,
        "The time that the client gave is over",
        "Give more time, or ask for fewer tokens",
    ),
    (
        ErrorKind::Incomplete,
        "A stream ended without its last event",
        "Send the request again",
    ),
    (
        ErrorKind::NotFound,
        "There is no such path",
        "Take one of those that the message names",
    ),
    (
        ErrorKind::MethodNotAllowed,
        "The path has other methods",
        "Take one of `Allow`",
    ),
    (
        ErrorKind::ModelNotFound,
        "`model` names another model",
        "Send the name that the message gives, or `tgi`",
    ),
    (
        ErrorKind::Internal,
        "A bug of the server",
        "Report it with the log",
    ),
];

/// Fails to compile when a kind is added: `KINDS` needs it too.
fn position(kind: ErrorKind) -> usize {
    use ErrorKind as K;
    match kind {
        K::Malformed => 0,
        K::WrongType => 1,
        K::MediaType => 2,
        K::TooLarge => 3,
        K::BodyTimeout => 4,
        K::Validation => 5,
        K::Template => 6,
        K::Overloaded => 7,
        K::NotReady => 8,
        K::Generation => 9,
        K::EngineLost => 10,
        K::Deadline => 11,
        K::Incomplete => 12,
        K::NotFound => 13,
        K::MethodNotAllowed => 14,
        K::ModelNotFound => 15,
        K::Internal => 16,
    }
}

/// Compares the section of a page, or writes it.
fn check(page: &str, name: &str, table: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/{page}"));
    let text = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = (
        format!("<!-- begin {name} -->\n"),
        format!("<!-- end {name} -->"),
    );
    let start = text.find(&begin).unwrap() + begin.len();
    let stop = text.find(&end).unwrap();
    let wanted = format!("\n{table}\n");
    if std::env::var_os("PENSTOCK_UPDATE_DOCS").is_some() {
        std::fs::write(
            &path,
            format!("{}{wanted}{}", &text[..start], &text[stop..]),
        )
        .unwrap();
    } else {
        assert_eq!(&text[start..stop], wanted, "docs/{page} is not up to date");
    }
}

#[test]
fn every_kind_of_error_is_documented() {
    let mut table =
        "| TGI's routes | `error_type` | `/v1` | `error.code` | gRPC | Cause | What to do |\n"
            .to_owned();
    table.push_str("|---|---|---|---|---|---|---|\n");
    for (index, (kind, cause, remedy)) in KINDS.iter().enumerate() {
        assert_eq!(position(*kind), index);
        let codes = kind.codes();
        writeln!(
            table,
            "| {} | {} | {} | {} | {:?} | {cause} | {remedy} |",
            codes.status.as_u16(),
            codes.error_type,
            codes.openai_status.as_u16(),
            codes.openai_code,
            kind.grpc_code(),
        )
        .unwrap();
    }
    assert_eq!(position(ErrorKind::Internal) + 1, KINDS.len());
    check("errors.md", "requests", &table);
}

/// The snapshots of `bad_inputs.rs`, each of which a test holds against the router.
#[test]
fn every_answer_to_bad_input_is_documented() {
    let source = include_str!("bad_inputs.rs");
    let mut table = "| Given | Status | Answer |\n|---|---|---|\n".to_owned();
    let mut rows = 0;
    for snapshot in source.split("@r#\"\n").skip(1) {
        let (lines, _) = snapshot.split_once("\n\"#").unwrap();
        for line in lines.lines() {
            let Some((given, answer)) = line.split_once(" => ") else {
                continue;
            };
            let (status, body) = answer.split_once(' ').unwrap_or((answer, ""));
            writeln!(table, "| `{}` | {status} | `{}` |", cell(given), cell(body)).unwrap();
            rows += 1;
        }
    }
    assert!(rows > 50, "{rows}");
    check("bad-inputs.md", "answers", &table.replace("| `` |", "| |"));
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('`', "'")
}
