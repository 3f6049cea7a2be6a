"""Families of masked-diffusion networks: their own code and transformers' classes, shift, attention, cache, masks, folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from relgrad.core.errors import RelgradError
from relgrad.networks.causal import load as causal
from relgrad.networks.masked import saved
from relgrad.networks.masked.interface import PROMPT, CachesBlocks
from relgrad.networks.masked.load import Checkpoint, Opened, open_network
from relgrad.networks.masked.shift_check import shift_evidence

OWN_CODE = ("llada", "dream", "sdar", "llada2")
LIBRARY = ("llada", "dream", "sdar")
LENGTHS = (11, 6, 9)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of its own, so that what an earlier version has written is not read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RELGRAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def opened(model: str, adapt=lambda model: model, **options) -> Opened:
    return open_network(Checkpoint(model, **options), adapt)


def tiny(family: str, own_code: bool = False, **options) -> Opened:
    return opened(f"tiny-{family}:32x2", trust_remote_code=own_code, **options)


def rows(mask_id: int):
    """Ids, validity and blocks of rows with prompts of 3 and answers that are partly masked."""
    generator = torch.Generator().manual_seed(3)
    ids_BL = torch.randint(1, 90, (len(LENGTHS), max(LENGTHS)), generator=generator)
    valid_BL = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    block_BL = torch.where(torch.arange(max(LENGTHS)) < 3, PROMPT, (torch.arange(max(LENGTHS)) - 3) // 4)
    ids_BL[:, 4:] = torch.where(torch.rand(ids_BL[:, 4:].shape, generator=generator) < 0.6, mask_id, ids_BL[:, 4:])
    return ids_BL, valid_BL, block_BL.expand_as(ids_BL).contiguous()


def log_probs(network, ids_BL, valid_BL, block_BL):
    return network.logits(network.hidden(ids_BL, valid_BL, block_BL)).log_softmax(-1)


def plainly(network, row_L):
    """Log-probs [L, V] of one row by the own code's forward, called as the family's sampler calls it."""
    length = len(row_L)
    block_L = torch.arange(length) // 4
    visible = (block_L[:, None] >= block_L[None, :])[None, None]
    inputs = {
        "llada": {},
        "dream": {"attention_mask": "full", "position_ids": torch.arange(length)[None]},
        "sdar": {"attention_mask": visible, "position_ids": torch.arange(length)[None]},
        "llada2": {"attention_mask": visible.float().log(), "position_ids": torch.arange(length)[None]},
    }[network.family.name]
    logits_LV = network.language_model(input_ids=row_L[None], **inputs).logits[0]
    if network.family.name == "dream":
        logits_LV = torch.cat([logits_LV[:1], logits_LV[:-1]])
    return logits_LV.float().log_softmax(-1)


@pytest.mark.parametrize("family", OWN_CODE)
@torch.no_grad()
def test_log_probs_are_those_of_the_folders_own_forward(family: str):
    own = tiny(family, own_code=True).network
    ids_BL, valid_BL, block_BL = rows(own.mask_id)
    expected = [plainly(own, ids_BL[row, :length]) for row, length in enumerate(LENGTHS)]
    networks = [own, tiny(family).network] if family in LIBRARY else [own]
    for network in networks:
        logp_BLV = log_probs(network, ids_BL, valid_BL, block_BL)
        for row, length in enumerate(LENGTHS):
            torch.testing.assert_close(logp_BLV[row, :length], expected[row], atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", LIBRARY)
def test_without_trust_the_folders_own_code_is_not_run(family: str):
    network, tokenizer, notes = tiny(family)
    assert type(network.language_model).__module__.startswith("transformers.models.")
    assert any("own code is not run" in note for note in notes)
    assert network.vocabulary_size > len(tokenizer)
    assert (network.shifted, network.block) == {"llada": (False, None), "dream": (True, None), "sdar": (False, 4)}[
        family
    ]


def test_a_family_that_needs_its_own_code_names_the_setting():
    with pytest.raises(RelgradError, match=r"tiny-llada2.*policy\.trust_remote_code=true"):
        tiny("llada2")


@pytest.mark.parametrize(("family", "own_code"), [("llada", True), ("dream", False), ("sdar", True), ("sdar", False)])
def test_nothing_looks_at_padding_and_gradients_flow(family: str, own_code: bool):
    network = tiny(family, own_code=own_code).network
    ids_BL, valid_BL, block_BL = rows(network.mask_id)
    with torch.no_grad():
        other = log_probs(network, ids_BL.masked_fill(~valid_BL, 7), valid_BL, block_BL)[valid_BL]
    logp_BLV = log_probs(network, ids_BL, valid_BL, block_BL)
    torch.testing.assert_close(logp_BLV[valid_BL], other, atol=1e-5, rtol=0)
    logp_BLV[valid_BL][:, 5].sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.module.parameters())


@torch.no_grad()
def test_later_blocks_are_not_seen_and_the_own_block_is():
    network = tiny("sdar").network
    ids_BL = torch.randint(1, 90, (1, 12), generator=torch.Generator().manual_seed(0))
    valid_BL = torch.ones_like(ids_BL, dtype=torch.bool)
    changed = ids_BL.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 90
    before, after = (network.hidden(i, valid_BL, i) for i in (ids_BL, changed))
    assert torch.equal(before[0, :4], after[0, :4])
    assert (before[0, 4] - after[0, 4]).abs().max() > 1e-3, "position 4 is in the block of position 7"


# ---------------------------------------------------------------------- the cache of finished blocks


@pytest.mark.parametrize("prompts", [(3, 8, 5), (1, 2, 12)])
@torch.no_grad()
def test_the_block_cache_says_what_the_uncached_network_says(prompts: tuple[int, ...]):
    network = tiny("sdar").network
    assert isinstance(network, CachesBlocks)
    cached = network.while_writing()
    answer, generator = 12, torch.Generator().manual_seed(1)
    place_L = torch.arange(max(prompts) + answer)
    prompt_B1 = torch.tensor(prompts)[:, None]
    valid_BL = place_L < prompt_B1 + answer
    block_BL = torch.where(place_L < prompt_B1, PROMPT, (place_L - prompt_B1) // 4)
    true_BL = torch.randint(1, 90, valid_BL.shape, generator=generator)
    ids_BL = torch.where((place_L >= prompt_B1) & valid_BL, network.mask_id, true_BL)
    compared = 0
    while bool((masked_BL := (ids_BL == network.mask_id) & valid_BL).any()):
        present_B1 = block_BL.masked_fill(~masked_BL, 99).amin(1, keepdim=True)
        written_BL = masked_BL & (block_BL == present_B1)
        uncached = log_probs(network, ids_BL, valid_BL, block_BL)[written_BL]
        torch.testing.assert_close(
            log_probs(cached, ids_BL, valid_BL, block_BL)[written_BL], uncached, atol=1e-5, rtol=0
        )
        compared += int(written_BL.sum())
        score_BL = torch.rand(ids_BL.shape, generator=generator).masked_fill(~written_BL, -1)
        chosen = score_BL >= score_BL.amax(1, keepdim=True).clamp_min(0)
        ids_BL = torch.where(chosen, true_BL, ids_BL)
    assert compared > 3 * answer
    whole = 12 * valid_BL.numel()
    assert cached.computed < 0.6 * whole, "finished blocks go through the network again"


@torch.no_grad()
def test_other_rows_are_computed_again_and_full_attention_has_no_cache():
    assert (network := tiny("llada").network).while_writing() is network
    network = tiny("sdar").network
    cached = network.while_writing()
    ids_BL = torch.randint(1, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    ids_BL[:, 9:] = network.mask_id
    other_BL = ids_BL.clone()
    other_BL[:, 2] += 1
    for rows_BL in (ids_BL, other_BL, other_BL[:1]):
        here = (rows_BL, torch.ones_like(rows_BL, dtype=torch.bool), torch.zeros_like(rows_BL))
        masked_BL = rows_BL == network.mask_id
        torch.testing.assert_close(cached.hidden(*here)[masked_BL], network.hidden(*here)[masked_BL], atol=1e-5, rtol=0)


# ---------------------------------------------------------------------- folders and adapters


def lora(model):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        adapted = causal.add_lora(model, r=2, alpha=4, dropout=0.0, targets="all-linear", task=None)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return adapted


@pytest.mark.parametrize("own_code", [True, False])
@pytest.mark.parametrize("family", LIBRARY)
@torch.no_grad()
def test_saved_weights_are_read_by_either_code(family: str, own_code: bool, tmp_path: Path):
    network, tokenizer, _ = tiny(family, own_code=own_code)
    for parameter in network.module.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.05)
    saved.save(network, tokenizer, tmp_path / "saved", "tiny")
    expected = log_probs(network, *rows(network.mask_id))
    for other in (True, False):
        again = opened(str(tmp_path / "saved"), trust_remote_code=other).network
        assert again.own_code is other
        torch.testing.assert_close(log_probs(again, *rows(network.mask_id))[0], expected[0], atol=2e-5, rtol=0)
    fresh = tiny(family, own_code=own_code).network
    saved.load(fresh, tmp_path / "saved")
    assert all(torch.equal(a, b) for a, b in zip(fresh.module.parameters(), network.module.parameters(), strict=True))


@pytest.mark.parametrize("family", ["llada", "dream"])
@torch.no_grad()
def test_an_adapter_of_either_code_goes_on_in_the_other(family: str, tmp_path: Path):
    trained = opened(f"tiny-{family}:32x2", lora, trust_remote_code=True)
    trained.network.module.save_pretrained(tmp_path / "peft")  # as the family's own trainers do
    library = opened(f"tiny-{family}:32x2", lora).network
    for parameter in library.module.parameters():
        if parameter.requires_grad:
            parameter.zero_()
    saved.load(library, tmp_path / "peft")
    expected = log_probs(trained.network, *rows(library.mask_id))[0]
    torch.testing.assert_close(log_probs(library, *rows(library.mask_id))[0], expected, atol=2e-5, rtol=0)
    plain = log_probs(tiny(family).network, *rows(library.mask_id))[0]
    assert (plain - expected).abs().max() > 1e-2, "the adapter does nothing"
    saved.save(library, trained.tokenizer, tmp_path / "ours", f"tiny-{family}:32x2")
    names = load_file(tmp_path / "ours" / "adapter_model.safetensors").keys()
    assert names == load_file(tmp_path / "peft" / "adapter_model.safetensors").keys()
    mine, own = (json.loads((tmp_path / f / "adapter_config.json").read_text()) for f in ("ours", "peft"))
    assert sorted(mine["target_modules"]) == sorted(own["target_modules"])


# ---------------------------------------------------------------------- causal models made bidirectional


@torch.no_grad()
def test_a_causal_model_looks_to_both_sides_and_gets_a_mask(tmp_path: Path):
    network, tokenizer, notes = opened("tiny:32x1", family="bidirectional")
    assert tokenizer.convert_ids_to_tokens(network.mask_id) == "<|mask|>"
    assert "a mask was added" in notes[0]
    embedding_VH = network.language_model.get_input_embeddings().weight
    torch.testing.assert_close(embedding_VH[network.mask_id], embedding_VH[: network.mask_id].mean(0))
    head_VH = network.head.weight
    torch.testing.assert_close(head_VH[network.mask_id], head_VH[: network.mask_id].mean(0))
    ids_BL = torch.randint(1, 90, (1, 6), generator=torch.Generator().manual_seed(0))
    valid_BL = torch.ones_like(ids_BL, dtype=torch.bool)
    changed = ids_BL.clone()
    changed[0, 5] += 1
    before, after = (network.hidden(i, valid_BL, i) for i in (ids_BL, changed))
    assert (before[0, 0] - after[0, 0]).abs().max() > 1e-4
    saved.save(network, tokenizer, tmp_path / "saved", "tiny:32x1")
    again = opened(str(tmp_path / "saved"))
    assert (again.network.mask_id, again.notes, again.network.family.name) == (network.mask_id, (), "bidirectional")
    torch.testing.assert_close(again.network.hidden(ids_BL, valid_BL, ids_BL), before, atol=1e-6, rtol=0)


def test_tied_rows_are_added_once(tmp_path: Path):
    from relgrad.networks.causal.tiny import build_model, build_tokenizer

    model = build_model(32, 1)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    network = opened(str(tmp_path), family="bidirectional").network
    assert network.head.weight is network.language_model.get_input_embeddings().weight
    assert network.vocabulary_size == network.mask_id + 1


SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def saved_model(kind: str, folder: Path, **sizes) -> str:
    """A random model of an architecture of transformers, with a tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from relgrad.networks.causal.tiny import build_tokenizer

    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "says"), [("stablelm", "looks at padding"), ("rwkv", "does not see what comes after")]
)
def test_an_architecture_that_does_not_look_to_both_sides_is_refused(kind: str, says: str, tmp_path: Path):
    with pytest.raises(RelgradError, match=says):
        opened(saved_model(kind, tmp_path, **SIZES), family="bidirectional")


def test_a_network_is_as_long_as_its_configuration_says(tmp_path: Path):
    name = saved_model("gpt2", tmp_path, vocab_size=97, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    assert opened(name, family="bidirectional").network.length == 64


# ---------------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def folder(cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny Dream, to be spoilt."""
    from relgrad.networks.masked.load import resolve

    target = tmp_path_factory.mktemp("folders") / "dream"
    shutil.copytree(resolve("tiny-dream:32x2"), target)
    return target


def spoilt(folder: Path, target: Path, **config) -> str:
    shutil.copytree(folder, target)
    own = json.loads((target / "config.json").read_text())
    own.update(config)
    (target / "config.json").write_text(json.dumps({k: v for k, v in own.items() if v is not None}))
    return str(target)


def test_a_model_without_a_mask_token_is_refused(folder: Path, tmp_path: Path):
    model = spoilt(folder, tmp_path / "model", mask_token_id=None)
    for file in ("tokenizer_config.json", "tokenizer.json"):
        path = tmp_path / "model" / file
        path.write_text(path.read_text().replace("<|mask|>", "<|other|>").replace('"mask_token"', '"other_token"'))
    with pytest.raises(RelgradError, match=r"no mask token.*151666.*105 embeddings.*policy\.mask_token"):
        opened(model)
    assert opened(model, mask_token="<|other|>").network.mask_id == 97
    with pytest.raises(RelgradError, match="has no such token"):
        opened(model, mask_token="<|nothing|>")
    with pytest.raises(RelgradError, match=r"no embedding for policy\.mask_token=4000"):
        opened(model, mask_token=4000)


def test_an_unknown_family_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(RelgradError, match=r"policy\.family='drema': known are llada, llada_moe, dream, sdar"):
        opened(str(folder), family="drema")
    with pytest.raises(RelgradError, match=r"model_type='qwen3'.*policy\.family=bidirectional"):
        opened("tiny:32x1")
    with pytest.raises(RelgradError, match=r"policy\.family='llada'.*of the family 'dream'"):
        opened(str(folder), family="llada")
    with pytest.raises(RelgradError, match=r"layers of sliding_attention"):
        opened(
            spoilt(folder, tmp_path / "sliding", model_type="qwen2", auto_map=None, sliding_window=4, use_sliding_window=True,
                   layer_types=["full_attention", "sliding_attention"]), family="bidirectional")  # fmt: skip


def test_a_llada_that_is_no_llama_is_refused(tmp_path: Path):
    from relgrad.networks.masked.load import resolve

    model = spoilt(Path(resolve("tiny-llada:32x2")), tmp_path / "alibi", alibi=True)
    with pytest.raises(RelgradError, match=r"a LLaDA with alibi=True.*trust_remote_code"):
        opened(model)


@torch.no_grad()
def test_a_shift_that_does_not_fit_is_found_by_the_loss():
    network = tiny("dream").network
    ids_BL, valid_BL, block_BL = rows(network.mask_id)
    target_BL = log_probs(network, ids_BL, valid_BL, block_BL).argmax(-1)
    fits = shift_evidence(network, ids_BL, valid_BL, target_BL)
    assert not fits.doubtful
    network.shifted = False
    wrong = shift_evidence(network, ids_BL, valid_BL, target_BL)
    assert (wrong.as_declared, wrong.otherwise) == (fits.otherwise, fits.as_declared)
    assert wrong.doubtful
    for part in (f"{wrong.as_declared:.3f} nats with policy.shift=false", f"{wrong.otherwise:.3f} with shift=true"):
        assert part in str(wrong)
    with pytest.raises(ValueError, match="no position is masked"):
        shift_evidence(network, target_BL, valid_BL, target_BL)


def test_a_shift_other_than_the_folder_was_trained_with_is_refused(folder: Path, tmp_path: Path):
    trained = {"family": "dream", "shifted": True, "mask_token_id": 97}
    model = spoilt(folder, tmp_path / "trained", masked_diffusion=trained)
    with pytest.raises(RelgradError, match=r"policy\.shift=False.*was trained with shift: True"):
        opened(model, shift=False)
