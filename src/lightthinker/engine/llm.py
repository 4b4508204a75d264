"""LLM: load a checkpoint and generate, with vLLM's interface."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from lightthinker.bundled import model_path
from lightthinker.compression import CompressionConfig
from lightthinker.encode import render_prompt
from lightthinker.engine.architecture import check_architecture
from lightthinker.engine.device import resolve_device
from lightthinker.engine.engine import EngineConfig, LLMEngine
from lightthinker.engine.loading import (
    checked_compression,
    load_config,
    load_engine,
    load_generation_config,
    load_tokenizer,
)
from lightthinker.engine.outputs import RequestOutput
from lightthinker.engine.parallel import ParallelEngine
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import RequestError

Message = Mapping[str, str]
Prompt = str | Sequence[int]


class LLM:
    """A checkpoint ready to generate.

    Args:
        model: Folder or hub name; `demo` is the model that comes with the package. Weights must be
            safetensors; no remote code is run.
        device: Torch device; by default CUDA if there is one.
        dtype: `auto` takes the checkpoint's on a GPU and float32 on a CPU; or `float32`,
            `bfloat16`, `float16`.
        compression: Override the checkpoint's settings (for experiments); token ids must fit the
            tokenizer.
        max_num_seqs: Most sequences running at once.
        max_num_batched_tokens: Most tokens forwarded in one step.
        num_kv_tokens: Tokens the KV pool holds. None: what fits on a GPU, 65,536 on a CPU.
        gpu_memory_utilization: Share of a GPU's memory that weights, KV pool and the largest step
            may take together.
        page_size: Tokens per KV page.
        enable_prefix_caching: Share the pages of prompts that begin alike.
        enforce_eager: On a GPU, neither compile the model nor capture CUDA graphs: a quick start,
            slower steps.
        attention_backend: `torch`, `triton`, or `auto`: Triton on CUDA, torch on a CPU.
        tensor_parallel_size: Devices that share each copy of the model, in one process each.
        data_parallel_size: Copies of the model; requests go to the least busy one.
        engine_process: Run a single engine in a process of its own, too: its Python and this
            process's then do not wait for each other, and this process opens no CUDA context.
        load_format: `auto` reads the weights; `dummy` draws them, from config and tokenizer alone,
            to measure speed without a checkpoint.
        max_stream_updates_per_s: See `EngineConfig`.

    Raises:
        CheckpointError: The folder is missing, its model is none that the engine serves, it has no
            safetensors weights, or settings that its tokenizer does not fit.

    Example:
        >>> llm = LLM("demo")
        >>> out = llm.chat([{"role": "user", "content": "What is 12*34?"}])[0]
        >>> out.outputs[0].text, out.outputs[0].stats.peak_tokens
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str | None = None,
        dtype: str = "auto",
        compression: CompressionConfig | None = None,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 4096,
        num_kv_tokens: int | None = None,
        gpu_memory_utilization: float = 0.9,
        page_size: int = 16,
        enable_prefix_caching: bool = True,
        enforce_eager: bool = False,
        attention_backend: str = "auto",
        tensor_parallel_size: int = 1,
        data_parallel_size: int = 1,
        engine_process: bool = False,
        load_format: str = "auto",
        max_stream_updates_per_s: float = inf,
    ):
        model = model_path(model)
        self.device = resolve_device(device)
        config = EngineConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            page_size=page_size,
            num_kv_tokens=num_kv_tokens,
            gpu_memory_utilization=gpu_memory_utilization,
            enable_prefix_caching=enable_prefix_caching,
            enforce_eager=enforce_eager,
            attention_backend=attention_backend,
            max_stream_updates_per_s=max_stream_updates_per_s,
        )
        check_architecture(load_config(model))
        options: dict[str, Any] = {
            "dtype": dtype, "compression": compression, "config": config, "load_format": load_format
        }  # fmt: skip
        self.engine: LLMEngine
        sizes = tensor_parallel_size, data_parallel_size
        if engine_process or sizes != (1, 1):
            self._start_processes(model, options, sizes)
        else:
            self.engine = load_engine(model, device=str(self.device), **options)
            self.model_config = self.engine.runner.model.config
            self.generation_config = self.engine.runner.model.generation_config
            self.tokenizer, self.compression = self.engine.tokenizer, self.engine.compression
            with _shown_phases() as on_phase:
                self.engine.warm_up(on_phase)
        self._ids = itertools.count()
        self._latest: dict[str, RequestOutput] = {}

    def _start_processes(
        self, model: str | Path, options: dict[str, Any], sizes: tuple[int, int]
    ) -> None:
        """Let engines be loaded elsewhere, and load here what is asked of no engine."""
        self.model_config, self.tokenizer = load_config(model), load_tokenizer(model)
        self.generation_config = load_generation_config(model)
        override = options["compression"]
        self.compression = checked_compression(self.model_config, self.tokenizer, override, model)
        with _shown_phases() as on_phase:
            parallel = ParallelEngine(
                model,
                options,
                device=self.device,
                tensor_parallel_size=sizes[0],
                data_parallel_size=sizes[1],
                on_phase=on_phase,
            )
        # It has what generating takes: requests in, steps, outputs out.
        self.engine = cast(LLMEngine, parallel)

    @property
    def vocab_size(self) -> int:
        """Rows of the model's embedding: ids below it may be in a prompt."""
        return self.engine.vocab_size

    def shutdown(self) -> None:
        """Give the KV cache's memory back, and end the processes of an engine that has any.

        It generates nothing more; the model's weights are freed with the last reference to it.
        """
        if isinstance(self.engine, ParallelEngine):
            self.engine.shutdown()
            return
        self.engine.close()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache that one live token takes."""
        return self.engine.kv_bytes_per_token

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Complete raw prompts (no chat template).

        Args:
            prompts: One prompt or several, as text or token ids.
            sampling_params: One for all, or one per prompt.

        Returns:
            One output per prompt, in order.
        """
        batch = _as_batch(prompts)
        params = _params_per_prompt(sampling_params, len(batch))
        names = [f"generate-{next(self._ids)}" for _ in batch]
        try:
            self.engine.add_requests(list(zip(names, batch, params, strict=True)), stream=False)
            while not all(name in self._latest for name in names):
                self._step()
        except BaseException:
            for name in names:
                self.engine.abort_request(name)
            raise
        return [self._latest.pop(name) for name in names]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several, through the tokenizer's chat template."""
        conversations: Any = (
            [messages] if messages and isinstance(messages[0], Mapping) else messages
        )
        return self.generate([self.prompt_ids(c) for c in conversations], sampling_params)

    def stream(
        self, prompt: Prompt | Sequence[Message], sampling_params: SamplingParams | None = None
    ) -> Iterator[RequestOutput]:
        """Yield the request's state after each engine step; leaving the loop aborts the request."""
        is_chat = not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
        request: Any = self.prompt_ids(cast(Any, prompt)) if is_chat else prompt
        name = f"stream-{next(self._ids)}"
        self.engine.add_request(name, request, sampling_params)
        try:
            finished = False
            while not finished:
                if name not in self._latest:
                    self._step()
                output = self._latest.pop(name, None)
                if output is not None:
                    finished = output.finished
                    yield output
        finally:
            self.engine.abort_request(name)
            self._latest.pop(name, None)

    def _step(self) -> None:
        """Step the engine, which other streams may share, and keep everyone's newest output."""
        for output in self.engine.step():
            self._latest[output.request_id] = output

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of `prompt_text`; special tokens are the chat template's own."""
        ids: list[int] = self.tokenizer(self.prompt_text(messages), add_special_tokens=False)[
            "input_ids"
        ]
        return ids

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """Render a conversation up to where reasoning begins."""
        begin = self.compression.reasoning_begin if self.compression else ""
        return render_prompt(self.tokenizer, messages, begin)


@contextmanager
def _shown_phases() -> Iterator[Callable[[str], None]]:
    """Show a line that says what is being done, and give what changes it."""
    with Console(stderr=True).status("starting") as status:
        yield lambda words: status.update(f"starting: {words}")


def _as_batch(prompts: Any) -> list[Prompt]:
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int)):
        return [prompts]
    return list(prompts)


def _params_per_prompt(params: Any, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise RequestError(
            f"{len(params)} sampling_params for {count} prompts; give one, or one per prompt."
        )
    return list(params)
