"""Files of the original read into relgrad: the networks compute the same, the batches say the same, and nothing is run.

`Network` is an independent implementation in the original's key layout (attention written out, rotation by complex numbers),
so that a mistake in models/diffusion_gpt.py cannot hide in both.
"""

from __future__ import annotations

import enum
import math
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from relgrad.core.errors import RelgradError
from relgrad.core.types import Example, Output, Prompt
from relgrad.judges.network import Judge
from relgrad.networks.diffusion_gpt.original_batches import load_batches
from relgrad.networks.diffusion_gpt.original_files import load_checkpoint, load_layout
from relgrad.networks.weights.safe_pickle import load_plain, load_tensors
from relgrad.policies import fill_in
from relgrad.rewards.judge import as_rollouts
from relgrad.text.vocabulary import Vocabulary

TEXT = "\n !abcdefghij"
BASE = len(TEXT)
MASK, PAD = BASE, BASE + 1
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 24, "block_size": 16, "dropout": 0.1}
COMMON = {
    "ignore_index": -100, "freeze_transformer": True, "init_from_checkpoint": "x.pt", "unfreeze_at_iteration": 500,
    "unfreeze_lr_multiplier": 0.1, "critic_alpha": 0.5, "critic_target_scope": "masked_and_ignore", "mask_token_id": MASK,
    "pad_token_id": PAD, "start_critic_iteration": 0, "end_critic_iteration": 0, "num_token_classes": 2,
}  # fmt: skip


class Network(nn.Module):
    """The original's parameters under its names; `trunk` is the computation, one head of three on its output."""

    def __init__(self, vocab: int, *, absolute: bool, causal: bool, bias: bool, heads: tuple[str, ...]) -> None:
        super().__init__()
        width, layers = SIZES["n_embd"], SIZES["n_layer"]
        self.causal, self.absolute, self.cls_id = causal, absolute, -1
        block = lambda: nn.ModuleDict(  # noqa: E731
            {
                "ln_1": nn.LayerNorm(width, bias=bias),
                "attn": nn.ModuleDict(
                    {"c_attn": nn.Linear(width, 3 * width, bias=bias), "c_proj": nn.Linear(width, width, bias=bias)}
                ),
                "ln_2": nn.LayerNorm(width, bias=bias),
                "mlp": nn.ModuleDict(
                    {"c_fc": nn.Linear(width, 4 * width, bias=bias), "c_proj": nn.Linear(4 * width, width, bias=bias)}
                ),
            }
        )
        self.transformer = nn.ModuleDict(
            {"wte": nn.Embedding(vocab, width), "h": nn.ModuleList(block() for _ in range(layers))}
        )
        self.transformer["ln_f"] = nn.LayerNorm(width, bias=bias)
        if absolute:
            self.transformer["wpe"] = nn.Embedding(SIZES["block_size"], width)
        if "lm" in heads:
            self.lm_head = nn.Linear(width, vocab, bias=False)
            self.lm_head.weight = self.transformer["wte"].weight
        if "classes" in heads:
            self.lm_head = nn.Linear(width, 2, bias=False)
        if "score" in heads:
            self.sequence_head = nn.Module()
            self.sequence_head.base_predictor = nn.Linear(width, 1, bias=False)
            for name in ("A", "B", "temperature"):
                setattr(self.sequence_head, name, nn.Parameter(torch.zeros(1)))
            self.cls_embedding = nn.Parameter(torch.zeros(width))
        if "critic" in heads:
            self.critic_head = nn.Linear(width, 1, bias=False)
        generator = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

    def trunk(self, ids_BL: Tensor) -> Tensor:
        x = self.transformer["wte"](ids_BL)
        if hasattr(self, "cls_embedding"):
            x[ids_BL == self.cls_id] = self.cls_embedding
        length, heads = ids_BL.shape[1], SIZES["n_head"]
        if self.absolute:
            x = x + self.transformer["wpe"](torch.arange(length))
        for block in self.transformer["h"]:
            split = block["attn"]["c_attn"](block["ln_1"](x)).chunk(3, -1)
            q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in split)
            if not self.absolute:
                q, k = self.turn(q), self.turn(k)
            weight = q @ k.mT / math.sqrt(q.shape[-1])
            if self.causal:
                weight = weight.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            x = x + block["attn"]["c_proj"]((weight.softmax(-1) @ v).transpose(1, 2).flatten(2))
            h = block["mlp"]["c_fc"](block["ln_2"](x))
            x = x + block["mlp"]["c_proj"](0.5 * h * (1 + torch.erf(h / math.sqrt(2))))
        return self.transformer["ln_f"](x)

    @staticmethod
    def turn(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        angle = torch.arange(x.shape[-2])[:, None] / 10000 ** (torch.arange(half) / half)
        turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([turned.real, turned.imag], -1)

    def evaluation(self, ids_BL: Tensor) -> Tensor:
        head = self.sequence_head
        return torch.sigmoid(head.base_predictor(self.trunk(ids_BL)[:, 0]) * head.A + head.B)[:, 0]


@pytest.fixture
def modes() -> Iterator[type]:
    """The original's `model.ModelMode`, importable while the test writes files and gone when they are read."""
    module = types.ModuleType("model")

    class ModelMode(enum.Enum):
        LANGUAGE_MODEL = "language_model"
        TOKEN_CLASSIFIER = "token_classifier"
        SEQUENCE_SCORER = "sequence_scorer"

        def __reduce_ex__(self, protocol: Any) -> Any:  # whatever this Python does, by value as the files have it
            return type(self), (self.value,)

    ModelMode.__module__, ModelMode.__qualname__ = "model", "ModelMode"
    module.ModelMode = ModelMode  # type: ignore[attr-defined]
    sys.modules["model"] = module
    yield ModelMode
    sys.modules.pop("model", None)


def meta_of(**special: int) -> dict[str, Any]:
    """meta.pkl's content for TEXT with the special ids given."""
    itos = dict(enumerate(TEXT)) | {i: f"[{name.upper()}]" for name, i in special.items()}
    stoi = {symbol: i for i, symbol in itos.items()}
    ids = {f"{name}_token_id": i for name, i in special.items()}
    return {
        "dataset_name": "char_diffusion",
        "training_type": "MLM",
        "vocab_size": max(itos) + 1,
        **ids,
        "stoi": stoi,
        "itos": itos,
    }


GENERATOR = meta_of(mask=MASK, pad=PAD)


def write(path: Path, network: nn.Module, args: dict[str, Any], config: dict[str, Any], prefix: str = "") -> Path:
    state = {prefix + name: value for name, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters())
    torch.save(
        {
            "model": state,
            "optimizer": optimizer.state_dict(),
            "model_args": args,
            "iter_num": 7250,
            "best_val_loss": torch.tensor(1.77),
            "config": {"dataset": "char_diffusion", "stages": [{"type": "sticky"}], **config},
        },
        path,
    )
    sys.modules.pop("model", None)
    return path


def language_model(**options: Any) -> Network:
    chosen = {"vocab": BASE + 2, "absolute": False, "causal": False, "bias": False, "heads": ("lm",), **options}
    return Network(chosen.pop("vocab"), **chosen)


def some_ids(rows: int = 3, length: int = 12) -> Tensor:
    """Ordinary and masked ids, the same in every layout of the original."""
    return torch.randint(0, BASE + 1, (rows, length), generator=torch.Generator().manual_seed(1))


def same_logits(network: Network, model: Any, ids: Tensor) -> None:
    """Equal logits of all ordinary ids (those in front in both vocabularies)."""
    with torch.no_grad():
        theirs = network.trunk(ids) @ network.transformer["wte"].weight.T
        ours = model.eval().logits(model.hidden(ids))
    torch.testing.assert_close(ours[..., :BASE], theirs[..., :BASE], atol=2e-5, rtol=1e-5)
    assert ours[..., :BASE].std() > 0.1


# ---------------------------------------------------------------------- networks


def test_the_first_generators_load(tmp_path: Path, modes: Any) -> None:
    """67 ids in the original: mask and padding, no summary; compiled, with the enumeration and a critic head."""
    network = language_model(heads=("lm", "critic"))
    args = {
        **SIZES, **COMMON, "bias": False, "vocab_size": BASE + 2, "mode": modes.LANGUAGE_MODEL, "cls_token_id": None,
        "attention_type": "bidirectional", "position_encoding": "rotary", "add_critic_head": True,
    }  # fmt: skip
    path = write(tmp_path / "ckpt.pt", network, args, {"meta": GENERATOR}, prefix="_orig_mod.module.")
    before = torch.random.get_rng_state()
    model, vocabulary = load_checkpoint(path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert "model" not in sys.modules
    assert vocabulary == Vocabulary.of_text(TEXT)
    assert (model.config.vocab_size, model.config.mode, model.config.dropout) == (BASE + 3, "language_model", 0.1)
    same_logits(network, model, some_ids())
    assert torch.equal(model.transformer.wte.weight[: BASE + 2], network.transformer["wte"].weight)
    assert not model.transformer.wte.weight[vocabulary.cls_id].any(), "an id the file does not have is a row of zeros"
    with torch.no_grad():
        ours, theirs = model.critic(model.hidden(some_ids())), network.critic_head(network.trunk(some_ids()))[..., 0]
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_arguments_that_old_files_lack_are_what_their_code_did(tmp_path: Path) -> None:
    """Bare nanoGPT arguments mean causal and absolute; without position embeddings they mean rotary, which is bidirectional."""
    args = {**SIZES, "vocab_size": BASE + 2}
    network = language_model(absolute=True, causal=True, bias=True)
    model, _ = load_checkpoint(write(tmp_path / "causal.pt", network, args, {"meta": GENERATOR}))
    assert (model.config.attention_type, model.config.position_encoding, model.config.bias) == (
        "causal",
        "absolute",
        True,
    )
    same_logits(network, model, some_ids())
    network = language_model()
    model, _ = load_checkpoint(write(tmp_path / "rotary.pt", network, args, {"meta": GENERATOR}))
    assert (model.config.attention_type, model.config.position_encoding, model.config.bias) == (
        "bidirectional",
        "rotary",
        False,
    )
    same_logits(network, model, some_ids())


def test_the_enumeration_may_be_pickled_by_name(tmp_path: Path, modes: Any) -> None:
    """Some releases of Python 3.11 write it through getattr."""
    modes.__reduce_ex__ = lambda self, protocol: (getattr, (modes, self.name))
    args = {**SIZES, "vocab_size": BASE + 2, "mode": modes.LANGUAGE_MODEL, "attention_type": "bidirectional"}
    path = write(tmp_path / "ckpt.pt", language_model(), args, {"meta": GENERATOR})
    assert b"getattr" in zipfile.ZipFile(path).read("ckpt/data.pkl")
    assert load_checkpoint(path)[0].config.mode == "language_model"


def test_a_judge_loads_with_its_own_special_ids(tmp_path: Path, modes: Any) -> None:
    """The original's judges have the summary id where the generator has padding, and padding two further on."""
    cls, pad = PAD, PAD + 2
    network = language_model(vocab=BASE + 4, heads=("score",))
    network.cls_id = cls
    args = {
        **SIZES, **COMMON, "bias": False, "vocab_size": BASE + 4, "mode": modes.SEQUENCE_SCORER, "cls_token_id": cls,
        "attention_type": "causal", "position_encoding": "rotary", "add_critic_head": False,
    }  # fmt: skip
    meta = meta_of(mask=MASK, cls=cls, pad=pad)
    meta["itos"][cls] = "[PAD]"  # as its meta.pkl has it: the generator's name stayed
    path = write(tmp_path / "judge.pt", network, args, {"meta": meta})
    model, vocabulary = load_checkpoint(path)
    assert (vocabulary, model.config.mode) == (Vocabulary.of_text(TEXT), "sequence_scorer")
    assert model.config.attention_type == "bidirectional", "the original forces it"
    assert model.sequence_head.A.shape == ()
    ids = some_ids()
    theirs = network.evaluation(torch.cat([torch.full((3, 1), cls), ids, torch.full((3, 2), pad)], 1))
    with torch.no_grad():
        special = [torch.full((3, 1), vocabulary.cls_id), ids, torch.full((3, 2), vocabulary.pad_id)]
        ours = torch.sigmoid(model.eval().score(model.hidden(torch.cat(special, 1))))
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-6, rtol=1e-5)
    assert ours.std() > 0.005
    judge = Judge.load(path)
    valid = torch.ones_like(ids, dtype=torch.bool)
    right = 1 - network.evaluation(torch.cat([torch.full((3, 1), cls), ids], 1))
    with torch.no_grad():
        torch.testing.assert_close(torch.sigmoid(judge.logits(ids, valid, valid)), right, atol=1e-6, rtol=1e-5)


def test_a_file_with_both_heads_gives_either(tmp_path: Path) -> None:
    """Branch diffusion_07_10: no mode, no attention type; always rotary and bidirectional; 68 ids."""
    network = language_model(vocab=BASE + 3, heads=("lm", "score"))
    network.cls_id = BASE + 2
    switches = {"use_lora_attn": False, "use_lora_mlp": False, "lora_rank": 8, "lora_alpha": 16.0, "lora_dropout": 0.0}
    switches |= {"use_guidance": False, "plan_tokens": 16, "plan_encoder_depth_factor": 0.5, "cond_dropout_prob": 0.1}
    common = {k: v for k, v in COMMON.items() if k != "num_token_classes"}
    args = {
        **SIZES,
        **common,
        **switches,
        "share_main_matrices": False,
        "bias": False,
        "vocab_size": BASE + 3,
        "cls_token_id": BASE + 2,
    }
    meta = meta_of(mask=MASK, pad=PAD, cls=BASE + 2)
    path = write(tmp_path / "dual.pt", network, args, {"meta": meta, "model_mode": "language_model"})
    model, vocabulary = load_checkpoint(path)
    assert (model.config.mode, model.config.attention_type) == ("language_model", "bidirectional")
    assert torch.equal(model.transformer.wte.weight, network.transformer["wte"].weight), (
        "relgrad's own layout: nothing moves"
    )
    same_logits(network, model, some_ids())
    scorer, _ = load_checkpoint(path, prefer="sequence_scorer")
    ids = torch.cat([torch.full((3, 1), vocabulary.cls_id), some_ids()], 1)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.sigmoid(scorer.eval().score(scorer.hidden(ids))), network.evaluation(ids), atol=1e-6, rtol=1e-5
        )
    trained_as_judge = write(tmp_path / "judge.pt", network, args, {"meta": meta, "model_mode": "sequence_scorer"})
    assert load_checkpoint(trained_as_judge)[0].config.mode == "sequence_scorer"


@pytest.mark.parametrize("binary", [False, True])
def test_a_token_classifier_loads(tmp_path: Path, modes: Any, binary: bool) -> None:
    network = language_model(absolute=True, bias=True, heads=("classes",))
    args = {
        **SIZES,
        "bias": True,
        "vocab_size": BASE + 2,
        "position_encoding": "absolute",
        "attention_type": "bidirectional",
    }
    args |= {"binary_classification": True} if binary else {"mode": modes.TOKEN_CLASSIFIER, "num_token_classes": 2}
    model, _ = load_checkpoint(write(tmp_path / "classifier.pt", network, args, {"meta": GENERATOR}))
    assert (model.config.mode, model.config.num_token_classes) == ("token_classifier", 2)
    with torch.no_grad():
        ours, theirs = model.eval().classes(model.hidden(some_ids())), network.lm_head(network.trunk(some_ids()))
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_ids_in_any_order_are_moved(tmp_path: Path) -> None:
    """Special ids in front of the characters: relgrad's ids still mean the same symbols."""
    itos = {0: "[PAD]", 1: "[MASK]"} | {i + 2: symbol for i, symbol in enumerate(TEXT)}
    meta = {"mask_token_id": 1, "pad_token_id": 0, "itos": {str(i): s for i, s in itos.items()}}
    network = language_model()
    args = {**SIZES, "vocab_size": BASE + 2, "attention_type": "bidirectional", "position_encoding": "rotary"}
    model, vocabulary = load_checkpoint(write(tmp_path / "ckpt.pt", network, args, {"meta": meta}))
    assert vocabulary.symbols == tuple(TEXT)
    ours = some_ids()
    theirs = torch.where(ours == vocabulary.mask_id, 1, ours + 2)
    with torch.no_grad():
        expected = network.trunk(theirs) @ network.transformer["wte"].weight.T
        found = model.eval().logits(model.hidden(ours))
    torch.testing.assert_close(found[..., :BASE], expected[..., 2:], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(found[..., vocabulary.mask_id], expected[..., 1], atol=2e-5, rtol=1e-5)


def test_a_policy_goes_on_from_an_original_checkpoint(tmp_path: Path, modes: Any) -> None:
    """Without meta in it, as GRPO of the original saves them, and the dataset's meta.pkl beside it."""
    network = language_model()
    args = {
        **SIZES,
        "bias": False,
        "vocab_size": BASE + 2,
        "mode": modes.LANGUAGE_MODEL,
        "attention_type": "bidirectional",
        "position_encoding": "rotary",
    }
    path = write(tmp_path / "ckpt.pt", network, args, {})
    with pytest.raises(RelgradError, match=r"no vocabulary in it.*Copy the dataset's meta\.pkl"):
        load_checkpoint(path)
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(GENERATOR))
    policy = fill_in.build(fill_in.Settings(checkpoint=str(path), device="cpu"), seed=0)
    rollouts = policy.sample([Prompt("ab█ c█", id=0)], 4, torch.Generator().manual_seed(0))
    ids = torch.tensor([policy.vocabulary.encode("ab█ c█")])
    with torch.no_grad():
        logits = (network.trunk(ids) @ network.transformer["wte"].weight.T)[0, [2, 5], :BASE]
    expected = logits.log_softmax(-1).gather(1, rollouts.trace["token_BT"].long().T).T
    torch.testing.assert_close(rollouts.behaviour_logp_BT, expected, atol=2e-5, rtol=1e-5)
    policy.save(tmp_path)
    policy.load(tmp_path)


def test_padding_is_looked_at_as_in_the_original_s_training(tmp_path: Path) -> None:
    """Its batches are as wide as its block, filled up with padding that every position attends to: the policy's log-probs and its
    cross-entropy are those of the original's network on such rows, in sampling, scoring and learning, beside rows of any width."""
    network = language_model()
    path = write(tmp_path / "ckpt.pt", network, {**SIZES, "vocab_size": BASE + 2, "dropout": 0.0}, {"meta": GENERATOR})
    policy = fill_in.build(fill_in.Settings(checkpoint=str(path), device="cpu"), seed=0)
    texts = [("ab█ c█", 16), ("fgh█", 9), ("█bcdefghij", 16), ("a█", None)]
    prompts = [sample_of(policy.vocabulary, text, width, i) for i, (text, width) in enumerate(texts)]
    rollouts = policy.sample(prompts, 3, torch.Generator().manual_seed(0))
    scored = policy.score(rollouts, rollouts.cells()).logp_N
    torch.testing.assert_close(scored, rollouts.behaviour_logp_BT[rollouts.mask_BT], atol=1e-5, rtol=0)
    loss = 0.0
    for row, prompt in enumerate(prompts):
        masked = prompt.columns["masked_ids"]
        filled_up = masked + [PAD] * (prompt.columns.get("width", 0) - len(masked))
        holes = [i for i, token in enumerate(masked) if token == MASK]
        with torch.no_grad():
            logits = (network.trunk(torch.tensor([filled_up])) @ network.transformer["wte"].weight.T)[0, holes, :BASE]
        logp = logits.log_softmax(-1)
        for completion in range(3):
            tokens = rollouts.trace["token_BT"][3 * row + completion, : len(holes)].long()
            expected = logp.gather(1, tokens[:, None])[:, 0]
            found = rollouts.behaviour_logp_BT[3 * row + completion, : len(holes)]
            torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)
            assert len(rollouts.outputs[3 * row + completion].ids) == len(masked), "the text itself has no padding"
        loss -= float(logp[range(len(holes)), [prompt.columns["truth_ids"][i] for i in holes]].sum())
    supervised, count, _ = policy.supervised_loss([Example(p, "") for p in prompts], torch.Generator().manual_seed(0))
    assert (supervised.item(), count) == (pytest.approx(loss, rel=1e-5), 5)
    at_once = fill_in.Settings.model_validate({"checkpoint": str(path), "device": "cpu", "denoise": {"steps": 1}})
    films = fill_in.build(at_once, seed=0).film(prompts, 3, torch.Generator().manual_seed(0))
    assert [tuple(film["ids"]) for film in films] == [output.ids for output in rollouts.outputs], (
        "writing in steps, in one"
    )
    policy.save(tmp_path / "folder")
    again = fill_in.build(fill_in.Settings(checkpoint=str(tmp_path / "folder"), device="cpu"), seed=0)
    assert torch.equal(again.score(rollouts, rollouts.cells()).logp_N, scored), "and so it goes on in later stages"


def sample_of(vocabulary: Vocabulary, text: str, width: int | None, number: int) -> Prompt:
    """A sample of masked text whose truth has "a" in every hole."""
    masked = vocabulary.encode(text)
    truth = [vocabulary.encode("a")[0] if token == MASK else token for token in masked]
    labels = [t if m == MASK else -100 for t, m in zip(truth, masked, strict=True)]
    columns = {"masked_ids": masked, "truth_ids": truth, "label_ids": labels, "vocabulary": vocabulary.fingerprint}
    return Prompt(text, columns | ({} if width is None else {"width": width}), number)


def test_an_original_judge_looks_at_padding_too(tmp_path: Path, modes: Any) -> None:
    cls, pad = PAD, PAD + 2
    network = language_model(vocab=BASE + 4, heads=("score",))
    network.cls_id = cls
    args = {
        **SIZES,
        "vocab_size": BASE + 4,
        "mode": modes.SEQUENCE_SCORER,
        "cls_token_id": cls,
        "position_encoding": "rotary",
    }
    path = write(tmp_path / "judge.pt", network, args, {"meta": meta_of(mask=MASK, cls=cls, pad=pad)})
    judge = Judge.load(path)
    vocabulary = judge.vocabulary
    prompt = sample_of(vocabulary, "ab█ c█", 12, 0)
    outputs = [Output(text, tuple(vocabulary.encode(text))) for text in ("abc ca", "abd cj")]
    scores, _ = judge.scores(judge.read(as_rollouts(prompt, outputs)))
    theirs = [network.evaluation(torch.tensor([[cls, *o.ids, *[pad] * 6]])) for o in outputs]
    torch.testing.assert_close(scores, 1 - torch.cat(theirs).detach(), atol=1e-6, rtol=1e-5)


def test_what_the_network_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    args = {**SIZES, "vocab_size": BASE + 2, "use_lora_attn": True, "lora_rank": 4, "film_rank": 3}
    path = write(tmp_path / "lora.pt", language_model(), args, {"meta": GENERATOR})
    with pytest.raises(RelgradError, match=r"use_lora_attn=True, film_rank=3 \(unknown\)"):
        load_checkpoint(path)
    path = write(tmp_path / "mode.pt", language_model(), {**SIZES, "mode": "seer"}, {"meta": GENERATOR})
    with pytest.raises(RelgradError, match=r"mode='seer'.*sequence_scorer"):
        load_checkpoint(path)
    extra = language_model()
    extra.film = nn.Linear(2, 2)
    path = write(tmp_path / "extra.pt", extra, dict(SIZES), {"meta": GENERATOR})
    with pytest.raises(RelgradError, match=r"unexpected: film\.bias, film\.weight"):
        load_checkpoint(path)
    untied = language_model()
    untied.lm_head.weight = nn.Parameter(torch.zeros_like(untied.lm_head.weight))
    path = write(tmp_path / "untied.pt", untied, dict(SIZES), {"meta": GENERATOR})
    with pytest.raises(RelgradError, match=r"lm_head\.weight differs"):
        load_checkpoint(path)
    path = write(tmp_path / "wide.pt", language_model(), {**SIZES, "n_embd": 48}, {"meta": GENERATOR})
    with pytest.raises(RelgradError, match="of another shape: transformer"):
        load_checkpoint(path)
    path = write(tmp_path / "short.pt", language_model(vocab=BASE), dict(SIZES), {"meta": GENERATOR})
    with pytest.raises(RelgradError, match=f"{BASE} embeddings, but its vocabulary has the id {PAD}"):
        load_checkpoint(path)
    words = {**GENERATOR, "itos": {**GENERATOR["itos"], PAD + 1: "[SEP]"}}
    path = write(tmp_path / "words.pt", language_model(), dict(SIZES), {"meta": words})
    with pytest.raises(RelgradError, match=r"neither characters nor mask.*\[SEP\]"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "it needs model and model_args, and has list"),
        ({"model": {}}, "it needs model and model_args, and has model"),
        ({"model": {}, "model_args": {}}, r"no matrix transformer\.wte\.weight"),
        ({"model": {"transformer.wte.weight": 3}, "model_args": {}}, "is a int, not a tensor"),
        ({"model": [], "model_args": {}}, "are list, dict, dict, not mappings"),
    ],
)
def test_other_tensor_files_are_no_checkpoints(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(RelgradError, match=message):
        load_checkpoint(tmp_path / "other.pt")


# ---------------------------------------------------------------------- files that are not what they seem


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["archive", "legacy", "bare", "bare-2"])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path, kind: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    content = {"model": {"w": torch.zeros(2)}, "model_args": {"mode": Evil(marker)}}
    if kind.startswith("bare"):
        path.write_bytes(pickle.dumps(content, protocol=2 if kind == "bare-2" else None))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "archive")
    for read in (
        (load_checkpoint, load_batches, load_tensors, load_plain)
        if kind.startswith("bare")
        else (load_checkpoint, load_batches)
    ):
        with pytest.raises(RelgradError, match=r"refused, because loading it would run (posix|nt|torch)\.\w+"):
            read(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists(), "the file is as dangerous as the test says"


def test_a_dangerous_meta_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({**GENERATOR, "x": Evil(marker)}))
    with pytest.raises(RelgradError, match=r"would run (posix|nt)\.system"):
        load_layout(tmp_path / "meta.pkl")
    assert not marker.exists()


def test_getattr_is_a_stand_in_for_one_owner_alone(tmp_path: Path) -> None:
    class Steal:
        def __reduce__(self) -> Any:
            return getattr, (OrderedDict, "fromkeys")

    torch.save({"a": Steal()}, tmp_path / "steal.pt")
    with pytest.raises(RelgradError, match=r"would run builtins\.getattr"):
        load_tensors(tmp_path / "steal.pt")
    (tmp_path / "steal.pkl").write_bytes(pickle.dumps(Steal()))
    with pytest.raises(RelgradError, match=r"would run builtins\.getattr"):
        load_plain(tmp_path / "steal.pkl")


def test_globals_of_libraries_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"x": np.zeros(3)}, tmp_path / "numpy.pt")
    with pytest.raises(RelgradError, match=r"would run numpy\.\S*_reconstruct"):
        load_batches(tmp_path / "numpy.pt")


def test_files_that_are_broken_or_something_else(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(4000)}, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()

    def refused(content: bytes, message: str) -> None:
        (tmp_path / "file.pt").write_bytes(content)
        for read in (load_checkpoint, load_batches):
            with pytest.raises(RelgradError, match=message):
                read(tmp_path / "file.pt")

    refused(whole[:-300], "cut off")
    refused(whole[: len(whole) // 2], "cut off")
    refused(b"", "cut off")
    refused(b"hello there, this is text\n", "not a file of tensors")
    refused(pickle.dumps({"x": 3}), "a pickle of something else")
    refused(bytes(range(256)), "not a file of tensors")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("notes/readme.txt", "hello")
    refused((tmp_path / "zip.pt").read_bytes(), r"no data\.pkl")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/constants.pkl", pickle.dumps(()))
        archive.writestr("script/data.pkl", pickle.dumps(()))
    refused((tmp_path / "script.pt").read_bytes(), "TorchScript")
    torch.save({"x": torch.zeros(4000)}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    legacy = (tmp_path / "legacy.pt").read_bytes()
    assert torch.equal(load_tensors(tmp_path / "legacy.pt")["x"], torch.zeros(4000))
    refused(legacy[:-500], "cut off|not a file of tensors")
    with pytest.raises(RelgradError, match="no such file"):
        load_checkpoint(tmp_path / "nowhere.pt")


# ---------------------------------------------------------------------- batches


def batch(rows: int, seed: int, length: int = 8) -> tuple[Tensor, Tensor]:
    """Masked ids and labels, the last two positions padding."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, BASE, (rows, length), generator=generator)
    hidden = torch.rand(rows, length, generator=generator) < 0.4
    hidden[:, -2:] = False
    x = torch.where(hidden, MASK, truth)
    x[:, -2:] = PAD
    return x, torch.where(hidden, truth, -100)


def test_format_a(tmp_path: Path) -> None:
    x, y = batch(4, 0)
    stages = [{"type": "sticky"}, {"type": "random"}, {"type": "span"}, {"type": "sticky"}]
    metadata = {"batch_size": 2, "num_batches": 2, "file_idx": 3, "split": "train", "stage_info": stages}
    torch.save({"tensors": {"x": x, "y": y}, "metadata": metadata}, tmp_path / "a.pt")
    torch.save({"x": x, "y": y}, tmp_path / "loose.pt")
    tensors, found = load_batches(tmp_path / "a.pt")
    assert tensors.keys() == {"masked_ids", "label_ids"}
    assert torch.equal(tensors["masked_ids"], x)
    assert torch.equal(tensors["label_ids"], y)
    assert found["masked_strategy"] == ["sticky", "random", "span", "sticky"]
    assert found["file_idx"] == 3
    tensors, found = load_batches(tmp_path / "loose.pt")
    assert torch.equal(tensors["label_ids"], y)
    assert found["masked_strategy"] == [""] * 4


def test_format_b_with_both_kinds_of_batches(tmp_path: Path) -> None:
    batches = []
    for seed in (0, 1):
        x, y = batch(2, seed)
        metadata = {"model_mode": "language_model", "stage_info": [{"type": "span"}] * 2}
        batches.append({"tensors": {"input": x, "target": y}, "metadata": metadata})
    judged = {"input": batch(2, 5)[0], "target": torch.tensor([0.25, 0.0])}
    ratio = {"masking_strategy": ["line", "original"], "masking_ratio": [0.3, 0.0], "model_mode": "sequence_scorer"}
    batches.append({"tensors": judged, "metadata": ratio})
    torch.save({"batches": batches, "metadata": {"split": "val"}}, tmp_path / "b.pt")
    tensors, metadata = load_batches(tmp_path / "b.pt")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "masked_ids": (4, 8), "label_ids": (4, 8), "judged_ids": (2, 8), "targets": (2,),
    }  # fmt: skip
    assert torch.equal(tensors["masked_ids"][2:], batch(2, 1)[0])
    assert tensors["targets"].tolist() == [0.25, 0.0]
    assert metadata["masked_strategy"] == ["span"] * 4
    assert (metadata["judged_strategy"], metadata["judged_ratio"]) == (["line", "original"], [0.3, 0.0])


def test_a_judge_s_batches(tmp_path: Path) -> None:
    tensors = {"input_ids": batch(3, 0)[0], "targets": torch.tensor([0.1, 0.9, 0.0], dtype=torch.float64)}
    torch.save({"tensors": tensors, "metadata": {"masking_strategy": ["line"] * 3}}, tmp_path / "judge.pt")
    found, metadata = load_batches(tmp_path / "judge.pt")
    assert found["targets"].dtype == torch.float32
    assert metadata["judged_strategy"] == ["line"] * 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": torch.zeros(2, 3).long()}, "no input and target, or x and y, or input_ids and targets in it; it has x"),
        (
            {"x": torch.zeros(2, 3).long(), "y": torch.zeros(2, 4).long()},
            r"x is torch.int64 \(2, 3\) and y is torch.int64 \(2, 4\)",
        ),
        ({"x": torch.zeros(2, 3), "y": torch.zeros(2, 3).long()}, r"x is torch.float32 \(2, 3\)"),
        ({"x": torch.zeros(2, 3).long(), "y": torch.zeros(2).long()}, r"y is torch.int64 \(2,\)"),
        ({"x": torch.zeros(0, 3).long(), "y": torch.zeros(0, 3).long()}, r"x is torch.int64 \(0, 3\)"),
        ({"x": [1, 2], "y": [3]}, "x and y are list and list, not tensors"),
        ({"batches": []}, "no list of mappings, or an empty one"),
        (
            {"batches": [{"x": torch.zeros(1, n).long(), "y": torch.zeros(1, n).long()} for n in (2, 3)]},
            "differ in width",
        ),
        ([3], "not a batch file: a list"),
    ],
)
def test_wrong_shapes_and_contents(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "batch.pt")
    with pytest.raises(RelgradError, match=message):
        load_batches(tmp_path / "batch.pt")


def test_ids_are_translated_by_the_dataset_s_meta(tmp_path: Path) -> None:
    meta = meta_of(mask=MASK, cls=PAD, pad=PAD + 2)
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    layout = load_layout(tmp_path / "meta.pkl")
    vocabulary = layout.vocabulary
    ids = torch.tensor([[PAD, 0, 5, MASK, PAD + 2]])
    assert layout.translate(ids, "x").tolist() == [[vocabulary.cls_id, 0, 5, vocabulary.mask_id, vocabulary.pad_id]]
    for foreign in (PAD + 1, PAD + 3, -7):
        with pytest.raises(RelgradError, match=f"has the id {foreign}, which its vocabulary does not know"):
            layout.translate(torch.tensor([0, foreign]), "x")
    vocabulary.save(tmp_path)
    again = load_layout(tmp_path / "vocabulary.json")
    assert again.translate(torch.tensor([0, MASK, PAD]), "x").tolist() == [0, MASK, PAD]
    for content, message in (
        ([1], "a list, not the mapping"),
        ({"a": 1}, "no itos in it"),
        ({"itos": {0: "a"}}, "no mask_token_id"),
    ):
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(RelgradError, match=message):
            load_layout(tmp_path / "meta.pkl")
