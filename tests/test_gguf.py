"""`relgrad merge --format gguf`: what transformers and gguf's own reader find in the file is the run's model and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from commands import relgrad
from relgrad.commands.cli import app
from relgrad.core.errors import RelgradError
from relgrad.networks.causal import gguf_file
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe

TEXTS = ("12+34=46", "a b  c", "Grüße, 世界!", "def f(x):\n    return x\n", "<|end|>and on", " don't")
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def tokenizer(split: str = "smollm") -> Any:
    """A byte-level BPE tokenizer that has learnt a few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    raw.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level]) if split == "smollm" else byte_level
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator(["the cat and the dog and the end of the words", "12 34 56 1212"] * 5, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", bos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = TEMPLATE
    return fast


def model(tied: bool = True, **settings: Any) -> Any:
    """A random Llama model with more entries than the tokenizer has tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "vocab_size": 296, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": tied, "eos_token_id": 0,
        "bos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = LlamaForCausalLM(LlamaConfig(**{**shape, **settings}))
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained an adapter on the Llama model."""
    folder = tmp_path_factory.mktemp("llama")
    model().save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    recipe = {
        "name": "r", "out": str(folder), "task": {"kind": "digits", "length": 4},
        "policy": {
            "kind": "autoregressive", "model": str(folder / "model"), "max_completion_length": 5, "lora": {"r": 4, "alpha": 16},
            "device": "cpu",
        },
        "sft": {"steps": 3, "batch_size": 4, "learning_rate": 0.05}, "stage": "sft",
    }  # fmt: skip
    run_recipe(parse_recipe(recipe))
    return folder / "r"


def test_the_file_is_the_run(run: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = tmp_path / "small.gguf"
    ended = CliRunner().invoke(app, ["merge", str(run), str(file), "--format", "gguf"], env={"COLUMNS": "300"})
    assert ended.exit_code == 0, ended.output
    assert "20 tensors and the tokenizer read back as they are; loaded again" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["small.gguf"]
    adapted = AutoPeftModelForCausalLM.from_pretrained(next((run / "1-sft" / "checkpoints").iterdir())).eval()
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32).eval()
    words, own = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name), tokenizer()
    ids = torch.tensor([own("12+34=").input_ids])
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, adapted(ids).logits, atol=1e-4, rtol=0)
        with adapted.disable_adapter():
            assert not torch.allclose(read(ids).logits, adapted(ids).logits, atol=1e-2), "the adapter was left out"
    fields = GGUFReader(file).fields
    assert fields["general.architecture"].contents() == "llama"
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert fields["tokenizer.chat_template"].contents() == TEMPLATE
    assert words.eos_token_id == own.eos_token_id == fields["tokenizer.ggml.eos_token_id"].contents()
    tokens, merges = fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.merges"].contents()
    assert tokens[: len(own)] == own.convert_ids_to_tokens(range(len(own)))
    assert len(tokens) == 296
    assert merges
    for text in TEXTS[1:3]:  # without digits, which transformers' reader does not cut as the file says
        assert words(text).input_ids == own(text).input_ids
    assert "is there already" in CliRunner().invoke(app, ["merge", str(run), str(file), "--format", "gguf"]).stderr


@pytest.mark.parametrize("tied", [True, False])
def test_every_number_is_read_back_and_any_other_is_noticed(tied: bool, tmp_path: Path) -> None:
    made, words, file = model(tied), tokenizer("gpt-2"), tmp_path / "m.gguf"
    gguf_file.write(made, words, file, "m")
    assert gguf_file.require_same(file, made, words) == (20 if tied else 21)
    with torch.no_grad():
        made.model.layers[1].self_attn.k_proj.weight[3, 5] += 1e-3
    with pytest.raises(RelgradError, match=r"tensor blk\.1\.attn_k\.weight is not what was written"):
        gguf_file.require_same(file, made, words)


def test_rotated_pairs_come_together() -> None:
    """Two heads of four rows, rotated as (0, 2) and (1, 3): GGUF has the members of a pair side by side."""
    rows = gguf_file.neighbours(torch.arange(8.0)[:, None], 2)[:, 0]
    assert rows.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_what_the_format_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    from tokenizers import normalizers

    from relgrad.networks.causal import tiny

    with pytest.raises(RelgradError, match=r"Qwen3ForCausalLM cannot be written; .* LlamaForCausalLM"):
        gguf_file.write(tiny.build_model(32, 1), tiny.build_tokenizer(), tmp_path / "a.gguf", "a")
    with pytest.raises(RelgradError, match="attention_bias=True"):
        gguf_file.write(model(attention_bias=True), tokenizer(), tmp_path / "a.gguf", "a")
    with pytest.raises(RelgradError, match="tokenizer of kind WordLevel"):
        gguf_file.write(model(), tiny.build_tokenizer(), tmp_path / "a.gguf", "a")
    odd = tokenizer()
    odd.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(RelgradError, match=r"normalises by .*Lowercase"):
        gguf_file.write(model(), odd, tmp_path / "a.gguf", "a")
    assert not list(tmp_path.iterdir())
    ended = CliRunner().invoke(app, ["merge", "fill-quick", str(tmp_path / "b.gguf"), "--format", "gguf"])
    assert "a policy of kind fill_in cannot be written as GGUF" in " ".join(ended.stderr.split())
    ended = CliRunner().invoke(app, ["merge", "quick", str(tmp_path / "b.gguf"), "--format", "gguf"])
    assert "Qwen3ForCausalLM cannot be written" in " ".join(ended.stderr.split())
    assert "a few completions" not in ended.stderr, "refused before any work"


@pytest.mark.slow
def test_smollm2_is_written_and_scores_as_itself(tmp_path: Path) -> None:
    """The bundled model, untrained: 135 million numbers, its own tokenizer."""
    file = tmp_path / "smollm2.gguf"
    printed = relgrad("merge", "demo", file, "policy.device=cpu", "--format", "gguf")
    assert printed.strip() == str(file)
    assert file.stat().st_size > 4 * 134_000_000
