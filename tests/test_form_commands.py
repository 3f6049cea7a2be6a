"""Forms for people: `relgrad forms serve` and `watch`, what the doctor says of the browser, and the benchmark."""

from __future__ import annotations

import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from benchmarks import forms as bench
from typer.testing import CliRunner

from form_cases import GRAMMARS, outcome
from relgrad.commands import doctor
from relgrad.commands.cli import app
from relgrad.core.errors import RelgradError
from relgrad.environments.forms.executing import browser
from relgrad.environments.forms.executing.in_process import InProcess
from relgrad.environments.forms.executing.parsed_page import Document
from relgrad.environments.forms.making import families, wording
from relgrad.environments.forms.making.form import Form
from relgrad.environments.forms.making.generate import make
from relgrad.environments.forms.outcome import Outcome
from relgrad.environments.forms.plan import Plan
from relgrad.environments.forms.serve import address, server
from relgrad.environments.loopback import LoopbackServer

SMALL = GRAMMARS[0]
EVERY = list(families.families())


# ---------------------------------------------------------------------- relgrad forms


@pytest.fixture
def served() -> Iterator[int]:
    with server(0, SMALL) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield listening.server_port
        listening.shutdown()
        thread.join()


def fetch(url: str, entries: list[tuple[str, str]] | None = None) -> str:
    body = urllib.parse.urlencode(entries).encode() if entries is not None else None
    with urllib.request.urlopen(url, body, timeout=300) as answer:
        assert "script" not in answer.headers["Content-Security-Policy"]
        return answer.read().decode()


def test_forms_are_served_to_people(served: int) -> None:
    index = fetch(address(served))
    for name in EVERY:
        assert f'href="/form/{urllib.parse.quote(name)}/0"' in index
    form = make("food order", 12, SMALL)
    url = address(served, "food order", 12)
    shown = fetch(url)
    assert Document.parse(shown).labels.keys() == {field.label for field in form.fields}
    assert "fill " in shown, "the reference plan stands beside it"
    sent = outcome(form, wording.plan(form)).submitted
    assert sent is not None
    success = fetch(url, list(sent))
    assert 'data-outcome="success"' in success
    assert success.count("100 %") == len(form.fields)
    assert 'data-outcome="error"' in fetch(url, [])


@pytest.mark.parametrize(
    "path",
    [
        "form/food/3",
        "form/food%20order/x",
        "form/food%20order/-1",
        f"form/food%20order/{'9' * 5000}",
        "../../etc/passwd",
        "x",
    ],
)
def test_what_is_not_there_is_not_found(served: int, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        fetch(address(served) + path)
    assert error.value.code == 404


@pytest.mark.parametrize("value", ["9" * 5000, "1e999999999", "1e-999999999", "1e-" + "9" * 5000, "nan", "many", "-"])
def test_whatever_is_sent_has_an_answer(served: int, value: str) -> None:
    """A person's browser, or whoever else speaks to the server, may send anything in every field."""
    name = next(name for name in EVERY if any(spec.kind == "number" for spec in families.family(name).fields))
    seed = next(seed for seed in range(50) if any(field.kind == "number" for field in make(name, seed, SMALL).fields))
    entries = [(field.name, value) for field in make(name, seed, SMALL).fields]
    assert 'data-outcome="error"' in fetch(address(served, name, seed), entries)


@pytest.mark.parametrize("digits", [12, 5000])
def test_too_much_is_refused(served: int, digits: int) -> None:
    headers = {"Content-Length": "9" * digits}
    request = urllib.request.Request(address(served, "food order", 1), b"", headers, method="POST")
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=300)
    assert error.value.code == 400


@pytest.mark.parametrize(
    ("error", "printed"), [(BrokenPipeError, False), (ConnectionResetError, False), (ValueError, True)]
)
def test_whoever_leaves_amid_an_answer_is_no_error(
    error: type[Exception], printed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            raise error("in the middle")

    class Server(LoopbackServer):
        daemon_threads = False  # so that closing it waits for them

    with Server(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        with pytest.raises(OSError, match=r"."):
            urllib.request.urlopen(address(listening.server_port), timeout=300)
        listening.shutdown()
        thread.join()
    assert ("in the middle" in capsys.readouterr().err) is printed


def test_a_port_that_is_taken(served: int) -> None:
    with pytest.raises(RelgradError, match=rf"cannot listen on port {served}.*--port"):
        server(served, SMALL)


def test_the_command_serves_until_it_is_interrupted() -> None:
    import signal

    interruptible = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = f"{interruptible}; from relgrad.commands.cli import main; main()"
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            command,
            "forms",
            "serve",
            "--family",
            "taxi ride",
            "--seed",
            "4",
            "--port",
            "0",
            "max_fields=3",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        addresses = [process.stdout.readline().split(": ")[1].strip() for _ in range(2)]
        assert addresses[1].endswith("/form/taxi%20ride/4")
        assert "<form" in fetch(addresses[1])
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["watch"], "give a file with a plan, or --reference"),
        (["watch", "plan.txt", "--reference"], "one of the two"),
        (["watch", "nowhere.txt"], "cannot read the plan 'nowhere.txt'"),
        (["watch", "--reference", "max_field=3"], "Did you mean 'max_fields'?"),
        (["watch", "--reference", "fits=1"], "greater than or equal to 64"),
        (["watch", "--reference", "--family", "libary card"], "did you mean 'library card'?"),
        (["serve", "--family", "libary card"], "did you mean 'library card'?"),
        (["serve", "max_fields"], "write KEY=VALUE"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["forms", *arguments], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert why in result.stderr


# ---------------------------------------------------------------------- round about


def test_the_doctor_knows_the_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(browser.VARIABLE, raising=False)
    assert doctor._browser().state == "note"
    assert "playwright install chromium" in doctor._browser().fix
    there = tmp_path / "chromium"
    there.touch(0o755)
    assert (doctor._browser().state, doctor._browser().detail) == ("ok", str(there))
    monkeypatch.setenv(browser.VARIABLE, "/nowhere/chromium")
    assert "'/nowhere/chromium' is no file" in doctor._browser().detail


def test_the_benchmark_runs_and_compares() -> None:
    class Forgets(InProcess):
        """Never sends a form."""

        def run(self, form: Form, plan: Plan) -> Outcome:
            return Outcome(False, None, super().run(form, plan).executed)

    jobs = bench.groups(3)
    assert all(len(plans) == bench.GROUP for _, plans in jobs)
    assert bench.measure(InProcess(), jobs).agreed == 1
    assert bench.measure(Forgets(), jobs).agreed < 0.8
