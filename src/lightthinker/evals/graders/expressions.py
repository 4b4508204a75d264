r"""Mathematical expressions, as on MATH: is the answer equivalent to the reference?

Strict: the content of the last `\boxed{}`. Flexible: the same, or, if nothing is boxed, what
math-verify finds in the last 2,000 characters. Answers are equivalent if math-verify says so, or
if their LaTeX is equal up to spacing, units of degree and percent, and `\text{}`.
"""

from __future__ import annotations

import re

from lightthinker.evals.graders.expression_pool import ExpressionPool, shared_pool
from lightthinker.evals.graders.marks import last_boxed, undecorated
from lightthinker.evals.graders.verdict import Grade, shown

MAX_BOXED = 1000
MAX_TAIL = 2000
_SPACING = re.compile(r"\\[,!;: ]|~|\s+|\\left(?![a-z])|\\right(?![a-z])|\^\{?\\circ\}?|\\%|%|\\\$")
_SAME = {r"\dfrac": r"\frac", r"\tfrac": r"\frac"}


def grade_expression(
    prediction: str, reference: str, *, pool: ExpressionPool | None = None
) -> Grade:
    """Grade a mathematical answer.

    Args:
        prediction: What the model wrote after its reasoning.
        reference: LaTeX of the right answer.
        pool: The processes to use; by default those shared by the whole program.

    Returns:
        The grade; an answer that exceeds the limits is wrong.

    Raises:
        ConfigError: math-verify is not installed.
    """
    pool = pool or shared_pool()
    content = last_boxed(prediction, limit=MAX_BOXED)
    if content is not None:
        correct = _plain(content) == _plain(reference)
        correct = correct or pool.verify(reference, f"\\boxed{{{_clean(content)}}}").correct
        return Grade(
            strict=correct,
            flexible=correct,
            extracted_strict=shown(content),
            extracted_flexible=shown(content),
        )
    verdict = pool.verify(reference, _clean(prediction[-MAX_TAIL:]))
    return Grade(
        strict=False,
        flexible=verdict.correct,
        extracted_strict=None,
        extracted_flexible=shown(verdict.found),
    )


def _clean(text: str) -> str:
    return text.replace("\0", " ").encode("utf-8", "replace").decode()


def _plain(latex: str) -> str:
    for written, plain in _SAME.items():
        latex = latex.replace(written, plain)
    return _SPACING.sub("", undecorated(latex)).casefold()
