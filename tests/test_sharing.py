"""`relgrad merge` and `relgrad push --dry-run`: what is written for others scores as the run did, and its card says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from commands import relgrad
from relgrad import Run
from relgrad.commands.cli import app
from relgrad.core.errors import RelgradError
from relgrad.monitor.model_card import is_on_a_hub
from relgrad.runs import sharing
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe

RECIPE: dict[str, Any] = {
    "name": "small",
    "policy": {
        "kind": "autoregressive", "model": "tiny:32x1", "max_completion_length": 6, "lora": {"r": 4, "alpha": 8},
        "device": "cpu",
    },
    "task": {"kind": "digits", "length": 4},
    "rewards": [{"kind": "exact", "per_character": True}],
    "evaluation": {"num_prompts": 4, "num_generations": 2},
    "grpo": {"steps": 3, "num_prompts": 2, "num_generations": 4, "learning_rate": 1e-2},
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an adapter, and one without."""
    out = tmp_path_factory.mktemp("runs")
    run_recipe(parse_recipe({**RECIPE, "out": str(out)}))
    whole = {name: value for name, value in RECIPE["policy"].items() if name != "lora"}
    run_recipe(parse_recipe({**RECIPE, "name": "whole", "policy": whole, "out": str(out)}))
    return out


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "300"})
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def test_a_merged_model_is_ordinary_weights_that_score_as_the_adapter_does(runs: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "merged"
    ended = CliRunner().invoke(app, ["merge", str(runs / "small"), str(folder)], env={"COLUMNS": "300"})
    assert ended.stdout.split() == [str(folder)]
    steps = [line.removesuffix(" ...") for line in ended.stderr.splitlines() if line.endswith(" ...")]
    assert steps[0] == "loading the policy"
    assert "folding the adapter into the weights" in steps
    assert steps[-1] == "loading what was written, and scoring the completions by it"
    assert not (folder / "adapter_config.json").exists()
    merged = AutoModelForCausalLM.from_pretrained(folder)
    adapted = AutoPeftModelForCausalLM.from_pretrained(runs / "small/1-grpo/checkpoints/step_000003")
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("1234=")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-4, rtol=0)
        plain = adapted.get_base_model()
        with adapted.disable_adapter():
            assert not torch.allclose(merged(ids).logits, plain(ids).logits, atol=1e-4), "the adapter was left out"


def test_what_is_packed_is_the_checkpoint_with_a_card(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "card"
    printed = relgrad("push", runs / "small", "me/small", "--dry-run", "--folder", folder)
    assert printed.strip() == str(folder)
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "recipe.yaml", "README.md"} <= {
        p.name for p in folder.iterdir()
    }
    assert not (folder / "trainer").exists()
    card = (folder / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header == {
        "tags": ["relgrad", "grpo", "autoregressive"],
        "library_name": "peft",
        "pipeline_tag": "text-generation",
    }
    stage = runs / "small/1-grpo"
    before, *_, after = [json.loads(line) for line in (stage / "evaluations.jsonl").read_text().splitlines()]
    assert f"| before training | {before['score']:.3f} | [" in card
    assert f"| after training | {after['score']:.3f} | [" in card
    assert f"| difference, paired by prompt | {after['difference']:+.3f} | [" in card
    assert "AutoPeftModelForCausalLM.from_pretrained" in card
    assert yaml.safe_load(card.split("```yaml")[1].split("```")[0])["grpo"]["learning_rate"] == 1e-2
    assert "- torch " in card


@pytest.mark.parametrize(
    ("model", "on_a_hub"),
    [
        ("Qwen/Qwen3-0.6B", True), ("tiny", False), ("smollm2-135m-instruct", False), ("models/mine.gguf", False),
        ("./models/mine", False), ("/models/mine", False), ("here/model", False), (None, False),
    ],
)  # fmt: skip
def test_the_card_names_no_base_that_nobody_else_has(
    model: str | None, on_a_hub: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model").mkdir(parents=True)
    assert is_on_a_hub(model) == on_a_hub


def test_an_evaluation_from_python_shows_how_far_it_is(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    record = Run(runs / "small").evaluate(**{"evaluation.num_prompts": 2})
    assert record["n"] == 2
    assert "evaluating" in capsys.readouterr().err


def test_the_folder_is_beside_the_stages_unless_it_is_named(runs: Path) -> None:
    printed = relgrad("push", runs / "whole", "me/whole", "--dry-run")
    assert printed.strip() == str(runs / "whole/share/me--whole")
    assert "library_name: transformers" in (runs / "whole/share/me--whole/README.md").read_text()


def test_weights_that_score_otherwise_are_not_kept(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that loses the adapter is found by the run's own samples."""
    from relgrad.policies.autoregressive.policy import AutoregressivePolicy

    def forgets(self: AutoregressivePolicy, folder: Path) -> None:
        self.model.unload().save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    monkeypatch.setattr(AutoregressivePolicy, "merge", forgets)
    with pytest.raises(RelgradError, match=r"scores the run's own samples otherwise: by up to .* nats"):
        sharing.merge(str(runs / "small"), tmp_path / "wrong")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_shared_is_one_clear_error(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "the model has no adapter to merge" in refused("merge", runs / "whole", tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "holds something already" in refused("merge", runs / "small", tmp_path / "full")
    assert "an untrained recipe has nothing to share" in refused("push", "quick", "me/quick", "--dry-run")
    assert "no recipe" in refused("merge", "nowhere", tmp_path / "b")
    assert "a policy of kind fill_in has no adapter to merge" in refused("merge", "fill-quick", tmp_path / "c")
    for name in ("small", "me/a/b", "me/my policy!"):
        assert "user/name" in refused("push", runs / "small", name, "--dry-run", "--folder", tmp_path / "d")
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    said = refused("push", runs / "small", "me/small", "--folder", tmp_path / "packed")
    assert f"The folder {tmp_path / 'packed'} is complete" in said
    assert (tmp_path / "packed" / "README.md").is_file()
