"""Workflows of AFlow's workspaces (`graph.py` and `prompt.py` of a round), read by their syntax trees and never executed.

Understood is what AFlow's optimizer writes at its plainest: operators awaited in `Workflow.__call__`, their results named, appended
to lists, in loops of fixed length, and one of them returned. Anything else is refused with its line, since a workflow that is
almost another would be no import.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.environments.workflows.language import Step, canonical

MOST_TURNS = 32
PARTS = ("response", "answer", "solution", "output", "result", "code", "feedback", "review_result")
"""Keys of AFlow's results that stand for the solution as a whole."""


def read_round(folder: Path) -> Step:
    """The workflow of a round's folder. Raises RelgradError."""
    graph, prompts = folder / "graph.py", folder / "prompt.py"
    if not graph.is_file():
        rounds = sorted(str(path.parent) for path in folder.glob("**/round_*/graph.py"))[:5]
        hint = f"; there are {', '.join(rounds)}" if rounds else ""
        raise RelgradError(f"{folder} holds no graph.py: give the folder of a round, workflows/round_1{hint}")
    texts = _constants(_tree(prompts)) if prompts.is_file() else {}
    for node in ast.walk(_tree(graph)):
        if isinstance(node, ast.ClassDef) and node.name == "Workflow":
            return _Reader(graph, texts).workflow(node)
    raise RelgradError(f"{graph} has no class Workflow")


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise RelgradError(f"{path} is no Python: {error}") from None


def _constants(tree: ast.Module) -> dict[str, str]:
    """The names that a module gives to texts."""
    texts: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            texts |= {target.id: node.value.value.strip() for target in node.targets if isinstance(target, ast.Name)}
    return texts


@dataclass
class _Reader:
    """Reads one graph. `names` holds what local names stand for: a Step, a list of them, a text, or None for the problem."""

    path: Path
    prompts: Mapping[str, str]
    kinds: dict[str, str] = field(default_factory=dict)
    names: dict[str, Any] = field(default_factory=dict)

    def workflow(self, node: ast.ClassDef) -> Step:
        methods = {m.name: m for m in node.body if isinstance(m, (ast.FunctionDef, ast.AsyncFunctionDef))}
        if "__call__" not in methods:
            raise RelgradError(f"{self.path}: Workflow has no __call__")
        for statement in methods["__init__"].body if "__init__" in methods else []:
            self._operator(statement)
        call = methods["__call__"]
        self.names = {argument.arg: None for argument in call.args.args}
        result = self._run(call.body)
        if not isinstance(result, Step):
            raise self._refused(call, "returns no solution of an operator")
        return canonical(result)

    def _operator(self, node: ast.stmt) -> None:
        """`self.custom = operator.Custom(self.llm)`: what an attribute of the workflow is."""
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            kind = node.value.func.attr if isinstance(node.value.func, ast.Attribute) else ast.unparse(node.value.func)
            for target in node.targets:
                if isinstance(target, ast.Attribute):
                    self.kinds[target.attr] = kind

    def _run(self, body: list[ast.stmt]) -> Any:
        """Execute statements on symbols; what they return, or None where they end without."""
        for node in body:
            match node:
                case ast.Return(value=ast.Tuple(elts=[first, *_])) | ast.Return(value=ast.expr() as first):
                    return self._value(first)
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self.names[name] = self._value(value)
                case ast.For(iter=turns, body=inner, orelse=[]):
                    for _ in range(self._turns(turns)):
                        self._run(inner)
                case ast.Expr(value=ast.Constant()):
                    continue
                case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="append"), args=[item])):
                    if not isinstance(self.names.get(name), list):
                        raise self._refused(node, f"{name} is no list")
                    self.names[name].append(self._value(item))
                case _:
                    raise self._refused(node)
        return None

    def _turns(self, node: ast.expr) -> int:
        match node:
            case ast.Call(func=ast.Name(id="range"), args=[ast.Constant(value=int(count))]) if 0 < count <= MOST_TURNS:
                return count
        raise self._refused(node, f"loops are over range(n), with a number n of at most {MOST_TURNS}")

    def _value(self, node: ast.expr) -> Any:
        """A Step, a list of Steps, a text, or None for the problem."""
        match node:
            case ast.Await(value=ast.Call(func=ast.Attribute(attr=name)) as call):
                return self._asked(call, self.kinds.get(name, name))
            case ast.Subscript(value=inner, slice=ast.Constant(value=str(key))) if key in PARTS:
                return self._value(inner)
            case ast.Call(func=ast.Attribute(value=inner, attr="get"), args=[ast.Constant(value=str(key)), *_]) if (
                key in PARTS
            ):
                return self._value(inner)
            case ast.Name(id=name) if name in self.names:
                return self.names[name]
            case ast.Attribute(attr=name) if name in self.prompts:
                return self.prompts[name]
            case ast.Constant(value=str(text)):
                return text
            case ast.List(elts=items):
                return [self._value(item) for item in items]
            case ast.ListComp(elt=item, generators=[ast.comprehension(iter=turns, ifs=[])]):
                return [self._value(item) for _ in range(self._turns(turns))]
            case ast.JoinedStr() | ast.BinOp(op=ast.Add()):
                return self._joined(node)
        raise self._refused(node)

    def _joined(self, node: ast.expr) -> Any:
        """A text put together of several: the one solution in it, else the texts, else the problem."""
        inner = [part.value for part in ast.walk(node) if isinstance(part, ast.FormattedValue)]
        if isinstance(node, ast.BinOp):
            inner = [node.left, node.right]
        values = [self._value(part) for part in inner]
        steps = [value for value in values if isinstance(value, Step)]
        if len(steps) > 1:
            raise self._refused(node, "two solutions in one text")
        texts = [value for value in values if isinstance(value, str)]
        return steps[0] if steps else "\n".join(texts) if texts and None not in values else None

    def _asked(self, call: ast.Call, kind: str) -> Step:
        """The step of an operator's call."""
        given = {word.arg: self._value(word.value) for word in call.keywords if word.arg not in ("entry_point", "mode")}
        given |= {str(number): self._value(argument) for number, argument in enumerate(call.args)}
        solutions = [value for value in given.values() if isinstance(value, Step)]
        prompt = given.get("instruction") or ""
        if not isinstance(prompt, str):
            raise self._refused(call, "an instruction is a text of prompt.py")
        match kind:
            case "Custom" | "CustomCodeGenerate" | "AnswerGenerate" if solutions:
                return Step("format", (solutions[0],), prompt)
            case "Custom" | "CustomCodeGenerate":
                return Step("generate", (), prompt)
            case "AnswerGenerate":
                return Step("generate", (), "careful")
            case "Programmer":
                return Step("program")
            case "ScEnsemble" | "MdEnsemble":
                items = next((value for value in given.values() if isinstance(value, list)), [])
                if items and all(isinstance(item, Step) for item in items):
                    return Step("ensemble", tuple(items))
            case "Test" if solutions:
                return Step("test", (solutions[0], solutions[0]))
            case "Review" if solutions:
                return Step("review", (solutions[0],))
            case "Revise" if solutions:
                reviewed = next((step for step in reversed(solutions) if step.operator == "review"), None)
                return Step("revise", (reviewed or Step("review", (solutions[0],)),))
            case "Format" if solutions:
                return Step("format", (solutions[0],))
        raise self._refused(call, f"the operator {kind!r} with these arguments")

    def _refused(self, node: ast.AST, what: str = "") -> RelgradError:
        shown = ast.unparse(node).splitlines()[0][:60]
        return RelgradError(
            f"{self.path}, line {getattr(node, 'lineno', '?')}: cannot be brought into a workflow here: {what or shown!r}. "
            "Understood are operators whose results are named, appended in loops of fixed length, and returned"
        )
