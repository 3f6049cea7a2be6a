"""The language of workflows: one expression of operators. It is interpreted here (execute.py); no generated Python runs.

    workflow = "generate" "(" [prompt] ")"                 ask for a solution
             | "program" "(" [prompt] ")"                  ask for a program, and run it
             | "ensemble" "(" item "," item { "," item } ")"   the answer that most give; ties are drawn
             | "revise" "(" review [ "," prompt ] ")"      where the review objects, ask for a better solution
             | review
             | "verify" "(" workflow "," workflow ")"      the first where the model finds it right, else the second
             | "test" "(" workflow "," workflow ")"        the first where it passes the problem's tests, else the second
             | "format" "(" workflow [ "," prompt ] ")"    ask to word the solution anew
             | "extract" "(" workflow ")"                  the solution's answer alone, without asking
    review   = "review" "(" workflow [ "," prompt ] ")"    ask whether the solution is right, and what is wrong
    item     = workflow | number "*" workflow
    prompt   = name | string

For example `verify(program(), revise(review(ensemble(3 * generate(careful)))))`. Every workflow has one canonical form: the items
of an ensemble in order, no operator without effect (an ensemble of one, the extract of an extract).
"""

from __future__ import annotations

import ast
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from relgrad.core.errors import RelgradError
from relgrad.core.whole_text import half_character
from relgrad.environments.workflows.prompts import PROMPTS

LARGEST, DEEPEST, LONGEST = 64, 12, 20_000
"""Operators of a workflow, how deep they may stand in each other, and characters of its text."""


@dataclass(frozen=True)
class Signature:
    """How many workflows an operator takes, whether it has a prompt, and whether it asks the model."""

    fewest: int
    most: int
    prompt: bool
    asks: bool


OPERATORS = {
    "generate": Signature(0, 0, True, True),
    "program": Signature(0, 0, True, True),
    "ensemble": Signature(1, 32, False, False),
    "review": Signature(1, 1, True, True),
    "revise": Signature(1, 1, True, True),
    "verify": Signature(2, 2, False, True),
    "test": Signature(2, 2, False, False),
    "format": Signature(1, 1, True, True),
    "extract": Signature(1, 1, False, False),
}
LEAVES = tuple(name for name, signature in OPERATORS.items() if not signature.most)


class NoWorkflow(RelgradError):
    """A text that is no workflow; the message says what was received and what is allowed."""


@dataclass(frozen=True)
class Step:
    """One operator with what stands in it. `prompt` is a name of PROMPTS or a text of its own; "": the operator's usual one."""

    operator: str
    inputs: tuple[Step, ...] = ()
    prompt: str = ""

    @cached_property
    def text(self) -> str:
        """The workflow as it is written, in one line."""
        parts = [f"{count} * {text}" if count > 1 else text for text, count in self._items()]
        if self.prompt:
            parts.append(self.prompt if self.prompt in PROMPTS else repr(self.prompt))
        return f"{self.operator}({', '.join(parts)})"

    def _items(self) -> Iterator[tuple[str, int]]:
        for text, same in itertools.groupby(step.text for step in self.inputs):
            if self.operator == "ensemble":
                yield text, len(list(same))
            else:
                yield from ((text, 1) for _ in same)

    @cached_property
    def size(self) -> int:
        """How many operators it has."""
        return 1 + sum(step.size for step in self.inputs)

    @cached_property
    def depth(self) -> int:
        return 1 + max((step.depth for step in self.inputs), default=0)

    @property
    def calls(self) -> int:
        """The most requests one execution makes."""
        return OPERATORS[self.operator].asks + sum(step.calls for step in self.inputs)

    @cached_property
    def hash(self) -> str:
        """A name of the canonical form; prompts count by their texts."""
        spelled = _spelled(canonical(self))
        return hashlib.sha256(spelled.encode()).hexdigest()[:16]


def _spelled(step: Step) -> str:
    prompt = PROMPTS.get(step.prompt, step.prompt)
    return f"{step.operator}({','.join(map(_spelled, step.inputs))};{prompt!r})"


def canonical(step: Step) -> Step:
    """The one form of all workflows that differ only in how they are written."""
    inputs = tuple(map(canonical, step.inputs))
    prompt = "" if step.prompt == "plain" and step.operator in LEAVES else step.prompt
    if step.operator == "ensemble":
        inputs = tuple(sorted(inputs, key=lambda item: (item.size, item.text)))
        if len(inputs) == 1:
            return inputs[0]
    if step.operator == "extract" and inputs[0].operator == "extract":
        return inputs[0]
    return Step(step.operator, inputs, prompt)


def parse(text: str) -> Step:
    """The workflow of a text, in canonical form. Raises NoWorkflow."""
    if len(text) > LONGEST:
        raise NoWorkflow(f"a workflow of {len(text)} characters; at most {LONGEST} are read")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NoWorkflow(f"no workflow: {_first_line(error)}. It begins {text.strip()[:60]!r}; {_allowed()}") from None
    step = _step(tree.body, 1)
    if step.size > LARGEST:
        raise NoWorkflow(f"a workflow of {step.size} operators; at most {LARGEST} are allowed")
    return canonical(step)


def _step(node: ast.expr, depth: int) -> Step:
    if depth > DEEPEST:
        raise NoWorkflow(f"operators stand more than {DEEPEST} deep in each other")
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise NoWorkflow(f"no operator: {ast.unparse(node)[:60]!r}; {_allowed()}")
    name = node.func.id
    if name not in OPERATORS:
        raise NoWorkflow(f"unknown operator {name!r}; there are {', '.join(OPERATORS)}")
    if node.keywords:
        raise NoWorkflow(f"{name}: arguments have no names here (received {node.keywords[0].arg!r})")
    inputs: list[Step] = []
    prompt: str | None = None
    for argument in node.args:
        if prompt is not None:
            raise NoWorkflow(f"{name}: nothing stands behind the prompt (received {ast.unparse(argument)[:60]!r})")
        if isinstance(argument, (ast.Name, ast.Constant)):
            prompt = _prompt(name, argument)
        else:
            inputs += _repeated(name, argument, depth)
        if len(inputs) > LARGEST:
            raise NoWorkflow(f"{name}: more than {LARGEST} operators; so many are allowed at the most")
    return _checked(Step(name, tuple(inputs), prompt or ""))


def _repeated(name: str, node: ast.expr, depth: int) -> list[Step]:
    """The step of an argument, so many times as is written before it."""
    if not isinstance(node, ast.BinOp):
        return [_step(node, depth + 1)]
    count = node.left.value if isinstance(node.left, ast.Constant) else None
    if name != "ensemble" or not isinstance(node.op, ast.Mult) or type(count) is not int or not 1 <= count <= 32:
        raise NoWorkflow(
            f"{name}: {ast.unparse(node)[:60]!r}; only an ensemble repeats, as in ensemble(3 * generate())"
        )
    return [_step(node.right, depth + 1)] * count


def _prompt(name: str, node: ast.Name | ast.Constant) -> str:
    if not OPERATORS[name].prompt:
        raise NoWorkflow(f"{name} has no prompt (received {ast.unparse(node)[:60]!r})")
    if isinstance(node, ast.Name):
        if node.id not in PROMPTS:
            raise NoWorkflow(
                f"{name}: no prompt is called {node.id!r}; there are {', '.join(PROMPTS)}, or write its text"
            )
        return node.id
    if not isinstance(node.value, str) or not node.value.strip():
        raise NoWorkflow(f"{name}: a prompt is a name or a text (received {node.value!r})")
    if wrong := half_character(node.value):
        raise NoWorkflow(f"{name}: the prompt has {wrong}")
    return node.value


def _checked(step: Step) -> Step:
    signature, count = OPERATORS[step.operator], len(step.inputs)
    if not signature.fewest <= count <= signature.most:
        wanted = (
            str(signature.most) if signature.most == signature.fewest else f"{signature.fewest} to {signature.most}"
        )
        raise NoWorkflow(f"{step.operator} takes {wanted} workflows (received {count}); {_allowed()}")
    if step.operator == "revise" and step.inputs[0].operator != "review":
        raise NoWorkflow(
            f"revise takes a review (received {step.inputs[0].operator}): write revise(review({step.inputs[0].text[:60]}))"
        )
    return step


def _allowed() -> str:
    return "write for example ensemble(3 * generate(careful)) or verify(program(), revise(review(generate())))"


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
