"""See that reading a pickle takes time and memory in proportion to it, before it is read.

A pickle is a small program. Where it can call nothing, it can still number its objects by billions,
for which Python's unpickler reserves an array; nest them deeper than the process has stack; or hold
one object within itself so often that whoever compares or prints it does not end. Here its opcodes
are gone through without anything being built: what no pickler writes is refused.
"""

from __future__ import annotations

import io
import pickletools
import struct
from typing import NamedTuple

MOST_BYTES = 64 << 20
"""Limit of a pickle's size. That of a state dict of a thousand weights has 0.1 MB."""

_MOST_OPCODES = 1 << 18
"""A weight takes some 25 of them."""

_MOST_DEPTH = 200
"""Limit of the depth of objects in objects. A module's state is in the module, which is in its
parent's state."""

_MOST_WORK = 1 << 24
"""Objects gone through, were all that is made looked at when it is made."""

_CALLS = ("REDUCE", "NEWOBJ", "NEWOBJ_EX")
_GIVING = (*_CALLS, "OBJ", "INST", "PERSID", "BINPERSID", "BUILD", "EXT1", "EXT2", "EXT4")
"""Opcodes whose result is no literal."""

_OF_TENSORS = ("torch._utils._rebuild_", "torch.nn.parameter.", "torch.jit._pickle.")
"""Beginnings of the names of functions that take tensors."""

_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GROWING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
"""Opcodes that put something into an object that was there before; this adds no depth to it."""

_GETS = ("GET", "BINGET", "LONG_BINGET")


class _Made(NamedTuple):
    """Result that an opcode leaves on the stack.

    Attributes:
        size: the objects in it, repeated ones too.
        depth: of objects in objects.
        number: the greatest in it.
        name: of the class or function that it is.
        literal: it is written there, and no call gives it.
        plain: nor is anything in it given by a call.
    """

    size: int
    depth: int
    number: int = 0
    name: str = ""
    literal: bool = True
    plain: bool = True


class Survey(NamedTuple):
    """Names and calls that pickles ask for.

    Attributes:
        names: the classes and functions that they name by ``GLOBAL`` and ``INST``, as
            ``module.name``.
        odd: a call that no pickler writes, as a phrase; nothing where there is none.
    """

    names: frozenset[str]
    odd: str


def survey(data: bytes, *, room: int, pickles: int = 1) -> Survey:
    """See that pickles are modest, and what they name.

    Args:
        data: pickles one after the other, and anything behind them.
        room: bytes of the file that has their storages: none has more elements.

    Raises:
        ValueError: reading one could take all memory, or any time, or it is none.
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
            raise ValueError("it takes an object that is not there") from error
    return Survey(frozenset(names), odd)


def _go_through(file: io.BytesIO, room: int, names: set[str]) -> str:
    """Add what a pickle names, and tell the first call in it that is odd."""
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
            # A pickler counts, from 0 or 1.
            number = len(memo) if opcode.name == "MEMOIZE" else _index(argument)
            if number > count:
                raise ValueError(f"it numbers an object {number} that is at most the {count}th")
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
                raise ValueError("its objects are in each other too often")
            if opcode.name == "BINPERSID" and _top(stack).number > room:
                raise ValueError("it has a storage of more elements than the file has bytes")
    return odd


def _step(opcode: pickletools.OpcodeInfo, argument: object, stack: list[_Made | None]) -> int:
    """Take from the stack what the opcode takes, and leave what it leaves.

    Returns:
        How many objects it puts into another, those within others too.
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
        raise ValueError(f"it has more than {_MOST_DEPTH} objects in each other")
    own = argument if isinstance(argument, int) else 0
    number = max([own, held.number, *(made.number for made in taken)])
    name = str(argument).replace(" ", ".") if opcode.name == "GLOBAL" else ""
    if opcode.name == "STACK_GLOBAL":
        name = "told by texts"
    literal = opcode.name not in _GIVING and held.literal
    plain = literal and held.plain and all(made.plain for made in taken)
    made = _Made(1 + held.size + size, depth, number, name, literal, plain)
    stack.extend(made for _ in opcode.stack_after)
    return size


def _odd(opcode: str, stack: list[_Made | None]) -> str:
    """Describe the odd part of a call: one of no function, or one with arguments that calls gave.

    What is called otherwise, torch prints in its message, all numbers of a tensor (torch 2.14,
    `torch._weights_only_unpickler`), and what takes its arguments from a tensor, or makes a set of
    one, goes through all of them: these may be any number, of which the file has one.
    """
    if opcode in _CALLS:
        function, arguments = stack[-3 if opcode == "NEWOBJ_EX" else -2], _top(stack)
        if function is None or not function.name:
            return "it calls what is no function"
        if not arguments.literal:
            return "it calls a function with what is no list of arguments"
        if not arguments.plain and not function.name.startswith(_OF_TENSORS):
            return f"it calls {function.name[:80]} with what is no number and no text"
    if opcode == "BUILD" and not _top(stack).literal:
        return "it gives an object a state that is none"
    if opcode == "BINPERSID" and not _top(stack).plain:
        return "it has a storage whose name is no text"
    return ""


def _top(stack: list[_Made | None]) -> _Made:
    made = stack[-1]
    if made is None:
        raise ValueError("it takes a mark for an object")
    return made


def _index(argument: object) -> int:
    if not isinstance(argument, int):
        raise ValueError("it numbers an object by no number")
    return argument
