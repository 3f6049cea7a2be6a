"""`relgrad forms check` and `relgrad forms export`: a site's pages before training, and its cases as prompts and plans."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from relgrad.environments.sites.check import PageReport

Recipe = Annotated[
    str, typer.Argument(help="A recipe whose task is a site: a YAML file, or the name of a built-in one.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, e.g. task.url=http://127.0.0.1:5000")
]


def check(
    recipe: Recipe,
    overrides: Overrides = None,
    most: Annotated[int, typer.Option("--cases", min=1, help="Cases of each page that are executed.")] = 3,
    page: Annotated[list[str] | None, typer.Option("--page", help="Only this page; repeatable.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for check.json and check.html.")] = Path(
        "site-check"
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per page in place of the table.")
    ] = False,
) -> None:
    """Execute a site's own cases on its pages: what is found, what a perfect plan earns, and why not more.

    Example: [bold]relgrad forms check site-quick[/bold]
    """
    from relgrad.commands.bar import tell
    from relgrad.commands.printing import print_json
    from relgrad.core.run_folder import write_atomic
    from relgrad.environments.sites.check import CheckedCase, as_html, check_page
    from relgrad.environments.sites.serving import server_of
    from relgrad.environments.sites.site import Site, site_of

    name, task, kind, weights = _of_recipe(recipe, overrides or [])
    pages: dict[str, tuple[Site, str, list[tuple[str, CheckedCase]]]] = {}
    for part, prompts in kind.parted(task).items():
        for prompt in prompts:
            values = {label: tuple(v) if isinstance(v, list) else v for label, v in prompt.columns["values"].items()}
            path = prompt.columns["page"]
            shown = prompt.family.partition("/")[0] + path
            site = site_of(prompt.columns["site"], weights.timeout)
            pages.setdefault(shown, (site, path, []))[2].append((part, CheckedCase(values, prompt.columns["plan"])))
    _require_pages(page or [], pages)
    reports: list[PageReport] = []
    try:
        for site, _, _ in pages.values():
            server_of(site.settings.key).require()
        chosen = {shown: parts for shown, parts in pages.items() if not page or shown in page}
        for number, (shown, (site, path, cases)) in enumerate(chosen.items()):
            tell(f"page {number + 1} of {len(chosen)}: {shown}")
            parts = ", ".join(dict.fromkeys(part for part, _ in cases))
            worth_here = partial(_worth, weights, site.settings.dates)
            report = check_page(site, path, parts, [one for _, one in cases], most, worth_here)
            report.page = shown
            reports.append(report)
            if as_json:
                print_json(report.plain())
    finally:
        for site, _, _ in pages.values():
            site.chromium.close()
            server_of(site.settings.key).close()
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "check.json", json.dumps([report.plain() for report in reports], indent=1))
    write_atomic(out / "check.html", as_html(name, reports))
    if not as_json:
        _show(reports)
        print(f"\nwith reasons and pictures: {out / 'check.html'}")


def export(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for train.jsonl, validation.jsonl and test.jsonl.")
    ] = Path("site-cases"),
) -> None:
    """Write a site's cases as JSON lines with `condition`, `target`, `url` and `ground_truth_fields`.

    Example: [bold]relgrad forms export site-quick task.plans=sentences[/bold]
    """
    from relgrad.core.run_folder import write_atomic

    _, task, kind, _ = _of_recipe(recipe, overrides or [])
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for part, row in kind.rows(task):
        rows[part].append(row)
    out.mkdir(parents=True, exist_ok=True)
    for part, lines in rows.items():
        write_atomic(out / f"{part}.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        print(f"{out / f'{part}.jsonl'}: {len(lines)}")


def _of_recipe(recipe: str, overrides: Sequence[str]) -> tuple[str, Any, Any, Any]:
    """Name, task's settings, its kind, and the weights of the last stage with a site's reward.

    Raises RelgradError where no task is a site.
    """
    from relgrad.core import registry
    from relgrad.core.errors import RelgradError
    from relgrad.core.settings import settings_of
    from relgrad.rewards.site import Settings as Weights
    from relgrad.runs.build import find_recipe
    from relgrad.runs.recipe import load_recipe
    from relgrad.stages.settings import RewardedStage

    loaded = load_recipe(find_recipe(recipe), overrides)
    tasks = [stage.task for stage in loaded.stages if stage.task.kind in ("site", "sites")]
    if not tasks:
        kinds = ", ".join(sorted({stage.task.kind for stage in loaded.stages}))
        raise RelgradError(
            f"forms: the task of {recipe!r} is {kinds}; `check` and `export` need one with a task of kind site or sites"
        )
    kind = registry.find("tasks", tasks[-1].kind)
    rewards = [reward for stage in loaded.stages if isinstance(stage, RewardedStage) for reward in stage.rewards]
    weights = [settings_of(reward, Weights, "rewards") for reward in rewards if reward.kind == "site"]
    return loaded.name, settings_of(tasks[-1], kind.Settings, "task"), kind, weights[-1] if weights else Weights()


def _worth(weights: Any, dates: Any, values: Any, plan: Any, outcome: Any) -> float:
    """What the reward gives a plan for what was to be entered."""
    from relgrad.rewards.site import figures, worth

    return worth(figures(values, plan, outcome, weights.text, dates), weights)


def _require_pages(names: Sequence[str], pages: dict[str, Any]) -> None:
    from relgrad.core.errors import RelgradError

    for name in names:
        if name not in pages:
            raise RelgradError(f"forms check: no case is of the page {name!r}; pages are {', '.join(pages)}")


def _show(reports: Sequence[PageReport]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("page", "part", box=None, pad_edge=False)
    for title in ("cases", "ceiling", "least", "as it comes", "other case"):
        table.add_column(title, justify="right")
    for report in reports:
        numbers = (report.mean, report.lowest, report.as_it_comes, report.other_case)
        shown = ["–" if number is None else f"{number:.3f}" for number in numbers]
        table.add_row(Text(report.page), report.part, f"{report.checked}/{report.cases}", *shown)
    console = Console(highlight=False)
    console.width = max(console.width, 120)
    console.print(table)
    for report in reports:
        for what, count in {**report.unscored, **report.reasons}.items():
            console.print(Text(f"{report.page}: {what}" + (f" ({count} times)" if count > 1 else "")), soft_wrap=True)
