"""Letters, words, expressions: hostile answers, the limits of the math-verify pool, reasoning."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightthinker.errors import ConfigError
from lightthinker.evals.benchmarks import load_benchmark
from lightthinker.evals.graders import (
    Grade,
    after_reasoning,
    expression_pool,
    grade,
    grade_choice_word,
    grade_exact,
    grade_expression,
    grade_letter,
    grade_symbols,
    grade_word_list,
    marked_answer,
)
from lightthinker.evals.graders.expression_pool import ExpressionPool

CHEAP: dict[str, Callable[[str], Grade]] = {
    "number": partial(grade, reference="7"),
    "letter": partial(grade_letter, reference="C", options=("one", "two", "three", "four")),
    "words": partial(grade_choice_word, reference="valid", allowed=("valid", "invalid")),
    "list": partial(grade_word_list, reference="fig pear"),
    "symbols": partial(grade_symbols, reference="] )"),
    "exact": partial(grade_exact, reference="dearth, wind, & fire"),
}
"""Graders that need no process, each with a reference that hostile answers do not hit."""

HOSTILE = (
    "9**9**9", "9^{9^{9^{9}}}", "\\boxed{9**9**9**9}", "\\boxed{9^{9^{9^{9^{9}}}}}", "9" * 5000,
    "{" * 5000, "}" * 5000, "\\boxed{" * 2000, "\\boxed{" + "{" * 400 + "}" * 401,
    "\\boxed{" + "\\frac{1}{" * 60 + "2" + "}" * 61, "\\boxed{" + "\\sqrt{" * 100 + "2" + "}" * 101,
    "\\boxed{" + "(" * 300 + "2" + ")" * 300 + "}", "\\boxed{٣}", "\\boxed{𝟗}", "\\boxed{²}",
    "\0" * 1000, "\\boxed{\0}", "\ud800", "\\boxed{\ud800}", "\u202e8", "__import__('os').abort()",
    "\\boxed{__import__('os').system('exit 9')}", "\\boxed{10000000!}", "\\boxed{(x+1)^{9999}}",
    "\\boxed{\\int_0^\\infty e^{-x^{x^x}} dx}", "\\boxed{\\sum_{k=1}^{10^{12}} \\sin k}", "",
    "\\input{/etc/passwd}", "\\boxed{\\def\\a{\\a\\a}\\a}",
    "\\boxed{x_{1}x_{2}^{3}" + "y" * 480 + "}",
)  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Iterator[ExpressionPool]:
    with ExpressionPool(num_workers=1, limit_s=4) as pool:
        pool.verify("1", "1")
        yield pool


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_answers_are_wrong_not_fatal(name: str, hostile: str) -> None:
    verdict = CHEAP[name](hostile)
    assert not verdict.strict
    assert not verdict.flexible
    assert all(len(x or "") <= 200 for x in (verdict.extracted_strict, verdict.extracted_flexible))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_expressions_end_in_time(pool: ExpressionPool, hostile: str) -> None:
    begin = time.perf_counter()
    verdict = grade_expression(hostile, "\\frac{22}{7}", pool=pool)
    assert time.perf_counter() - begin < 10 * pool.limit_s
    assert not verdict.strict
    assert not verdict.flexible


@pytest.mark.parametrize(
    "unit",
    ["{", "\\boxed{1", "the answer is ", "(A", "**A", "\n", "yes ", "\\text{", "\\boxed{}"],
)  # fmt: skip
@pytest.mark.parametrize("name", [*CHEAP, "expression"])
def test_a_million_characters_are_graded_in_bounded_time(
    pool: ExpressionPool, name: str, unit: str
) -> None:
    grader = CHEAP.get(name) or partial(grade_expression, reference="x+1", pool=pool)
    begin = time.perf_counter()
    grader(after_reasoning(unit * (1_000_000 // len(unit))))
    assert time.perf_counter() - begin < 30


@given(st.text(), st.text("\\boxed{}()ABCIyesno.:, \n*answer is", max_size=80))
def test_any_text_can_be_graded(text: str, marked: str) -> None:
    for grader in CHEAP.values():
        grader(text)
        grader(marked)


def test_a_hanging_worker_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = tmp_path / "worker.py"
    source = Path(expression_pool._WORKER).read_text(encoding="utf-8")
    # A worker that no alarm can stop, when asked for it.
    source = source.replace(
        'verdict = judge(request["reference"], request["answer"])',
        'if request["answer"] == "hang":\n'
        "                import signal, time\n"
        "                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})\n"
        "                while True:\n"
        "                    time.sleep(1)\n"
        '            verdict = judge(request["reference"], request["answer"])',
    )
    assert "pthread_sigmask" in source
    stubborn.write_text(source, encoding="utf-8")
    monkeypatch.setattr(expression_pool, "_WORKER", stubborn)

    with ExpressionPool(num_workers=1, limit_s=2) as pool:
        assert pool.verify("2", "2").correct
        begin = time.perf_counter()
        verdict = pool.verify("2", "hang")
        assert (verdict.correct, verdict.ended) == (False, False)
        assert 1.9 < time.perf_counter() - begin < 20
        assert pool.verify("2", "2").correct


def test_a_dying_worker_is_replaced() -> None:
    with ExpressionPool(num_workers=1, limit_s=20) as pool:
        assert pool.verify("2", "2").correct
        worker = pool._idle.get()
        assert worker is not None
        worker.process.kill()
        worker.process.wait()
        pool._idle.put(worker)
        assert not pool.verify("2", "2").ended
        assert pool.verify("2", "2").correct


def test_the_pool_serves_several_threads_and_any_script(tmp_path: Path) -> None:
    # A script without a `__main__` guard, which would undo multiprocessing's spawn.
    script = tmp_path / "script.py"
    script.write_text(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from lightthinker.evals.graders import grade_expression\n"
        "with ThreadPoolExecutor(4) as threads:\n"
        "    jobs = [threads.submit(grade_expression, f'{i}/2', '3') for i in range(12)]\n"
        "print([i for i, job in enumerate(jobs) if job.result().flexible])\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[6]\n", done.stderr


def test_math_verify_is_never_run_in_this_process(pool: ExpressionPool) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        job = threads.submit(grade_expression, "\\boxed{2/4}", "\\frac{1}{2}", pool=pool)
        assert job.result().strict


def test_without_math_verify_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec: Any = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "math_verify" else find_spec(name)
    )
    file = tmp_path / "test.jsonl"
    file.write_text('{"problem": "p", "answer": "1"}\n')
    with pytest.raises(ConfigError, match=r"math-verify: pip install 'lightthinker\[eval\]'"):
        load_benchmark(f"math500={file}")
    with pytest.raises(ConfigError, match="math-verify"):
        ExpressionPool()
    assert load_benchmark(f"aime24={file}")[0].grade("\\boxed{1}")


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>\n\\boxed{1}\n</think>\n\n2", "\n\n2"),
        ("a</think>b</think>c", "c"),
        ("<|begin_of_thought|>a<|end_of_thought|>b", "b"),
        ("never ended \\boxed{3}", "never ended \\boxed{3}"),
        ("", ""),
    ],
)
def test_reasoning_is_not_graded(text: str, rest: str) -> None:
    assert after_reasoning(text) == rest


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("\\boxed{\\text{$x$}}", "x"),
        ("\\boxed{a} then \\boxed{}", "a"),
        ("\\boxed{a} so the answer is b", "a"),
        ("The answer is: 3.14. Good.", "3.14"),
        ("the answer is **Yes**.", "Yes"),
        ("**Answer:** ] )", "] )"),
        ("The answer is:\n\nbelow", "below"),
        ("answering is hard", None),
        ("\\fbox{c}", "c"),
    ],
)
def test_stated_answers(text: str, stated: str | None) -> None:
    assert marked_answer(text) == stated


def test_exact_answers() -> None:
    reference = "dearth, wind, & fire"
    assert grade_exact("\\boxed{Dearth, wind, & fire}", reference).strict
    assert grade_exact("I think:\ndearth,  wind, & fire.", reference) == Grade(
        strict=False, flexible=True, extracted_strict=None,
        extracted_flexible="dearth,  wind, & fire.",
    )  # fmt: skip
    assert not grade_exact("dearth\nwind", reference).flexible
