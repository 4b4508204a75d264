"""The terminal chat, with a real engine and with a server."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import pytest
from rich.console import Console

from lightthinker.demo.chat_sources import ChatSource, LocalSource, RemoteSource
from lightthinker.demo.conversation import Conversation
from lightthinker.engine.llm import LLM
from lightthinker.engine.outputs import RequestOutput
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import RequestError
from lightthinker.tasks import generate
from lightthinker.testing.fake_server import FakeServer, Script
from lightthinker.testing.models import tiny_checkpoint
from lightthinker.testing.scripted import TraceSampler

PROBLEM = generate("programs", seed=5, difficulty="tiny")
ENDLESS = "never stop"


def script(question: str) -> Script:
    if question == ENDLESS:
        return Script([" ".join(["again and again"] * 5)], "", endless=True)
    return Script(PROBLEM.thoughts, PROBLEM.answer)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(script) as server:
        yield server


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> LocalSource:
    llm = LLM(
        str(tiny_checkpoint(tmp_path_factory.mktemp("model"))), device="cpu", num_kv_tokens=4096
    )
    TraceSampler(llm, [PROBLEM])
    return LocalSource(llm, "tiny")


def talk(source: ChatSource, lines: Sequence[str]) -> tuple[Conversation, str]:
    """Type the lines, then leave; return the conversation and what it showed."""
    typed = iter(lines)

    def read(prompt: str) -> str:
        line = next(typed, None)
        if line is None:
            raise EOFError
        return line

    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    chat = Conversation(source, SamplingParams(max_tokens=600), console, read)
    chat.run()
    assert isinstance(console.file, io.StringIO)
    return chat, console.file.getvalue()


@pytest.mark.parametrize("where", ["local", "remote"])
def test_thoughts_fold_and_the_answer_is_remembered(
    where: str, local: LocalSource, server: FakeServer
) -> None:
    source: ChatSource = local if where == "local" else RemoteSource(server.url)

    chat, text = talk(source, [PROBLEM.question, "/stats"])

    for number, thought in enumerate(PROBLEM.thoughts, 1):
        assert f"[{number}] {thought[:30]}" in text
    assert text.count(" gists)") == len(PROBLEM.thoughts)
    assert PROBLEM.answer in text
    assert chat.messages == [
        {"role": "user", "content": PROBLEM.question},
        {"role": "assistant", "content": PROBLEM.answer},
    ]
    assert f"1 answers: {chat.costs[0].num_sampled_tokens} tokens sampled" in text
    assert chat.costs[0].peak_tokens < chat.costs[0].full_cot_tokens
    assert chat.costs[0].tokens_freed > 0


def test_turns_compression_and_reset(server: FakeServer) -> None:
    _, text = talk(
        RemoteSource(f"{server.url}/v1/"),
        [
            "one",
            "/compression off",
            "two",
            "/compression maybe",
            "/reset",
            "three",
            "/quit",
            "four",
        ],
    )

    asked = [[m["content"] for m in request["messages"]] for request in server.requests]
    assert asked == [["one"], ["one", PROBLEM.answer, "two"], ["three"]]
    assert [r["lightthinker"]["compression"] for r in server.requests] == [None, False, False]
    assert text.count(" gists)") == len(PROBLEM.thoughts)
    assert "Say `/compression on`" in text


def test_ctrl_c_stops_the_answer_and_not_the_chat(server: FakeServer) -> None:
    source = RemoteSource(server.url)
    stream = source.stream

    def interrupted(messages, params) -> Iterator[RequestOutput]:  # type: ignore[no-untyped-def]
        outputs = stream(messages, params)
        try:
            for number, output in enumerate(outputs):
                yield output
                if number == 40 and messages[-1]["content"] == ENDLESS:
                    raise KeyboardInterrupt
        finally:
            outputs.close()  # type: ignore[attr-defined]

    source.stream = interrupted  # type: ignore[method-assign]

    chat, text = talk(source, [ENDLESS, "and now"])

    assert "Stopped." in text
    assert server.aborted.wait(30)
    assert [m["content"] for m in chat.messages] == ["and now", PROBLEM.answer]


def test_ctrl_c_at_the_prompt_says_how_to_leave(server: FakeServer) -> None:
    typed: Iterator[type[BaseException]] = iter([KeyboardInterrupt, EOFError])

    def read(prompt: str) -> str:
        raise next(typed)

    console = Console(file=io.StringIO(), force_terminal=False)
    Conversation(RemoteSource(server.url), SamplingParams(), console, read).run()

    assert isinstance(console.file, io.StringIO)
    assert "Ctrl-D ends the chat" in console.file.getvalue()


def test_mistakes_are_told_and_survived(server: FakeServer, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    source = RemoteSource(server.url)
    source.name = "gone"

    chat, text = talk(source, ["/sats", "hello", "/help"])

    assert "There is no /sats. Did you mean '/stats'?" in text
    assert "error: The server answered 404: The model `gone` does not exist." in text
    assert "/compression on|off" in text
    assert chat.messages == []


def test_a_server_that_refuses_or_is_not_there(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    with FakeServer(script, api_key="right") as server:
        with pytest.raises(RequestError, match=r"401.*Set LIGHTTHINKER_API_KEY"):
            RemoteSource(server.url)
        monkeypatch.setenv("LIGHTTHINKER_API_KEY", "right")
        with pytest.raises(RequestError, match="does not serve 'x'; it serves scripted"):
            RemoteSource(server.url, "x")
        url = server.url
    with pytest.raises(RequestError, match="cannot be reached"):
        RemoteSource(url)


def test_control_characters_never_reach_the_terminal() -> None:
    nasty = "red \x1b[31m and \x07 bell"
    with FakeServer(lambda _: Script([nasty], nasty)) as server:
        _, text = talk(RemoteSource(server.url), ["go"])

    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\ufffd" in text
