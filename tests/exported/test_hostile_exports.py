"""Exported files come from anyone: nothing in them runs code or reads files elsewhere."""

import contextlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exported.networks import DESCRIPTIONS
from torch import Tensor, nn

from fourstage.exported.carriers import add_to_onnx, torch_extra_files
from fourstage.exported.onnx_files import check_weight_files, weight_files
from fourstage.exported.runtime import open_runtime
from fourstage.exported.torch_files import NAME, is_expression, is_operator, open_archive, read_safely

SIDES = DESCRIPTIONS["classification"]
ONE = replace(SIDES, input=replace(SIDES.input, height=None, width=None))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("shift", torch.full((3,), 2.0))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor]:
        pooled_BC = images_BCHW.flatten(2).mean(dim=2) * self.weight + self.get_buffer("shift")
        return (pooled_BC * images_BCHW.shape[0] + torch.ones(3),)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "x.pt2"
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(Small(), (torch.zeros(2, 3, 4, 4),), dynamic_shapes=({0: batch},))
        torch.export.save(program, path, extra_files=torch_extra_files(ONE))
    return path


class Evil:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def rewritten(source: Path, to: Path, change: Callable[[str, bytes], bytes | None], **more: bytes) -> Path:
    """Copy an archive with changed entries; None leaves an entry out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            content = change(name.partition("/")[2], old.read(name))
            if content is not None:
                new.writestr(name, content)
        for name, content in more.items():
            new.writestr(f"x/{name}", content)
    return to


def in_model(change: Callable[[dict[str, Any]], Any]) -> Callable[[str, bytes], bytes]:
    """Return a change of the graph's JSON."""

    def changed(name: str, content: bytes) -> bytes:
        if name != "models/model.json":
            return content
        model = json.loads(content)
        change(model)
        return json.dumps(model).encode()

    return changed


def nodes(model: dict[str, Any]) -> list[dict[str, Any]]:
    return model["graph_module"]["graph"]["nodes"]


def test_a_file_of_torch_is_read(archive: Path) -> None:
    out = open_runtime(archive).run(np.ones((5, 3, 4, 4), np.float32))["logits"]
    np.testing.assert_allclose(out, np.full((5, 3), 16.0))
    with zipfile.ZipFile(archive) as content:  # it has what is refused below in plain form
        assert any(name.endswith("sample_inputs/model.pt") for name in content.namelist())


CODE = "__import__('os').system('touch TRACE')"


@pytest.mark.parametrize(
    "change",
    [
        lambda model: nodes(model)[0].update(target="torch.hub.load"),
        lambda model: nodes(model)[0].update(target="torch.ops.aten.from_file.default"),
        lambda model: nodes(model)[0].update(target="torch.ops.load_library.x"),
        lambda model: nodes(model)[0].update(target="_operator.call"),
        lambda model: nodes(model)[0].update(target="#x"),
        lambda model: nodes(model)[0].update(name=f"x = {CODE}"),
        lambda model: model["graph_module"]["graph"]["inputs"][0]["as_tensor"].update(name=f"x={CODE}"),
        lambda model: model["range_constraints"].update({CODE: {"min_val": 0, "max_val": None}}),
        lambda model: nodes(model)[0]["inputs"].append(
            {"name": "x", "arg": {"as_sym_int": {"as_expr": {"expr_str": CODE, "hint": None}}}, "kind": 1}
        ),
        lambda model: model["graph_module"].update(treespec_namedtuple_fields={"x": {"fields": ["y"]}}),
        lambda model: model["graph_module"]["module_call_graph"][0]["signature"].update(
            in_spec='[1, {"type": "os.system", "context": "null", "children_spec": []}]'
        ),
    ],
)
def test_code_in_a_graph_is_refused(
    change: Callable[[dict[str, Any]], Any], archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = rewritten(archive, tmp_path / "x.pt2", in_model(change))
    with pytest.raises(ValueError, match=r"x\.pt2 is not read because it asks for") as caught:
        open_runtime(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "TRACE").exists()


def test_an_operator_that_torch_lacks_is_one_sentence(
    archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lacking = in_model(lambda model: nodes(model)[0].update(target="torch.ops.aten.no_operator.default"))
    path = rewritten(archive, tmp_path / "x.pt2", lacking)
    with pytest.raises(ValueError, match=r"cannot be opened by torch \(We failed to resolve torch\.ops\.aten\.no_oper"):
        open_runtime(path)
    assert capfd.readouterr().err == ""  # torch logs a traceback


def test_guards_and_remarks_are_left_out(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def change(model: dict[str, Any]) -> None:
        model["guards_code"] = [CODE]
        nodes(model)[0]["metadata"]["stack_trace"] = CODE

    path = rewritten(archive, tmp_path / "x.pt2", in_model(change))
    assert open_runtime(path).run(np.ones((2, 3, 4, 4), np.float32))["logits"].shape == (2, 3)
    assert not (tmp_path / "TRACE").exists()
    with open_archive(path) as content:
        copy = zipfile.ZipFile(read_safely(path, content))
    assert CODE.encode() not in copy.read("model/models/model.json")


def test_pickles_are_not_read(archive: Path, tmp_path: Path) -> None:
    evil = pickle.dumps(Evil(tmp_path / "TRACE"))

    def as_pickle(kind: str) -> Callable[[str, bytes], bytes]:
        def changed(name: str, content: bytes) -> bytes:
            if name != f"data/{kind}/model_{kind}_config.json":
                return evil if name == f"data/{kind}/weight_0" else content
            config = json.loads(content)
            next(iter(config["config"].values()))["use_pickle"] = True
            return json.dumps(config).encode()

        return changed

    with pytest.raises(ValueError, match="asks for a pickle among its weights"):
        open_runtime(rewritten(archive, tmp_path / "a.pt2", as_pickle("weights")))

    def sample(name: str, content: bytes) -> bytes:
        return evil if name == "data/sample_inputs/model.pt" else content

    assert open_runtime(rewritten(archive, tmp_path / "b.pt2", sample))
    assert not (tmp_path / "TRACE").exists()


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ("data/aotinductor/model/x.so", "a compiled library"),
        ("data/constants/model.pt", r"an entry data/constants/model\.pt"),
        ("data/weights/model.pt", "an entry"),
        ("models/other.json", "an entry"),
        ("data/constants/custom_obj_0", "an entry"),
        ("../../x", "an entry"),
    ],
)
def test_other_entries_are_refused(entry: str, part: str, archive: Path, tmp_path: Path) -> None:
    path = rewritten(archive, tmp_path / "x.pt2", lambda _, content: content, **{entry: b"x"})
    with pytest.raises(ValueError, match=part):
        open_runtime(path)


def test_constants_that_are_objects_and_sizes_without_bytes(archive: Path, tmp_path: Path) -> None:
    def changed(update: dict[str, Any], kind: str) -> Callable[[str, bytes], bytes]:
        def change(name: str, content: bytes) -> bytes:
            if name != f"data/{kind}/model_{kind}_config.json":
                return content
            config = json.loads(content)
            config["config"]["weight"] = {**next(iter(config["config"].values()), {}), **update}
            return json.dumps(config).encode()

        return change

    object_ = {"path_name": "custom_obj_0", "use_pickle": False, "tensor_meta": None}
    with pytest.raises(ValueError, match="which is not a tensor"):
        open_runtime(rewritten(archive, tmp_path / "a.pt2", changed(object_, "constants")))
    huge = {"tensor_meta": {"sizes": [{"as_int": 10**12}]}}
    with pytest.raises(ValueError, match="is smaller than its size"):
        open_runtime(rewritten(archive, tmp_path / "b.pt2", changed(huge, "weights")))


GOOD = [
    *(
        "s77",
        "32*s5 + 31",
        "((s0 - 1)//32) + 1",
        "FloorDiv(s0 + 31, 32)",
        "Max(1, s3**2)",
        "u0 <= 5",
        "-(s1/2)",
        "2.5*zf3",
    ),
    "Mul(Float('2.384185791015625e-7', precision=53), ToFloat(Symbol('s0', integer=True)))",
    *("Symbol('s12', positive=True, integer=True)", "Mul(Integer(32), Symbol('s0', integer=True))", "s0 == s1"),
]
BAD = [
    *(
        "exit()",
        "open(0)",
        "s0.x",
        "9**9**9",
        "9**999",
        "s0[0]",
        "'a'",
        "__import__",
        "lambda: s0",
        "FloorDiv",
        "s0;s1",
    ),
    *(
        "Max.x(s0)",
        "s" * 3000,
        "Symbol('exit()')",
        "Symbol(x='s0')",
        "exit=True",
        "print(s0)",
        "Symbol ('s0').x",
        "s0 := 3",
    ),
    "Float('1e9999')",
    *("eval('s0')", "Symbol('__s0')", "f'{s0}'"),
]


@pytest.mark.parametrize("text", GOOD)
def test_expressions_of_honest_files(text: str) -> None:
    assert is_expression(text)


@pytest.mark.parametrize("text", BAD)
def test_expressions_that_could_be_code(text: str) -> None:
    assert not is_expression(text)


def test_operators_of_honest_files() -> None:
    good = ("torch.ops.aten.conv2d.default", "_operator.floordiv", "math.ceil", "torch.sym_max")
    assert all(map(is_operator, (*good, "torch.ops.torchvision.nms.default", "torch.ops.fourstage.nms_mask.default")))
    bad = ("torch.load", "torch.ops.aten", "_operator.attrgetter", "math.factorial", "torch.ops.x.y.z")
    assert not any(map(is_operator, (*bad, "torch.ops.aten.__class__.x.y", "torch.ops.aten.save.default")))
    others = ("torchvision.roi_pool.default", "torchvision.nms.out", "fourstage.other.default", "fourstage.nms_mask.x")
    assert not any(is_operator(f"torch.ops.{name}") for name in others)


# ----------------------------------------------------------------------------------------------------------------- ONNX


def with_weights(folder: Path, location: str, *, nested: bool = False) -> Path:
    """Write a small ONNX file whose weight is in another file."""
    tensor = onnx.helper.make_tensor("weight", onnx.TensorProto.FLOAT, [3], [0.0] * 3)
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "12")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    images, logits = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3]) for name in ("images", "logits")
    )
    if nested:
        constant = onnx.helper.make_node("Constant", [], ["weight"], value=tensor)
        inner = onnx.helper.make_graph([constant], "inner", [], [onnx.helper.make_tensor_value_info("weight", 1, [3])])
        true = onnx.helper.make_tensor("true", onnx.TensorProto.BOOL, [], [True])
        choice = [
            onnx.helper.make_node("Constant", [], ["yes"], value=true),
            onnx.helper.make_node("If", ["yes"], ["chosen"], then_branch=inner, else_branch=inner),
            onnx.helper.make_node("Add", ["images", "chosen"], ["logits"]),
        ]
        graph = onnx.helper.make_graph(choice, "outer", [images], [logits])
    else:
        add = onnx.helper.make_node("Add", ["images", "weight"], ["logits"])
        graph = onnx.helper.make_graph([add], "outer", [images], [logits], [tensor])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    add_to_onnx(model, ONE)
    path = folder / "x.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "inner/secret.bin", "link.bin", "a\\b", ""])
def test_weights_outside_of_the_folder_are_refused(location: str, nested: bool, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    for place in (tmp_path, folder / "inner"):
        (place / "secret.bin").write_bytes(bytes(12))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = with_weights(folder, location, nested=nested)
    with pytest.raises(ValueError, match="outside of its folder"):
        open_runtime(path)


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    path = with_weights(tmp_path, "x.data")
    with pytest.raises(FileNotFoundError, match=r"takes weights from x\.data, which is missing"):
        open_runtime(path)
    (tmp_path / "x.data").write_bytes(np.full(3, 7, np.float32).tobytes())
    assert list(weight_files(path)) == ["x.data"]
    runtime = open_runtime(path)
    np.testing.assert_array_equal(runtime.run(np.zeros(3, np.float32))["logits"], [7, 7, 7])


def test_any_bytes_are_read_without_a_crash(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "x.onnx"
    whole = with_weights(tmp_path, "x.data").read_bytes()
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(256)
        path.write_bytes(bytes(content[: rng.integers(1, len(content) + 1)]))
        with contextlib.suppress(ValueError, FileNotFoundError):
            check_weight_files(path)


@pytest.mark.parametrize(
    ("name", "fits"), [("32*s86", True), ("p_stem.0.weight", True), ("32*exit()", False), ("s0*s1", False)]
)
def test_names_of_values(name: str, fits: bool) -> None:
    assert (NAME.fullmatch(name) is not None) == fits
