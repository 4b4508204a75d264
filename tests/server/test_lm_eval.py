"""lm-evaluation-harness against our server scores what our own evaluation scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="needs the lm-eval extra")

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from lightthinker import LLM, SamplingParams
from lightthinker.bundled import bundled_model_path
from lightthinker.evals.benchmarks import load_benchmark
from lightthinker.server.settings import ServerSettings
from lightthinker.testing.serving import running_server

TASK = Path(__file__).parents[1] / "evals" / "lm_eval_tasks" / "lightthinker_programs.yaml"
NUM_PROBLEMS = 3


def test_the_harness_scores_the_server_as_we_score_the_model(tmp_path: Path) -> None:
    problems = load_benchmark("programs", num_problems=NUM_PROBLEMS, difficulty="tiny")
    # One reference is made wrong, so that a grader that always nods is noticed.
    references = [p.reference for p in problems[:-1]] + ["no number"]
    data = tmp_path / "programs.jsonl"
    rows = [
        {"question": p.question, "answer": answer}
        for p, answer in zip(problems, references, strict=True)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "task.yaml").write_text(
        TASK.read_text(encoding="utf-8").replace("@DATA@", str(data)), encoding="utf-8"
    )
    llm = LLM(bundled_model_path(), device="cpu", num_kv_tokens=8192)
    outputs = llm.chat([p.messages for p in problems], SamplingParams(max_tokens=600))
    ours = [p.grade(o.outputs[0].text) for p, o in zip(problems, outputs, strict=True)][:-1]
    with running_server(llm, ServerSettings(model_name="bundled")) as server:
        results = simple_evaluate(
            model="local-chat-completions",
            model_args={
                "model": "bundled",
                "base_url": f"{server.url}/v1/chat/completions",
                "num_concurrent": NUM_PROBLEMS,
                "max_retries": 1,
            },
            tasks=["lightthinker_programs"],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            apply_chat_template=True,
            # The task stops at blank lines, which end thoughts.
            gen_kwargs={"until": ["<|never|>"], "max_gen_toks": 600},
            bootstrap_iters=0,
        )
    scores = results["results"]["lightthinker_programs"]
    assert scores["exact_match,answer"] == pytest.approx(sum(ours) / NUM_PROBLEMS)
    assert sum(ours) > 0
