"""Policies that unmask on networks of every family: the policy contract, settings, recipes' stages, the check of the shift."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import contract
from commands import lines, relgrad
from enumerated import seeded
from relgrad.core.errors import RelgradError
from relgrad.core.types import Example, Prompt
from relgrad.policies import unmasking
from relgrad.policies.unmasking import family_toys
from relgrad.policies.unmasking.settings import Lora, Settings

TOYS = family_toys.toys()
CHECKS = contract.EVERYONE | contract.EXACT_ONLY
QUICK = {
    "llada-random": ("parity", "mass"),
    "dream-low_confidence": ("untouched", "composition"),
    "sdar-cached-plackett_luce": ("parity", "mass"),
    "sdar-cached-low_confidence": ("parity", "untouched", "seed"),
    "llada2-own-code-threshold": ("parity", "untouched"),
    "llada-own-code-ancestral": ("chunks",),
    "dream-own-code-remask": ("parity", "reference"),
}
"""What the default suite takes; `slow` has every network with every order and every check."""


def cases() -> list:
    return [
        pytest.param(toy, check, id=f"{check}-{toy}", marks=() if check in QUICK.get(toy, ()) else pytest.mark.slow)
        for toy in TOYS
        for check in CHECKS
    ]


@pytest.mark.parametrize(("toy", "check"), cases())
def test_contract_of_every_family(toy: str, check: str):
    CHECKS[check](TOYS[toy]())


@pytest.mark.slow
def test_contract_round_trips_of_families(tmp_path: Path):
    differences = contract.check_round_trips("relgrad.policies.unmasking.family_toys", TOYS, tmp_path)
    assert differences == pytest.approx(dict.fromkeys(TOYS, 0.0), abs=1e-5)


@pytest.mark.parametrize("order", ["low_confidence", "remask"])
def test_block_causal_networks_are_sampled_with_their_cache(order: str, monkeypatch: pytest.MonkeyPatch):
    toy = TOYS[f"sdar-cached-{order}"]()
    calls = []
    outputs = toy.policy.network.outputs
    monkeypatch.setattr(toy.policy.network, "outputs", lambda *args: calls.append(1) or outputs(*args))
    toy.policy.sample(toy.prompts, 4, seeded(0))
    assert bool(calls) is (order == "remask"), "a law that masks again needs the whole row, others the cache"


# ---------------------------------------------------------------------- from a recipe's settings


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of its own, so that what an earlier version has written is not read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RELGRAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def built(model: str, start: Path | None = None, **options):
    chosen = {"max_completion_length": 8, "block_length": 4, "steps": 4, "device": "cpu", **options}
    return unmasking.build(Settings(model=model, **chosen), seed=0, start=start)


EXAMPLES = [Example(Prompt(f"{n} + {n} = ", id=n), f"{2 * n}") for n in range(1, 5)]


def test_an_adapter_goes_on_in_the_next_stage(tmp_path: Path):
    policy = built("tiny-llada:32x1", lora=Lora(r=2))
    with torch.no_grad():
        for name, parameter in policy.parameters():
            parameter.add_(0.1) if "lora_B" in name else None
    policy.save(tmp_path / "stage")
    again = built("tiny-llada:32x1", start=tmp_path / "stage", lora=Lora(r=2))
    assert again.target_nll(EXAMPLES) == policy.target_nll(EXAMPLES)
    assert again.target_nll(EXAMPLES) != built("tiny-llada:32x1", lora=Lora(r=2)).target_nll(EXAMPLES)
    named = built("tiny-llada:32x1", adapter=str(tmp_path / "stage"), lora=Lora(r=2))
    assert named.target_nll(EXAMPLES) == policy.target_nll(EXAMPLES)


@pytest.mark.parametrize("lora", [None, Lora(r=2)], ids=["whole", "adapter"])
def test_averaged_weights_are_handed_on(lora: Lora | None, tmp_path: Path):
    """A stage ends with the average that is judged, and the next one begins with it, by `start` as by `model`."""
    options = {"ema_decay": 0.5, "lora": lora}
    policy = built("tiny-llada:32x1", **options)
    with torch.no_grad():
        for _, parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=seeded(0)))
    policy.after_update()
    policy.save(tmp_path / "stage")
    with policy.evaluation():
        judged = policy.target_nll(EXAMPLES)
    assert judged != policy.target_nll(EXAMPLES)
    assert built("tiny-llada:32x1", start=tmp_path / "stage", **options).target_nll(EXAMPLES) == judged
    if lora is None:
        assert built(str(tmp_path / "stage")).target_nll(EXAMPLES) == judged


def test_any_of_several_ends_finishes_a_text():
    policy = family_toys.make("llada", "random", eos_token_ids=(2,))().policy
    schedule = replace(policy.steps.schedule, end_ids=(0, 2))
    state_NE = torch.tensor([[1, 2, policy.symbols.mask_id, policy.symbols.mask_id]])
    there_NE = torch.ones_like(state_NE, dtype=torch.bool)
    assert not bool(schedule.work(policy.engine.law, state_NE, there_NE, torch.tensor([2])).live_N)
    alone = replace(schedule, end_ids=(0,))
    assert bool(alone.work(policy.engine.law, state_NE, there_NE, torch.tensor([2])).live_N)


def test_a_causal_model_is_trained_as_one_that_unmasks(tmp_path: Path):
    policy = built("tiny:32x1", family="bidirectional", shift=True)
    assert any("a mask was added" in note for note in policy.notes)
    optimizer = torch.optim.Adam([p for _, p in policy.parameters()], lr=1e-2)
    before = policy.target_nll(EXAMPLES)[0]
    for step in range(30):
        optimizer.zero_grad()
        policy.supervised_loss(EXAMPLES, torch.Generator().manual_seed(step)).total.backward()
        optimizer.step()
    after = policy.target_nll(EXAMPLES)[0]
    assert after < 0.5 * before
    policy.save(tmp_path / "stage")
    assert built("tiny:32x1", start=tmp_path / "stage").target_nll(EXAMPLES)[0] == pytest.approx(after, abs=1e-4)


def test_gradients_are_the_same_where_activations_are_computed_again():
    def gradient(**options) -> torch.Tensor:
        policy = built("tiny-dream:32x2", **options)
        rollouts = policy.sample([e.prompt for e in EXAMPLES], 2, seeded(1))
        policy.score(rollouts, rollouts.cells()).logp_N.sum().backward()
        return torch.cat([p.grad.flatten() for _, p in policy.parameters() if p.grad is not None])

    torch.testing.assert_close(gradient(gradient_checkpointing=True), gradient(), atol=1e-4, rtol=1e-4)


def test_ids_beyond_the_tokenizer_are_never_written():
    policy = built("tiny-dream:32x1")
    written = policy.symbols.drawable_K
    assert policy.network.vocabulary_size == 105
    assert (len(written), int(written.max())) == (97, 96)
    assert policy.symbols.mask_id not in written


def test_the_first_batch_tells_of_a_shift_that_does_not_fit(tmp_path: Path):
    policy = built("tiny:32x1", family="bidirectional", shift=True)
    optimizer = torch.optim.Adam([p for _, p in policy.parameters()], lr=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(30):
            optimizer.zero_grad()
            policy.supervised_loss(EXAMPLES, torch.Generator().manual_seed(step)).total.backward()
            optimizer.step()
    policy.network.shifted = False
    policy._check = policy.parts.check
    with pytest.warns(UserWarning, match=r"nats with policy\.shift=false, .* with shift=true"):
        policy.supervised_loss(EXAMPLES, seeded(0))
    policy.network.shifted = True
    policy._check = policy.parts.check
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy.supervised_loss(EXAMPLES, seeded(0))


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("tiny-sdar:32x1", {"block_length": 2}, r"policy\.block_length=2.*attends in blocks of 4.*multiple of 4"),
        ("tiny-sdar:32x1", {"max_completion_length": 6, "block_length": None, "steps": 3},
         r"policy\.max_completion_length=6.*blocks of 4"),
        ("tiny-dream:32x1", {"writes": "holes"}, r"policy\.writes='holes'"),
        ("tiny-dream:32x1", {"symbols": "byte"}, r"policy\.symbols='byte' is for networks of this house"),
        ("tiny-dream:32x1", {"quantize": "4bit"}, r"add a lora section"),
        ("tiny-dream:32x1", {"dtype": "bfloat16"}, r"small updates would be rounded away"),
        ("tiny-dream:32x1", {"family": "mdlm"}, r"policy\.family='mdlm': known are"),
        ("tiny-llada2:32x1", {}, r"policy\.trust_remote_code=true"),
        ("tiny-dream:32x1", {"eos_token_ids": (500,)}, r"cannot write id 500; it has 0 to 104"),
        ("new", {"family": "dream"}, r"policy\.family is for published models"),
        ("new", {"lora": Lora()}, r"policy\.lora is for published models"),
        ("./nowhere", {}, r"no folder './nowhere'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(model: str, options: dict, message: str):
    with pytest.raises(RelgradError, match=message):
        built(model, **options)


def test_a_prompt_that_holds_the_mask_is_refused():
    policy = built("tiny-dream:32x1")
    with pytest.raises(RelgradError, match=r"prompt 7 or its target holds the mask"):
        policy.sample([Prompt("a<|mask|>b", id=7)], 2, seeded(0))


# ---------------------------------------------------------------------- recipes of published models, in small


SMALL = (
    "policy.lora.r=2", "policy.max_completion_length=8", "policy.steps=4", "policy.train_steps=2", "policy.dtype=float32",
    "policy.eos_token_ids=[]", "grpo.steps=2", "grpo.num_prompts=2", "grpo.num_generations=3", "evaluation.num_prompts=2",
)  # fmt: skip
DIGITS = ("task={kind: digits, length: 4}", "rewards=[{kind: exact, per_character: true}]")
LLADA = ("policy.model=tiny-llada:32x1", "policy.quantize=null", "policy.block_length=4")


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("dream-7b", ("policy.model=tiny-dream:32x1", *SMALL, *DIGITS)),
        pytest.param("llada-8b", (*LLADA, *SMALL, *DIGITS), marks=pytest.mark.slow),
        pytest.param(
            "llada-8b-countdown",
            (*LLADA, *SMALL, "task.chat=false", "task.train_size=20", "task.held_out_size=4"),
            marks=pytest.mark.slow,
        ),
        (
            "smollm2-diffusion",
            ("policy.model=tiny:32x1", "policy.max_completion_length=101", "sft.steps=2", "evaluation.num_prompts=2"),
        ),
    ],
)
def test_recipes_run_on_the_tiny_network_of_their_family(
    recipe: str, changes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    relgrad("run", recipe, *changes)
    (metrics,) = tmp_path.glob("runs/*/*/metrics.jsonl")
    steps = lines(metrics)
    assert steps[-1]["step"] == 2
    parities = [step["parity/max_abs"] for step in steps if "parity/max_abs" in step]
    assert max(parities, default=0.0) < 1e-4
    if recipe == "smollm2-diffusion":
        assert 0 < steps[-1]["eval_loss"] < 20
