"""Estimates before the launch: parameters and kept bytes against networks that are built, bad input, and what is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from relgrad.commands.cli import app
from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.randomness import generator
from relgrad.core.settings import settings_of
from relgrad.estimates import stage as stages
from relgrad.estimates.policy_size import Lengths, Passes, PolicySize, Sized, weight_bytes
from relgrad.estimates.stage import Prompts, Rollout
from relgrad.estimates.transformer import Kept, Transformer, of_config
from relgrad.runs import estimate, machine
from relgrad.runs.build import find_recipe, load_task, resolve
from relgrad.runs.recipe import load_recipe
from relgrad.stages.kind import build_policy
from relgrad.stages.settings import Stage


def stage_of(recipe: str, number: int, *settings: str) -> Stage:
    return resolve(load_recipe(find_recipe(recipe), settings)).stages[number]


def size_of(stage: Stage) -> PolicySize:
    module = registry.find("policies", stage.policy.kind)
    assert isinstance(module, Sized)
    return module.size(settings_of(stage.policy, module.Settings, "policy"), None)


def relgrad(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "300", "NO_COLOR": "1"})


# ---------------------------------------------------------------------- parameters

TINY_LORA = ("policy.model=tiny:64x2", "policy.lora={r: 3, alpha: 6}")
RECIPES = [
    ("quick", 1, (*TINY_LORA, "policy.lora.target_modules=[q_proj, down_proj]")),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("fill-quick", 3, ("policy.bias=true", "policy.position_encoding=absolute")),
            ("forms-flow-quick", 1, ("policy.few_step={}", "policy.ema_decay=0.9", "policy.branch_steps=null")),
            ("quick", 1, ()),
            ("quick", 1, ("policy.model=tiny:64x3",)),
            ("quick", 1, TINY_LORA),
            ("fill-quick", 3, ()),
            ("forms-flow-quick", 1, ()),
            ("forms-flow-quick", 1, ("policy.lora={r: 2, alpha: 4}",)),
            ("unmasking-quick", 1, ()),
            ("refusion-quick", 1, ()),
        )
    ),
]


@pytest.mark.parametrize(("recipe", "number", "settings"), RECIPES)
def test_parameters_are_those_of_the_policy(recipe: str, number: int, settings: tuple[str, ...]):
    stage = stage_of(recipe, number, *settings)
    size, policy = size_of(stage), build_policy(stage, None)
    assert size.trained == sum(p.numel() for _, p in policy.parameters())
    assert size.parameters == int(policy.facts["Parameters"].replace(",", ""))


@pytest.mark.parametrize("kind", ["autoregressive", "fill_in", "flow", "unmasking", "refusion"])
def test_these_kinds_of_policy_have_an_estimate(kind: str):
    assert isinstance(registry.find("policies", kind), Sized)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_parameters_of_a_config_are_those_of_the_library(kind: str):
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 50,
             "num_key_value_heads": 2, "tie_word_embeddings": kind == "qwen2"}  # fmt: skip
    config = AutoConfig.for_model(kind, **shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert of_config(config.to_dict(), lean=True).parameters == sum(p.numel() for p in model.parameters())


def test_what_has_no_estimate_says_so():
    with pytest.raises(RelgradError, match="mixture of 8 experts"):
        of_config({"num_local_experts": 8}, lean=False)
    with pytest.raises(RelgradError, match="none of hidden_size, d_model, n_embd"):
        of_config({"model_type": "mamba"}, lean=False)
    with pytest.raises(RelgradError, match=r"no estimate for lora.target_modules='wq'.* all-linear and q_proj"):
        size_of(stage_of("quick", 1, *TINY_LORA, "policy.lora.target_modules=[wq]"))


# ---------------------------------------------------------------------- what a backward pass keeps


def kept_by_autograd(compute: Callable[[], Any], parameters: set[int]) -> int:
    """Bytes of the storages that autograd keeps of a computation, those of parameters aside."""
    sizes: dict[int, int] = {}
    tensors = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
            tensors.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()
    return sum(sizes.values())


@pytest.mark.parametrize(
    ("recipe", "number", "settings"),
    [
        ("quick", 1, ()),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("unmasking-quick", 1, ()),
                ("quick", 1, ("policy.model=tiny:64x2",)),
                ("quick", 1, ("policy.engine=transformers",)),
                ("quick", 1, TINY_LORA),
                ("fill-quick", 3, ()),
                ("forms-flow-quick", 1, ("policy.branch_steps=null", "policy.sampling_steps=2")),
                ("refusion-quick", 1, ()),
            )
        ),
    ],
)
def test_a_chunk_keeps_what_is_estimated(recipe: str, number: int, settings: tuple[str, ...]):
    """Within a quarter, on real prompts: attention and the ends of a network are not counted one by one."""
    stage = stage_of(recipe, number, *settings)
    size, policy, task = size_of(stage), build_policy(stage, None), load_task(stage)
    prompts = [task.train[index] for index in range(4)]
    rollouts = policy.sample(prompts, 4, generator(0, "estimate"))
    (cells,) = policy.plan(rollouts, torch.arange(rollouts.rows), 10**9)
    own = {p.untyped_storage().data_ptr() for p in policy.weights.network.parameters()}
    kept = kept_by_autograd(lambda: policy.score(rollouts, cells), own)
    module = registry.find("policies", stage.policy.kind)
    lengths = module.lengths(settings_of(stage.policy, module.Settings, "policy"), prompts, [])
    positions = sum(size.score(replace(length, each=4)).positions for length in lengths)
    estimated = positions * size.network.kept_bytes(size.number_bytes)
    assert estimated == pytest.approx(kept, rel=0.25)


# ---------------------------------------------------------------------- known answers

NETWORK = Transformer(
    layers=2, hidden=10, inner=20, query=10, key=5, vocabulary=100, matrices={"a": (10, 30), "b": (20, 10)},
    kept=Kept(3, 2, 1, 1), other=7, tied=True,
)  # fmt: skip


def flat(positions: float, decisions: float) -> Callable[[Lengths], Passes]:
    return lambda lengths: Passes(positions, 1, positions, 4.0, decisions, cached=positions)


SIZE = PolicySize(
    network=NETWORK, trained=2007, weight_bytes=4, number_bytes=4, adapted=False, draw=flat(50, 20), score=flat(40, 20),
    learn=flat(12, 6), chunk_tokens=lambda lengths: (40.0, 10.0),
)  # fmt: skip


def test_a_network_by_hand():
    assert NETWORK.layer_weights == 500
    assert NETWORK.parameters == 2 * 500 + 1000 + 7
    assert NETWORK.operations(3, 4) == 3 * 2 * (2 * 500 + 4 * 4 * 10)
    assert NETWORK.head_operations(3) == 3 * 2000
    assert NETWORK.cached_bytes(2) == 2 * 2 * 2 * 5
    layer = 4 * (3 * 10 + 2 * 20 + 10 + 5)
    assert NETWORK.kept_bytes(4) == 2 * layer + 80
    assert NETWORK.kept_bytes(4, recomputed=True) == layer + 2 * 40 + 80
    assert NETWORK.kept_bytes(2) == 2 * (layer / 2 + 4 * 4 * 10) + 40
    assert NETWORK.adapter(3, "all-linear") == 2 * 3 * (40 + 30)


def test_a_grpo_stage_by_hand():
    prompts = Prompts([Lengths(5, 7, 4), Lengths(7, 9, 4)], [Lengths(5, 7, 2)])
    settings = Rollout(num_prompts=8, num_generations=4, micro_batch_tokens=80, reference=True)
    needs = stages.grpo(SIZE, prompts, settings)
    assert needs.memory == {"weights": 8028, "gradient": 8028, "optimizer": 16056, "reference": 8028}
    assert needs.chunk_tokens == 80
    forward = NETWORK.operations(40, 4) + NETWORK.head_operations(20)
    drawing = NETWORK.operations(50, 4) + NETWORK.head_operations(20)
    assert needs.step.draw_operations == 8 * drawing
    assert needs.step.learn_operations == 8 * forward * (3 + 1)
    assert needs.step.tokens == 8 * 8 * 4
    assert needs.bytes == sum(needs.memory.values()) + max(needs.either.values())
    halves = stages.grpo(SIZE, prompts, replace(settings, steps_per_generation=2, num_iterations=2, scored_again=True))
    assert halves.step.draw_operations == 2 * drawing
    assert halves.step.learn_operations == 4 * forward * (3 + 1 + 1)
    adapted = stages.grpo(replace(SIZE, adapted=True, trained=100), prompts, settings)
    assert adapted.memory["adapter"] == 400
    assert adapted.memory["weights"] == 8028
    assert adapted.step.learn_operations == 8 * forward * (2 + 1)
    wide = stages.grpo(SIZE, prompts, replace(settings, micro_batch_tokens=1))
    assert wide.chunk_tokens == 10, "one row at least"


def test_a_supervised_stage_by_hand():
    needs = stages.sft(SIZE, Prompts([Lengths(5, 7)], []), batch_size=8, pieces=4)
    assert needs.chunk_tokens == 2 * 12
    assert needs.step.learn_operations == 8 * 3 * (NETWORK.operations(12, 4) + NETWORK.head_operations(6))
    assert needs.evaluation.operations == 0


def test_weights_of_few_bits():
    assert weight_bytes("bfloat16", None, NETWORK) == 2
    inside = 1000 / NETWORK.parameters
    assert weight_bytes("bfloat16", "4bit", NETWORK) == pytest.approx(0.56 * inside + 2 * (1 - inside))


def test_qlora_of_a_large_model(tmp_path: Path):
    """Qwen3-8B's published shape: 8.19 billion parameters, 4.9 GiB in 4 bits with embeddings of 16."""
    config = {"model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "head_dim": 128,
              "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 151936, "tie_word_embeddings": False}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    stage = stage_of(
        "quick", 1, f"policy.model={tmp_path}", "policy.dtype=bfloat16", "policy.quantize=4bit", "policy.lora={r: 16}"
    )
    size = size_of(stage)
    assert size.network.parameters == 8_190_735_360
    assert size.trained == 43_646_976
    assert size.network.parameters * size.weight_bytes / 2**30 == pytest.approx(5.95, abs=0.2)


# ---------------------------------------------------------------------- the command


def test_the_dry_run_prints_an_estimate_beside_a_recipe_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "BUDGET", 0.0)
    result = relgrad("run", "quick", "--dry-run", "--price-per-hour", "1.99", f"out={tmp_path}")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stdout.splitlines() if line.startswith("#")]
    assert sum(line.startswith("# estimate of ") for line in lines) == 2
    assert "418,816 parameters, 418,816 trained" in result.stdout
    assert "at 1.99 an hour" in lines[-1]
    assert not any(tmp_path.iterdir())


def test_two_steps_of_every_stage_and_nothing_written(tmp_path: Path):
    short = ("policy.model=tiny:32x1", "sft.batch_size=4", "grpo.num_prompts=2", "evaluation.num_prompts=4")
    result = relgrad(
        "run", "quick", *short, "--dry-run", "--measure", "--json", "--price-per-hour", "60", f"out={tmp_path}"
    )
    assert result.exit_code == 0, result.output
    for found in json.loads(result.stdout)["stages"]:
        assert found["time_from"] == "two steps"
        assert found["step_seconds"] > 0
        assert found["hours"] == pytest.approx(
            (found["steps"] * found["step_seconds"] + found["evaluation_seconds"]) / 3600
        )
        assert found["cost"] == pytest.approx(60 * found["hours"])
        assert found["bytes"] == pytest.approx(sum(found["memory"].values()) + max(found["either"].values()))
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_stages_without_an_estimate_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "speed", lambda *arguments, **options: 1e9)
    result = relgrad("run", "fill-quick", "--dry-run", "--json", f"out={tmp_path}")
    stages = json.loads(result.stdout)["stages"]
    assert [stage.get("why") for stage in stages[1:3]] == ["there is no estimate for stages of kind judge"] * 2
    assert stages[3]["hours"] > 0
    assert "bytes" not in stages[1]


@pytest.mark.parametrize(
    ("free", "settings", "advice"),
    [
        (2e6, (), "train an adapter (policy.lora)"),
        (24e6, (), "lower grpo.micro_batch_tokens (8192) below 424"),
        (
            24e6,
            ("policy.max_completion_length=400", "grpo.micro_batch_tokens=1"),
            "lower evaluation.num_generations (4)",
        ),
        (1e9, (), ""),
    ],
)
def test_what_does_not_fit_names_the_setting(
    free: float, settings: tuple[str, ...], advice: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(machine, "memory", lambda device: machine.Memory("a small one", free, free, 1e6))
    monkeypatch.setattr(machine, "speed", lambda *arguments, **options: 1e9)
    found = estimate.forecast(load_recipe(find_recipe("quick"), settings))[1]
    assert found.advice.startswith(advice) if advice else not found.advice
    assert any("warning" in line for line in estimate.in_lines(found, None)) == bool(advice)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dry-run", "--price-per-hour", "cheap"), "price-per-hour"),
        (("--dry-run", "--price-per-hour", "-1"), "--price-per-hour -1: give what an hour of the machine costs"),
        (("--dry-run", "--price-per-hour", "nan"), "--price-per-hour nan"),
        (("--measure",), "belong to"),
        (("--json",), "belong to"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str, tmp_path: Path):
    result = relgrad("run", "quick", f"out={tmp_path}", *arguments)
    assert result.exit_code == 2
    assert message in " ".join((result.output + result.stderr).split())
    assert not any(tmp_path.iterdir())


def test_speed_is_of_a_layer_that_ran():
    speed = machine.speed(NETWORK, 64, torch.device("cpu"), torch.float32, learning=True)
    assert 0 < speed < 1e14
