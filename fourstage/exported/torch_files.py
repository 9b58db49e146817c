"""A .pt2 archive of `torch.export`, rewritten so that nothing in it can run code. Without torch.

`torch.export.load` alone is not safe: it unpickles tensors, constants and sample inputs that the archive marks as
pickles, it evaluates expressions of sizes as Python, it resolves operators by any name below `torch`, it runs guards
that are stored as code, and it loads compiled libraries. Here an archive is copied in memory entry by entry. Pickles
and libraries are refused or left out, and every text of the graph is compared with what `torch.export.save` writes.
"""

import io
import json
import re
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from fourstage.documents import parse_json

MODEL = "models/model.json"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
INPUTS = "data/sample_inputs/model.pt"  # a pickle, which running needs not
KEPT = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")
PAYLOAD = re.compile(r"data/(weights/weight|constants/tensor)_\d+", re.ASCII)
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims)\.[a-z_]\w*\.\w+|torch\.ops\.torchvision\.(nms|roi_align|_cuda_version)\.default"
    r"|torch\.ops\.fourstage\.nms_mask\.default|_operator\.[a-z]\w*|math\.[a-z]\w*|torch\.sym_\w+|torch\._sym_\w+",
    re.ASCII,
)
FILE_OPERATORS = ("from_file", "_test", "save", "load")  # of ATen, that read or write files, and any that may come
MATH = {"ceil", "floor", "trunc", "sqrt", "log2"}
ARITHMETIC = {
    *("getitem", "add", "sub", "mul", "truediv", "floordiv", "mod", "neg", "pos", "pow"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_", "xor", "lshift", "rshift"),
}
NAME = re.compile(r"[\w.]{0,2000}|\d{1,4}\*s\d{1,4}", re.ASCII)  # 32*s86: a side in steps of 32 pixels
SYMBOL = re.compile(r"(s|u|z|f|zf|zuf)\d+|oo|int_oo|True|False|true|false", re.ASCII)
FUNCTIONS = {  # of sympy's texts, and torch's own
    *("Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Equality", "Unequality"),
    *("GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan"),
    *("FloorDiv", "ModularIndexing", "PythonMod", "Mod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv"),
    *("IntTrueDiv", "FloatTrueDiv", "PowByNatural", "TruncToInt", "RoundToInt", "ToFloat", "Identity", "Max", "Min"),
    *("Abs", "Eq", "Ne", "Ge", "Gt", "Le", "Lt", "And", "Or", "Not", "floor", "ceiling"),
}
ASSUMPTIONS = {"positive", "nonnegative", "nonzero", "negative", "integer", "real", "finite", "precision"}
TOKEN = re.compile(
    r"\s+|'(?:[a-z]+\d+|-?\d+(?:\.\d+)?(?:e[-+]?\d{1,3})?)'|\d+(?:\.\d+)?|[A-Za-z_]\w*"
    r"|\*\*\s*\d{1,2}(?!\d)|\*(?!\*)|[-+/(),<>&|~%]=?|[=!]?=",
    re.ASCII,
)
LONGEST_EXPRESSION = 2000
MOST_POWERS = 4
POWER_OF_POWER = re.compile(r"\*\*\s*\d+\s*\*\*")
PLAIN_TYPES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}
LARGER = 8  # times the bytes of its file that a tensor's numbers may be: torch allocates empty files by their sizes


def read_safely(path: Path, archive: zipfile.ZipFile) -> io.BytesIO:
    """Return an archive that `torch.export.load` can read without running code.

    Raises:
        ValueError: the archive asks for code, or is damaged; the message names what it asked for.
    """
    entries = _entries(path, archive)
    texts = {name: parse_json(archive.read(entries[name]), path) for name in (MODEL, WEIGHTS, CONSTANTS)}
    _check_payloads(texts[WEIGHTS], "weights", entries, path)
    _check_payloads(texts[CONSTANTS], "constants", entries, path)
    texts[MODEL] = _clean(texts[MODEL], path)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as copy:
        for name, entry in entries.items():
            if name in texts:
                copy.writestr(f"model/{name}", json.dumps(texts[name]))
            elif name == INPUTS:
                copy.writestr(f"model/{name}", b"")
            else:
                copy.writestr(f"model/{name}", archive.read(entry))
    out.seek(0)
    return out


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a .pt2 file. Raises ValueError where it is no zip archive."""
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise _damaged(path, str(error)) from None


@contextmanager
def reporting_damage(path: Path) -> Generator[None]:
    """Raise ValueError where an entry of an archive cannot be read."""
    try:
        yield
    except (zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error) as error:
        raise _damaged(path, str(error)) from None


def _entries(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the entries that are kept, by their names below the archive's one folder."""
    entries: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for entry in archive.infolist():
        name = entry.filename.partition("/")[2]
        total += entry.file_size
        if name.startswith("data/aotinductor/"):
            raise _refused(path, "a compiled library")
        if name.startswith("extra/"):
            continue
        if name in entries or entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise _damaged(path, f"{name:.80} is there twice, compressed or encrypted")
        if name not in (MODEL, WEIGHTS, CONSTANTS, INPUTS, *KEPT) and not PAYLOAD.fullmatch(name):
            raise _refused(path, f"an entry {name:.80}")
        entries[name] = entry
    if total > path.stat().st_size:
        raise _damaged(path, "its entries overlap")
    if missing := [name for name in (MODEL, WEIGHTS, CONSTANTS, "archive_version") if name not in entries]:
        raise _damaged(path, f"{missing[0]} is missing")
    return entries


def _check_payloads(config: Any, kind: str, entries: dict[str, zipfile.ZipInfo], path: Path) -> None:
    """Raise ValueError unless all tensors are plain bytes in entries of the archive."""
    rows = config.get("config") if isinstance(config, dict) else None
    if not isinstance(rows, dict):
        raise _damaged(path, f"the list of {kind}")
    for row in rows.values():
        if not isinstance(row, dict) or row.get("use_pickle") is not False:
            raise _refused(path, f"a pickle among its {kind}")
        name = f"data/{kind}/{row.get('path_name')}"
        if not PAYLOAD.fullmatch(name):
            raise _refused(path, f"an object {name:.80}, which is not a tensor")
        meta = row.get("tensor_meta")
        if name not in entries or not isinstance(meta, dict) or not isinstance(meta.get("sizes"), list):
            raise _damaged(path, f"{name:.80} has no size")
        sizes: list[Any] = [one.get("as_int") if isinstance(one, dict) else None for one in meta["sizes"]]
        if not all(type(side) is int and side >= 0 for side in sizes):
            raise _damaged(path, f"{name:.80} has the size {sizes!r:.80}")
        if prod(sizes) > LARGER * entries[name].file_size:
            raise _damaged(path, f"{name:.80} is smaller than its size {sizes!r:.80}")


def _clean(model: Any, path: Path) -> Any:
    """Return the graph without guards and remarks. Raises ValueError where a text of it could be code."""
    if not isinstance(model, dict) or not isinstance(model.get("graph_module"), dict):
        raise _damaged(path, "it has no graph")
    model = {**model, "guards_code": [], "torch_version": ""}
    if model["graph_module"].get("treespec_namedtuple_fields"):
        raise _refused(path, "types of its own")
    return _checked("", model, path)


def _checked(key: str, value: Any, path: Path) -> Any:
    """Return a value of the graph without remarks. Raises ValueError for a text that could be code."""
    if isinstance(value, dict):
        for name in value:
            if not NAME.fullmatch(name):
                raise _refused(path, f"the name {name:.80}")
        return {name: {} if name == "metadata" else _checked(name, one, path) for name, one in value.items()}
    if isinstance(value, list):
        return [_checked(key, one, path) for one in value]
    if isinstance(value, str):
        _check_text(key, value, path)
    return value


def _check_text(key: str, text: str, path: Path) -> None:
    if key == "target":
        fits = is_operator(text)
    elif key == "expr_str":
        fits = is_expression(text)
    elif key in ("in_spec", "out_spec"):
        fits = _is_plain_tree(parse_json(text, path))
    else:
        fits = NAME.fullmatch(text) is not None
    if not fits:
        raise _refused(path, f"{text:.80}")


def is_operator(text: str) -> bool:
    """Return whether a text names an operator on tensors or numbers that reads and writes no file."""
    if not OPERATORS.fullmatch(text):
        return False
    home, _, rest = text.partition(".")
    if home in ("_operator", "math"):
        return rest in (ARITHMETIC if home == "_operator" else MATH)
    return not text.startswith("torch.ops.") or not text.split(".")[3].startswith(FILE_OPERATORS)


def is_expression(text: str) -> bool:
    """Return whether a text is arithmetic on sizes, in the functions that torch writes."""
    if text.count("**") > MOST_POWERS or POWER_OF_POWER.search(text):
        return False
    place, name = 0, None
    while place < len(text) <= LONGEST_EXPRESSION:
        token = TOKEN.match(text, place)
        if token is None:
            return False
        word = token[0]
        if name is not None and not word.isspace():
            known = {"(": FUNCTIONS, "=": ASSUMPTIONS}.get(word)
            if not (SYMBOL.fullmatch(name) if known is None else name in known):
                return False
            name = None
        if word[0].isalpha() or word[0] == "_":
            name = word
        place = token.end()
    return place == len(text) and (name is None or SYMBOL.fullmatch(name) is not None)


def _is_plain_tree(value: Any) -> bool:
    """Return whether the form of inputs or outputs consists of tuples, lists and dictionaries."""
    if isinstance(value, list) and len(value) == 2 and value[0] == 1:
        return _is_plain_tree(value[1])
    if not isinstance(value, dict) or value.get("type") not in PLAIN_TYPES:
        return False
    context = value.get("context")
    plain = context is None or (isinstance(context, str) and re.fullmatch(r'[\w\[\]", ]*', context, re.ASCII))
    children = value.get("children_spec")
    return bool(plain) and isinstance(children, list) and all(map(_is_plain_tree, children))


def _refused(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path} is not read because it asks for {what}, which could run code or is not what `fourstage export` "
        f"writes; export the network again"
    )


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is not a .pt2 file of torch.export, or is damaged ({reason:.200}); export the network again"
    )
