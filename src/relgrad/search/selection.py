r"""Which workflow is edited next.

PUCT (Silver et al. 2017, arXiv:1712.01815), with progressive widening (Coulom 2007), since the edits of a workflow are many:

    child = argmax_c  q(c) + exploration * P(c) * sqrt(N) / (1 + n(c)),   q: Q between the tree's lowest and highest mean

AFlow (Zhang et al. 2024, arXiv:2410.10762, as its code has it: mix .3, sharpness .2, scores in percent), over the first workflow
and the best others:

    P(i) = mix / n + (1 - mix) * exp(sharpness * 100 (s_i - s_max)) / sum_j exp(sharpness * 100 (s_j - s_max))
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from relgrad.search.settings import Selection
from relgrad.search.tree import Node, Tree


class Choice(NamedTuple):
    """The node to edit, and the log-probability of choosing it (nats): 0 for a rule that draws nothing."""

    node: Node
    logp: float


def choose(tree: Tree, settings: Selection, draw: random.Random) -> Choice | None:
    """By the settings' rule; None where no workflow of the tree can be edited any more."""
    return _puct(tree, settings) if settings.rule == "puct" else _aflow(tree, settings, draw)


def _puct(tree: Tree, settings: Selection) -> Choice | None:
    node, open_nodes = tree.root, _open(tree)
    if node.number not in open_nodes:
        return None
    while True:
        children = [tree.nodes[number] for number in node.children if number in open_nodes]
        if not node.exhausted and (
            not children or len(node.children) < settings.widening * math.sqrt(max(node.visits, 1))
        ):
            return Choice(node, 0.0)
        noise = settings.noise if node is tree.root else 0.0
        scores = puct_scores(tree, node, children, settings.exploration, noise)
        node = children[max(range(len(children)), key=lambda i: (scores[i], -children[i].number))]


def _open(tree: Tree) -> set[int]:
    """Nodes in whose subtree something can be edited still."""
    found: set[int] = set()
    for node in reversed(tree.nodes):
        if (not node.exhausted and node.same_as is None) or any(child in found for child in node.children):
            found.add(node.number)
    return found


def puct_scores(tree: Tree, node: Node, children: Sequence[Node], exploration: float, noise: float) -> list[float]:
    """The score of every child; one whose workflows have no score yet has its parent's Q."""
    means = [other.mean for other in tree.scored()]
    low, high = (min(means), max(means)) if means else (0.0, 0.0)
    total = math.fsum(child.prior for child in children)

    def scaled(q: float) -> float:
        return 0.5 if math.isnan(q) or high == low else (q - low) / (high - low)

    scores = []
    for child in children:
        share = child.prior / total if total else 1 / len(children)
        prior = (1 - noise) * share + noise / len(children)
        value = scaled(node.q if math.isnan(child.q) else child.q)
        scores.append(value + exploration * prior * math.sqrt(node.visits) / (1 + child.visits))
    return scores


def _aflow(tree: Tree, settings: Selection, draw: random.Random) -> Choice | None:
    candidates = [node for node in tree.scored() if not node.exhausted]
    others = sorted((n for n in candidates if n is not tree.root), key=lambda node: (-node.mean, node.number))
    chosen = [*(node for node in candidates if node is tree.root), *others][: max(settings.top_k, 1)]
    if not chosen:
        return None if tree.root.exhausted else Choice(tree.root, 0.0)
    chances = soft_chances([node.mean for node in chosen], settings.mix, settings.sharpness)
    index = draw.choices(range(len(chosen)), chances)[0]
    return Choice(chosen[index], math.log(chances[index]))


def soft_chances(scores: Sequence[float], mix: float, sharpness: float) -> list[float]:
    """AFlow's probabilities of nodes with these scores, between 0 and 1 each."""
    top = max(scores)
    weights = [math.exp(100 * sharpness * (score - top)) for score in scores]
    total = math.fsum(weights)
    return [mix / len(scores) + (1 - mix) * weight / total for weight in weights]
