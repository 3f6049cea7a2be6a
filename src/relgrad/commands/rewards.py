"""`relgrad rewards`: attacks on a reward for replies ranked against good ones, and a pass judge against labels by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from relgrad.core.protocols import Reward
    from relgrad.rewards.replies.lab import Result

app = typer.Typer(no_args_is_help=True)


@app.callback()
def rewards() -> None:
    """Rewards in the laboratory: what they make of texts that try to please them."""


@app.command()
def lab(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the reward, e.g. weights.length=0.1"),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="The reward: replies, another kind, or your own .py file.")
    ] = "replies",
    half: Annotated[
        str,
        typer.Option("--half", help="tuning: attacks the built-in reward was tuned on; held_out: the others; both."),
    ] = "both",
    texts: Annotated[int, typer.Option("--texts", min=0, help="Breaches to show with their texts.")] = 10,
    as_json: Annotated[
        bool, typer.Option("--json", help="Every text with its score and parts, one JSON object per line.")
    ] = False,
) -> None:
    """Score 24 kinds of attack on fifteen posts beside good replies, by a reward that reads the column `tweet`.

    Example: [bold]relgrad rewards lab --half held_out gates.order=null[/bold]
    """
    from relgrad.commands.printing import print_json
    from relgrad.core.errors import RelgradError
    from relgrad.rewards.replies import lab as laboratory

    halves: dict[str, laboratory.Half | None] = {"both": None, **{name: name for name in laboratory.HALVES}}
    if half not in halves:
        raise RelgradError(f"rewards lab: --half={half}; it is one of {', '.join(halves)}")
    results = laboratory.examine(_reward(kind, settings or []), halves[half])
    if as_json:
        for result in results:
            print_json(_record(result))
    else:
        _show(results, texts)


@app.command()
def agreement(
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the reward, e.g. alike=0.3")
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="The reward: sensible_reply, another kind, or your own .py file.")
    ] = "sensible_reply",
    threshold: Annotated[
        float, typer.Option("--threshold", help="A reply passes where the reward is at least this, from 0 to 1.")
    ] = 0.5,
    texts: Annotated[int, typer.Option("--texts", min=0, help="Replies to show on which they differ.")] = 5,
    show_guideline: Annotated[
        bool, typer.Option("--guideline", help="Only show what the labels were given by, and by whom.")
    ] = False,
) -> None:
    """How far a pass judge agrees with a hundred replies labelled by hand: the share of equal verdicts, and Cohen's kappa.

    Example: [bold]relgrad rewards agreement --kind replies --threshold 0.6[/bold]
    """
    from relgrad.core.errors import RelgradError
    from relgrad.monitor.console import printable
    from relgrad.rewards.sensible_reply import agreement as labels

    if not 0 <= threshold <= 1:
        raise RelgradError(
            f"rewards agreement: --threshold {threshold:g}: give a number from 0 to 1, such as 0.5; a reply passes from there on"
        )
    if show_guideline:
        for name, text in labels.guideline().items():
            print(f"{name.replace('_', ' ')}: {text}\n")
        return
    rows = labels.labelled()
    verdicts = labels.verdicts_of(_reward(kind, settings or []), threshold, rows)
    for source in (None, *dict.fromkeys(row.source for row in rows)):
        own = [(row, verdict) for row, verdict in zip(rows, verdicts, strict=True) if source in (None, row.source)]
        figures = labels.agreement([row for row, _ in own], [verdict for _, verdict in own])
        print(
            f"{source or 'all':8} {figures.equal} of {figures.count} equal ({figures.share:.2f}), kappa {figures.kappa:.2f}; "
            f"labelled to pass {figures.labels}, passed {figures.verdicts}"
        )
    if unscored := sum(verdict is None for verdict in verdicts):
        print(f"left out: {unscored} without a score")
    differ = [(row, v) for row, v in zip(rows, verdicts, strict=True) if v is not None and v != row.passes]
    for row, verdict in differ[:texts]:
        print(f"{'passed' if verdict else 'failed'}, labelled otherwise: {printable(row.reply)}")


def _reward(kind: str, settings: Sequence[str]) -> Reward:
    """A reward of a kind with these settings. Raises RelgradError for one that is not there, or a setting it does not have."""
    from relgrad.core import registry
    from relgrad.core.errors import RelgradError
    from relgrad.core.settings import RewardComponent, settings_of
    from relgrad.runs.recipe import assign
    from relgrad.runs.yaml_text import read_yaml

    options: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise RelgradError(f"rewards: {setting!r} is no setting; write KEY=VALUE, for example weights.length=0.1")
        assign(options, key.split("."), read_yaml(value, f"rewards: {setting!r}"))
    module = registry.find("rewards", kind)
    component = RewardComponent(**{**options, "kind": kind})
    reward: Reward = module.build(settings_of(component, module.Settings, f"reward {kind}"))
    return reward


def _record(result: Result) -> dict[str, Any]:
    score = result.score
    return {**vars(result.case), "score": score.value, "why": score.why, "parts": dict(score.parts)}


def _show(results: list[Result], texts: int) -> None:
    """A table of kinds, the worst breaches, and in how many pairs of an attack and a good reply the good one scores more."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from relgrad.monitor.console import printable
    from relgrad.rewards.replies import lab as laboratory

    console = Console(highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("kind")
    for name in ("texts", "mean", "lowest", "highest", "≥ worst good", "≥ median good"):
        table.add_column(name, justify="right")
    for row in laboratory.table(results):
        figures = (f"{row[name]:.3f}" for name in ("mean", "lowest", "highest"))
        counts = ("", "") if row["kind"] == "good" else (str(row["above_worst"]), str(row["above_median"]))
        table.add_row(row["kind"], str(row["texts"]), *figures, *counts)
    console.print(table)
    breaches = laboratory.breaches(results)
    for result in breaches[:texts]:
        console.print(Text(f"{result.score.value:.3f}  {result.case.kind}: {printable(result.case.text)}"))
    attacks = sum(result.case.kind != "good" for result in results)
    console.print(f"{attacks - len(breaches)} of {attacks} attacks score below every good reply to their post")
    console.print(
        f"{laboratory.ordered(results):.1%} of the pairs of an attack and a good reply to the same post are in order"
    )
