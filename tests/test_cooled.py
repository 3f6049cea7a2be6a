"""The untrained start at another temperature: what policies offer, how the temperature is found, what a run keeps of it."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fill_prompts
import relgrad.policies
from enumerated import enumeration, move
from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Tempered, Toy
from relgrad.evaluation.cooled import LOWEST, TOLERANCE, cooled_start, temperature_at
from relgrad.evaluation.held_out import evaluate
from relgrad.laws.categorical import Truncation, log_probs
from relgrad.monitor.report import write_report
from relgrad.objectives.divergences import categorical_kl
from relgrad.policies.fill_in.policy import pad
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe

MODULES = [
    importlib.import_module(f"relgrad.policies.{m.name}") for m in pkgutil.iter_modules(relgrad.policies.__path__)
]
TOYS = [
    pytest.param(build, id=f"{module.__name__.split('.')[-1]}-{name}")
    for module in MODULES
    for name, build in [*module.toys().items()][:7]
]


@pytest.mark.parametrize("build", TOYS)
def test_the_start_at_another_temperature(build: Callable[[], Toy]) -> None:
    """By the chain rule, over the enumerated trajectories of the cooled start: its KL to the start at the policy's temperature."""
    toy = build()
    policy: Any = toy.policy
    if not isinstance(policy, Tempered) or policy.law == "surrogate":
        pytest.skip("its law has no temperature, or does not score what it draws")
    start = {name: p.detach().clone() for name, p in policy.parameters()}
    move(policy)
    moved = {name: p.detach().clone() for name, p in policy.parameters()}
    for temperature in (policy.temperature, 0.5 * policy.temperature):
        for prompt in toy.prompts[:1]:
            with torch.no_grad(), policy.start_at(temperature):
                assert all(torch.equal(p, start[name]) for name, p in policy.parameters())
                everything = enumeration(toy, prompt)
                cells_N2 = everything.rollouts.cells()
                scores = policy.score(everything.rollouts, cells_N2, reference_kl=True)
            with torch.no_grad(), policy.reference():
                own_N = policy.score(everything.rollouts, cells_N2).logp_N
            assert scores.kl_N is not None
            p_N = everything.logp_B.exp()[cells_N2[:, 0]]
            measured = float((p_N * scores.kl_N.double().cpu()).sum())
            expected = float((p_N * (scores.logp_N - own_N).double().cpu()).sum())
            assert measured == pytest.approx(expected, abs=1e-5)
            assert (measured > 1e-3) == (temperature < policy.temperature)
    assert all(torch.equal(p, moved[name]) for name, p in policy.parameters())


def test_a_policy_that_is_judged_by_its_average_is_cooled_by_its_start() -> None:
    policy: Any = next(
        build for module in MODULES if module.__name__.endswith("flow") for build in module.toys().values()
    )().policy
    averaged = type(policy)(policy.parts, policy.settings.model_copy(update={"ema_decay": 0.5}))
    averaged.freeze_reference()
    start = {name: p.detach().clone() for name, p in averaged.parameters()}
    move(averaged)
    averaged.after_update()
    with averaged.start_at(0.5), averaged.evaluation():
        assert all(torch.equal(p, start[name]) for name, p in averaged.parameters())
    with averaged.evaluation():
        assert not all(torch.equal(p, start[name]) for name, p in averaged.parameters())


def test_the_temperature_is_found_by_bisection() -> None:
    asked: list[float] = []

    def distance(temperature: float) -> float:
        asked.append(temperature)
        return 1 - temperature

    temperature, reached = temperature_at(0.25, 1.0, distance)
    assert reached
    assert 1 - temperature == pytest.approx(0.25, rel=TOLERANCE)
    assert len(asked) < 10
    assert temperature_at(5.0, 2.0, distance) == (2.0 * LOWEST, False)
    assert temperature_at(0.0, 1.0, distance)[0] == pytest.approx(1.0, rel=2e-3), "a policy that did not move"


def test_the_cooled_start_is_as_far_from_itself_as_the_policy() -> None:
    policy = fill_prompts.policy()
    rewards = RewardSet([NamedReward("right", fill_prompts.right)], timeout=5)
    options: dict[str, Any] = {"num_generations": 8, "seed": 0}
    start = evaluate(policy, fill_prompts.PROMPTS, rewards, **options)
    with torch.no_grad():
        for _, parameter in policy.parameters():
            parameter.mul_(1.3)
    trained = evaluate(policy, fill_prompts.PROMPTS, rewards, divergence=True, **options)
    cooled = cooled_start(policy, trained.kl, fill_prompts.PROMPTS, rewards, **options)
    assert cooled.reached
    assert cooled.evaluation.kl == pytest.approx(trained.kl, rel=TOLERANCE)
    assert cooled.evaluation.per_prompt != start.per_prompt
    with (
        torch.no_grad(),
        policy.reference(),
    ):  # the positions do not depend on each other: the divergence can be told from the logits
        masked_GL, length_G = pad([policy.encode(p) for p in fill_prompts.PROMPTS], policy.vocabulary.pad_id)
        group_M, position_M = (masked_GL == policy.vocabulary.mask_id).nonzero(as_tuple=True)
        logits_MV = policy.filling.logits(masked_GL, length_G, group_M, position_M)
    cold, warm = log_probs(logits_MV, Truncation(cooled.temperature)), log_probs(logits_MV, Truncation())
    assert float(categorical_kl(cold, warm).mean()) == pytest.approx(cooled.evaluation.kl, rel=1e-4)
    assert evaluate(policy, fill_prompts.PROMPTS, rewards, divergence=True, **options) == trained, (
        "the policy is as it was"
    )
    record = cooled.to_record(7, start, trained)
    assert record["trained_differences"]["score"][0] == pytest.approx(trained.score - cooled.evaluation.score)
    assert record["difference"] == pytest.approx(cooled.evaluation.score - start.score)


def test_an_untempered_score_knows_no_cooling() -> None:
    with (
        pytest.raises(RelgradError, match="scoring=untempered"),
        fill_prompts.policy(scoring="untempered").start_at(0.5),
    ):
        pass


RECIPE = {
    "name": "sharp",
    "policy": {"kind": "autoregressive", "model": "tiny:32x1", "max_completion_length": 3},
    "task": {"kind": "digits", "length": 2, "train_size": 40, "held_out_size": 10, "test_size": 10},
    "rewards": [
        {"kind": "regex", "pattern": "[A-Za-z]", "match": "partial"},
        {"kind": "exact", "per_character": True, "weight": 0},
    ],
    "grpo": {"steps": 2, "num_prompts": 2, "num_generations": 8, "learning_rate": 1e-2},
    "evaluation": {"num_prompts": 4, "num_generations": 2, "cooled": True},
}


def test_a_run_keeps_the_cooled_start_and_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = run_recipe(parse_recipe({**RECIPE, "out": str(tmp_path)}))
    record = json.loads((folder / "cooled.json").read_text())
    last = json.loads((folder / "evaluations.jsonl").read_text().splitlines()[-1])
    assert record["trained_kl"] == last["kl"] > 0
    assert record["reached"]
    assert record["kl"] == pytest.approx(last["kl"], rel=2 * TOLERANCE)
    assert record["temperature"] < 1
    assert record["trained_differences"].keys() == {"score", *last["rewards"]}
    assert record["trained_differences"]["score"][0] == pytest.approx(last["score"] - record["score"])
    assert "the start cooled to temperature" in capsys.readouterr().out
    documented = (Path(__file__).parents[1] / "docs" / "run-folder.md").read_text(encoding="utf-8")
    assert all(f"| `{key}` |" in documented for key in record)
    page = write_report(folder).read_text()
    assert page.count('data-testid="cooled"') == 1
    assert "as far as the trained policy went" in page


def test_a_kind_of_policy_without_a_temperature_is_refused(tmp_path: Path) -> None:
    settings = {
        **RECIPE,
        "out": str(tmp_path),
        "policy": {
            "kind": "relgrad.baselines.denoising_flow",
            "model": "tiny",
            "symbols": "ascii",
            "max_completion_length": 4,
        },
        "grpo": {"steps": 1, "num_prompts": 2, "num_generations": 2, "loss_type": "reinforce"},
    }
    with pytest.raises(RelgradError, match="denoising_flow has no temperature"):
        run_recipe(parse_recipe(settings))


def test_top_p_whose_tokens_depend_on_the_temperature_is_refused(tmp_path: Path) -> None:
    settings = {**RECIPE, "out": str(tmp_path)}
    settings["policy"] = {**settings["policy"], "top_p": 0.9}
    with pytest.raises(RelgradError, match=r"evaluation.cooled=true with policy.top_p=0.9"):
        run_recipe(parse_recipe(settings))
