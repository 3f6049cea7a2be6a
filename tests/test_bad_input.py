"""What goes wrong is one clear message and exit code 2, or it is counted and the run goes on."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import killed_run
from relgrad import checkpoint
from relgrad.cli import app
from relgrad.losses import PolicyLoss
from relgrad.optimizer import NonFinite
from relgrad.policies import autoregressive
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.sft import Sft, SftSettings
from relgrad.train import Grpo, GrpoSettings
from relgrad.types import Example, Prompt, RelgradError

RECIPE: dict[str, Any] = {
    "name": "r",
    "policy": {"kind": "autoregressive", "model": "tiny:32x1", "max_completion_length": 3},
    "task": {"kind": "digits", "length": 2, "train_size": 50, "held_out_size": 0},
    "rewards": [{"kind": "exact"}],
    "grpo": {"steps": 1, "num_prompts": 6, "num_generations": 2},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe that works, with its output beside it."""
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "out": str(tmp_path / "out")}))
    return path


@pytest.fixture(autouse=True)
def _quiet_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers that libraries made while an earlier test's output was captured write to a file that is closed by now."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


def refused(*arguments: object) -> str:
    """The message of a `relgrad` command that ends with exit code 2 and no traceback."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "400", "NO_COLOR": "1"})
    assert result.exit_code == 2, f"exit code {result.exit_code}: {result.output} {result.exception!r}"
    assert "Traceback" not in result.output
    assert "error: " in result.stderr
    return result.stderr.partition("error: ")[2].strip()


def finished(recipe: Path, *overrides: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figures and the completions of the first step of a run that reached its end."""
    result = CliRunner().invoke(app, ["run", str(recipe), *overrides])
    assert result.exit_code == 0, result.output
    (metrics,) = recipe.parent.glob("out/r/*/metrics.jsonl")
    samples = metrics.parent / "samples" / "step_000001.jsonl"
    return json.loads(metrics.read_text().splitlines()[0]), [json.loads(x) for x in samples.read_text().splitlines()]


# ---------------------------------------------------------------------- recipes and overrides


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grpo.num_generation=4", r"grpo\.num_generation: unknown key\. Did you mean 'num_generations'\? Known here: adam_"),
        ("polcy.model=x", r"polcy: unknown key\. Did you mean 'policy'\?"),
        ("policy.modle=x", r"policy \(kind 'autoregressive'\):\n  modle: unknown key\. Did you mean 'model'\?"),
        ("rewards.0.colum=x", r"rewards\.0 \(kind 'exact'\):\n  colum: unknown key\. Did you mean 'column'\?"),
        ("rewards.3.weight=2", r"override rewards\.3\.weight: rewards is a list of 1, so a number below that must follow, not '3'"),
        ("rewards.exact.weight=2", r"rewards is a list of 1.*not 'exact'"),
        ("seed.x.y=1", r"seed.*(plain value|valid integer)"),
        ("grpo.steps", r"override 'grpo\.steps': write key\.sub=value, for example grpo\.steps=50"),
        ("grpo.steps=[1", r"override 'grpo\.steps=\[1': the value is not valid YAML"),
        ("stages=[1]", r"(stages is a list of mappings|stages: unknown key)"),
        ("grpo.num_generations=1", r"num_generations=1: a group needs at least 2 completions to compare; 8 is usual"),
        ("grpo.learning_rate=0", r"grpo\.learning_rate: Input should be greater than 0 \(received 0\)"),
        ("grpo.loss_type=ppo", r"grpo\.loss_type: Input should be 'grpo', 'bnpo'.*\(received 'ppo'\)"),
        ("grpo.steps_per_generation=4", r"steps_per_generation=4 must divide num_prompts=6"),
        ("grpo.kl_estimator=exact", r"kl_estimator='exact' has no effect with beta=0: set beta, or drop it"),
        ("policy.top_p=0", r"top_p: Input should be greater than 0 \(received 0\)"),
        ("policy.temperature=0", r"temperature: Input should be greater than 0 \(received 0\)"),
        ("policy.kind=autoregresive", r"policies: unknown kind 'autoregresive'\. Known: .*Did you mean 'autoregressive'\?"),
        ("task.kind=digit", r"tasks: unknown kind 'digit'\. Known: .*Did you mean 'digits'\?"),
        ("rewards.0.kind=exakt", r"rewards: unknown kind 'exakt'\. Known: .*Did you mean 'exact'\?"),
        ("rewards.0.weight=0", r"rewards: every one has weight 0, so nothing would be scored; give one that counts"),
        ("rewards=[]", r"rewards is empty: a grpo stage needs at least one, for example `rewards: \[\{kind: exact\}\]`"),
        ("task.length=1", r"train_size \+ held_out_size = 50, but there are only 10 strings of 1 digits"),
        ("policy.model=./nowhere", r"model: no folder './nowhere' \(working directory /"),
        ("policy.model=/no/where.gguf", r"model: no GGUF file '/no/where\.gguf'"),
        ("policy.model=tiny:33x1", r"model 'tiny:33x1': write tiny:HIDDENxLAYERS with HIDDEN a multiple of 32"),
        ("policy.dtype=bfloat16", r"dtype='bfloat16' with full-parameter training.*Use dtype: float32, or.*lora"),
        ("policy.lora={target_modules: [nothing]}", r"lora\.target_modules=.*linear layers: down_proj"),
        ("rewards.0={kind: function, function: nothing.py:score}", r"rewards: no file 'nothing\.py' \(working directory"),
        ("rewards.0={kind: function, function: 'math:sqr'}", r"math has no 'sqr'\. Did you mean 'sqrt'\?"),
    ],
)  # fmt: skip
def test_wrong_setting(recipe: Path, override: str, message: str):
    assert re.search(message, refused("run", recipe, override), re.S)
    assert not list(recipe.parent.glob("out/*/*/metrics.jsonl"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"policy: [1, 2\nname: x", r"r\.yaml: not valid YAML: .*line 2"),
        (b"\xff\xfe", r"r\.yaml: not valid YAML: .*utf-8"),
        (b"", r"r\.yaml: a recipe is a mapping of settings, got NoneType"),
        (b"stages: 3", r"r\.yaml: stages is a list of mappings, one per stage \(received 3\)"),
        (b"stages: [sft]", r"stages is a list of mappings"),
        (b"policy: {model: x}\ntask: {kind: digits}", r"policy\.kind: missing; this key is required"),
    ],
)
def test_wrong_recipe_file(recipe: Path, text: bytes, message: str):
    recipe.write_bytes(text)
    assert re.search(message, refused("run", recipe), re.S)


def test_unknown_recipe_and_run(tmp_path: Path):
    assert re.search(r"no recipe 'quik': no such file .*built-in are .*quick", refused("run", "quik"))
    (tmp_path / "empty").mkdir()
    assert "neither a recipe nor a run folder (no recipe.yaml" in refused("evaluate", tmp_path / "empty")


def test_another_recipe_in_the_same_folder(recipe: Path):
    finished(recipe)
    message = refused("run", recipe, "grpo.learning_rate=0.5", "seed=3")
    assert re.search(
        r"out/r/1-grpo holds a run of another recipe \(grpo\.learning_rate: 1e-06 there, 0\.5 now; seed", message
    )
    assert "another name (name=...), or start over with --fresh" in message
    (folder,) = recipe.parent.glob("out/r/*")
    assert checkpoint.steps(folder / "checkpoints") == [1]
    assert CliRunner().invoke(app, ["run", str(recipe), "grpo.learning_rate=0.5", "--fresh"]).exit_code == 0


# ---------------------------------------------------------------------- models


def test_adapter_given_as_model(recipe: Path, tmp_path: Path):
    settings = autoregressive.Settings(model="tiny:32x1", lora=autoregressive.Lora(r=2, alpha=4))
    autoregressive.build(settings, seed=0).save(tmp_path / "adapter")
    message = refused("run", recipe, f"policy.model={tmp_path / 'adapter'}")
    assert re.search(
        r"is not a model folder: it holds an adapter; name its base model here and the adapter as `adapter`", message
    )


def test_folder_without_a_model(recipe: Path, tmp_path: Path):
    assert "is not a model folder: it holds no config.json" in refused("run", recipe, f"policy.model={tmp_path}")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_bitsandbytes_missing(recipe: Path):
    message = refused("run", recipe, "policy.quantize=4bit", "policy.lora={r: 2}")
    assert re.search(r"quantize='4bit' needs bitsandbytes: pip install 'relgrad\[qlora\]'", message)


def test_chat_without_a_template(recipe: Path):
    message = refused("run", recipe, "policy.chat=true")
    assert re.search(r"prompt \d+ is a chat, but model 'tiny:32x1' has no chat template: give plain text", message)


def test_prompt_longer_than_the_context(recipe: Path, tmp_path: Path):
    rows = [{"prompt": "short"}, {"prompt": "tale " * 110}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = f"task={{kind: file, path: {tmp_path / 'rows.jsonl'}, held_out_fraction: 0}}"
    message = refused("run", recipe, task, "policy.max_completion_length=7")
    assert re.search(
        r"prompt 1 has 550 tokens; with 7 for the completion.*context of 512\. Shorten.*begins 'tale tale", message
    )


# ---------------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"rows\.jsonl: the dataset is empty; a task needs at least one row"),
        (
            [{"promt": "1=", "answer": "1"}],
            r"no column 'prompt'; the columns are 'promt', 'answer' \(did you mean 'promt'\?\)",
        ),
        ([{"prompt": "1=", "anser": "1"}], r"exact.*no column 'answer'.*'anser'"),
        ([{"prompt": "", "answer": "1"}], r"rows\.jsonl, row 1: the prompt is empty text"),
        (
            [{"prompt": 7, "answer": "1"}],
            r"row 1: a prompt is text or a list of \{role, content\} messages, received 7",
        ),
    ],
)
def test_wrong_data(recipe: Path, tmp_path: Path, rows: list[dict[str, Any]], message: str):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = f"task={{kind: file, path: {tmp_path / 'rows.jsonl'}, held_out_fraction: 0}}"
    assert re.search(message, refused("run", recipe, task))


def test_supervised_training_without_the_column(recipe: Path):
    message = refused("run", recipe, "stage=sft", "sft={completion_column: solution}")
    assert re.search(r"sft: prompt 0 has no text column 'solution'; it has answer, completion\. Set sft", message)


def test_no_held_out_prompts(recipe: Path):
    """A run goes without evaluation; commands that need such prompts say so."""
    finished(recipe)
    (folder,) = recipe.parent.glob("out/r/*")
    assert not (folder / "evaluations.jsonl").exists()
    assert "no prompts to evaluate on; give the task a held-out split" in refused("evaluate", folder)
    assert "the task holds out no prompts to sample for; give your own with --prompt" in refused("sample", folder)


# ---------------------------------------------------------------------- rewards that fail


def with_reward(recipe: Path, body: str) -> list[str]:
    """Overrides that make `body` the reward of every group; `odd` says whether the prompt's number is odd."""
    file = recipe.with_name("my_reward.py")
    code = "\n    ".join(["def score(prompts, completions):", "odd = int(prompts[0][:-1]) % 2", *body.splitlines()])
    file.write_text(f"import math, time\n\n{code}\n")
    return [f"rewards=[{{kind: function, function: '{file}:score', name: score}}]", "grpo.reward_timeout=0.5"]


FAILURES = {
    "raises": ("raise KeyError('lost')", r"score: KeyError: 'lost' \(my_reward\.py:\d+ in score\)"),
    "hangs": ("time.sleep(2)", r"score: no answer within 0\.5 s"),
    "nan": ("return [math.nan for _ in completions]", "score: returned nan"),
    "infinite": ("return [math.inf for _ in completions]", "score: returned inf"),
    "none": ("return [None for _ in completions]", "score: returned None"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_reward_fails_for_some(recipe: Path, name: str):
    """Counted, explained, never taken for 0; the run goes on."""
    failure, why = FAILURES[name]
    overrides = with_reward(
        recipe, f"if odd: {failure}\nreturn [float(ord(text[0])) if text else 1.0 for text in completions]"
    )
    metrics, samples = finished(recipe, *overrides)
    odd = [int(s["prompt"][:-1]) % 2 for s in samples]
    assert 0 < sum(odd) < len(odd) == 12
    assert metrics["rewards/unscored"] == pytest.approx(sum(odd) / len(odd))
    for sample, failed in zip(samples, odd, strict=True):
        assert (sample["reward"] is None) == bool(failed)
        assert bool(re.fullmatch(why, sample["why"])) == bool(failed)
        assert sample["advantage"] == 0 or not failed
    scored = [s["reward"] for s in samples if s["reward"] is not None]
    assert metrics["reward"] == pytest.approx(sum(scored) / len(scored))


@pytest.mark.parametrize("name", FAILURES)
def test_reward_fails_for_all(recipe: Path, name: str):
    failure, why = FAILURES[name]
    overrides = ["grpo.num_prompts=2", *with_reward(recipe, failure)]
    assert re.search(f"none of 4 completions could be scored; the first: {why}", refused("run", recipe, *overrides))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1.0]", r"reward 'score' returned 1 values for 2 completions; return exactly one each"),
        ("return 1.0", r"reward 'score' returned float 1\.0; expected a list of 2 numbers"),
        (
            "return ['good' for _ in completions]",
            r"reward 'score' returned str 'good' for a completion; return a number or None",
        ),
    ],
)
def test_reward_of_another_shape(recipe: Path, body: str, message: str):
    assert re.search(message, refused("run", recipe, *with_reward(recipe, body)))


# ---------------------------------------------------------------------- numbers that are not finite


PROMPTS = tuple(Prompt(f"{n}=", {"answer": str(n)}, n) for n in range(4))


def code_points(completions: list[str], **columns: Any) -> list[float]:
    return [float(sum(map(ord, text))) for text in completions]


def small_loop(loss: Callable[..., Any] | None = None, **settings: Any) -> Grpo:
    chosen = autoregressive.Settings(model="tiny:32x1", max_completion_length=3)
    rewards = RewardSet([NamedReward("sum", code_points)], 60)
    grpo = GrpoSettings(num_prompts=2, num_generations=4, learning_rate=0.01, **settings)
    return Grpo(autoregressive.build(chosen, seed=0), PROMPTS, rewards, loss or PolicyLoss(), grpo)


def supervised_loop() -> Sft:
    chosen = autoregressive.Settings(model="tiny:32x1", max_completion_length=3)
    settings = SftSettings(batch_size=4, learning_rate=0.01)
    return Sft(autoregressive.build(chosen, seed=0), [Example(p, p.columns["answer"]) for p in PROMPTS], settings)


@contextmanager
def weights_unchanged(loop: Any) -> Iterator[None]:
    before = {n: p.detach().clone() for n, p in loop.optimizer.parameters.items()}
    yield
    assert loop.step == 1
    for name, parameter in loop.optimizer.parameters.items():
        assert torch.equal(parameter, before[name]), f"{name} has changed"


class BrokenLoss(PolicyLoss):
    """From the second step on, NaN."""

    def __call__(self, terms: Any) -> Any:
        loss, metrics = super().__call__(terms)
        return loss * math.nan, metrics


@pytest.mark.parametrize("build", [small_loop, supervised_loop])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradient_not_finite(build: Callable[[], Any], value: float):
    loop = build()
    loop.update()
    name = "model.layers.0.mlp.up_proj.weight"

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        poisoned = gradient.clone()
        poisoned[0, :3] = value
        return poisoned

    loop.optimizer.parameters[name].register_hook(poison)
    with weights_unchanged(loop), pytest.raises(NonFinite) as caught:
        loop.update()
    message = str(caught.value)
    assert message.startswith(
        f"step 2: the gradient of {name} is not finite (3 of 3072 entries). The step was not taken"
    )


def test_loss_not_finite():
    loop = small_loop()
    loop.update()
    loop.loss = BrokenLoss()
    with weights_unchanged(loop), pytest.raises(NonFinite, match=r"step 2: the loss is not finite \(1 of 1 entries\)"):
        loop.update()


def test_supervised_loss_not_finite():
    loop = supervised_loop()
    loop.update()
    broken = loop.optimizer.parameters["lm_head.weight"]
    broken.data[5] = math.nan
    with pytest.raises(NonFinite, match=r"step 2: the loss is not finite"):
        loop.update()
    assert loop.step == 1


def test_run_with_a_loss_that_explodes(recipe: Path):
    message = refused("run", recipe, "stage=sft", "sft={steps: 5, learning_rate: 1e20}", "rewards=[]")
    assert re.search(r"step \d: the (loss|gradient of .*) is not finite.*Lower the learning rate", message)


# ---------------------------------------------------------------------- a full disk


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [1_000, 100_000], ids=["weights", "optimizer"])
def test_disk_full_while_saving(tmp_path: Path, size: int):
    loop = small_loop()
    loop.update()
    with (
        largest_file(size),
        pytest.raises(RelgradError, match=r"step 1 could not be written.*there is no earlier one\. Free"),
    ):
        checkpoint.save(tmp_path, loop, loop.policy)
    first = checkpoint.save(tmp_path, loop, loop.policy)
    loop.update()
    with (
        largest_file(size),
        pytest.raises(RelgradError, match=r"step 2 could not.*newest complete one is step 1\. Free"),
    ):
        checkpoint.save(tmp_path, loop, loop.policy)
    assert [p.name for p in tmp_path.iterdir()] == [first.name]
    again = small_loop()
    checkpoint.restore(first, again, again.policy)
    again.update()
    for (name, ours), (_, theirs) in zip(again.policy.parameters(), loop.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs), f"{name} differs"


FILLS_THE_DISK = """
import resource
from pathlib import Path

def score(completions, trainer_state):
    if trainer_state.global_step >= 2 and Path(__file__).with_name("full").exists():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    return [float(sum(map(ord, text))) for text in completions]
"""


def test_disk_full_in_a_run(recipe: Path, tmp_path: Path):
    """Exit code 2 after the third step; with space again, the run goes on from the second to the very same weights."""
    reward, log = tmp_path / "my_reward.py", tmp_path / "log"
    reward.write_text(FILLS_THE_DISK)
    arguments = ["run", str(recipe), f"rewards=[{{kind: function, function: '{reward}:score'}}]", "grpo.steps=4",
                 "grpo.learning_rate=0.01", "checkpoint.every=1"]  # fmt: skip

    def run(out: Path) -> int | None:
        process = killed_run.start([*arguments, f"out={out}"], log, out)
        process.join(300)
        return process.exitcode

    assert run(tmp_path / "whole") == 0
    (tmp_path / "full").touch()
    out = tmp_path / "out"
    assert run(out) == 2
    assert re.search(
        r"error: checkpoint of step 3 could not be written.*complete one is step 2\. Free some space", log.read_text()
    )
    assert "Traceback" not in log.read_text()
    assert checkpoint.steps(out / "r" / "1-grpo" / "checkpoints") == [1, 2]
    (tmp_path / "full").unlink()
    assert run(out) == 0
    assert "resumed after step 2" in log.read_text()
    weights = "r/1-grpo/checkpoints/step_000004/model.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
