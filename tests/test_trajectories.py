"""Trajectories of flow policies, as people see them: filmed by `relgrad sample`, played, scored, stepped through in the report."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import test_report
from flow_policies import fresh, small, spread
from relgrad.commands.cli import app
from relgrad.commands.films import FILE
from relgrad.core.run_folder import RunDir
from relgrad.core.types import Output, Prompt, Score
from relgrad.evaluation.held_out import film
from relgrad.monitor import animate
from relgrad.monitor.report import write_report
from relgrad.monitor.report.charts import trajectory_charts
from relgrad.monitor.report.read import MAX_FRAMES, joined, thinned
from relgrad.policies import flow
from relgrad.policies.fill_in.toy import make
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe
from written_run import EVIL, write_stage

browser = test_report.browser

NETWORK = {"hidden": 16, "blocks": 1, "heads": 2, "cond_dim": 8, "length": 20}
RECIPE = {
    "name": "tiny",
    "policy": {"kind": "flow", "model": "tiny", "network": NETWORK, "max_completion_length": 8, "sampling_steps": 4,
               "device": "cpu"},
    "task": {"kind": "digits", "length": 4, "operation": "copy"},
    "rewards": [{"kind": "exact", "per_character": True}],
    "evaluation": {"num_prompts": 4, "num_generations": 2},
    "stages": [
        {"stage": "sft", "sft": {"steps": 20, "batch_size": 16, "learning_rate": 5e-3}},
        {"stage": "grpo", "grpo": {"steps": 2, "num_prompts": 2, "num_generations": 2, "learning_rate": 1e-3}},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flow run of a supervised stage and two GRPO steps."""
    out = tmp_path_factory.mktemp("runs")
    run_recipe(parse_recipe({**RECIPE, "out": str(out)}))
    return out / "tiny"


def sample(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["sample", *map(str, arguments)], env={"COLUMNS": "300", "NO_COLOR": "1"})


def printed(*arguments: object) -> list[dict[str, Any]]:
    result = sample(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


# ---------------------------------------------------------------------- the command


def test_steps_are_the_steps_of_the_trajectory(trained: Path) -> None:
    films = printed(trained, "--steps", 6)
    assert len(films) == 4, "the first held-out prompts, one text each"
    for one in films:
        assert [frame["step"] for frame in one["frames"]] == list(range(7))
        assert re.fullmatch(r"\d{4}=", one["prompt"])
        assert one["step"] == 2
        wanted = one["prompt"][:4]
        score = sum(a == b for a, b in zip(one["final"], wanted, strict=False)) / max(len(one["final"]), 4)
        assert one["reward"] == one["parts"]["exact"] == pytest.approx(score)
        assert one["why"] == ""
    assert [one["frames"] for one in printed(trained, "--steps", 6)] == [one["frames"] for one in films]
    assert len(printed(trained, "-n", 2, "--steps", 1)) == 8


def test_without_a_number_the_steps_it_is_judged_by(trained: Path) -> None:
    (one,) = printed(trained, "--prompt", "1234", "--save")
    assert one["prompt"] == "1234=", "worded as the task words its own"
    assert one["frames"][-1]["step"] == 4
    assert "reward" not in one, "nobody knows what is right"
    kept = RunDir(trained / "2-grpo").lines(FILE)[-1]
    assert kept == one
    (three,) = printed(trained, "--prompt", "1234", "policy.evaluation_steps=3", "--save")
    assert three["frames"][-1]["step"] == 3
    page = write_report(trained / "2-grpo").read_text(encoding="utf-8")
    payload = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    shown = payload["stages"][0]["films"][-1]
    assert [len(f["frames"]) for f in shown["films"]] == [5, 4]
    names = [s["name"] for s in payload["stages"][0]["trajectories"][0]["series"]]
    assert names == ["before training, 4 steps", "after step 2, 3 steps", "after step 2, 4 steps"]


def test_a_summary_says_what_the_text_is_worth(trained: Path) -> None:
    result = sample(trained, "--steps", 2)
    assert result.exit_code == 0, result.output
    assert re.search(
        r"^prompt  \d{4}=\nwrites  .*\n        steps 2  seconds \S+  exact \S+$", result.stdout, re.MULTILINE
    )


def test_without_a_terminal_every_step_is_one_plain_line(trained: Path) -> None:
    result = sample(trained, "--prompt", "1234", "--steps", 3, "--animate")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "text 1 of 1, prompt: 1234="
    assert lines[1].startswith("text 1 of 1, step 0 of 3, noise: ")
    heads = [line.partition(": ")[0] for line in lines[2:]]
    assert [re.sub(r"\d jumped", "N jumped", head) for head in heads] == [
        f"text 1 of 1, step {step} of 3, N jumped" for step in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--remask", "random"], "policy kind 'flow' has no such option: leave --remask out; it has --steps"),
        (["--length", "4", "--schedule", "linear"], "leave --schedule, --length out"),
        (["--steps", "0"], "Invalid value for '--steps'"),
        (["--steps", "2", "policy.max_completion_length=30"], "leaves 15 editable positions of the network's 20"),
        (["--animate", "--json"], "give one of them"),
    ],
)
def test_what_cannot_be_is_one_clear_error(trained: Path, arguments: list[str], says: str) -> None:
    result = sample(trained, *arguments)
    assert result.exit_code == 2
    assert says in " ".join(re.sub("[│╭╮╰╯─]", " ", result.output).split())


OWN = """
from relgrad.policies import flow

Settings = flow.Settings


SAMPLE_OPTIONS = ()  # it writes in several steps, and has no option for their number


def build(settings, seed, start=None, reference=False):
    return flow.build(settings, seed, start, reference)
"""


def test_any_policy_that_has_film_can_be_filmed(tmp_path: Path) -> None:
    own, recipe = tmp_path / "own.py", tmp_path / "mine.yaml"
    own.write_text(OWN)
    policy = {**RECIPE["policy"], "kind": str(own)}  # type: ignore[dict-item]
    recipe.write_text(json.dumps({**RECIPE, "policy": policy}))
    result = sample(recipe, "--steps", 3)
    assert result.exit_code == 2
    assert "has no such option: leave --steps out; change its settings by policy.KEY=VALUE" in result.output
    films = printed(recipe, "--prompt", "12", "policy.evaluation_steps=3", "-n", 2)
    assert len(films) == 2
    result = sample(recipe, "--prompt", "12", "policy.evaluation_steps=3", "-n", 1, "--animate")
    assert "step 3 of 3" in result.stdout
    assert "recipe; films are kept in a run's folder" in sample(recipe, "--save").output


def test_the_other_commands_on_a_flow_run(trained: Path) -> None:
    record = RunDir(trained / "2-grpo").lines("evaluations.jsonl")[-1]
    result = CliRunner().invoke(app, ["evaluate", str(trained), "--against", str(trained / "1-sft")])
    assert result.exit_code == 0, result.output
    assert f"{record['score']:.3f}" in result.stdout
    assert f"{record['difference']:+.3f}" in result.stdout
    (one,) = [json.loads(line) for line in sample(trained, "--prompt", "1234", "-n", 1, "--json").stdout.splitlines()]
    assert one["prompt"] == "1234="
    assert one["stop"] in ("eos", "length")
    assert one["logp"] < 0


# ---------------------------------------------------------------------- what a film's text is worth


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_films_are_scored_by_the_rewards_and_what_fails_is_told() -> None:
    def letters(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        assert all(output.ids for output in outputs if output.text)
        return [Score(output.text.count("a"), {"b": output.text.count("b")}) for output in outputs]

    def fails(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        raise OSError("no disk")

    policy, prompts = small(), [Prompt("ab", id=0), Prompt("b", id=1)]
    plain = film(policy, prompts, 2, seeded())
    assert all("reward" not in one for one in plain)
    scored = film(policy, prompts, 2, seeded(), RewardSet([NamedReward("letters", letters, 0.5)], 10))
    for one, before in zip(scored, plain, strict=True):
        assert one["frames"] == before["frames"]
        assert one["reward"] == 0.5 * one["final"].count("a")
        assert one["parts"] == {"letters": one["final"].count("a"), "letters/b": one["final"].count("b")}
    for one in film(policy, prompts, 1, seeded(), RewardSet([NamedReward("fails", fails)], 10)):
        assert math.isnan(one["reward"])
        assert "no disk" in one["why"]


def test_filled_in_texts_are_scored_too_by_rewards_that_score_every_position() -> None:
    policy: Any = make(denoise={"steps": 3})().policy

    def each(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        holes = [i for i, c in enumerate(prompt.text) if c == "█"]
        marks = [tuple(float(output.text[i] == "a") for i in holes) for output in outputs]
        assert [len(output.ids) for output in outputs] == [len(prompt.text)] * len(outputs)
        return [Score(sum(m) / len(m), per_decision=m) for m in marks]

    for one in film(policy, [Prompt("ab██c"), Prompt("█")], 3, seeded(), RewardSet([NamedReward("a", each)], 10)):
        holes = [i for i, c in enumerate(one["prompt"]) if c == "█"]
        assert one["reward"] == sum(one["final"][i] == "a" for i in holes) / len(holes)


# ---------------------------------------------------------------------- the terminal


@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_noise_and_masks_are_dim_and_jumps_bright(source: str) -> None:
    (one,) = small(source=source).film([Prompt("ab")], 1, seeded(3))
    begun, later = one["frames"][0], one["frames"][2]
    assert {span.style for span in animate.picture(begun, one).spans} == {animate.MASKED}
    picture = animate.picture(later, one)
    bright = [span.start for span in picture.spans if span.style == animate.FRESH]
    assert bright == later["filled"]
    dim = [span.start for span in picture.spans if span.style == animate.MASKED]
    assert dim == [i for i, sure in enumerate(later["confidence"]) if sure is None]
    assert animate.caption(one, begun) == f"step 0 of 5, {'noise' if source == 'uniform' else 'all masked'}"
    left = f", {len(later['masked'])} masked" if later["masked"] else ""
    assert animate.caption(one, later) == f"step 2 of 5, {len(later['filled'])} jumped{left}"
    file = io.StringIO()
    animate.play([one], file)
    assert file.getvalue().splitlines()[0] == "text 1 of 1, prompt: ab"
    assert file.getvalue().splitlines()[-1].endswith(f": {one['frames'][-1]['text']}")


# ---------------------------------------------------------------------- the report's data


def test_frames_that_are_left_out_leave_their_jumps_behind() -> None:
    (one,) = small(evaluation_steps=2 * MAX_FRAMES).film([Prompt("ab")], 1, seeded())
    shown = thinned({"step": 3, **one})
    assert len(shown["frames"]) == MAX_FRAMES
    at = [frame["step"] for frame in shown["frames"]]
    for (before, after), frame in zip(itertools.pairwise(at), shown["frames"][1:], strict=True):
        between = one["frames"][before + 1 : after + 1]
        assert frame["filled"] == sorted({i for f in between for i in f["filled"]})
        last = {i: c for f in between for i, c in zip(f["filled"], f["chance"], strict=True)}
        assert frame["chance"] == [last[i] for i in frame["filled"]]
        assert frame["logp"] == pytest.approx(sum(f["logp"] for f in between))
        assert frame["text"] == between[-1]["text"]
    assert [n for _, n, _ in shown["jumps"]] == [len(f["filled"]) for f in one["frames"][1:]]
    (alone,) = [joined(one["frames"][:1])]
    assert alone == one["frames"][0]


def test_charts_of_the_steps_by_hand() -> None:
    def told(step: int, *jumps: tuple[int, int, float | None], source: str = "uniform") -> dict[str, Any]:
        return {"step": step, "source": source, "jumps": list(jumps)}

    films = [
        told(0, (1, 4, 0.2), (2, 0, None)),
        told(0, (1, 2, 0.4), (2, 0, None)),
        told(9, (1, 1, 0.5), (2, 3, 0.75)),
        told(9, (1, 7, 0.1), source="text"),
    ]
    count, sure = trajectory_charts(films)
    assert [(s.name, s.x, s.y) for s in count.series] == [
        ("before training", [1, 2], [3, 0]),
        ("after step 9", [1, 2], [1, 3]),
    ]
    assert sure.series[0].y == [pytest.approx(0.3), None]
    assert sure.series[1].y == [0.5, 0.75]
    assert trajectory_charts(films[-1:]) == []


# ---------------------------------------------------------------------- the report


def write(folder: Path, *films: dict[str, Any]) -> Path:
    write_stage(folder, "grpo", steps=6)
    for one in films:
        RunDir(folder).append(FILE, one)
    write_report(folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    """A trajectory of one prompt before and after "training": 10 positions, 7 steps."""
    policy = small(max_completion_length=10, evaluation_steps=7)
    taken = (policy.film([Prompt("ab")], 1, seeded(s))[0] for s in range(50))
    films = list(itertools.islice((one for one in taken if one["final"]), 2))
    worth: list[dict[str, Any]] = [
        {"step": 0, "reward": 0.25, "parts": {"exact": 0.25}, "why": ""},
        {"step": 6, "reward": None, "parts": {}, "why": "no disk"},
    ]
    return [{**one, **figures} for one, figures in zip(films, worth, strict=True)]


def cells(article: Any) -> list[list[str | None]]:
    """Class, text and title of every position of a film's text."""
    found: list[list[str | None]] = article.locator("> pre > span").evaluate_all(
        "spans => spans.map(s => [s.className, s.textContent, s.title])"
    )
    return found


def must_show(one: dict[str, Any], step: int) -> list[list[str]]:
    """What `cells` must find after a step of a film from uniform noise."""
    frame, shown = one["frames"][step], []
    for i, cell in enumerate(frame["text"]):
        steps = [f["step"] for f in one["frames"][: step + 1] if i in f["filled"]]
        first = f", first at step {steps[0]}" if len(steps) > 1 else ""
        title = (
            f"position {i + 1}, written at step {steps[-1]}{first}, probability {frame['confidence'][i]:g}"
            if steps
            else ""
        )
        kinds = ["cell" if steps else "noise", *(["fresh"] if i in frame["filled"] else [])]
        kinds += ["beyond"] if frame["end"] is not None and i > frame["end"] else []
        shown.append([" ".join(kinds), cell, title])
    return shown


def test_stepping_shows_which_positions_jumped_when_and_how_probably(
    browser: Any, two: list[dict[str, Any]], tmp_path: Path
) -> None:
    look = test_report.Look(browser, write(tmp_path / "grpo", two[1], two[0]))
    player = look.page.get_by_test_id("films")
    left, right = player.locator("article").all()
    slider, output = player.locator("input[type=range]"), player.locator("output")
    assert player.locator("> .prompt").inner_text() == "ab"
    assert left.locator("> .chip").all_inner_texts() == [
        "before training",
        "step 0 of 7, noise",
        "reward 0.25",
    ]
    assert right.locator("> .chip").all_inner_texts() == ["after step 6", "step 0 of 7, noise", "unscored", "no disk"]
    assert left.bounding_box()["y"] == right.bounding_box()["y"], "side by side"
    for step in range(8):
        assert output.inner_text() == f"{step} of 7"
        assert slider.get_attribute("aria-valuetext") == f"step {step} of 7"
        for article, one in ((left, two[0]), (right, two[1])):
            assert cells(article) == must_show(one, step)
            ahead = [g.get_attribute("class") == "ahead" for g in article.locator(".map g").all()]
            assert ahead == [number > step for number in range(1, 8)]
        slider.press("ArrowRight")
    assert any(f["filled"] for f in two[0]["frames"])
    assert left.locator(".fresh").first.evaluate("e => getComputedStyle(e).fontWeight") == "700"
    assert left.locator("pre.final").inner_text() == two[0]["final"]
    player.locator("button").focus()
    look.page.keyboard.press("ArrowLeft")
    assert output.inner_text() == "6 of 7", "the arrow keys step wherever the focus is"
    assert look.complaints == []


def test_the_jumps_of_a_step_are_a_table_and_the_whole_trajectory_a_picture(
    browser: Any, two: list[dict[str, Any]], tmp_path: Path
) -> None:
    look = test_report.Look(browser, write(tmp_path / "grpo", *two))
    player = look.page.get_by_test_id("films")
    article, one = player.locator("article").first, two[0]
    summary = article.locator("details.jumps > summary")
    summary.press("Enter")
    slider = player.locator("input[type=range]")
    for step in (1, 7, 3):
        slider.fill(str(step))
        frame, before = one["frames"][step], one["frames"][step - 1]["text"]
        assert summary.inner_text().startswith(f"Jumps of step {step}, log-probability −")
        rows = [r.locator("td").all_inner_texts() for r in article.locator("tbody tr").all()]
        assert rows == [
            [str(i + 1), before[i], frame["text"][i], f"{frame['confidence'][i]:g}", f"{chance:g}"]
            for i, chance in zip(frame["filled"], frame["chance"], strict=True)
        ]
    marks = [
        [int(float(m.get_attribute("y"))) + 1, int(float(m.get_attribute("x"))), m.get_attribute("class")]
        for m in article.locator(".map g rect").all()
    ]
    final = {i: f["step"] for f in one["frames"] for i in f["filled"]}
    assert marks == [
        [f["step"], i, "last" if final[i] == f["step"] else "early"] for f in one["frames"] for i in f["filled"]
    ]
    title = article.locator(".map g rect title").first.text_content()
    at, i = next((f, f["filled"][0]) for f in one["frames"] if f["filled"])
    assert title == (
        f"step {at['step']}, position {i + 1}: {one['frames'][at['step'] - 1]['text'][i]} → {at['text'][i]}, "
        f"probability {at['confidence'][i]:g}"
    )
    article.locator(".map").scroll_into_view_if_needed()
    box = article.locator(".map").bounding_box()
    look.page.mouse.click(box["x"] + 20, box["y"] + box["height"] * 4.5 / 7)
    assert player.locator("output").inner_text() == "5 of 7"
    drawn = look.page.locator("[data-chart=jumps] svg .scatterlayer path.js-line")
    assert drawn.count() == 2, "before and after training"
    assert look.complaints == []


@pytest.mark.slow
def test_masks_tokens_of_several_characters_and_line_ends_can_be_read(browser: Any, tmp_path: Path) -> None:
    policy = spread(flow.build(fresh(symbols="byte", source="mask", max_completion_length=12), seed=0))
    (one,) = policy.film([Prompt("é\n")], 1, seeded())
    jump = one["frames"][-1]
    assert any(len(cell) != 1 for cell in jump["cells"]), "bytes that are no character by themselves"
    line = {**jump, "cells": ["\n", " the", "", *jump["cells"][3:]], "filled": [0, 1, 2], "chance": [0.5, 0.25, 0.125]}
    line |= {"confidence": [0.5, 0.25, 0.125, *jump["confidence"][3:]], "text": "\n the" + jump["text"][3:]}
    look = test_report.Look(
        browser, write(tmp_path / "grpo", {"step": 0, **one, "frames": [*one["frames"][:-1], line]})
    )
    player = look.page.get_by_test_id("films")
    article = player.locator("article").first
    assert article.locator(".chip").nth(1).inner_text() == "step 0 of 4, all masked"
    assert article.locator(".hole").count() == 12
    article.locator("details.jumps > summary").click()
    player.locator("input[type=range]").press("End")
    spans = article.locator("> pre > span")
    assert [spans.nth(i).text_content() for i in range(3)] == ["\n", " the", ""]
    for i, sign in ((0, '"⏎"'), (2, '"·"')):
        assert spans.nth(i).evaluate("e => getComputedStyle(e, '::before').content") == sign
    assert article.locator("tbody code").all_inner_texts()[1::2] == ["⏎", " the", "·"]
    assert look.complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
def test_sixteen_steps_of_eighty_positions_fit(browser: Any, width: int, tmp_path: Path) -> None:
    sizes = {**NETWORK, "length": 90}
    policy = spread(flow.build(fresh(network=sizes, max_completion_length=80, sampling_steps=16), seed=0))
    films = [{"step": s, **policy.film([Prompt("ab")], 1, seeded(s))[0]} for s in (0, 6)]
    look = test_report.Look(browser, write(tmp_path / "grpo", *films), width)
    player = look.page.get_by_test_id("films")
    player.locator("input[type=range]").press("End")
    assert player.locator("output").inner_text() == "16 of 16"
    assert player.locator("article").first.locator("> pre > span").count() == 80
    for details in player.locator("details.jumps").all():
        details.locator("summary").click()
    assert look.overflow() == 0
    assert look.complaints == []
    if width == 1280:
        size = player.locator("article > pre").first.evaluate("e => getComputedStyle(e).fontSize")
        assert size == "13px"


def test_hostile_text_in_a_trajectory_is_inert(browser: Any, two: list[dict[str, Any]], tmp_path: Path) -> None:
    frames = [{**frame, "cells": [EVIL, *frame["text"][1:]]} for frame in two[0]["frames"]]
    frames[-1] |= {"filled": [0], "chance": [0.5], "confidence": [0.5] * 10}
    evil = {**two[0], "prompt": EVIL, "final": EVIL, "frames": frames, "parts": {EVIL: 1.0}, "why": EVIL}
    look = test_report.Look(browser, write(tmp_path / "grpo", evil), 400)
    player = look.page.get_by_test_id("films")
    player.locator("details.jumps > summary").click()
    player.locator("input[type=range]").press("End")
    assert player.locator("> .prompt").inner_text() == EVIL
    assert player.locator("tbody code").first.inner_text() == EVIL
    assert look.page.evaluate("window.pwned") is None
    assert look.page.evaluate("document.querySelectorAll('img').length") == 0
    assert look.overflow() == 0
    assert look.complaints == []
