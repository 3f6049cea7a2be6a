"""The page: everything read from the run folder, made into one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import finite, write_atomic
from relgrad.monitor.diagnose import diagnose
from relgrad.monitor.diagnose.history import monitors
from relgrad.monitor.intervals import counted
from relgrad.monitor.report.cards import before_after, outcomes
from relgrad.monitor.report.charts import evaluation_chart, plain, reliability_chart, stage_charts, trajectory_charts
from relgrad.monitor.report.read import StageFiles, headline, read_stage, stage_folders
from relgrad.monitor.report.result import result_of, run_facts, scored_by
from relgrad.monitor.report.templates import template
from relgrad.monitor.report.words import duration, first_word, flatten, mapping, number, when

TASK_KEYS = ("path", "dataset", "name", "file")
SCORE_KEYS = (
    "step",
    "weights",
    "score",
    "low",
    "high",
    "n",
    "difference",
    "difference_low",
    "difference_high",
    "kl",
    "entropy",
)
SCRIPTS = ("base.js", "samples.js", "films.js", "charts.js")
"""In the order in which the page runs them."""
VERSION_KEYS = ("relgrad", "torch", "transformers", "python")


AUDIT = {
    "auc": ("AUC", "Chance that what is right scores higher than what is wrong; 0.5 is guessing."),
    "calibration_error": ("Calibration error", "Mean gap between the probability given and the share that was right."),
    "within_group_correlation": (
        "Within-group correlation",
        "Of the score with the truth among completions of one prompt. A group-relative reward lives on this alone.",
    ),
    "mask_ratio_correlation": (
        "Correlation with the mask ratio",
        "Between prompts; the next line says what is to be expected.",
    ),
    "truth_mask_ratio_correlation": (
        "The same for the truth",
        "How the share that is right goes along with the mask ratio.",
    ),
    "mean_score": ("Mean score", ""),
    "mean_share_right": ("Mean share right", "Equal to the mean score where the judge is calibrated."),
    "most_frequent_share": (
        "With the commonest symbol",
        "The share that would be right with it in every hole; a generator below that has learnt little.",
    ),
    "prompts": ("Prompts", "Validation prompts that were examined; as many others fitted the calibration."),
}
"""Figures of audit.json with their names and how to read them."""


def write_report(run: Path) -> Path:
    """Render `run` (a stage folder, or a run folder with stage folders inside) into its report.html; returns its path.

    The file is written atomically, works offline and contains every script it uses. Files that are missing or empty are
    named on the page. Raises RelgradError where `run` is not the folder of a run, or the file cannot be written there.
    """
    run = Path(run)
    stages = [read_stage(folder) for folder in stage_folders(run)]
    path = run / "report.html"
    try:
        write_atomic(path, render(run.resolve().name, stages))
    except OSError as error:
        raise RelgradError(f"{path} cannot be written: {error}") from error
    return path


def render(name: str, stages: Sequence[StageFiles]) -> str:
    """The HTML text. Jinja escapes every value; scripts run only by their hash (see the page's security policy)."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    scripts = [_script(text) for text in (get_plotlyjs(), *map(_asset, SCRIPTS))]
    views = [stage_view(number, stage) for number, stage in enumerate(stages)]
    return template("report.html.j2", number).render(
        name=name,
        stages=views,
        result=result_of(stages, views),
        payload=finite({"stages": [view["data"] for view in views]}),
        css=Markup(_asset("report.css")),
        scripts=[Markup(script) for script in scripts],
        script_hashes=" ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
        written=when(datetime.now(UTC).timestamp()),
    )


def stage_view(number: int, stage: StageFiles) -> dict[str, Any]:
    """Everything the template shows of one stage; `data` is what the script draws."""
    charts, others, constants = stage_charts(stage.metrics, stage.recipe)
    pairs = before_after(headline(stage.evaluations))
    meanings = reward_meanings(stage)
    scores = scores_of(stage.evaluations, monitors(stage.recipe))
    data = {
        "evaluation": plain([evaluation_chart(stage.evaluations)]) if scores else [],
        "charts": plain(charts),
        "others": plain(others),
        "samples": [{"step": step, "records": records} for step, records in stage.samples],
        "films": film_groups(stage.films),
        "meanings": {name: {"part": "/" in name, "says": says} for name, says in meanings},
        "trajectories": plain(trajectory_charts(stage.films)),
        "audit": plain([reliability_chart(stage.audit)]) if stage.audit else [],
    }
    return {
        "id": f"stage-{number}",
        "title": stage.title,
        "kind": stage.kind,
        "work": str(stage.about.get("work") or ""),
        "scored_by": scored_by(stage.recipe),
        "facts": header_facts(stage),
        "status": status(stage),
        "missing": stage.missing,
        "warnings": all_warnings(stage),
        "scores": scores,
        "cooled": cooled_figures(stage.cooled, headline(stage.evaluations)),
        "has_pass": any(record["pass_at_k"] for row in scores for record in row["records"]),
        "has_kl": any(record["kl"] is not None for row in scores for record in row["records"]),
        "audit": audit_rows(stage.audit),
        "comparison": pairs,
        "outcomes": outcomes(pairs),
        "knows_truth": any(pair["truth"] for pair in pairs) or any(r["truth"] for _, rs in stage.samples for r in rs),
        "rewards": [(name, says) for name, says in meanings if "/" not in name],
        "constants": constants,
        "two_parts": stage.two_parts,
        "evaluated": stage.evaluated,
        "sampled": stage.sampled,
        "recipe": stage.recipe_text,
        "environment": list(flatten(stage.environment)),
        "sample_steps": stage.sample_steps,
        "shown_steps": len(stage.samples),
        "film_count": stage.film_count,
        "shown_films": len(stage.films),
        "fills_in": all(film["source"] == "text" for film in stage.films),
        "other_count": len(others),
        "data": data,
    }


def header_facts(stage: StageFiles) -> list[tuple[str, str]]:
    """(label, value) pairs for the head of the stage; what is unknown is left out."""
    task = mapping(stage.recipe.get("task"))
    flat = dict(flatten(stage.environment))
    source = first_word(*(task.get(k) for k in TASK_KEYS))
    times = [float(r["time"]) for r in stage.metrics if isinstance(r.get("time"), (int, float))]
    versions = [f"{k} {v}" for k in VERSION_KEYS if (v := _by_last_part(flat, k))]
    hardware = [v for k, v in flat.items() if v and k.split(" · ")[0] == "hardware"]
    facts = [
        ("Work", str(stage.about.get("work") or "")),
        ("Starts from", str(stage.recipe.get("from") or "")),
        *run_facts(stage),
        ("Task", " · ".join(filter(None, [first_word(task.get("kind")), source]))),
        ("Started", when(times[0]) if times else ""),
        ("Duration", duration(times[-1] - times[0]) if len(times) > 1 else ""),
        ("Hardware", ", ".join(hardware)),
        ("Versions", ", ".join(versions)),
    ]
    return [(label, value) for label, value in facts if value]


def reward_meanings(stage: StageFiles) -> list[tuple[str, str]]:
    """(name, what it is) of every reward and every part of a score that the stage's samples and films show."""
    shown = dict.fromkeys(name for _, records in stage.samples for record in records for name in record["parts"] or {})
    shown |= dict.fromkeys(name for film in stage.films for name in film["parts"])
    watching, explained = set(monitors(stage.recipe)), mapping(stage.about.get("parts"))
    meanings = []
    for name in shown:
        reward, _, part = name.partition("/")
        own = (
            "a monitor: it is watched, and counts for nothing" if reward in watching else "a reward, before its weight"
        )
        meanings.append((name, str(explained.get(name) or (f"a part of what {reward} says" if part else own))))
    return meanings


def status(stage: StageFiles) -> dict[str, Any]:
    """How far the stage came: text, share done (None where the recipe does not say) and whether it is complete."""
    reached = max((int(r.get("step", 0)) for r in [*stage.metrics, *stage.evaluations]), default=0)
    steps = stage.steps
    if not stage.metrics:
        return {"text": "no steps recorded", "done": False}
    if steps is None:
        return {"text": f"step {reached:,}", "done": False}
    done = reached >= steps
    return {"text": f"complete, {steps:,} steps" if done else f"step {reached:,} of {steps:,}", "done": done}


def scores_of(evaluations: Sequence[Mapping[str, Any]], watching: Iterable[str] = ()) -> list[dict[str, Any]]:
    """One row per evaluation name, test first: its records, the first, the last (None while there is only one), its rewards."""
    rows = []
    names = dict.fromkeys(str(e.get("name", "score")) for e in evaluations)
    for name in sorted(names, key=lambda name: name != "test"):
        own = [e for e in evaluations if str(e.get("name", "score")) == name]
        records = [score_figures(e) for e in own]
        last = records[-1] if len(records) > 1 else None
        rewards = reward_figures(own, set(watching))
        rows.append({"name": name, "records": records, "first": records[0], "last": last, "rewards": rewards})
    return rows


def reward_figures(evaluations: Sequence[Mapping[str, Any]], watching: set[str]) -> list[dict[str, Any]]:
    """Every reward before and after, with the paired difference where the records have it; None for what is not known."""
    before, after = (mapping(evaluations[i].get("rewards")) for i in (0, -1))
    changes = mapping(evaluations[-1].get("reward_differences"))
    figures = []
    for name in after:
        difference, low, high = changes.get(name) or (None, None, None)
        later = after[name] if len(evaluations) > 1 else None
        figures.append(
            {"name": name, "watches": name in watching, "before": before.get(name), "after": later,
             "difference": difference, "low": low, "high": high}
        )  # fmt: skip
    return figures


def cooled_figures(cooled: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The untrained start, cooled to where the trained policy went, beside its score before and after; empty where there is none.

    rows  (figure, before, after, cooled, difference of after and cooled, its ends) of the score and every reward
    """
    beyond = mapping(cooled.get("trained_differences"))
    if not beyond or not evaluations:
        return {}
    sides = [
        {"score": one.get("score"), **mapping(one.get("rewards"))} for one in (evaluations[0], evaluations[-1], cooled)
    ]
    rows = [(name, *(side.get(name) for side in sides), *beyond[name]) for name in beyond]
    keys = ("temperature", "reached", "kl", "trained_kl")
    return {**score_figures(cooled), **{key: cooled.get(key) for key in keys}, "rows": rows}


def score_figures(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What the table shows of one evaluation; None for what it does not have. `over`: what its intervals are over."""
    figures = {key: evaluation.get(key) for key in SCORE_KEYS}
    passed = mapping(evaluation.get("pass_at_k"))
    over = counted(evaluation.get("units", evaluation.get("n")), str(evaluation.get("over", "prompts")))
    return figures | {"pass_at_k": ", ".join(f"{k}: {number(v)}" for k, v in passed.items()), "over": over}


def audit_rows(audit: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(what, figure, how to read it) of a judge's audit, in the order of `AUDIT`; what it does not have is left out."""
    rows = []
    for key, (label, note) in AUDIT.items():
        if key in audit:
            text = number(audit[key])
            if key == "within_group_correlation":
                low, high = (number(audit.get(f"within_group_{end}")) for end in ("low", "high"))
                text += f" ({low} to {high}, over prompts)"
            rows.append((label, text, note))
    return rows


def film_groups(films: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Films that begin with the same text together, earlier training steps first: they are played side by side."""
    return [
        {"prompt": prompt, "films": sorted((f for f in films if f["prompt"] == prompt), key=lambda f: f["step"] or 0)}
        for prompt in dict.fromkeys(f["prompt"] for f in films)
    ]


def all_warnings(stage: StageFiles) -> list[dict[str, Any]]:
    """Warnings that hold at the last step, then those printed during the run that hold no longer; one per name."""
    first: dict[str, dict[str, Any]] = {}
    for live in stage.live_warnings:
        first.setdefault(str(live.get("name", "")), live)
    shown = []
    for warning in diagnose(stage.metrics, stage.recipe, stage.evaluations):
        begun = first.pop(warning.name, {}).get("step", warning.step)
        when = "at the last step" if begun == warning.step else f"at the last step, first at step {begun}"
        shown.append({**vars(warning), "when": when, "holds": True})
    for name, live in first.items():
        when = f"at step {live.get('step')}, not at the end"
        shown.append(
            {"severity": "warning", "evidence": "", "advice": "", **live, "name": name, "when": when, "holds": False}
        )
    return shown


def _asset(name: str) -> str:
    return resources.files("relgrad.monitor.report").joinpath(name).read_text(encoding="utf-8")


def _script(text: str) -> str:
    """`text` as the HTML parser will hand it to the script engine, so that its hash fits."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _by_last_part(flat: Mapping[str, str], name: str) -> str:
    return next((v for k, v in flat.items() if k.split(" · ")[-1] == name), "")
