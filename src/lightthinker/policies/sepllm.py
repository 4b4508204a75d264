"""SepLLM: the first tokens, the separators, and the neighbouring (most recent) tokens.

Source: "SepLLM: Accelerate Large Language Models by Compressing One Segment into One Separator",
arXiv 2412.12094, section 3 and its streaming design: a bounded cache that, when full, keeps
initial tokens, separators and neighbours only, and when separators are too many drops the oldest.

The budget holds all three; the prompt is evicted from unless kept. The setting is the fair one
for models that were not trained with it: keys keep their true positions, and every separator stays
as long as the budget has room. Separators are the tokens that consist, spaces aside, of punctuation
and newlines only, so that merged ones such as a full stop with a blank line count; the paper lists
single token ids, and the space and tab among them, which we leave out: they would be most of a
digit-wise trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lightthinker.engine.policy import CacheView
from lightthinker.policies.budget import Budgeted


@dataclass(frozen=True, kw_only=True)
class SepLLM(Budgeted):
    """Initial tokens, separators, and neighbours.

    Attributes:
        initial: First tokens that always stay.
        neighbour_fraction: Share of the kept tokens (beyond a prompt that is kept) that are simply
            the most recent.
        separators: Characters that make a token a separator.
    """

    initial: int = 4
    neighbour_fraction: float = 0.5
    separators: str = ".,?!;:\n"

    name = "sepllm"
    observation = None

    def check_settings(self) -> None:
        """Raise RequestError for a setting out of range."""
        self.require(self.initial >= 0, "initial", "at least 0")
        self.require(0 < self.neighbour_fraction <= 1, "neighbour_fraction", "above 0, at most 1")

    @property
    def num_protected(self) -> int:
        """The initial tokens and the newest."""
        return self.initial + 1

    def keep(self, cache: CacheView) -> list[int]:
        """Keep the initial tokens, the neighbours, and the newest separators between them."""
        num_pinned = self.num_pinned(cache.num_prompt_tokens)
        first = max(self.initial, num_pinned)
        room = self.num_kept(cache) - first
        share = int(self.neighbour_fraction * (self.num_kept(cache) - num_pinned))
        neighbours = max(1, min(room, share))
        begin = cache.num_live - neighbours
        separators = separator_ids(cache.tokenizer, self.separators)
        found = [i for i in range(first, begin) if cache.token_ids[i] in separators]
        newest = found[max(0, len(found) - (room - neighbours)) :]
        return [*range(first), *newest, *range(begin, cache.num_live)]


@lru_cache(maxsize=8)
def separator_ids(tokenizer: Any, characters: str) -> frozenset[int]:
    """Return the ids of the tokens that, spaces aside, consist of these characters only."""
    special = set(tokenizer.all_special_ids)
    ids = [i for i in range(len(tokenizer)) if i not in special]
    texts = tokenizer.batch_decode([[i] for i in ids])
    return frozenset(
        i for i, text in zip(ids, texts, strict=True) if set(text.strip(" ")) & set(characters)
        and set(text.strip(" ")) <= set(characters)
    )  # fmt: skip
