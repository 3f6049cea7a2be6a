"""Search as a source of experience: whom it searches for, what its rows weigh, what is kept, and that what is killed goes on."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import workflow_learning
from pydantic import ValidationError
from typer.testing import CliRunner

import forked
from commands import lines, relgrad
from relgrad.commands.cli import app
from relgrad.core.errors import RelgradError
from relgrad.core.types import Score
from relgrad.evaluation.held_out import evaluate
from relgrad.objectives import expert_iteration
from relgrad.objectives.losses import PolicyLoss, shaped_weights
from relgrad.policies import workflow
from relgrad.rewards import list_program
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.runs.decision_search import load_decision_search, run_decision_search
from relgrad.tasks import list_programs
from relgrad.training import checkpoint
from relgrad.training.grpo import Grpo, GrpoSettings
from relgrad.training.replay import Replay
from relgrad.training.searched import Searched
from test_resume import assert_same_run, run
from toy_policy import TablePolicy, Truncation

REWARDS = RewardSet([NamedReward("right", list_program.build(list_program.Settings()))], 60)
SIZES: dict[str, Any] = {
    "lengths": (1, 2),
    "held_out_lengths": (1, 2),
    "train_size": 20,
    "validation_size": 2,
    "test_size": 6,
}
KEPT = {"keep": "solutions", "share": 0.9, "max_age": 100}


@pytest.fixture(scope="module")
def task() -> Any:
    return list_programs.load(list_programs.Settings(order=200, rising=0, **SIZES), seed=0)


def loop(task: Any, *, loss: Any = None, **settings: Any) -> Grpo:
    policy = workflow.build(workflow.Settings(max_steps=2, hidden=16, search_evaluations=(8, 32)), seed=0)
    chosen = GrpoSettings(**{"num_prompts": 6, "num_generations": 3, "learning_rate": 0.01, **settings})
    return Grpo(policy, task.train, REWARDS, loss or PolicyLoss(), chosen, seed=1)


def parts_of(made: Grpo, source: str) -> list[tuple[Any, torch.Tensor, int]]:
    """(part, its rows that count, number of its first row) of one source in the batch in use."""
    assert made.batch is not None
    chosen, first = [], 0
    for part in made.batch.parts:
        if part.source == source:
            chosen.append((part, made.batch.keep_B[first : first + part.rollouts.rows], first))
        first += part.rollouts.rows
    return chosen


def test_only_groups_that_fail_are_searched_and_get_a_solution_that_is_right(task: Any):
    made = loop(task, search={"evaluations": 60})
    made.batch = batch = made.generate()
    fresh = batch.parts[0]
    failed = {g for g in range(6) if float(fresh.rewards.value_BR[fresh.group_B == g].max()) == 0}
    ((part, keep_B, _),) = parts_of(made, "search")
    assert batch.metrics["search/groups"] == len(failed) > 0
    assert set(part.group_B.tolist()) <= failed
    assert len(part.group_B.unique()) == len(part.group_B), "one row a group"
    assert bool((part.rewards.value_BR[keep_B] == 1).all())
    assert batch.metrics["search/solved"] == int(keep_B.sum()) > 0
    assert batch.metrics["search/evaluations"] <= 60 * len(failed)
    advantage = batch.advantage_B[len(fresh.group_B) :][keep_B]
    assert bool((advantage > 0).all()), "there is something to compare now"
    assert batch.metrics["reward"] == pytest.approx(float(fresh.rewards.value_BR.mean())), (
        "figures are the policy's own"
    )
    assert batch.metrics["completions/total_tokens"] == int(fresh.rollouts.mask_BT.sum())


def test_rows_of_a_search_weigh_what_is_asked_for(task: Any):
    for weights in ("shaping", "importance", "none"):
        made = loop(task, search={"evaluations": 60, "weights": weights, "gamma": 0.05})
        made.batch = batch = made.generate()
        if weights == "none":
            assert batch.correction_BT is None
            assert parts_of(made, "search")[0][0].proposal_logp_BT is None
            continue
        ((part, keep_B, first),) = parts_of(made, "search")
        row = first + int(keep_B.nonzero()[0, 0])
        mask_T, local = batch.mask_BT[row], row - first
        own = made.policy.score(part.rollouts, part.rollouts.cells(torch.tensor([local]))).logp_N.detach()
        assert torch.allclose(batch.behaviour_logp_BT[row][mask_T], own, atol=1e-6), "the first step's ratio is 1"
        p = own.exp()
        mu = part.proposal_logp_BT[local][mask_T].exp()
        expected = 0.05 * p / (p + 0.05) ** 2 if weights == "shaping" else (p / mu).clamp(max=2.0)
        assert batch.correction_BT is not None
        assert torch.allclose(batch.correction_BT[row][mask_T], expected, rtol=1e-5)
        fresh_B = torch.arange(len(batch.keep_B)) < first
        assert bool((batch.correction_BT[fresh_B] == 1).all())


@pytest.mark.parametrize("weights", ["shaping", "none"])
def test_figures_are_of_the_policys_own_rows_whatever_the_weights(task: Any, weights: str):
    made = loop(task, search={"evaluations": 60, "weights": weights})
    made.batch = batch = made.generate()
    fresh = batch.parts[0]
    assert int(parts_of(made, "search")[0][1].sum()) > 0
    assert batch.metrics["reward"] == pytest.approx(float(fresh.rewards.value_BR.mean()))
    assert batch.metrics["completions/total_tokens"] == int(fresh.rollouts.mask_BT.sum())
    marked = [sample for sample in batch.samples if sample.get("source") == "search"]
    assert len(marked) == int(parts_of(made, "search")[0][1].sum())
    assert all(("proposal_logp" in sample) == (weights == "shaping") for sample in marked)


def test_under_shaping_rows_of_a_search_that_are_no_better_than_their_group_weigh_nothing(task: Any):
    def wrong_is_better(prompt: Any, outputs: Any) -> list[Score]:
        return [Score(2.0 - score.value) for score in list_program.build(list_program.Settings())(prompt, outputs)]

    made = loop(task, search={"evaluations": 60, "when": "always"})
    made.source.fresh.rewards = RewardSet([NamedReward("wrong", wrong_is_better)], 60)
    made.batch = batch = made.generate()
    ((_, keep_B, first),) = parts_of(made, "search")
    rows = first + keep_B.nonzero()[:, 0]
    assert batch.correction_BT is not None
    assert bool((batch.advantage_B[rows] < 0).any()), "the search found what scores less"
    better_B = batch.advantage_B[rows] > 0
    weighs_B = (batch.correction_BT[rows] * batch.mask_BT[rows]).sum(-1) > 0
    assert torch.equal(weighs_B, better_B)
    assert bool((batch.correction_BT[:first] == 1).all()), "the policy's own rows learn from being worse"


def test_the_shaped_weight_is_the_slope_of_p_over_p_plus_gamma():
    logp = torch.tensor([math.log(0.02), math.log(0.1), math.log(0.9)], dtype=torch.float64, requires_grad=True)
    p = logp.exp()
    (p / (p + 0.1)).sum().backward()
    assert torch.allclose(shaped_weights(logp, 0.1), logp.grad)
    assert float(shaped_weights(torch.tensor(0.1).log(), 0.1)) == pytest.approx(0.25)


def test_a_solution_is_kept_and_enters_later_batches_with_its_age_and_its_log_probs(task: Any):
    made = loop(task, search={"evaluations": 60}, replay=KEPT, learning_rate=1e-6)
    assert isinstance(made.source, Searched)
    assert isinstance(made.source.source, Replay)
    seen: dict[str, Any] = {}
    replayed = 0
    for _ in range(14):
        made.update()
        for part, keep_B, _ in parts_of(made, "search"):
            for row in keep_B.nonzero()[:, 0].tolist():
                prompt = part.rollouts.prompts[int(part.rollouts.group_B[row])]
                seen[prompt.text] = (made.generations, part.rollouts.outputs[row].text, part.proposal_logp_BT[row])
        searched_again = {
            part.rollouts.prompts[g].text
            for part, _, _ in parts_of(made, "search")
            for g in part.rollouts.group_B.tolist()
        }
        for part, keep_B, _ in parts_of(made, "replay"):
            for row in keep_B.nonzero()[:, 0].tolist():
                prompt = part.rollouts.prompts[int(part.rollouts.group_B[row])]
                assert prompt.text not in searched_again or seen[prompt.text][0] == made.generations
                if prompt.text in seen and part.shaping is not None:
                    number, text, proposal_T = seen[prompt.text]
                    assert part.rollouts.outputs[row].text == text
                    assert int(part.age_B[row]) == made.generations - number > 0
                    assert part.rollouts.policy_version == number - 1
                    assert torch.equal(part.proposal_logp_BT[row], proposal_T)
                    replayed += 1
    assert replayed > 3


def test_the_originals_way_takes_solutions_and_failures_as_samples(task: Any):
    search = {"when": "always", "evaluations": 40, "solutions": 4, "failures": 12, "weights": "none"}
    made = loop(task, search=search)
    made.batch = batch = made.generate()
    assert [part.source for part in batch.parts] == ["policy", "search"]
    part = batch.parts[1]
    assert bool(batch.keep_B.all())
    assert set(part.rollouts.stop) == {"eos"}, "a row ends with a solution or at its last step"
    visible_B = torch.tensor([parts["right/visible"] > 0 for parts in part.rewards.parts])
    length_B = part.rollouts.mask_BT.sum(-1)
    assert bool((length_B[~visible_B] == made.policy.max_decisions).all())
    own_N = made.policy.score(part.rollouts, part.rollouts.cells(torch.arange(part.rollouts.rows))).logp_N.detach()
    assert torch.allclose(part.rollouts.behaviour_logp_BT[part.rollouts.mask_BT], own_N, atol=1e-6)
    assert 0 < batch.metrics["search/finished"] <= int(length_B.sum())
    right_B = part.rewards.value_BR[:, 0] > 0
    for group in part.group_B.unique():
        assert int((right_B & (part.group_B == group)).sum()) <= 4
        assert (
            int((~right_B & (part.group_B == group)).sum()) <= 12 + 4
        )  # a visible solution may be wrong on hidden examples
    made.update()


def test_expert_iteration_is_the_cross_entropy_of_what_is_right():
    from relgrad.core.protocols import LossTerms

    logp_BT = torch.tensor([[-1.0, -2.0], [-3.0, -0.5], [-0.1, 0.0]], requires_grad=True)
    mask_BT = torch.tensor([[True, True], [True, True], [True, False]])
    advantage_BT = torch.tensor([[2.0, 2.0], [-1.0, -1.0], [0.3, 0.3]])
    terms = LossTerms(logp_BT, logp_BT.detach() - 5, advantage_BT, mask_BT, 5.0, 2)
    loss, _ = expert_iteration.ExpertIterationLoss()(terms)
    assert float(loss.detach()) == pytest.approx((1.0 + 2.0 + 0.1) / 3)
    with pytest.raises(RelgradError, match="does not know beta"):
        expert_iteration.build(GrpoSettings(beta=0.1))


def test_a_loop_that_was_stopped_goes_on_exactly(task: Any, tmp_path: Path):
    whole = loop(task, search={"evaluations": 40}, replay=KEPT)
    for _ in range(3):
        whole.update()
    checkpoint.save(tmp_path, whole, whole.policy, {})
    rest = [whole.update().metrics for _ in range(3)]
    again = loop(task, search={"evaluations": 40}, replay=KEPT)
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    checkpoint.restore(newest, again, again.policy, {})
    for expected in rest:
        metrics = again.update().metrics
        assert {k: v for k, v in metrics.items() if "time" not in k and "second" not in k} == {
            k: v for k, v in expected.items() if "time" not in k and "second" not in k
        }
    assert sum(m["search/groups"] for m in rest) > 0
    assert sum(m["replay/groups"] for m in rest) > 0


def test_an_evaluation_tells_what_searches_solve_and_its_figures_agree(task: Any):
    policy = workflow.build(workflow.Settings(max_steps=2, hidden=16, search_evaluations=(8, 32)), seed=0)
    found = evaluate(policy, task.test, REWARDS, num_generations=2, seed=0)
    for prior in ("search", "uniform"):
        few, many = (found.per_prompt_rewards[f"{prior}/solved@{count}"] for count in (8, 32))
        needed = found.per_prompt_rewards[f"{prior}/evaluations"]
        assert [value <= 8 for value in needed] == [bool(value) for value in few]
        assert all(value <= 32 for value in needed)
        assert all(a <= b for a, b in zip(few, many, strict=True))
        assert all(value == 32 for value, solved in zip(needed, many, strict=True) if not solved)
    record = found.to_record(0, "test")
    assert record["rewards"]["search/solved@32"] == pytest.approx(sum(found.per_prompt_rewards["search/solved@32"]) / 6)
    silent = workflow.build(workflow.Settings(max_steps=2, hidden=16, search_evaluations=()), seed=0)
    assert set(evaluate(silent, task.test, REWARDS, num_generations=2, seed=0).rewards) == {"right"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search": {"failures": 3}}, "failures=3 with search.weights='shaping'"),
        ({"search": {"failures": 3, "weights": "importance"}}, "failures=3 with search.weights='importance'"),
        ({"search": {}, "replay": {"keep": "groups", "share": 0.5}}, "use that"),
        ({"search": {}, "credit": "decision"}, "credit='decision' with search"),
        ({"search": {"evaluations": 0}}, "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        GrpoSettings(**settings)


def test_a_policy_that_no_search_can_walk_with_is_refused(task: Any):
    policy = TablePolicy([p.text for p in task.train], Truncation(), seed=0)
    with pytest.raises(RelgradError, match=r"policy\.kind=workflow"):
        Grpo(policy, task.train, REWARDS, PolicyLoss(), GrpoSettings(search={"evaluations": 5}))


def test_arms_of_the_benchmark_differ_in_what_their_names_say_and_count_operators():
    mixed = workflow_learning.stage_of("mixed", 1).grpo.model_dump()
    expected = {
        "unweighted": {"search.weights"},
        "as-sampled": {"search.weights", "search.when", "search.solutions", "search.failures"},
        "on-policy": {"search", "replay"},
        "expert": {"loss", "entropy_coef", "beta"},  # its loss refuses these two
    }
    for arm, names in expected.items():
        own = workflow_learning.stage_of(arm, 1).grpo.model_dump()
        different = {name for name, value in own.items() if value != mixed[name]}
        if own["search"] and "search" in different:
            different.remove("search")
            different |= {f"search.{name}" for name, value in own["search"].items() if value != mixed["search"][name]}
        assert different == names, arm
    with pytest.raises(RelgradError, match="does not know entropy_coef"):
        expert_iteration.build(GrpoSettings(entropy_coef=0.1))


def test_differences_of_arms_are_over_seeds_and_paired():
    records = [
        {
            "arm": arm,
            "seed": seed,
            "points": [{"figures": {name: [seed + gain, seed + gain] for name in workflow_learning.NAMES}}],
        }
        for arm, gains in {"mixed": (0, 0, 0), "expert": (1, 2, 3)}.items()
        for seed, gain in zip((10, 20, 30), gains, strict=True)
    ]
    shown = workflow_learning.against(records, "mixed")
    # Student with two degrees of freedom: 2 -+ 4.303 / sqrt(3)
    assert "| expert | +2.000 [-0.484, +4.484] |" in shown


# ---------------------------------------------------------------------- from the command line

RECIPE = """
name: r
policy: {kind: workflow, max_steps: 2, hidden: 16, search_evaluations: [16]}
task: {kind: list_programs, lengths: [1, 2], held_out_lengths: [1, 2], train_size: 20, validation_size: 2, test_size: 6, rising: 20}
rewards: [{kind: list_program}]
grpo: {steps: 4, num_prompts: 4, num_generations: 3, learning_rate: 0.01, beta: 0.01, entropy_coef: 0.01, search: {evaluations: 40},
       replay: {keep: solutions, share: 0.9, max_age: 50}}
evaluation: {num_prompts: 6, num_generations: 2}
checkpoint: {every: 1}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody killed; its recipe is beside it."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "r.yaml").write_text(RECIPE)
    forked.run("relgrad", "run", folder / "r.yaml", f"out={folder}").check_returncode()
    return folder


def test_a_run_killed_between_any_two_changes_of_its_files_goes_on_exactly(trained: Path, tmp_path: Path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    out, kills = tmp_path / "out", 0
    for last_change in (25, 50):
        kills += run(tmp_path / "r.yaml", out, last_change=last_change) == -signal.SIGKILL
    assert kills >= 1
    assert run(tmp_path / "r.yaml", out) == 0
    assert_same_run(out, trained)


def test_samples_tell_what_searches_found_with_both_log_probs(trained: Path):
    samples = [s for file in (trained / "r" / "1-grpo" / "samples").glob("*.jsonl") for s in lines(file)]
    searched = [s for s in samples if s.get("source") == "search"]
    assert searched
    for sample in searched:
        assert len(sample["proposal_logp"]) == sample["parts"]["list_program/operators"]
        assert sum(sample["proposal_logp"]) == pytest.approx(sample["parts"]["search/select_logp"], abs=1e-3)
        assert sample["parts"]["search/prior_logp"] < 0
        assert sample["reward"] == 1


def test_evaluate_and_the_report_tell_what_searches_solve(trained: Path):
    output = relgrad("evaluate", trained / "r")
    assert "search/solved@16" in output
    assert "uniform/evaluations" in output
    assert "search/solved@16" in (trained / "r" / "1-grpo" / "report.html").read_text()


def searched(folder: Path, prior: object, name: str = "s") -> dict[str, Any]:
    (folder / "s.yaml").write_text(f"search: {{prior: '{prior}', evaluations: 40, num_prompts: 6}}\n")
    recipe = load_decision_search(str(folder / "s.yaml"), [f"out={folder}", f"name={name}"])
    assert recipe is not None
    return run_decision_search(recipe)


def test_a_search_takes_a_trained_run_as_its_prior(trained: Path, tmp_path: Path):
    (tmp_path / "s.yaml").write_text(
        f"search: {{prior: uniform, tasks: '{trained / 'r'}', evaluations: 40, num_prompts: 6}}\n"
    )
    output = relgrad("search", tmp_path / "s.yaml", f"out={tmp_path}")
    assert "of 6 prompts solved" in output
    result = searched(tmp_path, trained / "r", "guided")
    records = lines(tmp_path / "guided" / "trajectories.jsonl")
    assert len(records) == result["prompts"] == 6
    for record in records:
        solved = record["program"] is not None
        assert solved or record["evaluations"] == 40
        assert (
            len(record["select_logp"])
            == len(record["prior_logp"])
            == (record["program"].count("|") + 1 if solved else 0)
        )
        assert record["reward"] in (0.0, 1.0)
    assert result["solved"] == sum(record["reward"] for record in records)


def test_a_search_that_was_killed_goes_on_exactly(trained: Path, tmp_path: Path):
    whole = searched(tmp_path, trained / "r", "whole")
    (tmp_path / "k.yaml").write_text((tmp_path / "s.yaml").read_text())
    command = ["relgrad", "search", str(tmp_path / "k.yaml"), f"out={tmp_path}", "name=killed"]
    process = forked.start(command, tmp_path / "log", watched=tmp_path / "killed", last_change=12)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    kept = tmp_path / "killed" / "trajectories.jsonl"
    before = kept.read_text()
    assert 0 < before.count("\n") < 6
    kept.write_text(before + '{"id": 1, "prom')  # a line that was cut off
    assert searched(tmp_path, trained / "r", "killed") == whole
    assert kept.read_text().startswith(before)
    assert sorted(lines(kept), key=lambda r: r["id"]) == sorted(
        lines(tmp_path / "whole" / "trajectories.jsonl"), key=lambda r: r["id"]
    )


def test_a_search_that_cannot_be_is_refused(trained: Path, tmp_path: Path):
    searched(tmp_path, trained / "r")
    recipe = load_decision_search(str(tmp_path / "s.yaml"), [f"out={tmp_path}", "name=s", "search.evaluations=10"])
    assert recipe is not None
    with pytest.raises(RelgradError, match="another search"):
        run_decision_search(recipe)
    for text, message in (
        ("prior: uniform", "needs search.tasks"),
        ("prior: quick", "of kind autoregressive"),
        (f"prior: '{trained / 'r'}', part: tests", "tests"),
    ):
        (tmp_path / "bad.yaml").write_text(f"search: {{{text}}}\n")
        result = CliRunner().invoke(
            app, ["search", str(tmp_path / "bad.yaml"), f"out={tmp_path}"], env={"COLUMNS": "400"}
        )
        assert result.exit_code != 0
        assert message in result.output + str(result.exception)


@pytest.mark.slow
def test_rounds_of_search_and_learning_make_a_better_prior(tmp_path: Path):
    """On the quick recipe with more steps: held-out tasks are solved with fewer evaluations than at the start."""
    relgrad(
        "run",
        "workflows-train-quick",
        f"out={tmp_path}",
        "grpo.steps=150",
        "task.test_size=40",
        "evaluation.num_prompts=40",
        "policy.hidden=64",
    )
    first, last = lines(tmp_path / "workflows-train-quick" / "1-grpo" / "evaluations.jsonl")
    difference, _, high = last["reward_differences"]["search/evaluations"]
    assert difference < 0
    assert high < 0, "the interval over prompts excludes equality"
    assert last["rewards"]["list_program"] > first["rewards"]["list_program"]
