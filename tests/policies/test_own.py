"""A policy in a file of the user's own: found by its path, run like ours, refused with a reason."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
import torch

from lightthinker import LLM, SamplingParams
from lightthinker.errors import ConfigError, RequestError
from lightthinker.evals.evaluate import Evaluation, evaluate
from lightthinker.evals.settings import EvalSettings
from lightthinker.evals.tables import label
from lightthinker.policies.h2o import H2O
from lightthinker.policies.methods import resolve_method
from lightthinker.policies.streaming_llm import StreamingLLM
from lightthinker.testing.models import tiny_checkpoint

HEAD = """
from __future__ import annotations
from dataclasses import dataclass
from lightthinker.policies.budget import Budgeted
"""
SINKS = '''
@dataclass(frozen=True, kw_only=True)
class Sinks(Budgeted):
    """The first tokens and the last."""

    first: int = 4
    name = "sinks"
    observation = None

    @property
    def num_protected(self):
        return self.first

    def keep(self, cache):
        recent = self.num_kept(cache) - self.first
        return [*range(self.first), *range(cache.num_live - recent, cache.num_live)]
'''


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    file = tmp_path / "my policy.py"
    file.write_text(HEAD + SINKS)
    return file


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> LLM:
    return LLM(checkpoint, device="cpu", num_kv_tokens=4096)


def test_a_policy_of_ones_own_is_evaluated_as_ours_are(
    llm: LLM, checkpoint: Path, policy_file: Path
) -> None:
    own, ours = f"{policy_file}:budget=24,first=2", "streaming_llm:budget=24,sinks=2"
    settings = EvalSettings(
        tasks=("programs",), num_problems=3, difficulty="tiny", max_tokens=30, methods=(own, ours)
    )
    results, records = evaluate(lambda: llm, settings, model=checkpoint, command="c")
    assert {r.method for r in records} == {own, ours}
    samples = [[(r.text, r.stats) for r in records if r.method == method] for method in (own, ours)]
    assert samples[0] == samples[1]
    assert samples[0][0][1].peak_tokens < samples[0][0][1].full_cot_tokens
    recorded = results.info.method_settings[own]
    assert (recorded["budget"], recorded["first"]) == (24, 2)
    assert len(recorded["file_sha256"]) == 64
    assert label(own) == "my policy, budget 24, first 2"
    assert label(f"{policy_file}#Sinks:match=mean") == "Sinks, matched mean"


def test_a_journal_is_not_gone_on_with_after_the_file_has_changed(
    llm: LLM, checkpoint: Path, policy_file: Path, tmp_path: Path
) -> None:
    settings = EvalSettings(
        tasks=("programs",), num_problems=1, methods=(f"{policy_file}:ratio=1",)
    )
    evaluation = Evaluation(
        open_llm=lambda: llm, settings=settings, model=checkpoint, command="c",
        journal=tmp_path / "run.parts",
    )  # fmt: skip
    evaluation.prepare()
    evaluation.prepare()
    policy_file.write_text(policy_file.read_text() + "\n# changed\n")
    with pytest.raises(ConfigError, match="policies"):
        evaluation.prepare()


def test_what_runs_is_what_the_record_says(llm: LLM, checkpoint: Path, policy_file: Path) -> None:
    name = f"{policy_file}:budget=24"
    settings = EvalSettings(
        tasks=("programs",), num_problems=1, difficulty="tiny", max_tokens=30, methods=(name,)
    )
    digests = []
    for change in ("", "\n# no other code\n"):
        policy_file.write_text(policy_file.read_text() + change)
        results, _ = evaluate(lambda: llm, settings, model=checkpoint, command="c")
        digests.append(results.info.method_settings[name]["file_sha256"])
    assert digests[1] == hashlib.sha256(policy_file.read_bytes()).hexdigest() != digests[0]
    policy_file.write_text(policy_file.read_text().replace("return [", "return 1 / 0, ["))
    with pytest.raises(ZeroDivisionError):
        evaluate(lambda: llm, settings, model=checkpoint, command="c")
    policy_file.write_text(HEAD + SINKS)
    evaluation = Evaluation(open_llm=lambda: llm, settings=settings, model=checkpoint, command="c")
    evaluation.prepare()
    records = evaluation.run()
    policy_file.unlink()
    results, _ = evaluation.results(records)
    assert results.info.method_settings[name]["file_sha256"] == digests[0]


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        (None, "p.py", r"no file .*p\.py"),
        ("x = 1\n", "p.py", "defines no policy: a dataclass derived from"),
        ("import nothing_of_this_name\n", "p.py", "fails: ModuleNotFoundError"),
        ("raise SystemExit(3)\n", "p.py", "fails: SystemExit: 3"),
        (HEAD + SINKS, "p.py#Sink", "Did you mean 'Sinks'"),
        (HEAD + SINKS + SINKS.replace("Sinks", "Other"), "p.py", "defines Sinks, Other; name one"),
        (HEAD + SINKS.replace("def keep", "def kept"), "p.py", "class Sinks lacks keep"),
        (HEAD + SINKS.replace('name = "sinks"', ""), "p.py", "class Sinks lacks name"),
        (HEAD + SINKS.replace("@dataclass(frozen=True, kw_only=True)", ""), "p.py", "@dataclass"),
    ],
)
def test_what_is_no_policy_is_refused_with_a_reason(
    tmp_path: Path, content: str | None, name: str, reason: str
) -> None:
    if content is not None:
        (tmp_path / "p.py").write_text(content)
    with pytest.raises(RequestError, match=reason):
        resolve_method(f"{tmp_path / name}:budget=9")


def test_an_abstract_class_between_is_no_policy(tmp_path: Path) -> None:
    between = SINKS.replace("class Sinks", "class Base").replace("def keep", "def unused")
    (tmp_path / "p.py").write_text(HEAD + between + SINKS.replace("(Budgeted)", "(Base)"))
    assert type(resolve_method(f"{tmp_path / 'p.py'}:budget=9").policy).__name__ == "Sinks"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers(StreamingLLM):
    """Keeps what the test says."""

    answer: object = None

    def keep(self, cache):
        return self.answer(cache.num_live, cache.limit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswersPerHead(H2O):
    """The same for each head."""

    answer: object = None

    def keep(self, cache):
        return self.answer(cache.num_live, cache.limit, *cache.scores_LHn.shape[:2])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda live, limit: list(range(limit)), "fewer than 12 may stay"),
        (lambda live, limit: [0, 2, 1], "ascending"),
        (lambda live, limit: [0, 1, 1], "ascending"),
        (lambda live, limit: [0, live], "ascending"),
        (lambda live, limit: [-1, 0], "ascending"),
        (lambda live, limit: torch.arange(3), "a list of positions, not Tensor"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(llm: LLM, answer: object, reason: str) -> None:
    policy = Answers(budget=12, answer=answer)
    assert_refused(llm, SamplingParams(max_tokens=20, ignore_eos=True, policy=policy), reason)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda n, limit, *s: torch.arange(limit).expand(*s, -1), "fewer than 12 may stay"),
        (lambda n, limit, *s: torch.tensor([2, 1]).expand(*s, -1), "ascending"),
        (lambda n, limit, *s: torch.tensor([1, n]).expand(*s, -1), "ascending"),
        (lambda n, limit, *s: torch.arange(3), r"torch\.int64 .* not torch\.int64 \[3\]"),
        (lambda n, limit, *s: torch.ones(*s, 3), r"not torch\.float32"),
        (lambda n, limit, *s: [0, 1], "not list"),
    ],
)
def test_a_choice_per_head_that_cannot_be_is_refused(llm: LLM, answer: object, reason: str) -> None:
    policy = AnswersPerHead(budget=12, answer=answer)
    assert_refused(llm, SamplingParams(max_tokens=20, ignore_eos=True, policy=policy), reason)


def assert_refused(llm: LLM, params: SamplingParams, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        llm.generate([3, 4, 5, 6, 7], params)
    assert not llm.engine.has_unfinished_requests()


def test_the_documented_example_is_a_policy(llm: LLM, tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
    code = document.partition("```python\n# my_policy.py\n")[2].partition("```")[0]
    (tmp_path / "my_policy.py").write_text(code)
    policy = resolve_method(f"{tmp_path / 'my_policy.py'}:budget=16,sinks=2,buffer=3").policy
    params = SamplingParams(max_tokens=40, ignore_eos=True, policy=policy)
    stats = llm.generate([3, 4, 5, 6, 7], params)[0].outputs[0].stats
    assert (stats.peak_tokens, stats.num_sampled_tokens) == (16, 40)
