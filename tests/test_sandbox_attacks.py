"""Programs that attack their sandbox. None gets anywhere, and each ends with the outcome that is named here.

Many return the list of what they managed to do: only the control, something harmless that the same code does, so that an attack
that is merely wrong does not pass for one that was held off. Signals to the first process are sent and ignored.
"""

from __future__ import annotations

import os
import platform
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from relgrad.environments.sandbox import machine
from relgrad.environments.sandbox.limits import Limits, SandboxSettings
from relgrad.environments.sandbox.outcome import Outcome
from relgrad.environments.sandbox.run import Job, Sandbox, run
from sandboxes import gone, guests, needs_walls

pytestmark = needs_walls

TRY = """
import os, sys

def managed(attempts):
    done = []
    for name, attempt in attempts:
        try:
            attempt()
        except (OSError, AttributeError, ValueError):
            continue
        done.append(name)
    return done

def channel():
    import stat
    assert stat.S_ISSOCK(os.fstat(3).st_mode)
    return 3

def write(data):
    os.write(channel(), data)

def message(text):
    data = text.encode()
    write(len(data).to_bytes(4, "big") + data)
"""
"""Before every attack."""

LIBC = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

def succeed(*calls):
    return [name for name, *arguments in calls if getattr(libc, name)(*arguments) != -1]
"""


@dataclass(frozen=True)
class Attack:
    """A program, the error it is to end with (None: a value, which is `managed`), and limits that make it end soon."""

    text: str
    error: str | None = None
    message: str = ""
    managed: Any = None
    limits: dict[str, Any] = field(default_factory=dict)

    @property
    def program(self) -> str:
        return TRY + textwrap.dedent(self.text)


SOON = {"seconds": 0.3}

RAW = {
    "process_vm_readv": 310, "pidfd_open": 434, "pidfd_getfd": 438, "kcmp": 312, "perf_event_open": 298, "bpf": 321,
    "userfaultfd": 323, "io_uring_setup": 425, "add_key": 248, "keyctl": 250, "memfd_create": 319, "memfd_secret": 447,
    "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "kexec_load": 246, "init_module": 175, "open_by_handle_at": 304, "swapon": 167,
    "reboot": 169, "settimeofday": 164, "setuid": 105, "setgid": 106, "setgroups": 116, "personality": 135, "iopl": 172,
    "shmget": 29, "msgget": 68, "semget": 64, "mq_open": 240, "inotify_init1": 294, "fanotify_init": 300, "socket": 41,
    "sendmsg": 46, "ptrace": 101, "seccomp": 317, "quotactl": 179, "syslog": 103, "landlock_create_ruleset": 444,
}  # fmt: skip
"""System calls of x86-64, by number."""

ATTACKS: dict[str, Attack] = {
    # ------------------------------------------------------------------ using up the machine
    "fork bomb": Attack(
        "def main():\n    while True:\n        os.fork()",
        "exception",
        "BlockingIOError",
        limits={"processes": 4, "seconds": 10},
    ),
    "processes that stay": Attack(
        """
        import time
        def main():
            made = 0
            for _ in range(50):
                try:
                    child = os.fork()
                except BlockingIOError:
                    break
                if child == 0:
                    os.setsid()
                    time.sleep(600)
                made += 1
            return made
        """,
        managed=3,
        limits={"processes": 4},
    ),
    "threads": Attack(
        "import threading\ndef main():\n    while True:\n        threading.Thread(target=threading.Event().wait).start()",
        "exception",
        "can't start new thread",
        limits={"processes": 3},
    ),
    "memory bomb": Attack(
        "def main():\n    x = []\n    while True:\n        x.append(bytearray(10**6))",
        "memory",
        limits={"memory_mb": 64},
    ),
    "memory bomb in children": Attack(
        """
        def main():
            children = []
            for _ in range(2):
                if not (child := os.fork()):
                    try:
                        bytearray(10**9)
                    except MemoryError:
                        os._exit(7)
                    os._exit(0)
                children.append(child)
            return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        """,
        managed=[7, 7],
        limits={"processes": 3, "memory_mb": 64},
    ),
    "limits raised": Attack(
        """
        import resource
        def main():
            def raised(name):
                resource.setrlimit(getattr(resource, name), (resource.RLIM_INFINITY,) * 2)
            names = ["RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_CORE"]
            return managed([(name, lambda name=name: raised(name)) for name in names] + [("control", lambda: None)])
        """,
        managed=["control"],
    ),
    "disk filled by one file": Attack(
        """
        def main():
            written = 0
            try:
                with open("/tmp/x", "wb") as file:
                    while True:
                        written += os.write(file.fileno(), bytes(2**16))
            except OSError as error:
                return written <= 2**20, error.errno in (27, 28)
        """,
        managed=(True, True),
        limits={"disk_mb": 1},
    ),
    "disk filled by many files": Attack(
        """
        def main():
            written = 0
            try:
                for number in range(1000):
                    with open(f"/tmp/{number}", "wb") as file:
                        written += os.write(file.fileno(), bytes(2**16))
            except OSError as error:
                return written <= 2**20, error.errno
        """,
        managed=(True, 28),
        limits={"disk_mb": 1},
    ),
    "files kept open": Attack(
        "def main():\n    x = []\n    while True:\n        x.append(open('/dev/null'))",
        "exception",
        "Too many open files",
    ),
    "endless loop": Attack("def main():\n    while True: pass", "timeout", limits=SOON),
    "endless loop while loading": Attack("while True: pass", "timeout", limits=SOON),
    "endless sleep": Attack("import time\ndef main(): time.sleep(10**6)", "timeout", limits=SOON),
    "endless power in C": Attack("def main(): return 10 ** 10 ** 8", "timeout", limits=SOON),
    "endless regular expression in C": Attack(
        "import re\ndef main(): re.match('(a*)*b', 'a' * 60)", "timeout", limits=SOON
    ),
    "every signal ignored": Attack(
        """
        import signal
        def main():
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, 32, 33}:
                signal.signal(number, signal.SIG_IGN)
            while True:
                try:
                    while True: pass
                except BaseException:
                    pass
        """,
        "timeout",
        limits=SOON,
    ),
    "processor time in spite of its signal": Attack(
        "import signal\ndef main():\n    signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n    while True: pass",
        "crash",
        "SIGKILL",
        limits={"cpu_seconds": 1},
    ),
    "a signal without a name": Attack("def main(): os.kill(os.getpid(), 35)", "crash", "exit code 163"),
    "a stopped process": Attack("def main(): os.kill(os.getpid(), 19)", "timeout", limits=SOON),
    "stack overflow in C": Attack(
        """
        import ctypes
        def main():
            again = ctypes.CFUNCTYPE(None)(lambda: again())
            sys.setrecursionlimit(10**9)
            again()
        """,
        "crash",
    ),
    "flood of output": Attack("def main():\n    while True: print('x' * 10**4)", "flood", limits={"flood_mb": 1}),
    "flood of errors": Attack(
        "def main():\n    while True: os.write(2, b'x' * 10**4)", "flood", limits={"flood_mb": 1}
    ),
    # ------------------------------------------------------------------ looking around
    "host files": Attack(
        """
        def main(places):
            def read(place):
                os.listdir(place) if os.path.isdir(place) else open(place, "rb").read(1)
            os.chdir("/")
            return managed([(place, lambda place=place: read(place)) for place in places])
        """,
        managed=["/tmp"],
    ),
    "the environment": Attack("def main(): return sorted(os.environ)", managed=["LC_CTYPE", "PWD", "PYTHONHASHSEED"]),
    "other processes": Attack(
        "def main(): return os.getpid() < 10, os.getppid(), os.getuid(), os.path.exists('/proc')", managed=(True, 1, 65534, False)
    ),
    "open files": Attack(
        """
        def main():
            def is_open(number):
                try:
                    os.fstat(number)
                    return True
                except OSError:
                    return False
            return [number for number in range(64) if is_open(number)] == [0, 1, 2, channel()]
        """,
        managed=True,
    ),
    "links out of the tree": Attack(
        """
        def main(places):
            os.symlink("/etc/passwd", "/tmp/a")
            os.symlink("../../../../../../../../etc/passwd", "/tmp/b")
            root = os.open("/", os.O_RDONLY)
            return managed([
                ("symbolic", lambda: open("/tmp/a").read()),
                ("relative", lambda: open("/tmp/b").read()),
                ("hard", lambda: os.link(sys.executable, "/tmp/c")),
                ("above the root", lambda: os.open("../../../etc/passwd", os.O_RDONLY, dir_fd=root)),
                ("fd/cwd", lambda: os.readlink("/proc/self/cwd")),
                ("control", lambda: os.symlink("x", "/tmp/d")),
            ])
        """,
        managed=["control"],
    ),
    # ------------------------------------------------------------------ reaching out
    "network": Attack(
        """
        import socket
        def main():
            def connect(family, kind, address):
                socket.socket(family, kind).connect(address)
            return managed([
                ("tcp", lambda: connect(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 22))),
                ("udp", lambda: connect(socket.AF_INET, socket.SOCK_DGRAM, ("8.8.8.8", 53))),
                ("tcp6", lambda: socket.socket(socket.AF_INET6)),
                ("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW)),
                ("netlink", lambda: socket.socket(socket.AF_NETLINK)),
                ("unix", lambda: socket.socket(socket.AF_UNIX)),
                ("names", lambda: socket.create_connection(("example.com", 80), 1)),
                ("pair of another family", lambda: socket.socketpair(socket.AF_INET)),
                ("control", lambda: socket.socketpair()),
            ])
        """,
        managed=["control"],
    ),
    "writing outside": Attack(
        """
        def main():
            def create(place):
                open(place, "w").close()
            places = ["/x", "/usr/x", "/usr/lib/x", "/dev/x", "/etc/x", "/lib/x", sys.executable, "/tmp/x"]
            return managed([(place, lambda place=place: create(place)) for place in places] + [
                ("folder", lambda: os.mkdir("/var")),
                ("mode", lambda: os.chmod("/dev/null", 0)),
                ("executable", lambda: os.remove(sys.executable)),
                ("setuid", lambda: os.chmod(sys.executable, 0o4755)),
            ])
        """,
        managed=["/tmp/x"],
    ),
    "other programs": Attack(
        """
        import subprocess
        def main():
            names = ["/bin/sh", "/usr/bin/env", "/usr/bin/bwrap", "/usr/bin/setpriv", "/usr/bin/su", "bash"]
            return managed([(name, lambda name=name: subprocess.run([name])) for name in names] + [
                ("control", lambda: subprocess.run([sys.executable, "-c", ""], check=True)),
            ])
        """,
        managed=["control"],
        limits={"processes": 2},
    ),
    "signals to the parent": Attack(
        """
        def main(parent):
            return managed([
                ("its number", lambda: os.kill(parent, 9)),
                ("its group", lambda: os.killpg(parent, 9)),
                ("control", lambda: os.kill(os.getpid(), 0)),
            ])
        """,
        managed=["control"],
    ),
    "signals to the first process": Attack(
        """
        def main():
            return managed([
                ("kill", lambda: os.kill(1, 9)),
                ("stop", lambda: os.kill(1, 19)),
                ("everybody", lambda: os.kill(-1, 9)),
            ])
        """,
        managed=["kill", "stop"],
    ),
    "tracing and namespaces": Attack(
        LIBC
        + """
def main():
    return succeed(
        ("ptrace", 16, 1, 0, 0), ("ptrace", 0, 0, 0, 0), ("unshare", 0x10000000), ("unshare", 0x20000), ("setns", 0, 0),
        ("mount", b"none", b"/tmp", b"tmpfs", 0, None), ("umount2", b"/tmp", 0), ("chroot", b"/tmp"), ("setuid", 0),
        ("setgid", 0), ("setresuid", 0, 0, 0), ("memfd_create", b"x", 0), ("sethostname", b"x", 1), ("getpid",),
    )
""",
        managed=["getpid"],
    ),
    "a process in a new namespace": Attack(
        LIBC
        + """
def main(numbers):
    if not numbers:
        return []
    flags = [1 << bit for bit in range(25, 31)] + [0x20000]
    made = [flag for flag in flags if libc.syscall(56, flag | 17, 0, 0, 0, 0) not in (-1,)]
    return made + [435] * (libc.syscall(435, (ctypes.c_uint64 * 11)(0x10000000), 88) != -1)
""",
        managed=[],
        limits={"processes": 3},
    ),
    "system calls by number": Attack(
        LIBC
        + """
def main(numbers):
    return [name for name, number in numbers.items() if libc.syscall(number, 0, 0, 0, 0, 0, 0) != -1]
""",
        managed=[],
    ),
    "keys typed into a terminal": Attack(
        """
        import fcntl
        def main():
            return managed([("TIOCSTI", lambda: fcntl.ioctl(0, 0x5412, b"x")), ("TIOCSTI", lambda: fcntl.ioctl(1, 0x5412, b"x"))])
        """,
        managed=[],
    ),
    # ------------------------------------------------------------------ the channel
    "a forged value": Attack(
        """def main():\n    message('{"value": 42}')\n    import time; time.sleep(600)""", "forged"
    ),
    "a forged value with a token": Attack(
        """def main():\n    message('{"token": "0123", "value": 42}')\n    import time; time.sleep(600)""", "forged"
    ),
    "a forged start": Attack("""message('{"ready": true}')\ndef main(): return 1""", "forged"),
    "no JSON": Attack("def main():\n    message('{{{')\n    return 1", "forged"),
    "no text": Attack("def main():\n    write(bytes([0, 0, 0, 2, 255, 254]))\n    return 1", "forged"),
    "a number of a million digits": Attack("def main():\n    message('9' * 10**6)\n    return 1", "forged"),
    "data that builds an object": Attack(
        """def main():\n    message('{"call": "f", "arguments": {"$": "object", "v": []}}')\n    return 1""", "forged"
    ),
    "numbers that share a hash": Attack(
        """def main(): return {n * (2**61 - 1) for n in range(300)} and call("f", x=set(range(20_000)))""", "forged"
    ),
    "a message without an end": Attack(
        "def main():\n    write(bytes([0, 0, 1, 0]))\n    import time; time.sleep(600)", "timeout", limits=SOON
    ),
    "a message of four gigabytes": Attack(
        "def main():\n    write(b'\\xff' * 4)\n    import time; time.sleep(600)", "refused call", "4,294,967,295 bytes"
    ),
    "brackets by the hundred thousand": Attack("def main():\n    message('[' * 10**5 + ']' * 10**5)\n    return 1", "forged"),
    "deep arguments": Attack(
        """def main():\n    message('{"call": "f", "arguments": {"x": ' + '[' * 500 + ']' * 500 + '}}')\n    return 1""",
        "refused call",
    ),
    "millions of calls": Attack("def main():\n    for _ in range(10**7): call('f')", "refused call", "more than 100 calls"),
    "millions of calls that wait for no answer": Attack(
        """def main():\n    while True: message('{"call": "f", "arguments": {}}')""",
        "refused call",
        "more than 10 calls",
        limits={"calls": 10},
    ),
    "answers that nobody reads": Attack(
        """def main():\n    while True: message('{"call": "f", "arguments": {}}')""",
        "timeout",
        limits={"calls": 10**6, **SOON},
    ),
    "a call to what is not in the table": Attack(
        "def main(): return call('__import__', x='os')", "refused call", "no call '__import__'"
    ),
    "a closed channel": Attack("def main():\n    os.close(channel())\n    os._exit(0)", "crash"),
    "a channel used by several": Attack(
        """
        def main():
            if not os.fork():
                message('{"call": "f", "arguments": {}}')
                os._exit(0)
            os.wait()
            return call("f")
        """,
        managed=5,
        limits={"processes": 2},
    ),
}  # fmt: skip


def _inputs(name: str) -> dict[str, Any]:
    here = Path(__file__)
    known = platform.machine() == "x86_64"
    places = [
        "/etc/passwd",
        "/etc/shadow",
        "/root",
        "/home",
        "/proc/self/environ",
        "/proc/1/environ",
        "/sys",
        str(here),
        "/var",
    ]
    return {
        "host files": {
            "places": [*places, str(here.parent), "../../etc/passwd", "/run", "/dev/shm", "/dev/mem", "/boot", "/tmp"]
        },
        "links out of the tree": {"places": []},
        "signals to the parent": {"parent": os.getpid()},
        "system calls by number": {"numbers": RAW if known else {}},
        "a process in a new namespace": {"numbers": known},
    }.get(name, {})


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """All attacks, several side by side, against a parent with a key in its environment."""
    os.environ["RELGRAD_TEST_API_KEY"] = "to be found"
    try:
        return dict(zip(ATTACKS, _all(), strict=True))
    finally:
        del os.environ["RELGRAD_TEST_API_KEY"]


def _all() -> list[Outcome]:
    usual = {"seconds": 60.0, "cpu_seconds": 20}
    jobs = [Job(attack.program, _inputs(name), {"f": lambda **any_of: 5}) for name, attack in ATTACKS.items()]
    sandboxes = [Sandbox(SandboxSettings(**{**usual, **attack.limits})) for attack in ATTACKS.values()]
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(lambda pair: pair[0].run(pair[1]), zip(sandboxes, jobs, strict=True)))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gets_nowhere(outcomes: dict[str, Outcome], name: str) -> None:
    attack, outcome = ATTACKS[name], outcomes[name]
    assert outcome.error == attack.error, (outcome.message, outcome.value)
    assert attack.message in outcome.message
    assert outcome.value == attack.managed
    assert "to be found" not in outcome.printed


def test_nothing_of_the_attacks_is_left(outcomes: dict[str, Outcome]) -> None:
    assert len(outcomes) == len(ATTACKS)
    mine = [one for one in guests() if os.getpid() in (ancestor.pid for ancestor in one.parents())]
    assert gone(mine)


@pytest.mark.parametrize("name", ["host files", "network"])
def test_without_walls_the_same_code_gets_somewhere(name: str) -> None:
    outside = machine._uncontained("for comparison")
    outcome = run(Job(ATTACKS[name].program, _inputs(name)), Limits(), outside)
    assert set(outcome.value) > set(ATTACKS[name].managed)
