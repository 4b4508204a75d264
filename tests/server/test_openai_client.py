"""The official client over the whole surface; streaming says what a whole answer says."""

from __future__ import annotations

import json
from itertools import groupby

import openai
import pytest
from openai import OpenAI

from lightthinker.testing.serving import FORCED_REASONING, chat_body

MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}]


def ask(client: OpenAI, **fields):
    extra = FORCED_REASONING | fields.pop("extra_body", {})
    defaults = {"model": "tiny", "messages": MESSAGES, "max_tokens": 90, "extra_body": extra}
    return client.chat.completions.create(**(defaults | fields))


def collect(stream):
    """Put a stream's deltas together, by choice."""
    choices, usage, chunks = {}, None, list(stream)
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            into = choices.setdefault(
                choice.index, {"reasoning": "", "content": "", "logprobs": []}
            )
            into["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
            into["content"] += choice.delta.content or ""
            into["logprobs"] += choice.logprobs.content if choice.logprobs else []
            into["finish_reason"] = choice.finish_reason or into.get("finish_reason")
    return choices, usage, chunks


def test_retention_is_each_requests_own(client):
    peaks, freed = {}, {}
    for number in (None, 0, 2):
        extra = {"lightthinker": {"max_thought_tokens": 9, "retain_thoughts": number}}
        costs = ask(client, extra_body=extra).usage.lightthinker
        peaks[number], freed[number] = costs["peak_tokens"], costs["kv_tokens_freed"]
    assert peaks[None] == peaks[0] < peaks[2]
    assert freed[None] == freed[0] > freed[2]
    with pytest.raises(openai.BadRequestError, match="retain_thoughts is for requests"):
        ask(client, extra_body={"lightthinker": {"compression": False, "retain_thoughts": 1}})


def test_models(client):
    listed = client.models.list().data
    assert [m.id for m in listed] == ["tiny"]
    assert listed[0].lightthinker == {
        "compresses": True,
        "num_gists": 2,
        "kv_bytes_per_token": 4 * 2 * (16 + 16) * 4,
    }
    assert client.models.retrieve("tiny").max_model_len == 4096
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 3, "temperature": 1.0, "seed": 7},
        {"logprobs": True, "top_logprobs": 3},
        {"stop": ["</think>\n\n"]},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5, "top_p": 0.9, "temperature": 0.7,
         "seed": 1, "extra_body": {"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1}},
        {"extra_body": {"lightthinker": {"compression": False, "max_thought_tokens": 12}}},
    ],
    ids=["greedy", "n", "logprobs", "stop", "sampling", "full-cot"],
)  # fmt: skip
def test_a_stream_adds_up_to_the_whole_answer(client, fields):
    whole = ask(client, **json.loads(json.dumps(fields)))
    stream = ask(client, stream=True, stream_options={"include_usage": True}, **fields)
    choices, usage, _ = collect(stream)

    assert sorted(choices) == list(range(fields.get("n", 1)))
    for choice in whole.choices:
        got = choices[choice.index]
        assert got["reasoning"] == (choice.message.reasoning_content or "")
        assert got["content"] == (choice.message.content or "")
        assert got["finish_reason"] == choice.finish_reason
        expected = choice.logprobs.content if choice.logprobs else []
        assert got["logprobs"] == expected
    whole_usage, usage = whole.usage.model_dump(), usage.model_dump()
    for counted in (whole_usage, usage):
        counted.pop("prompt_tokens_details")
    assert usage == whole_usage


def test_reasoning_and_answer_come_apart(client):
    message = ask(client).choices[0].message
    assert message.reasoning_content
    assert message.content
    assert message.reasoning == message.reasoning_content
    assert "</think>" not in message.reasoning_content + message.content


def test_usage_counts_reasoning_and_what_compression_saved(client):
    compressed = ask(client).usage
    full = ask(client, extra_body={"lightthinker": {"compression": False}}).usage

    assert compressed.completion_tokens == 90
    # 40 thinking tokens, the trigger, and the marker, byte by byte
    assert compressed.completion_tokens_details.reasoning_tokens == 40 + 1 + len("</think>")
    costs, full_costs = compressed.lightthinker, full.lightthinker
    assert costs["thoughts"] == 4
    assert costs["gists"] == 8
    assert costs["kv_tokens_freed"] == 41
    assert costs["full_cot_peak_tokens"] == compressed.prompt_tokens + 90
    assert costs["peak_tokens"] < full_costs["peak_tokens"]
    assert full_costs["kv_tokens_freed"] == full_costs["gists"] == 0
    assert full_costs["peak_tokens"] in (full.total_tokens, full.total_tokens - 1)
    assert costs["kv_bytes_peak"] == costs["peak_tokens"] * 4 * 2 * (16 + 16) * 4


def test_events_tell_of_every_thought_in_order(client):
    fields = {"lightthinker": {"max_thought_tokens": 12, "events": True}}
    _, usage, chunks = collect(
        ask(client, stream=True, stream_options={"include_usage": True}, extra_body=fields)
    )
    told = [c.lightthinker for c in chunks if getattr(c, "lightthinker", None)]
    events = [e for t in told for e in t["events"]]

    expected = [(k, i) for i in range(4) for k in ("thought_started", "thought_compressed")]
    assert [(e["type"], e["index"]) for e in events] == expected
    folded = [e for e in events if e["type"] == "thought_compressed"]
    assert [e["num_tokens"] for e in folded] == [13, 13, 13, 2]
    assert [e["num_gists"] for e in folded] == [2, 2, 2, 2]
    assert sum(e["tokens_freed"] for e in folded) == usage.lightthinker["kv_tokens_freed"]
    live = [t["live_tokens"] for t in told]
    assert max(live) <= usage.lightthinker["peak_tokens"]
    assert all(t["live_tokens"] <= t["full_cot_tokens"] + 3 for t in told)


def test_no_chunk_spans_two_thoughts(client):
    fields = {"lightthinker": {"max_thought_tokens": 12, "events": True}}
    _, _, chunks = collect(ask(client, stream=True, extra_body=fields))
    pieces, open_thought = [], None
    for chunk in chunks:
        events = (getattr(chunk, "lightthinker", None) or {"events": []})["events"]
        started = [e["index"] for e in events if e["type"] == "thought_started"]
        open_thought = started[0] if started else open_thought
        delta = getattr(chunk.choices[0].delta, "reasoning_content", None) if chunk.choices else ""
        pieces += [(open_thought, delta)] if delta else []
    texts = {k: "".join(d for _, d in g) for k, g in groupby(pieces, key=lambda p: p[0])}
    whole = ask(client).choices[0].message.reasoning_content
    assert "".join(texts.values()) == whole
    assert sorted(texts) == [0, 1, 2, 3]


def test_text_completions(client):
    fields = {"model": "tiny", "max_tokens": 20, "extra_body": {"ignore_eos": True}, "logprobs": 2}
    whole = client.completions.create(prompt=["one", "two"], n=2, **fields)
    stream = client.completions.create(prompt=["one", "two"], n=2, stream=True, **fields)
    texts, tokens, offsets = {}, {}, {}
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            tokens.setdefault(choice.index, []).extend(choice.logprobs.tokens)
            offsets.setdefault(choice.index, []).extend(choice.logprobs.text_offset)

    assert [c.index for c in whole.choices] == [0, 1, 2, 3]
    assert texts == {c.index: c.text for c in whole.choices}
    assert tokens == {c.index: c.logprobs.tokens for c in whole.choices}
    assert offsets == {c.index: c.logprobs.text_offset for c in whole.choices}
    assert whole.choices[0].text == whole.choices[1].text != whole.choices[2].text
    assert all(len(c.logprobs.token_logprobs) == 20 for c in whole.choices)


def test_token_ids_are_prompts_too(client, http):
    ids = http.post("/tokenize", json={"prompt": "one"}).json()["tokens"]
    fields = {"model": "tiny", "max_tokens": 8, "extra_body": {"ignore_eos": True}}
    by_text = client.completions.create(prompt="one", **fields).choices[0].text
    assert client.completions.create(prompt=ids, **fields).choices[0].text == by_text
    assert client.completions.create(prompt=[ids], **fields).choices[0].text == by_text


def test_tokenize_and_back(http):
    answer = http.post("/tokenize", json={"prompt": "häh?", "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert http.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": "häh?"}
    messages = [{"role": "user", "content": "x"}]
    chat = http.post("/tokenize", json={"messages": messages}).json()["tokens"]
    text = http.post("/detokenize", json={"tokens": chat}).json()["prompt"]
    assert text == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n<think>\n"


def test_earlier_reasoning_is_dropped(http):
    answer = {"role": "assistant", "content": "4"}
    turns = [*MESSAGES, answer, {"role": "user", "content": "sure?"}]
    for name in ("reasoning", "reasoning_content"):
        with_reasoning = [MESSAGES[0], answer | {name: "2 + 2 = 4"}, turns[2]]
        got = http.post("/tokenize", json={"messages": with_reasoning}).json()
        assert got == http.post("/tokenize", json={"messages": turns}).json()


def test_a_seed_makes_sampling_repeatable(client):
    def once(seed: int) -> str:
        return ask(client, temperature=1.0, seed=seed).choices[0].message.content

    assert once(3) == once(3) != once(4)


def test_the_first_chunk_names_the_role_and_the_last_the_reason(http):
    with http.stream("POST", "/v1/chat/completions", json=chat_body(stream=True)) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [c["choices"][0]["finish_reason"] for c in chunks[-2:]] == [None, "length"]
    assert len({c["id"] for c in chunks}) == 1
    assert all("lightthinker" not in c and "usage" not in c for c in chunks)
