"""The seccomp filter, run by a small interpreter of its own: for both machines, on any kernel."""

from __future__ import annotations

import errno
import platform
import struct

import pytest

from clipcheck.sandbox import syscalls
from clipcheck.sandbox.syscalls import seccomp_filter

OWN = 4711
KERNELS = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED, KILLED = 0x7FFF0000, 0x80000000

X32 = 0x40000000
XATTRS = {"setxattrat": 463, "removexattrat": 466, "file_setattr": 469}
READING = {"getxattrat": 464, "listxattrat": 465, "file_getattr": 468}
ORDINARY = {"x86_64": {"read": 0, "mmap": 9, "futex": 202}, "aarch64": {"read": 63, "mmap": 222}}
IOCTL = {"x86_64": 16, "aarch64": 29}


def answer(code: bytes, number: int, *arguments: int, kernel: int) -> int:
    """Run a filter on one system call, as linux/filter.h says."""
    arguments = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack(
        "<iIQ6Q", struct.unpack("<i", struct.pack("<I", number))[0], kernel, 0, *arguments
    )
    at, held = 0, 0
    while True:
        operation, true, false, constant = struct.unpack_from("<HBBI", code, 8 * at)
        at += 1
        if operation == 0x20:
            (held,) = struct.unpack_from("<I", data, constant)
        elif operation == 0x06:
            return int(constant)
        else:
            holds = {0x15: held == constant, 0x35: held >= constant, 0x45: held & constant}
            at += true if holds[operation] else false


@pytest.fixture(params=KERNELS)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(platform, "machine", lambda: request.param)
    return str(request.param)


def asked(machine: str, number: int, *arguments: int) -> str:
    """Return the answer in a word: the name of the error, or allowed."""
    found = answer(seccomp_filter(OWN), number, *arguments, kernel=KERNELS[machine])
    if found == ALLOWED:
        return "allowed"
    assert found >> 16 == 5
    return errno.errorcode[found & 0xFFFF]


@pytest.mark.parametrize("number", [syscalls._NEWEST + 1, 600, X32, X32 + 41, 2**31, 2**32 - 1])
def test_system_calls_newer_than_the_reviewed_ones_are_denied(machine: str, number: int) -> None:
    assert asked(machine, number) == "ENOSYS"


def test_unused_system_call_numbers_are_denied(machine: str) -> None:
    begin = {"x86_64": 337, "aarch64": 295}[machine]
    assert {asked(machine, number) for number in range(begin, 424)} == {"ENOSYS"}


def test_file_attributes_may_be_read_but_not_changed(machine: str) -> None:
    assert {asked(machine, number) for number in XATTRS.values()} == {"EPERM"}
    assert {asked(machine, number) for number in READING.values()} == {"allowed"}
    assert [asked(machine, IOCTL[machine], 3, r) for r in (0x40086602, 0x401C5820, 0x5401)] == [
        "EPERM",
        "EPERM",
        "allowed",
    ]


def test_all_that_is_listed_is_denied_and_the_rest_is_allowed(machine: str) -> None:
    which = list(KERNELS).index(machine)
    listed = {numbers[which] for numbers in syscalls._DENIED.values()} - {None}
    assert {asked(machine, number) for number in listed if number is not None} == {"EPERM"}
    assert {asked(machine, number) for number in ORDINARY[machine].values()} == {"allowed"}


def test_signals_limits_and_threads_affect_only_the_process_itself(machine: str) -> None:
    which = list(KERNELS).index(machine)
    for numbers in syscalls._ON_PROCESSES:
        assert asked(machine, numbers[which], OWN) == "allowed"
        assert asked(machine, numbers[which], OWN + 1) == "EPERM"
    assert asked(machine, syscalls._PRLIMIT[which], 0) == "allowed"
    assert asked(machine, syscalls._PRLIMIT[which], OWN + 1) == "EPERM"
    assert asked(machine, syscalls._CLONE[which], 0x10000) == "allowed"
    assert asked(machine, syscalls._CLONE[which], 0) == "EPERM"
    assert asked(machine, syscalls._CLONE3[which]) == "ENOSYS"


def test_system_calls_of_another_architecture_end_the_process(machine: str) -> None:
    code, i386 = seccomp_filter(OWN), 0x40000003
    assert answer(code, 0, kernel=i386) == KILLED
