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

import fill_text
import forked
from relgrad.commands.cli import app
from relgrad.core.errors import RelgradError
from relgrad.core.types import Example, Prompt
from relgrad.judges.network import Judge
from relgrad.networks.diffusion_gpt.network import GPT, GPTConfig
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies import autoregressive
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.text.vocabulary import Vocabulary
from relgrad.training import checkpoint
from relgrad.training.grpo import Grpo, GrpoSettings
from relgrad.training.optimizer import NonFinite
from relgrad.training.sft import Sft, SftSettings

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
        ("grpo.steps=[1", r"override 'grpo\.steps=\[1': not valid YAML"),
        ("name=2024-13-01", r"override 'name=2024-13-01': not valid YAML: month must be in 1\.\.12"),
        ("task={kind: file, path: 2024}", r"path: Input is not a valid path .*\(received 2024\); .*put the text in quotes"),
        ("task={kind: file, path: rows.jsonl, template: {prompt}}", r"template: .*valid string; YAML reads braces .*quotes"),
        ("policy.eos_token_ids=[1000]", r"policy\.eos_token_ids: model 'tiny:32x1' cannot write id 1000; it has 0 to 96"),
        ("policy.eos_token_ids=[-1]", r"cannot write id -1"),
        ("name=2024-12-01", r"name: Input should be a valid string .*put the text in quotes"),
        (f"grpo.steps={'1' * 5000}", r"override 'grpo\.steps=1{69}': not valid YAML: Exceeds the limit"),
        ("grpo.steps=" + "[" * 2000, r"not valid YAML: maximum recursion depth"),
        (f"rewards.{'1' * 5000}.weight=1", r"rewards is a list of 1, so a number below that must follow"),
        ("rewards.².weight=1", r"rewards is a list of 1, so a number below that must follow, not '²'"),
        ('policy.model="half \\ud83d"', r"not valid YAML: half a character, '\\ud83d', after 5 others"),
        ("policy.model=\udcff", r"not valid YAML: unacceptable character #xdcff"),
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
        ("task.length=1", r"train_size \+ held_out_size \+ test_size = 50, but there are only 10 strings of 1 digits"),
        ("policy.model=./nowhere", r"model: no folder './nowhere' \(working directory /"),
        (f"policy.model=tiny:{'1' * 5000}x1", r"tiny:1{5000}x1'"),
        ("policy.model=/no/where.gguf", r"model: no GGUF file '/no/where\.gguf'"),
        ("policy.model=tiny:33x1", r"model 'tiny:33x1': write tiny:HIDDENxLAYERS with HIDDEN a multiple of 16"),
        ("policy.dtype=bfloat16", r"dtype='bfloat16' with full-parameter training.*Use dtype: float32, or.*lora"),
        ("policy.lora={target_modules: [nothing]}", r"lora\.target_modules=.*linear layers: down_proj"),
        ("rewards.0={kind: function, function: nothing.py:score}", r"rewards: no file 'nothing\.py' \(working directory"),
        ("rewards.0={kind: function, function: 'math:sqr'}", r"math has no 'sqr'\. Did you mean 'sqrt'\?"),
    ],
    ids=lambda text: text[:60],
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


def test_a_recipe_that_failed_at_its_start_is_mended_and_started_again(recipe: Path):
    """Nothing was saved yet, so nothing is asked."""
    refused("run", recipe, "stage=sft", "sft={completion_column: solution}")
    overrides = ["stage=sft", "sft={completion_column: completion, steps: 1}"]
    result = CliRunner().invoke(app, ["run", str(recipe), *overrides])
    assert result.exit_code == 0, result.output
    (folder,) = recipe.parent.glob("out/r/*")
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["sft"]["completion_column"] == "completion"


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
    assert re.search(r"prompt 0 has no text column 'solution'; it has answer, completion\. Set sft", message)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (("5", "half \ud83d"), r"--prompt number 2 has half a character, '\\ud83d', after 5 others"),
        (("\udcff",), r"--prompt number 1 has half a character"),
        (("",), r"--prompt number 1: the prompt is empty text"),
    ],
)
def test_a_prompt_that_is_none(recipe: Path, tmp_path: Path, prompts: tuple[str, ...], message: str):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "1"}\n')
    task = f"task={{kind: file, path: {tmp_path / 'rows.jsonl'}, held_out_fraction: 0}}"
    assert re.search(message, refused("sample", recipe, task, *(f"--prompt={text}" for text in prompts)))


def test_no_held_out_prompts(recipe: Path):
    """A run goes without evaluation; commands that need such prompts say so."""
    finished(recipe)
    (folder,) = recipe.parent.glob("out/r/*")
    assert not (folder / "evaluations.jsonl").exists()
    assert "no prompts to evaluate on; give the task at least one validation or test prompt" in refused(
        "evaluate", folder
    )
    assert "the task has no test prompts to sample for; give your own with --prompt" in refused("sample", folder)


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


# ---------------------------------------------------------------------- masked text, its judges and its files


@pytest.fixture
def fill(tmp_path: Path) -> Path:
    """A fill-in recipe that works, with its text and its output beside it."""
    text = str(fill_text.write(tmp_path / "text.txt", lines=60))
    recipe = {
        "name": "r",
        "out": str(tmp_path / "out"),
        "policy": {"kind": "fill_in", "text": text, "block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16},
        "task": {"kind": "masked_text", "text": text, "length": 16, "aligned": "window", "held_out_size": 8},
        "rewards": [{"kind": "hidden"}],
        "grpo": {"steps": 1, "num_prompts": 2, "num_generations": 4},
        "evaluation": {"num_prompts": 2},
    }
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def judge(recipe: Path, folder: Path, text: Path | None = None, **audit: float) -> str:
    """The override that lets an untrained judge with this audit reward; it knows the recipe's text, or another."""
    vocabulary = Vocabulary.of_text((text or recipe.with_name("text.txt")).read_text())
    config = GPTConfig(
        vocab_size=vocabulary.size, block_size=16, n_layer=1, n_head=2, n_embd=16, mode="token_classifier", marks=True
    )
    made = Judge(GPT(config), vocabulary)
    made.audit = audit
    made.save(folder)
    return f"rewards=[{{kind: judge, judges: [{folder}]}}]"


def test_the_fill_in_recipe_works(fill: Path, tmp_path: Path):
    metrics, samples = finished(fill, judge(fill, tmp_path / "judge", within_group_correlation=0.3))
    assert metrics["rewards/unscored"] == 0
    assert len(samples) == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.temperature=0", r"policy \(kind 'fill_in'\):\n  temperature: Input should be greater than 0 \(received 0\)"),
        ("policy.top_p=0", r"policy \(kind 'fill_in'\):\n  top_p: Input should be greater than 0 \(received 0\)"),
        ("policy.top_p=1.5", r"top_p: Input should be less than or equal to 1 \(received 1\.5\)"),
        ("policy.n_head=3", r"policy: n_embd=16 over n_head=3: every head needs the same, even number of dimensions"),
        ("policy.dtype=float16", r"dtype: Input should be 'float32' or 'bfloat16' \(received 'float16'\)"),
        ("policy.n_emb=8", r"n_emb: unknown key\. Did you mean 'n_embd'\?"),
        ("policy.checkpoint=nowhere", r"nowhere: no config\.json; give a folder with a diffusion GPT"),
        ("task.stages=[{type: rndom}]", r"'rndom'.*'random', 'sticky', 'span', 'line'"),
        ("task.stages=[{type: random, max_ratio: 0.2}]", r"stages\.0\.random\.max_ratio: unknown key"),
        ("task.stages=[]", r"stages: .*at least 1 item.*\(received \[\]\)"),
        ("task.length=2", r"length: Input should be greater than or equal to 4 \(received 2\)"),
        ("task.length=32", r"prompt 0 has 32 ids, more than policy\.block_size=16"),
        ("task.symbols=nowhere", r"symbols='nowhere': \"char\", \"byte\", or the path of a tokenizer\.json"),
        ("task.symbols=byte", r"prompt 0 was made with another vocabulary .*Use the same `text` and `symbols` for both"),
        ("task.held_out_size=-1", r"held_out_size: Input should be greater than or equal to 0 \(received -1\)"),
        ("task={kind: masked_stream, path: nix, timeout: 0.2}", r"waited 0 s for nix/stream\.json.*: `relgrad prepare --out nix "),
        ("rewards=[{kind: judge, judges: ['stage:nosuch']}]", r"stage:nosuch: .*no such stage before 1-grpo; there are none\."),
        ("rewards=[{kind: judge, judges: []}]", r"rewards\.0 \(kind 'judge'\):\n  judges: .*at least 1 item.*received \[\]"),
        ("rewards=[{kind: judge, judges: [nowhere]}]", r"nowhere: no judge\.json; give the folder of a judge stage.*stage:LABEL"),
        ("stage=judge", r"judge is missing: a judge stage needs to know which, for example `judge: \{kind: refill\}`"),
        ("grpo.sft_coef=0.1", r"prompt \d+ has no text column 'completion'; it has .*truth, .*Set grpo\.sft_column"),
        ("grpo={sft_coef: 0.1, sft_column: tuth}", r"prompt \d+ has no text column 'tuth'; it has .*truth, .*Set grpo\.sft_column"),
        ("grpo.credit=token", r"grpo\.credit: Input should be 'row' or 'decision' \(received 'token'\)"),
        ("grpo={credit: decision, beta: 0.1, kl_estimator: k1}", r"credit='decision' with kl_estimator='k1'.*use exact, k2 or k3"),
        ("grpo.group_size=1", r"num_generations=1: a group needs at least 2"),
    ],
)  # fmt: skip
def test_wrong_fill_in_setting(fill: Path, override: str, message: str):
    assert re.search(message, refused("run", fill, override), re.S)
    assert not list(fill.parent.glob("out/*/*/metrics.jsonl"))


@pytest.mark.parametrize(
    "given",
    [
        ("group_size=4", "grpo.num_generations=4"),
        ("grpo.group_size=4", "grpo.num_generations=8"),
        ("kl_beta=0", "grpo.beta=0"),
        ("temperature=0.9", "policy.temperature=0.8"),
    ],
)
def test_a_setting_under_two_names(fill: Path, given: tuple[str, str]):
    one, other = (text.partition("=")[0] for text in given)
    assert f"{one} and {other} are two names of one setting; give one of them" in refused("run", fill, *given)


def test_a_setting_under_two_names_in_the_file(fill: Path):
    recipe = yaml.safe_load(fill.read_text())
    fill.write_text(yaml.safe_dump({**recipe, "group_size": 4}))
    message = refused("run", fill)
    assert re.search(r"r\.yaml: .*num_generations.* two names of one setting; give one of them", message)
    assert "group_size" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"text='.*other\.txt': no such file \(working directory /.*\); or use 'builtin'"),
        ("Größe".encode("latin1"), r"other\.txt, line 1: not UTF-8 text \(.*0xf6 in position 2.*\); convert it"),
        (b" \n", r"other\.txt: no text in it \(2 characters\)"),
        (b"a window is longer", r"shorter than one window: .*length=16\. Lower task\.length or give a longer text"),
        ("masks look like █ here".encode(), r"the text holds '█' at 16, which shows masked positions: replace it"),
    ],
)
def test_a_text_that_cannot_be_used(fill: Path, content: bytes | None, message: str):
    other = fill.with_name("other.txt")
    if content is not None:
        other.write_bytes(content)
    assert re.search(message, refused("run", fill, f"task.text={other}", f"policy.text={other}"))


@pytest.mark.parametrize("section", ["task", "policy"])
def test_another_text_than_the_vocabulary_is_of(fill: Path, section: str):
    other = fill.with_name("other.txt")
    other.write_text(fill.with_name("text.txt").read_text().upper())
    message = refused("run", fill, f"{section}.text={other}")
    own = [Vocabulary.of_text(f.read_text()).fingerprint for f in (fill.with_name("text.txt"), other)]
    assert all(fingerprint in message for fingerprint in own)
    assert "another vocabulary" in message
    assert "Use the same `text` and `symbols` for both" in message


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("Größe ███", r"3 characters are not in the vocabulary of \d+: 'G' \(U\+0047\) 'ß' \(U\+00DF\) 'ö' \(U\+00F6\); the first"),
        ("the dog", r"no masked position: 'the dog'\. Write █ for every position to fill in"),
        ("a dog and a cat ███", r"prompt 0 has 19 ids, more than policy\.block_size=16"),
    ],
)  # fmt: skip
def test_wrong_prompt_of_ones_own(fill: Path, prompt: str, message: str):
    assert re.search(message, refused("sample", fill, "--prompt", prompt.replace("and", "old")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", 0), r"Invalid value for '--steps': .*greater than or equal to 1"),
        (("--remask", "critic"), r"remask=critic, but this network has no critic head\. Train one with policy\.critic_weight"),
        (("--remask", "best"), r"remask: Input should be 'confidence', 'critic' or 'random' \(received 'best'\)"),
        (("--schedule", "0.5,x"), r"--schedule 0\.5,x: give linear, or shares like 0\.8,0\.4,0\.1"),
        (("--length", 4, "--prompt", "█"), r"--length and --prompt both say what is written for: give one of them"),
        (("--steps", 2, "--save"), r"r\.yaml is a recipe; films are kept in a run's folder"),
    ],
)  # fmt: skip
def test_wrong_options_of_sample(fill: Path, options: tuple[object, ...], message: str):
    result = CliRunner().invoke(app, ["sample", str(fill), *map(str, options)], env={"COLUMNS": "400", "NO_COLOR": "1"})
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert re.search(message, result.stderr)


def test_several_steps_of_a_policy_that_writes_in_one_go(recipe: Path):
    message = refused("sample", recipe, "--steps", 4)
    assert re.search(
        r"kind 'autoregressive' does not write in several steps; kinds that do: .*fill_in.*Leave --animate", message
    )


def test_supervised_fill_in_without_the_column(fill: Path):
    message = refused("run", fill, "stage=sft", "sft.completion_column=text")
    assert re.search(r"prompt \d+ has no text column 'text'; it has .*truth.* Set sft\.completion_column", message)
    assert "no text column 'completion'" in refused("run", fill, "stage=sft")


# ---------------------------------------------------------------------- judges that may not reward


def test_judge_without_an_audit(fill: Path, tmp_path: Path):
    message = refused("run", fill, judge(fill, tmp_path / "judge"))
    assert re.search(
        r"judge .*/judge was never audited\. Train it in a stage of kind judge.*or run `relgrad audit", message
    )
    assert "require_audit: false trusts it blindly" in message


@pytest.mark.parametrize("found", [0.1, -0.3, math.nan])
def test_judge_below_the_bar(fill: Path, tmp_path: Path, found: float):
    message = refused("run", fill, judge(fill, tmp_path / "judge", within_group_correlation=found))
    assert re.search(
        rf"judge .*/judge may not reward: .*by {found:.3f} \[nan, nan\], min_within_group asks for 0\.25\. Train",
        message,
    )


def test_judge_of_another_vocabulary(fill: Path, tmp_path: Path):
    other = tmp_path / "other.txt"
    other.write_text("Another text, with other letters.")
    override = judge(fill, tmp_path / "judge", other, within_group_correlation=0.5)
    message = refused("run", fill, override)
    assert re.search(r"judge .*/judge was trained with another vocabulary \(char vocabulary of \d+", message)
    own = Vocabulary.of_text(fill.with_name("text.txt").read_text()).fingerprint
    assert f"than that of the task ({own}). Train the judge on text of this task" in message
    assert not list(tmp_path.glob("out/*/*/metrics.jsonl"))
    finished(fill)
    message = refused("audit", tmp_path / "judge", "--generator", tmp_path / "out" / "r")
    assert re.search(rf"was made with another vocabulary \({own}\) than this one: char vocabulary", message)


def test_audit_with_a_policy_that_fills_in_nothing(fill: Path, recipe: Path, tmp_path: Path):
    judge(fill, tmp_path / "judge")
    message = refused("audit", tmp_path / "judge", "--generator", recipe)
    assert "judge kind 'refill' judges a fill_in policy, not AutoregressivePolicy" in message


def test_two_judges_of_different_vocabularies(fill: Path, tmp_path: Path):
    other = tmp_path / "other.txt"
    other.write_text("Another text, with other letters.")
    judge(fill, tmp_path / "one", within_group_correlation=0.5)
    judge(fill, tmp_path / "two", other, within_group_correlation=0.5)
    reward = f"{{kind: judge, judges: [{tmp_path / 'one'}, {tmp_path / 'two'}]}}"
    assert re.search(r"judge .*/two was made with another vocabulary", refused("run", fill, f"rewards=[{reward}]"))


def test_a_stage_that_is_not_there_is_missed_before_anything_is_trained(fill: Path):
    stages = "[{stage: sft, sft: {steps: 1, completion_column: truth}}, {stage: grpo}]"
    recipe = yaml.safe_load(fill.read_text())
    recipe["rewards"] = [{"kind": "judge", "judges": ["stage:judge"]}]
    fill.write_text(yaml.safe_dump({**recipe, "stages": yaml.safe_load(stages)}))
    message = refused("run", fill)
    assert re.search(r"stage:judge: the recipe has no such stage before 1-sft", message)
    recipe["rewards"] = []
    stages = stages.replace("{stage: grpo}", "{stage: grpo, rewards: [{kind: judge, judges: ['stage:watcher']}]}")
    fill.write_text(yaml.safe_dump({**recipe, "stages": yaml.safe_load(stages)}))
    assert "stage:watcher: the recipe has no such stage before 2-grpo; there are sft" in refused("run", fill)
    assert not (fill.parent / "out").exists()


@pytest.mark.parametrize("size", [0, 7])
def test_judge_stage_without_enough_to_audit_on(fill: Path, size: int):
    """Said before the judge is trained."""
    message = refused("run", fill, "stage=judge", "judge={kind: refill}", f"task.held_out_size={size}")
    assert re.search(
        rf"an audit needs at least 8 held-out prompts, the task has {size}: raise task\.held_out_size", message
    )
    assert not list(fill.parent.glob("out/*/*/metrics.jsonl"))


@pytest.mark.parametrize("size", [8, 17])
def test_judge_stage_with_just_enough(fill: Path, size: int):
    """Half of the prompts calibrate, half examine, however few they are."""
    audit = f"judge={{kind: refill, audit_prompts: {size}, audit_generations: 2}}"
    arguments = ["run", fill, "stage=judge", audit, f"task.held_out_size={size}", "sft.steps=1", "rewards=[]"]
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    assert json.loads(next(fill.parent.glob("out/*/*/audit.json")).read_text())["prompts"] == (size + 1) // 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("judge={kind: refil}", r"judges: unknown kind 'refil'\. Known: .*refill.*Did you mean 'refill'\?"),
        (
            "judge={kind: refill, head: word}",
            r"judge \(kind 'refill'\):\n  head: Input should be 'positions' or 'sequence'",
        ),
        ("judge={kind: refill, n_head: 3}", r"judge: n_embd=16 over n_head=3: every head needs the same, even number"),
        (
            "judge={kind: refill, n_embd: 32}",
            r"judge\.init: generator needs the generator's sizes.*use init: random, or leave",
        ),
    ],
)
def test_wrong_judge_setting(fill: Path, override: str, message: str):
    assert re.search(message, refused("run", fill, "stage=judge", override), re.S)


def test_a_judge_stage_has_no_policy(fill: Path):
    override = "judge={kind: refill, audit_prompts: 8, audit_generations: 2}"
    assert CliRunner().invoke(app, ["run", str(fill), "stage=judge", override, "sft.steps=1"]).exit_code == 0
    stage = next(fill.parent.glob("out/r/*"))
    for command in ("sample", "evaluate"):
        assert re.search(
            r"1-judge: a judge stage, which trains no policy; give the folder of a stage that does",
            refused(command, stage),
        )


# ---------------------------------------------------------------------- files that are broken or would run code


class Code:
    """What a pickle that wants to run something looks like."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("nested", [False, True])
def test_a_file_that_runs_code_when_loaded(fill: Path, tmp_path: Path, nested: bool):
    file, proof = tmp_path / "evil.pt", tmp_path / "it-ran"
    torch.save({"model": Code(proof), "model_args": {}, "x": [Code(proof)]} if nested else Code(proof), file)
    finished(fill)
    for command in (
        ("run", fill, f"policy.checkpoint={file}", "name=other"),
        ("run", fill, f"rewards=[{{kind: judge, judges: [{file}], require_audit: false}}]", "name=other"),
        ("audit", file, "--generator", tmp_path / "out" / "r", "--out", tmp_path / "audited"),
        ("inspect-batch", file),
    ):
        message = refused(*command)
        assert re.search(r"evil\.pt: refused, because loading it would run pathlib\.\S*\. Only tensors", message)
    assert not proof.exists()
    torch.load(file, weights_only=False)
    assert proof.exists(), "the file is harmless, so this test shows nothing"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[: len(data) // 2], r"batch\.pt: cut off \(\d+ bytes\).*the end of the archive is missing\. Copy"),
        (lambda data: b"", r"batch\.pt: cut off \(0 bytes.*Copy it again"),
        (lambda data: b"hello", r"batch\.pt is a text file\. inspect-batch shows a recipe.*text=.*batch\.pt"),
        (lambda data: b"I said: a fox lived at the edge of a wood", r"batch\.pt is a text file"),
        (lambda data: "Köln, 中文 😀\n".encode() * 1000, r"batch\.pt is a text file"),
        (lambda data: "Invité à la forêt".encode("latin-1"), r"batch\.pt is a text file"),
        (lambda data: b"\x89PNG\r\n\x1a\n\0\0", r"batch\.pt: not a file of tensors"),
        (lambda data: data, r"batch\.pt.*: no input and target, or x and y, or input_ids and targets in it; it has z"),
    ],
    ids=["half", "empty", "text", "text-like-a-pickle", "much-text", "latin-text", "picture", "other-tensors"],
)  # fmt: skip
def test_broken_batch_file(tmp_path: Path, change: Callable[[bytes], bytes], message: str):
    file = tmp_path / "batch.pt"
    torch.save({"z": torch.arange(1000)}, file)
    file.write_bytes(change(file.read_bytes()))
    assert re.search(message, refused("inspect-batch", file))


@pytest.mark.parametrize("content", [None, b"hello"], ids=["half", "text"])
def test_broken_file_of_a_stream(fill: Path, tmp_path: Path, content: bytes | None):
    data = tmp_path / "data"
    text = fill.with_name("text.txt")
    options = ["--text", str(text), "--files", "2", "--samples-per-file", "8", "length=16", "held_out_size=4"]
    result = CliRunner().invoke(app, ["prepare", "--out", str(data), *options])
    assert result.exit_code == 0, result.output
    first = data / "train" / "000000.safetensors"
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2] if content is None else content)
    message = refused("run", fill, f"task={{kind: masked_stream, path: {data}}}")
    assert re.search(
        r"000000\.safetensors: not a file of masked samples, or cut off.*`relgrad prepare --out .*data`", message
    )
    first.unlink()
    assert CliRunner().invoke(app, ["prepare", "--out", str(data)]).exit_code == 0
    assert first.read_bytes() == whole, "the advice does not help"
    finished(fill, f"task={{kind: masked_stream, path: {data}}}")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocabulary.json"])
def test_checkpoint_folder_that_lost_a_file(fill: Path, tmp_path: Path, name: str):
    finished(fill)
    (folder,) = tmp_path.glob("out/r/1-grpo/checkpoints/step_000001")
    (folder / name).unlink()
    message = refused("run", fill, f"policy.checkpoint={tmp_path / 'out' / 'r' / '1-grpo'}", "name=other")
    assert re.search(rf"the checkpoint of step 1 is damaged: .*{re.escape(name)} is missing", message)


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
        process = forked.start(["relgrad", *arguments, f"out={out}"], log)
        process.join(1800)
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
