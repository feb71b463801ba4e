//! Chat templates give what transformers makes of the same template and messages (golden/templates.py).

use std::collections::BTreeMap;

use penstock_router::chat::template::ChatTemplate;
use serde_json::Value;

#[test]
fn templates_render_as_in_transformers() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("golden/templates.json")).unwrap();
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let tokens: BTreeMap<String, String> = tokens
        .map(|(name, token)| (name.to_owned(), token.to_owned()))
        .into();
    let mut wrong = Vec::new();
    for case in &cases {
        let template = ChatTemplate::new(case["template"].as_str().unwrap(), tokens.clone());
        let messages = case["messages"].as_array().unwrap();
        let rendered = template
            .unwrap()
            .render(messages)
            .map_err(|error| error.to_string());
        let expected = case["rendered"].as_str();
        if rendered.as_deref().ok() != expected {
            wrong.push(format!("{}:\n  {rendered:?}\n  {expected:?}", case["name"]));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}
