"""Generation on the shared prompt: how often it asks its device, where its cache lies, and that neither changes what is drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from relgrad.laws import tiled
from relgrad.laws.categorical import Truncation
from relgrad.networks.causal import decode, grid, shared_prompt
from relgrad.networks.causal.decode import Generated
from relgrad.networks.causal.lean_decoder import LeanDecoder
from test_engines import network

LIMIT, GROUP, EOS = 48, 6, (0, 1)
ASKS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select, torch.ops.aten.equal,
        torch.ops.aten.is_nonzero, torch.ops.aten._unique2, torch.ops.aten.unique_consecutive}  # fmt: skip
"""Operations whose result, or its size, the host has to wait for."""
READS = {"tolist", "cpu", "numpy", "item", "__bool__", "__int__", "__float__", "__index__"}


class Asked(TorchDispatchMode):
    """Counts the operations that ask a device for an answer, an index by a mask among them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)
        masked = masks and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.count += func.overloadpacket in ASKS or masked
        return func(*args, **(kwargs or {}))


class Read(TorchFunctionMode):
    """Counts what Python itself reads from a tensor, which on a CPU passes no operation; .to("cpu") counts as well."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        to_cpu = func is Tensor.to and len(args) > 1 and args[1] == "cpu"
        self.count += getattr(func, "__name__", "") in READS or to_cpu
        return func(*args, **(kwargs or {}))


def generated(model: Any, limit: int = LIMIT, law: Truncation | None = None, **options: Any) -> Generated:
    shared_prompt.register_attention()
    model.set_attn_implementation(shared_prompt.ATTENTION)
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(2, 20, (n,), generator=draw) for n in (5, 2, 7)]
    uniform = torch.rand(3 * GROUP, limit, generator=draw)
    with torch.inference_mode():
        return decode.generate(
            model.get_decoder(), tiled.Head(model.lm_head.weight), prompts, GROUP, law=law or Truncation(), limit=limit,
            eos_ids=options.pop("eos_ids", torch.tensor(EOS)), uniform_BT=uniform, **options,
        )  # fmt: skip


def asks(limit: int, law: Truncation) -> int:
    """Reads and asking operations of a generation of `limit` tokens, no row of which ends, with a device's 16 steps per look."""
    model = network("llama")
    model.config.max_position_embeddings = 1024
    with Read() as read, Asked() as asked:
        generated(model, limit, law, look_every=decode.LOOK_EVERY_ELSEWHERE, eos_ids=torch.tensor([-1]))
    # a .tolist() is one question on an accelerator, and none of the counted operations on a CPU
    return read.count + asked.count


@pytest.mark.parametrize("law", [Truncation(), Truncation(top_p=0.8)], ids=["whole", "top-p"])
def test_the_device_is_asked_once_in_16_tokens(law: Truncation):
    assert decode.LOOK_EVERY_ELSEWHERE >= 16
    short, long = asks(64, law), asks(320, law)
    assert long - short <= (320 - 64) / 16
    # and a few times for the whole generation: the layout of the prompts, the supports' order
    assert long <= 320 / 16 + 8


def test_the_counters_see_what_asks():
    values = torch.arange(4.0)
    with Read() as read, Asked() as asked:
        bool((values > 1).any())
        values[values > 1]
        (values > 1).nonzero()
        values.tolist()
    assert read.count + asked.count >= 4


@pytest.mark.parametrize("law", [Truncation(), Truncation(temperature=1.4, top_p=0.9)], ids=["whole", "top-p"])
@pytest.mark.parametrize("name", ["llama", "mistral-window"])
def test_rare_looks_draw_the_same_tokens(name: str, law: Truncation):
    every, rare, never = (generated(network(name), law=law, look_every=n) for n in (1, 7, LIMIT))
    assert len(every.length_B.unique()) > 3
    for other in (rare, never):
        assert torch.equal(every.token_BT, other.token_BT)
        assert torch.equal(every.length_B, other.length_B)
        assert torch.equal(every.ended_B, other.ended_B)
        # the products of a smaller grid may be added up in another order: 48 steps of float32 with logits around 10
        torch.testing.assert_close(every.logp_BT, other.logp_BT, atol=2e-5, rtol=0)
        if every.support is not None:
            assert torch.equal(every.support.offset_N1, other.support.offset_N1)
            assert torch.equal(every.support.entry_M, other.support.entry_M)


def test_supports_belong_to_the_drawn_tokens():
    out = generated(network("llama"), law=Truncation(temperature=1.4, top_k=3), look_every=5)
    cells = int(out.length_B.sum())
    assert out.support.offset_N1.tolist() == list(range(0, 3 * cells + 1, 3))
    inside = torch.arange(LIMIT) < out.length_B[:, None]
    allowed = out.support.dense(0, cells, 24)
    assert bool(allowed[torch.arange(cells), out.token_BT[inside]].all())


def test_a_small_cache_grows_and_a_large_one_does_not(monkeypatch: pytest.MonkeyPatch):
    rooms = []
    store = grid.Grid._store

    def spy(self: Any, layer: int, *tensors: Any) -> Any:
        result = store(self, layer, *tensors)
        rooms.append(self.own_keys[layer].shape[3])
        return result

    monkeypatch.setattr(grid.Grid, "_store", spy)
    whole = generated(network("llama"))
    assert set(rooms) == {LIMIT}
    rooms.clear()
    monkeypatch.setattr(grid, "CACHE_BYTES", 0)
    monkeypatch.setattr(grid, "BLOCK", 8)
    grown = generated(network("llama"))
    assert {8, 16} < set(rooms) <= {8, 16, 32, LIMIT}
    assert torch.equal(whole.token_BT, grown.token_BT)


def test_what_follows_an_end_is_cut_off():
    token = torch.tensor([[5, 1, 7, 0], [5, 6, 7, 8], [0, 3, 3, 3]])
    out = Generated.cut(token, torch.full((3, 4), -1.0), torch.tensor(EOS))
    assert out.length_B.tolist() == [2, 4, 1]
    assert out.ended_B.tolist() == [True, False, True]
    assert out.token_BT.tolist() == [[5, 1, 0, 0], [5, 6, 7, 8], [0, 0, 0, 0]]
    assert out.logp_BT.sum(1).tolist() == [-2, -4, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "qwen2-biases-tied", "qwen3"])
def test_the_lean_decoder_applies_adapters_in_every_dtype(name: str, dtype: torch.dtype):
    model = network(name, lora=True)
    for path, parameter in model.named_parameters():
        if "lora" not in path:
            parameter.data = parameter.data.to(dtype)
    decoder = model.get_base_model().get_decoder()
    lean = LeanDecoder.of(decoder, LIMIT, 64)
    assert lean is not None
    prompts = shared_prompt.Ragged([9, 4])
    token_N, position_N = torch.arange(13) + 2, prompts.position
    shared_prompt.register_attention()
    model.get_base_model().set_attn_implementation(shared_prompt.ATTENTION)
    with torch.no_grad():
        expected = shared_prompt.hidden_states(decoder, token_N, position_N, grid.Prefill(prompts))
        hidden = lean.step(token_N, position_N, grid.Prefill(prompts))
        with model.disable_adapter():
            bare = shared_prompt.hidden_states(decoder, token_N, position_N, grid.Prefill(prompts))
    assert hidden.dtype == dtype
    # several roundings per layer of numbers around 2, through 4 layers
    worst = 100 * torch.finfo(dtype).eps
    assert float((hidden - expected).abs().max()) < worst
    assert float((bare - expected).abs().max()) > 0.3
