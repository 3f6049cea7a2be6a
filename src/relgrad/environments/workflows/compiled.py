"""A workflow as a Python program of the operators: what a person reads, and what a sandbox could run."""

from __future__ import annotations

from relgrad.environments.workflows.language import Step


def python(step: Step) -> str:
    """The source of `async def workflow(operators)`, which does what execute.run does, question by question."""
    lines: list[str] = []
    result = _write(step, "0", "    ", lines)
    return "\n".join(["async def workflow(operators):", *lines, f"    return {result}", ""])


def _write(step: Step, at: str, indent: str, lines: list[str]) -> str:
    """Write the statements of a step; the name that its solution has then."""
    name = f"solution_{at.replace('.', '_')}"
    if step.operator in ("verify", "test"):
        first = _write(step.inputs[0], f"{at}.0", indent, lines)
        check = f"verify({first}, {at!r})" if step.operator == "verify" else f"test({first})"
        lines += [f"{indent}{name} = {first}", f"{indent}if not await operators.{check}:"]
        second = _write(step.inputs[1], f"{at}.1", f"{indent}    ", lines)
        lines.append(f"{indent}    {name} = {second}")
        return name
    inputs = [_write(inner, f"{at}.{number}", indent, lines) for number, inner in enumerate(step.inputs)]
    arguments = [f"[{', '.join(inputs)}]"] if step.operator == "ensemble" else inputs
    if step.operator not in ("ensemble", "extract"):
        arguments.append(repr(step.prompt))
    if step.operator != "extract":
        arguments.append(repr(at))
    lines.append(f"{indent}{name} = await operators.{step.operator}({', '.join(arguments)})")
    return name
