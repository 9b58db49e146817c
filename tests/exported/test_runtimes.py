"""Files of each format are opened and run by their own runtime; damaged and missing ones are one sentence."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported.files import classifier_files
from exported.networks import DESCRIPTIONS
from predict.networks import predictor

import fourstage
from fourstage.exported.runtime import is_exported, open_runtime, sums, threads

FORMATS = ("onnx", "openvino", "torch")


@pytest.fixture(scope="module")
def network() -> Any:
    return predictor("classification")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, network: Any) -> dict[str, Path]:
    return classifier_files(tmp_path_factory.mktemp("files"), network.network)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, 32, 32)).astype(np.float32)


@pytest.mark.parametrize("form", FORMATS)
def test_outputs_are_those_of_the_network(form: str, files: dict[str, Path], network: Any) -> None:
    runtime = open_runtime(files[form])
    assert runtime.name == {"onnx": "onnxruntime"}.get(form, form)
    for count in (1, 3, 2):
        got = runtime.run(images(count))
        want = network.network(torch.from_numpy(images(count))).detach().numpy()
        assert list(got) == ["logits"]
        np.testing.assert_allclose(got["logits"], want, atol=1e-4)
    first = runtime.run(images(2))["logits"]
    kept = first.copy()
    runtime.run(-images(2))
    np.testing.assert_array_equal(first, kept)  # no runtime reuses the memory that it returned


@pytest.mark.parametrize("form", FORMATS)
def test_load_predicts_as_the_network(form: str, files: dict[str, Path], network: Any) -> None:
    file = fourstage.load(files[form], batch_size=2)
    photos = [np.random.default_rng(i).integers(0, 255, (40 + i, 50, 3), dtype=np.uint8) for i in range(3)]
    for want, got in zip(network(photos), file(photos), strict=True):  # pyright: ignore[reportArgumentType]
        assert isinstance(got, type(want))
        np.testing.assert_array_equal(got.labels, want.labels)
        np.testing.assert_allclose(got.scores, want.scores, atol=1e-5)
        assert got.to_dict().keys() == want.to_dict().keys()


@pytest.mark.parametrize("form", FORMATS)
def test_an_input_that_the_graph_cannot_compute_is_one_sentence(form: str, files: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"cannot compute an input of 1 x 3 x 40 x 40 \(.*other axes$"):
        open_runtime(files[form]).run(np.zeros((1, 3, 40, 40), np.float32))


def test_a_text_of_a_graph_that_is_none_is_one_sentence(
    files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = files["onnx"].read_bytes()
    assert b"Conv" in whole
    (tmp_path / "x.onnx").write_bytes(whole.replace(b"Conv", b"\xd2onv"))
    with pytest.raises(
        ValueError, match=r"x\.onnx cannot be opened by onnxruntime \(.*utf-8.*; export the network again$"
    ):
        open_runtime(tmp_path / "x.onnx")
    assert capfd.readouterr() == ("", "")  # onnxruntime prints that it tries again


@pytest.mark.parametrize("form", FORMATS)
def test_a_missing_runtime_is_one_sentence(form: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    package = {"onnx": "onnxruntime"}.get(form, form)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"is run by {package}, which is missing .*pip.* install {package}$"):
        open_runtime(files[form])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("content", [b"", b"no such file", b"\0" * 5000, "cut", "flipped"], ids=str)
def test_damage_is_one_sentence(form: str, content: bytes | str, files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / f"broken{files[form].suffix}"
    whole = files[form].read_bytes()
    if form == "openvino":
        path.with_suffix(".bin").write_bytes(files[form].with_suffix(".bin").read_bytes())
    if content == "flipped":
        content = bytes(255 - byte for byte in whole[:400]) + whole[400:]
    path.write_bytes(whole[: len(whole) // 2] if content == "cut" else content)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"broken") as caught:
        open_runtime(path)
    assert "\n" not in str(caught.value)


def test_openvino_without_its_weights(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_bytes(files["openvino"].read_bytes())
    with pytest.raises(FileNotFoundError, match=r"its weights in x\.bin, which is missing"):
        open_runtime(tmp_path / "x.xml")


@pytest.mark.parametrize("ending", [".onnx", ".xml", ".pt2"])
def test_a_file_that_is_not_there(ending: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*fourstage export"):
        fourstage.load(tmp_path / f"x{ending}")
    (tmp_path / f"y{ending}").mkdir()
    with pytest.raises(ValueError, match="is a folder, not a file"):
        fourstage.load(tmp_path / f"y{ending}")


def test_names_of_exported_files() -> None:
    assert is_exported("x.onnx")
    assert is_exported(Path("runs") / "X.PT2")
    assert not any(is_exported(name) for name in ("x.pt", "runs/mine", "swin_tiny", "recipe.yaml", 3))
    with pytest.raises(ValueError, match=r"x\.pt is not an exported file; .* ends in \.onnx, \.xml, \.pt2"):
        open_runtime("x.pt")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"weights": "x.pt"}, "it has its own weights; leave weights out"),
        ({"which": "ema"}, "one set of weights"),
        ({"precision": "bfloat16"}, "export it with --half"),
        ({"imports": ["x.py"]}, "needs no Python files"),
        ({"device": "cuda"}, "runs on the CPU"),
    ],
    ids=str,
)
def test_options_that_a_file_cannot_have(options: dict[str, Any], reason: str, files: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=reason):
        fourstage.load(files["onnx"], **options)


def test_threads_are_those_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr("fourstage.exported.runtime.available_cores", lambda: 5)
    assert threads() == 5


def test_a_file_of_other_outputs_than_it_describes(files: dict[str, Path], tmp_path: Path) -> None:
    import onnx

    model = onnx.load(files["onnx"])
    model.graph.output[0].name = "other"
    model.graph.node[-1].output[0] = "other"
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="other inputs or outputs than its description"):
        open_runtime(tmp_path / "x.onnx")
    assert DESCRIPTIONS["classification"].outputs == ("logits",)


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_changed_after_its_proof_is_refused(form: str, files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / files[form].name
    shutil.copy(files[form], path)
    if form == "openvino":
        shutil.copy(files[form].with_suffix(".bin"), path.with_suffix(".bin"))
    proof = path.with_name(f"{path.name}.proof.json")
    proof.write_text(json.dumps({"sha256": sums(path)}))
    open_runtime(path)
    weights = path.with_suffix(".bin") if form == "openvino" else path
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"{path.name} was changed or damaged after its proof; .* remove {proof.name}"
    ):
        open_runtime(path)
    if form == "onnx":
        proof.write_text("{}")
        open_runtime(path)
