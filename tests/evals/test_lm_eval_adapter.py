"""lm-evaluation-harness with our engine: the bundled model on local tasks, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="needs the lm-eval extra")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from lightthinker.bundled import bundled_model_path
from lightthinker.compression import CompressionConfig
from lightthinker.engine.llm import LLM
from lightthinker.engine.loading import load_checkpoint
from lightthinker.errors import CheckpointError, ConfigError
from lightthinker.evals import lm_eval_adapter
from lightthinker.evals.benchmarks import load_benchmark
from lightthinker.evals.lm_eval_adapter import LightThinkerLM
from lightthinker.testing.models import tiny_checkpoint

TASKS = Path(__file__).parent / "lm_eval_tasks"
NUM_PROBLEMS = 2


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our task files and their data."""
    folder = tmp_path_factory.mktemp("tasks")
    problems = load_benchmark("programs", num_problems=NUM_PROBLEMS, difficulty="tiny")
    rows = [{"question": p.question, "answer": p.reference} for p in problems]
    data = folder / "programs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for file in TASKS.glob("*.yaml"):
        text = file.read_text(encoding="utf-8").replace("@DATA@", str(data))
        (folder / file.name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def bundled() -> LightThinkerLM:
    path = str(bundled_model_path())
    return LightThinkerLM(path, compression=True, device="cpu", num_kv_tokens=8192)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LightThinkerLM:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    return LightThinkerLM(str(folder), device="cpu", num_kv_tokens=4096)


def ask(lm: LightThinkerLM, context: str, **settings: Any) -> str:
    instance = Instance(request_type="generate_until", doc={}, arguments=(context, settings), idx=0)
    return str(lm.generate_until([instance], disable_tqdm=True)[0])


def evaluate(lm: LightThinkerLM, tasks: Path, task: str) -> dict[str, Any]:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    results: dict[str, Any] = simple_evaluate(
        model=lm, tasks=[task], task_manager=manager, apply_chat_template=True, bootstrap_iters=0,
        log_samples=True,
    )  # fmt: skip
    return results


@pytest.mark.parametrize("compression", [True, False])
def test_the_bundled_model_solves_a_local_task(
    bundled: LightThinkerLM, tasks: Path, compression: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[Any] = []
    monkeypatch.setattr(bundled, "compression", compression)
    monkeypatch.setattr(bundled.llm.engine, "on_compress", lambda *what: freed.append(what))

    results = evaluate(bundled, tasks, "lightthinker_programs")

    assert results["results"]["lightthinker_programs"]["exact_match,answer"] == 1.0
    samples = results["samples"]["lightthinker_programs"]
    assert len(samples) == NUM_PROBLEMS
    # The reasoning, blank lines and all, is not what is graded.
    assert all(s["resps"][0][0].startswith("The answer is ") for s in samples)
    assert bool(freed) == compression
    assert not bundled.llm.engine.has_unfinished_requests()


def test_log_likelihoods_rank_choices(bundled: LightThinkerLM, tasks: Path) -> None:
    before = bundled.llm.engine.runner.model.config._attn_implementation
    results = evaluate(bundled, tasks, "lightthinker_choice")

    assert 0.0 <= results["results"]["lightthinker_choice"]["acc,none"] <= 1.0
    assert bundled.llm.engine.runner.model.config._attn_implementation == before


def test_log_likelihoods_are_those_of_a_plain_forward(tiny: LightThinkerLM) -> None:
    pairs = [("What is 2 + 2?", " It is 4."), ("abc", "d"), ("", "xyz")]
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in pairs
    ]
    model, tokenizer = load_checkpoint(tiny.tokenizer.name_or_path, dtype=torch.float32)
    for (context, text), (score, is_greedy) in zip(
        pairs, tiny.loglikelihood(requests, disable_tqdm=True), strict=True
    ):
        begin = tokenizer(context)["input_ids"] or [tokenizer.eos_token_id]
        end = tokenizer(text)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([[*begin, *end]])).logits[0, len(begin) - 1 : -1]
        expected = sum(float(row.log_softmax(-1)[i]) for row, i in zip(logits, end, strict=True))
        assert score == pytest.approx(expected, abs=1e-4)
        assert is_greedy == (logits.argmax(-1).tolist() == end)


def test_the_greedy_text_is_the_greedy_continuation(tiny: LightThinkerLM) -> None:
    context = "Hello"
    output = tiny.llm.generate(
        [tiny.tok_encode(context)], tiny._settings({"max_gen_toks": 6, "until": []})[0]
    )[0].outputs[0]
    pair = ((context, output.text), tiny.tok_encode(context), output.token_ids)
    assert tiny._loglikelihood_tokens([pair], disable_tqdm=True)[0][1]


def test_rolling_log_likelihoods_add_up_over_windows(
    tiny: LightThinkerLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "A text that is longer than one window."
    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)
    (whole,) = tiny.loglikelihood_rolling([request])
    ids = tiny.tok_encode(text, add_special_tokens=False)
    pair = (("", text), [tiny.prefix_token_id], ids)
    expected = tiny._loglikelihood_tokens([pair], disable_tqdm=True)[0][0]
    assert whole == pytest.approx(expected, abs=1e-4)

    monkeypatch.setattr(tiny.llm.engine, "max_model_len", 16)
    (pieces,) = tiny.loglikelihood_rolling([request])
    assert pieces != pytest.approx(whole, abs=1e-3)
    assert pieces == pytest.approx(whole, rel=0.5)


def test_stop_strings_end_the_answer_not_the_reasoning(bundled: LightThinkerLM) -> None:
    problem = load_benchmark("programs", num_problems=1, difficulty="tiny")[0]
    context = bundled.apply_chat_template([dict(m) for m in problem.messages])

    whole = ask(bundled, context, until=["\n\n", "="], max_gen_toks=600)
    assert whole == f"The answer is {problem.reference}."
    params, until = bundled._settings({"until": [" is"], "max_gen_toks": 600})
    assert params.stop_strings == ()
    assert bundled._answer(f"<think>1 is 1.</think>\n{whole}", until) == "The answer"
    assert (
        bundled._answer("cut off in its reasoning: 1 = 1", ["="]) == "cut off in its reasoning: 1 "
    )


def test_with_the_reasoning_stop_strings_end_everything(
    bundled: LightThinkerLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = load_benchmark("programs", num_problems=1, difficulty="tiny")[0]
    context = bundled.apply_chat_template([dict(m) for m in problem.messages])
    monkeypatch.setattr(bundled, "strip_reasoning", False)

    whole = ask(bundled, context, until=[], max_gen_toks=600)
    assert whole.count("=") > 1
    assert ask(bundled, context, until=["="], max_gen_toks=600) == whole.partition("=")[0]


def test_settings_become_sampling_parameters(tiny: LightThinkerLM) -> None:
    given = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "until": "a", "max_gen_toks": 9}
    params, until = tiny._settings(given)
    assert (params.temperature, params.top_p, params.max_tokens) == (0.6, 0.95, 9)
    assert (until, params.stop_strings) == (["a"], ())
    greedy, _ = tiny._settings({"do_sample": False, "temperature": 0.6})
    assert (greedy.temperature, greedy.max_tokens) == (0.0, tiny.max_gen_toks)
    with pytest.raises(ConfigError, match="no generation setting 'num_beams'"):
        tiny._settings({"num_beams": 4})


def test_a_failed_run_leaves_the_engine_empty(tiny: LightThinkerLM) -> None:
    engine = tiny.llm.engine
    with pytest.raises(ValueError, match="prompt"):
        ask(tiny, "x" * (engine.max_model_len + 1))
    assert not engine.has_unfinished_requests()


def test_few_shot_chats_continue_the_last_message(tiny: LightThinkerLM) -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "So"}]
    assert tiny.apply_chat_template(chat, add_generation_prompt=False).endswith("So")
    asked = tiny.apply_chat_template(chat[:1])
    assert asked == LLM.prompt_text(tiny.llm, chat[:1])
    assert tiny.chat_template(True) == tiny.tokenizer.chat_template


def test_a_checkpoint_without_compression_cannot_compress(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, compression=CompressionConfig(method="full"))
    with pytest.raises(CheckpointError, match="was not trained with LightThinker"):
        LightThinkerLM(str(folder), compression=True, device="cpu")


def test_lm_eval_finds_the_model_type_by_name(tasks: Path) -> None:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    results: dict[str, Any] = simple_evaluate(
        model="lightthinker", tasks=["lightthinker_programs"], task_manager=manager, limit=1,
        model_args=f"pretrained={bundled_model_path()},compression=true,num_kv_tokens=8192",
        device="cpu", batch_size="auto", max_batch_size=4, apply_chat_template=True,
        bootstrap_iters=0, gen_kwargs="max_gen_toks=700",
    )  # fmt: skip

    assert results["results"]["lightthinker_programs"]["exact_match,answer"] == 1.0
    assert results["config"]["model"] == "lightthinker"


def test_the_command_line_is_lm_evals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lm-eval", "run", "--help"])
    with pytest.raises(SystemExit) as ended:
        lm_eval_adapter.main()
    assert ended.value.code == 0
    assert "--model_args" in capsys.readouterr().out
