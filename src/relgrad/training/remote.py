"""Completions of training that a server writes in the policy's place: a writer for experience.Fresh.

    before a batch    the adapter of this moment is saved and loaded there, when the last one is `sync_every` steps old
    for the batch     every prompt's completions are asked for, token by token, with their log-probabilities log q
    in the learner    log q is foreign: the loss of each token is multiplied by min(pi / q, importance_sampling_cap), pi being the
                      policy's own probability (truncated importance sampling, Yao et al. 2025), and the gap is logged

The server is examined before the first step (`probe`), and the gap of every batch that it wrote with the policy's own weights
(`require_server_agrees`): a server that computes something else is refused, not corrected.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError, ServerFailed, UnknownModel
from relgrad.core.protocols import Policy, Served, ServedLaw
from relgrad.core.randomness import Draws, Randomness, generator
from relgrad.core.ranks import Ranks
from relgrad.core.types import CompletionRequest, Prompt, Rollouts, Written
from relgrad.training.batch import Batch
from relgrad.training.settings import RemoteSettings

PROBED, PROBE_COMPLETIONS = 2, 2
"""Of the probe: training prompts, and completions of each."""
PROBE_TOKENS = 64
"""The most tokens of one of them."""


class Server(Protocol):
    """What is asked of a server. Every method raises ServerFailed."""

    def models(self) -> list[str]:
        """The names of its models and adapters."""
        ...

    def token_ids(self, model: str, text: str) -> list[int]:
        """The tokens of a text, without special ones, by its tokenizer."""
        ...

    def load_adapter(self, name: str, folder: str) -> None: ...

    def unload_adapter(self, name: str) -> None: ...

    def complete(self, model: str, requests: Sequence[CompletionRequest], law: ServedLaw) -> list[list[Written]]:
        """The completions of every prompt. Raises UnknownModel."""
        ...


class Remote:
    """See experience.Writer. `adapters` is the folder that the server reads adapters from; `run` begins their names."""

    name = "remote"

    def __init__(
        self, policy: Policy, server: Server, settings: RemoteSettings, run: str, adapters: Path, ranks: Ranks
    ) -> None:
        if not isinstance(policy, Served):
            raise RelgradError(
                f"grpo.remote: no server can write in the place of a {type(policy).__name__}; it can for policies of kind "
                "autoregressive"
            )
        self.policy: Policy = policy
        self.served: Served = policy
        self.server, self.settings, self.run, self.ranks = server, settings, run, ranks
        self.adapters, self.law = adapters, policy.served_law()
        self.loaded: str | None = None
        self.loaded_version = -1

    # ------------------------------------------------------------------ at the start

    def probe(self, prompts: Sequence[Prompt]) -> str:
        """Examine the server; says how near it is. All processes call it, and the first one asks.

        Raises ServerFailed for a server that does not answer, has another model or tokenizer, tells no token ids or
        log-probabilities, or loads no adapters.
        """
        return self.ranks.same(self.ranks.together(lambda: self._probe(prompts) if self.ranks.first else ""))

    def _probe(self, prompts: Sequence[Prompt]) -> str:
        settings, probed = self.settings, [prompts[number] for number in range(min(PROBED, len(prompts)))]
        models = self.server.models()
        if settings.model not in models:
            raise ServerFailed(
                f"{settings.url} has no model {settings.model!r} (grpo.remote.model). It has {', '.join(models)}"
            )
        for prompt in probed:
            self._require_same_tokens(prompt.text)
        self._forget_old_adapters(models)
        self._load()
        law = self.law._replace(max_tokens=min(self.law.max_tokens, PROBE_TOKENS))
        written = self._complete(probed, PROBE_COMPLETIONS, generator(0, "probe"), law)
        gap_N = self._gap(self.served.rollouts_of(probed, written))
        mean, worst = float(gap_N.mean()), float(gap_N.max())
        tolerance = settings.tolerance_at(self.law.temperature)
        if not mean <= tolerance:
            raise ServerFailed(
                f"{settings.url}: the server's log-probabilities of {len(gap_N)} tokens that it wrote are {mean:.3g} nats away "
                f"from the policy's on average, and grpo.remote.tolerance is {tolerance:g}. It holds other weights (is "
                f"{settings.model!r} what policy.model names?), leaves the adapter out, or its log-probabilities are of another "
                f"law than temperature {self.law.temperature:g} (vLLM: --logprobs-mode processed_logprobs)"
            )
        return (
            f"completions are written by {settings.url}: its log-probabilities of {len(gap_N)} tokens are {mean:.1e} nats away "
            f"from the policy's on average, {worst:.1e} at most"
        )

    def _require_same_tokens(self, text: str) -> None:
        own, there = self.served.text_ids(text), self.server.token_ids(self.settings.model, text)
        if own != there:
            raise ServerFailed(
                f"{self.settings.url}: the tokenizer of {self.settings.model!r} is another one than the policy's. {text[:40]!r} is "
                f"{_some(own)} here and {_some(there)} there"
            )

    def _forget_old_adapters(self, models: Sequence[str]) -> None:
        """Adapters of an earlier process of this run take memory there."""
        for name in models:
            if name.startswith(f"{self.run}-v"):
                self.server.unload_adapter(name)

    @torch.no_grad()
    def _gap(self, rollouts: Rollouts) -> Tensor:
        """Nats [N] between the log-probabilities of the server and those of the policy, token by token."""
        gaps = []
        for cells_N2 in self.policy.plan(rollouts, torch.arange(rollouts.rows), 8192):
            own_N = self.policy.score(rollouts, cells_N2).logp_N.cpu()
            gaps.append((own_N - rollouts.behaviour_logp_BT[cells_N2[:, 0], cells_N2[:, 1]]).abs())
        return torch.cat(gaps)

    # ------------------------------------------------------------------ batches

    def prepare(self) -> None:
        """Give the server the adapter of this moment, where the one that it has is `sync_every` steps old."""
        if self.loaded_version >= 0 and self.policy.version - self.loaded_version < self.settings.sync_every:
            return
        self.ranks.together(lambda: self._load() if self.ranks.first else None)
        self.loaded = self.ranks.same(self.loaded)
        self.loaded_version = self.policy.version

    def sample(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> Rollouts:
        """See experience.Writer."""
        rollouts = self.served.rollouts_of(prompts, self._complete(prompts, group_size, randomness, self.law))
        return dataclasses.replace(rollouts, policy_version=self.loaded_version)

    def _complete(
        self, prompts: Sequence[Prompt], count: int, randomness: Randomness, law: ServedLaw
    ) -> list[list[Written]]:
        seeds = Draws.of(randomness, len(prompts)).randint(0, 2**31 - 1).tolist()
        requests = [
            CompletionRequest(self.served.prompt_ids(prompt), count, seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        assert self.loaded is not None
        try:
            return self.server.complete(self.loaded, requests, law)
        except UnknownModel:  # a server that was started anew has lost its adapters; the folder is still there
            if self.loaded not in self.server.models():  # another process of this job may have been faster
                self.server.load_adapter(self.loaded, self._there(self.loaded))
            return self.server.complete(self.loaded, requests, law)

    # ------------------------------------------------------------------ adapters

    def _load(self) -> None:
        """Save the adapter of this moment under a name that tells its version and what is in it, and load it there."""
        unnamed = self.adapters / f"{self.run}.saving"
        shutil.rmtree(unnamed, ignore_errors=True)
        unnamed.mkdir(parents=True)
        self.served.save_adapter(unnamed)
        digest = hashlib.sha256()
        for file in sorted(unnamed.glob("*.safetensors")):
            digest.update(file.read_bytes())
        name = f"{self.run}-v{self.policy.version}-{digest.hexdigest()[:8]}"
        shutil.rmtree(self.adapters / name, ignore_errors=True)
        unnamed.rename(self.adapters / name)
        before, self.loaded = self.loaded, name
        if name == before:
            return
        self.server.load_adapter(name, self._there(name))
        if before is not None:
            self.server.unload_adapter(before)
            shutil.rmtree(self.adapters / before, ignore_errors=True)

    def _there(self, name: str) -> str:
        """An adapter's folder as the server sees it."""
        there = self.settings.adapters_there
        return f"{there.rstrip('/')}/{name}" if there else str((self.adapters / name).absolute())


def require_server_agrees(
    batch: Batch, own_BT: Tensor, settings: RemoteSettings, temperature: float, step: int
) -> None:
    """Raise ServerFailed where what the server wrote with the policy's own weights is further from `own_BT` than the tolerance.

    Rows that it wrote with an older adapter are no sign: there the policies differ.
    """
    gaps, first = [torch.zeros(0)], 0
    for part in batch.parts:
        rows = slice(first, first + part.rollouts.rows)
        first += part.rollouts.rows
        if part.source == Remote.name and part.rollouts.policy_version == batch.policy_version:
            width = part.rollouts.mask_BT.shape[1]
            mask_BT = part.rollouts.mask_BT & batch.mask_BT[rows, :width] & batch.keep_B[rows, None]
            gaps.append((own_BT[rows, :width] - part.rollouts.behaviour_logp_BT)[mask_BT].abs())
    gap_N = torch.cat(gaps)
    mean = float(gap_N.mean()) if len(gap_N) else 0.0
    tolerance = settings.tolerance_at(temperature)
    if not mean <= tolerance:
        raise ServerFailed(
            f"step {step + 1}: {settings.url} wrote completions whose log-probabilities are {mean:.3g} nats away from the policy's "
            f"on average, and grpo.remote.tolerance is {tolerance:g}: it does not compute with the adapter that it was "
            "given. The step was not taken"
        )


def _some(ids: Sequence[int]) -> str:
    return f"{list(ids[:8])}{' …' if len(ids) > 8 else ''}"
