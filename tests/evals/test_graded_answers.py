"""Our graders against labels given by hand, and against lm-evaluation-harness's own graders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightthinker.evals.graders import (
    Grade,
    grade,
    grade_choice_word,
    grade_expression,
    grade_letter,
    grade_symbols,
    grade_word_list,
)

ROWS: list[dict[str, Any]] = [
    json.loads(line)
    for line in (Path(__file__).parent / "fixtures" / "graded_answers.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]
GRADERS: dict[str, Callable[..., Grade]] = {
    "number": grade,
    "letter": grade_letter,
    "words": grade_choice_word,
    "list": grade_word_list,
    "symbols": grade_symbols,
    "expression": grade_expression,
}
EXTRAS = {"letter": "options", "words": "allowed"}
CONFIGS = {
    "gsm8k": "gsm8k/gsm8k.yaml",
    "mmlu": "mmlu/flan_cot_zeroshot/_mmlu_flan_cot_zeroshot_template_yaml",
    "navigate": "bbh/cot_zeroshot/navigate.yaml",
    "boolean_expressions": "bbh/cot_zeroshot/boolean_expressions.yaml",
    "formal_fallacies": "bbh/cot_zeroshot/formal_fallacies.yaml",
    "causal_judgement": "bbh/cot_zeroshot/causal_judgement.yaml",
}
"""lm-eval's tasks with the same kind of answer."""


def our_grade(row: dict[str, Any]) -> Grade:
    extra = {key: row[key] for key in [EXTRAS.get(row["grader"])] if key}
    return partial(GRADERS[row["grader"]], reference=row["reference"], **extra)(row["answer"])


def test_the_fixture_is_what_it_claims() -> None:
    tasks = Counter(row["task"] for row in ROWS)
    assert len(ROWS) >= 150
    assert min(tasks["gsm8k"], tasks["mmlu"], tasks["math500"]) >= 40
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert 50 < sum(row["label"] for row in ROWS) < len(ROWS) - 50
    for row in ROWS:
        if row["label"] != row["strict"] or row["label"] != row["flexible"]:
            assert row["why"], row["id"]


@pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])
def test_our_grader_agrees_with_the_label(row: dict[str, Any]) -> None:
    verdict = our_grade(row)
    assert (verdict.strict, verdict.flexible) == (row["strict"], row["flexible"]), verdict


def load_config(tasks: Path, name: str) -> dict[str, Any]:
    config = yaml.safe_load((tasks / name).read_text(encoding="utf-8"))
    if "include" in config:
        config = load_config(tasks, str(Path(name).parent / config["include"])) | config
    return config


def lm_eval_verdicts(tasks: Path, task: str, rows: list[dict[str, Any]]) -> list[dict[str, bool]]:
    """Run lm-eval's own filters and metric of a task on its answers."""
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters import build_filter_ensemble

    config = load_config(tasks, CONFIGS[task])
    metric = config["metric_list"][0]
    kept = ("regexes_to_ignore", "ignore_case", "ignore_punctuation")
    options = {key: metric[key] for key in kept if key in metric}
    instances = []
    for row in rows:
        doc = {"choices": row.get("options", [])}
        instance = Instance(request_type="generate_until", doc=doc, arguments=("", {}), idx=0)
        instance.resps = [row["answer"]]
        instances.append(instance)
    verdicts: list[dict[str, bool]] = [{} for _ in rows]
    for entry in config["filter_list"]:
        steps = [(step.pop("function"), step) for step in map(dict, entry["filter"])]
        build_filter_ensemble(entry["name"], steps).apply(instances)
        for row, instance, verdict in zip(rows, instances, verdicts, strict=True):
            is_letter = row["grader"] == "letter"
            target = f"({row['reference']})" if is_letter else row["reference"]
            found = instance.filtered_resps[entry["name"]]
            result = exact_match_hf_evaluate(predictions=[found], references=[target], **options)
            verdict[entry["name"]] = bool(result["exact_match"])
    return verdicts


@pytest.mark.parametrize("task", CONFIGS)
def test_lm_eval_differs_only_where_the_fixture_says(task: str) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="needs the lm-eval extra")
    rows = [row for row in ROWS if row["task"] == task]
    verdicts = lm_eval_verdicts(Path(lm_eval.__file__).parent / "tasks", task, rows)
    for row, theirs in zip(rows, verdicts, strict=True):
        ours = {"strict-match": row["strict"], "flexible-extract": row["flexible"]}
        assert theirs.keys() == ours.keys()
        differing = {name for name in ours if ours[name] != theirs[name]}
        assert differing == set(row.get("lm_eval", {})), (row["id"], theirs)


def test_hendrycks_math_differs_only_where_the_fixture_says() -> None:
    pytest.importorskip("lm_eval", reason="needs the lm-eval extra")
    from lm_eval.tasks.hendrycks_math.utils import is_equiv, last_boxed_only_string, remove_boxed

    for row in ROWS:
        if row["task"] != "math500":
            continue
        box = last_boxed_only_string(row["answer"])
        theirs = box is not None and is_equiv(remove_boxed(box), row["reference"])
        assert (theirs != row["strict"]) == ("lm_eval" in row), row["id"]
        if "lm_eval" in row:
            assert row["label"], "where texts differ but expressions do not, ours is right"
