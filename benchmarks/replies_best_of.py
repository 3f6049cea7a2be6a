"""How much choosing the best of 64 completions by the reward of replies gains, for a small model that was not trained for it.

    python -m benchmarks.replies_best_of --posts 8

SmolLM2-135M-Instruct writes 64 replies to each of some validation posts of the built-in data set. For k = 1 ... 64 it prints the
expected reward of the best of k (unbiased from the 64), then the rewards of good kinds of replies to these posts, and the best of
64 of every post to be read. The reward is at most 1, so that choosing can gain at most 1 less their mean beyond good replies.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch

from relgrad.core.randomness import generator
from relgrad.evaluation.passing import best_of
from relgrad.policies import autoregressive
from relgrad.rewards.replies import Settings, build
from relgrad.tasks import replies
from relgrad.text.replies import made

SAMPLES = 64
SIZES = (1, 4, 16, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--posts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    prompts = replies.load(replies.Settings(), seed=0).validation[: options.posts]
    settings = autoregressive.Settings(model=options.model, max_completion_length=options.tokens)
    policy = autoregressive.build(settings, options.seed)
    reward = build(Settings())
    kinds = {row["reply"]: row["kind"] for row in made.rows()}
    scores, good, best = [], [], []
    for number, prompt in enumerate(prompts):
        with torch.inference_mode():
            outputs = policy.sample([prompt], SAMPLES, generator(options.seed, "best-of", number)).outputs
        values = [score.value for score in reward(prompt, outputs)]
        scores.append(values)
        top = max(range(SAMPLES), key=values.__getitem__)
        best.append({"post": prompt.columns["tweet"], "reply": outputs[top].text, "reward": round(values[top], 3)})
        written = [text for text in prompt.columns["references"] if kinds[text] in made.GOOD]
        good += [score.value for score in reward(prompt, [type(outputs[0])(text) for text in written])]
    mean_good = statistics.mean(good)
    expected = {k: statistics.mean(best_of(values, k) for values in scores) for k in SIZES}
    figures = {
        "model": options.model,
        "posts": len(prompts),
        "reward of the best of k": {str(k): round(value, 3) for k, value in expected.items()},
        "share shut out": round(statistics.mean(value < 0.01 for values in scores for value in values), 3),
        "good replies, mean": round(mean_good, 3),
        "gain of the best of 64 beyond them": round(expected[SAMPLES] - mean_good, 3),
        "at most": round(1 - mean_good, 3),
        "best of 64": best,
    }
    print(json.dumps(figures, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
