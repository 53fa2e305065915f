"""System calls that a confined process may not make on Linux, as a seccomp filter.

Numbers are those of the kernel's own tables: arch/x86/entry/syscalls/syscall_64.tbl, and
include/uapi/asm-generic/unistd.h for 64-bit ARM.
"""

from __future__ import annotations

import platform
import struct
from dataclasses import dataclass

from clipcheck.errors import IsolationError

_DENIED = {
    # Networks and other sockets; the sandbox's own socket exists already.
    "socket": (41, 198),
    "socketpair": (53, 199),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # Other programs and processes.
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "tkill": (200, 130),
    "setpgid": (109, 154),
    # Memory without a limit.
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "semget": (64, 190),
    # Namespaces, mounts and the roots of file systems.
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "listns": (470, 470),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    # Changes of a file without writing to it, which Landlock does not restrict.
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    # Rarely needed parts of the kernel with many past vulnerabilities.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "fanotify_init": (300, 262),
    "lsm_set_self_attr": (460, 460),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "acct": (163, 89),
    "syslog": (103, 116),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "personality": (135, 92),
}
"""Numbers of each call on x86-64 and on 64-bit ARM."""

_NEWEST = 471
"""The newest known system call, rseq_slice_yield: later ones are denied."""

_GAPS = ((337, 423), (295, 423))
"""Lower numbers that no system call had when these tables were read."""

_ATTRIBUTE_REQUESTS = {"FS_IOC_SETFLAGS": 0x40086602, "FS_IOC_FSSETXATTR": 0x401C5820}
"""Requests of ioctl that change a file as file_setattr does (linux/fs.h)."""

_IOCTL = (16, 29)
_CLONE, _CLONE3, _PRLIMIT = (56, 220), (435, 435), (302, 261)
_ON_PROCESSES = ((62, 129), (234, 131))  # kill, tgkill

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Index into the pairs of numbers above, and the kernel's number of the machine (linux/audit.h), by
machine."""

_CLONE_THREAD = 0x10000

# Instructions of classic BPF (linux/bpf_common.h) and answers (linux/seccomp.h).
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38

# Where struct seccomp_data has the number, the architecture, and the low half of two arguments.
_NUMBER, _ARCHITECTURE, _ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24


@dataclass(frozen=True)
class Instruction:
    """An instruction of classic BPF: code, jumps if true and if false, and a constant."""

    code: int
    constant: int
    true: int = 0
    false: int = 0

    def packed(self) -> bytes:
        """Return the instruction as ``struct sock_filter``."""
        return struct.pack("=HBBI", self.code, self.true, self.false, self.constant)


def seccomp_filter(own: int) -> bytes:
    """Return the filter for this machine, as an array of ``struct sock_filter``.

    Denied calls fail with EPERM, as without rights. Unknown calls fail with ENOSYS, as on an older
    kernel, so that the C library uses others; this includes the x32 calls of x86-64. Threads may be
    started, but no processes; the process may signal only itself, which it needs to abort.

    Raises:
        IsolationError: the system calls of this machine are not known.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise IsolationError(
            f"expected the system calls of {' or '.join(_ARCHITECTURES)}, found {machine}",
            remedy="Run it there.",
        )
    which, architecture = _ARCHITECTURES[machine]
    deny, unknown = Instruction(_ANSWER, _ERROR | _EPERM), Instruction(_ANSWER, _ERROR | _ENOSYS)
    gap_begins, gap_ends = _GAPS[which]
    code = [
        Instruction(_LOAD, _ARCHITECTURE),
        Instruction(_EQUAL, architecture, true=1),
        Instruction(_ANSWER, _KILL),
        Instruction(_LOAD, _NUMBER),
        Instruction(_AT_LEAST, _NEWEST + 1, false=1),
        unknown,
        Instruction(_AT_LEAST, gap_begins, false=2),
        Instruction(_AT_LEAST, gap_ends + 1, true=1),
        unknown,
    ]
    for numbers in _DENIED.values():
        number = numbers[which]
        if number is not None:
            code += [Instruction(_EQUAL, number, false=1), deny]
    # glibc then starts threads with clone, whose flags a filter can check.
    code += [Instruction(_EQUAL, _CLONE3[which], false=1), unknown]
    code += _only_if(_CLONE[which], Instruction(_ANY_BIT, _CLONE_THREAD, true=1))
    for process in _ON_PROCESSES:
        code += _only_if(process[which], Instruction(_EQUAL, own, true=1))
    code += _only_if(_PRLIMIT[which], Instruction(_EQUAL, 0, true=1))
    code += [
        Instruction(_EQUAL, _IOCTL[which], false=2 * len(_ATTRIBUTE_REQUESTS) + 1),
        Instruction(_LOAD, _SECOND_ARGUMENT),
    ]
    for request in _ATTRIBUTE_REQUESTS.values():
        code += [Instruction(_EQUAL, request, false=1), deny]
    code.append(Instruction(_ANSWER, _ALLOW))
    return b"".join(each.packed() for each in code)


def _only_if(number: int, condition: Instruction) -> list[Instruction]:
    """Allow a call if a condition holds for its first argument."""
    return [
        Instruction(_EQUAL, number, false=4),
        Instruction(_LOAD, _ARGUMENT),
        condition,
        Instruction(_ANSWER, _ERROR | _EPERM),
        Instruction(_ANSWER, _ALLOW),
    ]
