"""Puts the compression tokens into a tokenizer and a model.

New embedding and lm_head rows start as the mean of the rows of a short description, as in the
paper's code: "compress output 3" for a gist. Tokens that the tokenizer already has are reused as
they are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from lightthinker.compression import CONFIG_KEY, CompressionConfig
from lightthinker.errors import CheckpointError

TRIGGER_DESCRIPTION = "\n\n"
CONTINUE_DESCRIPTION = "continue to output according to previous content"
RECOVER_DESCRIPTION = "write the compressed thought again"


def gist_description(index: int) -> str:
    """Return the text whose mean embedding initialises gist `index` (from 0)."""
    return f"compress output {index}"


def resolve_tokens(tokenizer: Any, config: CompressionConfig) -> CompressionConfig:
    """Return the config with the ids of its tokens as this tokenizer has them.

    Raises:
        CheckpointError: The tokenizer lacks one of the tokens, or ends texts with it.
    """
    if config.method == "full":
        return config
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in config.special_tokens if token not in vocabulary]
    if missing:
        raise CheckpointError(
            f"The tokenizer has no token {', '.join(missing)}. Add them with "
            "lightthinker.tokens.add_tokens, or check that compression.num_gists "
            "matches the checkpoint."
        )
    if tokenizer.eos_token in config.special_tokens:
        raise CheckpointError(
            f"{tokenizer.eos_token} is the tokenizer's eos token and one of the compression "
            "tokens, too: an answer could not end. Give compression a token of its own."
        )
    return dataclasses.replace(
        config,
        trigger_id=vocabulary[config.trigger_token] if config.has_trigger else None,
        gist_ids=tuple(vocabulary[token] for token in config.gist_tokens),
        continue_id=vocabulary[config.continue_token] if config.has_continue else None,
        recover_id=vocabulary[config.recover_token] if config.recover_token else None,
    )


def add_tokens(model: Any, tokenizer: Any, config: CompressionConfig) -> CompressionConfig:
    """Add the compression tokens to tokenizer and model; save the settings in its config.

    Args:
        model: A Hugging Face causal LM; its embeddings grow if the tokenizer outgrows them.
        tokenizer: Its tokenizer.
        config: The compression settings.

    Returns:
        The config with token ids filled in; also stored as `model.config.lightthinker`.
    """
    known = set(tokenizer.get_vocab())
    new = [token for token in config.special_tokens if token not in known]
    rows = {t: _description_ids(tokenizer, d) for t, d in _descriptions(config).items() if t in new}
    if new:
        tokenizer.add_tokens(new, special_tokens=True)
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        _initialise(model.get_input_embeddings().weight, tokenizer, rows)
        head = model.get_output_embeddings()
        if head is not None and head.weight is not model.get_input_embeddings().weight:
            _initialise(head.weight, tokenizer, rows)
    resolved = resolve_tokens(tokenizer, config)
    setattr(model.config, CONFIG_KEY, resolved.to_dict())
    return resolved


def _descriptions(config: CompressionConfig) -> dict[str, str]:
    tokens = dict.fromkeys(config.gist_tokens)
    gists = {token: gist_description(i) for i, token in enumerate(tokens)}
    if config.recover_token:
        gists[config.recover_token] = RECOVER_DESCRIPTION
    return {
        config.trigger_token: TRIGGER_DESCRIPTION,
        config.continue_token: CONTINUE_DESCRIPTION,
    } | gists


def _description_ids(tokenizer: Any, description: str) -> list[int]:
    ids = tokenizer(description, add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    return [i for i in ids if i != unknown]


@torch.no_grad()
def _initialise(weight: torch.Tensor, tokenizer: Any, rows: dict[str, list[int]]) -> None:
    for token, description_ids in rows.items():
        source = weight[description_ids] if description_ids else weight[: -len(rows)]
        weight[tokenizer.convert_tokens_to_ids(token)] = source.float().mean(dim=0).to(weight.dtype)
