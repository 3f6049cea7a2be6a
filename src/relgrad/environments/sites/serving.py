"""The server of a site, from its start to its end: a command of the user's, a folder of pages, or one that is there already.

A command leads a group of processes that ends when this process ends, however it does (core/lifeline.py). One that died is started
again when the next plan comes, `LIVES` times in all.
"""

from __future__ import annotations

import atexit
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from functools import cache, partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import relgrad
from relgrad.core.errors import RelgradError
from relgrad.environments.forms.outcome import Unscored
from relgrad.environments.loopback import LoopbackServer
from relgrad.environments.sites.spec import SiteSettings

LIVES = 3
_RESET = 60.0
"""Seconds that a reset may take."""
_FAREWELL = 5.0
_START = (
    "import json, subprocess, sys; sys.path[:] = json.loads(sys.argv[1]); from relgrad.core.lifeline import end_with; "
    "end_with(int(sys.argv[2])); sys.exit(subprocess.call(sys.argv[3:]))"
)


class Server:
    """Implements nothing but this: `origin` once `require` was called, `reset`, `close`."""

    def __init__(self, site: SiteSettings) -> None:
        self.site = site
        self.origin = ""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: LoopbackServer | None = None
        self._held = -1
        self._log: IO[bytes] | None = None
        self._lives = LIVES
        self._port = 0

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.origin)
        return parts.hostname or "", parts.port or 80

    def require(self) -> None:
        """See to it that the server runs. Raises RelgradError where it does not start or is not there."""
        with self._lock:
            if self.site.folder is not None:
                self._serve_folder(self.site.folder)
            elif self.site.serve is None:
                self._require_there(str(self.site.url))
            elif self._process is None or self._process.poll() is not None:
                self._start(self.site.serve)

    def ready(self) -> None:
        """Before a plan: the server runs, and is as it was at first. Raises Unscored."""
        try:
            self.require()
        except RelgradError as error:
            raise Unscored(str(error)) from None
        self.reset()

    def reset(self) -> None:
        """Do what the recipe says puts the server back. Raises Unscored where that fails."""
        what = self.site.reset
        if what is None:
            return
        command = self._command(what)
        try:
            if what.startswith("/") and not Path(command[0]).is_file():
                request = urllib.request.Request(self.origin + what, data=b"", method="POST")
                urllib.request.urlopen(request, timeout=_RESET).close()
            else:
                subprocess.run(command, check=True, capture_output=True, timeout=_RESET)
        except (OSError, subprocess.SubprocessError) as error:
            raise Unscored(f"the site's reset {what!r} failed: {error}") from None

    def close(self) -> None:
        """End what was started here."""
        with self._lock:
            if self._folder is not None:
                self._folder.shutdown()
                self._folder.server_close()
                self._folder = None
            self._end()
        atexit.unregister(self.close)

    # ------------------------------------------------------------------ a folder

    def _serve_folder(self, folder: Path) -> None:
        if self._folder is not None:
            return
        if not folder.is_dir():
            raise RelgradError(f"site: no folder {str(folder)!r} (working directory {Path.cwd()})")
        self._folder = LoopbackServer(("127.0.0.1", 0), partial(_Folder, directory=str(folder.resolve())))
        self.origin = f"http://127.0.0.1:{self._folder.server_port}"
        threading.Thread(target=self._folder.serve_forever, name="relgrad-folder", daemon=True).start()

    # ------------------------------------------------------------------ one that is there

    def _require_there(self, url: str) -> None:
        if self.origin:
            return
        if not _answers(url):
            raise RelgradError(
                f"site: nothing answers at {url}; start the server, or give the command that does as `serve`"
            )
        self.origin = _origin(url)

    # ------------------------------------------------------------------ a command

    def _start(self, command: str) -> None:
        if self._lives == 0:
            raise RelgradError(
                f"site: the server {command!r} ended {LIVES} times; its last words: {self._last_words()}"
            )
        if os.name != "posix":
            raise RelgradError("site: `serve` needs Linux or macOS; start the server yourself and give its `url` alone")
        self._end()
        url = self._address(str(self.site.url))
        if _listens(url):
            raise RelgradError(
                f"site: something already listens at {url}; end it, drop `serve` to use it, or let relgrad choose with {{port}}"
            )
        lifeline, self._held = os.pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        words = self._command(command)
        start = [sys.executable, "-c", _START, json.dumps([str(place) for place in sys.path]), str(lifeline), *words]
        try:
            self._process = subprocess.Popen(
                start,
                pass_fds=(lifeline,),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
            )
        finally:
            os.close(lifeline)
        atexit.register(self.close)
        self._lives -= 1
        self._wait(command, url)
        self.origin = _origin(url)

    def _wait(self, command: str, url: str) -> None:
        assert self._process is not None
        end = time.monotonic() + self.site.serve_timeout
        while not _answers(url):
            if self._process.poll() is not None:
                raise RelgradError(
                    f"site: the server {command!r} ended with exit code {self._process.returncode} before it answered at {url}: "
                    f"{self._last_words()}"
                )
            if time.monotonic() > end:
                words = self._last_words()
                self._end()
                raise RelgradError(
                    f"site: the server {command!r} does not answer at {url} after {self.site.serve_timeout:g} s (serve_timeout): "
                    f"{words}"
                )
            time.sleep(0.05)

    def _address(self, text: str) -> str:
        if "{port}" in text and not self._port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self._port = free.getsockname()[1]
        return text.replace("{port}", str(self._port))

    def _command(self, command: str) -> list[str]:
        """The words of a command, with what stands in braces filled in. Raises RelgradError where it is no command."""
        folder = str(Path(relgrad.__file__).parent)
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise RelgradError(f"site: {command!r} is no command ({error})") from None
        filled = [self._address(w).replace("{python}", sys.executable).replace("{relgrad}", folder) for w in words]
        if not filled:
            raise RelgradError("site: `serve` is empty; give the command that starts the server")
        return filled

    def _last_words(self) -> str:
        """The last lines that the command printed."""
        if self._log is None:
            return "none"
        self._log.seek(0)
        lines = self._log.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
        return " | ".join(line.strip() for line in lines[-3:]) or "none"

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(_FAREWELL)
        if self._held >= 0:
            os.close(self._held)
            self._held = -1
        if self._log is not None:
            self._log.close()
            self._log = None


class _Folder(SimpleHTTPRequestHandler):
    """Files by GET; a form that is sent anywhere is taken."""

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "0")
        self.rfile.read(int(length) if length.isdecimal() else 0)
        body = b"<!doctype html><title>Received</title><p>Received"
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _answers(url: str) -> bool:
    """Whether any HTTP answer comes from there, an error too."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    with suppress(OSError), socket.create_connection((parts.hostname or "", parts.port or 80), timeout=1):
        return True
    return False


@cache
def server_of(key: str) -> Server:
    """The one server of a site in this process, by `SiteSettings.key`."""
    return Server(SiteSettings.of(json.loads(key)))
