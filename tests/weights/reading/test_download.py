"""Published weights are fetched whole or not at all, against a server on this machine that breaks in every way."""

import hashlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from weights.server import CONTENT, Server, serving

import fourstage
from fourstage.weights import catalog
from fourstage.weights.catalog import Weight
from fourstage.weights.reading import download

HASH = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own, and no waiting."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch home"))
    monkeypatch.setattr(download, "PAUSE", 0)
    return tmp_path / "torch home" / "hub" / "checkpoints"


def row(address: str | None, **others: Any) -> Weight:
    values: dict[str, Any] = {
        "model": "visformer_digits",
        "tag": "digits",
        "file": "weights.pth",
        "address": address,
        "page": "https://example.org/weights",
        "origin": "https://example.org",
        "data": "digits",
        "metrics": {"top1": 99.0},
        "img_size": 32,
        "num_classes": 10,
    }
    return Weight(**{**values, **others})


def left(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.suffix != ".lock"}


# ------------------------------------------------------------------------------------------------------ it arrives


def test_a_file_is_fetched_once_and_then_taken_from_the_cache(server: Server, cache: Path) -> None:
    told: list[tuple[int, int]] = []
    path = download.fetch(row(server.address, sha256=HASH), progress=lambda *both: told.append(both))
    assert path == cache / "weights.pth"
    assert path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert all(later - sooner < 2 * download.CHUNK for (sooner, _), (later, _) in pairwise([(0, 0), *told]))
    assert left(cache) == {"weights.pth"}
    assert download.fetch(row("http://127.0.0.1:9/weights.pth", sha256=HASH)) == path
    assert server.asked == [None]


def test_a_broken_connection_is_continued_where_it_broke(server: Server, cache: Path) -> None:
    server.cuts = [1_500_000, 1_000_000]
    told: list[int] = []
    path = download.fetch(row(server.address, sha256=HASH[:8]), progress=lambda done, total: told.append(done))
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1500000-", "bytes=2500000-"]
    assert told == sorted(told)
    assert left(cache) == {"weights.pth"}


def test_a_server_without_ranges_sends_all_again(server: Server) -> None:
    server.ranges, server.cuts = False, [1_500_000]
    assert download.fetch(row(server.address)).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1500000-"]


def test_another_call_continues_what_one_left(server: Server, cache: Path) -> None:
    server.cuts = [500_000] + [0] * download.TRIES
    with pytest.raises(
        OSError, match=r"ended after 500,000 of 3,072,000 bytes\); the 500,000 bytes that arrived are kept"
    ):
        download.fetch(row(server.address))
    assert left(cache) == {"weights.pth.part", "weights.pth.part.version"}
    assert len(server.asked) == download.TRIES
    server.cuts, server.asked = [], []
    assert download.fetch(row(server.address)).read_bytes() == CONTENT
    assert server.asked == ["bytes=500000-"]
    assert left(cache) == {"weights.pth"}


@pytest.mark.parametrize("changed", ["version", "shorter", "no version kept"])
def test_what_is_no_beginning_of_the_file_is_thrown_away(changed: str, server: Server, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "weights.pth.part").write_bytes(b"x" * 1000)
    if changed != "no version kept":
        (cache / "weights.pth.part.version").write_text('"v0"' if changed == "version" else '"v1"')
    if changed == "shorter":
        server.content = CONTENT[:900]
    assert download.fetch(row(server.address)).read_bytes() == server.content
    assert server.asked == ["bytes=1000-", None]


def test_an_answer_that_passes_is_asked_for_again(server: Server) -> None:
    server.codes = [503, 429]
    assert download.fetch(row(server.address)).read_bytes() == CONTENT


def test_progress_counts_as_a_reason_to_go_on(server: Server) -> None:
    server.cuts = [200_000] * 12  # more breaks than tries, each of which brings something
    assert download.fetch(row(server.address)).read_bytes() == CONTENT


# ------------------------------------------------------------------------------------------------ or it does not


@pytest.mark.parametrize(
    ("change", "sentence", "requests"),
    [
        ({"codes": [404] * 9}, r"\(HTTP 404 Not Found\)", 1),
        ({"codes": [500] * 9}, r"\(HTTP 500 Internal Server Error\)", download.TRIES),
        ({"kind": "text/html; charset=utf-8"}, r"\(the server sent a web page instead\)", 1),
        ({"length": False}, r"\(the server does not say how long the file is\)", 1),
    ],
)
def test_a_refusal_says_why_and_what_to_do_by_hand(
    change: dict[str, Any], sentence: str, requests: int, server: Server, cache: Path
) -> None:
    for key, value in change.items():
        setattr(server, key, value)
    typed = r"create_model\('visformer_digits.digits', checkpoint_path='"
    hand = rf"; download it in a browser from https://example.org/weights, then type {typed}"
    with pytest.raises(OSError, match=rf"^weights.pth could not be fetched from http.*{sentence}{hand}"):
        download.fetch(row(server.address))
    assert len(server.asked) == requests
    assert left(cache) == set()


def test_no_server_at_all_is_one_sentence(cache: Path) -> None:
    with pytest.raises(
        OSError, match=r"\(.*[Rr]efused.*\); download it in a browser from .*create_backbone\('visformer_digits.d"
    ):
        download.fetch(row("http://127.0.0.1:9/weights.pth"), "create_backbone")
    assert left(cache) == set()


def test_a_silent_server_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    monkeypatch.setattr(download, "TRIES", 1)
    server.cuts, server.stalls = [1000], True
    with pytest.raises(OSError, match=r"\(nothing arrived for 0.1 seconds\); the 1,000 bytes"):
        download.fetch(row(server.address))


def test_a_file_with_another_hash_is_not_kept(server: Server, cache: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"is not the published file: its sha256 is {HASH}, not 00ff.*; fetch it again"
    ):
        download.fetch(row(server.address, sha256="00ff"))
    assert left(cache) == set()
    (cache / "weights.pth").write_bytes(b"somebody else's")
    with pytest.raises(ValueError, match=r"weights.pth is not the published file.*remove it"):
        download.fetch(row(server.address, sha256=HASH))
    assert (cache / "weights.pth").read_bytes() == b"somebody else's"


def test_a_cache_that_cannot_be_written_is_one_sentence(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "a file"))
    with pytest.raises(OSError, match=r"weights.pth could not be written \(Not a directory\); .*TORCH_HOME="):
        download.fetch(row(server.address))


def test_a_full_disk_is_not_taken_for_a_broken_connection(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(OSError, match=r"could not be written \(No space left on device\)"):
        download.fetch(row(server.address))
    assert server.asked == [None]
    assert "weights.pth" not in left(cache)


# --------------------------------------------------------------------------------------------------- several at once


def test_threads_that_ask_at_once_share_one_download(server: Server) -> None:
    server.cuts = [1_000_000]
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: download.fetch(row(server.address, sha256=HASH)), range(4)))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-"]


def test_a_process_waits_for_another_and_takes_over_when_that_dies(server: Server, cache: Path) -> None:
    code = f"""if True:
        from pathlib import Path
        from fourstage.weights import catalog
        from fourstage.weights.reading import download
        download.folder = lambda: Path({str(cache)!r})
        row = catalog.Weight("m", "t", "weights.pth", {server.address!r}, "", "", "in1k", {{}})
        print(download.fetch(row).stat().st_size)"""

    def start() -> subprocess.Popen[str]:
        words = [sys.executable, "-c", code]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    server.cuts, server.stalls = [2_000_000], True
    first = start()
    while not (cache / "weights.pth.part").exists() and first.poll() is None:
        time.sleep(0.01)
    second = start()
    assert second.stderr is not None
    assert second.stderr.readline() == "another process is fetching weights.pth; waiting for it\n"
    server.stalls = False
    first.kill()
    first.communicate(timeout=60)
    assert second.communicate(timeout=60) == (f"{len(CONTENT)}\n", "")
    assert (cache / "weights.pth").read_bytes() == CONTENT
    assert len(server.asked) == 2


# -------------------------------------------------------------------------------------------------------- in the API


@pytest.fixture
def published(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """A model whose weights the server has, as the first of two rows."""
    torch.manual_seed(1)
    model = fourstage.create_model("visformer_digits", img_size=64, num_classes=7)
    torch.save({"model": model.state_dict()}, tmp_path / "served.pth")
    server.content = (tmp_path / "served.pth").read_bytes()
    rows = (
        row(server.address, img_size=64, num_classes=7, arguments={"qk_scale_factor": -0.5}),
        row(None, tag="by_hand"),
        row(None, tag="mask_rcnn_coco_1x", method="mask_rcnn"),
        row(None, tag="never", file=None),
    )
    monkeypatch.setattr(catalog, "WEIGHTS", rows)
    return model


def test_pretrained_builds_what_the_published_file_is_for(published: torch.nn.Module, server: Server) -> None:
    model: Any = fourstage.create_model("visformer_digits", pretrained=True)
    assert all(torch.equal(value, published.state_dict()[key]) for key, value in model.state_dict().items())
    assert model.num_classes == 7
    assert model.default_cfg["input_size"] == (3, 64, 64)
    assert (model.default_cfg["tag"], model.default_cfg["license"]) == ("digits", "none stated")
    plain: Any = fourstage.create_model("visformer_digits", img_size=64, num_classes=7, qk_scale_factor=-0.5)
    plain.load_state_dict(published.state_dict())
    image_BCHW = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model.eval()(image_BCHW), plain.eval()(image_BCHW))
    assert server.asked == [None]


def test_a_tag_alone_says_how_to_build_and_arguments_of_ones_own_win(published: torch.nn.Module) -> None:
    untrained: Any = fourstage.create_model("visformer_digits.digits")
    assert untrained.num_classes == 7
    assert not torch.equal(untrained.state_dict()["head.weight"], published.state_dict()["head.weight"])
    tuned: Any = fourstage.create_model("visformer_digits.digits", pretrained=True, num_classes=3, img_size=None)
    assert tuned.num_classes == 3
    stem = tuned.state_dict()["stem.0.weight"]
    assert torch.equal(stem, published.state_dict()["stem.0.weight"])
    backbone = fourstage.create_backbone("visformer_digits.digits", pretrained=True)
    assert torch.equal(backbone.state_dict()["stem.0.weight"], stem)
    maps = fourstage.create_model("visformer_digits", pretrained=True, features_only=True, out_indices=(0,))
    assert torch.equal(maps.state_dict()["model.stem.0.weight"], stem)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("visformer_digits.digit", "no published weights called 'digit'; did you mean visformer_digits.digits?"),
        ("visformer_digits.zzz", "; it has digits, by_hand, mask_rcnn_coco_1x, never"),
        ("visformer_digits.", "no published weights called ''"),
        (
            "visformer_digits.by_hand",
            "no program can download visformer_digits.by_hand: download it in a browser from https://exa",
        ),
        ("visformer_digits.never", "no file of visformer_digits.never is published"),
        (
            "visformer_digits.mask_rcnn_coco_1x",
            r"is a mask_rcnn; create_backbone\('visformer_digits.mask_rcnn_coco_1x'",
        ),
        ("visformer_tiny", "no weights of visformer_tiny are published; build it with pretrained=False"),
        ("visformer_tiny.in1k", "no weights of visformer_tiny are published"),
        ("visformer_digitz.digits", "no model is called 'visformer_digitz'; did you mean visformer_digits"),
    ],
)
def test_a_wrong_name_is_answered_before_anything_is_fetched(
    name: str, sentence: str, published: torch.nn.Module, server: Server
) -> None:
    with pytest.raises(ValueError, match=sentence):
        fourstage.create_model(name, pretrained=True)
    with pytest.raises(ValueError, match="did you mean drop_rate"):
        fourstage.create_model("visformer_digits", pretrained=True, dropp_rate=0.1)
    assert server.asked == []


def test_a_damaged_download_is_a_sentence_too(published: torch.nn.Module, server: Server) -> None:
    server.content = server.content[:-1000]
    with pytest.raises(ValueError, match=r"weights.pth is incomplete"):
        fourstage.create_model("visformer_digits", pretrained=True)


def test_what_is_fetched_is_said_on_stderr(
    published: torch.nn.Module, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    fourstage.create_model("visformer_digits", pretrained=True)
    assert capsys.readouterr() == ("", "")
    (download.folder() / "weights.pth").unlink()
    monkeypatch.setenv("RANK", "0")
    fourstage.create_model("visformer_digits", pretrained=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert f"fetching {server.address}  (licence: none stated)" in err
    assert re.search(r"weights.pth, MB (\d+)/\1 ", err)


def test_a_damaged_note_of_the_version_starts_again(server: Server, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "weights.pth.part").write_bytes(CONTENT[:100])
    (cache / "weights.pth.part.version").write_bytes(b"\xff\xfe\x80")
    assert download.fetch(row(server.address)).read_bytes() == CONTENT
    assert left(cache) == {"weights.pth"}
