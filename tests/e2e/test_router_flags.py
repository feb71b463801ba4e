"""Flags of the router reach it through the launcher."""

import httpx
from harness.client import TIMEOUT_S

MESSAGES = [{"role": "user", "content": "hi"}]


def test_names_template_and_status(launch, integer_folder, tmp_path):
    template = tmp_path / "shout.jinja"
    template.write_text("{% for message in messages %}{{ message.content | upper }}{% endfor %}")
    flags = ["--served-model-name", "pet", "--tokenizer-config-path", template, "--stream-error-status"]
    launcher = launch("--model-id", integer_folder, *flags)
    with httpx.Client(base_url=launcher.wait_until_ready(), timeout=TIMEOUT_S) as client:
        assert "Connected: pet is served on" in launcher.log
        [model] = client.get("/v1/models").json()["data"]
        assert model["id"] == "pet"
        for name in ("pet", integer_folder.name, str(integer_folder), "tgi"):
            body = {"model": name, "messages": MESSAGES, "max_tokens": 1}
            assert client.post("/v1/chat/completions", json=body).json()["model"] == "pet", name
        body = {"model": "dog", "messages": MESSAGES}
        assert client.post("/v1/chat/completions", json=body).status_code == 404
        shown = client.post("/chat_tokenize", json={"messages": MESSAGES}).json()
        assert shown["templated_text"] == "HI"
        assert [token["text"] for token in shown["tokenize_response"]] == ["H", "I"]
        refused = client.post("/generate_stream", json={"inputs": "a", "parameters": {"max_new_tokens": 0}})
        assert refused.status_code == 422
        assert refused.json()["error_type"] == "validation"
    assert launcher.stop() == 0


def test_the_ipv6_wildcard_is_reached_by_both_kinds_of_addresses(launch, integer_folder):
    launcher = launch("--model-id", integer_folder, "--hostname", "::")
    url = httpx.URL(launcher.wait_until_ready())
    assert url.host == "::1"
    for host in ("::1", "127.0.0.1"):
        for path in ("/health", "/metrics"):
            assert httpx.head(url.copy_with(host=host, path=path), timeout=TIMEOUT_S).status_code == 200
    assert launcher.stop() == 0


def test_an_unreadable_template_is_refused(launch, integer_folder, tmp_path):
    launcher = launch("--model-id", integer_folder, "--tokenizer-config-path", tmp_path / "nowhere.json")
    assert launcher.wait() == 3
    assert "there is no such file (--tokenizer-config-path)" in launcher.log
