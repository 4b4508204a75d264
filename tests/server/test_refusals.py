"""What the server cannot honour it refuses, by name, in OpenAI's form; limits hold."""

from __future__ import annotations

import gzip
import json

import httpx
import pytest

from lightthinker import LLM
from lightthinker.engine.request_stream import EngineDeadError
from lightthinker.errors import ConfigError
from lightthinker.server.errors import as_api_error
from lightthinker.server.settings import ServerSettings, read_api_keys
from lightthinker.testing.serving import chat_body, running_server

USER = [{"role": "user", "content": "x"}]
TOOL = {"type": "function", "function": {"name": "f"}}

TEXT = {"type": "text", "text": "What is this?"}
SEEN = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
HEARD = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
IMAGE = {"role": "user", "content": [TEXT, SEEN]}
AUDIO = {"role": "user", "content": [HEARD]}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [TOOL]}, "tools", "'tools' is not supported"),
        ({"tool_choice": "auto"}, "tool_choice", "'tool_choice' is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "is not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "'logit_bias' is not supported"),
        ({"store": True}, "store", "'store' is not supported"),
        ({"made_up": 1}, "made_up", "Unknown parameter: 'made_up'"),
        ({"lightthinker": {"gists": 3}}, "lightthinker.gists", "Unknown parameter"),
        ({"lightthinker": {"retain_thoughts": -1}}, "lightthinker.retain_thoughts", "equal to 0"),
        ({"temperature": 9}, "temperature", "less than or equal to 2"),
        ({"temperature": float("nan")}, "temperature", "finite"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 17}, "n", "at most 16"),
        ({"stop": [str(i) for i in range(17)]}, "stop", "at most 16"),
        ({"stop": "s" * 257}, "stop", "1 to 256 characters"),
        ({"stop": [""]}, "stop", "1 to 256 characters"),
        ({"max_tokens": 4096}, "max_tokens", "it may be at most"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "equal to max_completion"),
        ({"top_logprobs": 2}, "top_logprobs", "only allowed with logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [*USER, IMAGE]}, "messages.1.content.1", "takes text parts only"),
        ({"messages": [AUDIO]}, "messages.0.content.0", "takes text parts only"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "system"),
        ({"messages": [{"role": "user"}]}, "messages.0", "needs 'content'"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "messages", "at most 4095"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "thinking_token_budget"),
        ({"reasoning_effort": "none"}, "reasoning_effort", "cannot follow"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs", "no variable"),
        ({"chat_template_kwargs": {"thinking": 1}}, "chat_template_kwargs", "no variable"),
        ({"seed": 2**64}, "seed", "less than"),
    ],
)  # fmt: skip
def test_refusals_name_the_parameter(http, fields, param, words):
    body = {"messages": USER} | fields

    answer = http.post(
        "/v1/chat/completions",
        content=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert words in error["message"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []}, {"tools": None}, {"tool_choice": "none"}, {"logit_bias": {}},
        {"response_format": {"type": "text"}}, {"user": "me"}, {"store": False},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        {"messages": [{"role": "developer", "content": "x"}, *USER]},
    ],
)  # fmt: skip
def test_values_that_ask_for_nothing_pass(http, fields):
    body = {"messages": USER, "max_tokens": 1} | fields
    assert http.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/v1/chat/completions", b"{", 400),
        ("/v1/chat/completions", b"[" * 100_000, 400),
        ("/v1/chat/completions", b'{"seed": ' + b"1" * 5000 + b"}", 400),
        ("/v1/completions", b'{"prompt": []}', 400),
        ("/v1/completions", b'{"prompt": "x", "echo": true}', 400),
        ("/v1/completions", b'{"prompt": [999999]}', 400),
        ("/v1/completions", b'{"prompt": "x", "model": "another"}', 404),
        ("/detokenize", b'{"tokens": [999999]}', 400),
        ("/tokenize", b"{}", 400),
        ("/v1/embeddings", b"{}", 404),
        ("/health", b"{}", 405),
    ],
)  # fmt: skip
def test_hostile_bodies_get_an_error_in_openais_form(http, path, content, status):
    answer = http.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("content", "content_type"),
    [(b"", "application/json"), (b"[]", "application/json"), (b'{"messages": []}', "text/plain")],
)
def test_what_is_no_json_object_is_told_what_to_send(http, content, content_type):
    headers = {"Content-Type": content_type}
    answer = http.post("/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code == 400
    assert "'Content-Type: application/json'" in answer.json()["error"]["message"]


def test_a_compressed_body_is_refused_by_name(http):
    body = json.dumps({"messages": USER, "max_tokens": 1}).encode()
    for encoding, status in (("gzip", 415), ("identity", 200)):
        headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
        content = gzip.compress(body) if encoding == "gzip" else body
        answer = http.post("/v1/chat/completions", content=content, headers=headers)
        assert answer.status_code == status


def test_unpaired_surrogates_are_refused(http):
    headers = {"Content-Type": "application/json"}
    answer = http.post("/tokenize", content='{"\\ud800": 1}', headers=headers)
    assert answer.status_code == 400
    for text in ('"\\ud800"', '[{"role": "user", "content": "\\ud800"}]'):
        field = "prompt" if text.startswith('"') else "messages"
        path = "/v1/completions" if field == "prompt" else "/v1/chat/completions"
        answer = http.post(path, content=f'{{"{field}": {text}}}', headers=headers)
        assert answer.status_code == 400


@pytest.fixture(scope="module")
def strict(checkpoint):
    settings = ServerSettings(
        model_name="strict", api_keys=("first", "second"), max_body_bytes=2000,
        max_prompt_tokens=60, max_output_tokens=10, allowed_hosts=("127.0.0.1", "example.org"),
        allowed_origins=("https://page.example",), metrics_prefix="lt:",
    )  # fmt: skip
    with running_server(LLM(checkpoint, device="cpu", num_kv_tokens=4096), settings) as running:
        yield running


def test_a_wrong_key_never_reaches_the_engine(strict, monkeypatch):
    seen = []
    monkeypatch.setattr(type(strict.engine), "add_request", lambda *a, **k: seen.append(a))
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic first"}):
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize"):
            answer = httpx.post(strict.url + path, json=chat_body(), headers=headers)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
    assert seen == []


def test_right_keys_pass_and_probes_need_none(strict):
    for key in ("first", "second"):
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.get(f"{strict.url}/v1/models", headers=headers).status_code == 200
    for path in ("/health", "/ready", "/version", "/metrics", "/"):
        assert httpx.get(strict.url + path).status_code == 200


def test_limits_of_body_prompt_and_output(strict):
    def post(**fields):
        return httpx.post(
            f"{strict.url}/v1/chat/completions",
            json={"messages": USER} | fields,
            headers={"Authorization": "Bearer first"},
        )

    assert post(messages=[{"role": "user", "content": "x" * 3000}]).status_code == 413
    assert post(messages=[{"role": "user", "content": "x" * 50}]).status_code == 400
    assert post(max_tokens=11).status_code == 400
    answer = post()
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] <= 10


def test_a_body_without_length_is_cut_off_too(strict):
    def endless():
        for _ in range(100):
            yield b" " * 100

    headers = {"Authorization": "Bearer first", "Content-Type": "application/json"}
    answer = httpx.post(f"{strict.url}/tokenize", content=endless(), headers=headers)
    assert answer.status_code == 413


def test_other_hosts_are_refused(strict):
    for host, status in (("example.org:81", 200), ("evil.example", 400), ("", 400)):
        assert httpx.get(f"{strict.url}/health", headers={"Host": host}).status_code == status


def test_cors_only_for_the_allowed_origin(strict, server):
    headers = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    allowed = httpx.options(f"{strict.url}/v1/chat/completions", headers=headers)
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://page.example"
    other = httpx.get(f"{strict.url}/health", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in other.headers
    off = httpx.get(f"{server.url}/health", headers=headers)
    assert "Access-Control-Allow-Origin" not in off.headers


def test_security_headers_are_on_pages_and_errors(http):
    for path in ("/", "/nowhere"):
        headers = http.get(path).headers
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_an_unexpected_error_says_nothing_of_its_cause():
    error = as_api_error(KeyError("secret prompt"))
    assert error.status == 500
    assert "secret" not in error.message
    assert as_api_error(EngineDeadError("x")).status == 500


def test_api_keys_come_from_file_and_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text("# ours\nalpha\n\n beta \n")
    monkeypatch.setenv("LIGHTTHINKER_API_KEY", "gamma")
    assert read_api_keys(file) == ("alpha", "beta", "gamma")
    assert read_api_keys(None) == ("gamma",)
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no API key"):
        read_api_keys(file)
    with pytest.raises(ConfigError, match="Cannot read"):
        read_api_keys(tmp_path / "missing")


@pytest.mark.parametrize("fields", [{"max_n": 0}, {"request_timeout_s": 0}, {"api_keys": ("",)}])
def test_settings_out_of_range_are_errors(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        ServerSettings(**fields)
