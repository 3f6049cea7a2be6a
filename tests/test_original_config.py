"""A Python configuration file of the diffusion-GPT trainer is a recipe: parsed, translated, never run; and its command line."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from commands import relgrad
from relgrad.commands.original_flags import as_overrides
from relgrad.core.errors import RelgradError
from relgrad.runs.recipe import load_recipe

FILE = """
'''Settings of a GRPO run.'''
import os
generator_checkpoint = 'out/generator.pt'   # what is trained
judge_checkpoint = 'out/judge.pt'
reference_checkpoint = None
group_size = 8
kl_beta: float = 0.1
temperature = 0.8
learning_rate = 1e-5
min_lr = 1e-6
max_iters = 300
lr_decay_iters = 200
batch_size = 2
gradient_accumulation_steps = 4
dataset = 'plays'
block_size = 64
enable_line_aligned_sequences = True
composition_config = None
unmasking_stages = [{'type': 'sticky', 'target_masked_ratio': 0.6, 'val_loss_stale_count': 8}, {'type': 'span', 'spans_count': 5}]
wandb_log = False
save_interval = 100
compile = True
time_stamp = os.environ.get('NOW')
open('was-run', 'w').write('x')
if composition_config is not None:
    group_size = 99
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_grpo.py").write_text(FILE, encoding="utf-8")
    return Path("my_grpo.py")


def test_its_plain_assignments_are_a_recipe(config: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        recipe = load_recipe(config, ["group_size=16"])
    assert not Path("was-run").exists()
    (stage,) = recipe.stages
    assert (recipe.name, stage.stage, stage.policy.kind, stage.task.kind) == (
        "my_grpo",
        "grpo",
        "fill_in",
        "masked_text",
    )
    text = "data/plays/input.txt"
    assert stage.policy.options == {
        "text": text,
        "block_size": 64,
        "checkpoint": "out/generator.pt",
        "temperature": 0.8,
    }
    masks = [{"type": "sticky", "target_masked_ratio": 0.6, "bert": True}, {"type": "span", "spans_count": 5}]
    assert stage.task.options == {"text": text, "length": 64, "aligned": "line", "stages": masks}
    assert [(r.kind, r.options) for r in stage.rewards] == [("judge", {"judges": ["out/judge.pt"]})]
    grpo = stage.grpo
    assert (grpo.num_generations, grpo.beta, grpo.num_prompts, grpo.steps) == (16, 0.1, 8, 300)
    assert (grpo.lr_scheduler_type, grpo.learning_rate, grpo.min_lr, grpo.decay_steps) == ("cosine", 1e-5, 1e-6, 200)
    assert (stage.checkpoint.every, stage.trackers) == (100, ())
    assert caplog.messages == ["my_grpo.py: left out, since they change nothing that is trained: compile"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("group_sise = 8", r"group_sise=8 is not understood\. Did you mean 'group_size'"),
        ("learning_rate = 1 / 10", r"line 28: learning_rate is computed, and the file is not run"),
        ("batch_size = 8\nbatch_size *= 2", r"line 29: batch_size is computed"),
        ("group_size, kl_beta = 8, 0.1", r"line 28: (group_size|kl_beta) is computed"),
        ("reference_checkpoint = 'x.pt'", "reference_checkpoint='x.pt': the reference is the policy as it starts"),
        ("unmasking_stages = 'all'", r"unmasking_stages: masks are a list of mappings \(received 'all'\)"),
        ("group_size = = 8", r"my_grpo\.py: not a Python file: invalid syntax"),
        ("batch_size = 'two'", "gradient_accumulation_steps=4 is understood beside one batch_size"),
    ],
)
def test_what_it_cannot_mean(config: Path, line: str, message: str):
    config.write_text(FILE + line + "\n", encoding="utf-8")
    with pytest.raises(RelgradError, match=message):
        load_recipe(config)


def test_a_file_of_something_else(config: Path):
    config.write_text("CONFIG = {'group_size': 4}\nlearning_rate = 1e-3\n", encoding="utf-8")
    with pytest.raises(
        RelgradError, match=r"no plain assignment of group_size, kl_beta, .* `relgrad run fill group_size=16`"
    ):
        load_recipe(config)


def test_settings_written_as_its_command_line_has_them():
    options = ["--fresh", "--dry-run", "--processes", "-n", "--seed"]
    given = [
        "r",
        "--group_size=16",
        "--grpo.beta=0.1",
        "a=b",
        "--fresh",
        "--seed=3",
        "--proceses=2",
        "--text-x=1",
        "--",
        "--k=v",
    ]
    expected = [
        "r",
        "group_size=16",
        "grpo.beta=0.1",
        "a=b",
        "--fresh",
        "--seed=3",
        "--proceses=2",
        "--text-x=1",
        "--",
        "--k=v",
    ]
    assert as_overrides(given, options) == expected


def test_the_command_line_takes_both(config: Path):
    shown = relgrad("run", "quick", "--dry-run", "--group_size=8", "grpo.steps=7")
    assert "num_generations: 8" in shown
    assert "steps: 7" in shown
