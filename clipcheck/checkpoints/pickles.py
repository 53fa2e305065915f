"""Check a pickle before it is read, so that reading it takes time and memory in proportion to it.

A pickle is a small program. Even if it can call no function, it can give its objects numbers in the
billions, for which Python's unpickler reserves an array; nest them deeper than the stack allows; or
contain one object so many times that comparing or printing it never ends. `survey` reads the
opcodes without building objects, and refuses those that no pickler writes.
"""

from __future__ import annotations

import io
import pickletools
import struct
from typing import NamedTuple

MOST_BYTES = 64 << 20
"""Most bytes of a pickle. A state dict of a thousand weights has 0.1 MB."""

_MOST_OPCODES = 1 << 18
"""Most opcodes of a pickle. A weight needs about 25."""

_MOST_DEPTH = 200
"""Most levels of nested objects. A module's state is in the module, which is in its parent's
state."""

_MOST_WORK = 1 << 24
"""Most visits of objects, if each new object were visited with all objects in it."""

_CALLS = ("REDUCE", "NEWOBJ", "NEWOBJ_EX")
_GIVING = (*_CALLS, "OBJ", "INST", "PERSID", "BINPERSID", "BUILD", "EXT1", "EXT2", "EXT4")
"""Opcodes whose result is not a literal."""

_OF_TENSORS = ("torch._utils._rebuild_", "torch.nn.parameter.", "torch.jit._pickle.")
"""Prefixes of the functions that take tensors."""

_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GROWING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
"""Opcodes that put items into an existing object, which does not become deeper itself."""

_GETS = ("GET", "BINGET", "LONG_BINGET")


class _Made(NamedTuple):
    """Object that an opcode leaves on the stack.

    Attributes:
        size: number of objects in it, repeated ones included.
        depth: levels of nested objects.
        number: the greatest integer in it.
        name: of the class or function, if it is one.
        literal: whether it is a literal, not the result of a call.
        plain: whether all objects in it are literals too.
    """

    size: int
    depth: int
    number: int = 0
    name: str = ""
    literal: bool = True
    plain: bool = True


class Survey(NamedTuple):
    """Names and odd calls in pickles.

    Attributes:
        names: the classes and functions in ``GLOBAL`` and ``INST`` opcodes, as ``module.name``.
        odd: description of a call that no pickler writes; empty if there is none.
    """

    names: frozenset[str]
    odd: str


def survey(data: bytes, *, room: int, pickles: int = 1) -> Survey:
    """Check that reading pickles is cheap, and collect the names in them.

    Args:
        data: pickles one after the other; bytes after the last are ignored.
        room: bytes of the file with their storages; no storage can have more elements.

    Raises:
        ValueError: reading one could take all memory or unlimited time, or it is not a pickle.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
    file = io.BytesIO(data)
    names: set[str] = set()
    odd = ""
    for _ in range(pickles):
        try:
            odd = _go_through(file, room, names) or odd
        except (IndexError, KeyError, struct.error) as error:
            raise ValueError("it uses an object that does not exist") from error
    return Survey(frozenset(names), odd)


def _go_through(file: io.BytesIO, room: int, names: set[str]) -> str:
    """Add the names in a pickle to ``names``, and describe its first odd call."""
    odd = ""
    stack: list[_Made | None] = []  # None is a mark
    memo: dict[int, _Made] = {}
    work = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count == _MOST_OPCODES:
            raise ValueError(f"it has more than {_MOST_OPCODES:,} opcodes")
        if opcode.name in ("GLOBAL", "INST"):
            names.add(str(argument).replace(" ", "."))
        if opcode.name == "MARK":
            stack.append(None)
        elif opcode.name in _PUTS or opcode.name == "MEMOIZE":
            # A pickler numbers objects from 0 or 1 on.
            number = len(memo) if opcode.name == "MEMOIZE" else _index(argument)
            if number > count:
                raise ValueError(f"it gives an object the number {number} after {count} opcodes")
            memo[number] = _top(stack)
        elif opcode.name in _GETS:
            stack.append(memo[_index(argument)])
        elif opcode.name == "DUP":
            stack.append(_top(stack))
        elif opcode.name == "POP":
            stack.pop()
        else:
            odd = odd or _odd(opcode.name, stack)
            work += _step(opcode, argument, stack)
            if work > _MOST_WORK:
                raise ValueError("it contains the same objects too many times")
            if opcode.name == "BINPERSID" and _top(stack).number > room:
                raise ValueError("it has a storage with more elements than the file has bytes")
    return odd


def _step(opcode: pickletools.OpcodeInfo, argument: object, stack: list[_Made | None]) -> int:
    """Apply an opcode to the stack.

    Returns:
        The number of objects that it puts into another, nested ones included.
    """
    taken = []
    alone = len(opcode.stack_before)
    if pickletools.markobject in opcode.stack_before:
        while (made := stack.pop()) is not None:
            taken.append(made)
        alone = opcode.stack_before.index(pickletools.markobject)
    for _ in range(alone):
        taken.append(_top(stack))
        stack.pop()
    held = taken.pop() if opcode.name in _GROWING else _Made(0, 0)
    size = sum(made.size for made in taken)
    depth = max(held.depth, 1 + max((made.depth for made in taken), default=0))
    if opcode.stack_after and depth > _MOST_DEPTH:
        raise ValueError(f"it has more than {_MOST_DEPTH} levels of nested objects")
    own = argument if isinstance(argument, int) else 0
    number = max([own, held.number, *(made.number for made in taken)])
    name = str(argument).replace(" ", ".") if opcode.name == "GLOBAL" else ""
    if opcode.name == "STACK_GLOBAL":
        name = "a function named by strings"
    literal = opcode.name not in _GIVING and held.literal
    plain = literal and held.plain and all(made.plain for made in taken)
    made = _Made(1 + held.size + size, depth, number, name, literal, plain)
    stack.extend(made for _ in opcode.stack_after)
    return size


def _odd(opcode: str, stack: list[_Made | None]) -> str:
    """Describe an odd call: of an object that is no function, or with the results of other calls.

    If the object is a tensor, torch prints all of its numbers in an error message (torch 2.14,
    `torch._weights_only_unpickler`); a function with a tensor as its arguments visits all of them.
    A tensor may have any number of elements, with a single one in the file.
    """
    if opcode in _CALLS:
        function, arguments = stack[-3 if opcode == "NEWOBJ_EX" else -2], _top(stack)
        if function is None or not function.name:
            return "it calls an object that is not a function"
        if not arguments.literal:
            return "it calls a function without a list of arguments"
        if not arguments.plain and not function.name.startswith(_OF_TENSORS):
            return f"it calls {function.name[:80]} with the result of another call"
    if opcode == "BUILD" and not _top(stack).literal:
        return "it sets the state of an object to the result of a call"
    if opcode == "BINPERSID" and not _top(stack).plain:
        return "it has a storage whose name is not a string"
    return ""


def _top(stack: list[_Made | None]) -> _Made:
    made = stack[-1]
    if made is None:
        raise ValueError("it uses a mark as an object")
    return made


def _index(argument: object) -> int:
    if not isinstance(argument, int):
        raise ValueError("it refers to an object without a number")
    return argument
