r"""Prompts: how a benchmark's question is put to a model, in three styles, with versions.

- `r1`: one user message, the question and then what form the answer should have; no system prompt,
  as DeepSeek-R1's model card asks for its models. Its sentence for mathematics, "Please reason step
  by step, and put your final answer within \boxed{}.", is the field's and kept word for word; the
  other sentences are ours, after its pattern.
- `chat`: the same sentence as system prompt, the question as user message (Qwen2.5-Math's way).
- `plain`: the question alone, for models that were fine-tuned on a benchmark's own training set.

Where reasoning begins is not the prompt's business: the checkpoint says (`reasoning_begin`). A
prompt's name is `benchmark:style@version`; a changed wording is a new version. Snapshots under
tests/evals/snapshots pin every text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lightthinker.evals.benchmarks.problem import Message

DEFAULT_STYLE = "r1"

INSTRUCTIONS: Mapping[str, str] = {
    "math": r"Please reason step by step, and put your final answer within \boxed{}.",
    "number": r"Please reason step by step, and put your final answer within \boxed{}.",
    "letter": (
        "Please reason step by step, and put the letter of the option you choose "
        r"within \boxed{}."
    ),
    "words": (
        r"Please reason step by step, and put your final answer within \boxed{{}}: "
        "{allowed}."
    ),
    "list": (
        r"Please reason step by step, and put your final answer within \boxed{}: all the words "
        "in order, separated by spaces."
    ),
    "symbols": (
        "Please reason step by step, and put what completes the sequence, the symbols that were "
        r"given left out, within \boxed{}."
    ),
}
"""Form of the answer -> the sentence that asks for it."""


def instruction(form: str, allowed: tuple[str, ...] = ()) -> str:
    """Return the sentence that asks for an answer in a form; `allowed` are the words of `words`."""
    if form != "words":
        return INSTRUCTIONS[form]
    return INSTRUCTIONS[form].format(allowed=", ".join(allowed[:-1]) + f" or {allowed[-1]}")


def _r1(question: str, asked: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": f"{question}\n\n{asked}"},)


def _chat(question: str, asked: str) -> tuple[Message, ...]:
    return ({"role": "system", "content": asked}, {"role": "user", "content": question})


def _plain(question: str, asked: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": question},)


STYLES: Mapping[str, Callable[[str, str], tuple[Message, ...]]] = {
    "r1": _r1,
    "chat": _chat,
    "plain": _plain,
}
"""Style -> the messages made of a question and the sentence that asks for the form."""
