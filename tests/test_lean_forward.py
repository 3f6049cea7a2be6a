"""The forward and backward pass of Llama-shaped decoders against the modules of transformers and peft, and when it stands back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from relgrad.networks.causal import lean_forward, llama, shared_prompt
from relgrad.networks.causal import load as causal
from test_engines import network

LENGTHS, COMPLETIONS, ROW_PROMPT = (5, 3), (2, 4, 3, 0), (0, 0, 1, 1)
SERVED = ("llama", "llama3-rope-wide-heads", "llama-yarn", "mistral", "qwen2-biases-tied", "qwen3")


def layout() -> shared_prompt.PackedLayout:
    return shared_prompt.PackedLayout(LENGTHS, COMPLETIONS, ROW_PROMPT)


def prepared(name: str, lora: bool = False, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """(model, its decoder) on the shared-prompt attention, everything in one dtype."""
    model = network(name, lora=lora).to(dtype)
    base = model.get_base_model() if lora else model
    shared_prompt.register_attention()
    base.set_attn_implementation(shared_prompt.ATTENTION)
    return model, base.get_decoder()


def through_its_modules(decoder: Any, token_N: torch.Tensor, packed: shared_prompt.PackedLayout) -> torch.Tensor:
    output = decoder(
        input_ids=token_N[None], position_ids=packed.position_N[None], attention_mask=torch.empty(1, 1, 1, 1),
        use_cache=False, relgrad_layout=packed,
    )  # fmt: skip
    return output.last_hidden_state[0]


@pytest.mark.parametrize("lora", [False, True], ids=["all-weights", "lora"])
@pytest.mark.parametrize("name", SERVED)
def test_hidden_states_and_gradients_are_those_of_the_modules(name: str, lora: bool):
    model, decoder = prepared(name, lora)
    packed = layout()
    draw = torch.Generator().manual_seed(0)
    token_N = torch.randint(0, 24, (len(packed.position_N),), generator=draw)
    weight = torch.randn(len(token_N), 32, generator=draw, dtype=torch.float64)
    parts = lean_forward.serves(decoder)
    assert parts is not None
    found = {}
    for way, hidden in (
        ("lean", lean_forward.forward(parts, token_N, packed.position_N, packed)),
        ("modules", through_its_modules(decoder, token_N, packed)),
    ):
        (hidden * weight).sum().backward()
        found[way] = hidden.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
    # transformers normalises and turns in float32 even in a float64 model
    torch.testing.assert_close(found["lean"][0], found["modules"][0], atol=2e-5, rtol=1e-5)
    assert found["lean"][1].keys() == found["modules"][1].keys()
    assert all(("lora" in n) == lora for n in found["lean"][1])
    for path, gradient in found["lean"][1].items():
        expected = found["modules"][1][path]
        assert float((gradient - expected).abs().max()) < 1e-5 * max(float(expected.abs().max()), 1.0), path


def test_every_function_has_the_gradient_of_its_value():
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw).requires_grad_()

    def two_layers(x: torch.Tensor, *t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first = llama.Linear(t[0], t[1], (llama.Adapter(t[2], t[3], 0.5, 0.0), llama.Adapter(t[4], t[5], 2.0, 0.0)))
        return lean_forward.linear(x, first, llama.Linear(t[6], None, ()))

    shapes = (4, 6), (5, 6), (5,), (2, 6), (5, 2), (3, 6), (5, 3), (7, 6)
    assert torch.autograd.gradcheck(two_layers, tuple(random(*s) for s in shapes))
    norm = lambda x, w: lean_forward.rms_norm(x, llama.Norm(w, 1e-3))  # noqa: E731
    assert torch.autograd.gradcheck(norm, (random(4, 2, 6), random(6)))
    half = torch.randn(4, 1, 3, dtype=torch.float64, generator=draw)
    cos, sin = torch.cat([half.cos()] * 2, -1), torch.cat([-half.sin(), half.sin()], -1)
    assert torch.autograd.gradcheck(lambda x: lean_forward.rotate(x, cos, sin), (random(4, 2, 6),))
    assert torch.autograd.gradcheck(lean_forward._Gate.apply, (random(4, 6), random(4, 6)))


def test_the_adapters_are_pefts_own_forward_and_gradient():
    model, decoder = prepared("llama", lora=True)
    for module in (decoder.layers[0].self_attn.q_proj, decoder.layers[1].mlp.down_proj):
        x = torch.randn(6, module.in_features, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        outputs, gradients = [], []
        for way in (module, lambda x, m=module: lean_forward.linear(x, llama._linear(m))[0]):
            leaf = x.clone().requires_grad_()
            out = way(leaf)
            out.square().sum().backward()
            outputs.append(out.detach())
            gradients.append([leaf.grad, *(p.grad for p in module.parameters() if p.requires_grad)])
            model.zero_grad()
        torch.testing.assert_close(outputs[0], outputs[1])
        assert len(gradients[0]) == 3
        for theirs, ours in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs)
    with model.disable_adapter():
        assert not llama._linear(decoder.layers[0].self_attn.q_proj).adapters


def test_it_stands_back_where_something_else_would_act():
    _, decoder = prepared("llama")
    assert lean_forward.serves(decoder) is not None
    handle = decoder.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert lean_forward.serves(decoder) is None
    handle.remove()
    for layer in decoder.layers:
        layer.gradient_checkpointing = layer.training = True
    assert lean_forward.serves(decoder) is None
    assert lean_forward.serves(prepared("llama", dtype=torch.bfloat16)[1]) is None
    assert lean_forward.serves(prepared("gemma3-windows")[1]) is None


def test_dropout_in_an_adapter_is_drawn_by_the_modules():
    model = causal.add_lora(network("llama"), r=2, alpha=4, dropout=0.5, targets="all-linear")
    decoder = model.get_base_model().get_decoder()
    assert lean_forward.serves(model.eval().get_base_model().get_decoder()) is not None
    model.train()
    assert lean_forward.serves(decoder) is None
