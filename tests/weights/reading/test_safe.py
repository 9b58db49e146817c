"""Honest checkpoints come back exactly; what is no checkpoint is named. Hostile ones: `test_unpickle.py`."""

import argparse
import collections
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from golden.checkpoints.hostile import pickled, refusal, write_zip
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor, nn

from fourstage.weights.reading.safe import Foreign, read_checkpoint

GOLDEN = Path(__file__).parents[2] / "golden" / "checkpoints"
FILES = sorted(path.name for path in GOLDEN.glob("*.pth"))
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.bool,
          torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64,
          torch.float8_e4m3fn, torch.float8_e5m2]  # fmt: skip


def same(a: Tensor, b: Tensor) -> bool:
    bytes_a, bytes_b = (x.contiguous().ravel().view(torch.uint8) for x in (a, b))
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bytes_a, bytes_b)


# ---------------------------------------------------------------- honest files


@pytest.mark.parametrize("name", FILES)
def test_golden_files_hold_the_expected_weights(name: str) -> None:
    expected = {k.partition("|")[2]: v for k, v in np.load(GOLDEN / "expected.npz").items() if k.startswith(name + "|")}
    weights = read_checkpoint(GOLDEN / name).weights()
    assert weights.keys() == expected.keys()
    for key, tensor in weights.items():
        np.testing.assert_array_equal(tensor.numpy(), expected[key], strict=True)


def test_every_golden_file_is_tried() -> None:
    assert set(FILES) == {key.partition("|")[0] for key in np.load(GOLDEN / "expected.npz")}


def test_objects_of_other_classes_become_notes() -> None:
    args = read_checkpoint(GOLDEN / "deit_style_tiny.pth").content["args"]
    assert (type(args), args.name, args.kind, args.args) == (Foreign, "argparse.Namespace", "object", ())
    assert args.state["model"] == "visformer_small"
    config = read_checkpoint(GOLDEN / "swin_style_tiny.pth").content["config"]
    assert (config.name, config.items["MODEL"].items["SWIN"].items["DEPTHS"]) == ("yacs.config.CfgNode", [2, 2, 6, 2])
    assert config.state["__deprecated_keys__"] == set()
    hub = read_checkpoint(GOLDEN / "mmengine_tiny.pth").content["message_hub"]
    history = hub["log_scalars"]["train/loss"]
    assert history.name == "mmengine.logging.history_buffer.HistoryBuffer"
    assert history.state["_log_history"].shape == (6,)
    np.testing.assert_array_equal(history.state["_count_history"], np.ones(6))
    mean = history.state["statistics_methods"]["mean"]
    assert (mean.name, mean.kind) == ("mmengine.logging.history_buffer.HistoryBuffer.mean", "attribute")
    legacy = read_checkpoint(GOLDEN / "legacy_zip_off_tiny.pth").content["args"]
    assert legacy.name == "argparse.Namespace"


def test_class_names_are_found() -> None:
    assert read_checkpoint(GOLDEN / "mmengine_tiny.pth").classes == ["cat", "dog"]
    assert read_checkpoint(GOLDEN / "mmcv1_tiny.pth").classes == ["cat", "dog"]
    assert read_checkpoint(GOLDEN / "swin_released_tiny.pth").classes is None


def filled(dtype: torch.dtype, *shape: int) -> Tensor:
    size = int(np.prod(shape)) * dtype.itemsize
    raw = torch.arange(1, size + 1, dtype=torch.int64).remainder(2 if dtype == torch.bool else 120).to(torch.uint8)
    return raw.view(dtype).reshape(shape)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_torch_saves_comes_back(dtype: torch.dtype, new_format: bool, tmp_path: Path) -> None:
    whole = filled(dtype, 4, 6)
    content = {
        "whole": whole,
        "transposed": whole.t(),
        "part": whole[1:3, ::2],
        "scalar": filled(dtype, 1).reshape(()),
        "empty": torch.empty(0, 3, dtype=dtype),
        "expanded": filled(dtype, 1).expand(5),
        "tied": whole,
        "channels_last": filled(dtype, 2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new_format)
    back = read_checkpoint(tmp_path / "a.pt").weights()
    assert list(back) == list(content)
    for key, tensor in content.items():
        assert same(back[key], tensor), key
        assert back[key].stride() == tensor.stride()
    assert back["tied"].data_ptr() == back["whole"].data_ptr() == back["transposed"].data_ptr()


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_parameters_optimisers_and_plain_things_come_back(new_format: bool, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    marked = nn.Parameter(torch.ones(2))
    marked.no_decay = True  # pyright: ignore[reportAttributeAccessIssue]
    content: dict[str, Any] = {
        "fourstage": 1,
        "model": model.state_dict(),
        "ema": None,
        "classes": ["cat", "dög"],
        "optimizer": optimizer.state_dict(),
        "parameters": [*model.parameters()],
        "marked": marked,
        "plain": [1, -(2**70), 2.5, True, None, "ü", b"\x00\xff", b"", bytearray(b"ab"), (1,), (1, 2, 3, 4), {3}],
        "size": torch.Size([1, 2]),
        "dtype": torch.bfloat16,
        "counts": collections.Counter("aab"),
        "default": collections.defaultdict(list, a=[1]),
        "queue": collections.deque([1, 2], maxlen=5),
        "numpy": [
            np.arange(6.0).reshape(2, 3),
            np.float32(1.5),
            np.array(["a", "bc"]),
            np.zeros((0, 3)),
            np.eye(2) > 0,
        ],
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "swapped": np.arange(3, dtype=">i4"),
        "notes": [argparse.Namespace(a=1), PurePosixPath("a/b"), torch.device("cpu"), np.int64],
    }
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new_format)
    checkpoint = read_checkpoint(tmp_path / "a.pt")
    back = checkpoint.content
    assert list(back) == list(content)
    assert all(same(checkpoint.weights()[key], value) for key, value in model.state_dict().items())
    assert all(same(a, b.detach()) for a, b in zip(back["parameters"], content["parameters"], strict=True))
    assert same(back["marked"], marked.detach())
    assert same(back["optimizer"]["state"][0]["exp_avg"], content["optimizer"]["state"][0]["exp_avg"])
    assert back["optimizer"]["param_groups"] == content["optimizer"]["param_groups"]
    for key in ("plain", "size", "dtype", "counts", "default", "classes", "fourstage", "ema"):
        assert back[key] == content[key], key
    assert back["queue"] == [1, 2]
    for a, b in zip(back["numpy"], content["numpy"], strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    for key in ("fortran", "swapped"):
        np.testing.assert_array_equal(back[key], content[key])
    assert [note.name for note in back["notes"][1:]] == ["pathlib.PurePosixPath", "torch.device", "numpy.int64"]
    assert checkpoint.classes == ["cat", "dög"]
    assert "exp_avg" not in repr(checkpoint)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_binary_protocol_is_read(protocol: int, tmp_path: Path) -> None:
    content = {"w": torch.arange(3.0), "b": b"\xff", "s": {1, 2}, "f": frozenset((1,)), "n": np.int64(3)}
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol)
    back = read_checkpoint(tmp_path / "a.pt").content
    assert torch.equal(back.pop("w"), content.pop("w"))
    assert back == content


def test_safetensors_come_back_with_their_metadata(tmp_path: Path) -> None:
    content = {f"w{i}": filled(dtype, 2, 3) for i, dtype in enumerate(DTYPES) if not dtype.is_complex}
    save_file(content, tmp_path / "a.safetensors", metadata={"model": "swin_tiny"})
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    assert checkpoint.metadata == {"model": "swin_tiny"}
    assert checkpoint.weights().keys() == content.keys()
    assert all(same(checkpoint.weights()[key], value) for key, value in content.items())
    (tmp_path / "a.safetensors").rename(tmp_path / "renamed.pth")
    assert read_checkpoint(tmp_path / "renamed.pth").weights().keys() == content.keys()


# ---------------------------------------------------------------- which weights


def saved(tmp_path: Path, **content: Any) -> Path:
    torch.save(content, tmp_path / "a.pth")
    return tmp_path / "a.pth"


ONE, TWO, THREE = torch.ones(1), torch.full((1,), 2.0), torch.full((1,), 3.0)


@pytest.mark.parametrize("name", ["model_ema", "state_dict_ema", "ema_state_dict", "ema"])
@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict", "module"])
def test_model_and_average_are_told_apart(name: str, wrapper: str, tmp_path: Path) -> None:
    path = saved(tmp_path, **{wrapper: {"a.b": ONE}, name: {"n_averaged": torch.tensor(3), "module.a.b": TWO}})
    assert read_checkpoint(path).weights() == {"a.b": ONE}
    assert read_checkpoint(path).weights("ema") == {"a.b": TWO}


def test_ema_alone_is_found(tmp_path: Path) -> None:
    assert read_checkpoint(saved(tmp_path, model_ema={"a": TWO})).weights("ema") == {"a": TWO}


def test_prefix_of_ddp_is_taken_off_only_where_every_name_has_it(tmp_path: Path) -> None:
    assert read_checkpoint(saved(tmp_path, model={"module.a": ONE})).weights() == {"a": ONE}
    both = {"module.a": ONE, "b": TWO}
    assert read_checkpoint(saved(tmp_path, model=both)).weights() == both
    assert read_checkpoint(saved(tmp_path, model={"a": ONE, "steps": TWO})).weights() == {"a": ONE, "steps": TWO}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "changed",
    [np.asarray, lambda array: np.array(array, order="F"), lambda array: array.astype(array.dtype.newbyteorder(">"))],
    ids=["plain", "fortran", "swapped"],
)
def test_numpy_arrays_are_weights(changed: Callable[[np.ndarray], np.ndarray], wrapped: bool, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)).half()
    state = {key: changed(value.numpy()) for key, value in model.state_dict().items()}
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth").weights()
    assert found.keys() == state.keys()
    for key, value in model.state_dict().items():
        assert same(found[key], value)
    torch.save({"a": np.array(["text"])}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="holds no weights"):
        read_checkpoint(tmp_path / "b.pth").weights()


def test_contiguous_arrays_of_safetensors_fill_counters_too(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))
    arrays = {key: np.ascontiguousarray(value.numpy()) for key, value in model.state_dict().items()}
    assert arrays["1.num_batches_tracked"].shape == (1,)
    save_arrays(arrays, tmp_path / "a.safetensors")
    found = read_checkpoint(tmp_path / "a.safetensors").weights()
    assert all(same(found[key], value) for key, value in model.state_dict().items())


def test_mmengine_swaps_average_and_raw_weights() -> None:
    checkpoint = read_checkpoint(GOLDEN / "mmengine_tiny_ema.pth")
    average, raw = checkpoint.weights("ema"), checkpoint.content["ema_state_dict"]
    assert all(torch.equal(average[key], value) for key, value in checkpoint.content["state_dict"].items())
    assert not torch.equal(average["conv.weight"], raw["module.conv.weight"])


def test_mmcv1_keeps_averages_inside_the_state_dict(tmp_path: Path) -> None:
    path = saved(tmp_path, meta={}, state_dict={"a.weight": ONE, "count": THREE, "ema_a_weight": TWO})
    assert read_checkpoint(path).weights() == {"a.weight": ONE, "count": THREE}
    assert read_checkpoint(path).weights("ema") == {"a.weight": TWO, "count": THREE}


@pytest.mark.parametrize(
    ("content", "which", "words"),
    [
        ({"model": {"a": ONE}, "epoch": 3, "ema": None}, "ema", ["no EMA", "'model', 'epoch'", "which='model'"]),
        ({"model": {"a": ONE}}, "raw", ["which='raw'", "which='model'", "which='ema'"]),
        ({"model": {"a": [1]}}, "model", ["'a'", "'model'", "list"]),
        ({"model": {1: ONE}}, "model", ["entry <int>"]),
        ({"a": ONE, "epoch": 3}, "model", ["'epoch'", "int"]),
        ({"epoch": 3}, "model", ["no weights", "'epoch'"]),
        ({}, "model", ["no weights", "nothing"]),
        ({"model": argparse.Namespace()}, "model", ["complete pickled argparse.Namespace", "state_dict()"]),
        ({"model": "swin", "state_dict": {"a": ONE}}, "model", []),
    ],
)
def test_absent_weights_cost_a_sentence(content: dict, which: str, words: list[str], tmp_path: Path) -> None:
    checkpoint = read_checkpoint(saved(tmp_path, **{str(k): v for k, v in content.items()}))
    if not words:
        assert checkpoint.weights(which) == {"a": ONE}
        return
    with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
        checkpoint.weights(which)
    assert all(word in str(caught.value) for word in words)


# ---------------------------------------------------------------- files that are something else


def whole(tmp_path: Path) -> bytes:
    torch.save({"model": {"a": torch.arange(1000.0)}}, tmp_path / "whole.pth")
    return (tmp_path / "whole.pth").read_bytes()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"Weights are at the address below.\n", "is text, not a checkpoint"),
        (b"import torch\nmodel = 3\n", "is text, not a checkpoint"),
        (b"class A:\n    pass\n", "is text, not a checkpoint"),
        (b"cos is the cosine\nof an angle\n", "is text, not a checkpoint"),
        ("Gewichte für Größen\n".encode() * 200, "is text, not a checkpoint"),
        (b"{'model': 3}\n", "is text, not a checkpoint"),
        (b"\n <!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"", "empty"),
        (b"\x00" * 5000, "no checkpoint"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "no checkpoint"),
        (b"\x1f\x8b\x08" + b"\x00" * 50, "gzip"),
        (b"\x00" * 257 + b"ustar" + b"\x00" * 300, "tar"),
        (pickle.dumps({"a": 1}), "pickle that torch.save did not write"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_of_another_kind_are_named(data: bytes, words: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(data)
    sentence = refusal(tmp_path / f"a.{suffix}")
    assert words in sentence or (suffix == "safetensors" and "not a complete .safetensors file" in sentence)


@pytest.mark.parametrize("path", [5, None, ["a.pth"]])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(ValueError, match="a checkpoint is given by the path of its file; got "):
        read_checkpoint(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*gone"):
        read_checkpoint(tmp_path / "gone.pth")
    assert "is a folder" in refusal(tmp_path)


def test_truncated_files_say_their_size(tmp_path: Path) -> None:
    data = whole(tmp_path)
    (tmp_path / "a.pth").write_bytes(data[:3000])
    assert "3,000 bytes" in refusal(tmp_path / "a.pth")
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "b.pth").write_bytes((tmp_path / "b.pth").read_bytes()[:3000])
    assert "incomplete (3,000 bytes" in refusal(tmp_path / "b.pth")
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "b.pth").write_bytes((tmp_path / "b.pth").read_bytes()[:-1])
    assert "incomplete (" in refusal(tmp_path / "b.pth")
    save_file({"a": torch.arange(1000.0)}, tmp_path / "c.safetensors")
    (tmp_path / "c.safetensors").write_bytes((tmp_path / "c.safetensors").read_bytes()[:3000])
    assert "3,000 bytes" in refusal(tmp_path / "c.safetensors")


def test_a_flipped_byte_in_the_weights_is_noticed(tmp_path: Path) -> None:
    data = bytearray(whole(tmp_path))
    data[len(data) // 2] ^= 1
    (tmp_path / "a.pth").write_bytes(data)
    assert "is damaged" in refusal(tmp_path / "a.pth")


def test_other_archives_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("smt_tiny.pth", b"")
    assert "'smt_tiny.pth'" in refusal(tmp_path / "a.zip")
    program = pickled({})
    assert "TorchScript" in refusal(write_zip(tmp_path / "a.pt", program, other={"constants.pkl": b""}))
    assert "big-endian" in refusal(write_zip(tmp_path / "a.pt", program, other={"byteorder": b"big"}))
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled({"a": "b" * 10000}))
    assert "zip archive" in refusal(tmp_path / "a.pt")
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data.pkl", program)
    assert "repeat" in refusal(tmp_path / "a.pt")


def test_whole_models_and_bare_tensors_are_named(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt")
    assert "complete pickled torch.nn.modules.linear.Linear" in refusal(tmp_path / "a.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert "complete pickled torch.nn.modules.linear.Linear" in refusal(tmp_path / "a.pt")
    torch.save(torch.ones(2), tmp_path / "a.pt")
    assert "holds a Tensor" in refusal(tmp_path / "a.pt")


def test_files_are_read_into_the_memory_of_the_cpu_whatever_the_default_device_is(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    torch.save(state, tmp_path / "new.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "a.safetensors")
    for name in ("new.pth", "old.pth", "a.safetensors"):
        with torch.device("meta"):
            held = read_checkpoint(tmp_path / name).weights()
        assert all(torch.equal(held[key], value) for key, value in state.items())
