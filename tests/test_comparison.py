"""Comparing evaluations: figures and intervals against known answers, over seeds, families and prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from benchmarks import forms_results
from scipy import stats

from relgrad.core.errors import RelgradError
from relgrad.core.types import Output
from relgrad.evaluation.comparison import Contender, Training, compare_all, difference
from relgrad.evaluation.held_out import Evaluation
from relgrad.evaluation.metric import METRICS, BestScore, Completions, Different, Length
from relgrad.evaluation.statistics import bootstrap_over_families, paired_difference, t_over_seeds

NAN = math.nan


def evaluation(
    values: Sequence[float], families: Sequence[str] = (), asked: str = "p", **rewards: Sequence[float]
) -> Evaluation:
    """An evaluation with these scores per prompt, whose texts begin with `asked`."""
    return Evaluation(
        score=sum(values) / len(values),
        low=NAN,
        high=NAN,
        prompts=len(values),
        per_prompt=tuple(values),
        ids=tuple(range(len(values))),
        rewards={},
        pass_at_k={},
        mean_length=1.0,
        stop={},
        unscored=0,
        samples=tuple({"prompt": f"{asked}{i}"} for i in range(len(values))),
        per_prompt_rewards={name: tuple(own) for name, own in rewards.items()},
        families=tuple(families),
    )


def contender(label: str, *evaluations: Evaluation, seeds: Sequence[int] = (0, 1, 2)) -> Contender:
    pairs = zip(seeds, evaluations, strict=False)
    return Contender(label, tuple(Training(f"{label}-{seed}", seed, one) for seed, one in pairs))


def test_two_policies_are_paired_by_prompt():
    before, after = [0.1, 0.5, 0.9, NAN], [0.3, 0.6, 0.9, 0.4]
    found = difference(contender("a", evaluation(before)), contender("b", evaluation(after)), "score")
    assert found.interval == paired_difference(before, after)
    assert (found.over, found.units, found.trainings) == ("prompts", 3, 1)
    turned = difference(contender("a", evaluation(before)), contender("b", evaluation(after)), "score", mirrored=True)
    assert turned.interval == paired_difference(after, before)


def test_forms_of_a_family_are_no_units_of_their_own():
    families = [family for family in "abcdef" for _ in range(10)]
    before = [0.5] * 60
    after = [0.5 + "abcdef".index(family) / 10 for family in families]
    found = difference(
        contender("a", evaluation(before, families)), contender("b", evaluation(after, families)), "score"
    )
    assert (found.over, found.units) == ("families", 6)
    gains = [b - a for a, b in zip(before, after, strict=True)]
    assert found.interval == bootstrap_over_families(gains, families)
    over_prompts = paired_difference(before, after)
    assert found.interval.high - found.interval.low > 2 * (over_prompts.high - over_prompts.low)


def test_seeds_of_both_sides_are_paired_seed_by_seed():
    starts = [evaluation([level, level]) for level in (0.2, 0.5, 0.8)]
    ends = [evaluation([level + 0.1 + gain, level + gain]) for level, gain in ((0.2, 0.0), (0.5, 0.1), (0.8, 0.05))]
    found = difference(contender("a", *starts), contender("b", *ends), "score")
    assert found.interval == pytest.approx(t_over_seeds([0.05, 0.15, 0.1]))
    assert (found.over, found.units, found.trainings) == ("seeds", 3, 3)


def test_seeds_may_have_prompts_of_their_own():
    """As tasks do that hold out other prompts for every seed: the differences are still those of each seed."""
    starts = [evaluation([0.2, 0.4], asked=f"seed {seed}, ") for seed in range(3)]
    ends = [evaluation([0.3 + seed / 10, 0.5], asked=f"seed {seed}, ") for seed in range(3)]
    found = difference(contender("a", *starts), contender("b", *ends), "score")
    assert found.interval == pytest.approx(t_over_seeds([0.1, 0.15, 0.2]))
    one = contender("c", evaluation([0.1, 0.1], asked="seed 1, "), seeds=[1])
    alone = difference(one, contender("b", *ends), "score")
    assert alone.interval.value == pytest.approx(0.35)
    assert (alone.over, alone.units, alone.trainings) == ("prompts", 2, 1), "only seed 1 was asked the same"


def test_other_seeds_are_compared_as_two_samples():
    left, right = [0.1, 0.2, 0.3], [0.3, 0.5, 0.4]
    found = difference(
        contender("a", *(evaluation([v, v]) for v in left)),
        contender("b", *(evaluation([v, v]) for v in right), seeds=(7, 8, 9)),
        "score",
    )
    welch = stats.ttest_ind(right, left, equal_var=False).confidence_interval()
    assert (found.interval.low, found.interval.high) == pytest.approx((welch.low, welch.high))
    assert found.over == "seeds"


def test_one_seed_against_several_knows_nothing_of_seeds():
    several = contender("b", evaluation([0.2, 0.4]), evaluation([0.4, 0.8]))
    found = difference(contender("a", evaluation([0.1, 0.1])), several, "score")
    assert found.interval == pytest.approx(paired_difference([0.1, 0.1], [0.3, 0.6]))
    assert (found.over, found.trainings) == ("prompts", 2)


def test_a_comparison_has_every_figure_of_every_contender():
    a = contender("a", evaluation([0.1, 0.3], exact=[0, 1], form=[0.5, NAN]))
    b = contender("b", evaluation([0.2, 0.3], exact=[1, 1], form=[0.5, 0.25]))
    record = compare_all([a, b]).to_record()
    assert [(f["name"], f["kind"]) for f in record["figures"]] == [
        ("score", "score"), ("exact", "reward"), ("form", "reward"),
    ]  # fmt: skip
    exact = record["figures"][1]
    assert [mean["value"] for mean in exact["means"]] == [0.5, 1.0]
    assert exact["differences"][0] is None
    assert exact["differences"][1]["value"] == 0.5
    form = record["figures"][2]["differences"][1]
    assert (form["value"], form["units"]) == (0.0, 1), "what one of them could not score is left out"
    assert math.isnan(form["low"]), "one prompt has no interval"
    assert record["contenders"][1]["trainings"][0]["per_prompt"]["exact"] == [1, 1]


def test_what_cannot_be_compared_is_named():
    a, other = contender("a", evaluation([0.1, 0.3])), contender("b", evaluation([0.1, 0.3], asked="q"))
    with pytest.raises(RelgradError, match="a and b were asked other prompts"):
        compare_all([a, other])
    judged = contender("b", evaluation([0.1, 0.3], style=[1, 1]))
    with pytest.raises(RelgradError, match="b-0 and a-0 were judged by different rewards: only one of them has style"):
        compare_all([a, judged])


def test_the_table_of_forms_pools_over_seeds_and_says_what_holds():
    families = list("abcdef")

    def policies(gain: float) -> dict[str, Evaluation]:
        levels = {forms_results.START: 0.5, "Flow-GRPO": 0.5 + gain, "SFT cooled": 0.6 + gain / 100}
        return {
            n: evaluation([v] * 6, families, **dict.fromkeys(forms_results.FIGURES, [v] * 6)) for n, v in levels.items()
        }

    by_seed = {seed: policies(gain) for seed, gain in enumerate((0.059, 0.023, 0.013))}
    start, trained, _, _, said, also = forms_results.pooled(by_seed)
    assert start == "| all | SFT | 0.500 | 0.500 | 0.500 | 0.500 |"
    assert trained.startswith("| all | Flow-GRPO | 0.532 (+0.032 [-0.028, +0.092]) |")
    assert said == (
        "Flow-GRPO changes reward by +0.032, 95 % over 3 seeds [-0.028, +0.092]: what another seed would do is not known from this."
    )
    assert also.endswith("over seeds the mean rises.")
    one = {0: by_seed[0]}
    of_one = forms_results.row(
        "0", *(forms_results.contender(name, one) for name in (forms_results.START, "Flow-GRPO"))
    )
    assert of_one.startswith("| 0 | Flow-GRPO | 0.559 (+0.059 [+0.059, +0.059]) |")


def test_metrics_are_figures_of_a_prompts_completions():
    completions = Completions((Output("x"), Output("y"), Output("x"), Output("x")), (0.2, NAN, 0.9, 0.1), (1, 2, 3, 6))
    assert BestScore()(completions) == 0.9
    assert Different()(completions) == 0.5
    assert Length()(completions) == 3
    assert math.isnan(BestScore()(Completions((Output("x"),), (NAN,), (1,))))
    assert len({metric.name for metric in METRICS}) == len(METRICS)
