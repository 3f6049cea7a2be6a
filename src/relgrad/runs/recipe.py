"""Recipes: YAML in, strict typed settings out. An unknown key is an error that names the nearest known one.

A recipe is one stage, or a list of `stages` that inherit everything else written at the top. Overrides from the command
line (`grpo.learning_rate=1e-4`, `stages.1.grpo.beta=0.01`) are applied before validation; their values are read as YAML.
The names of the original's configuration files are understood too (aliases.py).
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from relgrad.runs import aliases
from relgrad.core.settings import Strict
from relgrad.training.sft import SftSettings
from relgrad.training.grpo import GrpoSettings
from relgrad.core.errors import RelgradError


class Component(BaseModel):
    """A section that names a `kind`; the rest is checked by that kind's own Settings when it is built."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str

    @property
    def options(self) -> dict[str, Any]:
        """Every key but `kind` (and a reward's `weight` and `name`, which the recipe reads itself)."""
        return dict(self.model_extra or {})


class RewardComponent(Component):
    """A reward of weight 0 is a monitor: logged and evaluated, never part of the sum."""

    weight: float = 1.0
    name: str | None = None


class Evaluation(Strict):
    """Held-out evaluation: before the first step, every `every` steps (0: never in between) and after the last.

    With `patience` a stage ends early, when so many evaluations in a row were no better than the best one before them; whether
    early or not, it then ends with the weights of its best evaluation. `rewards` are to judge by; none: those trained on.
    """

    every: int = Field(0, ge=0)
    patience: int | None = Field(None, ge=1, description="evaluations without a better one after which the stage ends")
    num_prompts: int = Field(100, ge=1)
    num_generations: int = Field(4, ge=1)
    seed: int = 1234
    kl_bound: float | None = Field(
        None, gt=0, description="nats per decision away from the reference; more is warned of"
    )
    rewards: tuple[RewardComponent, ...] = ()


class Checkpointing(Strict):
    """Written every `every` steps (0: only at the end); the newest `keep` stay, and the best by held-out score."""

    every: int = Field(50, ge=0)
    keep: int = Field(2, ge=1)


class Stage(Strict):
    """One stage: what it trains (`policy`, or a `judge` of what it writes), on what (`task`), how (`grpo` or `sft`)."""

    name: str
    stage: Literal["grpo", "sft", "judge"] = "grpo"
    label: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]+$", description="the stage's folder; null: as `stage`")
    seed: int = 0
    out: Path = Path("runs")
    policy: Component
    task: Component
    judge: Component | None = None
    rewards: tuple[RewardComponent, ...] = ()
    grpo: GrpoSettings = GrpoSettings()
    sft: SftSettings = SftSettings()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpointing = Checkpointing()
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()

    @model_validator(mode="after")
    def _legal(self) -> Stage:
        if self.stage == "grpo" and not self.rewards:
            raise ValueError(
                "rewards is empty: a grpo stage needs at least one, for example `rewards: [{kind: exact}]`"
            )
        for where, rewards in (("rewards", self.rewards), ("evaluation.rewards", self.evaluation.rewards)):
            if rewards and not any(reward.weight for reward in rewards):
                raise ValueError(
                    f"{where}: every one has weight 0, so nothing would be scored; give one that counts a weight"
                )
        if self.evaluation.patience is not None and (not self.evaluation.every or not self.judged_by):
            raise ValueError(
                f"evaluation.patience={self.evaluation.patience} looks at the evaluations during training: set evaluation.every, "
                "and rewards to evaluate by"
            )
        if self.stage == "judge" and self.judge is None:
            raise ValueError("judge is missing: a judge stage needs to know which, for example `judge: {kind: refill}`")
        return self

    @property
    def judged_by(self) -> tuple[RewardComponent, ...]:
        """The rewards of evaluations."""
        return self.evaluation.rewards or self.rewards

    @property
    def loop(self) -> GrpoSettings | SftSettings:
        """The settings of the stage's loop: its `grpo` section, or `sft` for supervised stages and judges."""
        return self.grpo if self.stage == "grpo" else self.sft

    @property
    def used(self) -> dict[str, Any]:
        """What of the settings this stage acts on, as plain data."""
        unused = {"grpo": {"sft", "judge"}, "sft": {"grpo", "judge"}, "judge": {"grpo", "rewards"}}[self.stage]
        if self.label is None:
            unused.add("label")
        return self.model_dump(mode="json", exclude=unused)


class Recipe(Strict):
    """All stages of one experiment, in order."""

    name: str
    stages: tuple[Stage, ...]


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file and apply `key.sub=value` overrides. Raises RelgradError with every problem in one message."""
    path = Path(path)
    if not path.is_file():
        raise RelgradError(
            f"no recipe {str(path)!r} (working directory {Path.cwd()}); recipes/ holds the built-in ones"
        )
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RelgradError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise RelgradError(f"{path}: a recipe is a mapping of settings, got {type(raw).__name__}")
    raw.setdefault("name", path.stem)
    return parse_recipe(raw, overrides, source=str(path))


def parse_recipe(raw: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "recipe") -> Recipe:
    """A recipe from plain data."""
    data = _numbers(copy.deepcopy(dict(raw)))
    shared_overrides, stage_overrides = _split(overrides)
    bodies = data.pop("stages", None) or [{}]
    if not isinstance(bodies, list) or not all(isinstance(body, dict) for body in bodies):
        raise RelgradError(f"{source}: stages is a list of mappings, one per stage (received {bodies!r})")
    data = aliases.translate(data, source)
    stages = []
    for number, body in enumerate(bodies):
        merged = _merge(data, aliases.translate(body, f"{source}, stage {number + 1}"))
        for key, value in [*shared_overrides, *stage_overrides.get(number, ())]:
            _assign(merged, key, value)
        try:
            stages.append(Stage.model_validate(merged))
        except ValidationError as error:
            where = f"{source}, stage {number + 1}" if len(bodies) > 1 else source
            raise RelgradError(f"{where}:\n{explain(error, Stage)}") from None
    labels = [stage.label or stage.stage for stage in stages if stage.stage == "judge"]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise RelgradError(
            f"{source}: {labels.count(twice[0])} judge stages are called {twice[0]!r}; give each a `label` of its own, which also "
            "seeds it and names its folder"
        )
    if unknown := set(stage_overrides) - set(range(len(bodies))):
        raise RelgradError(f"override for stages.{min(unknown)}: the recipe has stages 0 to {len(bodies) - 1}")
    return Recipe(name=stages[0].name, stages=tuple(stages))


def settings_of(component: Component, model: type[BaseModel], where: str) -> Any:
    """The kind's own Settings from a recipe section; RelgradError names the section on a bad key or value."""
    try:
        return model.model_validate(component.options)
    except ValidationError as error:
        raise RelgradError(f"{where} (kind {component.kind!r}):\n{explain(error, model)}") from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line per problem: the key's path, what was received, and for an unknown key the nearest known one."""
    lines = []
    for problem in error.errors():
        path = ".".join(str(p) for p in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _known_keys(model, problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, 1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            lines.append(f"  {path}: unknown key.{hint} Known here: {', '.join(known)}")
        elif problem["type"] == "missing":
            lines.append(f"  {path}: missing; this key is required")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            received = "" if isinstance(problem["input"], dict) else f" (received {problem['input']!r})"
            lines.append(f"  {path or 'here'}: {message}{received}")
    return "\n".join(lines)


def _known_keys(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return sorted(model.model_fields)


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text; a recipe's author means the number."""
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    if isinstance(value, str) and value[:1] in "+-.0123456789" and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _split(overrides: Iterable[str]) -> tuple[list[aliases.Setting], dict[int, list[aliases.Setting]]]:
    """Overrides of all stages, and those of one stage by its number."""
    shared: list[aliases.Setting] = []
    by_stage: dict[int, list[aliases.Setting]] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise RelgradError(f"override {text!r}: write key.sub=value, for example grpo.steps=50")
        parts = key.strip().split(".")
        try:
            parsed = _numbers(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise RelgradError(f"override {text!r}: the value is not valid YAML: {error}") from None
        if parts[0] == "stages" and len(parts) > 2 and parts[1].isdigit():
            by_stage.setdefault(int(parts[1]), []).append((tuple(parts[2:]), parsed))
        else:
            shared.append((tuple(parts), parsed))
    translated = {n: aliases.translate_settings(own, f"overrides of stages.{n}") for n, own in by_stage.items()}
    return aliases.translate_settings(shared, "overrides"), translated


def _assign(data: dict[str, Any], path: Sequence[str], value: Any) -> None:
    target: Any = data
    for depth, part in enumerate(path):
        if isinstance(target, list) and not (part.isdigit() and int(part) < len(target)):
            where = ".".join(path[:depth])
            raise RelgradError(
                f"override {'.'.join(path)}: {where} is a list of {len(target)}, so a number below that must follow, not {part!r}"
            )
        key: Any = int(part) if isinstance(target, list) else part
        if depth + 1 == len(path):
            target[key] = copy.deepcopy(value)
            return
        target = target[key] if isinstance(target, list) else target.setdefault(key, {})
        if not isinstance(target, (dict, list)):
            raise RelgradError(f"override {'.'.join(path)}: {part!r} is a plain value, it has no keys inside")


def _merge(base: Any, top: Any) -> Any:
    """`top` over `base`, section by section; a section that names another `kind` replaces the old one whole."""
    if isinstance(base, dict) and isinstance(top, dict):
        if "kind" in top and top["kind"] != base.get("kind"):
            return copy.deepcopy(top)
        return {
            k: _merge(base[k], top[k]) if k in base and k in top else copy.deepcopy((top if k in top else base)[k])
            for k in {**base, **top}
        }
    return copy.deepcopy(top)
