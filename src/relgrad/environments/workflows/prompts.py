"""What operators say to the model. A workflow names a prompt, or carries its text; the frame around it is the operator's."""

from __future__ import annotations

from collections.abc import Mapping

ANSWER = "answer:"
"""What stands before the answer in a solution."""

PROMPTS: Mapping[str, str] = {
    "plain": "Solve the problem.",
    "careful": "Think step by step, check every step, and only then give the answer.",
    "brief": "Give the answer at once, without any explanation.",
    "list_facts": "First list what is given and what is asked for; then solve the problem.",
}
"""Named prompts."""

USUAL = {
    "generate": PROMPTS["plain"],
    "program": "Write a Python program that solves the problem.",
    "review": "Check the solution: is its answer right? Look for errors in every step.",
    "revise": "Write a better solution, which meets the objection.",
    "format": "Write the solution again, short and clear.",
}
"""What an operator says where the workflow gives it no prompt."""

FRAMES = {
    "generate": "{prompt}\n\nProblem: {problem}\n\nEnd with a line that begins with `answer:`.",
    "program": "{prompt}\n\nProblem: {problem}\n\nReply with one program, which prints the answer and nothing else.",
    "review": "{prompt}\n\nProblem: {problem}\n\nSolution: {solution}\n\nBegin with the one word right or wrong.",
    "revise": (
        "{prompt}\n\nProblem: {problem}\n\nSolution: {solution}\n\nObjection: {objection}\n\n"
        "End with a line that begins with `answer:`."
    ),
    "verify": (
        "Problem: {problem}\n\nSolution: {solution}\n\nIs the answer right? Reply with the one word right or wrong."
    ),
    "format": ("{prompt}\n\nProblem: {problem}\n\nSolution: {solution}\n\nEnd with a line that begins with `answer:`."),
}


def message(operator: str, prompt: str, **parts: str) -> str:
    """The text of one question. `prompt` is a name, a text, or empty; `parts` are the frame's."""
    worded = PROMPTS.get(prompt, prompt) or USUAL.get(operator, "")
    return FRAMES[operator].format(prompt=worded, **parts)
