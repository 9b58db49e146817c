"""JSON and YAML within limits: each hostile document is one sentence with its name, in little time and memory."""

import json
import os
import time
from pathlib import Path

import pytest

from fourstage.documents import in_file, parse_json, parse_yaml, read_json
from fourstage.files import LIMITS, limit, open_regular, read_bytes, read_text

LAUGHS = "a0: &a0 [x, x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 12)
)
YAML = {
    "laughs": (LAUGHS, "describes more than 100,000 values"),
    "merges": (MERGES, "describes more than 100,000 values"),
    "itself": ("a: &a [1, *a]", "refers to itself"),
    "unknown": ("a: *b", "refers to itself or to nothing"),
    "deep": ("[" * 5000, "nested too deeply"),
    "deep blocks": ("".join(f"{' ' * i}a:\n" for i in range(500)), "nested too deeply"),
    "values": ("- 1\n" * 150_000, "describes more than 100,000 values"),
    "large": ("#" * 2_000_000, "2,000,000 bytes large"),
    "sexagesimal": ("a: 1" + ":59" * 200_000, "a number of 600,001 characters"),
    "long": ("a: 0x" + "f" * 200_000, "a number of 200,002 characters"),
    "date": ("a: 2001-99-99", "month must be in"),
    "code": ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "control": ("a: \x07", "not YAML"),
    "indent": ("a: [1\nb: 2", "not YAML"),
}
JSON = {
    "deep": (b"[" * 200_000, "nested too deeply"),
    "deep objects": (b'{"a":' * 200_000, "nested too deeply"),
    "values": (b"[" + b"{}," * 2_600_000 + b"{}]", "holds about 5,200,003 values"),
    "digits": (b"[" + b"9" * 5000 + b"]", "is not JSON: Exceeds the limit"),
    "cut": (b'{"a": 1', "is not JSON"),
    "bytes": (b"\xff\xfe\x00\x01\x80", "is not"),
    "empty": (b"", "is not JSON"),
}


@pytest.mark.parametrize("name", YAML)
def test_a_hostile_yaml_document_is_one_sentence(name: str) -> None:
    text, words = YAML[name]
    started = time.process_time()
    with pytest.raises(ValueError, match=words):
        parse_yaml(text, "their.yaml")
    assert time.process_time() - started < 5


@pytest.mark.parametrize("name", JSON)
def test_a_hostile_json_document_is_one_sentence_with_its_name(name: str, tmp_path: Path) -> None:
    content, words = JSON[name]
    (tmp_path / "their.json").write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_json(tmp_path / "their.json")
    assert str(caught.value).startswith(str(tmp_path / "their.json"))
    assert "\n" not in str(caught.value)


def test_honest_documents_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"a": [1, 2.5, None, "ä"]}), encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, None, "ä"]}
    assert parse_json('{"a": [1]}', "it") == {"a": [1]}
    assert parse_yaml("base: &b {x: 1}\nmine: {<<: *b, y: [1, 2]}\n", "it") == {
        "base": {"x": 1},
        "mine": {"x": 1, "y": [1, 2]},
    }


@pytest.mark.parametrize("tag", ["", "!!int "])
def test_keys_that_collide_in_a_dictionary_are_few(tag: str) -> None:
    quotes = "'" if tag else ""
    keys = [f"{tag}{quotes}{i * (2**61 - 1)}{quotes}: 0" for i in range(1, 30_000)]
    with pytest.raises(ValueError, match=r"it has more than 1,000 numbers of 15 characters"):
        parse_yaml("\n".join(keys), "it")
    assert len(parse_yaml("\n".join(keys[:900]), "it")) == 900
    names = [f"'{i:020d}'" for i in range(2000)]
    assert len(parse_yaml("\n".join(f"- {name}" for name in names), "it")) == 2000
    assert len(parse_yaml("\n".join(f"- 000000{i:06d}.jpg" for i in range(2000)), "it")) == 2000


def test_one_variable_raises_all_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("x" * 50)
    with pytest.raises(ValueError, match=f"50 bytes large, and at most 40 are read; .*{LIMITS}=10"):
        read_bytes(tmp_path / "a", 40)
    monkeypatch.setenv(LIMITS, "1.5")
    assert limit(40) == 60
    assert read_text(tmp_path / "a", 40) == "x" * 50
    assert parse_yaml("- 1\n" * 120_000, "it")
    for wrong in ("0.5", "many", "nan", "inf", ""):
        monkeypatch.setenv(LIMITS, wrong)
        with pytest.raises(ValueError, match=f"{LIMITS} is the factor"):
            limit(40)


def test_only_a_regular_file_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "named pipe"), (tmp_path, "folder"), (Path("/dev/zero"), "device")):
        with pytest.raises(ValueError, match=f"is a {kind}, not a file"):
            open_regular(path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "gone")
    (tmp_path / "latin").write_bytes("ä".encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_text(tmp_path / "latin", 10)


def test_numbers_and_depths_beyond_python_are_sentences_and_other_errors_stay() -> None:
    def dive(depth: int) -> int:
        return dive(depth + 1)

    with pytest.raises(ValueError, match=r"a\.json has a number that is too large"), in_file("a.json"):
        int(float("inf"))
    with pytest.raises(ValueError, match=r"a\.json is nested too deeply"), in_file("a.json"):
        dive(0)
    with pytest.raises(ValueError, match=r"a\.json needs more memory"), in_file("a.json"):
        raise MemoryError
    with pytest.raises(KeyError), in_file("a.json"):
        {}["x"]
