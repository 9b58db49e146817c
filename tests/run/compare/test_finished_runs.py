"""Finished runs compared: arms and seeds found in their recipes, tables, and metrics accumulated again for draws."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run.compare.fake_comparisons import CLASSES, classified_run, finished_run

from fourstage import create_model
from fourstage.analysis.comparison import Speed
from fourstage.analysis.paired import image_draws
from fourstage.cli import main
from fourstage.run.compare import assemble
from fourstage.run.compare.column_values import remarks_of
from fourstage.run.compare.columns import RunAnalyses
from fourstage.run.compare.costs import Cost, counted, unequal
from fourstage.run.compare.image_scores import drawn_metrics
from fourstage.run.compare.runs import grouped, read_finished
from fourstage.tasks.detection import coco_ap
from fourstage.tasks.segmentation import miou
from fourstage.user_files import import_files

PICO = ("model=unified_pico", "evaluate_every=null")


def arms_and_seeds(folder: Path, abilities: dict[str, float], seeds: int) -> list[str]:
    return [
        str(classified_run(folder / f"{mixer}{seed}", ability, seed, *PICO, f"model_args.mixer={mixer}"))
        for mixer, ability in abilities.items()
        for seed in range(seeds)
    ]


def test_six_seeds_of_three_mixers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = arms_and_seeds(tmp_path, {"swin": 0.3, "pvt": 1.6, "halo": 0.32}, 7)
    out = tmp_path / "out"
    tuning = ["--tuning", "swin=12 trials"]
    assert main(["compare", *runs, "--out", str(out), "--seconds", "0", "--reference", "swin", *tuning]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "pvt is better than swin, by" in printed
    assert "halo and swin cannot be decided with these 7 seeds and 120 images" in printed
    table = json.loads((out / "table.json").read_text())
    assert [arm["name"] for arm in table["arms"]] == ["swin", "pvt", "halo"]
    assert table["seeds"] == list(range(7))
    assert table["images"] == 120
    pvt = table["pairs"][0]
    expected = np.subtract(table["arms"][1]["values"], table["arms"][0]["values"])
    assert pvt["pair"]["difference"]["mean"] == pytest.approx(expected.mean())
    assert pvt["pair"]["p"] == 2 / 2**7
    assert pvt["pair"]["holm"] == 2 * 2 / 2**7
    assert pvt["verdict"]["word"] == "better"
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert [row["arm"] for row in rows] == ["swin", "pvt", "halo"]
    assert [row["verdict"] for row in rows] == ["", "better", "undecided"]
    assert rows[0]["tuning"] == "12 trials"
    assert len((out / "runs.csv").read_text().splitlines()) == 22
    assert r"\begin{tabular}" in (out / "table.tex").read_text()
    page = (out / "comparison.html").read_text()
    markdown = (out / "table.md").read_text()
    for words in ("pvt is better than swin", "different tuning budgets", "12 trials", "MACs against swin"):
        assert words in page
        assert words in markdown
    assert page.count('class="seed-dot"') == 21
    assert all(abs(arm["macs"]) > 1e6 for arm in table["arms"])


def test_recipes_are_equal_where_all_runs_start_from_the_same_weights(tmp_path: Path) -> None:
    """Weights that differ between the runs of one comparison are no part of what its arms have in common."""
    numbers = []
    for name, weights in {
        "none": (),
        "a": ("a",),
        "again": ("a",),
        "b": ("b",),
        "own": ("c", "d"),
        "e": ("e", "f"),
    }.items():
        runs = []
        for mixer in ("swin", "pvt"):
            for seed in (0, 1):
                start = [f"weights={weights[seed % len(weights)]}.pth"] if weights else []
                changes = [*PICO, f"model_args.mixer={mixer}", *start]
                runs.append(str(classified_run(tmp_path / name / f"{mixer}{seed}", 0.3, seed, *changes)))
        out = tmp_path / name / "out"
        assert main(["compare", *runs, "--out", str(out), "--seconds", "0", "--analyses", "none"]) == 0
        conditions = dict(json.loads((out / "table.json").read_text())["conditions"])
        numbers.append(conditions["recipe, without what the arms vary"])
    none, a, again, b, own, other = numbers
    assert a == again
    assert len({none, a, b, own}) == 4
    assert own == other


def test_conditions_name_averages_and_only_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for seconds, decay in (("0", "0.9"), ("1", "null")):
        folder, changes = tmp_path / seconds, (*PICO, f"ema={decay}")
        runs = [
            str(classified_run(folder / f"{mixer}{seed}", 0.3, seed, *changes, f"model_args.mixer={mixer}"))
            for mixer in ("swin", "pvt")
            for seed in (0, 1)
        ]
        speeds = {mode: Speed(10.0, 9.0, 11.0, batch, None) for mode, batch in (("infer", 8), ("train", 4))}
        monkeypatch.setattr(assemble, "speeds_of", lambda *_, own=speeds, **__: {"swin": own})
        monkeypatch.setattr(assemble, "_cost", lambda _: None)
        words = ["compare", *runs, "--out", str(folder / "out"), "--seconds", seconds, "--analyses", "none"]
        assert main(words) == 0
        found.append(dict(json.loads((folder / "out" / "table.json").read_text())["conditions"]))
    unmeasured, measured = found
    assert (unmeasured["averaged weights"], measured["averaged weights"]) == ("decay 0.9", "none")
    assert not {"MACs", "speed and memory"} & unmeasured.keys()
    assert measured["speed and memory"].endswith("not compiled, NCHW, batch 4 or 8")


def test_another_metric_of_which_less_is_better(tmp_path: Path) -> None:
    runs = arms_and_seeds(tmp_path, {"swin": 0.3, "pvt": 1.6}, 6)
    assert main(["compare", *runs, "--out", str(tmp_path / "out"), "--seconds", "0", "--metric", "loss"]) == 0
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert table["metric"] == "loss"
    assert table["pairs"][0]["verdict"]["word"] == "better"
    assert table["pairs"][0]["pair"]["difference"]["mean"] > 0  # in the direction of better


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = arms_and_seeds(tmp_path, {"swin": 0.3, "pvt": 0.5}, 2)
    other_seed = str(classified_run(tmp_path / "later", 0.5, 9, *PICO, "model_args.mixer=halo"))
    other_images = str(classified_run(tmp_path / "few", 0.5, 0, *PICO, "model_args.mixer=halo", images=60))
    damaged = classified_run(tmp_path / "damaged", 0.5, 0, *PICO, "model_args.mixer=halo")
    (damaged / "records.jsonl").write_text("{")
    running = classified_run(tmp_path / "running", 0.5, 0, *PICO, "model_args.mixer=halo")
    (running / "report.html").unlink()
    (tmp_path / "empty").mkdir()
    out = ["--out", str(tmp_path / "out"), "--seconds", "0"]
    cases = {
        "need": ([runs[0]], "all these runs have the same recipe but for the seed, and a comparison needs two arms"),
        "twice": ([*runs, runs[0]], "have the same recipe and the same seed, 0"),
        "seeds": ([runs[0], other_seed], "no seed is in every arm (swin: 0; halo: 9)"),
        "images": ([runs[0], other_images], "was evaluated on other images than"),
        "damaged": ([runs[0], str(damaged)], "records.jsonl is damaged"),
        "running": ([runs[0], str(running)], "has not ended its training; continue it"),
        "folder": ([runs[0], str(tmp_path / "empty")], "is neither a run folder nor one of `fourstage compare`"),
        "missing": ([runs[0], "runs/nothere"], "there is no folder runs/nothere"),
        "mixed": ([runs[0], "digits_visformer"], "is a folder and digits_visformer a recipe"),
        "metric": ([*runs, "--metric", "box_map"], "box_map is not a metric of all these runs; they share top1"),
        "reference": ([*runs, "--reference", "halo"], "--reference halo is not an arm of this comparison; its arms"),
        "tuning": ([*runs, "--tuning", "halo=3"], "--tuning names halo, which is not an arm; the arms are swin, pvt"),
        "words": ([*runs, "--tuning", "much"], "--tuning is ARM=WORDS, such as 'swin=12 trials'; got 'much'"),
        "vary": ([*runs, "--vary", "lr=1,2"], "--vary is for trainings, and folders name runs that have ended; leave"),
        "change": ([*runs, "lr=1"], "lr=1 is for trainings"),
        "more": ([*runs, "--seeds", "6"], "--seeds is for trainings"),
        "plan": ([*runs, "--dry-run"], "--dry-run is for trainings"),
        "file": ([*runs, "--imports", "mixer.py"], "there is no Python file mixer.py to import"),
    }  # fmt: skip
    for name, (words, message) in cases.items():
        capsys.readouterr()
        assert main(["compare", *words, *out]) == 2, name
        error = capsys.readouterr().err
        assert message in error, name
        assert len(error.strip().splitlines()) == 1, name
    assert main(["compare", "lr=1"]) == 2


def test_arms_are_named_by_what_differs(tmp_path: Path) -> None:
    runs = [
        classified_run(tmp_path / "a", 0.5, 0, "lr=1e-3", *PICO),
        classified_run(tmp_path / "b", 0.5, 0, "lr=2e-3", *PICO, "weights=other.pt"),
    ]
    assert list(grouped(runs)) == ["lr=0.001", "lr=0.002"]


def detection_record(draw: np.random.Generator, number: int) -> dict[str, Any]:
    corners = draw.uniform(0, 60, (4, 2))
    boxes = np.concatenate([corners, corners + draw.uniform(10, 30, (4, 2))], axis=1)
    labels = draw.integers(0, 2, 4)
    guessed = boxes + draw.normal(0, 2.0, boxes.shape)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    truth = {
        "boxes": boxes.tolist(),
        "labels": labels.tolist(),
        "crowd": [False] * 4,
        "areas": areas.tolist(),
        "size": [96, 96],
    }
    right = np.where(draw.random(4) < 0.8, labels, 1 - labels)
    scores = np.sort(draw.random(4))[::-1]
    return {
        "boxes": guessed.tolist(),
        "labels": right.tolist(),
        "scores": scores.tolist(),
        "truth": truth | {"image_id": number},
    }


def test_average_precision_is_accumulated_again_for_every_draw(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    records = {f"i{n}": detection_record(draw, n) for n in range(12)}
    whole = coco_ap.score(records, ("a", "b"))["box_map"]
    arguments = ({"box_map": whole}, "box_map", records, ("a", "b"))
    for name, arm in (("a", "lr=1e-3"), ("b", "lr=2e-3")):
        finished_run(tmp_path / name, "digit_scenes_retinanet", *arguments, arm)
    drawn = drawn_metrics(grouped([tmp_path / "a", tmp_path / "b"]), [0], "box_map")
    assert drawn is not None
    column_DS = drawn["lr=0.001"]
    for times_N, found in list(zip(image_draws(12, len(column_DS)), column_DS[:, 0], strict=True))[:5]:
        again = {
            f"{id}#{copy}": {**record, "truth": {**record["truth"], "image_id": 100 * n + copy}}
            for n, (id, record) in enumerate(sorted(records.items()))
            for copy in range(times_N[n])
        }
        assert found == pytest.approx(coco_ap.score(again, ("a", "b"))["box_map"], abs=1e-9)
    assert column_DS.mean() != pytest.approx(
        np.mean([coco_ap.score({"i": one}, ("a", "b"))["box_map"] for one in records.values()]), abs=0.5
    )


def test_mean_iou_is_accumulated_again_for_every_draw(tmp_path: Path) -> None:
    draw = np.random.default_rng(4)
    matrices = {f"i{n}": draw.integers(0, 50, (3, 3)) * (draw.random((3, 3)) < 0.8) for n in range(10)}
    records = {
        id: {"pairs": np.flatnonzero(one).tolist(), "pixels": one[one > 0].tolist()} for id, one in matrices.items()
    }
    metrics = {f"{k}_ss": v for k, v in miou.means(miou.summed(records.values(), 3)).items()}
    for name, arm in (("a", "lr=1e-3"), ("b", "lr=2e-3")):
        finished_run(tmp_path / name, "digit_scenes_upernet", metrics, "miou_ss", records, ("a", "b", "c"), arm)
    drawn = drawn_metrics(grouped([tmp_path / "a", tmp_path / "b"]), [0], "miou_ss")
    assert drawn is not None
    for times_N, found in zip(image_draws(10)[:5], drawn["lr=0.001"][:5, 0], strict=True):
        summed = sum(times * matrices[id] for times, id in zip(times_N, sorted(matrices), strict=True))
        assert found == pytest.approx(miou.means(np.asarray(summed))["miou"])


def test_a_metric_without_draws_holds_for_these_images_alone(tmp_path: Path) -> None:
    records = {f"i{n}": detection_record(np.random.default_rng(n), n) for n in range(3)}
    for name, arm, value in (("a", "lr=1e-3", 50.0), ("b", "lr=2e-3", 60.0)):
        finished_run(
            tmp_path / name, "digit_scenes_retinanet", {"box_map75": value}, "box_map75", records, CLASSES, arm
        )
    assert drawn_metrics(grouped([tmp_path / "a", tmp_path / "b"]), [0], "box_map75") is None
    assert read_finished(tmp_path / "a").main_metric == "box_map75"


def test_what_one_seed_and_one_pair_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seconds", "0", "--analyses", "none", "--out", str(tmp_path / "out")]
    runs = arms_and_seeds(tmp_path, {"swin": 0.3, "pvt": 0.9}, 3)
    one_each = [run for run in runs if run.endswith("0")]
    assert len(one_each) == 2
    assert main(["compare", *one_each, *options]) == 0
    said = capsys.readouterr().out
    assert "with this seed and 120 images; one seed does not show how many would do." in said
    assert "analysing" not in said
    assert main(["compare", *runs, *options]) == 0
    assert "with these 3 seeds and 120 images: 1 pair needs at least 6; " in capsys.readouterr().out


def test_runs_whose_seed_not_every_arm_has_are_named_and_count_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = arms_and_seeds(tmp_path, {"swin": 0.3, "pvt": 0.9}, 3)
    (tmp_path / "pvt2" / "records.jsonl").write_text("")  # no image is common to all three
    options = ["--seconds", "0", "--analyses", "none", "--out", str(tmp_path / "out")]
    assert main(["compare", *runs[:1], *runs[3:], *options]) == 0
    said = capsys.readouterr().out
    assert "seeds 1, 2 of pvt are left out, because runs are compared seed by seed" in said
    assert "with this seed and 120 images" in said
    assert main(["compare", runs[0], runs[3], *options]) == 0
    assert "left out" not in capsys.readouterr().out


def test_an_average_precision_without_objects_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        str(
            finished_run(tmp_path / lr, "digit_scenes_retinanet", {"box_map": -1.0}, "box_map", {}, CLASSES, f"lr={lr}")
        )
        for lr in ("1e-3", "2e-3")
    ]
    assert main(["compare", *runs, "--seconds", "0", "--analyses", "none", "--out", str(tmp_path / "out")]) == 2
    assert "/1e-3 is not a number" in capsys.readouterr().err


def test_arms_are_not_named_by_the_files_of_their_imports(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a/mine.py", "b/mine.py", "other.py")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("")
    import_files(files)
    runs = [
        classified_run(tmp_path / f"{name}{seed}", 0.5, seed, f"imports=[{file}]", f"optimisation.lr={lr}")
        for name, lr, own in (("low", 0.001, files[:2]), ("high", 0.002, files[1:]))
        for seed, file in enumerate(own)
    ]
    assert list(grouped(runs[:3])) == ["lr=0.001", "lr=0.002"]  # runs that differ in the folder of a file are one arm
    alone = classified_run(tmp_path / "alone", 0.5, 0, f"imports=[{files[2]}]", "optimisation.lr=0.001")
    assert list(grouped([runs[0], alone])) == ["imports=mine.py", "imports=other.py"]


def test_runs_are_compared_without_running_what_their_recipes_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, mark = tmp_path / "mine.py", tmp_path / "executed"
    file.write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    runs = [
        str(classified_run(tmp_path / lr, 0.5, 0, f"imports=[{file}]", f"optimisation.lr={lr}"))
        for lr in ("0.001", "0.002")
    ]
    words = ["compare", *runs, "--out", str(tmp_path / "out"), "--seconds", "0"]
    assert main(words) == 2
    assert f"if you trust them, add --imports {file}" in capsys.readouterr().err
    assert not mark.exists()
    assert main([*words, "--imports", str(file)]) == 0
    assert mark.exists()


def test_a_detector_without_its_checkpoint_has_no_known_cost(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "a", "digit_scenes_retinanet", {"box_map": 50.0}, "box_map", {}, ("a", "b"))
    assert assemble._cost(read_finished(folder)) is None


def test_a_comparison_without_arms_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {"fourstage": 1, "arms": [], "seeds": [0], "reference": "a", "tuning": {}}
    (tmp_path / "comparison.json").write_text(json.dumps(content))
    assert main(["compare", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "comparison.json is damaged" in capsys.readouterr().err


def test_runs_of_seeds_that_another_arm_lacks_are_named_and_count_for_nothing(tmp_path: Path) -> None:
    runs = arms_and_seeds(tmp_path, {"swin": 0.3, "pvt": 0.5}, 1)
    later = classified_run(tmp_path / "later", 0.3, 4, *PICO, "model_args.mixer=swin", images=60)
    machine = json.loads((later / "environment.json").read_text())
    (later / "environment.json").write_text(json.dumps({**machine, "torch": "2.11.0"}))
    with (later / "log.jsonl").open("a") as log:
        log.write(json.dumps({"kind": "evaluation", "step": 30}) + "\n")
    words = ["--out", str(tmp_path / "out"), "--seconds", "0", "--analyses", "none"]
    assert main(["compare", *runs, str(later), *words]) == 0
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert (table["seeds"], table["images"]) == ([0], 120)
    warnings = table["warnings"]
    assert warnings[0].startswith("seed 4 of swin is left out, because runs are compared seed by seed")
    assert not any("versions of torch" in one or "several evaluations" in one for one in warnings)


def test_analyses_name_the_sizes_of_all_arms(tmp_path: Path) -> None:
    runs = [
        read_finished(classified_run(tmp_path / str(side), 0.3, 0, *PICO, f"image_size={side}")) for side in (64, 96)
    ]
    maps = {"units": np.ones((1, 3)) / 3**0.5, "ids": np.array(["a"]), "left_out": np.array([], dtype=str)}
    measured = {str(i): {0: RunAnalyses({"cka": maps})} for i in range(2)}
    remarks = remarks_of(measured, {}, ("cka",), [run.recipe for run in runs])
    assert "up to 256 validation images of 64 or 96 pixels" in remarks[0]


def test_draws_of_which_a_pair_has_none_leave_the_images_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = arms_and_seeds(tmp_path, {"swin": 0.3, "pvt": 0.5}, 2)
    none = {arm: np.full((5, 2), np.nan) for arm in ("swin", "pvt")}
    monkeypatch.setattr(assemble, "drawn_metrics", lambda *_: none)
    found = assemble.assemble(grouped(runs), tmp_path, assemble.Wishes(speed_seconds=0, analyses=()), show=False)
    assert any("intervals over images are not known" in one for one in found.warnings)


@pytest.mark.parametrize("value", [None, "abc", [1], True])
def test_a_metric_that_is_no_number_is_a_damaged_file(value: object, tmp_path: Path) -> None:
    run = classified_run(tmp_path / "run", 0.3, 0)
    content = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps({**content, "metrics": {"top1": value}}))
    with pytest.raises(ValueError, match=r"evaluation\.json is damaged; train this run again with --fresh"):
        read_finished(run)


def test_records_without_predictions_and_logs_of_another_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = arms_and_seeds(tmp_path, {"swin": 0.3, "pvt": 0.5}, 1)
    words = ["compare", *runs, "--out", str(tmp_path / "out"), "--seconds", "0", "--analyses", "none"]
    (tmp_path / "pvt0" / "environment.json").write_text(json.dumps({"torch": ["2.15.0"], "device": {}}))
    (tmp_path / "pvt0" / "log.jsonl").write_text(json.dumps({"kind": "evaluation", "step": [1]}))
    assert main(words) == 0
    records = tmp_path / "pvt0" / "records.jsonl"
    lines = records.read_text().splitlines()
    records.write_text("\n".join([json.dumps({"id": "image0000"}), *lines[1:]]))
    assert main(words) == 2
    assert f"{records} is damaged; train this run again with --fresh" in capsys.readouterr().err


def test_only_networks_that_take_widths_are_advised_to_match_costs() -> None:
    costs = {
        "a": Cost(100, 100, (64, 64)),
        "b": Cost(150, 100, (64, 64), takes_widths=True),
        "c": Cost(90, 50, (64, 64)),
    }
    b, c = unequal(costs, "a")
    assert b.startswith("b has +50 % parameters against a; train it with --match-cost parameters, which searches")
    assert c == "c has \u221210 % parameters and \u221250 % MACs against a"
    with torch.device("meta"):
        found = {
            name: counted(create_model(name, img_size=64), (64, 64)) for name in ("unified_pico", "visformer_tiny")
        }
    assert found["unified_pico"].takes_widths
    assert not found["visformer_tiny"].takes_widths


def test_the_checkpoint_of_each_arm_is_named(tmp_path: Path) -> None:
    runs = [
        str(classified_run(tmp_path / name, 0.3, 0, *PICO, f"ema={ema}")) for name, ema in (("a", "null"), ("b", "0.9"))
    ]
    found = assemble.assemble(grouped(runs), tmp_path, assemble.Wishes(speed_seconds=0, analyses=()), show=False)
    rule = dict(found.conditions)["checkpoint"]
    assert rule == "the last one or the last one; of the weights and their average, the better"
