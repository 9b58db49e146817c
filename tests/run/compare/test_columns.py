"""Columns of a comparison that come from analyses: equal to the analyses themselves, measured once, in every file."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run.compare.fake_comparisons import CLASSES, classified_run, finished_run

from fourstage.analysis import cka, erf
from fourstage.analysis.images import prepared
from fourstage.analysis.invariance import Protocol, evaluate_invariance
from fourstage.analysis.networks import load_network
from fourstage.cli import main
from fourstage.data.embedded.digit_scenes import write_digit_scenes
from fourstage.data.formats import open_dataset
from fourstage.run.compare import columns
from fourstage.run.compare.columns import Images, analyse, check_analyses, place_of
from fourstage.run.compare.runs import read_finished
from fourstage.run.splits import open_splits
from fourstage.run.task_protocol import protocol_of

FEW = {"erf": 2, "invariance": 3, "cka": 12}
SHORT = ["length=2it", "warmup=0it", "batch_size=16", "workers=0", "ema=null", "device=cpu", "image_size=64"]
GRID = ["compare", "digits_visformer", "--vary", "mixer=swin,pvt", "--seeds", "2", "--seconds", "0", *SHORT]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two arms and two seeds, which were trained for two steps."""
    out = tmp_path_factory.mktemp("columns") / "mixers"
    assert main([*GRID, "--out", str(out), "--analyses", "none"]) == 0
    return out


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "IMAGES", {"classification": FEW, "detection": {"erf": 1, "cka": 4}})


def table(out: Path, *options: str) -> dict[str, Any]:
    assert main(["compare", str(out), "--seconds", "0", *options]) == 0
    return json.loads((out / "table.json").read_text())


def cells(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {arm["name"]: {one["key"]: one for one in arm["columns"]} for arm in result["arms"]}


def images(count: int) -> list[tuple[np.ndarray, int | None]]:
    data = open_dataset("digits", "val")
    most = [data.sample(i * len(data) // 12) for i in range(12)]
    chosen = [most[i * 12 // count] for i in range(count)]
    return [(np.asarray(one.image), one.label) for one in chosen]


def test_columns_are_those_of_the_analyses(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "analyses" not in json.loads((grid / "table.json").read_text())["remarks"]
    found = cells(table(grid))
    printed = capsys.readouterr().out
    assert "ERF width, px" in printed
    assert "pvt with swin" in printed
    runs = {(arm, seed): load_network(grid / arm / f"seed-{seed}") for arm in ("swin", "pvt") for seed in (0, 1)}
    one = runs["pvt", 1]
    pixels = {count: [prepared(image, 64, one.preparation, "short_side") for image, _ in images(count)]
              for count in (2, 12)}  # fmt: skip
    field = erf.receptive_field(one.network, pixels[2])
    width = found["pvt"]["erf_width_px"]
    assert width["values"][1] == pytest.approx(erf.profile(field, centre="unit").sigma, rel=1e-3)
    assert width["summary"]["mean"] == pytest.approx(np.mean(width["values"]))
    assert width["summary"]["sd"] == pytest.approx(np.std(width["values"], ddof=1))
    for key, map_HW in (("erf_area50_percent", field.map_HW), ("erf_area50_log_percent", np.log10(field.map_HW + 1))):
        square = erf.square(map_HW, 0.5, field.unit_centre)
        assert square is not None
        assert found["pvt"][key]["values"][1] == pytest.approx(100 * square.ratio)
    curves = evaluate_invariance(one.network, images(3), ["scale"], Protocol(one.preparation, 64, "one"))["scale"]
    assert found["pvt"]["consistency_resized_percent"]["values"][1] == pytest.approx(
        curves.values("consistency").mean()
    )
    assert found["pvt"]["top1_resized_percent"]["values"][1] == pytest.approx(curves.values("top1").mean())
    batch = torch.stack(pixels[12])

    def similarity(a: tuple[str, int], b: tuple[str, int]) -> float:
        first, second = runs[a].network, runs[b].network
        return float(cka.compare(first, second, [(batch, batch)], ["stage3"], ["stage3"]).value_AB[0, 0])

    across = [similarity(("swin", 0), ("pvt", 1)), similarity(("swin", 1), ("pvt", 0))]
    assert found["pvt"]["cka_stage3"]["summary"]["mean"] == pytest.approx(np.mean(across), abs=1e-5)
    ceiling = similarity(("pvt", 0), ("pvt", 1))
    assert found["pvt"]["cka_ceiling_stage3"]["summary"]["mean"] == pytest.approx(ceiling, abs=1e-5)
    assert found["swin"]["cka_stage3"]["summary"] is None  # the reference itself


def test_conditions_say_how_every_number_was_made(grid: Path) -> None:
    conditions = dict(table(grid)["conditions"])
    assert conditions["seeds"] == "0, 1"
    assert conditions["averaged weights"] == "none"
    assert conditions["MACs"] == "counted by `fourstage bench`, a multiplication and its addition as one"
    number = conditions["recipe, without what the arms vary"]
    runs = [str(grid / arm / f"seed-{seed}") for arm in ("swin", "pvt") for seed in (0, 1)]
    out = grid.parent / "again"
    assert main(["compare", *runs, "--seconds", "0", "--analyses", "none", "--out", str(out)]) == 0
    assert (
        dict(json.loads((out / "table.json").read_text())["conditions"])["recipe, without what the arms vary"] == number
    )
    longer = [word if word != "length=2it" else "length=3it" for word in GRID if word not in ("2", "--seeds")]
    out = grid.parent / "longer"
    assert main([*longer, "--seeds", "1", "--out", str(out), "--analyses", "none"]) == 0
    assert (
        dict(json.loads((out / "table.json").read_text())["conditions"])["recipe, without what the arms vary"] != number
    )


def test_columns_are_in_every_file(grid: Path) -> None:
    found = cells(table(grid))
    width = found["pvt"]["erf_width_px"]["summary"]["mean"]
    rows = {row["arm"]: row for row in csv.DictReader((grid / "table.csv").read_text().splitlines())}
    assert float(rows["pvt"]["erf_width_px"]) == pytest.approx(width)
    assert float(rows["pvt"]["cka_stage1"]) == pytest.approx(found["pvt"]["cka_stage1"]["summary"]["mean"])
    runs = list(csv.DictReader((grid / "runs.csv").read_text().splitlines()))
    assert len({run["erf_width_px"] for run in runs}) == 4
    shown = f"{width:.1f} ± "
    for file in ("table.md", "comparison.html"):
        text = (grid / file).read_text()
        assert shown in text, file
        assert "pvt, other seeds (ceiling)" in text, file
    assert f"{width:.1f} $\\pm$ " in (grid / "table.tex").read_text()
    page = (grid / "comparison.html").read_text()
    assert page.count("receptive field of ") == 2
    assert page.count("CKA between arms, stage ") == 4
    assert page.count('class="chart curves"') == 3


def test_what_was_measured_is_kept(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real, calls = table(grid), columns._measure, list[str]()

    def counted(analysis: Any, *rest: Any) -> Any:
        calls.append(analysis)
        return real(analysis, *rest)

    monkeypatch.setattr(columns, "_measure", counted)
    assert table(grid) == before
    assert calls == []
    kept = place_of(grid, "pvt", 0).with_name("seed-0.cka.npz")
    kept.write_bytes(kept.read_bytes()[:-40])
    place_of(grid, "pvt", 1).with_name("seed-1.erf.npz").unlink()
    assert table(grid) == before
    assert sorted(calls) == ["cka", "erf"]
    calls.clear()
    monkeypatch.setattr(columns, "IMAGES", {"classification": {**FEW, "erf": 3}})
    assert cells(table(grid))["pvt"]["erf_width_px"] != cells(before)["pvt"]["erf_width_px"]
    assert calls == ["erf"] * 4
    calls.clear()
    swin = grid / "swin" / "seed-0" / "checkpoints" / "best.pt"
    own = swin.read_bytes()
    swin.write_bytes((grid / "swin" / "seed-1" / "checkpoints" / "best.pt").read_bytes())
    widths = cells(table(grid, "--analyses", "erf"))["swin"]["erf_width_px"]["values"]
    swin.write_bytes(own)
    assert calls == ["erf"]  # the other weights of one run
    assert widths[0] == widths[1]


def test_an_image_that_can_no_longer_be_read_is_named_and_left_out_of_all_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was kept of other images is measured again: CKA of two runs is of the same images."""
    draw, data, out = np.random.default_rng(0), tmp_path / "data", tmp_path / "out"
    for split, each in (("train", 8), ("val", 6)):
        for label in ("a", "b"):
            (data / split / label).mkdir(parents=True)
            for i in range(each):
                pixels_HW3 = draw.integers(0, 256, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels_HW3).save(data / split / label / f"{i}.png")
    words = [word if word != "2" else "1" for word in GRID]
    assert main([*words, "--data", str(data), "--out", str(out), "--analyses", "cka"]) == 0
    assert "cannot be read" not in capsys.readouterr().out
    (data / "val" / "b" / "3.png").write_bytes(b"no image")
    place_of(out, "pvt", 0).with_name("seed-0.cka.npz").unlink()
    result = table(out, "--analyses", "cka")
    [remark] = [one for one in result["remarks"] if "cannot be read" in one]
    assert remark.startswith("1 image cannot be read and is left out of the analyses: 3.png (")
    assert cells(result)["pvt"]["cka_stage1"]["summary"] is not None
    for arm in ("swin", "pvt"):
        with np.load(place_of(out, arm, 0).with_name("seed-0.cka.npz")) as kept:
            assert len(kept["ids"]) == 11
            assert kept["units"].shape == (4, 55)
    assert "analysing again" in capsys.readouterr().err + capsys.readouterr().out
    assert table(out, "--analyses", "cka") == result


def test_dashes_have_a_reason(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With 64 pixels, no square around the cell's centre, which is (32, 32), holds half of a flat field."""
    result, flat = table(grid), np.full((64, 64), 1 / 64**2, np.float32)
    assert not any("is not known" in one for one in result["remarks"])
    field = place_of(grid, "swin", 0).with_name("seed-0.erf.npz")
    before = field.read_bytes()
    with np.load(field) as kept:
        changed = {**kept, "map": flat, "unit_centre": np.array([4.0, 4.0])}
    np.savez_compressed(field, **changed)
    result = table(grid)
    field.write_bytes(before)
    assert cells(result)["swin"]["erf_area50_percent"]["summary"] is None
    [remark] = [one for one in result["remarks"] if "is not known" in one]
    assert remark.startswith("the area of half the ERF of swin is not known: no square around the cell's centre")
    runs = [str(grid / arm / "seed-0") for arm in ("swin", "pvt")]
    assert main(["compare", *runs, "--seconds", "0", "--analyses", "cka", "--out", str(grid.parent / "one")]) == 0
    assert "the ceiling, which needs a second seed, is not known" in capsys.readouterr().out


def test_a_cell_measures_itself(grid: Path, tmp_path: Path) -> None:
    words = [word if word != "2" else "1" for word in GRID]
    assert main([*words, "--out", str(tmp_path / "out"), "--cell", "1", "--analyses", "erf"]) == 0
    assert [file.name for file in (tmp_path / "out" / "analyses" / "pvt").iterdir()] == ["seed-0.erf.npz"]


def test_a_comparison_is_named_alone(grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", str(grid), str(grid / "pvt" / "seed-0"), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert f"{grid} is a comparison; name it alone, or the run folders in it" in capsys.readouterr().err


def test_without_analyses_there_is_no_column(grid: Path) -> None:
    result = table(grid, "--analyses", "none")
    assert all(arm["columns"] == [] for arm in result["arms"])
    assert "What the networks do" not in (grid / "comparison.html").read_text()


@pytest.mark.parametrize("text", ["erf,speed", "", "erf,", "all"])
def test_unknown_analyses(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GRID, "--out", str(tmp_path / "out"), "--analyses", text]) == 2
    assert "choose from erf, invariance, cka, or none" in capsys.readouterr().err
    assert check_analyses("cka,erf") == ("erf", "cka")


def test_runs_without_weights_or_data_have_a_reason(grid: Path, tmp_path: Path) -> None:
    runs = [str(classified_run(tmp_path / arm, 0.3, 0, f"model_args.mixer={arm}", "model=unified_pico"))
            for arm in ("swin", "pvt")]  # fmt: skip
    assert main(["compare", *runs, "--seconds", "0", "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [one.partition(":")[0] for one in result["remarks"]] == [
        "the receptive field is not known", "invariance is not known", "CKA is not known"
    ]  # fmt: skip
    assert "checkpoints/best.pt is not there" in result["remarks"][0]
    assert "CKA is not known" in (tmp_path / "out" / "comparison.html").read_text()
    run = read_finished(grid / "pvt" / "seed-0")
    gone = run.recipe.model_copy(update={"data": str(tmp_path / "gone")})
    found = analyse(type(run)(run.folder, gone, run.evaluation, run.environment), tmp_path / "a", ("erf",), Images())
    assert str(tmp_path / "gone") in found.reasons["erf"]


def test_detectors_have_fields_and_similarities(tmp_path: Path) -> None:
    write_digit_scenes(tmp_path / "scenes", train=4, val=5, size=64)
    changes = ("backbone=unified_pico", "device=cpu", f"data={tmp_path}/scenes", "evaluation.scale=[64, 64]")
    metrics = {"box_map": 1.0}
    folder = finished_run(tmp_path / "run", "digit_scenes_retinanet", metrics, "box_map", {}, CLASSES, *changes)
    run = read_finished(folder)
    protocol = protocol_of(run.recipe)
    data = open_splits(protocol, show=False).train
    about = protocol.dataset_metadata(data)
    network = protocol.build_task(data.classes, about).network
    (folder / "checkpoints").mkdir()
    recipe = run.recipe.model_dump(mode="json")
    content = {
        "fourstage": 1,
        "model": network.state_dict(),
        "recipe": recipe,
        "classes": list(data.classes),
        "about": about,
    }
    torch.save(content, folder / "checkpoints" / "best.pt")
    found = analyse(run, tmp_path / "kept", ("erf", "invariance", "cka"), Images())
    assert found.reasons == {"invariance": "invariance is measured on classifiers alone"}
    assert found.found["erf"]["map"].shape == (64, 64)
    assert found.found["erf"]["map"].sum() == pytest.approx(1, abs=1e-5)
    assert found.found["cka"]["units"].shape == (4, 6)
