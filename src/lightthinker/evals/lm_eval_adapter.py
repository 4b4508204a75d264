"""The model type `lightthinker` for lm-evaluation-harness: its tasks and graders, our engine.

    python -m lightthinker.evals.lm_eval_adapter run --model lightthinker \
        --model_args pretrained=PATH,compression=true --tasks gsm8k --apply_chat_template

Importing this module registers the type; lm-eval finds no plug-ins by itself. Generation is the
engine's, compression included, and what is graded is what follows the reasoning. Log-likelihoods
are one plain causal forward: a given text holds no trigger, so nothing is compressed, and the
engine's logits would be the same. Knows nothing of our own benchmarks and graders.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from lightthinker.encode import Message
from lightthinker.engine.llm import LLM
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import CheckpointError, ConfigError, suggestion
from lightthinker.evals.graders import after_reasoning

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ConfigError(
        "The adapter needs lm-evaluation-harness: pip install 'lightthinker[lm-eval]'."
    ) from error

_GENERATION_SETTINGS = ("temperature", "top_p", "top_k", "seed")
_PLAIN_ATTENTION = "sdpa"


@register_model("lightthinker")
class LightThinkerLM(TemplateLM):  # type: ignore[misc]
    """A checkpoint in our engine, as lm-eval's language model.

    Args:
        pretrained: Checkpoint folder or hub name.
        compression: Whether triggers compress; None: whatever the checkpoint was trained for.
            False runs the same checkpoint as full chain-of-thought.
        max_gen_toks: Most tokens to sample where neither the task nor `--gen_kwargs` says.
        strip_reasoning: Grade only what follows the reasoning. Then a task's stop strings end the
            answer, not the reasoning, in which they may occur.
        device: Torch device.
        dtype: As in `LLM`.
        max_num_seqs: Most sequences running at once.
        num_kv_tokens: Tokens that the KV pool holds.
        batch_size: Has no effect: the engine batches continuously. lm-eval always passes it.
        max_batch_size: Likewise.

    Raises:
        CheckpointError: The checkpoint cannot be loaded, or has no compression to switch on.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        compression: bool | None = None,
        max_gen_toks: int = 4096,
        strip_reasoning: bool = True,
        device: str | None = None,
        dtype: str = "auto",
        max_num_seqs: int = 256,
        num_kv_tokens: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        self.llm = LLM(
            pretrained, device=device, dtype=dtype, max_num_seqs=max_num_seqs,
            num_kv_tokens=num_kv_tokens,
        )  # fmt: skip
        settings = self.llm.compression
        if compression and (settings is None or settings.method == "full"):
            raise CheckpointError(
                f"compression=true, but {pretrained} was not trained with LightThinker."
            )
        self.tokenizer = self.llm.tokenizer
        self.compression = compression
        self.max_gen_toks = max_gen_toks
        self.strip_reasoning = strip_reasoning
        self.reasoning_end = settings.reasoning_end.strip() if settings else ""
        self._device = self.llm.device
        self._ids = itertools.count()

    @property
    def eot_token_id(self) -> int:
        """Id of the token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def tokenizer_name(self) -> str:
        """Name under which lm-eval caches requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    @property
    def max_length(self) -> int:
        """Most tokens of a text."""
        return int(self.llm.engine.max_model_len)

    def apply_chat_template(
        self, chat_history: list[Message], add_generation_prompt: bool = True
    ) -> str:
        """Render a conversation, up to where reasoning begins if the model is to answer."""
        if add_generation_prompt:
            return self.llm.prompt_text(chat_history)
        text: str = self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, continue_final_message=True
        )
        return text

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Return token ids; by default with a bos only where the text does not begin with it."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(bos))
        encoded = self.tokenizer(string, add_special_tokens=add_special_tokens)
        ids: list[int] = encoded["input_ids"]
        return ids

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer all requests in one continuously batched run.

        Args:
            requests: lm-eval's instances; `args` is (context, generation settings).
            disable_tqdm: Show no progress.

        Raises:
            ConfigError: A generation setting that the engine does not have.
            RequestError: A prompt is longer than the model's context.
        """
        engine = self.llm.engine
        run = f"lm-eval-{next(self._ids)}"
        names = [f"{run}-{i}" for i in range(len(requests))]
        texts: dict[str, str] = {}
        settings = [self._settings(request.args[1]) for request in requests]
        by_name = dict(zip(names, zip(requests, settings, strict=True), strict=True))
        try:
            asked = [
                (name, self.tok_encode(request.args[0]), params)
                for name, (request, (params, _)) in by_name.items()
            ]
            engine.add_requests(asked, stream=False)
            with tqdm(total=len(names), disable=disable_tqdm, desc="lightthinker") as progress:
                while len(texts) < len(names):
                    for output in engine.step():
                        request, (_, until) = by_name[output.request_id]
                        text = self._answer(output.outputs[0].text, until)
                        texts[output.request_id] = text
                        self.cache_hook.add_partial("generate_until", request.args, text)
                        progress.update(1)
        finally:
            for name in names:
                engine.abort_request(name)
        return [texts[name] for name in names]

    def _settings(self, given: Mapping[str, Any]) -> tuple[SamplingParams, list[str]]:
        """Return sampling parameters, and the strings that end an answer."""
        wanted = normalize_gen_kwargs(dict(given), self.max_gen_toks)
        known = ("until", "max_gen_toks", "do_sample", *_GENERATION_SETTINGS)
        for key in wanted:
            if key not in known:
                raise ConfigError(
                    f"The engine has no generation setting {key!r}; there are {', '.join(known)}."
                    f"{suggestion(key, known)}"
                )
        until = [text for text in wanted["until"] if text]
        params = SamplingParams(
            max_tokens=wanted["max_gen_toks"],
            stop=() if self.strip_reasoning else until,
            compression=self.compression,
            **{key: wanted[key] for key in _GENERATION_SETTINGS if wanted.get(key) is not None},
        )
        return params, until

    def _answer(self, text: str, until: list[str]) -> str:
        if not self.strip_reasoning:
            return text
        if self.reasoning_end and self.reasoning_end in text:
            text = text.rpartition(self.reasoning_end)[2]
        answer: str = postprocess_generated_text(after_reasoning(text).lstrip(), until, None)
        return answer

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        results = []
        with _plain_attention(self.llm.engine.runner.model) as model:
            for key, context, continuation in tqdm(requests, disable=disable_tqdm):
                result = self._score(model, context, continuation)
                self.cache_hook.add_partial("loglikelihood", key, result)
                results.append(result)
        return results

    @torch.no_grad()
    def _score(self, model: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Return the continuation's log-probability, and whether it is the greedy one.

        As in lm-eval's own models, a text that is too long loses tokens at its beginning.
        """
        ids = torch.tensor([[*context, *continuation][-self.max_length :]], device=self._device)
        logits = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False,
            logits_to_keep=len(continuation) + 1,
        ).logits[0, :-1].float()  # fmt: skip
        targets = ids[0, -len(continuation) :]
        chosen = logits.log_softmax(-1).gather(-1, targets[:, None])
        return float(chosen.sum()), bool((logits.argmax(-1) == targets).all())

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Return each text's log-probability, window by window if it is longer than the context."""
        totals = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            pieces = [(("", text), *make_disjoint_window(window)) for window in windows]
            scores = self._loglikelihood_tokens(pieces, disable_tqdm=True)
            totals.append(sum(score for score, _ in scores))
        return totals


@contextmanager
def _plain_attention(model: Any) -> Iterator[Any]:
    """Let the engine's model run by itself for a while."""
    paged = model.config._attn_implementation
    model.set_attn_implementation(_PLAIN_ATTENTION)
    try:
        yield model
    finally:
        model.set_attn_implementation(paged)


def main() -> None:
    """Run lm-eval's command line with the model type `lightthinker` known to it."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
