"""A conversation in the terminal: reads lines, answers them with folding thoughts, obeys commands.

Reasoning stays in its turn: later turns are told questions and answers only. Ctrl-C ends the
answer being written, not the program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import closing
from typing import Any, cast

from rich.console import Console
from rich.text import Text

from lightthinker.demo.chat_sources import ChatSource
from lightthinker.demo.meter import printable
from lightthinker.demo.view import show, write
from lightthinker.engine.outputs import CompressionStats
from lightthinker.engine.sampling_params import SamplingParams
from lightthinker.errors import LightThinkerError, suggestion

PROMPT = "\n> "
HELP = {
    "/help": "this list",
    "/compression on|off": "fold thoughts, or reason with full chain-of-thought",
    "/reset": "forget the conversation",
    "/stats": "what the conversation has cost so far",
    "/quit": "end (so does Ctrl-D)",
}


class Conversation:
    """One chat with one model.

    Args:
        source: Who answers.
        params: How to sample.
        console: Where to draw.
        read: Returns the next line for a prompt; raises EOFError at the end.
    """

    def __init__(
        self, source: ChatSource, params: SamplingParams, console: Console,
        read: Callable[[str], str] = input,
    ):  # fmt: skip
        self.source = source
        self.params = params
        self.console = console
        self.read = read
        self.messages: list[dict[str, str]] = []
        self.costs: list[CompressionStats] = []

    def run(self) -> None:
        """Talk until the user leaves."""
        folds = "its thoughts fold" if self.source.compresses else "it does not compress"
        self._say(f"{self.source.name}: {folds}. /help lists the commands.")
        while True:
            try:
                line = self.read(PROMPT).strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._say("\n/quit or Ctrl-D ends the chat.")
                continue
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                self._command(line)
            elif line:
                self.ask(line)

    def ask(self, question: str) -> None:
        """Answer a question, visibly; the conversation goes on whatever happens."""
        messages = [*self.messages, {"role": "user", "content": question}]
        try:
            stream = cast(Any, self.source.stream(messages, self.params))
            with closing(stream):
                completion = show(stream, self.console, hidden=self.source.hidden)
        except KeyboardInterrupt:
            self._say("Stopped. This question is not part of the conversation.")
            return
        except LightThinkerError as error:
            write(self.console, Text(printable(f"error: {error}"), style="red"))
            return
        if completion.stats is not None:
            self.costs.append(completion.stats)
        if answer := self.source.answer(completion):
            self.messages = [*messages, {"role": "assistant", "content": answer}]
        else:
            self._say("No answer came. This question is not part of the conversation.")

    def _command(self, line: str) -> None:
        name, *arguments = line.split()
        if name == "/help":
            for command, text in HELP.items():
                self._say(f"{command:<21}{text}")
        elif name == "/compression":
            self._compression(arguments)
        elif name == "/reset":
            self.messages, self.costs = [], []
            self._say("Forgotten.")
        elif name == "/stats":
            self._stats()
        else:
            names = [command.split()[0] for command in HELP]
            self._say(f"There is no {name}.{suggestion(name, names)} /help lists the commands.")

    def _compression(self, arguments: list[str]) -> None:
        if arguments not in (["on"], ["off"]):
            self._say("Say `/compression on` or `/compression off`.")
        elif arguments == ["on"] and not self.source.compresses:
            self._say(f"{self.source.name} was not trained to compress.")
        else:
            on = arguments == ["on"]
            self.params = dataclasses.replace(self.params, compression=on)
            self._say("Thoughts fold." if on else "Full chain-of-thought.")

    def _stats(self) -> None:
        if not self.costs:
            self._say("Nothing measured yet.")
            return
        costs = self.costs
        peak = max(costs, key=lambda c: c.peak_tokens)
        memory = f" ({peak.kv_bytes_peak / 2**20:.1f} MiB)" if peak.kv_bytes_peak else ""
        self._say(
            f"{len(costs)} answers: {sum(c.num_sampled_tokens for c in costs)} tokens sampled, "
            f"{sum(c.num_thoughts for c in costs)} thoughts, "
            f"{sum(c.tokens_freed for c in costs)} KV tokens freed; peak {peak.peak_tokens} "
            f"KV tokens{memory}, full CoT would have held "
            f"{max(c.full_cot_tokens for c in costs)}."
        )

    def _say(self, text: str) -> None:
        write(self.console, Text(printable(text), style="dim"))
