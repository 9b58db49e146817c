"""Checkpoint files built by hand: programs that want to run code, and the three containers that carry them."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fourstage.weights.reading.safe import read_checkpoint

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def refusal(path: Path) -> str:
    """The one sentence that reading `path` costs."""
    with pytest.raises(ValueError, match=r".") as caught:
        read_checkpoint(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    assert "\n" not in sentence
    return sentence


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.how = function, arguments

    def __reduce__(self) -> tuple:
        return self.how


class Stored:
    """Pickles as torch's note of a storage."""

    def __init__(self, count: Any, key: Any = "0", kind: Any = torch.FloatStorage, tag: str = "storage") -> None:
        self.note = (tag, kind, key, "cpu", count)


class Pickler(pickle.Pickler):
    legacy = False

    def persistent_id(self, obj: Any) -> Any:
        return (obj.note + (None,) * self.legacy) if isinstance(obj, Stored) else None


def pickled(content: Any, *, legacy: bool = False, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    pickler = Pickler(stream, protocol)
    pickler.legacy = legacy
    pickler.dump(content)
    return stream.getvalue()


def write_zip(
    path: Path, program: bytes, storages: dict[str, bytes] | None = None, other: dict[str, bytes] | None = None
) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in (other or {}).items():
            archive.writestr(f"archive/{name}", data)
    return path


def write_legacy(path: Path, program: bytes, storages: dict[str, bytes] | None = None) -> Path:
    storages = storages or {}
    head = [pickle.dumps(part, 2) for part in (LEGACY_MAGIC, 1001, {"little_endian": True})]
    body = [(len(data) // 4).to_bytes(8, "little") + data for data in storages.values()]
    path.write_bytes(b"".join([*head, program, pickle.dumps(list(storages), 2), *body]))
    return path


def write_bare(path: Path, program: bytes) -> Path:
    path.write_bytes(program)
    return path


RUN, CODE = "touch marker", "open('marker', 'w').close()"
MAKE = b"ctorch._tensor\n_rebuild_from_type_v2\n("


def call(name: str, *texts: str) -> bytes:
    r"""A protocol-0 program that calls `module\\nname` with texts."""
    return b"c" + name.encode() + b"\n(" + b"".join(b"V" + text.encode() + b"\n" for text in texts) + b"tR."


def inside(program: bytes) -> bytes:
    """The program, with what it leaves on the stack as an entry of a dictionary, as an honest file would have it."""
    return b"}Va\n" + program[:-1] + b"s."


def then(program: bytes, *texts: str) -> bytes:
    """The program, and a call of what it left on the stack."""
    return program[:-1] + b"(" + b"".join(b"V" + text.encode() + b"\n" for text in texts) + b"tR."


def stack_global(module: str, name: str, *texts: str) -> bytes:
    names = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    return then(b"\x80\x04" + names + b"\x93.", *texts)


def get(owner: str, word: str) -> bytes:
    return b"cbuiltins\ngetattr\n(c" + owner.encode() + b"\nV" + word.encode() + b"\ntR."


CALLED = {  # what is called: with which text
    RUN: """os.system posix.system nt.system os.popen subprocess.Popen subprocess.check_output subprocess.getoutput
        commands.getoutput pty.spawn torch.utils.collect_env.run operator.methodcaller""",
    CODE: """builtins.eval __builtin__.eval builtins.exec builtins.compile builtins.type builtins.print runpy._run_code
        pdb.run timeit.timeit code.interact numpy.testing._private.utils.runstring numpy.f2py.compile
        someone.else_.function""",
    "marker": """builtins.open io.open _io.FileIO zipfile.ZipFile tempfile.NamedTemporaryFile sqlite3.connect
        logging.FileHandler numpy.save numpy.memmap torch.save torchvision.io.write_file""",
    "victim": """shutil.rmtree os.rmdir torch.from_file numpy.fromfile numpy.core.multiarray.fromfile numpy.loadtxt
        fourstage.api.load_checkpoint""",
    "evil.pt": """torch.load torch.serialization.load torch.hub.load torch.jit.load torch.storage._load_from_bytes
        torch.ops.load_library torch.classes.load_library ctypes.CDLL numpy.load numpy.lib.npyio.load runpy.run_path
        pickle.loads _pickle.loads cPickle.loads marshal.loads""",
    "os": """builtins.__import__ importlib.import_module importlib._bootstrap._gcd_import copyreg._reconstructor
        copy_reg._reconstructor types.FunctionType types.CodeType functools.partial functools.reduce operator.attrgetter
        operator.itemgetter operator.call builtins.map threading.Thread multiprocessing.Process webbrowser.open
        socket.create_connection sys.exit distutils.spawn torch._utils._rebuild_qtensor torch.empty torch.compile
        torch._utils._rebuild_sparse_tensor numpy.random._pickle.__randomstate_ctor""",
}
FUNCTIONS = {name: text for text, names in CALLED.items() for name in names.split()}
PROGRAMS = {
    **{name: call("\n".join(name.rsplit(".", 1)), text) for name, text in FUNCTIONS.items()},
    "stack_global os.system": stack_global("os", "system", RUN),
    "dotted torch": stack_global("torch.serialization", "os.system", RUN),
    "dotted numpy": stack_global("numpy", "os.system", RUN),
    "dotted admitted": stack_global("collections", "OrderedDict.__init__.__globals__", RUN),
    "dotted foreign": stack_global("mmengine", "Registry.build", RUN),
    "dotted class": stack_global("mmengine", "Registry.Inner")[:-3] + b".",
    "getattr of a module": call("builtins\ngetattr", "os", "system"),
    "getattr of an admitted class": get("collections\nOrderedDict", "fromkeys"),
    "getattr of a note of torch": get("torch.nn\nModule", "load_state_dict"),
    "getattr dunder": get("mmengine\nHistoryBuffer", "__init__"),
    "getattr dotted": get("mmengine\nHistoryBuffer", "mean.__globals__"),
    "getattr then call": then(get("mmengine\nHistoryBuffer", "mean"), RUN),
    "getattr of getattr": b"cbuiltins\ngetattr\n(" + get("mmengine\nHistoryBuffer", "mean")[:-1] + b"Va\ntR.",
    "getattr of import": b"cbuiltins\ngetattr\n(" + call("importlib\nimport_module", "os")[:-1] + b"Vsystem\ntR.",
    "call of an instance": then(b"cyacs.config\nCfgNode\n(tR.", RUN),
    "call of a dtype": then(b"ctorch\nfloat32\n.", RUN),
    "call of text": then(b"Vos.system\n.", RUN),
    "call of an alias": call("numpy.core\nos", RUN),
    "inst": b"(V" + RUN.encode() + b"\nios\nsystem\n.",
    "inst of a note": b"(V" + RUN.encode() + b"\nimmengine\nHistoryBuffer\n.",
    "obj": b"(cos\nsystem\nV" + RUN.encode() + b"\no.",
    "obj of a note": b"(cmmengine\nHistoryBuffer\nV" + RUN.encode() + b"\no.",
    "newobj": b"\x80\x02cos\nsystem\n(V" + RUN.encode() + b"\nt\x81.",
    "newobj_ex": b"\x80\x04cmmengine\nHistoryBuffer\n(V" + RUN.encode() + b"\nt}\x92.",
    "ext1": then(b"\x80\x02\x82\xf0.", RUN),
    "ext2": then(b"\x80\x02\x83\xf0\x00.", RUN),
    "build of a class": b"cmmengine\nHistoryBuffer\n}V__setstate__\nVa\nsb.",
    "build of a maker": b"ccollections\nOrderedDict\n}Vupdate\nVa\nsb.",
    "build of a list": b"]}Va\nVb\nsb.",
    "build of a set": b"c__builtin__\nset\n(]tR}Va\nVb\nsb.",
    "build of a dict with text": b"}Va\nb.",
    "persistent id as text": b"Pos.system\n.",
    "persistent id of a function": b"(Vstorage\ncos\nsystem\nV0\nVcpu\nI1\ntQ.",
    "persistent id of a text": b"Vos.system\nQ.",
    "encode with another codec": call("_codecs\nencode", "a", "rot13"),
    "encode with zip": call("_codecs\nencode", "a", "zlib_codec"),
    "subclass by a function": MAKE + b"cposix\nsystem\nN(V" + RUN.encode() + b"\ntNtR.",
    "subclass by a note": MAKE + b"cmmengine\nHook\nN(V" + RUN.encode() + b"\ntNtR.",
}  # fmt: skip
WRITERS = {"zip": write_zip, "legacy": write_legacy, "bare": write_bare}


# A pair of the pair before it, 60 deep: 2**60 leaves to whoever walks it. Left on the stack once.
NEST = b"(Va\nVb\ntp0\n0" + b"".join(b"(g%d\ng%d\ntp%d\n0" % (i, i, i + 1) for i in range(60)) + b"g60\n"
BOMBS = {
    "nested tuples as a key": b"}" + NEST + b"Na.",
    "nested tuples as a key of a dict": b"}" + NEST + b"Vb\ns.",
    "nested tuples as a storage": b"(Vstorage\nctorch\nFloatStorage\n" + NEST + b"Vcpu\nI1\ntQ.",
    "nested tuples as a name": b"\x80\x04" + NEST + b"Va\n\x93.",
    "nested tuples in a set": b"\x80\x04\x8f(" + NEST + b"\x90.",
    "nested tuples to getattr": b"cbuiltins\ngetattr\n(cyacs\nNode\n" + NEST + b"tR.",
    "nested tuples as storage keys": NEST + b".",
    "storage as a key": b"}(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI0\ntQNs.",
    "copies of copies": b"(" + b"N" * 50_000 + b"lp0\n0" + b"cbuiltins\nlist\n(g0\ntR0" * 20_000 + b"}.",
    "encoded again and again": b"V"
    + b"a" * 100_000
    + b"\np0\n0"
    + b"c_codecs\nencode\n(g0\nVlatin1\ntR0" * 20_000
    + b"}.",
    "bytes that are not there": b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"abc",
    "memo far away": b"\x80\x02}r\xff\xff\xff\xff.",
    "range of bytes": b"cbuiltins\nbytes\n(I1000000000000\ntR.",
    "list of a number": b"cbuiltins\nlist\n(I1000000000000\ntR.",
    "list of a range": b"cbuiltins\nlist\n(cbuiltins\nrange\n(I1000000000000\ntRtR.",
    "long integer": b"L" + b"9" * 100_000 + b"L\n.",
}


WRITERS = {"zip": write_zip, "legacy": write_legacy, "bare": write_bare}
