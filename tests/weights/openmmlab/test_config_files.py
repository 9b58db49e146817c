"""Configuration files are read without running them, within limits, and every fault is one sentence."""

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weights.openmmlab.config_files import BASES, write
from weights.openmmlab.source_configs import CONFIGS, ENGINE_DINO, ENGINE_UPERNET

from fourstage.run.import_config import imported_recipe
from fourstage.weights.openmmlab.config_files import read_config_file
from fourstage.weights.openmmlab.expressions import Unread

CONFIG = CONFIGS["mask_rcnn_smt_small_coco_3x"]


def read(folder: Path, text: str) -> dict[str, Any]:
    path = folder / "config.py"
    path.write_text("model = dict(type='MaskRCNN')\n" + text)
    return read_config_file(path).values


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("[1] * 3", [1, 1, 1]),
        ("1e-4 * 8 / 2 - 0.0", 0.0004),
        ("2 ** 10 // 3", 341),
        ("'a' + 'b' * 2", "abb"),
        ("f'{model[\"type\"]}_{1}'", "MaskRCNN_1"),
        ("'/'.join(['a', 'b'])", "a/b"),
        ("[(s, 1333) for s in range(480, 545, 32)]", [(480, 1333), (512, 1333), (544, 1333)]),
        ("dict(dict(a=1), b=2)", {"a": 1, "b": 2}),
        ("dict(**model, c=[*range(2)])", {"type": "MaskRCNN", "c": [0, 1]}),
        ("'{{ fileBasenameNoExtension }}/x'", "config/x"),
        ("list((1, 2))", [1, 2]),
        ("model.type", "MaskRCNN"),
    ],
)
def test_values_are_computed(code: str, value: object, tmp_path: Path) -> None:
    assert read(tmp_path, f"x = {code}\n")["x"] == value


@pytest.mark.parametrize(
    "code",
    [
        "__import__('os').system('touch ran')",
        "open('/etc/passwd').read()",
        "9 ** 9 ** 9",
        "'a' * 10 ** 10",
        "[x for x in open('f')]",
        "(lambda: 1)()",
        "unknown + 1",
        "1 / 0",
        "getattr(model, 'x')",
        "model.__class__",
        "f'{model!r:>999999999}'",
        "1 << 999999",
        "'{{ secret }}'",
    ],
)
def test_code_is_not_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(read(tmp_path, f"x = {code}\n")["x"], Unread)
    assert [path.name for path in tmp_path.iterdir()] == ["config.py"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("for i in range(3):\n    x = i\n", "does more than assign values"),
        ("exec('x = 1')\n", "does more than assign values"),
        ("model.update(x=1)\n", "does more than assign values"),
        ("x = (\n", "not valid Python"),
        ("x = " + "[" * 100 + "]" * 100, "nested more than 60 deep"),
        ("x = " + "1 + " * 5000 + "1\n", "operators in one statement"),
        ("x = " + "-" * 5000 + "1\n", "operators in one statement"),
        ("a = [0] * 100000\nb = [a, a, a]\n", "more than 200,000 values"),
        ("x = [[1] * 1000 for _ in range(1000)]\n", "more than 200,000 values"),
        ("x = range(10 ** 18)\n", "more than 200,000 values"),
        ("x = 'a'\n" * 100000, "at most 500,000 are read"),
        ("_base_ = 'gone.py'\n", "which is missing"),
        ("_base_ = 'config.py'\n", "form a cycle"),
        ("_base_ = '/etc/passwd'\n", "ends in .py"),
        ("_base_ = 'mmdet::retinanet.py'\n", "which is not installed"),
        ("_base_ = input()\n", "_base_ is one path"),
        ("unknown['a'] = 1\n", "assigns to what is not known"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=sentence) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


def test_base_files_are_merged_as_openmmlab_merges_them(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("model = dict(a=dict(x=1, y=[1, 2]), b=dict(z=1))\nlr = 3\n")
    (tmp_path / "config.py").write_text(
        "_base_ = ['base.py']\n"
        "model = dict(a=dict(y=[5]), b=dict(_delete_=True, w=_base_.lr), c={{_base_.model.a.x}})\n"
    )
    assert read_config_file(tmp_path / "config.py").values["model"] == {
        "a": {"x": 1, "y": [5]},
        "b": {"w": 3},
        "c": 1,
    }


def test_a_byte_order_mark_begins_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text("\ufeffmodel = dict(type='RetinaNet')\n")
    (tmp_path / "config.py").write_text("\ufeff_base_ = 'base.py'\nmodel = dict(neck=1)\n")
    assert read_config_file(tmp_path / "config.py").values["model"] == {"type": "RetinaNet", "neck": 1}


def test_a_missing_configuration_is_one_sentence(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none.py"):
        with pytest.raises(FileNotFoundError, match=r"there is no file .*; give the configuration of a detector"):
            imported_recipe(place)


def test_a_file_that_is_no_configuration_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text("PASSWORD = 'hunter2'\n")
    with pytest.raises(ValueError, match="sets none of the keys") as error:
        read(tmp_path, "_base_ = 'settings.py'\nwork_dir = _base_.PASSWORD\n")
    assert "hunter2" not in str(error.value)


def test_a_foreign_name_cannot_add_keys_to_the_recipe(tmp_path: Path) -> None:
    breaking = "model['backbone'] = dict(**{'a\\nimports: [evil.py]': 1})\nmodel['x\\u2028imports: [e.py]'] = 2\n"
    text = CONFIG.replace("model = dict()", "") + "model = dict()\n" + breaking
    imported = imported_recipe(write(tmp_path, text))
    assert "evil.py" in imported.text
    assert not imported.recipe.imports
    assert all(line.startswith("#") for line in imported.text.splitlines() if "evil" in line or "e.py]" in line)


PIECES = st.sampled_from(
    [
        *(
            "1",
            "-1",
            "0",
            "1e400",
            "None",
            "True",
            "'x'",
            "[]",
            "()",
            "{}",
            "dict()",
            "[[1]]",
            "'a' * 9999",
            "9 ** 9 ** 9",
        ),
        *(
            "__import__('os').system('touch ran')",
            "open('/etc/passwd')",
            "[i for i in range(10 ** 9)]",
            "x",
            "(((",
            "\0",
        ),
        *(
            "float('nan')",
            "lambda: 0",
            "_base_",
            "_base_.model",
            "dict(_delete_=True)",
            "'\\n'",
            "\n",
            "}",
            ",",
            "*",
            "=",
        ),
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(
    text=st.sampled_from([CONFIG, ENGINE_DINO, ENGINE_UPERNET, CONFIGS["sparse_rcnn_smt_small_coco_1x"]]),
    data=st.data(),
)
def test_mutated_configurations_are_recipes_or_sentences(
    text: str, data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(begin, min(len(text), begin + 30)))
        text = text[:begin] + data.draw(PIECES) + text[end:]
    path = write(tmp_path, text)
    with contextlib.suppress(ValueError, OSError):  # which the command prints as one sentence
        imported_recipe(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.torture
def test_every_value_of_a_base_file_may_be_anything(tmp_path: Path) -> None:
    """Replace each number, text and list of the base files by values of other kinds."""
    write(tmp_path, CONFIG)
    for name, text in BASES.items():
        for match in re.finditer(r"=('[^']*'|\[[^\[\]]*\]|[\d.]+)", text):
            for other in ("None", "'x'", "-1", "[1]", "{}", "1e9", "True"):
                changed = text[: match.start(1)] + other + text[match.end(1) :]
                (tmp_path / "configs" / "_base_" / f"{name}.py").write_text(changed)
                for config in (CONFIG, ENGINE_UPERNET):
                    with contextlib.suppress(ValueError, OSError):
                        imported_recipe(write(tmp_path, config))
        (tmp_path / "configs" / "_base_" / f"{name}.py").write_text(text)
