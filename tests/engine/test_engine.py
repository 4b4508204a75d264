"""The engine as a user sees it.

Equal to transformers without compression, exact stats with it, limits, stops, seeds.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from lightthinker import LLM, SamplingParams
from lightthinker.compression import CompressionConfig
from lightthinker.engine.engine import EngineConfig, LLMEngine
from lightthinker.engine.intake import Request
from lightthinker.errors import CheckpointError, RequestError
from lightthinker.layout import LayoutRules
from lightthinker.testing.models import byte_tokenizer, tiny_checkpoint, tiny_model
from lightthinker.testing.oracles import ScriptedSampler
from lightthinker.tokens import add_tokens

CLOSE = 1e-4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(checkpoint):
    return LLM(checkpoint, device="cpu", num_kv_tokens=4096)


@pytest.fixture(scope="module")
def plain():
    return tiny_model("qwen2"), tiny_model("qwen2")


TWO_GISTS = CompressionConfig(num_gists=2)


def make_engine(sampler=None, *, compression=TWO_GISTS, **config):
    model, tokenizer = tiny_model("qwen2"), byte_tokenizer()
    resolved = add_tokens(model, tokenizer, compression)
    return LLMEngine(model, tokenizer, resolved, config=EngineConfig(**config), sampler=sampler)


def finish(engine):
    done = {}
    while engine.has_unfinished_requests():
        done |= {o.request_id: o for o in engine.step() if o.finished}
    return done


def test_greedy_equals_transformers_generate(plain):
    hf, for_engine = plain
    engine = LLMEngine(for_engine, byte_tokenizer(), None, config=EngineConfig(page_size=4))
    prompts = [[5, 9, 30, 7], [100], list(range(10, 60))]
    for i, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=32, ignore_eos=True)
        engine.add_request(str(i), prompt, params, stream=False)
    outputs = finish(engine)
    for i, prompt in enumerate(prompts):
        expected = hf.generate(
            torch.tensor([prompt]),
            max_new_tokens=32,
            min_new_tokens=32,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert_same_tokens(outputs[str(i)].outputs[0].token_ids, expected, len(prompt))


def assert_same_tokens(got, expected, prompt_length):
    """The same unless the two best logits are closer than 1e-4, after which outputs may differ."""
    for step, token in enumerate(got):
        best = expected.logits[step][0].topk(2).values
        if best[0] - best[1] < CLOSE:
            return
        assert token == int(expected.sequences[0, prompt_length + step])


@settings(max_examples=10)
@given(
    order=st.permutations(range(5)),
    page_size=st.sampled_from([1, 4, 16]),
    max_num_seqs=st.integers(1, 5),
    budget=st.sampled_from([5, 64]),
)
def test_output_does_not_depend_on_batch_order_or_page_size(order, page_size, max_num_seqs, budget):
    prompts = [[10 + i] * (3 * i + 1) for i in range(5)]
    params = SamplingParams(max_tokens=20, ignore_eos=True, max_thought_tokens=6)
    alone = []
    for prompt in prompts:
        engine = make_engine()
        engine.add_request("r", prompt, params, stream=False)
        alone.append(finish(engine)["r"].outputs[0].token_ids)
    engine = make_engine(
        page_size=page_size, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget
    )
    for i in order:
        engine.add_request(str(i), prompts[i], params, stream=False)
        engine.step()
    assert outputs_by_index(engine) == dict(enumerate(alone))


def outputs_by_index(engine):
    return {int(k): v.outputs[0].token_ids for k, v in finish(engine).items()}


def test_stats_of_a_scripted_run():
    engine = make_engine(page_size=4)
    trigger = engine.compression.trigger_id
    script = [50, 51, 52, trigger, 60, 61, trigger, 70, 71]
    engine.sampler = ScriptedSampler({"r": script})
    engine.add_request("r", [5, 6, 7], SamplingParams(max_tokens=9, ignore_eos=True))
    lives = []
    while engine.has_unfinished_requests():
        (output,) = engine.step()
        lives.append(output.outputs[0].stats.live_tokens)
    stats = output.outputs[0].stats
    assert stats.num_prompt_tokens == 3
    assert stats.num_sampled_tokens == 9
    assert stats.num_thoughts == 2
    assert stats.num_gist_tokens == 2 * 3
    assert stats.tokens_freed == 4 + 3
    # prompt 3; thought 1 (4) + gists and continue (3) = 10; after it 6; thought 2 (3) + 3 = 12;
    # then 9 + answer
    assert stats.peak_tokens == 12
    assert stats.full_cot_tokens == 12
    assert stats.kv_bytes_peak == 12 * engine.pool.bytes_per_token
    assert lives == [3, 4, 5, 6, 6, 7, 8, 9, 10]
    assert [t.num_tokens for t in output.outputs[0].thoughts] == [4, 3]
    assert [t.num_gists for t in output.outputs[0].thoughts] == [2, 2]


def test_visible_text_shows_the_separator_and_no_special_token():
    engine = make_engine()
    ids = engine.tokenizer("ab", add_special_tokens=False)["input_ids"]
    newline = engine.tokenizer("\n", add_special_tokens=False)["input_ids"]
    trigger = engine.compression.trigger_id
    script = [*ids, *newline, trigger, *ids, *newline, trigger, *ids, engine.tokenizer.eos_token_id]
    engine.sampler = ScriptedSampler({"on": script, "off": script})
    engine.add_request("on", [5], SamplingParams(max_tokens=50))
    engine.add_request("off", [5], SamplingParams(max_tokens=50, compression=False))
    outputs = finish(engine)
    assert outputs["on"].outputs[0].text == outputs["off"].outputs[0].text == "ab\n\nab\n\nab"
    assert outputs["on"].outputs[0].finish_reason == "stop"
    assert outputs["off"].outputs[0].stats.tokens_freed == 0
    assert outputs["off"].outputs[0].stats.num_gist_tokens == 0
    assert [t.num_gists for t in outputs["off"].outputs[0].thoughts] == [0, 0]


def test_anllm_anchors_end_thoughts_and_show_as_separators():
    engine = make_engine(compression=CompressionConfig(method="anllm", num_gists=1))
    a, b = (engine.tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("ab\n", "cd\n"))
    anchor = engine.compression.gist_ids[0]
    engine.sampler = ScriptedSampler({"r": [*a, anchor, *b, anchor, 50]})
    engine.add_request("r", [5, 6], SamplingParams(max_tokens=9, ignore_eos=True), stream=False)
    output = finish(engine)["r"].outputs[0]
    assert [(t.text, t.num_tokens, t.num_gists) for t in output.thoughts] == [
        ("ab", 3, 1),
        ("cd", 3, 1),
    ]
    assert output.text.startswith("ab\n\ncd\n\n")
    assert output.stats.num_gist_tokens == 0


def test_gist_and_continue_ids_are_never_sampled():
    engine = make_engine()
    banned = set(engine.compression.never_sampled)
    assert len(banned) == 3
    with torch.no_grad():
        for i in banned:
            engine.runner.model.get_input_embeddings().weight[i] += 10
    engine.add_request(
        "r", [5], SamplingParams(max_tokens=60, ignore_eos=True, temperature=5.0, seed=1)
    )
    assert not banned & set(finish(engine)["r"].outputs[0].token_ids)


def test_max_thought_tokens_forces_the_trigger(llm):
    params = SamplingParams(max_tokens=30, max_thought_tokens=5, ignore_eos=True)
    output = llm.generate([[5, 6]], params)[0].outputs[0]
    assert [t.num_tokens for t in output.thoughts] == [6] * (30 // 6 - (30 % 6 == 0))
    assert output.finish_reason == "length"


def test_max_tokens_counts_sampled_tokens_only(llm):
    output = llm.generate(
        "x", SamplingParams(max_tokens=20, max_thought_tokens=3, ignore_eos=True)
    )[0].outputs[0]
    assert len(output.token_ids) == output.stats.num_sampled_tokens == 20
    assert output.stats.num_gist_tokens > 0


def test_position_limit_counts_gists_and_finishes_as_length():
    model, tokenizer = tiny_model("qwen2", max_position_embeddings=40), byte_tokenizer()
    config = add_tokens(model, tokenizer, CompressionConfig(num_gists=4))
    engine = LLMEngine(model, tokenizer, config)
    engine.add_request(
        "r", [5] * 8, SamplingParams(max_tokens=1000, max_thought_tokens=3, ignore_eos=True)
    )
    output = finish(engine)["r"].outputs[0]
    assert output.finish_reason == "length"
    assert (
        output.stats.num_prompt_tokens
        + output.stats.num_sampled_tokens
        + output.stats.num_gist_tokens
        <= 41
    )
    with pytest.raises(RequestError, match="40"):
        engine.add_request("long", [5] * 40)


def test_memory_too_small_for_one_sequence_is_told_or_ends_it():
    """A prompt that fills the pool is refused; an answer that does ends, and hurts nobody else."""
    config = EngineConfig(num_kv_tokens=64, page_size=16)
    engine = LLMEngine(tiny_model("qwen2"), byte_tokenizer(), None, config=config)
    with pytest.raises(RequestError, match="64 tokens and the KV pool holds 64; raise num_kv"):
        engine.add_request("prompt", [5] * 64)
    for name, max_tokens in (("long", 1000), ("short", 10)):
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        engine.add_request(name, [5] * 20, params, stream=False)
    outputs = {name: output.outputs[0] for name, output in finish(engine).items()}
    assert {name: output.finish_reason for name, output in outputs.items()} == {
        "long": "length", "short": "length",
    }  # fmt: skip
    assert len(outputs["long"].token_ids) == 64 - 20 + 1
    assert len(outputs["short"].token_ids) == 10
    assert engine.pool.allocator.num_used == 0


def scripted_output(text, **params):
    engine = make_engine()
    ids = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    engine.sampler = ScriptedSampler({"r": ids})
    engine.add_request(
        "r", [5], SamplingParams(**{"max_tokens": len(ids), "ignore_eos": True} | params)
    )
    return finish(engine)["r"].outputs[0], ids


def test_stop_strings_are_cut_off_and_named():
    output, ids = scripted_output("one two three", stop=["xx", "two"])
    assert output.text == "one "
    assert (output.finish_reason, output.stop_reason) == ("stop", "two")
    assert output.token_ids == ids[:7]


def test_text_that_may_begin_a_stop_string_is_held_back_while_streaming():
    engine = make_engine()
    ids = engine.tokenizer("one ENx two END", add_special_tokens=False)["input_ids"]
    engine.sampler = ScriptedSampler({"r": ids})
    params = SamplingParams(max_tokens=len(ids), ignore_eos=True, stop=["wo END", "END"])
    engine.add_request("r", [5], params)
    texts = []
    while engine.has_unfinished_requests():
        texts += [o.outputs[0].text for o in engine.step()]
    assert texts[-1] == "one ENx t"
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))


def test_generate_and_streams_share_an_engine(llm):
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    expected = [llm.generate(p, params)[0].outputs[0].token_ids for p in ("aa", "bb", "cc")]
    first, second = llm.stream("aa", params), llm.stream("bb", params)
    next(first), next(second)
    assert llm.generate("cc", params)[0].outputs[0].token_ids == expected[2]
    assert list(second)[-1].outputs[0].token_ids == expected[1]
    assert list(first)[-1].outputs[0].token_ids == expected[0]


def test_hostile_parameters_harm_nobody(llm):
    for params in (
        SamplingParams(temperature=1e-40, max_tokens=2),
        SamplingParams(temperature=1e30, max_tokens=2, seed=1),
    ):
        assert len(llm.generate("a", params)[0].outputs[0].token_ids) <= 2
    with pytest.raises(RequestError, match="vocabulary"):
        llm.generate([[10**6]])
    with pytest.raises(RequestError, match="empty"):
        llm.generate([[]])
    with pytest.raises(RequestError, match="temperature"):
        SamplingParams(temperature=float("nan"))


def test_settings_that_do_not_fit_the_tokenizer_are_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["lightthinker"]["gist_ids"] = [9998, 9999]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="gist_ids"):
        LLM(folder, device="cpu")


def test_wrong_devices_are_named(checkpoint):
    with pytest.raises(RequestError, match="gpu0"):
        LLM(checkpoint, device="gpu0")
    if not torch.cuda.is_available():
        with pytest.raises(RequestError, match="no CUDA"):
            LLM(checkpoint, device="cuda")


def test_a_name_that_is_neither_folder_nor_model_says_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my-checkpoint", "runs/my-checkpoint"):
        with pytest.raises(CheckpointError, match=f"no folder {name} in .*and no model.*hub"):
            LLM(name, device="cpu")
    with pytest.raises(CheckpointError, match=r"There is no folder runs/a/b\.$"):
        LLM("runs/a/b", device="cpu")
    (tmp_path / "my-checkpoint").mkdir()
    with pytest.raises(CheckpointError, match=r"my-checkpoint holds no \*\.safetensors"):
        LLM("my-checkpoint", device="cpu")


def test_corrupt_weights_are_a_checkpoint_error(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="Cannot load"):
        LLM(folder, device="cpu")


def test_forced_triggers_stop_where_the_answer_begins(checkpoint):
    engine = make_engine()
    marker = engine.tokenizer("ab</think>\n\n", add_special_tokens=False)["input_ids"]
    script = [*marker, *[50] * 40]
    engine.sampler = ScriptedSampler({"r": script})
    params = SamplingParams(max_tokens=len(script), max_thought_tokens=20, ignore_eos=True)
    engine.add_request("r", [5], params, stream=False)
    assert finish(engine)["r"].outputs[0].stats.num_thoughts == 0


def test_stop_token_ids():
    token = byte_tokenizer()("t", add_special_tokens=False)["input_ids"][0]
    output, ids = scripted_output("one two three", stop_token_ids=[token])
    assert output.token_ids == ids[:5]
    assert (output.finish_reason, output.stop_reason) == ("stop", token)


def test_characters_of_several_tokens_are_shown_whole():
    output, ids = scripted_output("a€b🙂")
    assert len(ids) == 1 + 3 + 1 + 4
    assert output.text == "a€b🙂"
    cut, _ = scripted_output("a€", max_tokens=2)
    assert cut.text == "a\ufffd"


def test_seeds_reproduce_and_differ_per_sample(llm):
    params = SamplingParams(max_tokens=16, temperature=1.0, seed=7, n=2, ignore_eos=True)
    first = llm.generate("q", params)[0].outputs
    again = llm.generate(["other", "q"], [SamplingParams(max_tokens=3), params])[1].outputs
    assert [o.token_ids for o in first] == [o.token_ids for o in again]
    assert first[0].token_ids != first[1].token_ids


def test_top_k_one_and_tiny_top_p_are_greedy(llm):
    greedy = (
        llm.generate("q", SamplingParams(max_tokens=12, ignore_eos=True))[0].outputs[0].token_ids
    )
    for params in ({"top_k": 1}, {"top_p": 1e-6}):
        got = llm.generate(
            "q", SamplingParams(max_tokens=12, temperature=2.0, ignore_eos=True, **params)
        )
        assert got[0].outputs[0].token_ids == greedy


def test_sampling_follows_the_probabilities():
    from lightthinker.engine.sampler import Sampler
    from lightthinker.engine.sequence import Sequence

    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    params = SamplingParams(temperature=1.0, top_p=0.75)
    drawn = []
    for seed in range(2000):
        sequence = Sequence("r", 0, [1], params, None, seed=seed)
        drawn += Sampler().sample(logits.clone()[None], [sequence])
    shares = torch.bincount(torch.tensor(drawn), minlength=4) / 2000
    assert torch.allclose(shares, torch.tensor([0.625, 0.375, 0, 0]), atol=0.04)


def test_logprobs_come_one_per_sampled_token_and_greedy_takes_the_best(llm):
    params = SamplingParams(max_tokens=9, logprobs=3, max_thought_tokens=4, ignore_eos=True)
    output = llm.generate("q", params)[0].outputs[0]
    assert [entry.token_id for entry in output.logprobs] == output.token_ids
    free = [e for e in output.logprobs if e.token_id != llm.compression.trigger_id]
    assert all(next(iter(e.top)) == e.token_id and len(e.top) == 3 for e in free)
    assert all(e.logprob == e.top[e.token_id] for e in free)
    assert llm.generate("q", SamplingParams(max_tokens=2))[0].outputs[0].logprobs is None


def test_streaming_ends_with_what_generate_returns(llm):
    params = SamplingParams(max_tokens=25, max_thought_tokens=6, ignore_eos=True)
    last = list(llm.stream("hello", params))[-1]
    assert last.finished
    once = llm.generate("hello", params)[0]
    assert last.outputs == once.outputs


def test_raw_prompts_get_the_tokenizers_bos_and_chats_do_not(checkpoint):
    model = LLM(checkpoint, device="cpu", num_kv_tokens=512)
    tokenizer = model.tokenizer
    bos = tokenizer.bos_token
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    params = SamplingParams(max_tokens=1)
    assert model.generate("a", params)[0].prompt_token_ids[0] == tokenizer.bos_token_id
    assert len(model.generate("a", params)[0].prompt_token_ids) == 2
    chat = model.chat([{"role": "user", "content": "a"}], params)[0].prompt_token_ids
    assert tokenizer.decode(chat).count(bos) == 2  # the template writes <|im_start|>, twice


def test_leaving_a_stream_frees_its_pages(llm):
    for _ in llm.stream("hello", SamplingParams(max_tokens=100, ignore_eos=True)):
        break
    assert llm.engine.pool.allocator.num_used == 0
    assert not llm.engine.has_unfinished_requests()


def test_preempted_sequences_continue_as_if_nothing_happened():
    params = SamplingParams(max_tokens=40, ignore_eos=True, max_thought_tokens=9)
    roomy, tight = (
        make_engine(page_size=4),
        make_engine(page_size=4, num_kv_tokens=96, poison_freed_pages=True),
    )
    swaps = []
    swap_out = tight.scheduler._swap_out
    tight.scheduler._swap_out = lambda s: (swaps.append(s), swap_out(s))[1]
    results = []
    for engine in (roomy, tight):
        for i in range(4):
            engine.add_request(str(i), [20 + i] * 12, params, stream=False)
        results.append(outputs_by_index(engine))
    assert swaps, "the tight pool should have preempted someone"
    assert results[0] == results[1]


def test_a_sequence_that_cannot_fit_alone_finishes_as_length():
    engine = make_engine(page_size=4, num_kv_tokens=32)
    engine.add_request(
        "r", [5] * 20, SamplingParams(max_tokens=100, ignore_eos=True, compression=False)
    )
    output = finish(engine)["r"].outputs[0]
    assert output.finish_reason == "length"
    assert engine.pool.allocator.num_used == 0


def test_a_failing_step_leaks_nothing():
    engine = make_engine()

    class Broken:
        def sample(self, logits, sequences):
            raise RuntimeError("boom")

    engine.sampler = Broken()
    engine.add_request("r", [5, 6])
    with pytest.raises(RuntimeError, match="boom"):
        engine.step()
    assert engine.pool.allocator.num_used == 0
    assert not engine.has_unfinished_requests()


def test_compression_of_a_checkpoint_without_settings_is_refused():
    engine = LLMEngine(tiny_model("qwen2"), byte_tokenizer(), None)
    with pytest.raises(RequestError, match="no compression settings"):
        engine.add_request("r", [5], SamplingParams(compression=True))


def test_pickled_weights_and_missing_weights_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no \*.safetensors"):
        LLM(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickled"):
        LLM(tmp_path)


def test_missing_chat_template_is_named(checkpoint):
    model = LLM(checkpoint, device="cpu")
    model.tokenizer.chat_template = None
    with pytest.raises(CheckpointError, match="chat template"):
        model.chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"top_k": -2}, "top_k"),
        ({"stop": [""]}, "stop"),
        ({"max_thought_tokens": 0}, "max_thought"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"logprobs": 21}, "logprobs"),
        ({"timeout_s": 0}, "timeout_s"),
    ],
)
def test_sampling_params_out_of_range_name_the_field(settings, named):
    with pytest.raises(RequestError, match=named):
        SamplingParams(**settings)


def test_blanked_gists_change_what_follows_a_thought():
    config = CompressionConfig(num_gists=2)
    prompts = [[5, 6, 7]]
    texts = []
    for settings_ in (config, dataclasses.replace(config, blank_gists=True)):
        engine = make_engine(compression=settings_)
        params = SamplingParams(max_tokens=30, max_thought_tokens=5, ignore_eos=True)
        engine.add_request("r", prompts[0], params, stream=False)
        texts.append(finish(engine)["r"].outputs[0])
    assert texts[0].token_ids[:6] == texts[1].token_ids[:6]
    assert texts[0].token_ids != texts[1].token_ids
    assert texts[1].stats.peak_tokens < texts[0].stats.peak_tokens


def test_rules_of_full_cot_compress_nothing():
    assert LayoutRules(method="full").has_trigger is False


def test_an_engine_that_was_shut_down_holds_nothing_and_says_so(checkpoint):
    llm = LLM(checkpoint, num_kv_tokens=2048, device="cpu")
    llm.engine.add_request("a", [5, 6, 7], SamplingParams(max_tokens=5))
    llm.engine.step()
    keys = weakref.ref(llm.engine.pool.keys[0])
    llm.shutdown()
    assert keys() is None
    assert not llm.engine.has_unfinished_requests()
    with pytest.raises(RequestError, match="shut down"):
        llm.generate([[5, 6, 7]], SamplingParams(max_tokens=1))


def test_an_output_whose_making_was_interrupted_is_reported_by_the_next_step(
    checkpoint, monkeypatch
):
    engine = LLM(checkpoint, device="cpu", num_kv_tokens=512).engine
    engine.add_request("a", [5, 6, 7], SamplingParams(max_tokens=3, ignore_eos=True), stream=False)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Request, "output", interrupted)
        engine.step()
        engine.step()
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    (output,) = engine.step()
    assert output.finished
    assert len(output.outputs[0].token_ids) == 3
