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
fn templates_are_sought_in_order() {
    let list = serde_json::json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "list"}]);
    let of_config = |template: Value| {
        (
            "tokenizer_config.json",
            serde_json::json!({"chat_template": template}),
        )
    };
    let json = (
        "chat_template.json",
        serde_json::json!({"chat_template": "json"}),
    );
    let jinja = ("chat_template.jinja", Value::from("jinja"));
    let cases: [(&str, Vec<(&str, Value)>); 5] = [
        ("string", vec![of_config("string".into())]),
        ("list", vec![of_config(list.clone())]),
        (
            "tools",
            vec![of_config(serde_json::json!([list[0].clone()]))],
        ),
        ("json", vec![of_config("string".into()), json.clone()]),
        ("jinja", vec![of_config("string".into()), json, jinja]),
    ];
    for (expected, files) in cases {
        assert_eq!(template(&files, None), Ok(expected.to_owned()));
        // The operator's word counts before them all, unless it says nothing about templates.
        let flag = |name, content: &str| template(&files, Some((name, content)));
        assert_eq!(flag("x.jinja", "mine"), Ok("mine".to_owned()));
        let json = r#"{"chat_template": [{"name": "default", "template": "mine"}]}"#;
        assert_eq!(flag("x.json", json), Ok("mine".to_owned()));
        let silent = flag("x.json", r#"{"eos_token": "</s>"}"#);
        if expected.starts_with('j') {
            assert_eq!(silent, Ok(expected.to_owned()));
        } else {
            assert!(silent.is_err());
        }
    }
}

/// What the model's template makes of a message, with these files and this one of the operator.
fn template(files: &[(&str, Value)], flag: Option<(&str, &str)>) -> Result<String, String> {
    let mut files = files.to_vec();
    files.push(("config.json", serde_json::json!({"eos_token_id": 1})));
    let folder = folder(&files);
    let operators = tempfile::tempdir().unwrap();
    let flag = flag.map(|(name, content)| {
        let path = operators.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    });
    let model = Model::load_with(
        &ModelConfig::of_folder(folder.path(), None),
        flag.as_deref(),
    )
    .unwrap();
    let messages = [serde_json::json!({"role": "user", "content": "hi"})];
    Ok(model.chat?.render(&messages).unwrap())
}

#[test]
fn without_a_template_the_error_names_where_it_was_sought() {
    let none = template(&[], None).unwrap_err();
    let list = serde_json::json!({"chat_template": [{"name": "rag", "template": "x"}]});
    let files = [("tokenizer_config.json", list)];
    let other = template(&files, None).unwrap_err();
    let number = template(&files, Some(("x.json", r#"{"chat_template": 1}"#))).unwrap_err();
    assert!(other.starts_with(&none) && number.starts_with(&none));
    insta::assert_snapshot!(format!("{none}\n{}\n{}", &other[none.len()..], &number[none.len()..]), @r#"
the model has no chat template: none in the file of --tokenizer-config-path, chat_template.jinja, chat_template.json (chat_template) or tokenizer_config.json (chat_template)
; tokenizer_config.json: none is named `default` or `tool_use`, only: rag
; --tokenizer-config-path: neither a string nor a list of named templates
"#);
}

#[test]
fn the_operators_file_must_be_readable() {
    let folder = folder(&[("config.json", serde_json::json!({}))]);
    let missing = Path::new("nowhere.json");
    let error =
        Model::load_with(&ModelConfig::of_folder(folder.path(), None), Some(missing)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "nowhere.json: there is no such file (--tokenizer-config-path)"
    );
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
