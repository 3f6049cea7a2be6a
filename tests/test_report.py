"""The report, rendered from run folders written by hand and looked at in a real browser."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from relgrad.core.errors import RelgradError
from relgrad.monitor.report import write_report
from relgrad.monitor.report.cards import before_after, outcomes
from relgrad.monitor.report.charts import MAX_POINTS, decimate, smooth, stage_charts
from relgrad.monitor.report.page import scores_of, stage_view
from relgrad.monitor.report.read import read_stage, spread, squeezed
from relgrad.monitor.report.result import result_of, scored_by
from relgrad.monitor.report.truth import written
from relgrad.monitor.report.words import number
from written_run import EVIL, filled_in, write_stage


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of two stages, rendered."""
    run = tmp_path_factory.mktemp("runs") / "sums-demo"
    write_stage(run / "warm-up", "sft")
    write_stage(run / "grpo", "grpo")
    write_report(run)
    return run


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install 'relgrad[browser]'"
    )
    args = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        places = [os.environ.get("RELGRAD_CHROMIUM"), "/usr/bin/chromium", str(own)]
        executable = next((p for p in places if p and Path(p).exists()), None)
        if executable is None:
            pytest.skip("no browser: set RELGRAD_CHROMIUM, or apt-get install chromium, or playwright install chromium")
        chromium = playwright.chromium.launch(executable_path=executable, args=args)
        yield chromium
        chromium.close()


class Look:
    """One opened report with everything the browser complained about or asked for."""

    def __init__(self, browser, file: Path, width: int = 1280, scheme: str = "light") -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page = context.new_page()
        self.page.set_default_timeout(180_000)  # a busy machine decides nothing
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.goto(file.resolve().as_uri())
        self.page.wait_for_selector("html[data-ready=yes]", state="attached")

    def overflow(self) -> int:
        """Pixels the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def cut(self) -> list[str]:
        """Tables, texts and charts that are wider than their place."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll('.scroll, pre, .plot')].filter(e => e.scrollWidth > e.clientWidth + 1)
                .map(e => `${e.className} ${e.textContent.slice(0, 40)}`)"""
        )


@pytest.fixture(scope="module")
def wide(browser, run_folder):
    return Look(browser, run_folder / "report.html")


def test_no_console_message_and_no_request_but_the_file_itself(wide, run_folder):
    assert wide.complaints == []
    outside = [u for u in wide.requests if not u.startswith(("data:", "blob:"))]
    assert outside == [(run_folder / "report.html").resolve().as_uri()]


def test_every_chart_has_drawn_lines(wide):
    drawn = wide.page.evaluate(
        """() => [...document.querySelectorAll('[data-chart]')].map(c => [c.dataset.chart, [...
            c.querySelectorAll('svg .scatterlayer path')].filter(p => /[LHVC]/.test(p.getAttribute('d'))).length])"""
    )
    wanted = {
        "evaluation",
        "reward",
        "reward_std",
        "length",
        "kl",
        "entropy",
        "spread",
        "unscored",
        "parity",
        "loss",
        "grad_norm",
        "learning_rate",
        "speed",
        "tokens",
    }
    assert {name for name, _ in drawn} == wanted
    assert [name for name, paths in drawn if not paths] == []
    error_bars = wide.page.evaluate("document.querySelectorAll('[data-chart=evaluation] .errorbar path').length")
    assert error_bars == 6, "three evaluations in each of two stages"


def test_what_never_changes_is_one_line_and_no_chart(wide):
    sft, grpo = wide.page.get_by_test_id("constant").all_inner_texts()
    assert sft == "Constant: gradient norm = 1, learning rate = 0.0001, speed = 2100, step time = 0.8."
    for text in ("clipped decisions (all) = 0.02", "clipped decisions (low side) = 0.008", "relative update = 0.0001"):
        assert text in grpo


def test_one_step_is_no_constant_and_rounding_is_no_chart():
    charts, _, constants = stage_charts([{"step": 1, "loss": 0.5}], {})
    assert ([c.id for c in charts], constants) == (["loss"], [])
    noise = [{"step": i, "kl": i / 10, "mean_advantage": (-1) ** i * 1e-8} for i in range(9)]
    charts, others, constants = stage_charts(noise, {})
    assert ([c.id for c in charts], others, constants) == (["kl"], [], ["mean_advantage = 0"])


def test_every_chart_says_how_it_is_read(wide):
    notes = wide.page.evaluate(
        "() => [...document.querySelectorAll('[data-chart]')].map(c => [c.dataset.chart, c.querySelector('.note')?.textContent])"
    )
    assert [name for name, note in notes if not note] == []


def test_a_run_opens_with_the_result_of_its_last_stage(wide):
    result = wide.page.get_by_test_id("result")
    assert result.bounding_box()["y"] < 400
    text = result.inner_text()
    expected = ["0.31", "0.74", "+0.43", "+0.37 to +0.49", "200 prompts", "60 grpo steps"]
    expected += ["Temperature\n0.8", "Seed\n7", "Masks\nrandom", "Scored by\nexact"]
    expected += ["autoregressive · HuggingFaceTB/SmolLM2-135M-Instruct", "134,000, of which 1,200 are trained"]
    for words in expected:
        assert words in text, words
    rows = [r.inner_text().split("\t") for r in wide.page.get_by_test_id("stages").locator("tbody tr").all()]
    assert rows == [
        ["1. warm-up", "60 sft steps", "exact", "0.31", "0.74", "none", "complete, 60 steps"],
        ["2. grpo", "60 grpo steps", "exact", "0.31", "0.74", "no_spread, unscored", "complete, 60 steps"],
    ]
    assert wide.page.locator("nav").inner_text().split("\n") == ["Result", "1. warm-up", "2. grpo"]


def test_a_run_that_is_not_finished_says_what_it_has(tmp_path):
    write_stage(tmp_path / "1-sft", "sft")
    write_stage(tmp_path / "2-grpo", "grpo")
    stages = [read_stage(tmp_path / name) for name in ("1-sft", "2-grpo")]
    begun = replace(stages[1], evaluations=[], metrics=[])
    result = result_of([stages[0], begun], [stage_view(i, s) for i, s in enumerate((stages[0], begun))])
    assert result["stage"]["title"] == "sft"
    assert result["later"] == ["grpo"]
    unscored = replace(stages[0], evaluations=[])
    result = result_of([unscored, begun], [stage_view(i, s) for i, s in enumerate((unscored, begun))])
    assert (result["stage"], result["scores"]) == (None, [])
    assert result_of(stages[:1], [stage_view(0, stages[0])]) is None


def test_the_truth_stands_beside_what_was_filled_in(wide):
    pair = wide.page.get_by_test_id("pair").filter(has_text="sat").first
    assert pair.locator(".truth").inner_text() == "a cat sat."
    assert pair.locator(".truth .hidden").all_inner_texts() == ["cat", "."]
    before, after = pair.locator(".sides > div").all()
    assert before.locator(".wrong").all_inner_texts() == ["cow", "⏎\n"]
    assert after.locator(".right").all_inner_texts() == ["cat"]
    assert "0 of 2 right" in before.inner_text()
    assert "1 of 2 right" in after.inner_text()


def test_figures_of_the_users_own_are_drawn_when_opened(wide):
    wide.page.locator("details.others summary").click()
    wide.page.wait_for_selector("details.others svg .scatterlayer path.js-line")
    assert "my/own_figure" in wide.page.locator("details.others").inner_text()


def test_held_out_scores_with_intervals_are_on_the_page(wide):
    text = wide.page.get_by_test_id("score").last.inner_text()
    for figure in ("0.31", "0.25 to 0.36", "0.74", "0.68 to 0.79", "+0.43", "+0.37 to +0.49", "200 prompts"):
        assert figure in text


def test_every_reward_has_its_row_and_a_monitor_says_so(wide):
    rows = [r.inner_text().split("\t") for r in wide.page.get_by_test_id("rewards").last.locator("tbody tr").all()]
    assert rows == [
        ["exact", "0.21", "0.64", "+0.43", "+0.2 to +0.5"],
        ["second monitor", "0.5", "0.44", "−0.06", "−0.1 to −0.02"],
        ["KL nats per decision", "0", "0.12", "–", "–"],
        ["entropy nats per decision", "1.5", "0.9", "–", "–"],
    ]


def test_the_table_of_evaluations_has_divergence_and_entropy(wide):
    table = wide.page.locator("details:has(summary:text('All evaluations')) table").last
    heads = table.locator("th").all_inner_texts()
    cells = table.locator("tbody tr").last.locator("td").all_inner_texts()
    found = dict(zip(heads, cells, strict=True))
    assert found["KL"] == "0.12"
    assert found["Entropy"] == "0.9"


def test_before_and_after_stand_side_by_side(wide):
    pair = wide.page.get_by_test_id("pair").first
    left, right = pair.locator(".sides > div").all()
    assert "step 0: 6" in left.inner_text()
    assert "step 60: 6" in right.inner_text()
    assert left.bounding_box()["y"] == right.bounding_box()["y"]
    assert left.bounding_box()["x"] < right.bounding_box()["x"]


def test_warnings_show_evidence_advice_and_when(wide):
    items = {w.locator("code").inner_text(): w.inner_text() for w in wide.page.get_by_test_id("warning").all()}
    assert set(items) == {"no_spread", "unscored", "entropy_collapse"}
    assert "too easy" in items["no_spread"]
    assert "at the last step, first at step 40" in items["no_spread"]
    assert "at step 12, not at the end" in items["entropy_collapse"]


def test_the_slider_and_the_group_choose_the_samples(wide):
    samples = wide.page.get_by_test_id("samples")
    slider = samples.locator("input[type=range]")
    assert "Prompt 0 of step 58" in samples.inner_text()
    slider.focus()
    slider.press("Home")
    assert samples.locator("output").inner_text() == "1"
    assert "Prompt 0 of step 1" in samples.inner_text()
    slider.press("ArrowRight")
    samples.locator("select").first.select_option(index=1)
    assert "Prompt 1 of step 4" in samples.inner_text()
    assert samples.locator("article").count() == 4
    samples.locator("select.order").select_option("reward")
    rewards = [t.split()[1] for t in samples.locator("article .chip:first-child").all_inner_texts()]
    assert rewards == ["1", "1", "0.25", "0"]
    assert "timeout" in samples.inner_text()
    assert "advantage −0.25" in samples.inner_text()
    assert "⋯ 19 empty lines ⋯" in samples.locator(".prompt").first.inner_text()
    assert samples.locator(".truth").inner_text() == "a cat sat."
    assert samples.locator("article .right").all_inner_texts() == ["cat"]


def test_no_chip_is_a_riddle(wide):
    samples = wide.page.get_by_test_id("samples")
    chips = samples.locator("article .chip").all_inner_texts()
    assert not [chip for chip in chips if re.match("stop|exact|second", chip)]
    assert "cut off at the length limit" in chips
    assert "a monitor: it is watched" in samples.inner_text()
    assert "exact 1 · second 0.5" in samples.inner_text()
    samples.locator("article details.parts summary").first.click()
    table = samples.locator("article details.parts").first.inner_text()
    assert "share of the letters" in table
    assert "a part of what exact says" in table


def test_text_from_the_run_is_inert(wide):
    assert wide.page.evaluate("window.pwned") is None
    assert wide.page.evaluate("document.querySelectorAll('img').length") == 0
    assert EVIL in wide.page.get_by_test_id("samples").inner_text()
    assert EVIL in wide.page.get_by_test_id("pair").last.text_content()


def test_the_policy_blocks_scripts_even_if_markup_slipped_in(browser, run_folder, tmp_path):
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    (tmp_path / "report.html").write_text(page.replace("<footer>", EVIL + "<footer>"), encoding="utf-8")
    look = Look(browser, tmp_path / "report.html")
    assert look.page.evaluate("window.pwned") is None


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (400, "light"),
        (1280, "dark"),
        pytest.param(400, "dark", marks=pytest.mark.slow),
        pytest.param(1280, "light", marks=pytest.mark.slow),
    ],
)
def test_nothing_overflows_and_colours_follow_the_scheme(browser, run_folder, width, scheme):
    look = Look(browser, run_folder / "report.html", width, scheme)
    assert look.overflow() == 0
    look.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert look.overflow() == 0
    assert look.cut() == []
    background = look.page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", background)[0])
    assert red < 60 if scheme == "dark" else red > 200
    assert look.complaints == []
    if folder := os.environ.get("RELGRAD_SCREENSHOTS"):
        look.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")
        look.page.screenshot(path=f"{folder}/report-{width}-{scheme}.png", full_page=True)


def test_an_empty_folder_gives_a_page_that_says_what_is_missing(browser, tmp_path):
    look = Look(browser, write_report(tmp_path))
    text = look.page.inner_text("main")
    for name in ("metrics.jsonl", "recipe.yaml", "environment.json", "evaluations.jsonl", "samples/"):
        assert name in text
    assert look.complaints == []


def test_torn_null_and_unreadable_files(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "reward": null, "kl": 0.1}\n{"step": 2, "rew', encoding="utf-8"
    )
    (tmp_path / "recipe.yaml").write_text("a: [1, 2", encoding="utf-8")
    (tmp_path / "environment.json").write_text("[]", encoding="utf-8")
    (tmp_path / "evaluations.jsonl").write_text(
        '{"step": 0, "score": null, "low": null, "high": null}\n', encoding="utf-8"
    )
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "recipe.yaml cannot be read" in text
    assert "environment.json cannot be read" in text
    payload = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert [c["id"] for c in payload["stages"][0]["charts"]] == ["kl"]


def test_one_stage_alone_and_a_folder_that_is_not_there(tmp_path):
    write_stage(tmp_path / "grpo", "grpo", steps=5)
    assert write_report(tmp_path / "grpo") == tmp_path / "grpo" / "report.html"
    assert [p.name for p in tmp_path.glob("grpo/.*")] == [], "no temporary file stays"
    with pytest.raises(RelgradError, match="no run folder"):
        write_report(tmp_path / "nowhere")


def test_stages_come_in_the_order_they_were_begun(run_folder):
    text = (run_folder / "report.html").read_text(encoding="utf-8")
    assert (
        0
        < text.index('id="stage-0"')
        < text.index('1. warm-up <span class="kind">a stage of kind sft')
        < text.index('id="stage-1"')
    )
    assert "complete, 60 steps" in text


def test_long_runs_are_thinned_without_losing_spikes(tmp_path):
    y = [math.sin(i / 900) for i in range(20_000)]
    y[7_777], y[15_000] = 50.0, -50.0
    kept = decimate(y)
    assert len(kept) <= MAX_POINTS
    assert kept == sorted(set(kept))
    assert {7_777, 15_000} <= set(kept)
    records = [{"step": i, "kl": v} for i, v in enumerate(y)]
    charts, _, _ = stage_charts(records, {})
    assert len(charts[0].series[0].x) <= MAX_POINTS
    assert max(charts[0].series[0].raw) == 50.0
    assert decimate([None] * 5000) == [i * 5000 // 600 for i in range(600)]


def test_running_mean_by_hand():
    assert smooth([1.0, 2.0, 6.0, None, 4.0], 3) == [1.5, 3.0, 4.0, None, 4.0]


def test_spread_keeps_both_ends():
    assert spread(list(range(100)), 4) == [0, 33, 66, 99]
    assert spread([1, 2], 4) == [1, 2]


def test_samples_are_matched_by_prompt_across_the_first_and_the_last_evaluation():
    evaluations = [
        {
            "step": s,
            "name": "e",
            "score": 0.5,
            "samples": [{"prompt": p, "completion": f"{p}{s}", "score": s} for p in prompts],
        }
        for s, prompts in ((0, "abb"), (5, "c"), (9, "bx"))
    ]
    (pair,) = before_after(evaluations)
    assert pair["prompt"] == "b"
    assert [e["completion"] for e in pair["before"]] == ["b0", "b0"]
    assert [e["completion"] for e in pair["after"]] == ["b9"]
    assert scores_of(evaluations)[0]["last"]["step"] == 9


def test_prompts_whose_outcome_changed_most_come_first():
    def evaluation(step, scores):
        samples = [{"prompt": p, "completion": "x", "score": s} for p, s in scores.items()]
        return {"step": step, "name": "e", "samples": samples}

    pairs = before_after([
        evaluation(0, {"same": 1, "fell": 1, "rose": 0, "unscored": None}),
        evaluation(9, {"same": 1, "fell": 0.5, "rose": 1, "unscored": 1}),
    ])  # fmt: skip
    assert [pair["prompt"] for pair in pairs] == ["rose", "fell", "same", "unscored"]
    assert outcomes(pairs) == "Of 4 prompts 1 score higher, 1 lower, 1 as before, 1 unscored."


def test_a_filled_in_text_in_pieces():
    card = written(filled_in(right=True))
    assert card["pieces"] == [("given", "a "), ("right", "cat"), ("given", " sat"), ("wrong", "⏎\n")]
    assert card["truth"] == [("given", "a "), ("hidden", "cat"), ("given", " sat"), ("hidden", ".")]
    assert card["right"] == [1, 2]
    foreign = written({"completion": "ab", "truth": "xy", "holes": [[0, 9, "x", True], "nonsense", [1, 2]]})
    assert (foreign["pieces"], foreign["truth"]) == (None, [("given", "xy")])
    assert written({"completion": "ab"})["truth"] is None


def test_padding_with_empty_lines_is_counted():
    assert squeezed("a\n\n\n\nb") == "a\n\n\n\nb"
    assert squeezed("a" + "\n" * 26 + "#\n") == "a\n⋯ 25 empty lines ⋯\n#\n"


def test_records_without_rewards_by_prompt_still_have_a_table(tmp_path):
    """What an old record does not have is a dash; a divergence that nobody measured has no column."""
    old = {"name": "e", "score": 0.5, "low": None, "high": None, "rewards": {"a": 0.25}}
    evaluations = [{**old, "step": 0}, {**old, "step": 5, "rewards": {"a": 0.5}}]
    (row,) = scores_of(evaluations, ["b"])
    (figures,) = row["rewards"]
    assert (figures["before"], figures["after"], figures["difference"], figures["watches"]) == (0.25, 0.5, None, False)
    assert scores_of(evaluations[:1])[0]["rewards"][0]["after"] is None
    for evaluation in evaluations:
        evaluation["rewards"] |= {"b": 1.0}
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(e) + "\n" for e in evaluations), encoding="utf-8")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<th>KL</th>" not in text
    assert "nats per decision" not in text
    row = re.search(r"<tr><td data-label=\"Figure\">a</td>.*</tr>", text)
    assert row is not None
    assert re.findall(r">([^<>]+)<", row[0]) == ["a", "0.25", "0.5", "–", "–"]


def test_a_score_says_what_it_is_the_sum_of():
    rewards = [
        {"kind": "exact"},
        {"kind": "a/form.py", "weight": 0.2},
        {"kind": "judge", "name": "watcher", "weight": 0.0},
    ]
    assert scored_by({"rewards": rewards}) == "exact + 0.2 form"
    assert scored_by({"rewards": rewards, "evaluation": {"rewards": [{"kind": "judge", "name": "own"}]}}) == "own"
    assert scored_by({}) == ""


def test_a_loss_of_one_term_is_drawn_once():
    one = [{"step": t, "loss": t / 9, "pg_loss": t / 9, "kl_penalty": 0.0} for t in range(9)]
    two = [record | {"loss": 1.0, "kl_penalty": 1 - record["pg_loss"]} for record in one]
    assert [[chart.id for chart in stage_charts(records, {})[0]] for records in (one, two)] == [
        ["loss"],
        ["loss_terms"],
    ]


def test_a_reward_that_is_the_total_is_drawn_once():
    records = [
        {"step": t, "reward": t / 9, "rewards/judge/mean": t / 9, "rewards/watcher/mean": 1 - t / 9} for t in range(9)
    ]
    (chart,), _, _ = stage_charts(records, {})
    assert [series.name for series in chart.series] == ["reward", "watcher"]


def test_numbers_read_well():
    assert [number(0.123456), number(-2), number(0.5, True), number(None)] == ["0.1235", "−2", "+0.5", "–"]
    assert [number(0.0, True), number(-0.0)] == ["0", "0"]


def test_imports_no_torch():
    code = "import sys, relgrad.monitor.report, relgrad.monitor.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unreadable_samples_and_warnings_are_named(tmp_path):
    write_stage(tmp_path, "grpo", steps=5)
    (tmp_path / "samples" / "step_000004.jsonl").write_text("{nonsense\n", encoding="utf-8")
    (tmp_path / "warnings.jsonl").write_text("also nonsense\n", encoding="utf-8")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "samples/step_000004.jsonl cannot be read" in text
    assert "warnings.jsonl cannot be read" in text
