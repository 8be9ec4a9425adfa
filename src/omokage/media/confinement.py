"""What a decoder's process gives up before it looks at a file: memory, time, and on Linux files, network and programs.

Landlock (Linux 5.13) refuses to open, make or remove any file; the media file is open by then. A seccomp filter
refuses sockets, programs, new processes and signals to others. Neither needs rights. Elsewhere they are left out:
macOS has the resource limits without a dependable one for memory, Windows has none of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys
from typing import Final

from omokage.media.limits import InputLimits

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER_MODE = 38, 22, 2
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT, _LANDLOCK_VERSION = 444, 446, 1
_FILE_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15}  # by version of Landlock; later ones have 16
_OPEN_FILES = 64

# By architecture: its AUDIT_ARCH and the numbers of socket, socketpair, connect, execve, execveat, ptrace,
# process_vm_readv, process_vm_writev, kill, tkill, tgkill, unshare, bpf, userfaultfd, perf_event_open, keyctl,
# add_key, request_key, open_by_handle_at, then those of fork and vfork where there are any. The last three are alike:
# io_uring_setup, pidfd_open, pidfd_send_signal.
_ALIKE = (425, 434, 424)
_SYSTEMS: Final = {
    "x86_64": (
        0xC000003E,
        (
            41,
            53,
            42,
            59,
            322,
            101,
            310,
            311,
            62,
            200,
            234,
            272,
            321,
            323,
            298,
            250,
            248,
            249,
            304,
            57,
            58,
            *_ALIKE,
        ),
        56,
        302,
    ),
    "aarch64": (
        0xC00000B7,
        (
            198,
            199,
            203,
            221,
            281,
            117,
            270,
            271,
            129,
            130,
            131,
            97,
            280,
            282,
            241,
            219,
            217,
            218,
            265,
            *_ALIKE,
        ),
        220,
        261,
    ),
}
_CLONE3, _CLONE_THREAD = 435, 0x10000
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER_AT, _ARCH_AT, _FIRST_ARGUMENT_AT = 0, 4, 16


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("operand", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction)))


def confine(limits: InputLimits, cpu_s: float) -> tuple[str, ...]:
    """Take away from this process what decoding does not need; what has been taken. For good.

    cpu_s: computing time that it gets at first, see `allow_cpu`.
    """
    allow_cpu(cpu_s)
    taken = [*_limit_resources(limits)]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0:
            taken += ["files"] if _refuse_files(libc) else []
            taken += ["network, programs"] if _refuse_calls(libc) else []
    return tuple(taken)


def allow_cpu(seconds: float) -> None:
    """So much computing time, in seconds of this process altogether, and no more."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        wanted = max(1, round(seconds))
        if most != resource.RLIM_INFINITY:
            wanted = min(wanted, most)
        resource.setrlimit(resource.RLIMIT_CPU, (wanted, most))


def _limit_resources(limits: InputLimits) -> list[str]:
    try:
        import resource
    except ImportError:
        return []
    wanted = {
        "memory": (resource.RLIMIT_AS, int(limits.memory_gb * 1e9)),
        "file size": (resource.RLIMIT_FSIZE, 0),
        "open files": (resource.RLIMIT_NOFILE, _OPEN_FILES),
        "core dumps": (resource.RLIMIT_CORE, 0),
    }
    taken = ["time"]
    for name, (kind, value) in wanted.items():
        with contextlib.suppress(ValueError, OSError):  # macOS refuses a limit of memory
            _, most = resource.getrlimit(kind)
            value = value if most == resource.RLIM_INFINITY else min(value, most)
            resource.setrlimit(kind, (value, value))
            taken.append(name)
    return taken


def _refuse_files(libc: ctypes.CDLL) -> bool:
    """A Landlock domain that handles every right on files and grants none."""
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION)
    if version < 1:
        return False
    rights = ctypes.c_uint64((1 << _FILE_RIGHTS.get(version, 16)) - 1)
    rules = libc.syscall(_LANDLOCK_CREATE, ctypes.byref(rights), ctypes.sizeof(rights), 0)
    return bool(rules >= 0 and libc.syscall(_LANDLOCK_RESTRICT, rules, 0) == 0)


def _refuse_calls(libc: ctypes.CDLL) -> bool:
    """A filter of system calls: threads and memory as ever, nothing that reaches beyond this process."""
    known = _SYSTEMS.get(platform.machine())
    if known is None or sys.maxsize < 2**32:
        return False
    arch, refused, clone, prlimit = known
    program = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, 0x40000000),  # the calls of x32
        (_RETURN, 0, 0, _REFUSE | _ENOSYS),
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _REFUSE | _ENOSYS),  # its flags lie in memory; the C library then takes clone
        # Threads may be made, processes may not.
        (_EQUAL, 0, 4, clone),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_ANY_BIT, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _REFUSE | _EPERM),
        (_RETURN, 0, 0, _ALLOW),
        # Its own limits may be read and set, no other's.
        (_EQUAL, 0, 4, prlimit),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_EQUAL, 1, 0, 0),
        (_RETURN, 0, 0, _REFUSE | _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    for number in refused:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE | _EPERM)]
    program.append((_RETURN, 0, 0, _ALLOW))
    instructions = (_Instruction * len(program))(*(_Instruction(*each) for each in program))
    filters = _Program(len(program), instructions)
    status: int = libc.prctl(_SET_SECCOMP, _FILTER_MODE, ctypes.byref(filters), 0, 0)
    return status == 0
