use super::*;
use crate::vocabulary::tests::byte_tokenizer;

/// A folder with the byte tokenizer and these files.
fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = byte_tokenizer().to_string(false).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    for (name, content) in files {
        let text = content
            .as_str()
            .map_or_else(|| content.to_string(), str::to_owned);
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn load(files: &[(&str, Value)]) -> Result<Model, String> {
    let folder = folder(files);
    let path = folder.path().display().to_string();
    Model::load(folder.path(), Some("m".to_owned()))
        .map_err(|error| error.to_string().replace(&path, "FOLDER"))
}

#[test]
fn eos_is_the_union_of_both_files() {
    let model = load(&[
        (
            "config.json",
            serde_json::json!({"eos_token_id": 257, "max_position_embeddings": 64}),
        ),
        (
            "generation_config.json",
            serde_json::json!({"eos_token_id": [3, 257]}),
        ),
    ]);
    let model = model.unwrap();
    assert_eq!(*model.eos_ids, [3, 257]);
    assert_eq!(model.max_positions, Some(64));
}

#[test]
fn eos_falls_back_to_the_tokenizer() {
    let model = load(&[
        ("config.json", serde_json::json!({})),
        (
            "tokenizer_config.json",
            serde_json::json!({"eos_token": {"content": "</s>"}}),
        ),
    ]);
    let model = model.unwrap();
    assert_eq!(*model.eos_ids, [257]);
    assert!(model.chat.unwrap_err().contains("chat_template.jinja"));
}

#[test]
fn end_tokens_outside_the_vocabulary_are_left_out() {
    let model = load(&[(
        "config.json",
        serde_json::json!({"eos_token_id": [257, 258, 300], "text_config": {"vocab_size": 258}}),
    )]);
    assert_eq!(*model.unwrap().eos_ids, [257]);
}

#[test]
fn templates_are_sought_in_transformers_order() {
    let messages = vec![serde_json::json!({"role": "user", "content": "hi"})];
    let list = serde_json::json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": "list"}]);
    let cases: [(&str, Vec<(&str, Value)>); 3] = [
        (
            "string",
            vec![(
                "tokenizer_config.json",
                serde_json::json!({"chat_template": "string"}),
            )],
        ),
        (
            "list",
            vec![(
                "tokenizer_config.json",
                serde_json::json!({"chat_template": list}),
            )],
        ),
        (
            "file",
            vec![
                (
                    "tokenizer_config.json",
                    serde_json::json!({"chat_template": "string"}),
                ),
                ("chat_template.jinja", "file".into()),
            ],
        ),
    ];
    for (expected, mut files) in cases {
        files.push(("config.json", serde_json::json!({"eos_token_id": 1})));
        let template = load(&files).unwrap().chat.unwrap();
        assert_eq!(template.render(&messages).unwrap(), expected);
    }
}

#[test]
fn errors_name_the_file() {
    let errors = [
        load(&[]),
        load(&[("config.json", "{".into())]),
        load(&[("config.json", serde_json::json!({"eos_token_id": "x"}))]),
        load(&[
            ("config.json", serde_json::json!({})),
            ("tokenizer.json", "[]".into()),
        ]),
    ];
    let errors: Vec<String> = errors
        .into_iter()
        .map(|result| result.unwrap_err())
        .collect();
    insta::assert_snapshot!(errors.join("\n"), @r#"
config.json is missing in the model folder FOLDER
FOLDER/config.json: not JSON: EOF while parsing an object at line 1 column 1
FOLDER/config.json: eos_token_id should be a token id or a list of them
FOLDER/tokenizer.json: invalid type: sequence, expected struct Tokenizer at line 1 column 2
"#);
}
