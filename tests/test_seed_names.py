"""The originals' names in recipes and overrides mean what they mean there, and never two things at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from relgrad.core.errors import RelgradError
from relgrad.runs.aliases import ELSEWHERE, NAMES, SHAPES, place_of, translate, translate_settings
from relgrad.runs.recipe import parse_recipe

BASE: dict[str, Any] = {
    "name": "x",
    "policy": {"kind": "autoregressive", "model": "tiny", "top_p": 0.5},
    "task": {"kind": "digits"},
    "rewards": [{"kind": "exact"}],
}
VALUES: dict[str, Any] = {
    "group_size": 16, "kl_beta": 0.1, "batch_size": 3, "temperature": 0.8, "top_p": 0.95, "learning_rate": 1e-5,
    "max_iters": 77, "grad_clip": 0.5, "warmup_iters": 6, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1, "min_lr": 1e-7,
    "lr_decay_iters": 50, "generator_checkpoint": "a.pt", "judge_checkpoint": "j.pt", "device": "cpu", "dtype": "bfloat16",
    "composition_config": "complex", "save_interval": 7, "out_dir": "results", "wandb_log": True, "kl_coeff": 0.04,
    "clip_range": 0.3, "n_generations": 6, "max_new_tokens": 33,
    "checkpoint_path": "adapters/x", "reward_type": "heuristic",
    "lora_learning_rate": 5e-4, "clip_ratio": 0.1, "entropy_coeff": 0.01, "checkpoint_every": 9, "eval_every": 11,
    "generation_temperature": 0.7, "num_generation_steps": 12, "num_sampled_timesteps": 3,
}  # fmt: skip


def setting(stage: Any, path: tuple[str, ...]) -> Any:
    """The setting at a path of the stage's plain data."""
    value = stage.used
    for key in path:
        value = value[key]
    return value


def stages(extra: dict[str, Any], *overrides: str) -> Any:
    return parse_recipe({**BASE, **extra}, overrides).stages


@pytest.mark.parametrize("name", NAMES)
def test_every_name_wherever_it_is_understood(name: str):
    assert VALUES.keys() == NAMES.keys()
    value, path = VALUES[name], NAMES[name]
    base = {**BASE, "policy": {"kind": "autoregressive", "model": "tiny"}, "grpo": {"lr_scheduler_type": "cosine"}}
    if path == ("rewards",):
        del base["rewards"]
    schedule = base["grpo"]
    ways = [
        parse_recipe({**base, name: value}),
        parse_recipe({**base, "grpo": {**schedule, name: value}}),
        parse_recipe({**base, "stages": [{name: value}]}),
        parse_recipe({**base, "stages": [{"grpo": {name: value}}]}),
        parse_recipe(base, [f"{name}={value}"]),
        parse_recipe(base, [f"grpo.{name}={value}"]),
        parse_recipe(base, [f"stages.0.{name}={value}"]),
        parse_recipe(base, [f"grpo={{lr_scheduler_type: cosine, {name}: {value}}}"]),
    ]
    if path[-1] != name and name not in SHAPES:
        ways.append(parse_recipe(base, [f"{'.'.join(path)}={value}"]))
    for recipe in ways:
        if name not in SHAPES:
            assert setting(recipe.stages[0], path) == value
        assert recipe == ways[0]


def test_values_that_look_otherwise():
    (judged,) = parse_recipe({k: v for k, v in BASE.items() if k != "rewards"} | {"judge_checkpoint": "j.pt"}).stages
    assert [(r.kind, r.options) for r in judged.rewards] == [("judge", {"judges": ["j.pt"]})]
    assert stages({}, "judge_checkpoint=k.pt")[0].rewards[0].options == {"judges": ["k.pt"]}
    assert stages({"wandb_log": True})[0].trackers == ("wandb",)
    assert stages({"wandb_log": False})[0].trackers == ()
    with pytest.raises(RelgradError, match=r"reward_type='learned': understood is 'heuristic'.*judge `engagement`"):
        parse_recipe({k: v for k, v in BASE.items() if k != "rewards"} | {"reward_type": "learned"})
    with pytest.raises(RelgradError, match="rewards and judge_checkpoint are two names of one setting"):
        stages({"judge_checkpoint": "j.pt"})


def test_sections_of_the_replies_trainer():
    """Its YAML has sections that are none here: what is in them is understood, or refused with the new name."""
    lora = {"rank": 8, "alpha": 16, "dropout": 0.1, "target_modules": ["q_proj"]}
    expected = {"r": 8, "alpha": 16, "dropout": 0.1, "target_modules": ["q_proj"]}
    assert stages({"lora": lora})[0].policy.options["lora"] == expected
    assert stages({"stages": [{"lora": lora}]})[0].policy.options["lora"] == expected
    assert stages({}, "lora.rank=4")[0].policy.options["lora"] == {"r": 4}
    theirs = {
        "diversity_weight": 0.5,
        "n_generations": 3,
        "max_examples_for_diversity": 2,
        "compute_diversity_every_n_steps": 5,
    }
    (poly,) = stages({"stage": "polychromic", "polychromic": theirs})
    section = poly.polychromic
    assert (section.weight, section.num_generations, section.num_prompts, section.every) == (0.5, 3, 2, 5)
    for extra, overrides, message in (
        ({"lora": {"bias": "none"}}, [], r"lora\.bias='none': of a section lora, rank, alpha"),
        ({"training": {"num_epochs": 2}}, [], "num_epochs is epochs"),
        ({}, ["training.learning_rate=1e-4"], r"training\.learning_rate=0\.0001 is no setting here"),
        ({"grpo_monitoring": {"max_kl": 15}}, [], r"evaluation\.gate"),
        ({"_base_": "x.yaml"}, [], "a recipe stands alone"),
    ):
        with pytest.raises(RelgradError, match=message):
            stages(extra, *overrides)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_is_no_setting_here_is_named_with_its_place(name: str):
    for extra, overrides in (({name: 5}, []), ({"grpo": {name: 5}}, []), ({}, [f"{name}=5"])):
        with pytest.raises(RelgradError, match=re.escape(f"{name}=5 is no setting here: {ELSEWHERE[name]}")):
            stages(extra, *overrides)


def test_an_override_takes_the_place_of_either_name():
    for there in ({"grpo": {"num_generations": 4}}, {"grpo": {"group_size": 4}}, {"group_size": 4}):
        for override in ("group_size=16", "grpo.group_size=16", "grpo.num_generations=16"):
            assert stages(there, override)[0].grpo.num_generations == 16
    assert stages({}, "temperature=0.7")[0].policy.options == {"model": "tiny", "top_p": 0.5, "temperature": 0.7}
    assert stages({}, "group_size=3", "group_size=5")[0].grpo.num_generations == 5


def test_a_stage_inherits_and_overrides_by_either_name():
    found = stages({"group_size": 4, "stages": [{}, {"grpo": {"group_size": 6, "beta1": 0.5}}]}, "stages.1.kl_beta=0.2")
    assert [s.grpo.num_generations for s in found] == [4, 6]
    assert [s.grpo.adam_beta1 for s in found] == [0.9, 0.5]
    assert [s.grpo.beta for s in found] == [0, 0.2]


def test_a_section_given_whole_is_not_shared_between_stages():
    found = stages({"stages": [{}, {}]}, "grpo={group_size: 4}", "stages.0.kl_beta=0.3")
    assert [(s.grpo.num_generations, s.grpo.beta) for s in found] == [(4, 0.3), (4, 0)]


@pytest.mark.parametrize(
    ("extra", "overrides", "names"),
    [
        ({"grpo": {"group_size": 4, "num_generations": 4}}, [], "grpo.group_size and grpo.num_generations"),
        ({"group_size": 4, "grpo": {"num_generations": 4}}, [], "group_size and grpo.num_generations"),
        ({"group_size": 4, "grpo": {"group_size": 4}}, [], "group_size and grpo.group_size"),
        ({"top_p": 0.9}, [], "policy.top_p and top_p"),
        ({"grpo": {"top_p": 0.9}}, [], "policy.top_p and grpo.top_p"),
        ({}, ["kl_beta=0.1", "grpo.beta=0.1"], "kl_beta and grpo.beta"),
        ({}, ["stages.0.batch_size=2", "stages.0.grpo.num_prompts=2"], "batch_size and grpo.num_prompts"),
    ],
)  # fmt: skip
def test_two_names_at_once(extra: dict[str, Any], overrides: list[str], names: str):
    with pytest.raises(RelgradError, match=re.escape(names) + " are two names of one setting; give one of them"):
        stages(extra, *overrides)


def test_a_section_that_means_its_own_is_left_alone():
    sections = {"sft": {"batch_size": 5, "learning_rate": 0.1}, "grpo": {"learning_rate": 0.2}}
    sft, grpo = stages({**sections, "stages": [{"stage": "sft"}, {"stage": "grpo"}]})
    assert (sft.sft.batch_size, sft.sft.learning_rate) == (5, 0.1)
    assert (grpo.grpo.num_prompts, grpo.grpo.learning_rate) == (8, 0.2)
    assert place_of(("sft", "batch_size")) == ("sft", "batch_size")
    assert place_of(("rewards", "0", "weight")) == ("rewards", "0", "weight")
    with pytest.raises(RelgradError, match=r"sft\.group_size: unknown key"):
        stages({"sft": {"group_size": 5}})


@pytest.mark.parametrize("stage", ["sft", "judge"])
def test_a_name_that_another_kind_of_stage_would_ignore(stage: str):
    with pytest.raises(
        RelgradError, match=rf"learning_rate beside stage: {stage}, but there it stands for grpo\.learn"
    ):
        translate({"stage": stage, "learning_rate": 1e-3}, "r.yaml")
    assert translate({"stage": stage, "temperature": 0.5}, "r.yaml")["policy"] == {"temperature": 0.5}


def test_accumulation_is_a_factor_of_the_batch_size():
    """The original takes one optimizer step over batch_size x gradient_accumulation_steps prompts."""
    assert stages({"grpo": {"batch_size": 4, "gradient_accumulation_steps": 3}})[0].grpo.num_prompts == 12
    assert stages({"gradient_accumulation_steps": 3, "batch_size": 1})[0].grpo.num_prompts == 3
    overridden = stages({"batch_size": 2}, "grpo.gradient_accumulation_steps=3", "batch_size=5")[0]
    assert overridden.grpo.num_prompts == 15
    (sft,) = stages({"stage": "sft", "sft": {"batch_size": 6, "gradient_accumulation_steps": 3}})
    assert sft.sft.gradient_accumulation_steps == 3


@pytest.mark.parametrize(
    "extra",
    [
        {"grpo": {"gradient_accumulation_steps": 3}},
        {"grpo": {"gradient_accumulation_steps": 3, "num_prompts": 4}},
        {"gradient_accumulation_steps": 2, "grpo": {"gradient_accumulation_steps": 2, "batch_size": 2}},
        {"grpo": {"gradient_accumulation_steps": 1.5, "batch_size": 2}},
        {"grpo": {"gradient_accumulation_steps": 0, "batch_size": 2}},
    ],
)
def test_accumulation_that_says_nothing_clear(extra: dict[str, Any]):
    with pytest.raises(RelgradError, match=r"gradient_accumulation_steps=.* beside one batch_size.*grpo\.num_prompts"):
        stages(extra)
    with pytest.raises(RelgradError, match="overrides: gradient_accumulation_steps=3"):
        stages({"batch_size": 4}, "gradient_accumulation_steps=3")


def test_a_wrong_value_is_named_where_it_ends_up():
    with pytest.raises(
        RelgradError, match=r"grpo\.num_prompts: Input should be greater than or equal to 1 \(received 0\)"
    ):
        stages({"batch_size": 0})
    with pytest.raises(RelgradError, match=r"grpo is not a section \(received 3\), so num_generations has no place"):
        stages({"group_size": 4, "grpo": 3})


def test_what_is_given_is_not_changed():
    given = {"group_size": 4, "grpo": {"kl_beta": 0.1}, "policy": {"kind": "x"}}
    copy = {"group_size": 4, "grpo": {"kl_beta": 0.1}, "policy": {"kind": "x"}}
    translated = translate(given, "r")
    assert given == copy
    assert translated == {"grpo": {"num_generations": 4, "beta": 0.1}, "policy": {"kind": "x"}}
    assert translate_settings([(("grpo",), {"beta1": 0.5})], "o") == [(("grpo",), {}), (("grpo", "adam_beta1"), 0.5)]


def test_the_documented_table_is_the_one_in_force():
    page = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
    section = page[page.index("**Names of the originals.**") : page.index("**Stages.**")]
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|$", section, re.MULTILINE)
    assert {name: tuple(path.split(".")) for name, path in rows} == NAMES
    assert all(f"`{name}`" in section for name in ELSEWHERE)
