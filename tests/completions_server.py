"""A server with vLLM's completions API over relgrad's own engine: `python tests/completions_server.py MODEL [--port 8000]`.

It serves what training against a remote engine asks for: prompts as text or as token ids, `n`, `seed`, `temperature`, `max_tokens`,
`stop_token_ids`, log-probabilities, `return_token_ids`, and adapters loaded at run time. Everything else in a request must say what
is true of it anyway. One request is computed at a time. `--fault` makes it a server that does one thing wrong.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from relgrad.laws.categorical import Truncation
from relgrad.policies.autoregressive import AutoregressivePolicy, Settings, adapter_settings, build

FAULTS = (
    "no-token-ids",
    "no-logprobs",
    "ignores-adapters",
    "raw-logprobs",
    "silent",
    "other-tokenizer",
    "refuses-adapters",
)
NEUTRAL = {
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip


class Refused(Exception):
    """A request that is answered with a status and a reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Models:
    """The base model under its name, and adapters by theirs."""

    def __init__(self, model: str, fault: str | None = None) -> None:
        self.base, self.fault = model, fault
        self.policies: dict[str, AutoregressivePolicy] = {model: build(Settings(model=model, device="cpu"), 0)}

    def load(self, name: str, folder: Path) -> None:
        if self.fault == "refuses-adapters" or not (folder / "adapter_config.json").is_file():
            raise Refused(404, f"no adapter in {folder}")
        if name in self.policies:
            raise Refused(400, f"the adapter {name} is loaded already")
        if self.fault == "ignores-adapters":
            self.policies[name] = self.policies[self.base]
            return
        settings = Settings(**adapter_settings(folder, {"model": self.base, "device": "cpu"}))
        self.policies[name] = build(settings, 0, start=folder)

    def unload(self, name: str) -> None:
        if self.policies.pop(name, None) is None:
            raise Refused(404, f"no adapter {name}")

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request for completions."""
        for key, value in NEUTRAL.items():
            if body.get(key, value) != value:
                raise Refused(400, f"{key}={body[key]}")
        policy = self.policies.get(body["model"])
        if policy is None:
            raise Refused(404, f"no model {body['model']}")
        prompt = body["prompt"]
        ids = policy.text_ids(prompt) if isinstance(prompt, str) else prompt
        if self.fault == "other-tokenizer":
            ids = [*ids, 1] if isinstance(prompt, str) else ids
        count, limit = body.get("n", 1), body["max_tokens"]
        draw = torch.Generator().manual_seed(body.get("seed", 0))
        policy.modes.draw()
        with torch.inference_mode():
            drawn = policy.engine.generate(
                [torch.tensor(ids)], count, Truncation(body.get("temperature", 1.0)),
                torch.tensor(body.get("stop_token_ids", policy.eos_ids)), torch.rand(count, limit, generator=draw),
            ).ordinary()  # fmt: skip
        choices = []
        for row in range(count):
            length = int(drawn.length_B[row])
            written, logp = drawn.token_BT[row, :length].tolist(), drawn.logp_BT[row, :length].tolist()
            if self.fault == "raw-logprobs":
                logp = [value * body.get("temperature", 1.0) for value in logp]
            choice = {
                "index": row,
                "text": policy.encoder.decode([written])[0],
                "finish_reason": "stop" if drawn.ended_B[row] else "length",
                "logprobs": {"token_logprobs": logp} if "logprobs" in body else None,
            }
            if body.get("return_token_ids"):
                choice |= {"token_ids": written, "prompt_token_ids": list(ids)}
            if self.fault == "no-token-ids":
                choice |= {"token_ids": None}
            if self.fault == "no-logprobs":
                choice |= {"logprobs": None}
            choices.append(choice)
        return {"model": body["model"], "choices": choices}


class Listening(ThreadingHTTPServer):
    """`models` answers; `address` is what a recipe's `grpo.remote.url` says."""

    daemon_threads = True

    def __init__(self, models: Models, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.models, self.one_at_a_time = models, threading.Lock()
        self.requests: list[tuple[str, dict[str, Any]]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Listening
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: dict[str, Any]) -> None:
        models = self.server.models
        self.server.requests.append((self.path, body))
        if models.fault == "silent":
            time.sleep(30)
        try:
            with self.server.one_at_a_time:
                status, answer = 200, self._result(models, body)
        except Refused as refusal:
            status, answer = refusal.status, {"error": {"message": str(refusal)}}
        content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            return  # whoever asked has gone

    def _result(self, models: Models, body: dict[str, Any]) -> Any:
        if self.path == "/v1/models":
            return {"data": [{"id": name} for name in models.policies]}
        if self.path == "/v1/load_lora_adapter":
            models.load(body["lora_name"], Path(body["lora_path"]))
            return f"Success: LoRA adapter '{body['lora_name']}' added."
        if self.path == "/v1/unload_lora_adapter":
            models.unload(body["lora_name"])
            return f"Success: LoRA adapter '{body['lora_name']}' removed."
        if self.path == "/v1/completions":
            return models.complete(body)
        raise Refused(404, f"no path {self.path}")

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--fault", choices=FAULTS)
    chosen = parser.parse_args()
    listening = Listening(Models(chosen.model, chosen.fault), chosen.port)
    print(f"serving {chosen.model} at {listening.address}", flush=True)
    listening.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
