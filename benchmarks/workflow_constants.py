"""What a recipe's test prompts allow: the best workflow of each, and the best that does not read the prompt.

    python -m benchmarks.workflow_constants workflows-smollm2

For tasks of described problems (kind `noisy_workflows`), whose workflows' exact worth is known. "The best single one" is chosen on
400 prompts of the training part: a policy that answers every prompt alike cannot be expected to do better.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from relgrad.core.types import Prompt
from relgrad.environments.workflows.described import judge_of, programs
from relgrad.environments.workflows.edits import Space
from relgrad.evaluation.held_out import mean
from relgrad.runs.build import find_recipe, load_task
from relgrad.runs.recipe import load_recipe


def worth_of_all(prompts: Iterable[Prompt], space: Space) -> tuple[list[float], dict[str, list[float]]]:
    """(worth of the best workflow of each prompt, worth of every workflow by its text for each prompt)."""
    judges = [judge_of(prompt.columns["kind_of_problem"], space) for prompt in prompts]
    return [judge.best[1] for judge in judges], {
        step.text: [judge.worth(step) for judge in judges] for step in programs(space)
    }


def main() -> None:
    """Print the figures of the recipe given."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    stage = load_recipe(find_recipe(sys.argv[1]), sys.argv[2:]).stages[-1]
    task = load_task(stage)
    tested = list(task.test)[: stage.evaluation.num_prompts]
    space = Space(max_size=tested[0].columns["max_size"])
    best, each = worth_of_all(tested, space)
    _, in_training = worth_of_all([task.train[i] for i in range(400)], space)
    single = max(in_training, key=lambda text: mean(in_training[text]))
    print(f"{len(tested)} test prompts, {len(each)} workflows of at most {space.max_size} operators")
    print(f"the best of each prompt   {mean(best):.3f}")
    print(f"the best single one       {mean(each[single]):.3f}   {single}")
    print(f"one at random             {mean([mean(values) for values in each.values()]):.3f}")


if __name__ == "__main__":
    main()
