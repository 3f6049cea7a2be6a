"""Single-step fill-in: masked text in, all masked positions filled at once; one decision is one masked position.

    log pi(x_i | masked input) = log softmax(logits_i / temperature)[x_i]    over ordinary ids and the recorded support

Given the masked input the positions are independent, so this is exact (likelihoods, section 2). Special ids (mask,
padding, summary) are outside the support of sampling and scoring alike. All completions of a prompt share its logits: a
forward pass runs once per prompt, however many completions it has.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import Draws, Randomness
from relgrad.core.types import CellScores, Example, Output, Prompt, Rollouts, Stop, SupervisedLoss
from relgrad.estimators.exact import Exact
from relgrad.estimators.interface import Estimator, Wanted
from relgrad.laws import categorical, tiled
from relgrad.laws.categorical import Truncation
from relgrad.laws.precision import ROUNDING
from relgrad.networks.causal.load import DTYPES
from relgrad.networks.diffusion_gpt.network import GPT
from relgrad.networks.weights.facts import count_parameters, truncation_facts
from relgrad.networks.weights.keeper import Keeper
from relgrad.networks.weights.seeded_dropout import seeded
from relgrad.policies.fill_in.denoise import denoise
from relgrad.policies.fill_in.filling import Filling
from relgrad.policies.fill_in.options import FIGURES
from relgrad.policies.fill_in.settings import Settings
from relgrad.policies.fill_in.supervised import critic_head, label_smoothing, mask_ratio_weight
from relgrad.policies.fill_in.truth import beside_truth, hidden_cells
from relgrad.text.masking import IGNORE
from relgrad.text.vocabulary import Vocabulary
from relgrad.trajectories.film import describe


class FillInPolicy:
    """See the module. Trace: masked_GL, length_G, position_GT (-1: none), token_BT and, truncated, the support.

    `length_G` is how many ids of a prompt the network looks at, in sampling, scoring and learning alike: the text, and, where the
    network attends to padding, the rest of the sample's own window. It depends on no other prompt.

    It is composed of a network and its laws (`filling`), an estimator of log-probabilities (`estimator`) and a keeper of weights
    (`weights`).
    """

    figures = FIGURES

    def __init__(self, model: GPT, vocabulary: Vocabulary, settings: Settings) -> None:
        if model.config.vocab_size < vocabulary.size - 1:  # the first original files have no summary id
            raise RelgradError(
                f"the network has {model.config.vocab_size} ids, its {vocabulary} needs {vocabulary.size}"
            )
        self.model, self.vocabulary, self.settings = model.eval(), vocabulary, settings
        self.version = 0
        self.max_decisions = model.config.block_size
        self.device = model.device
        self.model.arithmetic = DTYPES[settings.dtype]
        law = Truncation(settings.temperature, settings.top_k, settings.top_p)
        self.filling = Filling(self.model, vocabulary.excluded, law, settings.scoring)
        self.estimator: Estimator = Exact()
        self.weights = Keeper(self.model)

    @property
    def truncation(self) -> Truncation:
        """The law that draws."""
        return self.filling.truncation

    @property
    def law(self) -> Literal["exact", "surrogate"]:
        """What the estimator computes; a surrogate where another law scores than the one that draws."""
        return "surrogate" if self.filling.untempered else self.estimator.law

    # ------------------------------------------------------------------ prompts

    def encode(self, prompt: Prompt) -> list[int]:
        """Masked ids of a prompt. Raises RelgradError for another vocabulary, no masked position, or too long a text."""
        ids = prompt.columns.get("masked_ids")
        if ids is None:
            if not isinstance(prompt.content, str):
                raise RelgradError(
                    f"prompt {prompt.id} is a chat; a fill-in policy takes text with █ where it is masked"
                )
            ids = self.vocabulary.encode(prompt.content)
        else:
            self.vocabulary.require(prompt.columns["vocabulary"], f"prompt {prompt.id}")
        if self.vocabulary.mask_id not in ids:
            raise RelgradError(
                f"prompt {prompt.id} has no masked position: {prompt.text[:60]!r}. Write █ for every position to fill in"
            )
        if len(ids) > self.model.config.block_size:
            raise RelgradError(
                f"prompt {prompt.id} has {len(ids)} ids, more than policy.block_size={self.model.config.block_size}"
            )
        return list(ids)

    def read(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, list[int]]:
        """(masked ids int64 [G, L], padded; length_G; ids of the text alone) of the prompts."""
        rows, texts = list[list[int]](), list[int]()
        for prompt in prompts:
            ids = self.encode(prompt)
            texts.append(len(ids))
            if self.model.config.attends_padding:
                window = min(prompt.columns.get("width", 0), self.model.config.block_size)
                ids += [self.vocabulary.pad_id] * (window - len(ids))
            rows.append(ids)
        return *pad(rows, self.vocabulary.pad_id), texts

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> Rollouts:
        """See protocols.Policy. One uniform number per (row, decision), drawn up front; one forward pass per prompt."""
        self.model.eval()
        draws = Draws.of(randomness, len(prompts))
        masked_GL, length_G, texts = self.read(prompts)
        group_M, position_M = (masked_GL == self.vocabulary.mask_id).nonzero(as_tuple=True)
        count_G = torch.bincount(group_M, minlength=len(prompts))
        width = int(count_G.max())
        decision_M = torch.arange(len(group_M)) - (count_G.cumsum(0) - count_G)[group_M]
        uniform_MK = draws.rand_each(count_G.tolist(), group_size)
        hidden_MH = self.filling.hidden_at(masked_GL, length_G, group_M, position_M)
        logits_MV = self.filling.written(hidden_MH)
        support_MV = self.truncation.support(logits_MV) if self.truncation.truncates else None
        logp_MV = categorical.log_probs(logits_MV, self.truncation, support_MV)
        token_MK = categorical.invert_many(logp_MV.exp(), uniform_MK.to(self.device)).cpu()
        if self.filling.untempered:
            logp_MV = self.filling.scored(hidden_MH, None)
        logp_MK = logp_MV.gather(-1, token_MK.to(self.device)).cpu()
        token_GKT = torch.zeros(len(prompts), group_size, width, dtype=torch.int32)
        logp_GKT = torch.zeros(len(prompts), group_size, width)
        token_GKT[group_M, :, decision_M] = token_MK.to(torch.int32)
        logp_GKT[group_M, :, decision_M] = logp_MK.float()
        position_GT = torch.full((len(prompts), width), -1, dtype=torch.int32)
        position_GT[group_M, decision_M] = position_M.to(torch.int32)
        trace = {"masked_GL": masked_GL.to(torch.int32), "length_G": length_G, "position_GT": position_GT}
        if support_MV is not None:
            support = tiled.Support.pack(support_MV)
            trace["support_offset"], trace["support_index"] = support.offset_N1.cpu(), support.entry_M.cpu()
        return self._rollouts(tuple(prompts), texts, token_GKT, logp_GKT, trace)

    def _rollouts(
        self,
        prompts: tuple[Prompt, ...],
        texts: Sequence[int],
        token_GKT: Tensor,
        logp_GKT: Tensor,
        trace: dict[str, Tensor],
    ) -> Rollouts:
        groups, each, width = token_GKT.shape
        mask_BT = (trace["position_GT"] >= 0).repeat_interleave(each, 0)
        trace["token_BT"] = token_GKT.reshape(groups * each, width)
        filled = fill(trace["masked_GL"], trace["position_GT"], token_GKT)
        outputs = []
        for row, ids in enumerate(filled.flatten(0, 1).tolist()):
            ids = ids[: texts[row // each]]
            outputs.append(Output(self.vocabulary.decode(ids), tuple(ids)))
        return Rollouts(
            prompts=prompts,
            group_B=torch.arange(groups).repeat_interleave(each),
            behaviour_logp_BT=logp_GKT.reshape(groups * each, width).clone(),
            mask_BT=mask_BT,
            size_BT=mask_BT.long(),
            outputs=tuple(outputs),
            stop=ended(groups * each),
            policy_version=self.version,
            trace={k: v.clone() for k, v in trace.items()},
            # texts of other lengths beside it round a text differently; in 16 bits that is more than rounding noise
            foreign=self.model.arithmetic == torch.bfloat16,
        )

    def film(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> list[dict[str, Any]]:
        """`group_size` texts per prompt, each written in `settings.denoise.steps` steps, as trajectories/film.py describes them.

        Raises RelgradError where remasking asks for a critic that the network does not have.
        """
        if self.settings.denoise.remask == "critic" and not self.model.config.critic:
            raise RelgradError(
                "policy.denoise.remask=critic, but this network has no critic head. Train one with policy.critic_weight "
                "above 0, or remask by confidence or random"
            )
        begun = time.perf_counter()
        self.model.eval()
        repeated = [prompt for prompt in prompts for _ in range(group_size)]
        start_BL, length_B, lengths = self.read(repeated)
        frames = denoise(
            start_BL, length_B, self.vocabulary.mask_id, self.truncation, self.settings.denoise,
            self.filling.logits, self._wrong, Draws.of(randomness, len(prompts)),
        )  # fmt: skip
        texts = [p.text for p in repeated]
        films = describe(frames, texts, torch.tensor(lengths), self.vocabulary.mask_id, self.vocabulary.decode)
        seconds = time.perf_counter() - begun
        hidden = [hidden_cells(prompt, self.vocabulary) for prompt in repeated]
        return [
            {**film, "seconds": seconds, **({"hidden": cells} if cells else {})}
            for film, cells in zip(films, hidden, strict=True)
        ]

    # ------------------------------------------------------------------ told to people

    @property
    def facts(self) -> dict[str, str]:
        """See protocols.Described."""
        settings = self.settings
        facts = {"Parameters": f"{count_parameters(self.model):,}", "Writes": "all masked positions in one step"}
        return facts | truncation_facts(settings.temperature, settings.top_p, settings.top_k)

    def beside_truth(self, prompt: Prompt, output: Output) -> dict[str, Any]:
        """See protocols.KnowsTruth."""
        return beside_truth(prompt, output, self.vocabulary)

    def _wrong(self, ids_BL: Tensor, length_B: Tensor) -> Tensor:
        """[B, L] on the CPU: the critic's probability that the token at a position is wrong."""
        return self.model.critic(self.filling.hidden_of(ids_BL, length_B)).sigmoid().cpu()

    # ------------------------------------------------------------------ scoring

    @property
    def rounding(self) -> float:
        """See protocols.Rounds: of one position."""
        return ROUNDING[self.model.arithmetic]

    def plan(self, rollouts: Rollouts, rows: Tensor, budget: int) -> list[Tensor]:
        """Whole groups together, as many as keep their work near `budget`: rows of a group cost nothing extra.

        A group costs its ids, and its masked positions by the size of their logits over that of a hidden state.
        """
        group_B = rollouts.group_B
        spots_G = (rollouts.trace["position_GT"] >= 0).sum(-1)
        cost_G = (
            rollouts.trace["length_G"] + spots_G * self.model.config.vocab_size // self.model.config.n_embd
        ).tolist()
        chunks: list[list[int]] = []
        used = 0
        for group in group_B[rows].unique().tolist():
            if not chunks or used + cost_G[group] > budget:
                chunks.append([])
                used = 0
            chunks[-1].append(group)
            used += cost_G[group]
        rows_of = [rows[torch.isin(group_B[rows], torch.tensor(chunk))] for chunk in chunks]
        cells = [rollouts.cells(r) for r in rows_of]
        return [c for c in cells if len(c)]

    def score(
        self, rollouts: Rollouts, cells_N2: Tensor, *, entropy: bool = False, reference_kl: bool = False
    ) -> CellScores:
        """See protocols.Policy. Every (prompt, position) is computed once, whatever the number of rows that need it."""
        self.model.eval()
        wanted = Wanted(entropy, self.reference if reference_kl else None)
        return self.estimator.score(self.filling, rollouts, cells_N2, wanted)

    # ------------------------------------------------------------------ supervised

    def supervised_loss(self, examples: Sequence[Example], randomness: Randomness) -> SupervisedLoss:
        """Summed cross-entropy (nats, temperature 1) of the true ids at the labelled positions of the prompts.

        The loss has the settings' label smoothing, mask-ratio weights and critic head; its `nll` has none of them. Raises
        RelgradError for prompts without labels.
        """
        draws = Draws.of(randomness, len(examples))
        ids_BL, valid_BL, label_BL, texts = self._labelled(examples)
        row_N, column_N = (label_BL != IGNORE).nonzero(as_tuple=True)
        at = (row_N, column_N)
        label_N = label_BL[at]
        self.model.train()
        with seeded(draws):
            logits_NV = self.filling.written(self.model.hidden(ids_BL, valid_BL)[at])
            logp_NV = logits_NV.log_softmax(-1)
            nll = float(label_smoothing.cross_entropy(logp_NV.detach(), label_N).sum())
            loss_N = label_smoothing.cross_entropy(logp_NV, label_N, self.settings.label_smoothing)
            if self.settings.mask_ratio_power:
                ratio_B = (label_BL != IGNORE).sum(-1) / torch.tensor(texts, device=self.device)
                loss_N = loss_N * mask_ratio_weight.weights(ratio_B, self.settings.mask_ratio_power)[at[0]]
            loss = loss_N.sum()
            if self.settings.critic_weight and self.model.config.critic:
                uniform_N = draws.rand_each((label_BL != IGNORE).sum(-1).tolist())
                critic = critic_head.critic_loss(self.model, ids_BL, valid_BL, at, logits_NV, label_N, uniform_N)
                loss = loss + self.settings.critic_weight * critic
        self.model.eval()
        return SupervisedLoss(loss, len(label_N), nll)

    @torch.no_grad()
    def target_nll(self, examples: Sequence[Example]) -> tuple[float, int]:
        """See protocols.KnowsTargets. The targets are those of `supervised_loss`: the labelled positions."""
        ids_BL, valid_BL, label_BL, _ = self._labelled(examples)
        at = (label_BL != IGNORE).nonzero(as_tuple=True)
        self.model.eval()
        logp_NV = self.filling.written(self.model.hidden(ids_BL, valid_BL)[at]).log_softmax(-1)
        return float(label_smoothing.cross_entropy(logp_NV, label_BL[at]).double().sum()), len(at[0])

    def _labelled(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """(ids, which are there, labels or IGNORE [B, L], ids of every text) of the examples' masked texts."""
        for example in examples:
            if "label_ids" not in example.prompt.columns:
                raise RelgradError(
                    f"prompt {example.prompt.id} has no `label_ids`: supervised fill-in needs a task of masked text "
                    "(kind masked_text or masked_stream)"
                )
        ids_BL, length_B, texts = self.read([e.prompt for e in examples])
        labels = [list(e.prompt.columns["label_ids"]) for e in examples]
        label_BL, _ = pad(
            [ids + [IGNORE] * (int(n) - len(ids)) for ids, n in zip(labels, length_B, strict=True)], IGNORE
        )
        ids_BL, label_BL, length_B = (t.to(self.device) for t in (ids_BL, label_BL, length_B))
        valid_BL = torch.arange(ids_BL.shape[1], device=self.device)[None] < length_B[:, None]
        return ids_BL, valid_BL, label_BL, texts

    # ------------------------------------------------------------------ weights

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Trainable parameters by name."""
        return self.weights.parameters()

    def freeze_reference(self) -> None:
        """Take the weights of this moment as the reference."""
        self.weights.freeze_reference()

    @property
    def temperature(self) -> float:
        """See protocols.Tempered."""
        return self.settings.temperature

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Score with the frozen start; the trainable weights come back whatever happens inside."""
        with self.weights.reference(), self.filling.at_temperature(self.temperature):
            yield

    @contextmanager
    def start_at(self, temperature: float) -> Iterator[None]:
        """See protocols.Tempered."""
        if self.filling.untempered:
            raise RelgradError(
                "policy.scoring=untempered scores at temperature 1 whatever was drawn, so that the start at another temperature is "
                "no further away: leave it out, or evaluation.cooled"
            )
        with self.weights.reference(), self.filling.at_temperature(temperature):
            yield

    def save(self, folder: Path) -> None:
        """`model.safetensors`, `config.json` and `vocabulary.json`."""
        self.model.save(Path(folder))
        self.vocabulary.save(Path(folder))

    def export(self, file: Path) -> list[str]:
        """Write a checkpoint file of the original trainer, see protocols.Exported."""
        from relgrad.networks.diffusion_gpt.original_export import save_checkpoint

        return save_checkpoint(file, self.model, self.vocabulary)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote into this policy's weights. Raises RelgradError for another network or vocabulary."""
        saved = GPT.load(Path(folder))
        self.vocabulary.require(Vocabulary.load(Path(folder)).fingerprint, str(folder))
        self.model.take(saved.state_dict(), str(folder))


def ended(rows: int) -> tuple[Stop, ...]:
    """A filled-in text is complete by construction."""
    stop: tuple[Stop, ...] = ("eos",)
    return stop * rows


def pad(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """(int64 [B, L] padded on the right with `value`, int64 [B] lengths)."""
    length_B = torch.tensor([len(r) for r in rows])
    return torch.nn.utils.rnn.pad_sequence(
        [torch.as_tensor(r, dtype=torch.int64) for r in rows], batch_first=True, padding_value=value
    ), length_B


def fill(masked_GL: Tensor, position_GT: Tensor, token_GKT: Tensor) -> Tensor:
    """[G, K, L]: every group's masked ids with the tokens of each of its K completions put in place."""
    filled_GKL = masked_GL[:, None].expand(-1, token_GKT.shape[1], -1).clone()
    group_M, decision_M = (position_GT >= 0).nonzero(as_tuple=True)
    filled_GKL[group_M, :, position_GT[group_M, decision_M].long()] = token_GKT[group_M, :, decision_M]
    return filled_GKL
