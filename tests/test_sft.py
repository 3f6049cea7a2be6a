"""The supervised loop: whose loss it is, that it learns, and what it hands on to GRPO."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import generator
from relgrad.core.types import Example, Prompt
from relgrad.networks.causal import tiny
from relgrad.policies import autoregressive
from relgrad.policies.autoregressive import AutoregressivePolicy, Lora
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe
from relgrad.runs.use import evaluate_run, open_source
from relgrad.stages.kind import build_policy
from relgrad.training import checkpoint
from relgrad.training.sft import Sft, SftSettings

EXAMPLES = tuple(
    Example(Prompt(prompt, id=i), target)
    for i, (prompt, target) in enumerate(
        [("12=", "21"), ("a long prompt: ", "and a long target"), ("x", ""), ("98=", "89")]
    )
)
LORA = Lora(r=4, alpha=8)


def policy(**settings: Any) -> AutoregressivePolicy:
    chosen = autoregressive.Settings(model=settings.pop("model", "tiny:32x1"), max_completion_length=4, **settings)
    return autoregressive.build(chosen, seed=0)


def run_through(loop: Sft) -> list[float]:
    """All steps of the loop; the losses."""
    return [loop.update().metrics["loss"] for _ in range(loop.settings.steps)]


# ---------------------------------------------------------------------- the loss


@pytest.mark.parametrize("engine", ["shared", "transformers"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_loss_is_that_of_transformers(engine: str, side: str, lora: Lora | None):
    """Their own cross-entropy: labels -100 on prompt and padding, the shift left to them; sampling settings play no part."""
    trained = policy(lora=lora, engine=engine, temperature=0.5, top_k=3)
    trained.tokenizer.padding_side = side
    encode = trained.tokenizer
    loss, count, _ = trained.supervised_loss(EXAMPLES, generator(0))
    rows, labels = [], []
    for example in EXAMPLES:
        prompt = encode(str(example.prompt.content)).input_ids
        target = [*encode(example.target).input_ids, encode.eos_token_id]
        rows.append(prompt + target)
        labels.append([-100] * len(prompt) + target)
    assert count == sum(label != -100 for row in labels for label in row) == 2 + 17 + 0 + 2 + 4
    width = max(map(len, rows))
    ids_BL = torch.tensor([r + [0] * (width - len(r)) for r in rows])
    mask_BL = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
    labels_BL = torch.tensor([r + [-100] * (width - len(r)) for r in labels])
    theirs = trained.model(input_ids=ids_BL, attention_mask=mask_BL, labels=labels_BL).loss
    assert float(loss.detach()) == pytest.approx(float(theirs) * count, rel=1e-5)
    ours = torch.autograd.grad(loss, [p for _, p in trained.parameters()])
    expected = torch.autograd.grad(theirs * count, [p for _, p in trained.parameters()])
    for (name, _), a, b in zip(trained.parameters(), ours, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4), (
            f"the gradient of {name} differs by {float((a - b).abs().max()):.2g}"
        )


def test_logged_loss_is_the_mean_over_all_targets():
    trained = policy()
    loss, count, _ = trained.supervised_loss(EXAMPLES, generator(0))
    loop = Sft(trained, EXAMPLES, SftSettings(batch_size=4, gradient_accumulation_steps=2))
    record = loop.update()
    assert record.metrics["loss"] == pytest.approx(float(loss.detach()) / count, rel=1e-5)
    assert record.metrics["mean_nll"] == pytest.approx(record.metrics["loss"], rel=1e-6)
    assert record.metrics["num_tokens"] == count


def test_a_target_may_be_longer_than_what_is_sampled_up_to_the_context():
    trained = policy()  # of at most 4 tokens, in a context of 512
    loss = trained.supervised_loss([Example(Prompt("1="), "x" * 509)], generator(0))
    assert loss.targets == 510
    assert loss.nll == pytest.approx(float(loss.total.detach()), rel=1e-6)
    trained.supervised_loss([Example(Prompt("1" * 510), "x")], generator(0))
    with pytest.raises(RelgradError, match=r"prompt 3 has 2 tokens and its target 511.*the model's context of 512"):
        trained.supervised_loss([Example(Prompt("1=", id=3), "x" * 510)], generator(0))


def test_every_example_once_per_epoch():
    seen: list[int] = []

    class Watched(AutoregressivePolicy):
        def supervised_loss(self, examples, generator):
            seen.extend(e.prompt.id for e in examples)
            return super().supervised_loss(examples, generator)

    trained = policy()
    trained.__class__ = Watched
    run_through(Sft(trained, EXAMPLES, SftSettings(steps=6, batch_size=2), seed=1))
    epochs = [seen[i : i + 4] for i in (0, 4, 8)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1, "every epoch has the same order"


def learnt(lora: Lora | None) -> tuple[AutoregressivePolicy, list[Example], list[float]]:
    """A policy after 60 steps on six little examples."""
    trained = policy(lora=lora, model="tiny:64x1")
    examples = [Example(Prompt(f"{n}="), f"{n}") for n in range(3, 9)]
    settings = SftSettings(steps=60, batch_size=6, learning_rate=0.01)
    return trained, examples, run_through(Sft(trained, examples, settings, seed=0))


def test_it_learns():
    """The loss vanishes, and the policy then writes the targets and ends them."""
    trained, examples, losses = learnt(None)
    assert losses[0] > 4
    assert losses[-1] < 0.15
    rollouts = trained.sample([e.prompt for e in examples], 4, generator(1))
    right = [o.text == examples[int(g)].target for o, g in zip(rollouts.outputs, rollouts.group_B, strict=True)]
    assert sum(right) >= 0.8 * len(right)
    assert rollouts.stop.count("eos") >= 0.8 * len(right)


def test_an_adapter_learns():
    """As far as the random, frozen head of a tiny model lets it."""
    _, _, losses = learnt(Lora(r=16, alpha=32))
    assert losses[0] > 4
    assert losses[-1] < losses[0] - 1


def test_full_training_moves_every_weight_and_lora_none_of_the_model():
    for lora in (None, LORA):
        trained = policy(lora=lora)
        before = {n: p.detach().clone() for n, p in trained.model.named_parameters()}
        Sft(trained, EXAMPLES, SftSettings(batch_size=4, learning_rate=0.01)).update()
        moved = {n for n, p in trained.model.named_parameters() if not torch.equal(p, before[n])}
        expected = {n for n in before if lora is None or "lora_B" in n}  # A has no gradient while B is 0
        assert moved == expected


# ---------------------------------------------------------------------- what is saved


def trained_checkpoint(folder: Path, lora: Lora | None, **settings: Any) -> tuple[Path, AutoregressivePolicy]:
    trained = policy(lora=lora, **settings)
    loop = Sft(trained, EXAMPLES, SftSettings(batch_size=4, learning_rate=0.01, steps=3))
    run_through(loop)
    return checkpoint.save(folder, loop, trained), trained


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids).logits


def test_full_checkpoint_loads_with_transformers_alone(tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, trained = trained_checkpoint(tmp_path, None)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)("12=21", return_tensors="pt").input_ids
    assert torch.allclose(logits(model, ids), logits(trained.model, ids), atol=1e-5)
    assert not torch.allclose(logits(model, ids), logits(policy().model, ids), atol=1e-2)
    assert "relgrad" not in (folder / "config.json").read_text()
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape[1] <= ids.shape[1] + 2


def test_adapter_checkpoint_loads_with_peft_alone(tmp_path: Path):
    from peft import AutoPeftModelForCausalLM

    folder, trained = trained_checkpoint(tmp_path, LORA)
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    ids = trained.tokenizer("12=21", return_tensors="pt").input_ids
    assert torch.allclose(logits(model, ids), logits(trained.model, ids), atol=1e-5)
    assert not torch.allclose(logits(model, ids), logits(policy().model, ids), atol=1e-2)


# ---------------------------------------------------------------------- hand-off to the next stage


def build_from(start: Path, lora: Lora | None = LORA, model: str = "tiny:32x1") -> AutoregressivePolicy:
    chosen = autoregressive.Settings(model=model, max_completion_length=4, lora=lora)
    return autoregressive.build(chosen, seed=1, start=start, reference=True)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_hand_off_continues_from_the_trained_weights(tmp_path: Path, lora: Lora | None):
    folder, trained = trained_checkpoint(tmp_path, lora)
    following = build_from(folder, lora)
    ids = trained.tokenizer("12=21", return_tensors="pt").input_ids
    assert torch.allclose(logits(following.model, ids), logits(trained.model, ids), atol=1e-5)
    bare = policy(lora=lora)
    assert not torch.allclose(logits(following.model, ids), logits(bare.model, ids), atol=1e-2)
    rollouts = following.sample([EXAMPLES[0].prompt], 4, generator(0))
    here = following.score(rollouts, rollouts.cells()).logp_N
    with following.reference():  # the reference is the start of this stage, adapter and all
        assert torch.equal(following.score(rollouts, rollouts.cells()).logp_N, here)


def test_untrained_adapter_is_refused(tmp_path: Path):
    """Where a recipe names it. A run that learnt nothing can be sampled and gone on from, and says so."""
    policy(lora=LORA).save(tmp_path / "untrained")
    chosen = autoregressive.Settings(model="tiny:32x1", lora=LORA, adapter=str(tmp_path / "untrained"))
    with pytest.raises(RelgradError, match=r"untrained.*does not change the output"):
        autoregressive.build(chosen, seed=0)
    assert "has learnt nothing" in build_from(tmp_path / "untrained").notes[-1]


def test_missing_adapter(tmp_path: Path):
    chosen = autoregressive.Settings(model="tiny:32x1", lora=LORA, adapter=str(tmp_path / "nothing"))
    with pytest.raises(RelgradError, match=r"nothing: holds no adapter, not adapter_model.safetensors"):
        autoregressive.build(chosen, seed=0)


def test_nested_adapter(tmp_path: Path):
    folder, _ = trained_checkpoint(tmp_path / "run", LORA)
    chosen = autoregressive.Settings(model="tiny:32x1", lora=LORA, adapter=str(folder.parent))
    with pytest.raises(
        RelgradError, match=rf"{folder.parent}: no adapter here, but in {folder.name}; name that folder"
    ):
        autoregressive.build(chosen, seed=0)


def test_full_model_where_an_adapter_is_expected(tmp_path: Path):
    folder, _ = trained_checkpoint(tmp_path, None)
    chosen = autoregressive.Settings(model="tiny:32x1", lora=LORA, adapter=str(folder))
    with pytest.raises(RelgradError, match="holds a full model, not adapter_model"):
        autoregressive.build(chosen, seed=0)


@pytest.mark.parametrize(
    ("made_with", "what"),
    [
        (
            {"lora": Lora(r=2, alpha=8)},
            r"has shape \(2, 32\), expected \(4, 32\); 0 missing, 0 foreign, \d+ of another shape",
        ),
        ({"lora": LORA, "model": "tiny:64x1"}, r"made for .*64x1.*of another shape"),
        ({"lora": LORA, "model": "tiny:32x2"}, r"made for .*32x2.*layers\.1\..*is not in this model"),
        ({"lora": Lora(r=4, alpha=8, target_modules=("q_proj",))}, "is missing"),
    ],
    ids=["rank", "width", "depth", "layers"],
)
def test_foreign_adapter(tmp_path: Path, made_with: dict[str, Any], what: str):
    folder, _ = trained_checkpoint(tmp_path, **made_with)
    chosen = autoregressive.Settings(model="tiny:32x1", lora=LORA, adapter=str(folder))
    with pytest.raises(RelgradError, match=rf"(?s){folder}: this adapter belongs to another model.*{what}"):
        autoregressive.build(chosen, seed=0)


def test_adapter_without_lora_section(tmp_path: Path):
    folder, _ = trained_checkpoint(tmp_path, LORA)
    with pytest.raises(RelgradError, match=r"is an adapter, but policy\.lora is not set"):
        build_from(folder, lora=None)


def test_weights_with_a_missing_tensor(tmp_path: Path):
    folder, trained = trained_checkpoint(tmp_path, None)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RelgradError, match=r"holds another model \(1 tensors missing.*lm_head.weight"):
        trained.load(folder)


# ---------------------------------------------------------------------- adapters on a stage of full weights


def two_stages(out: Path) -> dict[str, Any]:
    """Supervised training of all weights, then GRPO of an adapter on them."""
    return {
        "name": "r",
        "out": str(out),
        "policy": {"kind": "autoregressive", "model": "tiny:32x1", "max_completion_length": 3},
        "task": {
            "kind": "digits",
            "length": 2,
            "train_size": 50,
            "held_out_size": 10,
            "operation": "copy",
            "noise": 0.3,
        },
        "rewards": [{"kind": "exact", "per_character": True}],
        "evaluation": {"num_prompts": 10, "num_generations": 2},
        "stages": [
            {"stage": "sft", "sft": {"steps": 60, "batch_size": 16, "learning_rate": 0.01}},
            {
                "stage": "grpo",
                "policy": {"lora": {"r": 2, "alpha": 4}},
                "grpo": {"steps": 2, "num_prompts": 2, "num_generations": 4, "learning_rate": 0.001},
            },
        ],
    }


@pytest.fixture(scope="module")
def full_then_lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("full_then_lora")
    return run_recipe(parse_recipe(two_stages(out)))[-1]


def test_a_run_is_opened_with_the_weights_under_its_adapter(full_then_lora: Path):
    """The adapter alone would sit on the untrained model: the score shows which one it is on."""
    logged = [json.loads(line) for line in (full_then_lora / "evaluations.jsonl").read_text().splitlines()]
    assert logged[-1]["score"] > 0.3, "the supervised stage taught nothing, so the test could not tell"
    assert evaluate_run(str(full_then_lora.parent), [])["score"] == logged[-1]["score"]


def test_adapter_whose_base_is_gone(full_then_lora: Path, tmp_path: Path):
    moved = tmp_path / "moved"
    shutil.copytree(full_then_lora, moved)
    folder = checkpoint.latest(moved / "checkpoints")
    assert folder is not None
    assert json.loads((folder / "base.json").read_text()) == {"folder": "../../../1-sft/checkpoints/step_000060"}
    message = r"was trained on '.*1-sft/checkpoints/step_000060', which is no model folder here.*keep the folders of a run together"
    with pytest.raises(RelgradError, match=message):
        build_policy(*open_source(str(moved), []))
    (folder / "base.json").unlink()  # as peft writes it, or an earlier version
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert Path(settings["base_model_name_or_path"]).is_relative_to(full_then_lora.parent / "1-sft")
    lora = Lora(r=2, alpha=4)
    assert build_from(folder, lora).base == Path(settings["base_model_name_or_path"])
    (folder / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": str(tmp_path / "gone")})
    )
    with pytest.raises(RelgradError, match=r"was trained on '.*gone', which is no model folder here"):
        build_from(folder, lora)


def test_tiny_models_are_made_once_whole(tmp_path: Path):
    folder = tiny.folder("tiny:32x1", tmp_path)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert tiny.folder("tiny:32x1", tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    with pytest.raises(RelgradError, match="multiple of 16"):
        tiny.folder("tiny:33x1", tmp_path)
