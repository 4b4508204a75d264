"""Generated reasoning problems with exact traces and exact verifiers.

The laboratory of the package: the bundled model's curriculum and the ground truth of the tests.
Five families, each seeded and of any size. Every thought restates what it evaluates and the values
it looks up, and ends with names and their values; without that, small models do not learn to look
up. Thoughts follow the order of the question.

It knows nothing about models, gists or special tokens, and needs only the standard library.

    problem = generate("programs", seed=0, difficulty="demo")
    verify(problem, problem.response).correct
"""

from lightthinker.tasks.problem import Problem, TaskFamily
from lightthinker.tasks.registry import DIFFICULTIES, FAMILIES, generate, solve, stream
from lightthinker.tasks.tokenization import TOKEN_PATTERN, count_tokens, tokenize
from lightthinker.tasks.verification import Verdict, extract_answer, verify

__all__ = [
    "DIFFICULTIES",
    "FAMILIES",
    "TOKEN_PATTERN",
    "Problem",
    "TaskFamily",
    "Verdict",
    "count_tokens",
    "extract_answer",
    "generate",
    "solve",
    "stream",
    "tokenize",
    "verify",
]
