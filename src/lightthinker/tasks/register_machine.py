"""Tracing a small register machine; every thought writes out the machine's whole state.

    Run mod 100:
    A=12,B=7,C=30,N=2
    1:A+=B           a thought: 1:A+=B;A=12;B=7:12+7=19;A=19,B=7,C=30,N=2;goto 2
    2:if(A>C)goto 4
    3:C*=7
    4:N-=1;if(N>0)goto 1
    5:print(A+C)

A thought needs the one before it and nothing else (Markov). It is the control: here a window on
recent tokens does as well as gists do.
"""

import re
from dataclasses import dataclass
from random import Random

from lightthinker.tasks.draws import (
    Range,
    between,
    check_choices,
    check_range,
    happens,
    pick,
    sample,
)
from lightthinker.tasks.problem import Draft, TaskFamily
from lightthinker.tasks.scratch import add_up

REGISTERS = "ABCDEFGH"
COUNTER = "N"
MAX_JUMPS = 2
MIN_LINES_WITH_JUMP = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisterMachineSize:
    """How large a machine is and how long it runs.

    Attributes:
        num_registers: Registers beside the loop counter.
        num_lines: Lines of the loop, with the one that closes it.
        num_steps: Lines to execute, about: rounded to whole rounds of the loop.
        num_queried: Registers that the last line adds, if there are as many.
        moduli: Moduli to choose from, equally likely; repeat one to weight it.
    """

    num_registers: Range
    num_lines: Range
    num_steps: Range
    num_queried: Range = (2, 3)
    moduli: tuple[int, ...] = (100,)

    def __post_init__(self) -> None:
        check_range("num_registers", self.num_registers, at_least=2, at_most=len(REGISTERS))
        check_range("num_lines", self.num_lines, at_least=1)
        check_range("num_steps", self.num_steps, at_least=1)
        check_range("num_queried", self.num_queried, at_least=2, at_most=3)
        check_choices("moduli", self.moduli, at_least=10)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Instruction:
    """`register op= operand`; with op `>` a jump to line `target` if register > operand."""

    register: str
    op: str
    operand: str
    target: int = 0

    def __str__(self) -> str:
        if self.op == ">":
            return f"if({self.register}>{self.operand})goto {self.target}"
        if self.register == COUNTER:
            return f"{COUNTER}-=1;if({COUNTER}>0)goto 1"
        return f"{self.register}{self.op}={self.operand}"


def build(rng: Random, size: RegisterMachineSize) -> Draft:
    """Draw a machine and trace its run."""
    modulus = pick(rng, size.moduli)
    registers = list(REGISTERS[: between(rng, size.num_registers)])
    num_lines = between(rng, size.num_lines)
    num_rounds = round(between(rng, size.num_steps) / num_lines)
    num_rounds = min(max(1, num_rounds), modulus - 1)
    lines = _draw_lines(rng, registers, num_lines, modulus, loops=num_rounds > 1)
    state = {name: between(rng, (2, modulus - 1)) for name in registers}
    if num_rounds > 1:
        state[COUNTER] = num_rounds
    header = [f"Run mod {modulus}:", _show(state)]

    thoughts: list[str] = []
    line = 1
    while line <= len(lines):
        instruction = lines[line - 1]
        work, line_after = _execute(instruction, line, state, modulus)
        thoughts.append(f"{line}:{instruction};{work};{_show(state)};goto {line_after}")
        line = line_after

    queried = _draw_query(rng, registers, lines, between(rng, size.num_queried))
    query = f"{line}:print({'+'.join(queried)})"
    work, total = add_up([state[name] for name in queried])
    known = ";".join(f"{name}={state[name]}" for name in queried)
    thoughts.append(f"{query};{known}:{work};print={total}")
    program = [f"{number}:{instruction}" for number, instruction in enumerate(lines, start=1)]
    return Draft(
        question="\n".join([*header, *program, query]),
        thoughts=tuple(thoughts),
        value=str(total),
        chance=1 / modulus,
        lookups=tuple((reader, reader - 1) for reader in range(1, len(thoughts))),
    )


def _show(state: dict[str, int]) -> str:
    return ",".join(f"{name}={value}" for name, value in state.items())


def _draw_lines(
    rng: Random, registers: list[str], num_lines: int, modulus: int, *, loops: bool
) -> list[_Instruction]:
    """Draw a loop whose lines mostly read what the line before them wrote."""
    num_body = num_lines - 1 if loops else num_lines
    targets = sample(rng, registers, len(registers))
    lines: list[_Instruction] = []
    num_jumps, last = 0, targets[-1]
    while len(lines) < num_body:
        can_jump = 0 < len(lines) < num_body - 1 and lines[-1].op != ">"
        can_jump = can_jump and num_jumps < MAX_JUMPS and num_body >= MIN_LINES_WITH_JUMP
        if can_jump and happens(rng, 0.4):
            other = pick(rng, [name for name in registers if name != last])
            lines.append(_Instruction(register=last, op=">", operand=other, target=len(lines) + 3))
            num_jumps += 1
            continue
        register = targets[(len(lines) - num_jumps) % len(targets)]
        operand = last
        if operand == register or happens(rng, 0.3):
            operand = pick(rng, [name for name in registers if name != register])
        if not (lines and lines[-1].operand.isdigit()) and happens(rng, 0.3):
            lines.append(_draw_constant_update(rng, register, modulus))
        else:
            lines.append(_Instruction(register=register, op=pick(rng, "+-"), operand=operand))
        last = register
    if loops:
        lines.append(_Instruction(register=COUNTER, op="-", operand="1"))
    return lines


def _draw_query(
    rng: Random, registers: list[str], lines: list[_Instruction], count: int
) -> list[str]:
    """Draw registers to add, those first that the program changes."""
    changed = {instruction.register for instruction in lines if instruction.op != ">"}
    names = sample(rng, registers, len(registers))
    names.sort(key=lambda name: name not in changed)
    return names[:count]


def _draw_constant_update(rng: Random, register: str, modulus: int) -> _Instruction:
    if happens(rng, 0.5):
        return _Instruction(register=register, op="*", operand=pick(rng, "379"))
    number = between(rng, (2, modulus - 1))
    return _Instruction(register=register, op="+", operand=str(number))


def _execute(
    instruction: _Instruction, line: int, state: dict[str, int], modulus: int
) -> tuple[str, int]:
    """Change the state; return the written work and the next line."""
    register, op, operand = instruction.register, instruction.op, instruction.operand
    left = state[register]
    right = state[operand] if operand in state else int(operand)
    known = f"{register}={left}" + (f";{operand}={right}" if operand in state else "")
    if op == ">":
        relation = ">" if left > right else "<" if left < right else "="
        return f"{known}:{left}{relation}{right}", instruction.target if left > right else line + 1
    if register == COUNTER:
        state[COUNTER] = left - 1
        relation = ">" if left > 1 else "="
        return f"{known}:{left}-1={left - 1},{left - 1}{relation}0", 1 if left > 1 else line + 1
    if op == "-" and left < right:
        left += modulus
    result = {"+": left + right, "-": left - right, "*": left * right}[op]
    state[register] = result % modulus
    return f"{known}:{left}{op}{right}={result}", line + 1


def solve(question: str) -> str:
    """Run the machine."""
    header, start, *program, query = question.split("\n")
    modulus = int(re.findall(r"\d+", header)[0])
    state = {name: int(value) for name, value in re.findall(r"(\w)=(\d+)", start)}
    pointer = 0

    def value(term: str) -> int:
        return int(term) if term.isdigit() else state[term]

    while pointer < len(program):
        _, _, line = program[pointer].partition(":")
        pointer += 1
        for left, op, right in re.findall(r"(\w)([+*-])=(\w+)", line):
            change = value(right) if op == "+" else -value(right)
            result = state[left] * value(right) if op == "*" else state[left] + change
            state[left] = result % modulus
        for left, right, target in re.findall(r"if\((\w)>(\w)\)goto (\d+)", line):
            if state[left] > value(right):
                pointer = int(target) - 1
    return str(sum(state[name] for name in re.findall(r"[A-Z]", query)))


FAMILY = TaskFamily(
    name="register_machine",
    sizes={
        "tiny": RegisterMachineSize(
            num_registers=(2, 2),
            num_lines=(2, 3),
            num_steps=(2, 2),
            num_queried=(2, 2),
            moduli=(10,),
        ),
        "demo": RegisterMachineSize(num_registers=(3, 4), num_lines=(3, 4), num_steps=(4, 6)),
        "standard": RegisterMachineSize(num_registers=(3, 4), num_lines=(4, 6), num_steps=(9, 11)),
        "long": RegisterMachineSize(num_registers=(4, 5), num_lines=(5, 7), num_steps=(42, 46)),
        "mixed": RegisterMachineSize(
            num_registers=(2, 4), num_lines=(2, 6), num_steps=(2, 12), moduli=(10, 100, 100, 100)
        ),
        "4k": RegisterMachineSize(num_registers=(4, 5), num_lines=(5, 7), num_steps=(76, 82)),
        "8k": RegisterMachineSize(num_registers=(4, 5), num_lines=(5, 7), num_steps=(152, 162)),
    },
    build=build,
    solve=solve,
)
