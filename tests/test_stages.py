"""Kinds of stage: sections checked by their own kinds, a kind from a user's file, and run folders of earlier recipes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from commands import lines, relgrad
from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.runs.build import resolve
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe
from relgrad.stages import grpo, judge, sft
from relgrad.stages.kind import kind_of, loop_settings
from relgrad.training import checkpoint

BASE: dict[str, Any] = {
    "name": "x",
    "policy": {"kind": "autoregressive", "model": "tiny:32x1", "max_completion_length": 3},
    "task": {"kind": "digits", "length": 2, "train_size": 40, "held_out_size": 10},
    "rewards": [{"kind": "exact", "per_character": True}],
}


def parse(**extra: Any) -> Any:
    return parse_recipe({**BASE, **extra})


# ---------------------------------------------------------------------- sections


def test_every_stage_has_the_settings_of_its_own_kind() -> None:
    sections = {"sft": {"steps": 3}, "grpo": {"steps": 4}, "judge": {"kind": "refill"}}
    stages = parse(**sections, stages=[{"stage": "sft"}, {"stage": "judge"}, {"stage": "grpo"}]).stages
    assert [type(stage) for stage in stages] == [sft.Settings, judge.Settings, grpo.Settings]
    assert [loop_settings(stage).steps for stage in stages] == [3, 3, 4]
    common = {"name", "stage", "seed", "out", "policy", "task", "evaluation", "checkpoint", "trackers", "max_hours"}
    assert [set(stage.used) - common for stage in stages] == [{"sft", "rewards"}, {"judge", "sft"}, {"grpo", "rewards"}]
    assert [kind_of(stage).trains_policy for stage in stages] == [True, False, True]


@pytest.mark.parametrize("stage", ["grpo", "sft", "judge"])
@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"sft": {"steps": 0}}, r"sft\.steps: Input should be greater than or equal to 1 \(received 0\)"),
        ({"grpo": {"num_generation": 4}}, r"grpo\.num_generation: unknown key\. Did you mean 'num_generations'\?"),
        ({"grpoo": {"steps": 1}}, r"grpoo: unknown key\. Did you mean 'grpo'\?"),
        ({"judge": {"n_layer": 2}}, r"judge\.kind: missing; this key is required"),
    ],
)
def test_a_section_is_checked_wherever_it_stands(stage: str, section: dict[str, Any], message: str) -> None:
    with pytest.raises(RelgradError, match=message):
        parse(stage=stage, **section)


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(
        RelgradError, match=r"stages: unknown kind 'gpro'\. Known: grpo, judge, polychromic, sft; .*Did you mean 'grpo'"
    ):
        parse(stage="gpro")
    with pytest.raises(
        RelgradError, match=r"stage is the name of a kind: grpo, judge, polychromic, sft, or your own .*received 3"
    ):
        parse(stage=3)
    with pytest.raises(RelgradError, match=r"stages: unknown kind '\.\./x'"):
        parse(stage="../x")


def test_judges_of_one_recipe_need_names_of_their_own() -> None:
    one = {"stage": "judge", "judge": {"kind": "refill"}}
    with pytest.raises(RelgradError, match="2 judge stages are called 'judge'; give each a `label` of its own"):
        parse(stages=[one, one])
    assert len(parse(stages=[one, {**one, "label": "second"}]).stages) == 2


# ---------------------------------------------------------------------- a kind of one's own


OWN = """
from pydantic import Field

from relgrad.core.run_folder import write_json
from relgrad.core.types import StepRecord
from relgrad.stages.kind import Kind, StageParts, build_policy
from relgrad.stages.settings import RewardedStage
from relgrad.training.optimizer import Optimizer, OptimizerSettings


class DecaySettings(OptimizerSettings):
    steps: int = Field(4, ge=1)
    learning_rate: float = 0.1


class Settings(RewardedStage):
    decay: DecaySettings = DecaySettings()


class Decay:
    '''Draws every weight towards 0.'''

    def __init__(self, policy, settings):
        self.policy, self.settings, self.step = policy, settings, 0
        self.optimizer = Optimizer(dict(policy.parameters()), settings, settings.steps)

    def update(self):
        loss = sum(parameter.square().sum() for parameter in self.optimizer.parameters.values())
        loss.backward()
        metrics = {"loss": loss.item(), **self.optimizer.step(self.step)}
        self.step += 1
        return StepRecord(self.step, metrics)

    def counters(self):
        return {"step": self.step}

    def go_on_from(self, counters):
        self.step = counters["step"]


def build(stage, materials):
    rewards = materials.rewards(stage.judged_by, 60.0) if stage.judged_by else None
    policy = build_policy(stage, materials.start)

    def finish(folder, display):
        display.note("ending as the file says")
        write_json(folder.root / "decay.json", {"validation": len(materials.task.validation)})

    return StageParts(
        loop=Decay(policy, stage.decay), trained=policy, policy=policy, judged_by=rewards, finish=finish
    )


KIND = Kind(loop="decay", build=build, describe=lambda stage: f"{stage.decay.steps} steps towards nothing")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a kind of stage and a recipe that uses it between two built-in ones; the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "decay.py").write_text(OWN)
    stages = [
        {"stage": "sft", "sft": {"steps": 2, "batch_size": 4}},
        {"stage": "decay.py", "evaluation": {"every": 2}, "checkpoint": {"every": 1}},
        {"stage": "grpo", "grpo": {"steps": 1, "num_prompts": 2, "num_generations": 2}},
    ]
    recipe = {**BASE, "name": "own", "decay": {"steps": 4}, "evaluation": {"num_prompts": 4, "num_generations": 1}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**recipe, "stages": stages}))
    return tmp_path


def test_a_kind_of_ones_own_runs_like_the_others(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "2-decay: 4 steps towards nothing; from the beginning" in relgrad("run", "own.yaml", "--dry-run")
    shown = relgrad("run", "own.yaml")
    assert "ending as the file says" in shown
    folder = own / "runs" / "own" / "2-decay"
    assert json.loads((folder / "decay.json").read_text()) == {"validation": 10}
    assert [record["step"] for record in lines(folder / "metrics.jsonl")] == [1, 2, 3, 4]
    evaluated = [(record["name"], record["step"]) for record in lines(folder / "evaluations.jsonl")]
    assert evaluated == [("test", 0), ("validation", 2), ("validation", 4), ("test", 4)]
    assert "complete, 4 steps" in (folder / "report.html").read_text()
    written = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert (written["stage"], written["decay"]["steps"]) == ("decay.py", 4)

    def size(stage: Path) -> float:
        (file,) = (checkpoint.latest(stage / "checkpoints") or Path()).glob("model.safetensors")
        return sum(float(tensor.square().sum()) for tensor in load_file(file).values())

    assert size(folder) < 0.9 * size(own / "runs" / "own" / "1-sft")
    assert size(own / "runs" / "own" / "3-grpo") == pytest.approx(size(folder), rel=0.01), "GRPO went on from it"
    assert "finished before" in relgrad("run", "own.yaml")
    assert relgrad("evaluate", folder.parent.parent / "own" / "2-decay")
    assert len(relgrad("sample", folder, "-n", 1, "--json").splitlines()) == 4


def test_a_killed_stage_of_ones_own_goes_on_where_it_was(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relgrad("run", "own.yaml")
    folder = own / "runs" / "own" / "2-decay"
    newest = checkpoint.folder_of(folder / "checkpoints", 4)
    expected = load_file(newest / "model.safetensors")
    shutil.rmtree(newest)
    assert "resumed after step 3" in relgrad("run", "own.yaml")
    found = load_file(newest / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_its_sections_are_checked_beside_the_built_in_ones(own: Path) -> None:
    recipe = yaml.safe_load((own / "own.yaml").read_text())
    with pytest.raises(RelgradError, match=r"stage 1:\n  decay\.step: unknown key\. Did you mean 'steps'\?"):
        parse_recipe({**recipe, "decay": {"step": 3}})
    with pytest.raises(RelgradError, match=r"decay: unknown key"):
        parse_recipe({**recipe, "stages": [{"stage": "sft"}]})
    (own / "taken.py").write_text(OWN.replace("decay: Decay", "grpo: Decay").replace('"decay"', '"grpo"'))
    with pytest.raises(RelgradError, match="has a section 'grpo' with other settings than another kind"):
        parse(stage="taken.py")


def test_a_file_that_is_no_kind_of_stage_says_what_is_missing(own: Path) -> None:
    (own / "empty.py").write_text("")
    (own / "half.py").write_text("from relgrad.stages.sft import Settings\n")
    with pytest.raises(RelgradError, match=r"stages: 'empty\.py' offers no Settings built on relgrad\.stages"):
        parse(stage="empty.py")
    with pytest.raises(RelgradError, match=r"stages: 'half\.py' offers no KIND"):
        parse(stage="half.py")


def test_no_other_file_asks_which_kind_a_stage_is() -> None:
    """Names of kinds are for their own files."""
    source = Path(registry.__file__).parents[1]
    kinds = "|".join(registry.kinds("stages"))
    asks = re.compile(
        rf"\b(stage|kind)\w*(\.stage|\.kind)?\"?\]?\)?\s*(==|!=|in|not in)\s*[\(\[{{]?\s*[\"']({kinds})[\"']"
    )
    found = [
        f"{path.relative_to(source)}: {line.strip()}"
        for path in [*source.rglob("*.py"), *source.rglob("*.j2")]
        if path.parent.name != "stages"
        for line in path.read_text(encoding="utf-8").splitlines()
        if asks.search(line)
    ]
    assert found == []


# ---------------------------------------------------------------------- run folders of earlier recipes


def test_a_setting_that_a_run_folder_does_not_have_counts_as_its_default(tmp_path: Path) -> None:
    recipe = parse(out=str(tmp_path), stage="sft", sft={"steps": 1, "batch_size": 2})
    (folder,) = run_recipe(recipe)
    file = folder / "recipe.yaml"
    written = yaml.safe_load(file.read_text())
    assert written == resolve(recipe).stages[0].used
    del written["evaluation"]["reward_timeout"], written["task"]["operation"]
    file.write_text(yaml.safe_dump(written))
    run_recipe(recipe)
    other = parse(out=str(tmp_path), stage="sft", sft={"steps": 1, "batch_size": 2}, evaluation={"reward_timeout": 5})
    with pytest.raises(RelgradError, match=r"another recipe \(evaluation\.reward_timeout: 60\.0 there, 5\.0 now\)"):
        run_recipe(other)
