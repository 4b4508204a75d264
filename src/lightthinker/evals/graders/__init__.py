"""Grading without humans: answers are read by rules, in bounded time, and never evaluated as code.

Every grader takes what a model wrote and the reference, and returns a `Grade`: one verdict for an
answer in the form asked for (strict), one for an answer found by reading generously (flexible).

| grader | answers |
|---|---|
| `grade` (numeric) | one number |
| `grade_letter` | the letter of an option |
| `grade_choice_word` | one of a few words: yes/no, valid/invalid, True/False |
| `grade_word_list`, `grade_symbols`, `grade_exact` | lists of words, brackets, other short texts |
| `grade_expression` | mathematical expressions, by math-verify in processes of their own |

`after_reasoning` cuts the reasoning off first.
"""

from lightthinker.evals.graders.expressions import grade_expression
from lightthinker.evals.graders.letters import grade_letter
from lightthinker.evals.graders.marks import after_reasoning, marked_answer
from lightthinker.evals.graders.numeric import grade
from lightthinker.evals.graders.verdict import Grade
from lightthinker.evals.graders.words import (
    grade_choice_word,
    grade_exact,
    grade_symbols,
    grade_word_list,
)

__all__ = [
    "Grade",
    "after_reasoning",
    "grade",
    "grade_choice_word",
    "grade_exact",
    "grade_expression",
    "grade_letter",
    "grade_symbols",
    "grade_word_list",
    "marked_answer",
]
