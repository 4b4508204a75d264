"""The word-level tokenization that trace lengths are counted in.

The bundled model's tokenizer splits text the same way: words with the space before them, single
digits, single punctuation marks.
"""

import re

TOKEN_PATTERN = re.compile(r" ?[A-Za-z]+|[0-9]|\n| |[^A-Za-z0-9\s]")


def tokenize(text: str) -> list[str]:
    """Split a text into tokens.

    Args:
        text: Any text; white space other than space and newline is dropped.

    Returns:
        The tokens in order.
    """
    return TOKEN_PATTERN.findall(text)


def count_tokens(text: str) -> int:
    """Count the tokens of a text."""
    return len(tokenize(text))
