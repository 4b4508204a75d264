"""Names for the full pages of a prompt: equal exactly if all tokens up to the page's end are equal.

In a causal model the KV of a token depends on the tokens before it and on nothing else, so two
prompts with the same key may share the page (vLLM's automatic prefix caching does the same).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence


def prompt_page_keys(prompt_ids: Sequence[int], page_size: int) -> list[bytes]:
    """Return one key per full page of the prompt, its last token left out.

    The last token is always forwarded: its logits are needed.
    """
    keys, key = [], b""
    for end in range(page_size, len(prompt_ids), page_size):
        page = array("q", prompt_ids[end - page_size : end]).tobytes()
        key = hashlib.blake2b(key + page, digest_size=16).digest()
        keys.append(key)
    return keys
