"""Read a pickle without running it.

A pickle is a small program that may import and call anything. `Machine` reads it as data: it knows the instructions
that honest checkpoints use and no others, imports nothing, and calls nothing but the functions of `MAKERS`, all in this
file. A name in a pickle becomes a `Foreign`, an inert note of what was named. What is admitted, and why:

    MAKERS          rebuilt by us: tensors over bytes of this file, plain containers, numpy arrays of numbers and text
    DTYPES          torch.float32 and its like: constants
    INERT           harmless classes of the standard library, torch and numpy (argparse.Namespace, paths, dates): noted
    other classes   of libraries that we do not know (yacs, mmengine, ...), named with a capital letter: noted
    all else        functions, and what else the standard library, torch and numpy offer: the file is refused
"""

import math
import pickletools
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fourstage.files import RAISE, limit

PICKLE_BYTES = 64 * 2**20  # of all instructions with their texts and numbers; tensors are outside of them
INSTRUCTIONS = 1_500_000  # an honest file of 10,000 tensors has 300,000; each can make an object of 216 bytes
LEVELS = 64  # containers in each other; honest files have ten
OTHER_KEYS = 30_000  # keys that are not text: integers can be chosen so that each collides with all before it
MOST_EXPANDED = 2**24  # elements that a tensor may show beyond what its storage holds (stride 0); more is a memory bomb


class RefusedError(Exception):
    """The file asks for more than data; the text completes 'it wants ...'."""


class UnreadableError(Exception):
    """A checkpoint that cannot be read; the text follows the path."""


@dataclass(eq=False)
class Foreign:
    """A note on an object of a foreign class in a checkpoint. Nothing was imported or called for it.

    Attributes:
        name: dotted name, such as `argparse.Namespace`.
        kind: "class" where the file only names it, "attribute" for `getattr(class, "word")`, "object" for an instance.
        args, state: what the constructor and `__setstate__` would have been given.
        items, entries: contents of a subclass of dict, and of list or set.
    """

    name: str
    kind: Literal["class", "attribute", "object"] = "class"
    args: tuple = field(default=(), repr=False)  # not in repr: a small file can nest them without end
    state: Any = field(default=None, repr=False)
    items: dict = field(default_factory=dict, repr=False)
    entries: list = field(default_factory=list, repr=False)


@dataclass(frozen=True, eq=False)
class Storage:
    memory: Tensor  # (bytes,) uint8
    dtype: torch.dtype | None  # None: untyped, the tensor says

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize if self.dtype else 1


# ---------------------------------------------------------------- what we rebuild


def _natural(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any = False, _hooks: Any = None, *rest: Any
) -> Tensor:
    """View bytes of this file: `torch._utils._rebuild_tensor`, v2 (rest: flags) and v3 (rest: dtype, flags)."""
    dtype = rest[0] if rest and isinstance(rest[0], torch.dtype) else storage.dtype
    flags = rest[-1] if rest and isinstance(rest[-1], dict) else {}
    if dtype not in DTYPES.values() or not len(size) == len(stride) <= 64 or not _natural(offset, *size, *stride):
        raise UnreadableError("is damaged: it describes a tensor of no known type, or of negative size or stride")
    if any(flags.values()):
        raise UnreadableError(
            "holds a conjugated or negated view: apply resolve_conj() and resolve_neg() before saving"
        )
    held, shown = len(storage.memory) // dtype.itemsize, math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if (shown and last >= held) or shown > max(held, MOST_EXPANDED):
        raise UnreadableError(f"is damaged: a tensor of shape {tuple(size)} reaches past the {held:,} elements stored")
    start = offset if shown else 0
    return torch.empty(0, dtype=dtype, device="cpu").set_(
        storage.memory.untyped_storage(), start, tuple(size), tuple(stride)
    )


def _parameter(tensor: Any, *_: Any) -> Tensor:
    return tensor  # gradients and hooks are of no use to a reader


def _subclass(make: Any, _cls: Any, args: tuple, _state: Any) -> Tensor:
    """Rebuild a tensor that carries attributes, or is of a subclass, as a plain tensor."""
    if not isinstance(make, Foreign) or MAKERS.get(make.name) is not _tensor:
        raise RefusedError("contains a tensor that is not a plain view of bytes")
    return _tensor(*args)


def _list(values: Any = (), *_: Any) -> list:
    if not isinstance(values, list | tuple | set | frozenset):
        raise UnreadableError(f"is damaged: it fills a container from a {type(values).__name__}")
    return list(values)


def _tuple(values: Any = ()) -> tuple:
    return tuple(_list(values))


def _set(values: Any = ()) -> set:
    return {_key(value) for value in _list(values)}


def _dict(*args: Any) -> dict:
    """Make a plain dict of OrderedDict(pairs), Counter(dict), defaultdict(factory); the factory is dropped."""
    pairs = args[-1] if args and not isinstance(args[-1], Foreign) else ()
    return {_key(key): value for key, value in (pairs.items() if isinstance(pairs, dict) else _list(pairs))}


def _key(key: Any) -> Any:
    """Raise for a key that is no scalar and no flat tuple: hashing a nested tuple can take years."""
    for part in key if isinstance(key, tuple) else (key,):
        if part is not None and not isinstance(part, str | bytes | int | float | np.generic | torch.dtype | Foreign):
            raise UnreadableError(f"is damaged: it uses a {type(part).__name__} as a key")
    return key


def _keys_of(args: Any) -> Iterable[Any]:
    """Return what a call that makes a dict or a set would hash."""
    values = args[-1] if isinstance(args, tuple) and args else ()
    if isinstance(values, dict):
        return values
    if not isinstance(values, list | tuple | set | frozenset):
        return ()
    return [value[0] if isinstance(value, list | tuple) and value else value for value in values]


def _bytes(data: Any = b"", encoding: Any = "latin1") -> bytes:
    """Protocol 2 writes bytes as text: `_codecs.encode(text, "latin1")`."""
    if encoding not in ("latin1", "latin-1") or not isinstance(data, str | bytes | bytearray):
        raise RefusedError("would call _codecs.encode with something other than latin-1 text")
    return data.encode("latin-1") if isinstance(data, str) else bytes(data)


def _attribute(owner: Any, word: Any) -> Foreign:
    """Note `getattr(HistoryBuffer, "mean")`: mmengine stores which methods of a class to use. The words are kept."""
    foreign = isinstance(owner, Foreign) and owner.kind == "class" and not _is_known(owner.name)
    if not foreign or not isinstance(word, str) or not word.isidentifier() or word.startswith("__"):
        whose = owner.name if isinstance(owner, Foreign) else type(owner).__name__
        raise RefusedError(f"would call getattr on {whose}")
    return Foreign(f"{owner.name}.{word}", "attribute")


def _numpy_dtype(described: Any) -> np.dtype:
    code: Any = described.args[0]
    order: Any = described.state[1] if described.state else "="
    plain = re.fullmatch(r"[biufcSU]\d{1,9}", code) and order in ("<", ">", "|", "=")
    if not plain or not np.dtype(code).itemsize:
        raise UnreadableError("holds a numpy array of something else than numbers or text: save it without")
    return np.dtype(code).newbyteorder(order)


def _scalar(described: Any, data: Any) -> np.generic:
    (value,) = np.frombuffer(_bytes(data), _numpy_dtype(described))
    return value


def _array(*_: Any) -> np.ndarray:
    return np.ndarray((0,), np.int8)  # `_fill_array` follows


def _fill_array(array: np.ndarray, state: tuple) -> None:
    shape, described, fortran, data = state[-4:]
    dtype, data = _numpy_dtype(described), _bytes(data)
    if not len(shape) <= 32 or not _natural(*shape) or len(data) != math.prod(shape) * dtype.itemsize:
        raise UnreadableError("is damaged: a numpy array is not of the size it should have")
    plain: Any = (1, tuple(shape), dtype, fortran is True, data)
    array.__setstate__(plain)


MAKERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.Size": _tuple,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _dict,
    "collections.Counter": _dict,
    "collections.deque": _list,
    "builtins.dict": _dict,
    "builtins.list": _list,
    "builtins.tuple": _tuple,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "builtins.getattr": _attribute,
    "_codecs.encode": _bytes,
    "numpy._core.multiarray._reconstruct": _array,
    "numpy._core.multiarray.scalar": _scalar,
}
UNFIT = ("torch.q", "torch.bits")  # quantised types need a quantiser beside the bytes
DTYPES = {str(d): d for d in vars(torch).values() if isinstance(d, torch.dtype) and not str(d).startswith(UNFIT)}
STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.storage.UntypedStorage": None,
}
PATHS = ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
INERT = {
    *(f"builtins.{name}" for name in ("int", "float", "str", "bool", "object", "complex", "range", "slice")),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in PATHS),
    *("argparse.Namespace", "types.SimpleNamespace", "uuid.UUID", "decimal.Decimal"),
    *("torch.device", "numpy.ndarray", "numpy.dtype"),
    *(f"numpy.{kind.__name__}" for kind in np.ScalarType if issubclass(kind, np.generic)),
}


# ---------------------------------------------------------------- what a pickle may name

ALIASES = {"__builtin__": "builtins", "numpy.core.multiarray": "numpy._core.multiarray"}  # Python 2, numpy 1


def _is_known(name: str) -> bool:
    """Return whether this names a library whose harmless names are all in the tables above."""
    root = name.partition(".")[0]
    return root in sys.stdlib_module_names or root in ("torch", "numpy")


def _is_class(name: str) -> bool:
    return name.rpartition(".")[2].lstrip("_")[:1].isupper()


def _named(module: Any, name: Any) -> Any:
    """Return what a pickle gets for a name: a `Foreign` or a dtype, never the object itself."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise UnreadableError("is damaged: it names something without words")
    dotted = f"{ALIASES.get(module, module)}.{name}"
    if len(dotted) > 200 or not all(part.isidentifier() for part in dotted.split(".")):
        raise UnreadableError("is damaged: it names something that cannot be a name")
    if dotted in DTYPES:
        return DTYPES[dotted]
    if dotted in MAKERS or dotted in INERT:
        return Foreign(dotted)
    model = dotted.startswith(("torch.", "numpy.")) and _is_class(dotted)  # torch.nn.Linear, torch.FloatStorage, ...
    if "." in name or (_is_known(dotted) and not model):
        raise RefusedError(f"would call {dotted}")
    return Foreign(dotted)


def _call(what: Any, args: Any) -> Any:
    if not isinstance(what, Foreign) or what.kind != "class" or not isinstance(args, tuple):
        raise RefusedError(f"would call {what.name if isinstance(what, Foreign) else 'a ' + type(what).__name__}")
    if what.name in MAKERS:
        return MAKERS[what.name](*args)
    if what.name not in INERT and not _is_class(what.name):
        raise RefusedError(f"would call {what.name}")
    return Foreign(what.name, "object", args)


def _build(target: Any, state: Any) -> None:
    if isinstance(target, Foreign) and target.kind == "object":
        target.state = state
    elif isinstance(target, np.ndarray):
        _fill_array(target, state)
    elif not isinstance(target, dict) or not isinstance(state, dict):  # attributes of an OrderedDict are dropped
        whose = target.name if isinstance(target, Foreign) else type(target).__name__
        raise RefusedError(f"would set attributes of {whose}")


def _pairs(values: list) -> dict:
    return {_key(key): value for key, value in zip(values[::2], values[1::2], strict=True)}


def _add(target: Any, values: list, *, pairs: bool) -> None:
    if pairs and isinstance(target, dict | Foreign):
        (target.items if isinstance(target, Foreign) else target).update(_pairs(values))
    elif not pairs and isinstance(target, list | Foreign):
        (target.entries if isinstance(target, Foreign) else target).extend(values)
    elif not pairs and isinstance(target, set):
        target.update(_set(values))
    else:
        raise UnreadableError(f"is damaged: it adds entries to a {type(target).__name__}")


def check_depth(content: Any) -> None:
    """Raise unless containers in containers end after a few levels and stand for a bounded number of values.

    To print or to compare deeper ones breaks Python, a container that holds itself never ends, and one that holds
    another one twice, which holds a third one twice, doubles at each level.
    """
    level, left = {id(content): (content, 1)}, limit(INSTRUCTIONS)  # each container once, with its number of places
    for _ in range(limit(LEVELS)):
        inside: dict[int, tuple[Any, int]] = {}
        for value, places in level.values():
            left -= len(value) * places
            if left < 0:
                raise UnreadableError(f"describes more than {limit(INSTRUCTIONS):,} objects; {RAISE}")
            for item in value.values() if isinstance(value, dict) else value:
                if isinstance(item, dict | list | tuple | set):
                    inside[id(item)] = item, inside.get(id(item), (item, 0))[1] + places
        if not inside:
            return
        level = inside
    raise UnreadableError(f"is nested too deeply: more than {limit(LEVELS)} containers are in each other; {RAISE}")


# ---------------------------------------------------------------- the machine

# The instructions of the pickle machine (module pickletools explains each); INST, OBJ, EXT and DUP no checkpoint needs.
PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"),
    *("SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
FROM_MARK: dict[str, Callable[[list], Any]] = {"TUPLE": tuple, "LIST": list, "DICT": _pairs, "FROZENSET": _set}


class Machine:
    """Reads one pickle: a stack, a memo, and the instructions that torch, numpy and the frameworks write."""

    def __init__(self, file_size: int, fill: Callable[[str, Tensor], None] | None = None) -> None:
        """Prepare to read one pickle of a file of `file_size` bytes; `fill(key, memory)` copies a storage from it."""
        self.stack: list = []
        self.outer: list[list] = []  # stacks below the open marks
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.fill = fill
        self.file_size = file_size
        self.instructions, self.other_keys = limit(INSTRUCTIONS), limit(OTHER_KEYS)  # that may still come
        self.unclaimed = file_size  # bytes that storages have not asked for yet
        self.copies = (
            4 * file_size + 2**20
        )  # elements that may still be copied: honest files copy a thing twice at most

    def run(self, stream: Any) -> Any:
        for instruction, argument, _ in pickletools.genops(stream):
            self.instructions -= 1
            if self.instructions < 0:
                raise UnreadableError(f"describes more than {limit(INSTRUCTIONS):,} objects; {RAISE}")
            if (name := instruction.name) == "STOP":
                return self.stack.pop()
            if name in PUSHED:
                self.stack.append(argument)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            elif name in TUPLES:
                self.stack[-TUPLES[name] :] = [tuple(self.stack[-TUPLES[name] :])]
            else:
                self.step(name, argument)
        raise EOFError

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "MARK":
                self.outer.append(stack)
                self.stack = []
            case "TUPLE" | "LIST" | "DICT" | "FROZENSET":
                values = self.since_mark()
                if name in ("DICT", "FROZENSET"):
                    self.count_keys(values[:: 2 if name == "DICT" else 1])
                self.stack.append(FROM_MARK[name](values))
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                stack.append(EMPTY[name]())
            case "APPEND" | "SETITEM":
                count = {"APPEND": 1, "SETITEM": 2}[name]
                values = stack[-count:]
                del stack[-count:]
                self.count_keys(values[: count - 1])
                _add(stack[-1], values, pairs=name == "SETITEM")
            case "APPENDS" | "SETITEMS" | "ADDITEMS":
                values = self.since_mark()
                if name != "APPENDS":
                    self.count_keys(values[:: 2 if name == "SETITEMS" else 1])
                _add(self.stack[-1], values, pairs=name == "SETITEMS")
            case "GLOBAL":
                stack.append(_named(*argument.split(" ", 1)))
            case _:
                self.object_step(name, argument)

    def object_step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "STACK_GLOBAL":
                stack[-2:] = [_named(*stack[-2:])]
            case "REDUCE" | "NEWOBJ":
                if isinstance(stack[-2], Foreign) and MAKERS.get(stack[-2].name) in (_dict, _set):
                    self.count_keys(_keys_of(stack[-1]))
                stack[-2:] = [_call(*stack[-2:])]
                self.pay(stack[-1])
            case "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
                self.pay(stack[-1])
            case "BINPERSID":
                stack.append(self.storage(*stack.pop()))
            case "POP" if stack:
                stack.pop()
            case "POP" | "POP_MARK":
                self.since_mark()
            case _:
                if name == "INST":
                    _named(*argument.split(" ", 1))  # a better sentence where it names os.system
                raise UnreadableError(
                    f"is not a checkpoint: it holds the pickle instruction {name}, which no checkpoint needs"
                )

    def since_mark(self) -> list:
        values, self.stack = self.stack, self.outer.pop()
        return values

    def count_keys(self, keys: Iterable[Any]) -> None:
        """Count keys of dictionaries and members of sets that are no text, before they are hashed.

        Raises:
            UnreadableError: more than a checkpoint needs.
        """
        self.other_keys -= sum(type(key) is not str for key in keys)
        if self.other_keys < 0:
            raise UnreadableError(f"has more than {limit(OTHER_KEYS):,} keys that are not text; {RAISE}")

    def pay(self, value: Any) -> None:
        """Count what was copied: copies of copies turn a small file into terabytes.

        Raises:
            UnreadableError: more than the file can hold.
        """
        if isinstance(value, np.ndarray | list | tuple | set | dict | bytes):
            self.copies -= value.nbytes if isinstance(value, np.ndarray) else len(value)
        if self.copies < 0:
            raise UnreadableError("is damaged: it describes far more than the file can hold")

    def storage(self, tag: Any, kind: Any, key: Any = "", _at: Any = None, count: Any = 0, view: Any = None) -> Any:
        """Return what torch names by a persistent id: a storage, or (beside a source text, not read) a class.

        Raises:
            UnreadableError: the storage is damaged, or of an unknown type.
        """
        if tag == "module" and isinstance(kind, Foreign):
            return kind
        if tag != "storage" or not isinstance(kind, Foreign) or not isinstance(key, str | int) or not _natural(count):
            raise UnreadableError("is damaged: it describes a storage wrongly")
        if kind.name not in STORAGES or view is not None:
            raise UnreadableError(f"holds a {kind.name} or a view of one, which cannot be read: save plain tensors")
        dtype = STORAGES[kind.name]
        length = count * (dtype.itemsize if dtype else 1)
        if str(key) not in self.storages:
            self.storages[str(key)] = Storage(self.allocate(length), dtype)
            if self.fill:
                self.fill(str(key), self.storages[str(key)].memory)
        memory = self.storages[str(key)].memory
        if len(memory) != length:
            raise UnreadableError("is damaged: it gives one storage two sizes")
        return Storage(memory, dtype)

    def allocate(self, length: int) -> Tensor:
        self.unclaimed -= length
        if self.unclaimed < 0:
            raise UnreadableError(
                f"is incomplete ({self.file_size:,} bytes, {-self.unclaimed:,} bytes are missing): download it again"
            )
        return torch.empty(length, dtype=torch.uint8, device="cpu")  # whatever the default device is
