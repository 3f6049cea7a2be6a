"""A judge below its bar ends the run where it was audited, says why, and may be trained again without what came before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from relgrad.commands import endings
from relgrad.core.errors import RelgradError
from relgrad.core.types import Prompt
from relgrad.judges import refill
from relgrad.policies import fill_in
from relgrad.rewards.judge import check_audit
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe
from relgrad.training import checkpoint

TEXT = "A fox ran home with a piece of cheese.\nThe crow looked down.\n" * 40


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    """A generator, a judge, a watching judge and GRPO: one or two steps each."""
    text = tmp_path / "story.txt"
    text.write_text(TEXT, encoding="utf-8")
    return {
        "name": "r",
        "out": str(tmp_path),
        "policy": {"kind": "fill_in", "text": str(text), "block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 8},
        "task": {"kind": "masked_text", "text": str(text), "length": 16, "held_out_fraction": 0.4, "held_out_size": 16},
        "sft": {
            "steps": 1,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "completion_column": "truth",
            "lr_scheduler_type": "cosine",
        },
        "judge": {"kind": "refill", "audit_prompts": 16, "audit_generations": 4},
        "evaluation": {"num_prompts": 2, "num_generations": 2},
        "grpo": {"steps": 1, "num_prompts": 2, "num_generations": 2},
        "stages": [
            {"stage": "sft"},
            {"stage": "judge"},
            {"stage": "judge", "label": "watcher"},
            {
                "stage": "grpo",
                "rewards": [
                    {"kind": "judge", "judges": ["stage:judge"], "min_within_group": 0.99},
                    {
                        "kind": "judge",
                        "name": "watcher",
                        "weight": 0,
                        "judges": ["stage:watcher"],
                        "require_audit": False,
                    },
                ],
            },
        ],
    }


def test_the_bar_is_checked_before_another_stage_trains(recipe: dict[str, Any], tmp_path: Path):
    run = tmp_path / "r"
    with pytest.raises(RelgradError, match="may not reward: within groups of one prompt") as refusal:
        run_recipe(parse_recipe(recipe))
    assert "min_within_group asks for 0.99" in str(refusal.value)
    steps = "So far there were 1 steps of sft (stages.0.sft.steps), 1 steps of judge (stages.1.sft.steps)"
    assert steps in str(refusal.value)
    assert "--from judge" in str(refusal.value)
    assert [p.name for p in sorted(run.iterdir())] == ["1-sft", "2-judge"], "nothing trained after the judge"
    assert (run / "2-judge" / "audit.json").is_file()

    generator = run / "1-sft" / "checkpoints" / "step_000001" / "model.safetensors"
    made = generator.stat().st_mtime_ns
    longer = ["stages.1.sft.steps=2", "stages.3.rewards.0.min_within_group=-1"]
    with pytest.raises(
        RelgradError,
        match=r"2-judge holds a run of another recipe .*sft\.steps: 1 there, 2 now.*--from judge does so and keeps",
    ):
        run_recipe(parse_recipe(recipe, longer))
    folders = run_recipe(parse_recipe(recipe, longer), redo="judge")
    assert [checkpoint.steps(folder / "checkpoints")[-1] for folder in folders] == [1, 2, 1, 1]
    assert generator.stat().st_mtime_ns == made, "a longer judge does not cost the stage before it"


def test_a_stage_to_start_over_from_that_is_not_there(recipe: dict[str, Any]):
    with pytest.raises(
        RelgradError, match="--from judges: the recipe has no such stage; there are sft, judge, watcher, grpo"
    ):
        run_recipe(parse_recipe(recipe), redo="judges")


def test_going_on_does_not_start_over():
    again = endings.without_starting_over(
        ["run", "r", "--from", "judge", "--fresh", "a=1", "--from=judge", "--processes", "2"]
    )
    assert again == ["run", "r", "a=1", "--processes", "2"]


LITTLE = "It has learnt little, so there is little to tell apart: train it several times as long. "
MORE = (
    ". The interval holds 0.25: an audit of more prompts than these 32 would tell (audit_prompts of the judge, held_out_size of "
    "the task)"
)


@pytest.mark.parametrize(
    ("head", "share", "high", "advice"),
    [
        ("positions", 0.076, 0.34, f"{LITTLE}Train the judge longer, or lower min_within_group{MORE}"),
        ("positions", 0.3, 0.34, f"Train the judge longer, or lower min_within_group{MORE}"),
        ("positions", 0.3, 0.22, "Train the judge longer, or lower min_within_group"),
        (
            "sequence",
            0.3,
            0.22,
            "Train the judge longer and let it score positions (head: positions), or lower min_within_group",
        ),
    ],
)
def test_the_advice_fits_the_cause(head: str, share: float, high: float, advice: str):
    settings = refill.Settings.model_validate({"head": head, "init": "random"})
    judge = refill.build(settings, 0, fill_in.toys()["rotary"]().policy).judge
    figures = {"within_group_correlation": 0.21, "within_group_low": 0.13, "within_group_high": high, "prompts": 32}
    judge.audit = {**figures, "mean_share_right": share, "most_frequent": " ", "most_frequent_share": 0.16}
    with pytest.raises(RelgradError) as refusal:
        check_audit(judge, "j", 0.25)
    rule = f"by 0.210 [0.130, {high:.3f}], min_within_group asks for 0.25. "
    shares = f"The generator is right in {share:.1%} of the holes, and ' ' in every hole would be right in 16.0%. "
    assert str(refusal.value).endswith(rule + shares + advice)


def test_an_audit_says_what_the_commonest_symbol_would_get_right():
    """Holes "b", "b" and "a", "a", "b": three of five are "b"; per text 1 and 1/3."""
    toy = fill_in.toys()["rotary"]().policy
    judge = refill.build(refill.Settings(init="random"), 0, toy)
    mask, (a, b, c) = toy.vocabulary.mask_id, range(3)
    prompts = [
        Prompt("", {"truth_ids": [a, b, b, c], "masked_ids": [a, mask, mask, c]}),
        Prompt("", {"truth_ids": [a, a, b, c], "masked_ids": [mask, mask, mask, c]}),
    ]
    assert judge._most_frequent(prompts) == {"most_frequent": "b", "most_frequent_share": pytest.approx(2 / 3)}
