use super::*;

fn template(source: &str) -> ChatTemplate {
    let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    let clock = || SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(951_782_400);
    ChatTemplate::with_clock(source, tokens, clock).unwrap()
}

fn messages(json: &str) -> Vec<Json> {
    serde_json::from_str(json).unwrap()
}

/// Renders an expression over one message whose content is `value`.
fn eval(expression: &str, value: impl Into<Json>) -> String {
    let content: Json = value.into();
    let messages = [serde_json::json!({"role": "user", "content": content})];
    let source = format!("{{% set x = messages[0].content %}}{expression}");
    template(&source)
        .render(&messages)
        .unwrap_or_else(|error| format!("error: {error}"))
}

const CHATML: &str = "{{ bos_token }}{% for m in messages %}
    {{- '<|' + m.role + '|>' + m.content | trim + '<|end|>' }}
{% endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}
";

#[test]
fn white_space_and_the_generation_prompt_follow_jinja2() {
    let rendered = template(CHATML).render(&messages(r#"[{"role":"user","content":" hi "}]"#));
    assert_eq!(rendered.unwrap(), "<s><|user|>hi<|end|>\n<|assistant|>");
}

#[test]
fn an_assistant_message_at_the_end_is_continued() {
    let chat = |text: &str| {
        let last = serde_json::json!({"role": "assistant", "content": text});
        [serde_json::json!({"role": "user", "content": "hi"}), last]
    };
    let trimmed = template(CHATML).render(&chat("Sure, "));
    assert_eq!(trimmed.unwrap(), "<s><|user|>hi<|end|>\n<|assistant|>Sure,");
    let plain = template("{% for m in messages %}{{ m.content }}/{% endfor %}");
    assert_eq!(plain.render(&chat("Sure, ")).unwrap(), "hi/Sure, ");
    let drops = template("{{ messages[0].content }}");
    assert!(drops.render(&chat("Sure")).is_err());
    // Nothing to continue: an ordinary turn.
    assert_eq!(plain.render(&chat("")).unwrap(), "hi//");
}

#[test]
fn values_print_as_in_python() {
    let value = serde_json::json!({"a": [1, 1.0, 1e16, 1e-7, -0.0, null, true], "b'": "x\n\"y\" é\u{7f}\u{2028}"});
    insta::assert_snapshot!(eval("{{ x }}", value.clone()), @r#"{'a': [1, 1.0, 1e+16, 1e-07, -0.0, None, True], "b'": 'x\n"y" é\x7f\u2028'}"#);
    insta::assert_snapshot!(eval("{{ x | string }}", serde_json::json!(["it's"])), @r#"["it's"]"#);
    insta::assert_snapshot!(eval("{{ x | tojson }}", value.clone()), @r#"{"a": [1, 1.0, 1e+16, 1e-07, -0.0, null, true], "b'": "x\n\"y\" é "}"#);
    insta::assert_snapshot!(eval("{{ x | tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}", value), @r#"{"a":[1,1.0,1e+16,1e-07,-0.0,null,true],"b'":"x\n\"y\" \u00e9\u2028"}"#);
    insta::assert_snapshot!(eval("{{ x | tojson(indent=2) }}", serde_json::json!({"b": [], "a": {"<": [1, {}]}})), @r#"
{
  "b": [],
  "a": {
    "<": [
      1,
      {}
    ]
  }
}
"#);
    assert_eq!(
        eval("{{ x | tojson }}", "<a href='x'>&"),
        r#""<a href='x'>&""#
    );
    assert_eq!(
        eval("{{ y | tojson }}", Json::Null).split(':').next(),
        Some("error")
    );
    assert_eq!(eval("[{{ y }}]", Json::Null), "[]");
}

#[test]
fn tests_and_methods_follow_python() {
    let kinds = "{{ x is iterable }} {{ x is sequence }} {{ x is mapping }} {{ x is string }}";
    assert_eq!(eval(kinds, Json::Null), "False False False False");
    assert_eq!(eval(kinds, "s"), "True True False True");
    assert_eq!(eval(kinds, serde_json::json!({})), "True True True False");
    let methods = [
        ("{{ x.strip().split(',')[::-1] }}", " a,b "),
        (
            "{{ x.rsplit('/', 1) }} {{ x.partition('/') }} {{ x.rpartition('/') }}",
            "a/b/c",
        ),
        ("{{ x.rsplit(none, 1) }} {{ x.rsplit() }}", " a  b c "),
        (
            "{{ x.removeprefix('a').removesuffix('c') }} {{ x.index('b') }}",
            "abc",
        ),
        (
            "{{ x.zfill(4) }}{{ x.ljust(4, '.') }}{{ x.rjust(4) }}{{ x.center(5, '*') }}",
            "-1",
        ),
    ];
    let rendered: Vec<String> = methods
        .iter()
        .map(|(expression, text)| eval(expression, *text))
        .collect();
    insta::assert_snapshot!(rendered.join("\n"), @r#"
['b', 'a']
['a/b', 'c'] ['a', '/', 'b/c'] ['a/b', '/', 'c']
['a  b', 'c'] ['a', 'b', 'c']
b 1
-001-1..  -1**-1*
"#);
    assert_eq!(eval("{{ x.index(3) }}", serde_json::json!([1, 3])), "1");
}

#[test]
fn functions_of_transformers_are_there() {
    assert_eq!(
        eval("{{ strftime_now('%d %B %Y') }}", Json::Null),
        "29 February 2000"
    );
    assert_eq!(
        eval("{{ raise_exception('no system role') }}", Json::Null),
        "error: no system role"
    );
    let scoped = "{% for i in [1] %}{%- generation -%} a{% set z = 1 %} {%- endgeneration %}{{ z }}{% endfor %}";
    assert_eq!(eval(scoped, Json::Null), "a");
    assert_eq!(
        eval(
            "{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            Json::Null
        ),
        "1"
    );
    assert_eq!(
        eval("{{ tools is none }} {{ documents is none }}", Json::Null),
        "True True"
    );
}

#[test]
fn reasoning_is_found_under_each_name() {
    let chat = messages(
        r#"[{"role":"assistant","reasoning":"because","content":"x"},{"role":"user","content":"?"}]"#,
    );
    let rendered =
        template("{{ messages[0].reasoning_content }} {{ messages[0].thinking }}").render(&chat);
    assert_eq!(rendered.unwrap(), "because because");
}

#[test]
fn a_template_that_runs_for_ever_is_stopped() {
    let endless = "{% for i in range(10000) %}{% for j in range(10000) %}{% set z = i * j %}{% endfor %}{% endfor %}";
    assert!(eval(endless, Json::Null).starts_with("error: "));
    let doubling = "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}";
    assert!(eval(doubling, Json::Null).starts_with("error: "));
}

#[test]
fn errors_name_the_line() {
    let error = ChatTemplate::new("\n{% if %}", BTreeMap::new()).unwrap_err();
    assert!(error.to_string().ends_with("(line 2)"), "{error}");
    assert!(eval("\n{{ x.nothing() }}", "s").ends_with("(line 2)"));
}
