"""The names that the original's configuration files use, and what they are called here. Pure.

Understood at the top of a recipe (or of one of its stages), in a `grpo` section, and in overrides. `learning_rate` and the
like keep their name inside a section, where they mean the section's own; `sft` has names of its own.

`gradient_accumulation_steps` cuts an optimizer step of the original into so many batches, so that a step takes `batch_size`
times as many prompts. Here a step takes `num_prompts` prompts whatever memory there is (`micro_batch_tokens`), so
the two together are one name: their product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.stages.kind import find

Path = tuple[str, ...]
Setting = tuple[Path, Any]

NAMES: dict[str, Path] = {
    "group_size": ("grpo", "num_generations"),
    "kl_beta": ("grpo", "beta"),
    "batch_size": ("grpo", "num_prompts"),
    "temperature": ("policy", "temperature"),
    "top_p": ("policy", "top_p"),
    "learning_rate": ("grpo", "learning_rate"),
    "max_iters": ("grpo", "steps"),
    "grad_clip": ("grpo", "max_grad_norm"),
    "warmup_iters": ("grpo", "warmup_steps"),
    "beta1": ("grpo", "adam_beta1"),
    "beta2": ("grpo", "adam_beta2"),
}
PIECES = "gradient_accumulation_steps"
SECTIONS = ("grpo", "policy")


def translate(data: Mapping[str, Any], source: str) -> dict[str, Any]:
    """One level of a recipe (plain data: the top, or a stage) with every name as it is called here.

    Raises RelgradError, beginning with `source`, where a setting is given under two names, or beside a `stage` it is not for.
    """
    if isinstance(kind := data.get("stage"), str):
        sections = find(kind)[0].model_fields
        if lost := [name for name in data if name in NAMES and NAMES[name][0] not in sections]:
            place = ".".join(NAMES[lost[0]])
            raise RelgradError(
                f"{source}: {', '.join(lost)} beside stage: {kind}, but there it stands for {place}; "
                "write it into the stage's own section"
            )
    translated: dict[str, Any] = {}
    pairs = translate_settings([((key,), value) for key, value in data.items()], source)
    for path, value in sorted(pairs, key=lambda pair: len(pair[0])):  # whole sections before what goes into them
        if len(path) == 1:
            translated[path[0]] = value
            continue
        section = translated.setdefault(path[0], {})
        if not isinstance(section, dict):
            raise RelgradError(
                f"{source}: {path[0]} is not a section (received {section!r}), so {path[1]} has no place"
            )
        section[path[1]] = value
    return translated


def translate_settings(settings: Iterable[Setting], source: str) -> list[Setting]:
    """(path, value) pairs, as overrides are, with every path as it is called here, in order.

    A whole section becomes an empty one and then its settings. A path may come twice, and the last one counts, but not under
    two names: that raises RelgradError.
    """
    spelled: dict[Path, Path] = {}
    translated: list[Setting] = []
    for path, value in _multiply(_expand(settings), source):
        place = place_of(path)
        if spelled.setdefault(place, path) != path:
            one, other = ".".join(spelled[place]), ".".join(path)
            raise RelgradError(f"{source}: {one} and {other} are two names of one setting; give one of them")
        translated.append((place, value))
    return translated


def place_of(path: Path) -> Path:
    """Where a setting is found here: `group_size` and `grpo.group_size` are `grpo.num_generations`."""
    inside = path[1:] if path[0] == "grpo" else path
    return NAMES[inside[0]] if len(inside) == 1 and inside[0] in NAMES else path


def _expand(settings: Iterable[Setting]) -> list[Setting]:
    expanded: list[Setting] = []
    for path, value in settings:
        if len(path) == 1 and path[0] in SECTIONS and isinstance(value, Mapping):
            expanded += [(path, {}), *(((path[0], name), inner) for name, inner in value.items())]
        else:
            expanded.append((path, value))
    return expanded


def _multiply(settings: list[Setting], source: str) -> list[Setting]:
    """Take `gradient_accumulation_steps` into `batch_size`."""
    pieces = [s for s in settings if s[0] in ((PIECES,), ("grpo", PIECES))]
    if not pieces:
        return settings
    sizes = [s for s in settings if s[0] in (("batch_size",), ("grpo", "batch_size"))]
    numbers = [value for _, value in (*pieces, *sizes)]
    if len(numbers) != 2 or not all(type(n) is int and n > 0 for n in numbers):
        raise RelgradError(
            f"{source}: {PIECES}={pieces[0][1]!r} is understood beside one batch_size, as a factor of it (both whole numbers of "
            "at least 1). An optimizer step takes num_prompts prompts, however they are cut up to fit memory: set "
            "grpo.num_prompts, and grpo.micro_batch_tokens if memory is short"
        )
    product = numbers[0] * numbers[1]
    return [(path, product if path == sizes[0][0] else value) for path, value in settings if path != pieces[0][0]]
