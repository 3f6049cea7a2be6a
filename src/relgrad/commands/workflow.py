"""`relgrad workflow`: workflows looked at, brought in, and executed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from relgrad.environments.workflows.execute import Outcome

app = typer.Typer(
    no_args_is_help=True, help="Workflows: look at one, bring one in from AFlow, execute one on a problem."
)

Source = Annotated[str, typer.Argument(metavar="FILE_OR_TEXT", help="A file with a workflow, or the workflow itself.")]
Runnable = Annotated[
    str,
    typer.Argument(
        metavar="FILE_OR_TEXT",
        help="A file with a workflow, the workflow itself, or a .py file with "
        "`async def workflow(operators)`, which runs in the sandbox.",
    ),
]


@app.command()
def run(
    source: Runnable,
    problem: Annotated[
        list[str],
        typer.Option("--problem", "-p", help="A problem's text, or the id of one of the search's; repeatable."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="The back end, e.g. kind=endpoint url=http://host/v1 model=NAME; and temperature, max_tokens, programs, "
            "where they are not to be the search's",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="What replies are drawn from.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per problem, with every call.")] = False,
) -> None:
    """Execute a workflow on problems, with the back end and the settings that its search had, or others.

    Ends with an error where a problem has no answer.

    Example: [bold]relgrad workflow run best.json --problem "What is 17 times 23?"[/bold]
    """
    from relgrad.commands.bar import with_bar
    from relgrad.commands.printing import print_json
    from relgrad.core.errors import RelgradError
    from relgrad.runs.workflows import execute_on

    outcomes = with_bar(
        "loading the back end",
        lambda progress: list(execute_on(source, problem, settings or [], seed, progress)),
    )
    for text, outcome in outcomes:
        usage = outcome.usage
        if as_json:
            print_json({"problem": text, **outcome.record(), "usage": list(usage)})
            continue
        print(f"problem  {text}")
        for call in outcome.calls:
            print(f"  {call.operator:9} {' '.join(call.text.split())[:100]}")
        reason = without_answer(outcome)
        print(f"answer   {f'none: {reason}' if reason else outcome.answer}")
        print(f"cost     {usage.calls} calls, {usage.tokens} tokens, {usage.money:g} money")
    if reasons := [reason for _, outcome in outcomes if (reason := without_answer(outcome))]:
        raise RelgradError(f"{len(reasons)} of {len(outcomes)} problems have no answer; of the first: {reasons[0]}")


def without_answer(outcome: Outcome) -> str:
    """Why a workflow gave no answer; "" where it gave one."""
    return outcome.failure or ("" if outcome.answer.strip() else "the workflow's last call wrote none")


@app.command()
def show(source: Source) -> None:
    """Show a workflow in its canonical form, and as a Python program of the operators.

    Example: [bold]relgrad workflow show "revise(review(generate(careful)))"[/bold]
    """
    from relgrad.environments.workflows.compiled import python
    from relgrad.runs.workflows import workflow_of

    step, _ = workflow_of(source)
    print(f"{step.text}\n# {step.hash}: {step.size} operators, at most {step.calls} calls\n")
    print(python(step), end="")


@app.command(name="import")
def bring(
    folder: Annotated[Path, typer.Argument(help="The folder of a round: graph.py and prompt.py.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file to write; otherwise it is printed.")] = None,
) -> None:
    """Bring in a workflow of AFlow. Its files are read, and never executed.

    Example: [bold]relgrad workflow import workspace/GSM8K/workflows/round_3 --out start.json[/bold]
    """
    from relgrad.environments.workflows import aflow, file

    step = aflow.read_round(folder)
    if out is None:
        print(step.text)
        return
    file.write(out, step, {"from": str(folder)})
    print(out)


@app.command()
def prior(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of searches, e.g. runs/my-search.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the prior is written.")],
) -> None:
    """Learn from earlier searches which edits of a workflow are likely to help; `search.edit_prior=FILE` uses it.

    Example: [bold]relgrad workflow prior runs/search-0 runs/search-1 --out prior.json[/bold]
    """
    from relgrad.core.run_folder import require_writable_file
    from relgrad.search.prior import learn, write

    require_writable_file(out)
    record = learn(runs)
    write(out, record)
    for types, kinds in record["gains"].items():
        best = sorted(kinds.items(), key=lambda pair: -pair[1][0])[:3]
        shown = "; ".join(f"{kind} {gain:+.3f} ({count})" for kind, (gain, count) in best)
        print(f"{types or 'all types':20} {shown}")
    print(f"{record['edits']} edits: {out}")
