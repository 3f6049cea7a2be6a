"""What the loops know of the outside: protocols, no implementation.

`Policy`, `Rewards`, `Loss` and `Tracker` are what every one of their kind is. What only some can do is a small protocol of its own
(`Supervised`, `Averaged`, `Filmed` …), asked for with `isinstance`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from relgrad.core.options import SampleOption
from relgrad.core.randomness import Randomness
from relgrad.core.types import CellScores, Example, Output, Prompt, RewardTable, Rollouts, SupervisedLoss, Written


class Policy(Protocol):
    """A text generator that can draw decisions and say exactly how likely they were.

    law            "exact": `score` is the log-probability of what `sample` drew. "surrogate": it is not, and says so
    version        the number of weight updates seen; the loop counts it up
    max_decisions  the most decisions a row can have (dr_grpo divides by it)
    """

    version: int
    max_decisions: int

    @property
    def law(self) -> Literal["exact", "surrogate"]: ...

    def sample(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> Rollouts:
        """Draw `group_size` trajectories per prompt.

        All random numbers come from `Draws.of(randomness, len(prompts))`, a prompt's from its own: what is drawn for it does not
        depend on the prompts beside it.
        """
        ...

    def score(
        self, rollouts: Rollouts, cells_N2: Tensor, *, entropy: bool = False, reference_kl: bool = False
    ) -> CellScores:
        """Log-probabilities (nats, float32, differentiable) of the chosen cells, under the law that sampled them.

        `reference_kl` also asks for the exact KL(policy || reference) of each cell's whole distribution.
        """
        ...

    def plan(self, rollouts: Rollouts, rows: Tensor, budget: int) -> list[Tensor]:
        """Partition the trainable cells of `rows` into chunks [N, 2], each of about `budget` tokens of work."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside it, `score` speaks for the frozen start. Raises RelgradError where the policy was built without."""
        ...

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The trainable parameters by name, always in the same order."""
        ...

    def save(self, folder: Path) -> None:
        """Write weights that a later `load`, and the model's own library, read (safetensors)."""
        ...

    def load(self, folder: Path) -> None:
        """Read what `save` wrote; raises RelgradError when the folder belongs to another model."""
        ...


@dataclass(frozen=True)
class Toy:
    """A tiny CPU instance that a policy offers to the contract tests (`toys() -> dict[name, () -> Toy]` in its module).

    enumerate  every trajectory the policy can produce for one prompt, one row each, as Rollouts ready for `score`
    keys       which trajectory every row of some Rollouts took, comparable between sampled and enumerated rows
    reward     what the "gradient" and "learns" tests reward; the toy must be able to raise its mean
    untouched  where the network comes from a library: log-probabilities [B, T] of some Rollouts' decisions by the library's own
               forward, on a model of its own with the policy's weights of the moment
    jumps      whether the law's probabilities jump where weights move: then finite differences are not the gradient of the law's
               formula, and are not compared with it
    """

    policy: Policy
    prompts: tuple[Prompt, ...]
    enumerate: Callable[[Prompt], Rollouts]
    keys: Callable[[Rollouts], list[Hashable]]
    reward: Callable[[Output], float]
    untouched: Callable[[Rollouts], Tensor] | None = None
    jumps: bool = False


@runtime_checkable
class Supervised(Protocol):
    """A model with a supervised loss. The loss is a *sum* over target tokens, so that accumulation is exact."""

    def supervised_loss(self, examples: Sequence[Example], randomness: Randomness) -> SupervisedLoss:
        """The summed loss, the number of targets it was summed over, and what of it is plain likelihood.

        All random numbers (masks, noise) come from `Draws.of(randomness, len(examples))`, an example's from its own; dropout from
        `common` and the number of the first example.
        """
        ...


@runtime_checkable
class KnowsTargets(Protocol):
    """A policy that knows how likely given targets are under it."""

    def target_nll(self, examples: Sequence[Example]) -> tuple[float, int]:
        """-log p of the targets in nats, added, and how many there are; at temperature 1, without dropout or gradient."""
        ...


class Trainable(Supervised, Protocol):
    """What the supervised loop trains."""

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]: ...

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


@runtime_checkable
class Averaged(Protocol):
    """A model that keeps something beside its weights which every optimizer step changes (a moving average, say)."""

    def after_update(self) -> None:
        """Called after every optimizer step."""
        ...


@runtime_checkable
class JudgedDifferently(Protocol):
    """A policy that is judged and used otherwise than it is trained: with averaged weights, in more steps."""

    def evaluation(self) -> AbstractContextManager[None]:
        """Inside it, `sample` writes as the policy is judged and used."""
        ...


@runtime_checkable
class Filmed(Protocol):
    """A policy that writes in several steps and can tell of them."""

    def film(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> list[dict[str, Any]]:
        """Step by step how `group_size` texts per prompt come about, as trajectories/film.py describes it."""
        ...


@runtime_checkable
class WritesInSteps(Protocol):
    """A kind of policy (its module) whose texts come about in several steps: `relgrad sample` films them, with these options.

    Its policies are `Filmed`; a kind without options of its own has an empty tuple.
    """

    SAMPLE_OPTIONS: tuple[SampleOption, ...]


@runtime_checkable
class Tempered(Protocol):
    """A policy whose law has a temperature, at which its frozen start can be looked at otherwise.

    temperature  the one it samples and scores at
    """

    @property
    def temperature(self) -> float: ...

    def start_at(self, temperature: float) -> AbstractContextManager[None]:
        """Inside it, `sample` and `score` speak for the frozen start at this temperature, also as the policy is judged.

        What the divergence is measured from stays the start at the policy's own temperature. Raises RelgradError where the policy
        was built without a reference, or does not score by the law that it samples.
        """
        ...


@runtime_checkable
class OpensAdapters(Protocol):
    """A kind of policy (its module) that reads the folder of a bare PEFT adapter, whoever trained it."""

    def adapter_settings(self, folder: Path, like: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a policy that holds the adapter, to be built with `start=folder`; else as `like` says.

        Raises RelgradError for an adapter of a kind that the policy does not know.
        """
        ...


@runtime_checkable
class SettledByWeights(Protocol):
    """A kind of policy (its module) whose saved weights settle what some of its settings say."""

    def settled(self, start: Path) -> tuple[str, ...]:
        """The names of settings that have no effect on a policy that goes on from the folder `start`."""
        ...


@runtime_checkable
class GoesOnFrom(Protocol):
    """A kind of policy (its module) that can go on from what policies of other kinds saved, whose names these are."""

    GOES_ON_FROM: tuple[str, ...]


@runtime_checkable
class CostlyEntropy(Protocol):
    """A policy whose entropy costs much more than its log-probabilities, or that has none, where `costly_entropy` is True.

    The loop asks it for entropy only where the loss needs it, and else logs the mean of -log pi.
    """

    costly_entropy: bool


@runtime_checkable
class Exported(Protocol):
    """A policy that can be written in the format of the program that its kind of network comes from."""

    def export(self, file: Path) -> list[str]:
        """Write the file; returns what a person should know of it. Raises RelgradError for what that program does not have."""
        ...


@runtime_checkable
class Estimates(Protocol):
    """A policy that may score by a surrogate.

    estimator_kind  which one: "exact" where it scores by its law
    own_loss        the module of the loss that this one needs; None where any loss will do
    """

    @property
    def estimator_kind(self) -> str: ...

    @property
    def own_loss(self) -> str | None: ...


@runtime_checkable
class ForEstimator(Protocol):
    """A loss that goes with one kind of estimator, `estimator`."""

    estimator: ClassVar[str]


@runtime_checkable
class MergesAdapter(Protocol):
    """A policy that can write its model with the adapter folded into the weights."""

    def merge(self, folder: Path) -> None:
        """Write ordinary weights that the model's own library reads. Raises RelgradError where there is no adapter to merge."""
        ...


class ServedLaw(NamedTuple):
    """How completions of a policy are drawn, as a server is asked for it: `end_ids` are the tokens that end one."""

    temperature: float
    max_tokens: int
    end_ids: tuple[int, ...]


@runtime_checkable
class Served(Protocol):
    """A policy for which a server that holds the same model and its adapter can write completions, token by token."""

    def served_law(self) -> ServedLaw:
        """What completions are asked for. Raises RelgradError for a policy that no server can speak for."""
        ...

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt, what stands before it included. Raises RelgradError as `sample` does."""
        ...

    def text_ids(self, text: str) -> list[int]:
        """The tokens of a plain text, without special ones."""
        ...

    def rollouts_of(self, prompts: Sequence[Prompt], written: Sequence[Sequence[Written]]) -> Rollouts:
        """What was written for each prompt, equally many for all, as `sample` would give it; marked as foreign."""
        ...

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter of this moment, and nothing else, as peft reads it."""
        ...


@runtime_checkable
class WritesGguf(Protocol):
    """A policy whose model, its adapter folded in, can be written as a GGUF file."""

    def require_gguf(self) -> None:
        """Raise RelgradError, before any work, for a model or tokenizer that the format does not have, and without the package."""
        ...

    def write_gguf(self, file: Path, name: str) -> str:
        """Write the file and read it back; says what was compared. Raises RelgradError for a model the format does not have."""
        ...


@runtime_checkable
class Rounds(Protocol):
    """A policy that knows by how much its arithmetic rounds: of 16 bits, or sums of many log-probabilities as one decision."""

    @property
    def rounding(self) -> float:
        """Nats by which the log-probability of a decision may differ between drawing and scoring by rounding alone."""
        ...


@runtime_checkable
class Jumps(Protocol):
    """A policy that knows whether its law compares what the network says: where rounding turns one, its probability jumps."""

    @property
    def jumps(self) -> bool:
        """Whether the log-probability of single decisions may be far off by rounding alone, while that of most is not."""
        ...


@runtime_checkable
class HasNetwork(Protocol):
    """A policy whose weights are those of one network."""

    @property
    def model(self) -> torch.nn.Module: ...


@runtime_checkable
class Noted(Protocol):
    """A policy that has something to say at the start of a run (which engine it runs on, and why)."""

    notes: tuple[str, ...]


@runtime_checkable
class Described(Protocol):
    """A policy that says in a few words how large it is and how it writes: the head of the report shows it."""

    @property
    def facts(self) -> Mapping[str, str]:
        """Short labels and what they say: "Parameters", "Temperature", "Steps" …"""
        ...


@runtime_checkable
class KnowsTruth(Protocol):
    """A policy that can hold what it wrote against the truth, place by place, where the prompt has it."""

    def beside_truth(self, prompt: Prompt, output: Output) -> dict[str, Any]:
        """`truth` and `holes`, as samples/*.jsonl has them (docs/run-folder.md); empty where the truth is not known."""
        ...


@runtime_checkable
class ExplainsParts(Protocol):
    """A module of rewards that says what the parts of their scores mean."""

    PARTS: Mapping[str, str]


@runtime_checkable
class ShowsFigures(Protocol):
    """A policy whose training is told by other figures than the console's usual ones."""

    figures: tuple[str, ...]


class DecisionProblem(Protocol):
    """A task whose rows are built decision by decision through states that can be computed, so that a search can walk through them.

    start       the state before the first decision; states are hashable, and equal ones are one
    actions     how many decisions there are, the same in every state
    most_steps  decisions after which a row ends, solved or not
    """

    actions: int
    most_steps: int

    @property
    def start(self) -> Any: ...

    def apply(self, state: Any, action: int) -> Any:
        """The state after a decision."""
        ...

    def solved(self, state: Any) -> bool:
        """Whether a row that comes here has done what can be seen of the task; the row ends."""
        ...


Place = tuple[DecisionProblem, Any, int]
"""Where a row stands: its problem, its state, and how many decisions were taken."""


@runtime_checkable
class GuidesSearch(Protocol):
    """A policy whose decisions a tree search can take in its place, guided by how likely the policy thinks them.

    search_evaluations  numbers of evaluated programs (or rows) at which evaluations tell how many prompts a search has solved, in
                        ascending order; empty: evaluations do not search
    """

    search_evaluations: tuple[int, ...]

    def problem(self, prompt: Prompt) -> DecisionProblem:
        """What is to be solved. Raises RelgradError for a prompt that is none."""
        ...

    def priors(self, places: Sequence[Place]) -> Tensor:
        """float32 [N, actions]: the policy's probabilities of every decision at places where rows go on."""
        ...

    def rollouts_of(self, prompts: Sequence[Prompt], group_B: Tensor, decisions: Sequence[Sequence[int]]) -> Rollouts:
        """Rows of these decisions, with the policy's own log-probabilities, ready for `score`. One that is neither solved nor at
        its last decision has the stop "length"."""
        ...


@runtime_checkable
class Audited(Protocol):
    """A judge that is examined on prompts that neither it nor the policy was trained on."""

    def require(self, prompts: Sequence[Prompt]) -> None:
        """Raise RelgradError where these are too few for an audit."""
        ...

    def audit(
        self, prompts: Sequence[Prompt], generator: torch.Generator, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Any]:
        """Examine the judge; what was found, as audit.json has it. `progress(done, total)` counts prompts."""
        ...


@runtime_checkable
class Learner(Protocol):
    """A reward that goes on learning during the run, where `learns` is True. While `fixed`, it scores as it did before the run."""

    learns: bool
    fixed: bool

    def due(self, step: int) -> bool:
        """Whether it is to be refitted after this optimizer step."""
        ...

    def prompts_wanted(self) -> int:
        """How many prompts one refit takes."""
        ...

    def refit(self, policy: Any, prompts: Sequence[Prompt], generator: torch.Generator) -> float:
        """Learn from what the policy writes by now; the mean loss."""
        ...

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


class Rewards(Protocol):
    """All rewards of a recipe, called on a whole batch of rollouts; failures come back as NaN with a reason."""

    names: tuple[str, ...]

    def __call__(self, rollouts: Rollouts) -> RewardTable: ...


@dataclass(frozen=True)
class LossTerms:
    """Everything a loss may see. Log-probabilities in nats; never logits, models or configurations.

    A loss is a sum over the rows given, divided by counts of the whole optimizer step (`rows`, `decisions`, `batch_decisions`), so
    that the losses and gradients of parts add up to those of the whole.

    logp_BT            the current policy's, the leaf that is differentiated
    behaviour_logp_BT  the sampling policy's, recorded
    advantage_BT       [B, T] (broadcast from rows where credit is per row)
    mask_BT            bool, finished: True where a decision counts
    group_B            int64 [B]: which rows are compared; None where the loss is told of no groups
    reference_logp_BT  the frozen start's, or None when beta is 0 or the KL is exact
    entropy_BT, kl_BT  leaves too, where the loss asked for them (`Loss.needs`)
    correction_BT      truncated importance weights for decisions that another than the current policy drew, or None
    step_rows          rows of the optimizer step; None: those given are all
    step_decisions     trained decisions of the optimizer step; None: those given are all
    batch_decisions    decisions per optimizer step, averaged over the generation batch (dapo's and cispo's divisor)
    max_decisions      longest possible row (dr_grpo's divisor)
    stands_for         decisions that each trained one stands for, where a policy trains a random part of each row
    """

    logp_BT: Tensor
    behaviour_logp_BT: Tensor
    advantage_BT: Tensor
    mask_BT: Tensor
    batch_decisions: float
    max_decisions: int
    reference_logp_BT: Tensor | None = None
    entropy_BT: Tensor | None = None
    kl_BT: Tensor | None = None
    correction_BT: Tensor | None = None
    stands_for: float = 1.0
    group_B: Tensor | None = None
    step_rows: int | None = None
    step_decisions: float | None = None

    @property
    def rows(self) -> int:
        """How many rows the optimizer step has."""
        return self.logp_BT.shape[0] if self.step_rows is None else self.step_rows

    @property
    def decisions(self) -> float:
        """How many trained decisions the optimizer step has; at least 1, being a divisor."""
        count = float(self.mask_BT.sum()) if self.step_decisions is None else self.step_decisions
        return max(count, 1.0)


class Loss(Protocol):
    """(LossTerms) -> (scalar, metrics). `needs` names the optional terms: "reference", "entropy", "kl"."""

    @property
    def needs(self) -> frozenset[str]: ...

    def __call__(self, terms: LossTerms) -> tuple[Tensor, dict[str, float]]: ...


class Tracker(Protocol):
    """Receives the figures of every step (`metrics.jsonl` is one, TensorBoard another)."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


Reward = Callable[..., Any]
"""`(prompt: Prompt, outputs: Sequence[Output]) -> Sequence[Score]`, or a TRL-style function; see rewards/combine.py."""
