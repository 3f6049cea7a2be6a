"""The table for replies: five trainings of the recipe `replies`, the untrained model and the cooled start, over seeds.

    python -m benchmarks.replies_results --seeds 0 1 2

Runs the recipe for every seed (a run that was stopped goes on), lets every stage write to the same test posts (kept in
FOLDER/written/, one file a stage and seed, not written twice), and measures all of it: rewards, pass@k by `sensible_reply`,
best of k, self-BLEU, with the tests of the evaluation suite over posts. "cooled sft" is `sft` at the temperature at which its
KL to itself is that of `grpo`. Whatever stands as KEY=VALUE changes the recipe: the settings are part of the table. It ends
with the claims that the table is for, each with its figures, and says which hold.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from relgrad.core.run_folder import write_json
from relgrad.evaluation.generations import Generations, Written, read
from relgrad.evaluation.significance import holm
from relgrad.runs.build import find_recipe
from relgrad.runs.compare import Conditions, compare_sources
from relgrad.runs.environment import cpu_model
from relgrad.runs.recipe import load_recipe
from relgrad.runs.run import run_recipe
from relgrad.runs.suite import record_of

STAGES = ("sft", "continued", "grpo", "polychromic", "grpo-polychromic")
UNTRAINED, COOLED = "untrained", "cooled sft"
FIGURES = ("score", "best of 10", "pass@1", "pass@10", "self-BLEU", "semantic diversity", "tokens per completion")


def run_of(folder: Path, seed: int) -> Path:
    return folder / f"replies-{seed}"


def train(folder: Path, seed: int, overrides: Sequence[str]) -> None:
    """The five stages of one seed; stages that have ended are not repeated."""
    settings = [f"seed={seed}", f"name=replies-{seed}", f"out={folder}", "stages.2.evaluation.cooled=true", *overrides]
    run_recipe(load_recipe(find_recipe("replies"), settings))


def cooled_temperature(folder: Path, seed: int) -> float:
    """The temperature of the cooled `sft`, as the GRPO stage found it."""
    return float(json.loads((run_of(folder, seed) / "3-grpo" / "cooled.json").read_text())["temperature"])


def written(folder: Path, row: str, seed: int, options: argparse.Namespace) -> Generations:
    """What a row of the table wrote, from its file, or now."""
    file = folder / "written" / f"{row.replace(' ', '-')}-{seed}.jsonl"
    if not file.is_file():
        much = [f"evaluation.num_prompts={options.posts}", f"evaluation.num_generations={options.replies}"]
        more = [f"policy.temperature={cooled_temperature(folder, seed)}"] if row == COOLED else []
        stage = "sft" if row in (COOLED, UNTRAINED) else row
        source = f"{run_of(folder, seed)}:{stage}"
        given = "replies" if row == UNTRAINED else source
        if row == UNTRAINED:  # the recipe as it was changed for the table
            more = [setting for setting in options.overrides if setting.startswith(("policy.", "task."))]
        file.parent.mkdir(parents=True, exist_ok=True)
        print(f"{row}, seed {seed} ...", flush=True)
        compare_sources([given], [*much, *more], Conditions(on=source, keep=file), lambda label, done, total: None)
    return read(file)


def together(folder: Path, rows: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """The comparison of rows over all seeds, the first one being what the others are compared with."""
    contenders = []
    head: Generations | None = None
    for row in rows:
        trainings: list[Written] = []
        for seed in options.seeds[:1] if row == UNTRAINED else options.seeds:
            head = written(folder, row, seed, options)
            ((_, (one,)),) = head.contenders
            trainings.append(replace(one, source=f"{row}-{seed}", seed=seed))
        contenders.append((row, tuple(trainings)))
    assert head is not None
    return record_of(replace(head, contenders=tuple(contenders)))


def table(record: Mapping[str, Any]) -> list[str]:
    """Markdown: a line a row, a column a figure, each with its 95 % interval."""
    by_name = {figure["name"]: figure for figure in record["figures"]}
    names = [name for name in FIGURES if name in by_name]
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for number, contender in enumerate(record["contenders"]):
        cells = [_cell(by_name[name]["means"][number]) for name in names]
        lines.append(f"| {contender['label']} | {' | '.join(cells)} |")
    return lines


def _cell(estimate: Mapping[str, Any]) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _difference(record: Mapping[str, Any], name: str, row: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(difference, verdict) of a row to the first one."""
    number = [one["label"] for one in record["contenders"]].index(row)
    figure = next(figure for figure in record["figures"] if figure["name"] == name)
    return figure["differences"][number], figure["verdicts"][number]


def claims(to_sft: Mapping[str, Any], to_continued: Mapping[str, Any], to_cooled: Mapping[str, Any]) -> list[str]:
    """Each claim, its figures, and whether it holds."""
    best = next(f["name"] for f in reversed(to_sft["figures"]) if f["name"].startswith("best of "))
    pairs = [
        (label, record, name)
        for label, record in (("sft", to_sft), ("continued", to_continued))
        for name in ("score", best)
    ]
    found = [_difference(record, name, "grpo") for _, record, name in pairs]
    adjusted = holm([verdict["p"] for _, verdict in found])
    lines = []
    for (label, _, name), (difference, _), p in zip(pairs, found, adjusted, strict=True):
        lines.append(
            _claim(
                f"grpo exceeds {label} in {name}, Holm over four", difference, p < 0.05 and difference["value"] > 0, p
            )
        )
    fall, _ = _difference(to_sft, "pass@1", "grpo")
    lines.append(_claim("pass@1 of grpo falls by at most .03 against sft", fall, fall["value"] >= -0.03))
    bleu, _ = _difference(to_cooled, "self-BLEU", "grpo")
    lines.append(_claim("self-BLEU of grpo is at most that of the cooled sft + .05", bleu, bleu["value"] <= 0.05))
    poly, _ = _difference(to_sft, "self-BLEU", "polychromic")
    lower = poly["value"] <= -0.05 and (poly["high"] is not None and poly["high"] < 0)
    lines.append(
        _claim("polychromic lowers self-BLEU by at least .05 against lambda 0, interval without 0", poly, lower)
    )
    return lines


def _claim(text: str, difference: Mapping[str, Any], holds: bool, p: float | None = None) -> str:
    tested = "" if p is None else f", p {p:.4f}"
    shown = f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
    return f"- {'holds' if holds else 'does not hold'}: {text}: {shown} over {difference['over']}{tested}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/replies-table"))
    parser.add_argument("--posts", type=int, default=60, help="test posts")
    parser.add_argument("--replies", type=int, default=10, help="completions of each")
    parser.add_argument("--texts", type=int, default=3, help="posts of which a reply of every row is shown")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the recipe to change")
    options = parser.parse_intermixed_args()
    for seed in options.seeds:
        train(options.folder, seed, options.overrides)
    rows = [*STAGES, COOLED, UNTRAINED]
    to_sft = together(options.folder, rows, options)
    to_continued = together(options.folder, ["continued", "grpo"], options)
    to_cooled = together(options.folder, [COOLED, "grpo"], options)
    write_json(options.folder / "table.json", {"to sft": to_sft, "to continued": to_continued, "to cooled": to_cooled})
    print("\n".join([*table(to_sft), "", *claims(to_sft, to_continued, to_cooled), ""]))
    for row in rows:
        generations = written(options.folder, row, options.seeds[0], options)
        ((_, (one,)),) = generations.contenders
        for record in one.records[: options.texts]:
            print(f"{row}: {record['prompt']['columns']['tweet']} -> {record['samples'][0]['text']!r}")
    print(f"\n{cpu_model()}; seeds {options.seeds}; {options.posts} posts x {options.replies}; {options.overrides}")


if __name__ == "__main__":
    main()
