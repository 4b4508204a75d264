"""The fast lane changes nothing but the time a step takes.

The model is replaced by arithmetic on what the kernels would read (slots, page table, ranges,
positions, sampling words), so that thousands of steps run in seconds and any wrong word in a
static buffer gives other tokens.
"""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightthinker.attention.rows_metadata import RowField
from lightthinker.attention.triton.sampling_batch import SamplingField
from lightthinker.compression import CompressionConfig
from lightthinker.engine import engine as engine_module
from lightthinker.engine.boarding import meaningful_ids
from lightthinker.engine.device_sampler import DeviceSampler
from lightthinker.engine.engine import EngineConfig, LLMEngine
from lightthinker.engine.graphs import GraphRunner
from lightthinker.engine.pending import PendingTokens
from lightthinker.engine.runner import ModelRunner
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.testing.models import byte_tokenizer, tiny_model
from lightthinker.tokens import add_tokens

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="graphs are captured there")
NUM_KINDS = 37


class Arithmetic:
    """Stands for a model and its sampler; "KV" is one number in each slot of the first key."""

    def __init__(self, engine):
        self.engine = engine
        self.store = engine.pool.keys[0][:, 0, 0]
        end = engine.tokenizer.eos_token_id
        trigger = engine.compression.trigger_id
        self.special = {0: trigger, 1: end, 2: ord(">")}

    def hidden(self, metadata, token_ids, positions):
        rows, table, size = metadata.rows.numpy(), metadata.page_table.numpy(), metadata.page_size
        for r, (token, position) in enumerate(zip(token_ids, positions, strict=True)):
            if rows[RowField.SLOT, r] >= 0:
                index = rows[RowField.TOKEN_INDEX, r]
                self.store[rows[RowField.SLOT, r]] = (token * 7 + position * 3 + index) % 1009
        return [self.attend(rows[:, r], table, size) for r in range(len(token_ids))]

    def attend(self, row, table, size):
        total = 0
        for i in range(row[RowField.LOWER], row[RowField.UPPER]):
            if not row[RowField.EXCL_LO] <= i < row[RowField.EXCL_HI]:
                slot = table[row[RowField.SEQUENCE], i // size] * size + i % size
                total += int(self.store[slot]) * (i + 1)
        return total % 10_007

    def draw(self, hidden):
        words = self.engine.sampler.settings.words.numpy()
        step, seed = words[SamplingField.STEP], words[SamplingField.SEED_LOW]
        kinds = [(h + int(step[r]) * 5 + int(seed[r])) % NUM_KINDS for r, h in enumerate(hidden)]
        return [self.special.get(kind, 60 + kind) for kind in kinds]


@pytest.fixture(autouse=True)
def arithmetic(monkeypatch):
    """Replace what runs on a device."""

    def compute(self, size):
        model = self.runner.arithmetic
        words = self._inputs.device_words.view(4, -1)[:, :size].tolist()
        samples = self.sampler.buffer.tokens.tolist()
        known = [samples[u] if u >= 0 else t for t, u in zip(words[0], words[2], strict=True)]
        hidden = model.hidden(self.metadata, known, words[1])
        drawn = model.draw([hidden[w] for w in words[3][: self.max_samples]])
        self.sampler.buffer.tokens[: len(drawn)] = torch.tensor(drawn)
        self.sampler.buffer.valid[: len(drawn)] = True

    def forward(self, backend, token_ids, positions, wanted_rows, **_):
        hidden = self.arithmetic.hidden(backend.metadata, token_ids.tolist(), positions.tolist())
        return torch.tensor([[hidden[w]] for w in wanted_rows.tolist()], dtype=torch.float32)

    def draw(self, logits):
        self.buffer.tokens[: len(logits)] = torch.tensor(
            self.arithmetic.draw([int(h) for h in logits[:, 0]])
        )
        self.buffer.valid[: len(logits)] = True

    probe = ModelRunner.probe
    plain_forward = ModelRunner.forward

    def probe_with_model(self):
        ModelRunner.forward = plain_forward
        try:
            return probe(self)
        finally:
            ModelRunner.forward = forward

    monkeypatch.setattr(GraphRunner, "_compute", compute)
    monkeypatch.setattr(ModelRunner, "forward", forward)
    monkeypatch.setattr(ModelRunner, "probe", probe_with_model)
    monkeypatch.setattr(DeviceSampler, "draw", draw)


MODEL, TOKENIZER = tiny_model("qwen2", num_hidden_layers=1), byte_tokenizer()
MODEL.config.max_position_embeddings = 4096
CONFIGS = {
    "thought": add_tokens(MODEL, TOKENIZER, CompressionConfig(num_gists=2)),
    "retain": add_tokens(MODEL, TOKENIZER, CompressionConfig(num_gists=2, retain_thoughts=1)),
    "marked": add_tokens(
        MODEL,
        TOKENIZER,
        CompressionConfig(num_gists=2, reasoning_begin="<t>", reasoning_end="</t>"),
    ),
}


def make_engine(kind, *, lane, **config):
    settings = {
        "attention_backend": "triton",
        "async_scheduling": True,
        "max_num_seqs": 12,
        "page_size": 4,
        "num_kv_tokens": 4096,
    }
    engine = LLMEngine(MODEL, TOKENIZER, CONFIGS[kind], config=EngineConfig(**settings | config))
    engine.pool._mover = None  # Plain tensors move what the interpreter would move slowly.
    engine.runner.arithmetic = engine.sampler.arithmetic = Arithmetic(engine)
    if not lane:
        engine._boarding = None
    return engine


def workload(draw, count):
    """Requests (prompt, params, step at which it arrives, step at which it is aborted)."""
    items = []
    for _ in range(count):
        compresses = draw.random() < 0.7
        params = SamplingParams(
            max_tokens=draw.randrange(1, 160),
            seed=draw.randrange(1000),
            temperature=draw.choice([0.0, 1.0]),
            n=draw.choice([1, 1, 1, 2]),
            priority=draw.choice([0, 0, 1]),
            compression=compresses,
            retain_thoughts=draw.choice([None, None, 0, 2]) if compresses else None,
            max_thought_tokens=draw.choice([None, 9, 30]),
            ignore_eos=draw.random() < 0.8,
            logprobs=None,
        )
        prompt = [draw.randrange(20, 200) for _ in range(draw.randrange(2, 50))]
        abort = draw.randrange(1, 150) if draw.random() < 0.1 else None
        items.append((prompt, params, draw.randrange(0, 60), abort))
    return items


def run(engine, items, look=None, *, told=None):
    """Return what each request that was not aborted got.

    With `told`, every other request streams, and what is told of it on its way is put there.
    """
    outputs, step = {}, 0
    while step < 80 or engine.has_unfinished_requests():
        for name, (prompt, params, arrives, _) in enumerate(items):
            if arrives == step:
                stream = told is not None and name % 2 == 0
                engine.add_request(str(name), prompt, params, stream=stream)
        for name, (*_, aborted) in enumerate(items):
            if aborted == step:
                engine.abort_request(str(name))
        for output in engine.step():
            outputs[output.request_id] = output.outputs
            for o in output.outputs if told is not None else ():
                told.setdefault((output.request_id, o.index, len(o.token_ids)), []).append(o)
        engine.scheduler.check_integrity()
        if look is not None:
            look(engine)
        step += 1
        assert step < 5000
    assert engine.pool.allocator.num_used == 0
    assert engine._boarding is None or not len(engine._boarding.lane)
    return {
        name: [
            (o.token_ids, o.text, o.finish_reason, o.stats, [t.num_tokens for t in o.thoughts])
            for o in samples
        ]
        for name, samples in outputs.items()
        if items[int(name)][3] is None
    }


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(sorted(CONFIGS)),
    num_kv_tokens=st.sampled_from([4096, 700]),
    page_size=st.sampled_from([1, 4, 16]),
    budget=st.sampled_from([4096, 64, 9]),
)
def test_same_tokens_text_reasons_and_costs(seed, kind, num_kv_tokens, page_size, budget):
    items = workload(Random(seed), 16)
    config = {
        "num_kv_tokens": num_kv_tokens,
        "page_size": page_size,
        "max_num_batched_tokens": budget,
    }
    expected = run(make_engine(kind, lane=False, **config), items)
    ridden = []

    def look(engine):
        lane = engine._boarding.lane
        ridden.append(len(lane))
        assert all(s.rides for s in lane.riders)
        before = [len(s.token_ids) for s in lane.riders]
        if len(ridden) % 7 == 0:
            engine.write_back()
            for s, length in zip(lane.riders, before, strict=True):
                assert s.num_pending == 0
                assert length <= len(s.token_ids) == len(s.builder)
                assert len(s.pages) * engine.pool.page_size >= len(s.live)

    assert run(make_engine(kind, lane=True, **config), items, look) == expected
    assert max(ridden) > 0, "nobody took the lane"


@settings(max_examples=6)
@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(sorted(CONFIGS)),
    limit=st.sampled_from([math.inf, 300.0]),
)
def test_who_reads_along_is_told_the_same(seed, kind, limit):
    items = workload(Random(seed), 10)
    expected, told, ridden = {}, {}, []
    whole = run(make_engine(kind, lane=False), items, told=expected)
    engine = make_engine(kind, lane=True, max_stream_updates_per_s=limit)

    def look(engine):
        ridden.append(
            sum(s.rides and not int(s.request_id) % 2 for s in engine._boarding.lane.riders)
        )

    assert run(engine, items, look, told=told) == whole
    assert max(ridden) > 0, "no stream took the lane"
    for key, states in told.items():
        assert all(state in expected[key] for state in states)
    assert limit != math.inf or told.keys() == expected.keys()


def test_most_steps_of_long_thoughts_are_ridden():
    params = SamplingParams(max_tokens=200, max_thought_tokens=60, ignore_eos=True)
    items = [([30 + i, 40, 50], params, 5 * i, None) for i in range(8)]
    shares = []

    def look(engine):
        running = engine.scheduler.running
        if running:
            shares.append(len(engine._boarding.lane) / len(running))

    run(make_engine("thought", lane=True), items, look)
    assert sum(shares) / len(shares) > 0.5


def test_a_failing_step_ends_those_in_it_and_nobody_else(monkeypatch):
    params = SamplingParams(max_tokens=100, ignore_eos=True, compression=False)
    engine = make_engine("thought", lane=True)
    for i in range(3):
        engine.add_request(str(i), [30 + i, 40, 50], params, stream=False)
    while not len(engine._boarding.lane):
        engine.step()
    engine.add_request("late", [77] * 12, params, stream=False)
    working = GraphRunner._compute

    def broken(self, size):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(GraphRunner, "_compute", broken)
    with pytest.raises(RuntimeError, match="gone"):
        engine.step()
    monkeypatch.setattr(GraphRunner, "_compute", working)
    while engine.has_unfinished_requests():
        engine.step()
    assert engine.pool.allocator.num_used == 0
    assert not len(engine._boarding.lane)
    engine.add_request("after", [30, 40, 50], params, stream=False)
    done = []
    while engine.has_unfinished_requests():
        done += engine.step()
    assert [o.outputs[0].finish_reason for o in done] == ["length"]


def test_statistics_know_what_riders_have_done():
    params = SamplingParams(max_tokens=60, ignore_eos=True, compression=False)
    seen = {}
    for lane in (False, True):
        engine = make_engine("thought", lane=lane)
        engine.add_request("a", [30, 40, 50], params, stream=False)
        seen[lane] = []
        while engine.has_unfinished_requests():
            engine.step()
            if engine.has_unfinished_requests():
                seen[lane].append((engine.stats(), engine.num_sampled_tokens()))
    assert seen[True] == seen[False]


def test_who_waits_for_samples_that_are_never_seen_is_aborted(monkeypatch):
    params = SamplingParams(max_tokens=100, ignore_eos=True, compression=False, seed=3)
    engine = make_engine("thought", lane=True)
    for i in range(3):
        engine.add_request(str(i), [30 + i, 40, 50], params, stream=False)
    while len(engine._boarding.lane) < 3:
        engine.step()

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PendingTokens, "array", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    assert not engine.has_unfinished_requests()
    assert engine.pool.allocator.num_used == 0
    assert not len(engine._boarding.lane)
    engine.add_request("after", [30, 40, 50], params, stream=False)
    done = []
    while engine.has_unfinished_requests():
        done += engine.step()
    expected = run(make_engine("thought", lane=False), [([30, 40, 50], params, 0, None)])
    assert done[0].outputs[0].token_ids == expected["0"][0][0]


@pytest.mark.parametrize("settings", [{"logprobs": 1}, {"repetition_penalty": 1.2}])
def test_nobody_boards_while_somebody_keeps_the_lane_from_running(settings, monkeypatch):
    params = SamplingParams(max_tokens=60, ignore_eos=True, compression=False)
    engine = make_engine("thought", lane=True)
    engine.host_sampler.sample = lambda logits, sequences: [60] * len(sequences)
    engine.add_request("a", [30, 40, 50], params, stream=False)
    while not len(engine._boarding.lane):
        engine.step()
    blocking = SamplingParams(max_tokens=20, ignore_eos=True, compression=False, **settings)
    engine.add_request("b", [31, 40, 50], blocking, stream=False)
    monkeypatch.setattr(engine_module, "token_logprob", lambda *_: None)
    seen = []
    while "b" in engine._requests:
        engine.step()
        seen.append(len(engine._boarding.lane))
    assert set(seen[1:-1]) == {0}
    engine.step()
    assert len(engine._boarding.lane) == 1


def test_the_end_markers_last_character_is_found_however_it_is_spelled():
    class Tokenizer:
        def get_vocab(self):
            return {"x": 0, "]": 1, "a]b": 2, "<0x5D>": 3, "<0x5E>": 4}

    config = CompressionConfig(
        num_gists=1, reasoning_begin="[T]", reasoning_end="[/T]",
        trigger_id=5, gist_ids=(6,), continue_id=7,
    )  # fmt: skip
    found = meaningful_ids(config, [8], Tokenizer(), 10)
    assert found.nonzero()[0].tolist() == [1, 2, 3, 5, 6, 7, 8]
