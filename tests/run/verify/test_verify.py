"""`fourstage verify`: files that are what their source says, and files that are not."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import pack
from golden.fill import original_state, read_manifest
from torch import nn
from weights.server import serving

import fourstage
from fourstage.cli import main
from fourstage.data.embedded.digits import Digits
from fourstage.engine.state import save_state
from fourstage.recipe import resolve
from fourstage.recipe.resolve import named_recipes
from fourstage.run import evaluate
from fourstage.run.task_protocol import protocol_of
from fourstage.run.verify import identify, verify
from fourstage.run.verify.protocol import Measured
from fourstage.weights import catalog, golden
from fourstage.weights.catalog import Weight
from fourstage.weights.complete_checkpoints import dense_writer_of
from fourstage.weights.no_values import without_memory
from fourstage.weights.reading.download import hash_of

MICRO = Path(pack.__file__).parent / "backbones" / "stm" / "unified_swin_micro.json.gz"


def published(path: Path, change: Callable[[dict[str, torch.Tensor]], object] = len) -> Path:
    """A file as the source publishes it, under its own names."""
    state = {key: torch.from_numpy(value) for key, value in original_state(read_manifest(MICRO)).items()}
    change(state)
    torch.save({"model": state}, path)
    return path


def checks(path: str | Path) -> dict[str, tuple[str, str]]:
    return {check.name: (check.verdict, check.text) for check in verify(path).checks}


def digits_run(path: Path, *changes: str) -> Path:
    """A run on the embedded digits whose network is not trained."""
    recipe = resolve("digits_visformer", changes).recipe
    classes = Digits("val").classes
    task = protocol_of(recipe).build_task(classes)
    known = {"fourstage": 1, "classes": [*classes], "recipe": recipe.model_dump(mode="json")}
    (path / "checkpoints").mkdir(parents=True)
    (path / "recipe.yaml").write_text(recipe.model_dump_json())
    save_state(path / "checkpoints" / "best.pt", {**known, "which": "model", "model": task.state_dict()})
    return path


# --------------------------------------------------------------------------------------------------- golden numbers


def test_the_numbers_of_the_package_are_those_of_the_tests() -> None:
    assert json.loads(gzip.decompress(pack.PACKED.read_bytes())) == json.loads(json.dumps(pack.packed()))


@pytest.mark.parametrize("dense", [False, True])
def test_a_network_that_computes_something_else_is_noticed(dense: bool) -> None:
    numbers = golden.find("unified_swin_micro", dense=dense)
    assert numbers is not None
    create: Any = fourstage.create_backbone if dense else fourstage.create_model
    result = golden.compare(create("unified_swin_micro"), numbers)
    assert result.agrees
    assert result.largest < 1e-4
    assert result.numbers == (128 if dense else 32)
    wrong = create("unified_swin_micro")
    for module in wrong.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-2
    assert not golden.compare(wrong, numbers).agrees


def test_numbers_are_of_the_network_its_arguments_or_its_family() -> None:
    found = {
        (name, tuple(arguments)): golden.find(name, dense=False, arguments=arguments)
        for name, arguments in (
            ("visformer_tiny", {}),
            ("visformer_tiny", {"qk_scale_factor": -0.5}),
            ("swin_large", {"img_size": 224}),
            ("unified_halo_base", {}),
            ("timm/resnet18", {}),
        )
    }
    shown = [one and (one.model, dict(one.arguments)) for one in found.values()]
    assert shown == [
        ("visformer_tiny", {}),
        ("visformer_tiny", {"qk_scale_factor": -0.5}),
        ("swin_tiny", {}),
        ("unified_halo_micro", {}),
        None,
    ]


# ------------------------------------------------------------------------------------------------------- published


def test_a_published_file_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = published(tmp_path / "unified_swin_micro.pth")
    assert main(["verify", str(path)]) == 0
    out = capsys.readouterr().out
    for line in (
        f"sha256: not known: {hash_of(path)}",
        "source: unified_swin_micro.in1k of https://github.com/OpenGVLab/STM-Evaluation, by file name",
        "its names are those of OpenGVLab/STM-Evaluation",
        "keys: agrees: every key has its place",
        "parameters: agrees: 4,381,042, as the original's network has",
        "golden numbers: agrees: with test weights, not those of this file, the network gives 32 numbers",
        "licence: none stated, at https://github.com/OpenGVLab/STM-Evaluation",
        "nothing disagrees",
    ):
        assert line in out
    assert main(["verify", str(path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["agrees"]
    assert [check["name"] for check in content["checks"]] == [
        *("sha256", "source", "keys", "values", "parameters", "golden numbers", "licence")
    ]
    assert content["checks"][0]["sha256"] == hash_of(path)
    renamed = published(tmp_path / "mine.pth")
    assert checks(renamed)["source"] == (
        "",
        "the classifier unified_swin_micro, by the names and shapes in the file; its names are those of "
        "OpenGVLab/STM-Evaluation",
    )


def test_another_sum_and_other_keys_disagree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, other = published(tmp_path / "unified_swin_micro.pth"), tmp_path / "renamed.pth"
    row = catalog.find("unified_swin_micro", "in1k")
    known = replace(row, sha256=hash_of(path)[:8])
    monkeypatch.setattr(catalog, "WEIGHTS", tuple(known if one is row else one for one in catalog.WEIGHTS))
    assert checks(path)["sha256"][0] == "agrees"
    path.rename(other)
    assert checks(other)["source"][1].startswith("unified_swin_micro.in1k of")  # by its sum, whatever its name
    published(path, lambda state: state.update({"levels.9.extra": torch.zeros(3)}))
    found = checks(path)
    assert found["sha256"][0] == "disagrees"
    assert found["keys"][0] == "disagrees"
    published(path, lambda state: [state.pop(key) for key in [*state] if key.endswith("head.bias")])
    assert main(["verify", str(path), "--data", "digits"]) == 1  # no evaluation of what does not fit
    out = capsys.readouterr().out
    assert "keys: disagrees: the file lacks head.bias: " in out
    assert "it differs from what its source publishes" in out


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_numbers_that_are_not_finite_disagree(value: float, tmp_path: Path) -> None:
    def spoil(state: dict[str, torch.Tensor]) -> None:
        next(tensor for key, tensor in state.items() if key.endswith("norm1.weight"))[0] = value

    found = checks(published(tmp_path / "unified_swin_micro.pth", spoil))
    assert found["keys"][0] == "agrees"
    assert found["values"][0] == "disagrees"
    assert "norm1.weight of" in found["values"][1]
    assert main(["verify", str(tmp_path / "unified_swin_micro.pth")]) == 1


def test_detectors_are_named_by_their_writers() -> None:
    detector = fourstage.create_detector("retinanet", "visformer_digits", 3, convs=1)
    ours = detector.state_dict()
    zero = torch.zeros(1)
    assert dense_writer_of(detector, ours) == "fourstage"
    for key, writer in (
        ("bbox_head.retina_cls.weight", "MMDetection or MMSegmentation"),
        ("transformer.level_embeds", "detrex"),
        ("transformer.level_embed", "IDEA-Research/DINO"),
        ("head.head_series.0.norm1.weight", "PeizeSun/SparseR-CNN"),
        ("nobody.weight", ""),
    ):
        assert dense_writer_of(detector, {"backbone.a": zero, key: zero}) == writer


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.pth"], "there is no file absent.pth, and no published weights have this name"),
        (["text.pth"], "text.pth"),
        (["stranger.pth"], "fits no network of `fourstage models`"),
        (["smt_tiny.nope"], "no published weights called 'nope'"),
        (["stranger.pth", "workers=0"], "changes the recipe of an evaluation; add --data PATH"),
    ],
)
def test_misuse_is_one_sentence(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.pth").write_text("hello")
    torch.save({"model": {"a.weight": torch.zeros(2)}}, "stranger.pth")
    assert main(["verify", *words]) == 2
    assert message in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- the published protocol


def test_a_number_agrees_within_its_interval_or_close_by() -> None:
    assert Measured("top1", 80.0, (78.0, 82.0), 81.9).verdict == "agrees"
    assert Measured("top1", 80.0, (78.0, 82.0), 82.1).verdict == "disagrees"
    assert Measured("top1", 80.0, (79.99, 80.01), 80.1).verdict == "agrees"
    assert Measured("top1", 80.0, None, 80.2).verdict == "disagrees"
    assert Measured("top1", 80.0, None, None).verdict == "not known"


def test_a_shared_network_is_measured_beside_its_authors_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = digits_run(tmp_path / "run")
    top1 = evaluate(run, data="digits", show=False).metrics["top1"]
    for value, code in ((top1, 0), (top1 + 40, 1)):
        measured = {"metrics": {"top1": value}, "intervals": {"top1": [0, 100]}, "images": 360, "main_metric": "top1"}
        (run / "evaluation.json").write_text(json.dumps(measured))
        fourstage.load(run).save_pretrained(tmp_path / "shared", overwrite=True)
        assert main(["verify", str(tmp_path / "shared"), "--data", "digits", "workers=0"]) == code
        out = capsys.readouterr().out
        assert f"{top1:.2f}" in out
        assert f"{value:.2f}" in out
    assert main(["verify", str(run)]) == 0


def test_a_shared_recipe_runs_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("open('MARK', 'w')")
    digits_run(Path("run"), "imports=[mine.py]")
    Path("MARK").unlink(missing_ok=True)
    fourstage.load("run").save_pretrained("shared")
    assert verify("shared", data="digits", changes=["workers=0"], show=False).metrics
    assert not Path("MARK").exists()


def test_a_network_of_ones_own_is_verified_with_the_file_that_registers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "import fourstage\n@fourstage.register\ndef own_network(num_classes=10, **others):\n"
        "    return fourstage.create_model('visformer_digits', num_classes=num_classes, **others)\n"
    )
    network: Any = fourstage.create_model("visformer_digits")
    digits_run(Path("run"))
    content = torch.load("run/checkpoints/best.pt")
    recipe = {**content["recipe"], "model": "own_network", "model_args": {}, "imports": ["mine.py"]}
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    assert state.keys() == content["model"].keys()
    save_state(Path("run/checkpoints/best.pt"), {**content, "recipe": recipe})
    assert main(["verify", "run"]) == 2
    assert "own_network" in capsys.readouterr().err
    assert main(["verify", "run", "--imports", "mine.py"]) == 0
    assert "source: the classifier own_network, by the description in the file" in capsys.readouterr().out


def test_published_weights_by_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network: Any = fourstage.create_model("visformer_digits", qk_scale_factor=-0.5)
    torch.save({"model": network.state_dict()}, tmp_path / "w.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setitem(named_recipes(), "visformer_digits_in1k", {"base": "digits_visformer", "expect": {"top1": 9.0}})
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: digits_visformer\nmodel_args: {qk_scale_factor: -0.5}\n")
    top1 = evaluate(recipe, weights=tmp_path / "w.pth", data="digits", show=False).metrics["top1"]
    with serving() as server:
        server.content = (tmp_path / "w.pth").read_bytes()
        row = Weight(
            model="visformer_digits",
            tag="in1k",
            file="published.pth",
            address=server.address,
            page="https://example.org",
            origin="https://example.org",
            data="in1k",
            metrics={"top1": top1},
            img_size=32,
            num_classes=10,
            arguments={"qk_scale_factor": -0.5},
        )
        monkeypatch.setattr(catalog, "WEIGHTS", (*catalog.WEIGHTS, row))
        assert main(["verify", "visformer_digits.in1k", "--data", "digits", "workers=0", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    [metric] = [one for one in content["metrics"] if one["name"] == "top1"]
    assert (metric["value"], metric["published"], metric["verdict"]) == (top1, top1, "agrees")
    assert "the published numbers are of 50,000" in " ".join(content["notes"])


# ------------------------------------------------------------------------------------------------------------ detrex


@pytest.mark.parametrize("weight", [one for one in catalog.WEIGHTS if one.method == "dino"], ids=lambda one: one.name)
def test_each_published_dino_is_built_as_its_file_needs_it(weight: Weight) -> None:
    with without_memory():
        network, described = identify._of_row(weight)
    recipe = resolve(str(weight.recipe)).recipe
    assert recipe.expect == weight.metrics
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    maps = (0, 1, 2, 3) if "5scale" in weight.tag else (1, 2, 3)
    width = {"tiny": 96, "small": 96, "base": 128, "large": 192}[weight.model.split("_")[1]]
    norms = {key: shape for key, shape in shapes.items() if key.startswith("backbone.norms") and "weight" in key}
    assert [*norms.values()] == [(width * 2**i,) for i in maps]
    assert shapes["level_embed"] == (len(maps) + 1, 256)
    assert shapes["neck.convs.0.conv.bias"] == (256,)  # detrex has one
    assert shapes["label_embed.weight"] == (80, 256)
    window = 12 if "384" in weight.model else 7
    assert shapes["backbone.stages.0.blocks.0.attn.table"] == ((2 * window - 1) ** 2, width // 32)
    assert described.method == "dino"


def test_arguments_that_the_original_has_not_are_no_disagreement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network for small or grey images, or without a head, has other parameters than the original."""
    networks: dict[str, nn.Module] = {
        "small": fourstage.create_model("visformer_tiny", img_size=96),
        "grey": fourstage.create_model("unified_swin_micro", in_chans=1),
        "headless": fourstage.create_model("unified_swin_micro", num_classes=0),
    }
    for name, network in networks.items():
        fourstage.save_pretrained(network, tmp_path / name)
        found = verify(tmp_path / name)
        assert found.agrees, name
        verdict, text = checks(tmp_path / name)["parameters"]
        assert verdict == "not known"
        assert text.endswith("nobody has counted the original's network with the arguments of this one")
    monkeypatch.setattr(golden, "parameters", lambda *_, **__: (1, {}))  # where ours lacks a layer of the original's
    assert checks(tmp_path / "grey")["parameters"][0] == "disagrees"
