"""The names that the originals' configuration files use, and what they are called here. Pure.

The originals are the trainer of the diffusion GPT, the Flow-GRPO trainer of FS-DFM, the two-phase trainer of replies, and the
search for workflows. Their names are understood at the top of a recipe (or of one of its stages), in a `grpo` section, and in
overrides; those of the sections `lora` and `polychromic` inside of these. `learning_rate` and the like keep their name inside a
section, where they mean the section's own; `sft` has names of its own. What is no setting here, or no single one, is refused with
the place where it is found (ELSEWHERE).

`gradient_accumulation_steps` cuts an optimizer step of the original into so many batches, so that a step takes `batch_size`
times as many prompts. Here a step takes `num_prompts` prompts whatever memory there is (`micro_batch_tokens`), so
the two together are one name: their product.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
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
    "weight_decay": ("grpo", "weight_decay"),
    "min_lr": ("grpo", "min_lr"),
    "lr_decay_iters": ("grpo", "decay_steps"),
    "generator_checkpoint": ("policy", "checkpoint"),
    "device": ("policy", "device"),
    "dtype": ("policy", "dtype"),
    "composition_config": ("task", "stages"),
    "save_interval": ("checkpoint", "every"),
    "out_dir": ("out",),
    "judge_checkpoint": ("rewards",),
    "wandb_log": ("trackers",),
    "kl_coeff": ("grpo", "beta"),
    "clip_range": ("grpo", "epsilon"),
    "generation_temperature": ("policy", "temperature"),
    "num_generation_steps": ("policy", "sampling_steps"),
    "num_sampled_timesteps": ("policy", "train_steps"),
    "n_generations": ("grpo", "num_generations"),
    "max_new_tokens": ("policy", "max_completion_length"),
    "checkpoint_path": ("policy", "adapter"),
    "reward_type": ("rewards",),
    "lora_learning_rate": ("grpo", "learning_rate"),
    "clip_ratio": ("grpo", "epsilon"),
    "entropy_coeff": ("grpo", "entropy_coef"),
    "checkpoint_every": ("checkpoint", "every"),
    "eval_every": ("evaluation", "every"),
}
OF_SECTIONS: dict[str, dict[str, Path]] = {
    "lora": {
        "rank": ("policy", "lora", "r"),
        "alpha": ("policy", "lora", "alpha"),
        "dropout": ("policy", "lora", "dropout"),
        "target_modules": ("policy", "lora", "target_modules"),
    },
    "polychromic": {
        "diversity_weight": ("polychromic", "weight"),
        "n_generations": ("polychromic", "num_generations"),
        "max_examples_for_diversity": ("polychromic", "num_prompts"),
        "compute_diversity_every_n_steps": ("polychromic", "every"),
    },
}
"""Names inside sections of their own, and what they are called here."""


def _reward_of(kind: Any) -> list[dict[str, Any]]:
    if kind != "heuristic":
        raise RelgradError(
            f"reward_type={kind!r}: understood is 'heuristic', which is the reward `replies`. A learned reward is a stage that "
            "trains the judge `engagement`, and `rewards: [{kind: engagement, judge: stage:LABEL}]`; both in a list: hybrid"
        )
    return [{"kind": "replies"}]


SHAPES: dict[str, Callable[[Any], Any]] = {
    "judge_checkpoint": lambda path: [{"kind": "judge", "judges": [path]}],
    "wandb_log": lambda on: ["wandb"] if on else [],
    "reward_type": _reward_of,
}
"""Values that look otherwise here."""
NO_CRITIC = "advantages are relative to their group: there is no critic and no discount; leave it out"
EVERY_STEP = "every step is logged, to metrics.jsonl and to the trackers; leave it out"
NEVER_CLIPS = "advantages are not clipped here: scaled by their group of G, none exceeds (G - 1) / sqrt(G), 2.5 for 8; leave it out"
ELSEWHERE: dict[str, str] = {
    "reference_checkpoint": "the reference is the policy as it starts (policy.checkpoint); leave it out",
    "log_interval": EVERY_STEP,
    "logging_steps": EVERY_STEP,
    "wandb_project": "it is the environment variable WANDB_PROJECT, relgrad where it is not set",
    "wandb_run_name": "a run is called by the recipe's `name`, in the tracker too",
    "adv_clip": NEVER_CLIPS,
    "adv_clip_max": NEVER_CLIPS,
    "clip_advantage": NEVER_CLIPS,
    "advantage_clip_range": NEVER_CLIPS,
    "_base_": "a recipe stands alone; write out what it takes from another one, or change a built-in one by overrides",
    "use_grpo": "a stage says what it is: stage: sft, grpo or polychromic",
    "experiment": "`name` and `seed` stand at the top of a recipe (experiment.name, experiment.random_seed)",
    "model": "it is policy.model, a folder or a hub name; policy.quantize: 4bit; policy.lora: {r, alpha} for lora_*",
    "training": "what it says of the optimizer is in the sections sft and grpo, by transformers' names: num_epochs is epochs, "
    "per_device_train_batch_size times gradient_accumulation_steps is sft.batch_size (grpo.num_prompts), bf16 is policy.dtype; "
    "problems_per_episode is grpo.num_prompts, and episodes are grpo.steps",
    "dataset": "it is the section task (gsm8k, competition_math, humaneval, mbpp ..., path), with three parts of its own",
    "mcts": "a search within training is grpo.search (evaluations a task), one for itself `relgrad search` (docs/workflows.md): "
    "num_search_rounds is search.iterations, num_samples_per_iteration search.selection.top_k, num_iterations search.trials.most",
    "num_epochs": "epochs over the task are grpo.epochs, passes over what was drawn grpo.num_iterations",
    "gamma": NO_CRITIC,
    "lam": NO_CRITIC,
    "value_coeff": NO_CRITIC,
    "reward": "weights, bands and gates are settings of the reward: rewards: [{kind: replies, weights: {...}}]",
    "data": "it is the section task (path, phase); max_length is given by the model; enable_thinking: false is "
    "policy.chat_template_kwargs: {enable_thinking: false}",
    "output": "`out` at the top names the folder of all runs (output.output_dir)",
    "wandb": "it is trackers: [wandb], and the environment variable WANDB_PROJECT",
    "unsloth": "there is one way to compute; leave it out",
    "reproducibility": "every run is reproducible: `seed` at the top, packages and hardware in environment.json; leave it out",
    "early_stopping": "it is evaluation.patience, which looks at validation scores every evaluation.every steps",
    "overfitting_detection": "validation/mean_nll is logged, and evaluation.patience ends a stage; leave it out",
    "grpo_monitoring": "bounds are evaluation.gate (min_gain, max_kl), and evaluation.kl_bound, which only warns",
    "reference_model_source": "the reference is the policy as the stage starts, without a second model; leave it out",
    "freeze_reference": "the reference is always frozen; leave it out",
    "maintain_diversity": "it is a reward beside others: {kind: diversity, weight: ...}",
    "diversity_bonus_weight": "it is a reward beside others: {kind: diversity, weight: ...}",
    "compute_grpo_every_n_steps": "every step is one of GRPO; a supervised term beside it is grpo.sft_coef",
    "max_examples_per_batch": "it is grpo.num_prompts",
}
"""Names that are not one setting here, and where the thing is found."""
PIECES = "gradient_accumulation_steps"
SECTIONS = ("grpo", "policy", "task", "checkpoint")


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
        section = translated
        for name, inner in itertools.pairwise(path):
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise RelgradError(f"{source}: {name} is not a section (received {section!r}), so {inner} has no place")
        section[path[-1]] = value
    return translated


def translate_settings(settings: Iterable[Setting], source: str) -> list[Setting]:
    """(path, value) pairs, as overrides are, with every path as it is called here, in order.

    A whole section becomes an empty one and then its settings. A path may come twice, and the last one counts, but not under
    two names: that raises RelgradError.
    """
    settings = list(settings)
    _refuse_elsewhere(settings, source)
    spelled: dict[Path, Path] = {}
    translated: list[Setting] = []
    for path, value in _multiply(_expand(settings), source):
        place = place_of(path)
        if spelled.setdefault(place, path) != path:
            one, other = ".".join(spelled[place]), ".".join(path)
            raise RelgradError(f"{source}: {one} and {other} are two names of one setting; give one of them")
        shape = SHAPES.get(path[-1], _as_it_is) if place != path else _as_it_is
        translated.append((place, shape(value)))
    return translated


def place_of(path: Path) -> Path:
    """Where a setting is found here: `group_size` and `grpo.group_size` are `grpo.num_generations`, `lora.rank` `policy.lora.r`."""
    if len(path) == 2 and path[1] in OF_SECTIONS.get(path[0], {}):
        return OF_SECTIONS[path[0]][path[1]]
    inside = path[1:] if path[0] == "grpo" else path
    return NAMES[inside[0]] if len(inside) == 1 and inside[0] in NAMES else path


def _as_it_is(value: Any) -> Any:
    return value


def _refuse_elsewhere(settings: Iterable[Setting], source: str) -> None:
    """Raise RelgradError for the first name of the originals that is no setting here."""
    for path, value in _expand(settings):
        inside = path[1:] if path[0] == "grpo" else path
        if inside and inside[0] in ELSEWHERE:
            raise RelgradError(f"{source}: {'.'.join(inside)}={value!r} is no setting here: {ELSEWHERE[inside[0]]}")
        if path[0] == "lora" and place_of(path) == path:
            names = ", ".join(OF_SECTIONS["lora"])
            raise RelgradError(
                f"{source}: {'.'.join(path)}={value!r}: of a section lora, {names} are understood; here it is policy.lora "
                "(r, alpha, dropout, target_modules)"
            )


def _expand(settings: Iterable[Setting]) -> list[Setting]:
    expanded: list[Setting] = []
    for path, value in settings:
        if len(path) == 1 and path[0] in (*SECTIONS, *OF_SECTIONS) and isinstance(value, Mapping):
            whole: list[Setting] = [] if path[0] == "lora" else [(path, {})]  # lora is no section here, policy.lora is
            expanded += [*whole, *(((path[0], name), inner) for name, inner in value.items())]
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
