"""A run's model card: what it is, how good it is on what, how it is loaded, and the recipe that repeats it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from relgrad.monitor.intervals import ends_of
from relgrad.monitor.report.read import StageFiles, headline
from relgrad.monitor.report.result import run_facts, scored_by
from relgrad.monitor.report.words import mapping

FILE = "README.md"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(?<!\.gguf)")
LOADING = """```python
from {library} import {name}

model = {name}.from_pretrained("this/repository")
```
"""


def model_card(stage: StageFiles, kind: str) -> str:
    """Markdown with the hub's header; `kind` is that of the policy."""
    policy = mapping(stage.recipe.get("policy"))
    adapted, causal = policy.get("lora") is not None or policy.get("adapter") is not None, kind == "autoregressive"
    header: dict[str, Any] = {"tags": ["relgrad", stage.kind, kind]}
    if causal:
        header |= {"library_name": "peft" if adapted else "transformers", "pipeline_tag": "text-generation"}
        header |= {"base_model": policy.get("model")} if is_on_a_hub(policy.get("model")) else {}
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {stage.recipe.get('name', stage.name)}",
        f"A policy of kind `{kind}`, trained with relgrad: the stage `{stage.title}` of the recipe below.",
        "\n".join(f"- {label}: {value}" for label, value in run_facts(stage) if label != "Judged on"),
        "## Results\n\n" + "\n".join(results(stage)),
        "## Use\n\n" + use(adapted, causal),
        f"## Recipe\n\n```yaml\n{stage.recipe_text.strip()}\n```",
        "## Made with\n\n" + "\n".join(f"- {name} {version}" for name, version in versions(stage.environment)),
    ]
    return "\n\n".join(parts) + "\n"


def is_on_a_hub(model: Any) -> bool:
    """Whether a policy's `model` is a name that the hub's header can give: no folder, file, or name of relgrad's own."""
    return isinstance(model, str) and REPOSITORY.fullmatch(model) is not None and not Path(model).exists()


def results(stage: StageFiles) -> Iterator[str]:
    """The scores before and after, with their intervals; or that nothing was measured."""
    records = headline(stage.evaluations)
    if not records:
        yield "Nothing was measured: the recipe has no rewards to judge by."
        return
    yield f"Scored by {scored_by(stage.recipe)}, on {records[-1]['name']} prompts, {records[-1]['n']} of them.\n"
    yield "| | Score | 95 % interval |"
    yield "|---|---|---|"
    for label, record in (("before training", records[0]), ("after training", records[-1])):
        yield f"| {label} | {record['score']:.3f} | {ends_of(record, '{:.3f}'.format)} |"
    if len(records) > 1 and isinstance(records[-1].get("difference"), float):
        last = records[-1]
        interval = ends_of(last, "{:+.3f}".format, "difference_")
        yield f"| difference, paired by prompt | {last['difference']:+.3f} | {interval} |"


def use(adapted: bool, causal: bool) -> str:
    """How the weights are loaded."""
    if not causal:
        return (
            "The folder is a checkpoint of relgrad: name it as `from` in a stage of a recipe, or as the policy's model."
        )
    library, name = ("peft", "AutoPeftModelForCausalLM") if adapted else ("transformers", "AutoModelForCausalLM")
    return LOADING.format(library=library, name=name)


def versions(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Python and the packages that were there."""
    if "python" in environment:
        yield "Python", str(environment["python"])
    for name, version in mapping(environment.get("packages")).items():
        if version:
            yield str(name), str(version)
