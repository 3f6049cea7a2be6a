"""`relgrad submit` and `relgrad jobs`: job files, what the script does with signals and losses, what is refused."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from relgrad.commands.cli import app
from relgrad.core.errors import RelgradError
from relgrad.launch.job import Job, name_for
from relgrad.launch.script import script
from relgrad.launch.target import names, target
from relgrad.launch.targets import local, ray, slurm

GOLDEN = Path(__file__).parent / "jobs"
JOB = Job(
    name="mine-1",
    recipe="mine.yaml",
    overrides=("grpo.steps=20", "task.path=my words.jsonl"),
    run=Path("/data/runs/mine"),
    folder=Path("/home/me/runs/mine/jobs/mine-1"),
    directory=Path("/home/me"),
    hours=12.0,
    secrets=("HF_TOKEN",),
    retries=3,
    evaluate=True,
)
JOBS = {
    "local": JOB,
    "slurm": replace(JOB, nodes=2, gpus=8, processes=8, compute="a100", image="train.sif"),
    "ray": replace(JOB, gpus=2, processes=2, pip=("relgrad[math]",)),
    "anyscale": replace(JOB, gpus=8, processes=8, image="anyscale/image/mine:1", compute="one-h100", pip=("relgrad",)),
}


def relgrad(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "300", "NO_COLOR": "1"})


def said(result: Any) -> str:
    return " ".join((result.output + result.stderr).split())


# ---------------------------------------------------------------------- job files


def test_every_target_has_a_golden_file():
    assert set(JOBS) == set(names())


@pytest.mark.parametrize("name", list(JOBS))
def test_the_job_file_is_the_golden_one(name: str, monkeypatch: pytest.MonkeyPatch):
    """Written anew with `RELGRAD_GOLDEN=1 pytest tests/test_jobs.py`."""
    monkeypatch.setattr(sys, "executable", "/env/bin/python")
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret_4711")
    place = target(name)
    text = place.write(JOBS[name])
    file = GOLDEN / f"{name}-{place.file}"
    if os.environ.get("RELGRAD_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()
    assert "very_secret" not in text
    entry = text if name in ("local", "slurm") else yaml.safe_load(text)["entrypoint"]
    subprocess.run(["bash", "-n", "-c", entry], check=True)


SBATCH = {
    "job-name": r"\S+", "nodes": r"\d+", "ntasks-per-node": r"\d+", "gpus-per-node": r"\d+", "time": r"\d+", "output": r"/\S+",
    "open-mode": "append|truncate", "signal": r"B:[A-Z]+@\d+", "partition": r"\S+", "requeue": "",
}  # fmt: skip
"""Options of sbatch and their values, as its manual has them; a time that is one number is minutes."""


def test_the_sbatch_directives_are_those_of_the_manual():
    lines = (GOLDEN / "slurm-job.sbatch").read_text().splitlines()
    directives = [line for line in lines if line.startswith("#SBATCH ")]
    assert lines[1 : 1 + len(directives)] == directives, "sbatch stops reading at the first line that is none"
    for directive in directives:
        name, _, value = directive.removeprefix("#SBATCH --").partition("=")
        assert re.fullmatch(SBATCH[name], value), directive
    assert "#SBATCH --time=720" in directives


ANYSCALE = {
    "name": str, "entrypoint": str, "working_dir": str, "excludes": list, "image_uri": str, "requirements": list,
    "compute_config": str, "env_vars": dict, "max_retries": int, "timeout_s": int,
}  # fmt: skip
"""Fields of JobConfig that are used, with their types: https://docs.anyscale.com/reference/job-api."""


def test_the_anyscale_file_has_fields_of_the_reference():
    data = yaml.safe_load((GOLDEN / "anyscale-job.yaml").read_text())
    assert {key: type(value) for key, value in data.items()} == ANYSCALE
    assert all(isinstance(value, str) for value in data["env_vars"].values())


@pytest.mark.slow
def test_the_ray_file_has_arguments_of_the_jobs_api(tmp_path: Path):
    pytest.importorskip("ray")
    from ray.job_submission import JobSubmissionClient
    from ray.runtime_env import RuntimeEnv

    data = yaml.safe_load((GOLDEN / "ray-job.yaml").read_text())
    assert data.keys() <= inspect.signature(JobSubmissionClient.submit_job).parameters.keys()
    environment = RuntimeEnv(**{**data["runtime_env"], "working_dir": str(tmp_path)})
    assert environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "600"


# ---------------------------------------------------------------------- the script

STUB = """#!/usr/bin/env bash
# stands for python: what it was called with, and the exit codes of its calls by turns
echo "$@" >> calls
trap 'echo TERM >> signals; code=124' TERM
code=$(sed -n "$(wc -l < calls)p" codes)
if [ "$code" = wait ]; then code=0; touch waiting; for i in $(seq 100); do sleep 0.1; [ "$code" = 124 ] && break; done; fi
[ "$code" = kill ] && kill -KILL $$
exit "$code"
"""


def started(folder: Path, codes: str, stub: str = STUB, **settings: Any) -> subprocess.Popen[str]:
    (folder / "stub").write_text(stub)
    (folder / "stub").chmod(0o755)
    (folder / "codes").write_text("\n".join(codes.split()) + "\n")
    job = replace(JOB, **{"directory": folder, "folder": folder, "hours": None, "secrets": (), **settings})
    (folder / "job.sh").write_text(script(job, str(folder / "stub")))
    return subprocess.Popen(["bash", "job.sh"], cwd=folder, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("codes", "retries", "trained", "evaluated", "code"),
    [
        ("0 0", 3, 1, True, 0),
        ("kill 1 75 0 0", 3, 4, True, 0),
        ("kill kill kill", 2, 3, False, 137),
        ("2", 3, 1, False, 2),
        ("3", 3, 1, False, 3),
        ("124", 3, 1, False, 124),
        ("0 2", 0, 1, True, 2),
    ],
)
def test_lost_runs_are_started_again_and_others_are_not(
    codes: str, retries: int, trained: int, evaluated: bool, code: int, tmp_path: Path
):
    process = started(tmp_path, codes, retries=retries)
    process.communicate(timeout=60)
    assert process.returncode == code
    calls = (tmp_path / "calls").read_text().splitlines()
    assert (
        calls[:trained] == ["-m relgrad run mine.yaml grpo.steps=20 task.path=my words.jsonl out=/data/runs"] * trained
    )
    assert calls[trained:] == (["-m relgrad evaluate /data/runs/mine"] if evaluated else [])
    assert (tmp_path / "exit_code").read_text() == f"{code}\n"


def test_the_script_passes_sigterm_on_once_and_waits_for_the_checkpoint(tmp_path: Path):
    process = started(tmp_path, "wait", retries=3)
    while not (tmp_path / "waiting").exists():
        time.sleep(0.02)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 124
    assert (tmp_path / "signals").read_text() == "TERM\n"
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_a_stop_reaches_the_evaluation_too(tmp_path: Path):
    process = started(tmp_path, "0 wait", hours=2.0)
    while not (tmp_path / "waiting").exists():
        time.sleep(0.02)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 124
    assert (tmp_path / "signals").read_text() == "TERM\n"
    assert (tmp_path / "calls").read_text().splitlines()[1] == "-m relgrad evaluate /data/runs/mine"


def test_the_evaluation_ends_with_the_hours(tmp_path: Path):
    """Of these hours one second is left."""
    process = started(tmp_path, "0 wait", hours=0.01)
    process.communicate(timeout=60)
    assert process.returncode == 124
    assert (tmp_path / "signals").read_text() == "TERM\n"


def test_a_stop_before_the_evaluation_leaves_it_out(tmp_path: Path):
    """The training is done in the step in which it is stopped: its code is 0."""
    process = started(tmp_path, "wait", stub=STUB.replace("code=124", "exit 0"))
    while not (tmp_path / "waiting").exists():
        time.sleep(0.02)
    process.terminate()
    assert process.wait(60) == 143
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_a_local_script_in_a_folder_with_an_odd_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its name would run commands if it were read by the shell."""
    odd = tmp_path / 'it\'s a $(touch one) `touch two` "folder"'
    odd.mkdir()
    stub = odd / "stub"
    stub.write_text(STUB)
    stub.chmod(0o755)
    (odd / "codes").write_text("0\n3\n")
    monkeypatch.setattr(sys, "executable", str(stub))
    job = replace(JOB, directory=odd, folder=odd, run=odd / "mine", secrets=())
    (odd / "job.sh").write_text(target("local").write(job))
    assert subprocess.run(["bash", str(odd / "job.sh")], cwd=tmp_path, check=False).returncode == 3
    assert (odd / "exit_code").read_text() == "3\n"
    assert (odd / "calls").read_text().splitlines()[1] == f"-m relgrad evaluate {odd}/mine"
    assert not [path for name in ("one", "two") for path in tmp_path.rglob(name)]
    assert not [path for path in tmp_path.iterdir() if path != odd]


def test_attempts_share_the_hours(tmp_path: Path):
    """5 minutes of them are kept for the last step; never is nothing left."""
    started(tmp_path, "kill 0 0", hours=2.0).communicate(timeout=60)
    limits = [float(number) for number in re.findall(r"max_hours=(\S+)", (tmp_path / "calls").read_text())]
    assert len(limits) == 2
    assert limits[0] == pytest.approx(2 - 5 / 60, abs=0.01)
    assert limits[1] <= limits[0]
    (tmp_path / "calls").unlink()
    started(tmp_path, "0 0", hours=0.01).communicate(timeout=60)
    assert re.search(r"max_hours=0.000\d+", (tmp_path / "calls").read_text())


@pytest.mark.parametrize(("own", "trains"), [(1.0, 1.0), (3.0, 2 - 5 / 60)])
def test_the_recipes_own_limit_is_of_the_training(own: float, trains: float, tmp_path: Path):
    job = replace(JOBS["slurm"], hours=2.0, max_hours=own)
    assert "#SBATCH --time=120" in target("slurm").write(job).splitlines()
    started(tmp_path, "0 0", hours=2.0, max_hours=own).communicate(timeout=60)
    limit = re.search(r"max_hours=(\S+)", (tmp_path / "calls").read_text())
    assert limit is not None
    assert float(limit[1]) == pytest.approx(trains, abs=0.01)


def test_a_secret_that_is_not_set_where_it_runs(tmp_path: Path):
    process = started(tmp_path, "0", secrets=("RELGRAD_NO_SUCH",))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "the variable RELGRAD_NO_SUCH is not set" in errors
    assert not (tmp_path / "calls").exists()


# ---------------------------------------------------------------------- the commands


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edited(here: Path, body: str) -> Path:
    """A job of this machine whose file was written, and then changed by hand."""
    result = relgrad("submit", "quick", "--dry-run", "--to", "local")
    assert result.exit_code == 0, said(result)
    file = here / "runs" / "quick" / "jobs" / "quick-1" / "job.sh"
    assert result.stdout.strip() == str(file)
    file.write_text(body.replace("CODEFILE", f"{file.parent}/exit_code"))
    return file


def test_a_job_that_dies_at_once(here: Path):
    edited(here, "echo 'no such model' >&2; trap 'echo $? > CODEFILE' EXIT; exit 3")
    ended = relgrad("jobs", "start", "quick-1", "--wait")
    assert ended.exit_code == 3
    assert "no such model" in ended.output
    assert "failed: quick-1, exit code 3" in said(ended)
    listed = json.loads(relgrad("jobs", "--json").stdout)
    assert (listed["name"], listed["state"], listed["code"]) == ("quick-1", "failed", 3)
    assert relgrad("jobs", "logs", "quick-1").exit_code == 3
    assert "is not running" in said(relgrad("jobs", "stop", "quick-1"))


def test_a_job_that_is_killed_is_lost_and_says_so(here: Path):
    edited(here, "kill -9 $$")
    ended = relgrad("jobs", "start", "quick-1", "--wait")
    assert ended.exit_code == 1
    assert "lost: quick-1 (it was killed)" in said(ended)


def test_stop_ends_a_job_with_the_code_of_a_limit(here: Path):
    file = edited(here, "trap 'echo 124 > CODEFILE; exit 124' TERM; touch ready; while :; do sleep 0.05; done")
    assert relgrad("jobs", "start", "quick-1").exit_code == 0
    while not (here / "ready").exists():
        time.sleep(0.02)
    assert "is running" in said(relgrad("jobs", "start", "quick-1"))
    assert "running" in relgrad("jobs").stdout
    assert relgrad("jobs", "stop", here / "runs" / "quick").exit_code == 0
    ended = relgrad("jobs", "logs", "quick-1")
    assert ended.exit_code == 124
    assert "stopped: quick-1, exit code 124 (the same command continues)" in said(ended)
    assert file.parent.joinpath("job.json").is_file()


SAVES = "trap 'echo saved >> saved; echo 124 > CODEFILE; exit 124' TERM; touch ready; while :; do sleep 0.05; done"


def test_a_job_that_is_started_again_is_stopped_with_a_checkpoint_again(here: Path):
    edited(here, SAVES)
    for times in (1, 2):
        assert relgrad("jobs", "start", "quick-1").exit_code == 0
        while not (here / "ready").exists():
            time.sleep(0.02)
        assert relgrad("jobs", "stop", "quick-1").exit_code == 0
        assert relgrad("jobs", "logs", "quick-1").exit_code == 124
        assert (here / "saved").read_text() == "saved\n" * times
        (here / "ready").unlink()


def test_commands_that_are_printed_find_the_job_in_another_folder(here: Path):
    """As they stand, in the shell's own reading."""

    def printed(result: Any) -> list[str]:
        match = re.search(r"`relgrad (jobs [^`]*)`", said(result))
        assert match is not None, said(result)
        return shlex.split(match[1])

    start = printed(relgrad("submit", "quick", "out=my runs", "--dry-run"))
    assert start == ["jobs", "start", "quick-1", "--out", str(here / "my runs")]
    job = here / "my runs" / "quick" / "jobs" / "quick-1"
    (job / "job.sh").write_text(
        f"trap 'echo 124 > \"{job}/exit_code\"; exit 124' TERM; touch ready; while :; do sleep 0.05; done"
    )
    assert printed(relgrad("jobs", "stop", "quick-1", "--out", "my runs")) == start
    logs = printed(relgrad(*start))
    stop = printed(relgrad(*start))
    assert stop[1] == "stop"
    while not (here / "ready").exists():
        time.sleep(0.02)
    assert relgrad(*stop).exit_code == 0
    assert relgrad(*logs).exit_code == 124


def test_jobs_of_several_runs_have_names_of_their_own(here: Path):
    for name in ("a b", "a-b"):
        assert relgrad("submit", "quick", f"name={name}", "--dry-run").exit_code == 0
    assert sorted(path.name for path in here.glob("runs/*/jobs/*")) == ["a-b-1", "a-b-2"]
    shutil.copytree(here / "runs" / "a b" / "jobs" / "a-b-1", here / "runs" / "a-b" / "jobs" / "a-b-1")
    both = relgrad("jobs", "start", "a-b-1")
    assert both.exit_code == 2
    assert "several jobs are called a-b-1" in said(both)
    assert all(f"runs/{run}/jobs/a-b-1" in said(both) for run in ("a b", "a-b"))
    assert "was not submitted" in said(relgrad("jobs", "stop", "runs/a b/jobs/a-b-1"))


def test_a_folder_that_somebody_else_makes_meanwhile(here: Path, monkeypatch: pytest.MonkeyPatch):
    theirs = here / "runs" / "quick" / "jobs" / "quick-1"
    write = local.Local.write

    def meanwhile(self: local.Local, job: Job) -> str:
        theirs.mkdir(parents=True, exist_ok=True)
        return write(self, job)

    monkeypatch.setattr(local.Local, "write", meanwhile)
    result = relgrad("submit", "quick", "--dry-run")
    assert result.exit_code == 0, said(result)
    file = theirs.with_name("quick-2") / "job.sh"
    assert "quick-2/exit_code" in file.read_text()
    assert not list(theirs.iterdir())


def test_every_start_on_ray_has_an_identity_of_its_own(here: Path, monkeypatch: pytest.MonkeyPatch):
    """Also the one after a refusal, since Ray may have taken the first."""
    sent: list[str] = []

    class Client:
        def submit_job(self, **request: Any) -> str:
            sent.append(request["submission_id"])
            if len(sent) == 1:
                raise RuntimeError("no room")
            return sent[-1]

        def get_job_info(self, number: str) -> Any:
            return SimpleNamespace(status="FAILED", driver_exit_code=1, message="")

    monkeypatch.setattr(ray, "client_at", lambda address: Client())
    refused = relgrad("submit", "quick", "--to", "ray")
    assert refused.exit_code == 2
    job = here / "runs" / "quick" / "jobs" / "quick-1"
    assert (
        f"no room. The job file is written, {job / 'job.yaml'}, and not submitted: `relgrad jobs start quick-1`"
        in said(refused)
    )
    for _ in range(2):
        assert relgrad("jobs", "start", "quick-1").exit_code == 0
    assert len(set(sent)) == 3
    assert all(number.startswith("quick-1-") for number in sent)
    assert json.loads((job / "job.json").read_text())["handle"]["id"] == sent[-1]


TOKENS = ("https://me:pass4711word@host/simple", "x @ git+https://4711abcdefgh@host/x", "hf_abcdef4711ghijk")


@pytest.mark.parametrize("option", ["--pip", "--address", "--image"])
@pytest.mark.parametrize("text", TOKENS)
def test_secrets_in_options_are_refused_unsaid(option: str, text: str, here: Path):
    result = relgrad("submit", "quick", "--to", "ray", "--storage", "/mnt/s", option, text, "--dry-run")
    assert result.exit_code == 2
    assert "this looks like a secret" in said(result)
    assert "4711" not in said(result)
    assert not (here / "runs").exists()


def test_a_password_in_rays_own_variable_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://me:pass4711word@127.0.0.1:8265")
    result = relgrad("submit", "quick", "--to", "ray", "--storage", "/mnt/s")
    assert "the address of the Ray cluster: this looks like a secret" in said(result)
    assert not any("4711" in path.read_text() for path in here.rglob("job.*"))


@pytest.mark.parametrize("compute", ["a b", "a'b", 'a"b', "a%b"])
def test_what_a_directive_of_sbatch_cannot_have(compute: str, here: Path):
    assert "is a directive of sbatch" in said(relgrad("submit", "quick", "--to", "slurm", "--compute", compute))
    assert "is a directive of sbatch" in said(relgrad("submit", "quick", "--to", "slurm", f"out={compute}"))
    assert not list(here.rglob("job.*"))


@pytest.mark.parametrize(
    "arguments", [("--compute", "a\nsrun rm"), ("--storage", "/mnt/a\nb"), ("grpo.output_dir=a\nb",)]
)
def test_no_line_of_a_job_file_is_ended_from_outside(arguments: tuple[str, ...], here: Path):
    with pytest.raises(RelgradError, match="cannot have the control character"):
        replace(JOB, recipe="mine.yaml\nrm -r /")
    result = relgrad("submit", "quick", "--to", "slurm", *arguments)
    assert result.exit_code == 2
    assert not list(here.rglob("job.*"))


def test_names_count_on(here: Path):
    for number in (1, 2):
        assert f"quick-{number}" in relgrad("submit", "quick", "--dry-run").stdout
    assert name_for("fill in/words", ["fill-in-words-1"]) == "fill-in-words-2"
    assert name_for("...", []) == "run-1"


def test_no_value_of_a_secret_is_kept(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_SECRET", "do-not-write-4711")
    for to, more in (("local", ()), ("slurm", ()), ("ray", ()), ("anyscale", ("--storage", "/mnt/s"))):
        assert relgrad("submit", "quick", "--to", to, *more, "--secret", "env:MY_SECRET", "--dry-run").exit_code == 0
    files = [path for path in here.rglob("*") if path.is_file()]
    assert len(files) == 8
    assert not any("4711" in path.read_text() for path in files)
    assert all(json.loads(path.read_text())["secrets"] == ["MY_SECRET"] for path in here.rglob("job.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "moon"], "--to moon: no such target; there are anyscale, local, ray, slurm"),
        (["--secret", "RELGRAD_NO_SUCH"], "the job needs the environment variable RELGRAD_NO_SUCH, which is not set here"),
        (["--secret", "hf_ab/cd+12"], "takes the name of an environment variable"),
        (["--hours", "0"], "--hours 0: give a positive number"),
        (["--hours", "nan"], "--hours nan"),
        (["--hours", "0.1"], "--hours 0.1 is 6 minutes: the last 5 are kept for the step in progress"),
        (["--gpus", "4711"], "--gpus 4711 with --to local: torch sees"),
        (["--hours", "soon"], "hours"),
        (["--to", "local", "--nodes", "2"], "--nodes has no meaning with --to local"),
        (["--to", "local", "--pip", "torch"], "--pip has no meaning with --to local"),
        (["--to", "anyscale"], "name a folder there that lasts"),
        (["--to", "ray", "--address", "http://far:8265"], "name a folder there that lasts"),
        (["--to", "anyscale", "--storage", "/mnt/s", "--gpus", "8"], "--compute NAME"),
        (["--storage", "runs"], "--storage runs: give an absolute path"),
        (["--to", "slurm"], "sbatch is not on the PATH"),
        (["grpo.stepz=3"], "grpo.stepz"),
    ],
)  # fmt: skip
def test_what_is_refused(arguments: list[str], message: str, here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(here))  # without sbatch
    result = relgrad("submit", "quick", *arguments)
    assert result.exit_code == 2
    assert message in said(result)
    assert "hf_ab/cd+12" not in said(result)
    assert not any(json.loads(path.read_text())["submitted"] for path in here.rglob("job.json"))


def test_a_reference_in_the_recipe_is_a_secret_of_the_job(here: Path, monkeypatch: pytest.MonkeyPatch):
    settings = ["stages.1.grpo.remote={url: http://127.0.0.1:1/v1, model: m, key: env:MY_SECRET}"]
    monkeypatch.delenv("MY_SECRET", raising=False)
    result = relgrad("submit", "quick", "--dry-run", *settings)
    assert result.exit_code == 2
    assert "environment variable MY_SECRET, which is not set" in said(result)
    assert not (here / "runs").exists()
    monkeypatch.setenv("MY_SECRET", "do-not-write-4711")
    result = relgrad("submit", "quick", "--dry-run", *settings)
    assert result.exit_code == 0, said(result)
    assert json.loads((here / "runs/quick/jobs/quick-1/job.json").read_text())["secrets"] == ["MY_SECRET"]


def test_folders_that_are_no_runs(here: Path):
    assert "is no folder" in said(relgrad("jobs"))
    (here / "runs" / "empty").mkdir(parents=True)
    assert relgrad("jobs").exit_code == 0
    assert "is no run that a job works on" in said(relgrad("jobs", "stop", "runs/empty"))
    assert "no job 'quick-7' in runs; there are: none" in said(relgrad("jobs", "logs", "quick-7"))
    relgrad("submit", "quick", "--dry-run")
    assert "was not submitted" in said(relgrad("jobs", "stop", "quick-1"))
    (here / "runs" / "quick" / "jobs" / "quick-1" / "job.json").write_text("{}")
    assert "job.json cannot be read" in said(relgrad("jobs"))


def test_without_ray(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray.job_submission", None)
    result = relgrad("submit", "quick", "--to", "ray")
    assert result.exit_code == 2
    assert "needs Ray: pip install 'relgrad[ray]'" in said(result)


def test_without_anyscale(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "anyscale", None)
    result = relgrad("submit", "quick", "--to", "anyscale", "--storage", "/mnt/s")
    assert result.exit_code == 2
    assert "pip install anyscale" in said(result)


@pytest.mark.slow
def test_a_ray_cluster_that_is_not_there(here: Path):
    pytest.importorskip("ray")
    result = relgrad("submit", "quick", "--to", "ray", "--address", "http://127.0.0.1:9")
    assert result.exit_code == 2
    assert "no Ray cluster answers at http://127.0.0.1:9" in said(result)
    assert "relgrad jobs start" in said(relgrad("jobs", "stop", "quick-1"))


# ---------------------------------------------------------------------- Slurm's programs

SBATCH_STUB = """#!/usr/bin/env bash
[ "$1" = --parsable ] || exit 9
[ ! -e "$(dirname "$2")/exit_code" ] || exit 8
SLURM_JOB_NODELIST=here setsid bash "$2" > "$(sed -n 's/#SBATCH --output=//p' "$2")" 2>&1 &
echo $! > {folder}/shell
echo "41;cluster"
"""
SQUEUE_STUB = """#!/usr/bin/env bash
[ "$*" = "--noheader --jobs 41 --format %T" ] || exit 9
kill -0 $(cat {folder}/shell) 2>/dev/null && echo RUNNING || {{ echo "Invalid job id specified" >&2; exit 1; }}
"""
SCANCEL_STUB = """#!/usr/bin/env bash
[ "$*" = "--batch --signal=TERM 41" ] || exit 9
kill -TERM $(cat {folder}/shell)
"""


def test_a_job_of_slurm(here: Path, monkeypatch: pytest.MonkeyPatch):
    """Against stand-ins for its programs that take the options of their manuals."""
    monkeypatch.setattr(slurm, "follow_file", lambda log, state, pause: _quickly(log, state))
    programs = here / "programs"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH_STUB), ("squeue", SQUEUE_STUB), ("scancel", SCANCEL_STUB)):
        (programs / name).write_text(text.format(folder=programs))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    assert shutil.which("sbatch") == str(programs / "sbatch")
    assert relgrad("submit", "quick", "--to", "slurm", "--dry-run").exit_code == 0
    file = here / "runs" / "quick" / "jobs" / "quick-1" / "job.sbatch"
    waits = f"{here}/stub"
    file.write_text(file.read_text().replace(sys.executable, waits))
    (here / "stub").write_text(STUB)
    (here / "stub").chmod(0o755)
    (here / "codes").write_text("wait\n")
    file.with_name("exit_code").write_text("0\n")  # of an earlier start, which the queue's wait must not show
    assert relgrad("jobs", "start", "quick-1").exit_code == 0
    while not (here / "waiting").exists():
        time.sleep(0.02)
    assert "running (RUNNING)" in relgrad("jobs").stdout
    assert relgrad("jobs", "stop", "quick-1").exit_code == 0
    assert relgrad("jobs", "logs", "quick-1").exit_code == 124
    assert (here / "signals").read_text() == "TERM\n"


def _quickly(log: Path, state: Any) -> Any:
    from relgrad.launch.following import follow_file

    return follow_file(log, state, pause=0.05)


def test_states_of_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert slurm._state("CANCELLED by 1000").word == "stopped"
    assert slurm._state("OUT_OF_MEMORY", 1).word == "failed"
    assert slurm._state("PENDING").word == "waiting"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RelgradError, match=r"scancel is not on the PATH"):
        slurm.call("scancel", "41")
