"""FS-DFM's network: it computes what Apple's does, loads files in their layout and nothing else, and carries adapters.

`layout` writes down names and shapes of Apple's checkpoints, and `plain_logits` computes with them one row at a time (attention
written out, rotation by complex numbers), so that a mistake in models/fsdfm.py cannot hide in both.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.networks.fsdfm import lora as fsdfm_lora
from relgrad.networks.fsdfm import published_files as fsdfm_files
from relgrad.networks.fsdfm.network import DiT, DiTConfig
from relgrad.networks.weights.folder import CONFIG

VOCAB, HIDDEN, BLOCKS, HEADS, COND = 3141, 128, 21, 2, 16
"""Apple's 1.3B divided by 16, at its depth and its head width."""
ROTARY = "rotary_emb.inv_freq"


def layout(vocab: int, hidden: int, blocks: int, cond: int, *, student: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters in Apple's files."""
    shapes: dict[str, tuple[int, ...]] = {"vocab_embed.weight": (vocab, hidden)}

    def linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    for embedding in ["time_embedding", "dt_embedding"][: 1 + student]:
        linear(f"{embedding}.mlp.0", 256, cond)
        linear(f"{embedding}.mlp.2", cond, cond)
    if student:
        linear("time_condition_fuser", 2 * cond, 2 * cond)
    for block in (f"blocks.{i}" for i in range(blocks)):
        shapes[f"{block}.norm1.weight"] = shapes[f"{block}.norm2.weight"] = (hidden,)
        for name in ("qw", "kw", "vw", "attn_out"):
            linear(f"{block}.{name}", hidden, hidden, bias=False)
        linear(f"{block}.mlp.0", hidden, 4 * hidden)
        linear(f"{block}.mlp.2", 4 * hidden, hidden)
        linear(f"{block}.adaLN_modulation", cond, 6 * hidden)
        if student:
            linear(f"{block}.condition_fuser", 2 * cond, cond)
    shapes["output_layer.norm_final.weight"] = (hidden,)
    linear("output_layer.linear", hidden, vocab)
    linear("output_layer.adaLN_modulation", cond, 2 * hidden)
    if student:
        linear("output_layer.condition_fuser", 2 * cond, cond)
    return shapes


def random_state(*, student: bool, seed: int = 0, prefix: str = "", **sizes: int) -> dict[str, Tensor]:
    """Weights in that layout, with the buffer that Apple's state dictionaries carry."""
    numbers = {"vocab": VOCAB, "hidden": HIDDEN, "blocks": BLOCKS, "cond": COND, **sizes}
    source = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in layout(**numbers, student=student).items():
        scale = 0.7 / math.sqrt(shape[-1]) if len(shape) == 2 and "embed" not in name else 0.3
        state[name] = torch.randn(shape, generator=source) * scale + ("norm" in name)
    width = numbers["hidden"] // HEADS
    state[ROTARY] = torch.tensor([10_000.0 ** (-2 * i / width) for i in range(width // 2)])
    return {prefix + n: t for n, t in state.items()}


def plain_logits(w: dict[str, Tensor], ids: Tensor, t: float, d: float | None = None, heads: int = HEADS) -> Tensor:
    """float64 [L, V] of one row."""
    w = {n: p.double() for n, p in w.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(1, dtype=torch.float64))

    def silu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    def norm(name: str, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]

    def embed(name: str, time: float) -> Tensor:
        angle = torch.tensor([time * math.exp(-math.log(10_000) * i / 128) for i in range(128)], dtype=torch.float64)
        return linear(f"{name}.mlp.2", silu(linear(f"{name}.mlp.0", torch.cat([angle.cos(), angle.sin()]))))

    def conditioned(name: str, cond: Tensor) -> Tensor:
        return linear(f"{name}.adaLN_modulation", cond if d is None else silu(linear(f"{name}.condition_fuser", cond)))

    cond = embed("time_embedding", t)
    if d is not None:
        cond = linear("time_condition_fuser", torch.cat([cond, embed("dt_embedding", d)]))
    cond = silu(cond)
    x = w["vocab_embed.weight"][ids]
    length, hidden = x.shape
    half = hidden // heads // 2
    turn = torch.polar(
        torch.ones(length, half, dtype=torch.float64),
        torch.arange(length)[:, None]
        * torch.tensor([10_000.0 ** (-i / half) for i in range(half)], dtype=torch.float64),
    )

    def turned(y: Tensor) -> Tensor:
        z = torch.complex(y[:, :half], y[:, half:]) * turn
        return torch.cat([z.real, z.imag], -1)

    for i in range(1 + max(int(n.split(".")[1]) for n in w if n.startswith("blocks."))):
        block = f"blocks.{i}"
        s1, a1, g1, s2, a2, g2 = conditioned(block, cond).chunk(6)
        y = norm(f"{block}.norm1", x) * (1 + a1) + s1
        q, k, v = (linear(f"{block}.{name}", y) for name in ("qw", "kw", "vw"))
        mixed = []
        for head in range(heads):
            of_head = slice(2 * half * head, 2 * half * (head + 1))
            scores = turned(q[:, of_head]) @ turned(k[:, of_head]).T / math.sqrt(2 * half)
            mixed.append(scores.softmax(-1) @ v[:, of_head])
        x = x + g1 * linear(f"{block}.attn_out", torch.cat(mixed, -1))
        y = linear(f"{block}.mlp.0", norm(f"{block}.norm2", x) * (1 + a2) + s2)
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + g2 * linear(f"{block}.mlp.2", y)
    shift, scale = conditioned("output_layer", cond).chunk(2)
    return linear("output_layer.linear", norm("output_layer.norm_final", x) * (1 + scale) + shift)


def teacher_file(path: Path, state: dict[str, Tensor], **more: Any) -> Path:
    """As pre_training writes it: the optimizer, samplers and a counter beside the network."""
    moments = {i: {"step": torch.tensor(7.0), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)} for i in range(3)}
    groups = [{"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.03, "params": [0, 1, 2]}]
    content = {"optimizer": {"state": moments, "param_groups": groups}, "model": state, "step": 7,
               "train_sampler": {"yielded": 3}, "test_sampler": {"yielded": 0}, **more}  # fmt: skip
    torch.save(content, path)
    return path


def tiny(*, seed: int = 0, **changes: Any) -> DiT:
    """Random weights everywhere, also where a fresh network has zeros."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DiT(DiTConfig.preset("tiny", **{"vocab_size": 11, **changes}))
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    return model.eval()


IDS_BL = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8], [9, 7, 9, 3, 2, 3]])
TIME_B = torch.tensor([0.0, 0.37, 1.0])
STEP_B = torch.tensor([1.0, 1 / 8, 1 / 1024])


def logits(model: DiT, ids_BL: Tensor = IDS_BL, **options: Any) -> Tensor:
    step_B = STEP_B if model.config.step_conditioned else None
    return model.logits(model.hidden(ids_BL, TIME_B, step_B, **options))


# ---------------------------------------------------------------------- Apple's files


@pytest.mark.parametrize(("student", "millions"), [(False, 1330.67), (True, 1330.67 + 3.28)])
def test_the_published_size_has_apples_names_shapes_and_number_of_parameters(student: bool, millions: float) -> None:
    with torch.device("meta"):
        model = DiT(DiTConfig.preset("1.3b", step_conditioned=student))
    assert {n: tuple(p.shape) for n, p in model.named_parameters()} == layout(50_257, 2048, 21, 256, student=student)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert (model.config.heads, model.config.length) == (32, 1024)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_a_teacher_file_loads_and_computes_what_apples_network_does(tmp_path: Path, prefix: str) -> None:
    file = teacher_file(tmp_path / "checkpoint.pth", random_state(student=False, prefix=prefix))
    model = fsdfm_files.load(file, vocab_size=VOCAB)
    assert model.config == DiTConfig(
        vocab_size=VOCAB, hidden=HIDDEN, blocks=BLOCKS, heads=HEADS, cond_dim=COND, length=1024
    )
    with torch.no_grad():
        ours = logits(model)
    for row, t in enumerate(TIME_B.tolist()):
        expected = plain_logits(random_state(student=False), IDS_BL[row], t)
        assert expected.std() > 0.3
        torch.testing.assert_close(ours[row].double(), expected, atol=2e-4, rtol=1e-4)


def test_a_student_file_has_several_networks_and_the_setting_chooses(tmp_path: Path) -> None:
    names = {"student_ema_model": 1, "student_model": 2}
    states = {name: random_state(student=True, seed=seed) for name, seed in names.items()}
    states["teacher_model"] = random_state(student=False, seed=3)
    file = tmp_path / "checkpoint_step_190000.pth"
    sampler = {"yielded": 0}
    torch.save({"step": 190_000, "train_sampler": sampler, "test_sampler": sampler, **states}, file)

    for part in ("auto", "student_ema_model", "student_model", "teacher_model"):
        model = fsdfm_files.load(file, part=part)
        assert model.config.step_conditioned == (part != "teacher_model")
        with torch.no_grad():
            ours = logits(model)
        for row, (t, d) in enumerate(zip(TIME_B.tolist(), STEP_B.tolist(), strict=True)):
            state = states["student_ema_model" if part == "auto" else part]
            expected = plain_logits(state, IDS_BL[row], t, d if model.config.step_conditioned else None)
            torch.testing.assert_close(ours[row].double(), expected, atol=2e-4, rtol=1e-4)
    with pytest.raises(RelgradError, match=r"no 'model' in it; it has student_ema_model, student_model, teacher_model"):
        fsdfm_files.load(file, part="model")


def test_a_loaded_network_no_longer_needs_its_file(tmp_path: Path) -> None:
    file = teacher_file(tmp_path / "checkpoint.pth", random_state(student=False, blocks=2))
    model = fsdfm_files.load(file)
    before = logits(model)
    size = file.stat().st_size
    with open(file, "r+b") as opened:
        opened.write(b"\x7f" * size)
    torch.testing.assert_close(logits(model), before, atol=0, rtol=0)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


def test_loading_can_cast(tmp_path: Path) -> None:
    file = teacher_file(tmp_path / "checkpoint.pth", random_state(student=False, blocks=2))
    assert {p.dtype for p in fsdfm_files.load(file, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_bare_state_dictionaries_and_safetensors_load_too(tmp_path: Path) -> None:
    state = random_state(student=True, blocks=2)
    torch.save(state, tmp_path / "bare.pt")
    save_file(state, tmp_path / "bare.safetensors")
    expected = logits(fsdfm_files.load(tmp_path / "bare.pt"))
    torch.testing.assert_close(logits(fsdfm_files.load(tmp_path / "bare.safetensors")), expected, atol=0, rtol=0)
    del state[ROTARY]
    save_file(state, tmp_path / "silent.safetensors")
    torch.testing.assert_close(logits(fsdfm_files.load(tmp_path / "silent.safetensors", heads=HEADS)), expected)
    with pytest.raises(RelgradError, match="say `heads`"):
        fsdfm_files.load(tmp_path / "silent.safetensors")


def changed(name: str, value: Tensor | None) -> dict[str, Tensor]:
    state = random_state(student=False, blocks=2)
    state.pop(name, None)
    return state if value is None else {**state, name: value}


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (changed("blocks.1.kw.weight", None), r"Missing: blocks\.1\.kw\.weight; unexpected: none"),
        (changed("vocab_embed.weight", None), r"Missing: vocab_embed\.weight"),
        (changed("blocks.1.kw.bias", torch.zeros(HIDDEN)), r"unexpected: blocks\.1\.kw\.bias"),
        (changed("blocks.0.condition_fuser.weight", torch.zeros(2, 2)), r"unexpected: blocks\.0\.condition_fuser\.weight"),
        (changed("blocks.0.qw.weight", torch.zeros(4, HIDDEN)), r"blocks\.0\.qw\.weight \(4, 128\) instead of \(128, 128\)"),
        (changed("vocab_embed.weight", torch.zeros(5)), r"vocab_embed\.weight has shape \(5,\), expected 2 dimensions"),
        (changed("output_layer.linear.weight", torch.zeros(9, HIDDEN)), r"output_layer\.linear\.weight \(9, 128\)"),
        (changed(ROTARY, torch.linspace(1, 0.1, 32)), r"inv_freq is not this network's"),
        (changed("blocks.0.qw.weight", torch.zeros(HIDDEN, HIDDEN).long()), r"no weights of a network: blocks\.0\.qw\.weight"),
    ],
)  # fmt: skip
def test_foreign_weights_are_refused_by_name(tmp_path: Path, state: dict[str, Tensor], told: str) -> None:
    with pytest.raises(RelgradError, match=told):
        fsdfm_files.load(teacher_file(tmp_path / "checkpoint.pth", state))


@pytest.mark.parametrize(
    ("need", "fix"),
    [
        (VOCAB + 1, "set source: uniform"),
        (VOCAB - 1, "set source: mask"),
        (50_257, "tokenizer that it was trained with"),
    ],
)
def test_another_vocabulary_is_refused_with_both_numbers_and_the_fix(tmp_path: Path, need: int, fix: str) -> None:
    file = teacher_file(tmp_path / "checkpoint.pth", random_state(student=False, blocks=1))
    with pytest.raises(RelgradError, match=rf"{VOCAB} embeddings, but .* has {need}: .*{fix}"):
        fsdfm_files.load(file, vocab_size=need)
    tiny().save(tmp_path / "own")
    with pytest.raises(RelgradError, match=r"11 embeddings, but .* has 12"):
        fsdfm_files.load(tmp_path / "own", vocab_size=12)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_a_file_that_would_run_code_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    file = teacher_file(tmp_path / "bomb.pth", random_state(student=False, blocks=1), extra=Bomb(tmp_path / "ran"))
    with pytest.raises(RelgradError, match=r"loading it would run \S*mkdir"):
        fsdfm_files.load(file)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    whole = teacher_file(tmp_path / "checkpoint.pth", random_state(student=False, blocks=1)).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RelgradError, match="cut off"):
        fsdfm_files.load(tmp_path / "cut.pth")
    torch.save({"step": 3, "optimizer": {}}, tmp_path / "empty.pth")
    with pytest.raises(RelgradError, match=r"no network in it; it has step, optimizer"):
        fsdfm_files.load(tmp_path / "empty.pth")
    with pytest.raises(RelgradError, match="no such file or folder"):
        fsdfm_files.load(tmp_path / "absent.pth")
    with pytest.raises(RelgradError, match=r"no config\.json"):
        fsdfm_files.load(tmp_path)


# ---------------------------------------------------------------------- the network itself


@pytest.mark.parametrize("student", [False, True])
def test_save_and_load(tmp_path: Path, student: bool) -> None:
    model = tiny(step_conditioned=student, dropout=0.1)
    model.save(tmp_path)
    again = DiT.load(tmp_path)
    assert again.config == model.config
    assert not again.training
    torch.testing.assert_close(logits(again), logits(model), atol=0, rtol=0)
    torch.testing.assert_close(logits(fsdfm_files.load(tmp_path, vocab_size=11)), logits(model), atol=0, rtol=0)
    (tmp_path / CONFIG).write_text('{"vocab_size": 11, "width": 3}')
    with pytest.raises(RelgradError, match="not the configuration of an FS-DFM network"):
        DiT.load(tmp_path)


def test_a_fresh_network_says_nothing_yet() -> None:
    with torch.random.fork_rng():
        model = DiT(DiTConfig.preset("tiny", vocab_size=11))
    assert bool((logits(model) == 0).all())


def test_every_position_sees_every_other_and_no_padding() -> None:
    """In float64, where two shapes of one computation differ by 1e-16 a term."""
    model = tiny().double()
    plain = logits(model)
    ids_BL = IDS_BL.clone()
    ids_BL[:, -1] = 0
    assert bool(((logits(model, ids_BL) - plain).abs().amax(-1) > 1e-3).all())

    padded_BL = torch.cat([ids_BL, torch.tensor([[1, 2], [3, 4], [5, 6]])], 1)
    valid_BL = (torch.arange(8) < torch.tensor([6, 5, 8])[:, None]).expand(3, 8)
    masked = logits(model, padded_BL, valid_BL=valid_BL)
    for row, length in enumerate([6, 5, 8]):
        alone = model.logits(model.hidden(padded_BL[row : row + 1, :length], TIME_B[row : row + 1]))
        torch.testing.assert_close(masked[row : row + 1, :length], alone, atol=1e-10, rtol=1e-10)


def test_time_and_step_are_told_row_by_row() -> None:
    model = tiny(step_conditioned=True)
    together = logits(model)
    for row in range(3):
        one = slice(row, row + 1)
        alone = model.logits(model.hidden(IDS_BL[one], TIME_B[one], STEP_B[one]))
        torch.testing.assert_close(together[one], alone, atol=2e-4, rtol=1e-4)
    other_time = model.logits(model.hidden(IDS_BL, TIME_B * 0.9 + 0.05, STEP_B))
    other_step = model.logits(model.hidden(IDS_BL, TIME_B, STEP_B / 2))
    assert float((other_time - together).detach().abs().max()) > 1e-2
    assert float((other_step - together)[:2].detach().abs().max()) > 1e-2


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(RelgradError, match="leave the step size out"):
        tiny().hidden(IDS_BL, TIME_B, STEP_B)
    with pytest.raises(RelgradError, match="give it the size of the step"):
        tiny(step_conditioned=True).hidden(IDS_BL, TIME_B)
    with pytest.raises(RelgradError, match="6 ids, but the network's length is 5"):
        tiny(length=5).hidden(IDS_BL, TIME_B)
    with pytest.raises(RelgradError, match=r"size '7b': allowed are 1\.3b"):
        DiTConfig.preset("7b")
    with pytest.raises(ValueError, match="hidden=30 over heads=4"):
        DiTConfig(hidden=30, heads=4)


def test_bfloat16_weights_keep_a_float32_stream() -> None:
    exact, short = tiny(), tiny().bfloat16()
    expected = exact.hidden(IDS_BL, TIME_B)
    by_weights = short.hidden(IDS_BL, TIME_B)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        by_autocast = exact.hidden(IDS_BL, TIME_B)
    for hidden in (by_weights, by_autocast):
        assert hidden.dtype == short.logits(hidden).dtype == torch.float32
        off = (hidden - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert 0 < float(off.detach()) < 0.03


def test_checkpointing_changes_no_gradient_with_dropout_on() -> None:
    found = []
    for checkpointing in (False, True):
        model = tiny(dropout=0.2).train()
        model.checkpointing = checkpointing
        with torch.random.fork_rng():
            torch.manual_seed(5)
            logits(model).square().sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in found[0].items():
        assert gradient is not None
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_a_student_starts_as_its_teacher_and_can_learn_the_step() -> None:
    teacher = tiny(dropout=0.1)
    with torch.random.fork_rng():
        student = teacher.student().eval()
    assert student.config == teacher.config.model_copy(update={"step_conditioned": True})
    expected = logits(teacher)
    for step_B in (STEP_B, STEP_B.flip(0), torch.ones(3)):
        torch.testing.assert_close(
            student.logits(student.hidden(IDS_BL, TIME_B, step_B)), expected, atol=1e-5, rtol=1e-5
        )
    logits(student).square().sum().backward()
    gradient = student.time_condition_fuser.weight.grad
    assert gradient is not None
    assert float(gradient[:, student.config.cond_dim :].abs().max()) > 1e-3  # what reads the step size
    with pytest.raises(RelgradError, match="already"):
        student.student()


# ---------------------------------------------------------------------- adapters


def test_adapters_are_trained_switched_off_saved_and_read_by_peft(tmp_path: Path) -> None:
    from peft import PeftModel

    model, bare = tiny().bfloat16(), logits(tiny().bfloat16())
    adapted = fsdfm_lora.add_lora(model, r=4, alpha=8)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[2] for n in trainable} == {"qw", "kw", "vw", "attn_out"}
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    torch.testing.assert_close(logits(model), bare, atol=0, rtol=0)  # a fresh adapter says nothing

    optimizer = torch.optim.Adam(trainable.values(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        logits(model).square().sum().backward()
        optimizer.step()
    trained = logits(model)
    assert float((trained - bare).detach().abs().max()) > 0.1
    with adapted.disable_adapter():
        torch.testing.assert_close(logits(model), bare, atol=0, rtol=0)

    fsdfm_lora.save_adapter(adapted, tmp_path)
    by_peft = tiny().bfloat16()
    PeftModel.from_pretrained(by_peft, str(tmp_path))
    torch.testing.assert_close(logits(by_peft), trained, atol=0, rtol=0)
    ours = tiny().bfloat16()
    fsdfm_lora.load_adapter(fsdfm_lora.add_lora(ours, r=4, alpha=8), tmp_path)
    torch.testing.assert_close(logits(ours), trained, atol=0, rtol=0)

    with pytest.raises(RelgradError, match="belongs to another model or LoRA configuration"):
        fsdfm_lora.load_adapter(fsdfm_lora.add_lora(tiny(hidden=16), r=4, alpha=8), tmp_path)


def test_adapter_targets() -> None:
    model = tiny(step_conditioned=True)
    fsdfm_lora.add_lora(model, targets="all-linear")
    adapted = {".".join(n.split(".lora_")[0].split(".")[2:]) for n, p in model.named_parameters() if p.requires_grad}
    assert adapted == {"qw", "kw", "vw", "attn_out", "mlp.0", "mlp.2", "adaLN_modulation", "condition_fuser"}
    with pytest.raises(RelgradError, match=r"targets \['query'\].*Linear layers of a block: .*attn_out, kw"):
        fsdfm_lora.add_lora(tiny(), targets=["query"])
    with pytest.raises(RelgradError, match="adapt the head"):
        fsdfm_lora.add_lora(tiny(), targets=["linear"])
