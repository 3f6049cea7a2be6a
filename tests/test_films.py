"""Texts filling in, as people see them: `relgrad sample --steps`, the animation in the terminal, the report's player."""

from __future__ import annotations

import io
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import test_report
from relgrad.commands.cli import app
from relgrad.commands.films import FILE
from relgrad.core.run_folder import RunDir
from relgrad.core.types import Prompt
from relgrad.monitor import animate
from relgrad.monitor.report import write_report
from relgrad.monitor.report.page import film_groups
from relgrad.monitor.report.read import MAX_FILMS, MAX_FRAMES
from relgrad.policies.fill_in.toy import make
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe
from written_run import EVIL, write_stage

browser = test_report.browser
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")

RECIPE = {
    "name": "fill",
    "stage": "sft",
    "policy": {"kind": "fill_in", "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 32, "denoise": {"steps": 3}},
    "task": {"kind": "masked_text", "length": 32, "held_out_size": 5, "train_size": 64},
    "sft": {"steps": 2, "batch_size": 4, "completion_column": "truth"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fill-in run of two supervised steps."""
    out = tmp_path_factory.mktemp("runs")
    run_recipe(parse_recipe({**RECIPE, "out": str(out)}))
    return out / "fill"


def sample(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["sample", *map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})


def printed(*arguments: object) -> list[dict[str, Any]]:
    result = sample(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


# ---------------------------------------------------------------------- the command


def test_held_out_prompts_are_filled_in_as_many_steps_as_asked(trained: Path) -> None:
    films = printed(trained, "--steps", 4)
    assert len(films) == 4, "the first held-out prompts, one text each"
    for film in films:
        frames = film["frames"]
        assert [frame["step"] for frame in frames] == [0, 1, 1, 2, 2, 3, 3, 4]
        assert film["prompt"] == frames[0]["text"]
        assert "█" in frames[0]["text"]
        assert "█" not in film["final"] == frames[-1]["text"]
        assert film["step"] == 2
        assert "reward" not in film, "the stage has no rewards"
    assert printed(trained, "--steps", 4)[0]["final"] == films[0]["final"]


def test_text_from_nothing_and_a_prompt_of_ones_own(trained: Path) -> None:
    one, two = printed(trained, "--length", 20, "-n", 2)
    assert one["prompt"] == two["prompt"] == "█" * 20
    assert one["final"] != two["final"]
    assert one["frames"][-1]["step"] == 3, "as many steps as the recipe says"
    (film,) = printed(trained, "--prompt", "The ███ statement", "--remask", "random")
    assert re.fullmatch(r"The .{3} statement", film["final"], re.DOTALL)


def test_the_schedule_decides_how_much_is_masked_again(trained: Path) -> None:
    (film,) = printed(trained, "--length", 20, "--schedule", "0.5,0.1")
    assert [len(frame["masked"]) for frame in film["frames"]] == [20, 0, 10, 0, 2, 0]
    (film,) = printed(trained, "--length", 20, "--schedule", "linear", "policy.denoise.start_ratio=1", "--steps", 3)
    assert [len(frame["masked"]) for frame in film["frames"]] == [20, 0, 10, 0, 1, 0], (
        "round(.525 * 20), round(.05 * 20)"
    )


def test_without_a_terminal_every_frame_is_one_plain_line(trained: Path) -> None:
    result = sample(trained, "--length", 12, "--steps", 2, "--animate", "policy.denoise.end_ratio=0.5")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "text 1 of 1, step 0 of 2, 12 masked",
        "text 1 of 1, step 1 of 2, 12 filled",
        "text 1 of 1, step 1 of 2, 6 masked",
        "text 1 of 1, step 2 of 2, 6 filled",
    ]
    assert lines[0].endswith(": " + "█" * 12)
    assert lines[2].count("█") == 6
    assert "\x1b" not in result.stdout


def test_a_summary_without_the_frames(trained: Path) -> None:
    result = sample(trained, "--prompt", "a███", "--steps", 2)
    assert result.stdout.startswith("prompt  a███\nwrites  a")
    assert "steps 2  seconds " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--remask", "critic"], "no critic head"),
        (
            ["--remask", "worst"],
            "denoise.remask: Input should be 'confidence', 'critic' or 'random' (received 'worst')",
        ),
        (["--schedule", "cosine"], "give linear, or shares like 0.8,0.4,0.1"),
        (["--schedule", "0.5,0.1", "--steps", "8"], "masking_ratios has 2 shares, but steps=8 needs 7"),
        (["--length", "4", "--prompt", "a█"], "give one of them"),
        (["--length", "33"], "more than policy.block_size=32"),
        (["--steps", "2", "--prompt", "abc"], "has no masked position"),
        (["--animate", "--json"], "give one of them"),
        (["--steps", "9" * 30], "100000"),
        (["--length", "9" * 30], "100000"),
        (["-n", "9" * 30], "100000"),
        (["--length", "9" * 5000], "Invalid value for '--length'"),
    ],
)
def test_what_cannot_be_is_one_clear_error(trained: Path, arguments: list[str], says: str) -> None:
    result = sample(trained, *arguments)
    assert result.exit_code == 2
    assert says in " ".join(re.sub("[│╭╮╰╯─]", " ", result.output).split())
    assert result.exception is None or isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("arguments", [["--steps", "8"], ["--animate"], ["--length", "9"], ["--save"]])
def test_a_policy_that_writes_in_one_pass_refuses(arguments: list[str]) -> None:
    result = sample("quick", *arguments)
    assert result.exit_code == 2
    assert (
        "policy kind 'autoregressive' does not write in several steps; kinds that do: fill_in, flow, refusion, unmasking. Leave"
        in result.output
    )


def test_films_are_kept_in_a_run_and_not_beside_a_recipe(trained: Path, tmp_path: Path) -> None:
    result = sample(trained, "--prompt", "<███>", "-n", 2, "--save")
    assert result.exit_code == 0
    assert f"saved: {trained / '1-sft' / FILE}" in result.stderr
    kept = RunDir(trained / "1-sft").lines(FILE)
    assert [film["prompt"] for film in kept] == ["<███>"] * 2
    assert kept[0]["step"] == 2
    page = write_report(trained).read_text(encoding="utf-8")
    payload = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    assert [film["frames"][0]["text"] for film in payload["stages"][0]["films"][0]["films"]] == ["<███>"] * 2
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(json.dumps(RECIPE))
    result = sample(recipe, "--save")
    assert result.exit_code == 2
    assert "is a recipe" in result.output


# ---------------------------------------------------------------------- the terminal


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "RUN", "--steps", "3", "-n", "1"],
        ["sample", "RUN", "--steps", "3", "-n", "1", "--animate"],
        ["sample", "RUN", "--prompt", "a█b", "-n", "1"],
        ["sample", "RUN", "--prompt", "a█b", "-n", "1", "--json"],
        ["inspect-batch", "RECIPE", "-n", "2"],
    ],
    ids=["steps", "animate", "prompt", "json", "inspect-batch"],
)
def test_a_terminal_or_pipe_that_is_not_utf8_shows_question_marks(trained: Path, arguments: list[str]) -> None:
    """As pipes on Windows are. JSON loses nothing: it has escapes for every character."""
    places = {"RUN": str(trained), "RECIPE": str(next(trained.glob("*/recipe.yaml")))}
    result = CliRunner(charset="cp1252").invoke(app, [places.get(a, a) for a in arguments], env={"NO_COLOR": "1"})
    assert result.exit_code == 0, f"{result.output} {result.exception!r}"
    if "--json" in arguments:
        assert json.loads(result.stdout)["prompt"] == "a█b"
    else:
        assert "?" in result.stdout
        assert "█" not in result.stdout


def film(prompt: str = "a██b█", steps: int = 3, seed: int = 0) -> dict[str, Any]:
    policy: Any = make(denoise={"steps": steps, "start_ratio": 0.75, "end_ratio": 0.5})().policy
    return policy.film([Prompt(prompt)], 1, torch.Generator().manual_seed(seed))[0]


def on_a_terminal(films: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[float]]:
    """What a terminal receives, and the pauses between the frames."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    master, slave = os.openpty()
    received: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(master, 65536):
                received.append(chunk)
        except OSError:  # the other end is closed: on Linux an error, not an end of file
            pass

    reader = threading.Thread(target=read)
    reader.start()
    waits: list[float] = []
    with open(slave, "w", encoding="utf-8") as terminal:
        animate.play(films, terminal, wait=waits.append)
    reader.join(timeout=30)
    os.close(master)
    return b"".join(received).decode(), waits


def test_masks_are_dim_and_fresh_text_is_bright_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shot = film("a████b")
    text, waits = on_a_terminal([shot], monkeypatch)
    assert waits == [animate.SECONDS_PER_FRAME] * len(shot["frames"])
    assert re.search(r"a(\x1b\[0m)?\x1b\[2m█", text), "given text plain, then masks dim"
    assert re.search(r"a(\x1b\[0m)?\x1b\[1;92m[abc]", text), "filled text bright"
    assert f"step 3 of 3, {len(shot['frames'][-1]['filled'])} filled" in ESCAPE.sub("", text)
    assert ESCAPE.sub("", text).rstrip().endswith(shot["final"])


def test_escape_sequences_a_model_writes_do_not_reach_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shot = film("█")
    shot["frames"][-1] |= {"text": "\x1b]0;owned\x07"[:1], "filled": [0]}
    text, _ = on_a_terminal([shot], monkeypatch)
    assert "\N{REPLACEMENT CHARACTER}" in text
    assert "\x1b]" not in text


def test_a_plain_line_shows_line_ends_as_a_sign() -> None:
    shot = film("█")
    shot["frames"][-1] |= {"text": "one\ntwo\x1b[2J"}
    file = io.StringIO()
    animate.play([shot], file, wait=lambda _: pytest.fail("there is nothing to wait for"))
    assert file.getvalue().splitlines()[-1].endswith(": one⏎two\N{REPLACEMENT CHARACTER}[2J")
    assert len(file.getvalue().splitlines()) == len(shot["frames"])


def test_the_cells_of_a_frame_carry_their_styles() -> None:
    frame = {"text": "aé█", "cells": ["a", "é", "█"], "masked": [2], "filled": [1], "step": 1, "confidence": [None] * 3}
    text = animate.picture(frame, {"source": "text"})
    assert text.plain == "aé█"
    assert [(span.start, span.end, span.style) for span in text.spans if span.style] == [
        (1, 2, animate.FRESH),
        (2, 3, animate.MASKED),
    ]


def test_what_is_right_and_what_is_wrong_is_shown_and_counted_where_it_is_known():
    frame = {"text": "abc█", "masked": [3], "filled": [1, 2], "step": 1, "confidence": [None] * 4}
    film = {"source": "text", "hidden": [[1, "b"], [2, "x"], [3, "d"], [9, "beyond"]], "frames": [frame]}
    assert [(s.start, s.end, s.style) for s in animate.picture(frame, film).spans if s.style] == [
        (1, 2, animate.RIGHT), (2, 3, animate.WRONG), (3, 4, animate.MASKED),
    ]  # fmt: skip
    assert animate.caption(film, frame) == "step 1 of 1, 1 masked, 1 of 4 right"


# ---------------------------------------------------------------------- the report


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage with a film before and after training of one text, and one whose text is hostile."""
    folder = tmp_path_factory.mktemp("films") / "grpo"
    write_stage(folder, "grpo", steps=6)
    evil = film("█", steps=1)
    evil |= {"prompt": EVIL, "final": EVIL}
    evil["frames"][-1] |= {"text": EVIL, "filled": [0], "confidence": [0.5], "cells": [EVIL]}
    before = film(seed=2)
    before["hidden"] = [[1, before["frames"][-1]["text"][1]], [2, "?"], "nonsense"]
    for record in ({"step": 6, **film(seed=1)}, {"step": 0, **before}, evil):
        RunDir(folder).append(FILE, record)
    write_report(folder)
    return folder


def test_stepping_and_playing_leads_from_masks_to_the_finished_text(browser: Any, stage: Path) -> None:
    look = test_report.Look(browser, stage / "report.html")
    player = look.page.get_by_test_id("films")
    before, after = (film(seed=seed)["frames"] for seed in (2, 1))
    panels = player.locator("article > pre:first-of-type")
    assert [truth.inner_text() for truth in player.locator("article .hidden").all()] == [before[-1]["text"][1], "?"]

    def shown() -> list[str]:
        return [panel.inner_text() for panel in panels.all()]

    assert shown() == ["a██b█", "a██b█"]
    assert [chip.inner_text() for chip in player.locator("article .chip:first-child").all()] == [
        "before training",
        "after step 6",
    ]
    assert player.locator("article").first.locator(".hole").count() == 3
    slider = player.locator("input[type=range]")
    for number in (1, 2):
        slider.press("ArrowRight")
        assert shown() == [before[number]["text"], after[number]["text"]]
        assert player.locator("output").inner_text() == f"{number + 1} of 6"
        first = player.locator("article").first
        assert first.locator(".hole").count() == len(before[number]["masked"])
        assert first.locator(".fresh").count() == len(before[number]["filled"])
    confident = [p for p in before[2]["confidence"] if p is not None]
    cells = player.locator("article").first.locator(".cell")
    assert [c.get_attribute("title") for c in cells.all()] == [f"probability {p:g}" for p in confident]
    assert cells.first.evaluate("e => getComputedStyle(e).backgroundColor") != "rgba(0, 0, 0, 0)"

    look.page.clock.install(time="2026-01-01")
    look.page.clock.pause_at("2026-01-02")  # from here on time passes when the test says so
    button = player.locator("button")
    button.click()
    assert button.inner_text() == "Pause"
    look.page.clock.run_for(499)
    assert slider.input_value() == "2"
    look.page.clock.run_for(1)
    assert slider.input_value() == "3"
    button.click()
    assert button.inner_text() == "Play"
    look.page.clock.run_for(5000)
    assert slider.input_value() == "3", "paused"
    player.locator("select.speed").select_option("0.5")
    button.click()
    look.page.clock.run_for(1999)
    assert slider.input_value() == "4"
    look.page.clock.run_for(1)
    assert shown() == [before[-1]["text"], after[-1]["text"]]
    assert "█" not in "".join(shown())
    assert [player.locator(f"article .{kind}").count() for kind in ("right", "wrong")] == [1, 1]
    assert "1 of 2 right" in player.locator("article").first.inner_text()
    assert button.inner_text() == "Play", "it stops at the end"
    button.click()
    assert shown() == [before[0]["text"], after[0]["text"]], "and plays again from the start"
    assert look.complaints == []
    assert look.overflow() == 0


def test_hostile_text_in_a_film_is_inert(browser: Any, stage: Path) -> None:
    look = test_report.Look(browser, stage / "report.html", width=400)
    player = look.page.get_by_test_id("films")
    player.locator("select").first.select_option(index=1)
    player.locator("input[type=range]").press("End")
    assert player.locator("article pre").inner_text() == EVIL
    assert look.page.evaluate("window.pwned") is None
    assert look.page.evaluate("document.querySelectorAll('img').length") == 0
    assert look.overflow() == 0
    assert [u for u in look.requests if not u.startswith(("file:", "data:", "blob:"))] == []


def test_a_run_without_films_has_no_such_section(tmp_path: Path) -> None:
    write_stage(tmp_path, "grpo", steps=3)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Filling in" not in page
    assert "films.jsonl" not in page


def test_films_that_cannot_be_played_are_named_and_many_are_thinned(tmp_path: Path) -> None:
    write_stage(tmp_path, "grpo", steps=3)
    long = film(steps=50)
    for number in range(MAX_FILMS + 3):
        RunDir(tmp_path).append(FILE, {"step": number, **long})
    RunDir(tmp_path).append(FILE, {"step": 1, "prompt": "x", "frames": [{"text": "x"}]})
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert f"films.jsonl: 1 of {MAX_FILMS + 4} lines have no frames to play" in page
    assert f"The newest {MAX_FILMS} of {MAX_FILMS + 3} films" in page
    payload = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    (group,) = payload["stages"][0]["films"]
    assert [shown["step"] for shown in group["films"]] == list(range(3, MAX_FILMS + 3))
    frames = group["films"][0]["frames"]
    assert len(frames) == MAX_FRAMES
    assert (frames[0]["step"], frames[-1]["step"]) == (0, 50)
    (tmp_path / FILE).write_text("{torn\n", encoding="utf-8")
    assert "films.jsonl cannot be read" in write_report(tmp_path).read_text(encoding="utf-8")


def test_films_of_one_text_are_grouped_in_the_order_of_training() -> None:
    films = [{"prompt": p, "step": s, "frames": []} for p, s in (("a", 9), ("b", None), ("a", 0))]
    assert [(g["prompt"], [f["step"] for f in g["films"]]) for g in film_groups(films)] == [
        ("a", [0, 9]),
        ("b", [None]),
    ]
