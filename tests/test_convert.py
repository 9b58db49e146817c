"""`fourstage convert`: what it writes, what the file says about itself, and what is refused with one sentence."""

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.fill import original_state, read_manifest
from safetensors.torch import load_file, save_file

import fourstage
from fourstage.cli import main
from fourstage.run.convert import convert
from fourstage.weights import catalog
from fourstage.weights.catalog import Weight
from fourstage.weights.reading.safe import read_checkpoint

GOLDEN = Path(__file__).parent / "golden" / "backbones"
Run = Callable[..., tuple[int, str, str]]
Files = dict[str, Path]
OUT = "--out out.safetensors"


def state_of(seed: int = 0, *, dense: bool = False, **arguments: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    build = fourstage.create_backbone if dense else fourstage.create_model
    model = build("visformer_digits", **arguments)
    return {key: value + 0.01 if value.is_floating_point() else value for key, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Checkpoints of a small network, and one that the original code would have written."""
    folder = tmp_path_factory.mktemp("files")
    five, ema = state_of(1, num_classes=5), state_of(2, num_classes=5)
    manifest = read_manifest(GOLDEN / "visformer" / "visformer_tiny.json.gz")
    contents = {
        "five": {"model": five, "ema": ema, "classes": list("abcde"), "epoch": 3},
        "original": {"model": {k: torch.from_numpy(v) for k, v in original_state(manifest).items()}},
        "in22k": {"module." + key: value for key, value in state_of(num_classes=21841).items()},
        "headless": {key: value for key, value in five.items() if not key.startswith("head.")},
        "detector": {
            **{f"backbone.{key}": value for key, value in state_of(dense=True).items()},
            "rpn_head.x": torch.zeros(1),
        },
        "large": state_of(img_size=64),
        "positions": fourstage.create_model("visformer_tiny", img_size=64).state_dict(),
        "grey": state_of(in_chans=1),
    }
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in contents}


@pytest.fixture
def run(typed: Run) -> Run:
    return partial(typed, "convert")


def same(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    mine = model.state_dict()
    return mine.keys() == state.keys() and all(torch.equal(value, mine[key]) for key, value in state.items())


def metadata(path: Path) -> dict[str, str]:
    return read_checkpoint(path).metadata


# ------------------------------------------------------------------------------------------------------ what works


def test_a_file_of_the_original_code_is_written_in_our_names(run: Run, files: Files, tmp_path: Path) -> None:
    out = tmp_path / "visformer.safetensors"
    code, printed, err = run(files["original"], "--model", "visformer_tiny", "--out", out)
    assert (code, err) == (0, "")
    assert printed.splitlines()[0].startswith("original.pth: ")
    assert printed.splitlines()[-1] == f"fourstage.create_model('visformer_tiny', checkpoint_path='{out}')"
    model = fourstage.create_model("visformer_tiny")
    fourstage.load_checkpoint(model, files["original"])
    assert same(fourstage.create_model("visformer_tiny", checkpoint_path=out), load_file(out))
    assert same(model, load_file(out))
    assert metadata(out) == {
        "format": "pt",
        "fourstage_format": "1",
        "fourstage_version": fourstage.__version__,
        "model": "visformer_tiny",
        "form": "classifier",
        "arguments": '{"img_size": 224, "num_classes": 1000}',
        "num_classes": "1000",
        "img_size": "224",
        "source_file": "original.pth",
        "source_sha256": hashlib.sha256(files["original"].read_bytes()).hexdigest(),
        "which": "model",
    }
    assert list(tmp_path.iterdir()) == [out]


def test_classes_come_from_the_file_and_stay_with_it(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "five.safetensors"
    for which, expected in (("model", 1), ("ema", 2)):
        convert(files["five"], "visformer_digits", out, which=which, force=True)
        model: Any = fourstage.create_model("visformer_digits", checkpoint_path=out)
        assert same(model, state_of(expected, num_classes=5))
        assert model.num_classes == 5
        assert read_checkpoint(out).classes == list("abcde")
        assert metadata(out)["which"] == which
    tuned: Any = fourstage.create_model("visformer_digits", checkpoint_path=out, num_classes=3)
    assert tuned.num_classes == 3
    first = out.read_bytes()
    convert(files["five"], "visformer_digits", out, which="ema", force=True)
    assert out.read_bytes() == first  # no dates in it


def test_a_damaged_byte_of_a_converted_file_is_noticed(files: Files, tmp_path: Path) -> None:
    out, plain = tmp_path / "five.safetensors", tmp_path / "plain.safetensors"
    convert(files["five"], "visformer_digits", out)
    content = out.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    random.seed(2)
    names = content.index(b"fourstage_crc32")
    places = [*random.sample(range(header, len(content)), 20), *random.sample(range(8, names), 20), names + 18, 0]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << random.randrange(7)
        out.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"five\.safetensors "):
            read_checkpoint(out)
    out.write_bytes(content[:-8] + bytes(8))
    with pytest.raises(ValueError, match="is damaged, its bytes do not have the sum that was written with them"):
        fourstage.from_checkpoint(out)
    out.write_bytes(content)
    save_file(load_file(out), plain, {"format": "pt"})  # files of other programs have no sum
    assert same(fourstage.create_model("visformer_digits", checkpoint_path=plain, num_classes=5), load_file(out))


def test_heads_of_other_sizes(files: Files, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    convert(files["in22k"], "visformer_digits", out)
    model: Any = fourstage.create_model("visformer_digits", checkpoint_path=out)
    assert model.num_classes == 21841
    done = convert(files["in22k"], "visformer_digits", out, force=True, arguments={"num_classes": 1000})
    assert done.report.head == "head mapped: 21841 to 1000 classes"
    assert load_file(out)["head.weight"].shape[0] == 1000
    convert(files["headless"], "visformer_digits", out, force=True)
    pooled: Any = fourstage.create_model("visformer_digits", checkpoint_path=out)
    assert pooled.num_classes == 0


def test_the_dense_form(run: Run, files: Files, tmp_path: Path) -> None:
    out = tmp_path / "dense.safetensors"
    code, printed, _ = run(files["detector"], "--model", "visformer_digits", "--out", out, "--dense")
    assert code == 0
    assert "1 left out (rpn_head.x)" in printed
    assert "fourstage.create_backbone('visformer_digits'" in printed
    assert metadata(out)["form"] == "dense"
    assert "num_classes" not in metadata(out)
    assert same(fourstage.create_backbone("visformer_digits", checkpoint_path=out), state_of(dense=True))
    again = tmp_path / "from a classifier.safetensors"
    report = convert(files["five"], "visformer_digits", again, dense=True).report
    written = load_file(again).keys()
    assert report.fresh
    assert not written & set(report.fresh)  # what nobody trained is not written
    backbone = fourstage.create_backbone("visformer_digits")
    assert fourstage.load_checkpoint(backbone, again).fresh == report.fresh


def test_arguments_of_the_network_are_kept(run: Run, files: Files, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    words = ("--model", "visformer_digits", "--out", out, "--force")
    assert run(files["large"], *words, "img_size=64", "qk_scale_factor=-0.5")[0] == 0
    arguments = {"img_size": 64, "qk_scale_factor": -0.5, "num_classes": 10}
    assert json.loads(metadata(out)["arguments"]) == arguments
    model: Any = fourstage.create_model("visformer_digits", checkpoint_path=out)
    assert model.default_cfg["input_size"] == (3, 64, 64)
    convert(out, "visformer_digits", tmp_path / "again.safetensors")
    assert json.loads(metadata(tmp_path / "again.safetensors")["arguments"]) == arguments
    other: Any = fourstage.create_model("visformer_digits", checkpoint_path=out, img_size=32)
    assert other.default_cfg["input_size"] == (3, 32, 32)
    backbone: Any = fourstage.create_backbone("visformer_digits", checkpoint_path=out)
    assert backbone.default_cfg["input_size"] == (3, 64, 64)
    assert run(files["large"], *words, "img_size=[64, 32]")[0] == 0
    model = fourstage.create_model("visformer_digits", checkpoint_path=out)
    assert model.default_cfg["input_size"] == (3, 64, 32)
    assert run(files["grey"], *words, "in_chans=1")[0] == 0
    model = fourstage.create_model("visformer_digits", checkpoint_path=out)
    assert model.in_chans == 1


def test_a_published_file_is_known_and_says_where_it_is_from(
    run: Run, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Weight(
        model="visformer_digits",
        tag="in1k",
        file="five.pth",
        address=None,
        page="https://example.org",
        origin="https://example.org/code",
        data="in1k",
        metrics={"top1": 81.5},
        img_size=32,
        arguments={"qk_scale_factor": -0.5},
    )
    monkeypatch.setattr(catalog, "WEIGHTS", (row,))
    out, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    code, printed, _ = run(files["five"], "--model", "visformer_digits", "--out", out)
    assert code == 0
    assert (
        "recognised by its file name: visformer_digits.in1k, top1 81.5\nlicence: none stated, from https://ex"
        in printed
    )
    convert(out, "visformer_digits", again)  # what a converted file knows of itself stays with it
    for path in (out, again):
        entries = metadata(path)
        assert (entries["published_as"], entries["known_by"]) == ("visformer_digits.in1k", "its file name")
        assert (entries["origin"], entries["licence"]) == ("https://example.org/code", "none stated")
        assert (json.loads(entries["metrics"]), entries["data"]) == ({"top1": 81.5}, "in1k")
        arguments = {"img_size": 32, "qk_scale_factor": -0.5, "num_classes": 5}
        assert json.loads(entries["arguments"]) == arguments
    done = convert(files["headless"], "visformer_digits.in1k", again, force=True)
    assert done.metadata["known_by"] == "the name that was given"
    monkeypatch.setattr(catalog, "WEIGHTS", (Weight(**{**vars(row), "sha256": metadata(out)["source_sha256"][:9]}),))
    assert convert(files["five"], "visformer_digits", again, force=True).metadata["known_by"] == "its sha256"


# ---------------------------------------------------------------------------------------------------- what does not


@pytest.mark.parametrize(
    ("file", "model", "rest", "sentence"),
    [
        ("five", "visformer_digits", "--out out.pth", "out.pth must end in .safetensors"),
        ("five", "visformer_digits", "--out no/out.safetensors", "there is no folder"),
        ("five", "visformer_digits", "--out old.safetensors", "old.safetensors exists: add --force"),
        ("five", "visformer_digit", OUT, "did you mean visformer_digits"),
        ("five", "visformer_tiny", OUT, "is a checkpoint of visformer_digits, not of visformer_tiny"),
        ("five", "visformer_digits.in1k", OUT, "no weights of visformer_digits are published"),
        ("five", "visformer_digits", f"{OUT} img_siz=64", "did you mean img_size"),
        ("five", "visformer_digits", f"{OUT} num_classes=4", "predicts 5 classes"),
        ("five", "visformer_digits", f"{OUT} --dense num_classes=5", "no argument num_classes"),
        ("five", "visformer_digits", f"{OUT} more", "'more' is not expected here"),
        ("five", "visformer_digits", f"{OUT} --forse", "did you mean --force"),
        ("headless", "visformer_digits", f"{OUT} --which ema", "no EMA weights"),
        ("detector", "visformer_digits", OUT, "without a head: add --dense"),
        ("positions", "visformer_tiny", OUT, "stages.0.position would be resized): add the size"),
        ("nothing", "visformer_digits", OUT, "there is no file"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(
    file: str,
    model: str,
    rest: str,
    sentence: str,
    run: Run,
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.safetensors").write_text("old")
    code, printed, err = run(files.get(file, Path(file)), "--model", model, *rest.split())
    assert (code, printed) == (2, "")
    assert len(err.splitlines()) == 1
    assert sentence in err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_no_file_replaces_itself(run: Run, files: Files, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    convert(files["five"], "visformer_digits", out)
    code, _, err = run(out, "--model", "visformer_digits", "--out", out, "--force")
    assert code == 2
    assert "is the file that is converted" in err
    assert run(out, "--model", "visformer_digits", "--out", tmp_path / "link.safetensors")[0] == 0


def test_what_is_no_text_or_number_is_not_written(files: Files, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mixer=.* cannot be written into a file: give numbers or text"):
        convert(files["five"], "visformer_digits", tmp_path / "out.safetensors", arguments={"mixer": torch.nn.Identity})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"fourstage_format": "3"}, r"a newer fourstage wrote .*x.safetensors \(format 3, this one knows 2\)"),
        ({"fourstage_format": "?"}, "the metadata of .*x.safetensors is damaged"),
        ({"fourstage_format": "1", "arguments": "[]"}, "the metadata of .*x.safetensors is damaged"),
    ],
)
def test_damaged_metadata_is_a_sentence(entries: dict[str, str], sentence: str, tmp_path: Path) -> None:
    save_file(state_of(), tmp_path / "x.safetensors", {"model": "visformer_digits", "classes": "[1]", **entries})
    assert read_checkpoint(tmp_path / "x.safetensors").classes is None
    with pytest.raises(ValueError, match=sentence):
        fourstage.create_model("visformer_digits", checkpoint_path=tmp_path / "x.safetensors")


@pytest.mark.parametrize(("model", "size"), [("visformer_digits", 64), ("visformer_tiny", 32)])
def test_metadata_serves_its_own_network_and_its_arguments_alone(model: str, size: int, tmp_path: Path) -> None:
    entries = {"fourstage_format": "1", "model": model, "arguments": '{"import": "os", "img_size": 64}'}
    save_file(state_of(img_size=64), tmp_path / "x.safetensors", entries)
    built: Any = fourstage.create_model("visformer_digits", checkpoint_path=tmp_path / "x.safetensors")
    assert built.default_cfg["input_size"] == (3, size, size)


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom fourstage.cli import main\ntry:\n    main(['convert', '--help'])\n"
        "except SystemExit:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--dense" in done.stdout
    assert done.stdout.endswith("False\n")


def test_predict_needs_no_more_than_the_file(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    convert(files["five"], "visformer_digits", tmp_path / "five.safetensors")
    Image.new("RGB", (40, 50), (200, 30, 40)).save(tmp_path / "a.png")
    words = ["predict", tmp_path / "five.safetensors", tmp_path / "a.png", "--out", tmp_path / "out"]
    assert main([str(word) for word in words]) == 0
    told = capsys.readouterr().out.splitlines()[0]
    assert sorted(word for word in told.split() if len(word) == 1) == list("abcde")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("visformer_digit", "did you mean visformer_digits?"),
        ("visformer_digits", "no weights of visformer_digits are published; add --weights FILE"),
        ("swin_tiny.in1", "did you mean swin_tiny.in1k?"),
    ],
)
def test_predict_says_what_it_has_not(name: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", name, "a.png"]) == 2
    assert sentence in capsys.readouterr().err
