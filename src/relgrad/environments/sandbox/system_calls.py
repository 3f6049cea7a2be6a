"""Which system calls a program has left: those that Python needs to compute, to use files in its own small tree, and to wait.

All others answer as if the kernel had none of that name (ENOSYS), so that libraries fall back to older ones: sockets, tracing,
namespaces, mounts, keys, io_uring, bpf, shared memory that no limit counts. Calls of another architecture end the process.
libseccomp translates names to numbers, and makes the program for the kernel.
"""

from __future__ import annotations

import errno
import tempfile
from functools import cache
from typing import Any

FILES = """
    read write pread64 pwrite64 readv writev open openat close close_range stat fstat lstat newfstatat fstatat64 statx lseek
    access faccessat faccessat2 readlink readlinkat getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat
    rename renameat renameat2 link linkat symlink symlinkat chmod fchmod fchmodat truncate ftruncate fsync fdatasync dup dup2 dup3
    pipe pipe2 fcntl flock utimensat umask sendfile copy_file_range statfs fstatfs"""
MEMORY = "brk mmap munmap mremap mprotect madvise msync mincore"
PROCESSES = """
    execve exit exit_group fork vfork wait4 waitid getpid getppid gettid getuid geteuid getgid getegid getgroups getresuid getresgid
    getpgrp getpgid setpgid setsid getsid set_tid_address set_robust_list get_robust_list rseq arch_prctl getrlimit setrlimit
    getrusage times sched_yield sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min
    uname sysinfo getcpu getrandom membarrier"""
SIGNALS = """
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack kill tkill tgkill alarm pause
    restart_syscall"""
TIME = "nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time setitimer getitimer"
WAITING = "poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd2 futex"
PAIRS = "sendto recvfrom shutdown getsockopt setsockopt getsockname getpeername"
"""For asyncio, which wakes itself up through a pair of connected sockets; there is no other way to get a socket."""

NEW_NAMESPACES = 0x7E02_0000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
AF_UNIX = 1
HERE = 0
"""prlimit64's number of the process itself."""
TERMINAL_QUESTIONS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""ioctl: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX and FIOCLEX."""
NAMES_OF_THREADS = (15, 16, 0x5356_4D41)
"""prctl: PR_SET_NAME, PR_GET_NAME and PR_SET_VMA, which names memory."""


@cache
def program() -> bytes:
    """The filter as the kernel takes it. Raises ImportError, OSError or RuntimeError where libseccomp or pyseccomp is missing."""
    import pyseccomp

    calls = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.ENOSYS))
    calls.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    for name in " ".join((FILES, MEMORY, PROCESSES, SIGNALS, TIME, WAITING, PAIRS)).split():
        _allow(calls, name)
    _allow(calls, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, NEW_NAMESPACES, 0))
    _allow(calls, "socketpair", pyseccomp.Arg(0, pyseccomp.EQ, AF_UNIX))
    _allow(calls, "prlimit64", pyseccomp.Arg(0, pyseccomp.EQ, HERE))
    for question in TERMINAL_QUESTIONS:
        _allow(calls, "ioctl", pyseccomp.Arg(1, pyseccomp.EQ, question))
    for option in NAMES_OF_THREADS:
        _allow(calls, "prctl", pyseccomp.Arg(0, pyseccomp.EQ, option))
    with tempfile.TemporaryFile() as file:
        calls.export_bpf(file)
        file.seek(0)
        return file.read()


def _allow(calls: Any, name: str, *arguments: Any) -> None:
    """Names that this version of libseccomp does not know stay forbidden."""
    import pyseccomp

    if pyseccomp.resolve_syscall(pyseccomp.system_arch(), name) != -1:
        calls.add_rule(pyseccomp.ALLOW, name, *arguments)
