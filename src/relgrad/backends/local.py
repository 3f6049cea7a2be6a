"""A causal model of transformers in this process, by the engine that policies are sampled with; log-probabilities are exact."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Literal

from relgrad.backends.protocol import CallFailed, Reply, Request, Usage
from relgrad.core.errors import RelgradError
from relgrad.core.randomness import generator
from relgrad.core.settings import NamesFiles, Strict
from relgrad.core.types import Prompt
from relgrad.networks.causal import load as causal
from relgrad.networks.weights import device
from relgrad.policies.autoregressive.build import compose
from relgrad.policies.autoregressive.policy import AutoregressivePolicy
from relgrad.policies.autoregressive.settings import Settings as PolicySettings


class Settings(Strict):
    """Which model, as policies name it, and where it runs.

    chat  word the messages by the model's chat template; false for models without one: one message below the other
    """

    model: Annotated[str, NamesFiles(or_hub=True)]
    tokenizer: Annotated[str | None, NamesFiles(or_hub=True)] = None
    chat: bool = True
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    engine: Literal["auto", "shared", "transformers"] = "auto"
    trust_remote_code: bool = False
    device: str = "auto"


def build(settings: Settings, seed: int = 0) -> Local:
    """Loads the model. Raises RelgradError."""
    return Local(settings)


class Local:
    """See protocol.Backend. One request after the other; a reply depends on the request, its seed included, and nothing else.

    At temperature 0 the most probable token is taken, at log-probability 0.
    """

    priced = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._model = causal.load_model(
            settings.model, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code
        )
        self._model.to(device.choose(settings.device))
        self._tokenizer = causal.load_tokenizer(
            settings.tokenizer or settings.model, trust_remote_code=settings.trust_remote_code
        )
        self._writers: dict[tuple[float, float, int], AutoregressivePolicy] = {}
        self._turn = asyncio.Lock()

    @property
    def identity(self) -> str:
        return f"local {self.settings.model} {self.settings.dtype}"

    def worst(self, request: Request) -> Usage:
        return Usage(1, len(self._writer(request).encode(self._prompt(request))), request.max_tokens)

    async def generate(self, request: Request) -> Reply:
        async with self._turn:
            try:
                return await asyncio.to_thread(self._draw, request)
            except RelgradError as error:  # a prompt that is too long, a chat that the template refuses
                raise CallFailed(str(error)) from None

    def _draw(self, request: Request) -> Reply:
        start = time.monotonic()
        rollouts = self._writer(request).sample(
            [self._prompt(request)], 1, generator(request.seed or 0, "local back end", request.key)
        )
        count = int(rollouts.mask_BT[0].sum())
        text, finish = rollouts.outputs[0].text, "length" if rollouts.stop[0] == "length" else "stop"
        for mark in request.stop:
            text, cut, _ = text.partition(mark)
            finish = "stop" if cut else finish
        return Reply(
            text,
            Usage(1, int(rollouts.trace["prompt_length_G"][0]), count),
            self.settings.model,
            "length" if finish == "length" else "stop",
            time.monotonic() - start,
            token_ids=tuple(rollouts.trace["token_BT"][0, :count].tolist()),
            logprobs=tuple(rollouts.behaviour_logp_BT[0, :count].tolist()),
        )

    def _prompt(self, request: Request) -> Prompt:
        if self.settings.chat:
            return Prompt(request.messages)
        return Prompt("\n".join(message["content"] for message in request.messages))

    def _writer(self, request: Request) -> AutoregressivePolicy:
        """The policy that writes by the request's law, made once for each law around the one model."""
        law = (request.temperature, request.top_p, request.max_tokens)
        if law not in self._writers:
            settings = PolicySettings(
                model=self.settings.model,
                temperature=request.temperature or 1.0,
                top_k=0 if request.temperature else 1,
                top_p=request.top_p,
                max_completion_length=request.max_tokens,
                chat=self.settings.chat,
                skip_special_tokens=True,
                engine=self.settings.engine,
            )
            self._writers[law] = compose(self._model, self._tokenizer, settings)
        return self._writers[law]

    async def close(self) -> None:
        """Nothing to give back."""
