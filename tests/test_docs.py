"""The documentation is true: its code runs, its tables are the models', its names are the ones that runs write.

In README.md and docs/, a block opened by ```python title="x.py" (or any language) is a file, ```sh run and ```python run
are executed, and ```python source="losses.py" quotes src/relgrad/losses.py.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shlex
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import contract
import forked
import relgrad
from relgrad.commands.cli import app
from relgrad.core import registry
from relgrad.core.protocols import Toy
from relgrad.core.settings import RewardComponent, settings_of
from relgrad.core.types import Example, Output, Prompt, Rollouts
from relgrad.environments.forms.making.grammar import Grammar
from relgrad.environments.sites.verdict import Rule
from relgrad.environments.workflows import noisy, sources
from relgrad.estimators.bounds import Bgpo, Spg
from relgrad.estimators.coupled import Coupled
from relgrad.estimators.elbo import Elbo
from relgrad.estimators.mean_field import MeanField
from relgrad.estimators.merged_steps import MergedSteps
from relgrad.evaluation.pairwise import PairwiseSettings
from relgrad.evaluation.suite import SuiteSettings
from relgrad.monitor import diagnose
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies import workflow
from relgrad.policies.autoregressive import Lora
from relgrad.policies.fill_in.denoise import Denoise
from relgrad.policies.flow import settings as flow_settings
from relgrad.policies.flow.supervised.few_step import FewStep
from relgrad.policies.refusion import settings as refusion_settings
from relgrad.policies.unmasking import settings as unmasking_settings
from relgrad.rewards import list_program
from relgrad.rewards.code import CodeLimits
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.rewards.replies import settings as replies
from relgrad.runs.decision_search import DecisionSearch
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.search import SearchRecipe
from relgrad.search import settings as search_settings
from relgrad.search.proposals import GrammarSettings, ModelSettings
from relgrad.stages.kind import kind_of
from relgrad.stages.settings import Checkpointing, Evaluation, Gate, RewardedStage, Stage
from relgrad.tasks import list_programs
from relgrad.text.masking import Line, Random, Span, Sticky, Strategy
from relgrad.training.grpo import Grpo, GrpoSettings
from relgrad.training.optimizer import OptimizerSettings
from relgrad.training.polychromic import PolychromicSettings
from relgrad.training.settings import RemoteSettings, ReplaySettings, SearchSettings
from relgrad.training.sft import Sft, SftSettings

ROOT = Path(__file__).parents[1]
SOURCE = Path(relgrad.__file__).parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS]
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """(language, rest of the opening line, content) of every fenced block."""
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield match[1], match[2].strip(), match[3]


def attribute(info: str, name: str) -> str | None:
    found = re.search(rf'{name}="([^"]+)"', info)
    return found[1] if found else None


def write_files(page: Path, folder: Path) -> None:
    """Every titled block of the page as a file."""
    for _, info, content in blocks(page):
        if title := attribute(info, "title"):
            (folder / title).write_text(content, encoding="utf-8")


def run(command: list[str], folder: Path) -> None:
    """`relgrad ...` or `python FILE`, in a process of its own."""
    result = forked.run(*command, cwd=folder, environment={"COLUMNS": "120"})
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"


# ---------------------------------------------------------------------- code that runs


def executable(page: Path) -> bool:
    return any(info == "run" for _, info, _ in blocks(page))


@pytest.mark.parametrize("page", [p for p in PAGES if executable(p)], ids=lambda p: p.name)
def test_a_page_runs_as_it_stands(page: Path, tmp_path: Path) -> None:
    """Its files are written, its python blocks run as one script and its sh blocks line by line; every run learns."""
    write_files(page, tmp_path)
    script = "\n".join(content for language, info, content in blocks(page) if (language, info) == ("python", "run"))
    if script:
        (tmp_path / "blocks_of_the_page.py").write_text(script, encoding="utf-8")
        run(["python", "blocks_of_the_page.py"], tmp_path)
    for language, info, content in blocks(page):
        if (language, info) == ("sh", "run"):
            for line in content.splitlines():
                run(shlex.split(line), tmp_path)
    for stage in tmp_path.glob("runs/*/*-grpo"):
        rewards = [json.loads(line)["reward"] for line in (stage / "metrics.jsonl").read_text().splitlines()]
        first, last = sum(rewards[:10]) / 10, sum(rewards[-10:]) / 10
        assert last > first + 0.2, f"{page.name}: {stage.parent.name} does not learn ({first:.2f} to {last:.2f})"
        check_files_are_documented(stage)


def check_files_are_documented(stage: Path) -> None:
    """Every file of a run folder, and every key of its evaluations, is in run-folder.md."""
    page = ROOT / "docs" / "run-folder.md"
    text = page.read_text(encoding="utf-8")
    files = [
        p for p in stage.rglob("*") if not p.relative_to(stage).match("checkpoints/*/*") and "trainer" not in p.parts
    ]
    assert len(files) > 5
    for name in {re.sub(r"\d{3,}", "N", p.name) for p in files}:
        assert f"`{name}`" in text or f"`{name}/`" in text, f"docs/run-folder.md does not say what {name} is"
    for folder in stage.glob("checkpoints/*/trainer"):
        for path in folder.iterdir():
            assert f"`trainer/{path.name}" in text, f"docs/run-folder.md does not say what {path.name} is"
    tables = documented_tables(page)
    if (stage / "evaluations.jsonl").is_file():
        last = json.loads((stage / "evaluations.jsonl").read_text().splitlines()[-1])
        assert last.keys() == tables["evaluations"].keys()
    if (stage / "films.jsonl").is_file():
        film = json.loads((stage / "films.jsonl").read_text().splitlines()[-1])
        assert film.keys() - {"reward", "parts", "why", "hidden"} == tables["films"].keys()
        keys = film.keys() | set().union(*(frame.keys() for frame in film["frames"]))
        assert all(f"`{key}`" in text for key in keys)


def test_executable_pages_are_there() -> None:
    assert {p.name for p in PAGES if executable(p)} >= {"README.md", "tour.md", "write-your-own.md", "fill-in.md"}


FILL = """
name: fill
policy: {kind: fill_in, text: story.txt, block_size: 16, n_layer: 1, n_head: 2, n_embd: 8, denoise: {steps: 2}}
task: {kind: masked_text, text: story.txt, length: 16, held_out_fraction: 0.4}
sft: {steps: 2, batch_size: 4, learning_rate: 1e-3, completion_column: truth}
evaluation: {num_prompts: 4, num_generations: 2}
stages:
  - {stage: sft, rewards: [{kind: hidden}]}
  - {stage: judge, judge: {kind: refill, audit_prompts: 40, audit_generations: 2}}
  - stage: grpo
    rewards: [{kind: judge, name: NAME, judges: ["stage:judge"], require_audit: false, refit_every: 2, refit_steps: 1}]
    grpo: {steps: 2, num_prompts: 4, num_generations: 4, beta: 0.1, kl_estimator: exact, learning_rate: 1e-3}
"""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small fill-in run with all kinds of stages."""
    folder = tmp_path_factory.mktemp("filled")
    (folder / "story.txt").write_text("A fox ran home with a piece of cheese.\nThe crow looked down.\n" * 40)
    (folder / "fill.yaml").write_text(FILL)
    run(["relgrad", "run", "fill.yaml"], folder)
    return folder / "runs" / "fill"


def test_the_files_of_every_kind_of_stage_are_documented(filled: Path) -> None:
    stages = sorted(path.parent for path in filled.glob("*/recipe.yaml"))
    assert [stage.name for stage in stages] == ["1-sft", "2-judge", "3-grpo"]
    for stage in stages:
        check_files_are_documented(stage)
    assert (stages[2] / "films.jsonl").is_file()
    heads = [json.loads((stage / "about.json").read_text()) for stage in stages]
    assert [about["trains_policy"] for about in heads] == [True, False, True]
    assert heads[2]["policy"]["Temperature"] == "1"
    assert heads[2]["policy"]["Parameters"] == f"{heads[2]['trained_parameters']:,}"
    assert heads[2]["task"]["Masks"].startswith("random (min_masked_ratio")
    assert heads[2]["parts"].keys() == {"NAME/disagreement"}
    assert all("steps" in about["work"] for about in heads)
    audit = json.loads((stages[1] / "audit.json").read_text())
    assert audit.keys() == documented_tables(ROOT / "docs" / "run-folder.md")["audit"].keys()


def test_quoted_code_is_the_code() -> None:
    """A quotation may leave lines out (`...`); white space and trailing commas do not matter."""

    def squeeze(text: str) -> str:
        return re.sub(r",(?=[)\]}])", "", re.sub(r"\s+", "", text))

    quoted = 0
    for page in PAGES:
        for _, info, content in blocks(page):
            if source := attribute(info, "source"):
                rest = squeeze((SOURCE / source).read_text(encoding="utf-8"))
                for piece in re.split(r"^\s*\.\.\.\s*$", content, flags=re.MULTILINE):
                    _, found, rest = rest.partition(squeeze(piece))
                    assert found, f"{page.name} quotes what is not in {source} (or not in this order):\n{piece}"
                    quoted += 1
    assert quoted


def test_python_in_the_pages_is_well_formed() -> None:
    for page in PAGES:
        for language, info, content in blocks(page):
            if language == "python" and "source=" not in info:
                ast.parse(content, f"{page.name} {info}")


def test_recipes_in_the_pages_are_legal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every YAML block with a policy is a recipe; sections of built-in kinds are checked by these kinds' settings."""
    checked = 0
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        write_files(page, tmp_path)
        for language, info, content in blocks(page):
            data = yaml.safe_load(content) if language == "yaml" else None
            if not isinstance(data, dict) or "policy" not in data:
                continue
            for stage in parse_recipe({"name": "x", **data}, source=f"{page.name} {info}").stages:
                named = [("policies", stage.policy), ("tasks", stage.task)]
                named += [("rewards", r) for r in stage.rewards] if isinstance(stage, RewardedStage) else []
                named += [(room, dict(stage)[name]) for name, room in kind_of(stage).components.items()]
                for room, component in named:
                    if component.kind in registry.kinds(room):
                        settings_of(component, registry.find(room, component.kind).Settings, f"{page.name} {room}")
            checked += 1
    assert checked >= 3


# ---------------------------------------------------------------------- the policy of write-your-own.md


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> types.SimpleNamespace:
    """The Python files of write-your-own.md, imported."""
    folder = tmp_path_factory.mktemp("own")
    write_files(ROOT / "docs" / "write-your-own.md", folder)
    sys.path.insert(0, str(folder))
    try:
        names = ("my_policy", "check_my_policy", "my_task", "my_reward", "my_loss")
        return types.SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(folder))


@pytest.mark.parametrize("name", [*contract.EVERYONE, *contract.EXACT_ONLY])
def test_the_policy_of_the_docs_passes_the_contract(own: types.SimpleNamespace, name: str) -> None:
    settings = own.my_policy.Settings(words=("a", "b"), max_words=3, temperature=0.8)
    policy = own.my_policy.build(settings, seed=3)
    toy = Toy(
        policy=policy,
        prompts=(Prompt("go a", id=0), Prompt("go b", id=1), Prompt("go on", id=2)),
        enumerate=lambda prompt: own.check_my_policy.everything(policy, prompt),
        keys=lambda rollouts: [(o.text, stop) for o, stop in zip(rollouts.outputs, rollouts.stop, strict=True)],
        reward=lambda output: output.text.count("b") / 3,
    )
    (contract.EVERYONE | contract.EXACT_ONLY)[name](toy)


def test_the_policy_of_the_docs_saves_and_refuses(own: types.SimpleNamespace, tmp_path: Path) -> None:
    policy = own.my_policy.build(own.my_policy.Settings(), seed=0)
    policy.save(tmp_path / "there")
    again = own.my_policy.build(own.my_policy.Settings(), seed=1, start=tmp_path / "there")
    assert torch.equal(again.table_VV, policy.table_VV)
    toy = Toy(policy, (Prompt("red"),), lambda _: policy.sample([], 0, torch.Generator()), lambda _: [], lambda _: 0.0)
    contract.check_load_refuses(toy, tmp_path)


def test_the_loss_of_the_docs_is_its_formula(own: types.SimpleNamespace) -> None:
    from relgrad.core.protocols import LossTerms

    logp_BT = torch.tensor([[-1.0, -2.0], [-3.0, -9.0]], requires_grad=True)
    terms = LossTerms(
        logp_BT=logp_BT,
        behaviour_logp_BT=logp_BT.detach(),
        advantage_BT=torch.tensor([[0.5, 0.5], [-1.0, -1.0]]),
        mask_BT=torch.tensor([[True, True], [True, False]]),
        batch_decisions=3.0,
        max_decisions=2,
    )
    loss, metrics = own.my_loss.LearnFromSuccess()(terms)
    assert loss.item() == pytest.approx(0.5 * (1 + 2) / 3)
    assert metrics["successes"] == pytest.approx(2 / 3)
    (slope_BT,) = torch.autograd.grad(loss, logp_BT)
    assert slope_BT.flatten().tolist() == pytest.approx([-1 / 6, -1 / 6, 0, 0])


# ---------------------------------------------------------------------- recipes.md: every setting


def allowed(annotation: Any, metadata: list[Any] = ()) -> str:
    """A type and its bounds in words: `int >= 1`, `a` or `b`, list of text."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return allowed(arguments[0])
    if origin in (typing.Union, types.UnionType):
        kinds = dict.fromkeys(allowed(a, metadata) for a in arguments if a is not type(None))
        return " or ".join(kinds) + (" or null" if type(None) in arguments else "")
    if origin is Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if origin is tuple:
        return f"list of {allowed(arguments[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {int: "integer", float: "number", bool: "`true`, `false`", str: "text", Path: "path"}
    bounds = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = [f"{sign} {getattr(m, key)}" for m in metadata for key, sign in bounds.items() if hasattr(m, key)]
    return f"{names[annotation]} {', '.join(limits)}".strip() if annotation in (int, float) else names[annotation]


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, float):
        return f"`{value:g}`"
    plain = (
        value
        if value is None or isinstance(value, (bool, int, str))
        else str(value)
        if isinstance(value, Path)
        else [section(item) if isinstance(item, BaseModel) else item for item in value]
    )
    return f"`{json.dumps(plain)}`" if not isinstance(value, dict) else "`{}`"


def section(item: BaseModel) -> dict[str, Any]:
    """What a recipe would write for it: its type, and what is not the default."""
    kind = {"type": item.type} if hasattr(item, "type") else {}
    return kind | item.model_dump(exclude_defaults=True)


def settings_rows(model: type[BaseModel], without: type[BaseModel] | None = None) -> dict[str, tuple[str, str]]:
    """{key: (allowed, default)}; without those that another model has with the same default."""
    inherited = without.model_fields if without else {}
    return {
        field.alias or name: (allowed(field.annotation, field.metadata), default(field))
        for name, field in model.model_fields.items()
        if not (name in inherited and inherited[name].default == field.default)
    }


def models() -> dict[str, dict[str, tuple[str, str]]]:
    """Table name in recipes.md -> its rows."""
    tables = {
        "recipe": settings_rows(Stage),
        "optimizer": settings_rows(OptimizerSettings),
        "grpo": settings_rows(GrpoSettings, OptimizerSettings),
        "sft": settings_rows(SftSettings, OptimizerSettings),
        "polychromic": settings_rows(PolychromicSettings),
        "evaluation": settings_rows(Evaluation),
        "evaluation.gate": settings_rows(Gate),
        "evaluation.suite": settings_rows(SuiteSettings),
        "evaluation.suite.pairwise": settings_rows(PairwiseSettings),
        "checkpoint": settings_rows(Checkpointing),
        "rewards": settings_rows(RewardComponent),
        "grpo.replay": settings_rows(ReplaySettings),
        "grpo.search": settings_rows(SearchSettings),
        "search.decisions": settings_rows(DecisionSearch),
        "grpo.remote": settings_rows(RemoteSettings),
        "policies.autoregressive.lora": settings_rows(Lora),
        "policies.fill_in.denoise": settings_rows(Denoise),
        "policies.flow.lora": settings_rows(flow_settings.Lora),
        "policies.flow.network": settings_rows(flow_settings.Network),
        "policies.flow.few_step": settings_rows(FewStep),
        "policies.refusion.lora": settings_rows(refusion_settings.Lora),
        "policies.refusion.native": settings_rows(refusion_settings.Native),
        "policies.unmasking.lora": settings_rows(unmasking_settings.Lora),
        "policies.unmasking.network": settings_rows(unmasking_settings.Network),
        "policies.unmasking.law": settings_rows(unmasking_settings.Law),
        "tasks.forms.grammar": settings_rows(Grammar),
        "tasks.site.success": settings_rows(Rule),
        "rewards.code.sandbox": settings_rows(CodeLimits),
        "rewards.replies.weights": settings_rows(replies.Weights),
        "rewards.replies.bands": settings_rows(replies.Bands),
        "rewards.replies.gates": settings_rows(replies.Gates),
        "search.recipe": settings_rows(SearchRecipe),
        "search": settings_rows(search_settings.Search),
        "search.budget": settings_rows(search_settings.Budget),
        "search.selection": settings_rows(search_settings.Selection),
        "search.trials": settings_rows(search_settings.Trials),
        "search.proposer.grammar": settings_rows(GrammarSettings),
        "search.proposer.model": settings_rows(ModelSettings),
        "search.problems.noisy": settings_rows(noisy.Settings),
        "search.problems.file": settings_rows(sources.FileSettings),
    }
    for estimator in (MeanField, Coupled, Elbo, Bgpo, Spg, MergedSteps):
        tables[f"estimators.{estimator.model_fields['kind'].default}"] = settings_rows(estimator)
    tables["masks"] = settings_rows(Strategy)
    for mask in (Random, Sticky, Span, Line):
        tables[f"masks.{mask.model_fields['type'].default}"] = settings_rows(mask, Strategy)
    for room in registry.ROOMS:
        for kind in registry.kinds(room):
            settings = registry.find(room, kind).Settings
            tables[f"{room}.{kind}"] = settings_rows(settings, Stage if issubclass(settings, Stage) else None)
    return tables


def documented_tables(page: Path) -> dict[str, dict[str, list[str]]]:
    """{table: {first cell: other cells}} of the tables marked <!-- table: NAME -->."""
    tables = {}
    for match in re.finditer(r"<!-- table: (\S+) -->\n\n((?:\|.*\n)+)", page.read_text(encoding="utf-8")):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in match[2].splitlines()[2:]]
        tables[match[1]] = {row[0].strip("`"): row[1:] for row in rows}
    return tables


@pytest.mark.parametrize("name", models())
def test_every_setting_is_documented(name: str) -> None:
    wanted = models()[name]
    table = documented_tables(ROOT / "docs" / "recipes.md").get(name)
    lines = "\n".join(f"| `{key}` | {kind} | {value} |  |" for key, (kind, value) in wanted.items())
    assert table is not None, f"docs/recipes.md has no table {name}; its rows begin\n{lines}"
    assert {key: tuple(cells[:2]) for key, cells in table.items()} == wanted, f"rows of {name} must begin\n{lines}"
    assert all(len(cells) == 3 and cells[2] for cells in table.values()), f"{name}: a setting without a meaning"


def test_no_table_of_settings_is_left_over() -> None:
    assert set(documented_tables(ROOT / "docs" / "recipes.md")) == set(models())


# ---------------------------------------------------------------------- run-folder.md: every metric, warning and key


def own_loop(own: types.SimpleNamespace, *, foreign: bool = False, supervised: bool = False, **settings: Any) -> Grpo:
    """GRPO on the policy of write-your-own.md; a reward of few values, so that some groups have no spread."""
    policy = own.my_policy.build(own.my_policy.Settings(max_words=2), seed=0)
    task = own.my_task.load(own.my_task.Settings(), seed=0)
    if foreign:
        draw = policy.sample

        def sample(*arguments: Any) -> Rollouts:
            rollouts = draw(*arguments)
            return replace(
                rollouts, behaviour_logp_BT=rollouts.behaviour_logp_BT - 0.01 * rollouts.mask_BT, foreign=True
            )

        policy.sample = sample
    if supervised:
        policy.supervised_loss = lambda examples, generator: (policy.table_VV.square().sum(), len(examples))

    def ends_in_blue(prompt: Prompt, outputs: list[Output]) -> list[float]:
        return [float(output.text.endswith("blue")) for output in outputs]

    rewards = RewardSet([NamedReward("NAME", ends_in_blue)], timeout=60)
    chosen = GrpoSettings(steps=4, num_prompts=4, num_generations=2, learning_rate=0.1, **settings)
    loss = PolicyLoss(**{name: getattr(chosen, name) for name in PolicyLoss.__dataclass_fields__})
    return Grpo(policy, task.train, rewards, loss, chosen, seed=0)


def searched_loop() -> Grpo:
    """A loop whose groups are searched where they fail."""
    sizes = {
        "lengths": (1,),
        "held_out_lengths": (2,),
        "train_size": 6,
        "validation_size": 0,
        "test_size": 1,
        "rising": 0,
    }
    task = list_programs.load(list_programs.Settings(order=16, **sizes), seed=0)
    policy = workflow.build(workflow.Settings(max_steps=1, hidden=8), seed=0)
    rewards = RewardSet([NamedReward("NAME", list_program.build(list_program.Settings()))], timeout=60)
    chosen = GrpoSettings(steps=4, num_prompts=4, num_generations=2, search={"evaluations": 20})
    return Grpo(policy, task.train, rewards, PolicyLoss(), chosen, seed=0)


class Unigram:
    """The smallest Trainable: -log softmax(w)[length of the target]."""

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.zeros(4))

    def supervised_loss(self, examples: list[Example], generator: torch.Generator) -> tuple[torch.Tensor, int]:
        targets = torch.tensor([len(e.target) for e in examples])
        return torch.nn.functional.cross_entropy(self.weight.expand(len(targets), 4), targets, reduction="sum"), len(
            targets
        )

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        yield "weight", self.weight


def test_every_metric_is_documented_and_every_documented_metric_is_logged(
    own: types.SimpleNamespace, filled: Path
) -> None:
    variants = [
        own_loop(own, num_iterations=2, steps_per_generation=2, beta=0.1),
        own_loop(own, max_resamples=2, beta=0.1, kl_estimator="k1"),
        own_loop(own, beta=0.1, kl_estimator="exact", entropy_coef=0.01),
        own_loop(own, loss_type="cispo"),
        own_loop(own, foreign=True),
        own_loop(own, replay={"share": 0.5}),
        own_loop(own, supervised=True, sft_coef=0.1, sft_column="last_word"),
    ]
    variants.append(searched_loop())
    logged: set[str] = set()
    for loop in variants:
        for _ in range(4):
            logged |= loop.update().metrics.keys()
    sft = Sft(Unigram(), [Example(Prompt("p"), "ab")], SftSettings(steps=1, batch_size=2))
    logged |= sft.update().metrics.keys()
    for metrics in filled.glob("*/metrics.jsonl"):
        logged |= {name for line in metrics.read_text().splitlines() for name in json.loads(line)} - {"step", "time"}
    tables = documented_tables(ROOT / "docs" / "run-folder.md")
    assert logged == tables["metrics"].keys() | tables["step-metrics"].keys()


def test_every_warning_is_documented() -> None:
    assert list(documented_tables(ROOT / "docs" / "run-folder.md")["warnings"]) == [
        rule.__name__ for rule in diagnose.RULES
    ]


# ---------------------------------------------------------------------- README.md


def contents(folder: Path) -> set[str]:
    """What lies in a folder of src/relgrad, as its list names it: files, and folders with a slash."""
    return {
        f"{path.name}/" if path.is_dir() else path.name
        for path in folder.iterdir()
        if path.name not in ("__pycache__", "__init__.py")
    }


def test_the_map_is_the_tree() -> None:
    """One line for every folder of src/relgrad."""
    (tree,) = (content for language, _, content in blocks(README) if language == "text")
    lines = [line.split(maxsplit=1) for line in tree.splitlines()]
    assert all(len(line) == 2 for line in lines)
    folders = {name for name in contents(SOURCE) if name.endswith("/")}
    assert sorted(name for name, _ in lines) == sorted(folders)


@pytest.mark.parametrize(
    "package", sorted(p.parent.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*/__init__.py"))
)
def test_a_folder_begins_with_the_list_of_its_files(package: str) -> None:
    """Every Python file and folder is in the docstring of the folder's __init__.py, and nothing that is not there."""
    folder = SOURCE / package
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    listed = set(re.findall(r"^(\w+(?:\.py|/))", text, re.MULTILINE)) | set(re.findall(r", (\w+\.py) ", text))
    there = {name for name in contents(folder) if name.endswith((".py", "/")) and not name.startswith("_")}
    assert listed == there


def test_every_command_is_in_the_readme() -> None:
    documented = re.findall(r"^\| `relgrad ([\w-]+)", README.read_text(encoding="utf-8"), re.MULTILINE)
    commands = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
    assert sorted(documented) == sorted([*commands, *(str(group.name) for group in app.registered_groups)])


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.is_file(), f"{page.name}: no file {target}"
        assert not anchor or anchor in anchors(found), f"{page.name}: no heading {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_the_pages_name_are_there(page: Path) -> None:
    """`losses.py`, `laws/tiled.py`, `tests/contract.py`: a path in backticks is a file, here, in src/relgrad or on the page."""
    text = page.read_text(encoding="utf-8")
    own_files = {attribute(info, "title") for _, info, _ in blocks(page)}
    for name in re.findall(r"`([\w/.]+\.(?:py|md|css|js))`", BLOCK.sub("", text)):
        known = (ROOT / name).exists() or (SOURCE / name).exists() or name in own_files
        assert known or name == "parts/my_reward.py", f"{page.name}: {name}"
