"""The evaluation suite: metrics and tests against known answers or the library, generations measured again, outputs."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from chat_server import Answer, says, serving
from commands import relgrad
from relgrad.commands.cli import app
from relgrad.core.errors import RelgradError
from relgrad.core.settings import Component
from relgrad.core.types import Output, Prompt
from relgrad.evaluation.adapter_norms import adapter_norms
from relgrad.evaluation.answers import Answers
from relgrad.evaluation.comparison import compare_all
from relgrad.evaluation.curves import band, efficiency
from relgrad.evaluation.lexical import distinct, self_bleu
from relgrad.evaluation.metric import Completions
from relgrad.evaluation.pairwise import PairwiseSettings, preference, summary, verdict
from relgrad.evaluation.passing import best_of, passes_at
from relgrad.evaluation.perplexity import Perplexity
from relgrad.evaluation.references import Rouge, TokenMatch, matched, rouge
from relgrad.evaluation.semantic import SemanticDiversity
from relgrad.evaluation.significance import cliffs_delta, crossed, d_z, holm, sign_flip
from relgrad.evaluation.verdicts import verdicts
from relgrad.monitor.report.figures import courses_of
from relgrad.runs.build import resolve
from relgrad.runs.pairwise import duels
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe
from test_comparison import contender, evaluation

NAN = math.nan


def answers(texts: Sequence[str], base: tuple[float, int] = (NAN, 0), number: int = 0, **columns: Any) -> Answers:
    outputs = tuple(Output(text) for text in texts)
    return Answers(Prompt("p", columns, number), Completions(outputs, (0.0,) * len(texts), (1,) * len(texts)), *base)


# ---------------------------------------------------------------------- metrics


def test_self_bleu_is_sacrebleus() -> None:
    from sacrebleu import sentence_bleu

    texts = ["the cat sat on the mat today", "the cat sat on a rug", "a dog ran over the old bridge today"]
    by_library = [sentence_bleu(texts[i], texts[:i] + texts[i + 1 :], use_effective_order=True).score for i in range(3)]
    assert self_bleu(texts) == pytest.approx(sum(by_library) / 300)
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(1.0)
    assert math.isnan(self_bleu(["only one", "  "]))


def test_distinct_ngrams() -> None:
    assert distinct(["a b a", "a c"], 1) == 3 / 5
    assert distinct(["a b a", "a b"], 2) == 2 / 3
    assert math.isnan(distinct(["a"], 2))


def test_semantic_diversity_is_within_the_prompt() -> None:
    vectors = {"x": [1.0, 0.0], "y": [0.0, 1.0], "z": [-1.0, 0.0]}
    metric = SemanticDiversity(lambda texts: torch.tensor([vectors[text] for text in texts]))
    figures = metric([answers(["x", "y"]), answers(["x", "x", "z"]), answers(["z"])])
    assert figures[:2] == pytest.approx([1.0, 4 / 3])
    assert math.isnan(figures[2])


def test_rouge_and_matched_embeddings() -> None:
    assert rouge("rouge1")("the cat", "the cat sat") == pytest.approx(0.8)
    metric = Rouge("rougeL", "reply")
    near = answers(["the cat sat", "dog"], reply=["the cat", "a dog"])
    assert metric([near, answers(["x"])])[0] == pytest.approx((0.8 + 2 / 3) / 2)
    assert math.isnan(metric([answers(["x"])])[0])
    text, reference = torch.eye(3)[:2], torch.eye(3)[[0, 2, 1]]
    assert matched(text, reference) == pytest.approx(0.8)  # precision 1, recall 2/3
    assert matched(text[:0], reference) == 0
    tokens = {"a b": torch.eye(3)[:2], "a": torch.eye(3)[:1]}
    own = TokenMatch(lambda texts: [tokens[text] for text in texts], "reply")
    assert own([answers(["a b", "a"], reply="a")]) == pytest.approx([(2 / 3 + 1) / 2])


def test_pass_at_k_best_of_k_and_perplexity() -> None:
    assert passes_at([True, False, None, False], 2) == pytest.approx(2 / 3)
    assert math.isnan(passes_at([True, None], 2))
    assert best_of([3.0, NAN, 1.0, 2.0], 2) == pytest.approx((2 + 3 + 3) / 3)
    assert Perplexity()([answers(["x"], (6 * math.log(2), 6)), answers(["x"])])[0] == pytest.approx(2.0)


def test_the_seeds_measures_say_what_is_wrong_about_them() -> None:
    good = efficiency([0.7, 0.9, 1.0, 1.0])
    assert good["der"] == pytest.approx([1.0, 0.9 / 1.4, 1 / 2.1, 1 / 2.8])
    assert good["collapse_k"] == 4
    assert "good model looks collapsed" in good["caveat"]


def test_the_norms_of_an_adapter_are_those_of_what_it_adds(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, generator=draw), torch.randn(7, 2, generator=draw)
    layer = "base_model.model.h.0.q"
    save_file({f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6}))
    assert adapter_norms(tmp_path) == {"h.0.q": pytest.approx(3 * float((b @ a).norm()), rel=1e-6)}
    assert adapter_norms(tmp_path / "none") == {}


def test_a_band_holds_its_curve() -> None:
    curve = band([[0.0, 0.5], [1.0, 1.0], [0.0, NAN]])
    assert curve["mean"] == pytest.approx([1 / 3, 0.75])
    assert curve["low"][0] <= 1 / 3 <= curve["high"][0]
    assert math.isnan(band([[1.0]])["low"][0])


# ---------------------------------------------------------------------- tests and effect sizes


def test_sign_flips_of_few_differences_are_enumerated() -> None:
    assert sign_flip([1.0, 2.0, 0.5]) == pytest.approx(2 / 8)
    assert sign_flip([1.0, 2.0, 0.5, 3.0, NAN, 1.0]) == pytest.approx(2 / 32)
    assert sign_flip([1.0, -1.0]) == pytest.approx(1.0)
    assert sign_flip([0.0, 0.0, 0.0]) == 1.0
    assert math.isnan(sign_flip([1.0]))


def test_holms_adjustment() -> None:
    assert holm([0.01, 0.04, NAN, 0.03, 0.005])[:2] == pytest.approx([0.03, 0.06])
    assert holm([0.01, 0.04, NAN, 0.03, 0.005])[3:] == pytest.approx([0.06, 0.02])
    assert math.isnan(holm([0.01, NAN])[1])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_effect_sizes() -> None:
    assert d_z([1.0, 2.0, 3.0, NAN]) == pytest.approx(2.0)
    assert math.isnan(d_z([1.0, 1.0]))
    assert cliffs_delta([1.0, 2.0], [2.0, 3.0]) == 3 / 4
    assert cliffs_delta([2.0, 3.0], [1.0, NAN]) == -1
    assert math.isnan(cliffs_delta([], [1.0]))


def test_the_interval_over_seeds_and_prompts() -> None:
    one = crossed([[0.1, 0.3, 0.2, 0.4, 0.0, 0.2] * 5], True)
    assert one.value == pytest.approx(0.2)
    assert 0.1 < one.low < 0.2 < one.high < 0.3
    seeds = crossed([[0.0] * 30, [1.0] * 30], True)
    assert seeds == pytest.approx((0.5, 0.0, 1.0))
    nested = crossed([[0.0] * 30, [1.0] * 20], False)
    assert (nested.low, nested.high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="other numbers of prompts"):
        crossed([[0.0], [1.0, 2.0]], True)
    assert all(math.isnan(value) for value in crossed([[NAN]], True))


def test_verdicts_pair_prompts_over_seeds_and_adjust_in_two_families() -> None:
    """Prompt by prompt the mean over two seeds; the primary figure is adjusted for the policies alone, the rest all together."""
    zero, up, down = [0.0] * 5, [0.1, 0.2, 0.3, 0.4, 0.5], [0.3, 0.2, 0.1, 0.0, -0.1]
    a = contender("a", evaluation(zero, r=zero), evaluation(zero, r=zero))
    b = contender("b", evaluation(up, r=zero), evaluation(up[::-1], r=zero))
    c = contender("c", evaluation(up, r=up), evaluation(down, r=up))
    found = verdicts(compare_all([a, b, c]), "score")
    first, score_b, score_c = found["score"]
    assert first is None
    assert score_b is not None
    assert score_c is not None
    assert score_b.p == pytest.approx(2 / 32)  # five differences of .3 each
    assert score_b.p_holm == pytest.approx(4 / 32)
    assert score_b.cliffs_delta == 1
    assert score_b.interval.value == pytest.approx(0.3)
    assert score_c.interval.low < score_c.interval.value < score_c.interval.high
    rest_b, rest_c = found["r"][1:]
    assert [one and one.p_holm for one in (rest_b, rest_c)] == pytest.approx([1.0, 4 / 32])
    mirrored = verdicts(compare_all([a, b], mirrored=True), "score")["score"][1]
    assert mirrored is not None
    assert mirrored.cliffs_delta == -1


# ---------------------------------------------------------------------- compare

RECIPE: dict[str, Any] = {
    "name": "x",
    "policy": {"kind": "autoregressive", "model": "tiny:32x1", "max_completion_length": 3, "lora": {"r": 2}},
    "task": {"kind": "digits", "length": 2, "train_size": 20, "held_out_size": 6, "test_size": 6},
    "rewards": [{"kind": "exact", "per_character": True}],
    "evaluation": {
        "num_prompts": 5,
        "num_generations": 3,
        "suite": {
            "ks": [1, 3],
            "passing": {"kind": "regex", "pattern": "[0-9]", "name": "a digit", "threshold": 1},
            "references": "completion",
            "semantic": False,
            "perplexity": True,
            "primary": "best of 3",
        },
    },
    "sft": {"steps": 1, "batch_size": 2, "learning_rate": 1e-2},
    "stages": [{"stage": "sft", "label": "a"}, {"stage": "sft", "label": "b", "from": "start", "sft": {"steps": 3}}],
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A folder with everything that compare writes, the run, and what was printed."""
    root = tmp_path_factory.mktemp("suite")
    run = run_recipe(parse_recipe({**RECIPE, "out": str(root)}))[0].parent
    shown = relgrad(
        "compare", f"{run}:a", f"{run}:b", "--generations", root / "g.jsonl", "--json", root / "c.json",
        "--csv", root / "c.csv", "--latex", root / "c.tex", "--figures", root / "figures", "--html", root / "c.html",
    )  # fmt: skip
    return root, run, shown


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "400"})
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output


def test_everything_is_measured_tested_and_written(kept: tuple[Path, Path, str]) -> None:
    root, _, shown = kept
    record = json.loads((root / "c.json").read_text())
    names = [figure["name"] for figure in record["figures"]]
    suite = [
        "pass@1",
        "pass@3",
        "best of 1",
        "best of 3",
        "self-BLEU",
        "distinct-1",
        "distinct-2",
        "ROUGE-1",
        "ROUGE-2",
        "ROUGE-L",
    ]
    assert names[-len(suite) - 1 :] == [*suite, "perplexity under the base model"]
    assert "best of 3 (primary)" in shown
    assert "p (Holm)" in shown
    assert record["suite"]["passing"] == "a digit of at least 1"
    assert len(record["suite"]["curves"]["pass@k"][0]["mean"]) == 3
    assert record["adapters"].keys() == {
        training["source"] for one in record["contenders"] for training in one["trainings"]
    }
    rows = list(csv.DictReader((root / "c.csv").open()))
    assert len(rows) == 2 * len(names)
    assert {row["figure"] for row in rows if row["primary"] == "1"} == {"best of 3"}
    latex = (root / "c.tex").read_text()
    assert latex.count(r"\\") == len(names) + 1
    assert "pass@1 & " in latex
    drawn = {path.name for path in (root / "figures").iterdir()}
    assert drawn == {"pass_at_k.pdf", "best_of_k.pdf", "quality_diversity.pdf", "differences.pdf", "adapter_norms.pdf"}
    assert (root / "figures" / "pass_at_k.pdf").read_bytes().startswith(b"%PDF")
    page = (root / "c.html").read_text()
    assert page.count("<svg") >= 5
    assert "<script" not in page


def test_generations_are_measured_again_without_the_policies(
    kept: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from relgrad.runs import compare, suite

    def missing(*arguments: object, **more: object) -> None:
        raise AssertionError("a policy was built")

    monkeypatch.setattr(suite, "build_policy", missing)
    monkeypatch.setattr(compare, "build_policy", missing)
    root, _, shown = kept
    again = relgrad("compare", "--generations", root / "g.jsonl", "--json", tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text()) == json.loads((root / "c.json").read_text())
    assert again.splitlines()[:10] == shown.splitlines()[:10]
    other = relgrad("compare", "--generations", root / "g.jsonl", "evaluation.suite.primary=pass@3")
    assert "pass@3 (primary)" in other
    sample = json.loads((root / "g.jsonl").read_text().splitlines()[1])
    assert sample["samples"][0].keys() == {"text", "ids", "stop", "tokens", "rewards"}
    assert sample["base"]["tokens"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluation.suite.ks=[9]"], "k=9 of 3 completions a prompt"),
        (["evaluation.suite.primary=nonsense"], "primary='nonsense' is no figure; there are score, exact"),
        (["evaluation.suite.references=nowhere"], "no prompt has a text in column 'nowhere'; there are"),
        (["evaluation.suite.passing.threshold=high"], "evaluation.suite"),
        (["grpo.steps=3"], "only evaluation.suite can still be changed"),
        (["--on", "quick"], "--on and --test-file need policies"),
    ],
)
def test_what_cannot_be_measured_is_refused(kept: tuple[Path, Path, str], arguments: list[str], message: str) -> None:
    assert message in " ".join(refused("--generations", kept[0] / "g.jsonl", *arguments).split())


def test_k_beyond_the_completions_is_refused_before_anything_is_drawn(kept: tuple[Path, Path, str]) -> None:
    said = " ".join(refused(f"{kept[1]}:a", f"{kept[1]}:b", "evaluation.suite.ks=[4]").split())
    assert "k=4 of 3 completions a prompt" in said


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluation.suite.primary=pass@9", "primary='pass@9' is no figure; there are score, exact"),
        ("evaluation.suite.references=nowhere", "no prompt has a text in column 'nowhere'; there are answer"),
    ],
)
def test_figures_that_cannot_be_are_refused_before_anything_is_drawn(
    setting: str, message: str, kept: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from relgrad.runs import compare

    def drawn(*arguments: object, **more: object) -> None:
        raise AssertionError("something was drawn")

    monkeypatch.setattr(compare, "draw_and_reward", drawn)
    assert message in " ".join(refused(f"{kept[1]}:a", f"{kept[1]}:b", setting).split())


def test_a_recipe_whose_primary_figure_no_stage_has_is_refused_with_the_plan(tmp_path: Path) -> None:
    with pytest.raises(RelgradError, match=r"primary='nonsense' is no figure; there are score, exact, .*pass@1"):
        resolve(parse_recipe({**RECIPE, "out": str(tmp_path)}, ["evaluation.suite.primary=nonsense"]))
    resolve(parse_recipe({**RECIPE, "out": str(tmp_path)}, ["stages.1.evaluation.suite.primary=nonsense"]))


def test_checkpoints_of_a_training_are_points_of_a_curve() -> None:
    steps = [f"runs/x/1-sft/checkpoints/step_0000{n}0" for n in (4, 2)]
    labels = ["runs/x", *steps, "runs/y/1-sft/checkpoints/step_000010"]
    record = {"contenders": [{"label": label} for label in labels]}
    assert courses_of(record) == {"runs/x/1-sft": [(20, 2), (40, 1)]}


def test_an_adapter_of_another_base_model_is_refused(kept: tuple[Path, Path, str]) -> None:
    said = " ".join(refused(f"{kept[1]}:a", f"{kept[1]}:b", "policy.model=tiny:64x1").split())
    assert "this adapter belongs to another model" in said


def test_files_that_hold_no_generations_are_named(kept: tuple[Path, Path, str], tmp_path: Path) -> None:
    assert "no file of generations" in refused("--generations", tmp_path / "none.jsonl")
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    assert "belongs in its first line" in " ".join(refused("--generations", tmp_path / "other.jsonl").split())
    lines = (kept[0] / "g.jsonl").read_text().splitlines()
    broken = json.loads(lines[1])
    del broken["samples"][0]["stop"]
    (tmp_path / "broken.jsonl").write_text("\n".join([lines[0], json.dumps(broken), *lines[2:]]) + "\n")
    assert "line 2: a sample without stop" in " ".join(refused("--generations", tmp_path / "broken.jsonl").split())
    (tmp_path / "half.jsonl").write_text("\n".join(lines[:6]) + "\n")
    assert "the file is not whole" in " ".join(refused("--generations", tmp_path / "half.jsonl").split())


def test_a_suite_is_no_other_recipe(kept: tuple[Path, Path, str]) -> None:
    changed = {**RECIPE, "out": str(kept[0]), "evaluation": {**RECIPE["evaluation"], "suite": {"ks": [2]}}}
    run_recipe(parse_recipe(changed))


# ---------------------------------------------------------------------- the pairwise judge


def test_verdicts_and_preferences() -> None:
    said = {"A": "A", " b.": "B", "**TIE**": "TIE", "[A] is better": "A", "Both": None, "": None, "Answer A": None}
    assert {text: verdict(text) for text in said} == said
    assert [preference("B", "A"), preference("A", "A"), preference("TIE", "B"), preference("A", "B")] == [
        1,
        0.5,
        0.25,
        0,
    ]
    assert math.isnan(preference(None, "A"))


def test_a_prompt_counts_once_whatever_the_number_of_trainings() -> None:
    """6 prompts that all prefer the second: p is 2 / 2^6, as of one training."""
    once, thrice = (summary([[1.0] * trainings] * 6, 0) for trainings in (1, 3))
    assert once == thrice
    assert (thrice["prompts"], thrice["p"]) == (6, pytest.approx(2 / 64))
    mixed = summary([[1.0, math.nan, 0.5], [0.0], [math.nan]], 1)
    assert (mixed["rate"], mixed["prompts"], mixed["unparsed"], mixed["failed"]) == (0.375, 2, 1, 1)
    assert mixed["decided"] == pytest.approx(2 / 3)


def test_a_judge_asked_about_several_trainings_counts_prompts() -> None:
    def trained(text: str) -> list[list[Answers]]:
        return [[answers([text], number=number) for number in range(6)] for _ in range(3)]

    def better(number: int, body: dict[str, Any]) -> Answer:
        return says("A" if "[Answer A]\nlonger" in body["messages"][0]["content"] else "B", model="judge")

    with serving(better) as server:
        backend = Component(kind="endpoint", url=server.url, model="judge")
        row = duels(PairwiseSettings(backend=backend), [trained("short"), trained("longer")])["rows"][1]
        assert len(server.asked) == 36
    assert (row["rate"], row["prompts"], row["p"]) == (1.0, 6, pytest.approx(2 / 64))


def test_a_judge_is_asked_in_both_orders_and_only_once(kept: tuple[Path, Path, str], tmp_path: Path) -> None:
    """Against a real server, which prefers what stands first and answers every third prompt with nonsense."""

    def answer(number: int, body: dict[str, Any]) -> Answer:
        pair = body["messages"][0]["content"].split("[Text]")[1]
        seen.setdefault(pair.split("[Answer A]")[0], len(seen))
        return says("A is better" if seen[pair.split("[Answer A]")[0]] % 3 else "I cannot say", model="judge")

    seen: dict[str, int] = {}
    with serving(answer) as server:
        of = {"kind": "endpoint", "url": server.url, "model": "judge", "retries": 0}
        backend = {"kind": "replay", "mode": "record", "file": str(tmp_path / "judged.jsonl"), "of": of}
        setting = f"evaluation.suite.pairwise={json.dumps({'backend': backend})}"
        arguments = ("compare", "--generations", kept[0] / "g.jsonl", setting, "--json", tmp_path / "c.json")
        shown = relgrad(*arguments)
        asked = len(server.asked)
        again = relgrad(*arguments)
        assert len(server.asked) == asked
    row = json.loads((tmp_path / "c.json").read_text())["suite"]["pairwise"]["rows"][1]
    assert row["unparsed"] >= 1
    assert row["prompts"] + row["unparsed"] == 5
    assert (row["rate"], row["failed"], row["decided"]) == (0.5, 0, 0)
    assert "B preferred to A by endpoint" in shown
    assert f"left out: {row['unparsed']} unparsed, 0 failed" in again


def test_a_judge_that_cannot_be_asked_is_an_error(kept: tuple[Path, Path, str]) -> None:
    file = kept[0] / "g.jsonl"
    with serving(lambda number, body: Answer({"error": "no"}, status=401)) as server:
        backend = {"kind": "endpoint", "url": server.url, "model": "judge", "retries": 0}
        said = refused("--generations", file, f"evaluation.suite.pairwise={json.dumps({'backend': backend})}")
    assert "evaluation.suite.pairwise.backend" in said
    backend = {"kind": "endpoint", "url": "http://127.0.0.1:1/v1", "model": "judge", "key": "sk-" + "a1B2c3" * 8}
    said = refused("--generations", file, f"evaluation.suite.pairwise={json.dumps({'backend': backend})}")
    assert "env:" in said
