"""The plan of a comparison, and one sentence for each mistake in it."""

import json
from pathlib import Path

import pytest

from fourstage.cli import main
from fourstage.data.embedded.digit_scenes import write_digit_scenes
from fourstage.recipe import flatten
from fourstage.run.compare.compare import plan_comparison
from fourstage.run.compare.costs import costs_of, matched
from fourstage.run.compare.grid import PICO, plan
from fourstage.run.compare.metrics import check_metric

RECIPE = "digits_visformer"


def test_a_grid_of_mixers(tmp_path: Path) -> None:
    grid = plan([RECIPE], ["mixer=swin,pvt"], 2, tmp_path / "out", changes=["length=4it"])
    assert [arm.name for arm in grid.arms] == ["swin", "pvt"]
    assert [getattr(arm.recipe, "model", None) for arm in grid.arms] == [PICO, PICO]
    assert [str(cell.folder.relative_to(tmp_path)) for cell in grid.cells] == [
        "out/swin/seed-0", "out/pvt/seed-0", "out/swin/seed-1", "out/pvt/seed-1"
    ]  # fmt: skip
    assert all(arm.recipe.evaluate_every is None for arm in grid.arms)  # the last checkpoint, not the best of many
    assert all(arm.recipe.optimisation.length == "4it" for arm in grid.arms)
    assert len(grid.notes) == 1
    assert "visformer_digits has no token mixer" in grid.notes[0]


def test_a_network_with_mixers_keeps_its_name(tmp_path: Path) -> None:
    varied = ["mixer=swin,halo", "lr=1e-3,2e-3"]
    grid = plan([RECIPE], varied, 1, tmp_path / "out", changes=["evaluate_every=2ep"])
    assert [arm.name for arm in grid.arms][:2] == ["swin, lr=1e-3", "swin, lr=2e-3"]
    assert grid.arms[0].recipe.evaluate_every == "2ep"
    detection = plan(["mask_rcnn_unified_swin_micro_coco_1x"], ["mixer=swin,halo"], 1, tmp_path / "b")
    assert [getattr(arm.recipe, "backbone", None) for arm in detection.arms] == ["unified_swin_micro"] * 2
    assert not detection.notes


@pytest.mark.parametrize("vary", [[], ["model=unified_pvt_micro"]])
def test_the_network_that_a_user_names_takes_the_mixers(vary: list[str], tmp_path: Path) -> None:
    axes = ["mixer=swin,halo", *vary]
    grid = plan([RECIPE], axes, 1, tmp_path / "out", changes=[] if vary else ["model=unified_pvt_micro"])
    assert [getattr(arm.recipe, "model", None) for arm in grid.arms] == ["unified_pvt_micro"] * 2
    assert not grid.notes
    with pytest.raises(ValueError, match="smt_tiny has no argument mixer"):
        costs_of(plan([RECIPE], ["mixer=swin,halo"], 1, tmp_path / "out", changes=["model=smt_tiny", "data=digits"]))


def test_words_that_a_later_arm_lacks_are_reported_before_the_first_is_trained(tmp_path: Path) -> None:
    vary, changes = ["model=swin_tiny,smt_tiny"], ["data=digits", "image_size=64", "no_decay=[attn.table]"]
    with pytest.raises(ValueError, match=r"no_decay has 'attn\.table', but no parameter has such a name"):
        plan_comparison([RECIPE], vary, 1, tmp_path / "out", changes=changes)


def test_recipes_and_lists_as_values(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("base: digits_visformer\nema: null\n")
    grid = plan([RECIPE, str(tmp_path / "other.yaml")], [], 1, tmp_path / "out")
    assert [arm.name for arm in grid.arms] == [RECIPE, "other"]
    grid = plan([RECIPE], ["augmentation.scale=[0.6, 1.0],[0.8, 1.0]"], 1, tmp_path / "out")
    assert [arm.name for arm in grid.arms] == ["scale=[0.6, 1.0]", "scale=[0.8, 1.0]"]


@pytest.mark.parametrize(
    ("sources", "vary", "seeds", "changes", "words"),
    [
        ([RECIPE], [], 6, [], "a comparison needs two arms, and digits_visformer is one; add --vary"),
        ([RECIPE], ["mixer"], 6, [], "--vary is KEY=VALUE,VALUE, such as mixer=swin,pvt"),
        ([RECIPE], ["mixer="], 6, [], "--vary is KEY=VALUE,VALUE"),
        ([RECIPE], ["mixer=swin,swin"], 6, [], "--vary mixer has the value swin twice"),
        ([RECIPE], ["mixer=swin,pvt", "mixer=halo,pvt"], 6, [], "--vary mixer was given twice; give all its values"),
        ([RECIPE], ["lr=1e-3,,2e-3"], 6, [], "--vary is KEY=VALUE,VALUE"),
        ([RECIPE], ["lr=1e-3,2e-3,"], 6, [], "--vary is KEY=VALUE,VALUE"),
        ([RECIPE], ["lr=1e-3,0.001"], 6, [], "the arms lr=1e-3 and lr=0.001 are the same recipe"),
        ([RECIPE], ["lr=1e-3,2e-3"], 6, ["optimisation.lr=3e-3"], "lr has values in --vary and one for all arms"),
        ([RECIPE], ["optimisation.lr=1e-3,2e-3"], 6, ["lr=3e-3"], "optimisation.lr has values in --vary and one"),
        ([RECIPE], ["mixer=swin,pvt"], 0, [], "--seeds is a number of trainings for each arm, from 1 to 1000; got 0"),
        ([RECIPE], ["mixer=swin,pvt"], 2, ["seed=3"], "leave seed out and set --seeds"),
        ([RECIPE], ["seed=1,2"], 2, [], "leave seed out and set --seeds"),
        ([RECIPE, RECIPE], [], 2, [], "a recipe is named twice"),
        ([RECIPE], ["lr=1,2", "ema=0.1,0.2", "weight_decay=" + ",".join("1" * i for i in range(1, 9))], 900, [],
         "32 arms with 900 seeds are 28,800 trainings; at most 10,000"),
        ([RECIPE], ["lr=fast,slow"], 2, [], "optimisation.lr"),
        ([RECIPE], ["lerning_rate=1,2"], 2, [], "lerning_rate"),
        ([RECIPE, "digit_scenes_upernet"], [], 2, [], "classification and segmentation, which share no metric"),
    ],
)  # fmt: skip
def test_mistakes(
    sources: list[str], vary: list[str], seeds: int, changes: list[str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        plan(sources, vary, seeds, tmp_path / "out", changes=changes)
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--metric", "nope"], "--metric nope is not a metric of classification; choose from top1, top5, loss"),
        (["--metric", "box_map"], "--metric box_map is not a metric of classification"),
        (["--tuning", "fast=3 trials"], "--tuning names fast, which is not an arm; the arms are lr=1e-3, lr=2e-3"),
        (["--cell", "12"], "--cell 12 is outside of this grid; its cells are 0 to 11"),
    ],
)
@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_mistakes_in_the_table_are_found_before_anything_is_trained(
    options: list[str], words: str, dry: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["compare", RECIPE, "--vary", "lr=1e-3,2e-3", "--out", str(out), *options, *dry]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds files that do not belong to a comparison; choose another --out"):
        plan([RECIPE], ["mixer=swin,pvt"], 2, tmp_path)
    with pytest.raises(ValueError, match=r"thesis.tex is a file; choose another --out"):
        plan([RECIPE], ["mixer=swin,pvt"], 2, tmp_path / "thesis.tex")


def test_arguments_that_an_arm_lacks_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the recipe alone: what the user typed must fit each arm."""
    words = ["compare", "digit_scenes_mask_rcnn", "--vary", "method=mask_rcnn,retinanet", "--vary", "lr=1e-3,2e-3"]
    assert main([*words, "--seeds", "1", "--dry-run", "--out", str(tmp_path / "out"), "method_args.channels=32"]) == 0
    first, *notes = capsys.readouterr().out.splitlines()
    arms = "mask_rcnn, lr=1e-3; mask_rcnn, lr=2e-3; retinanet, lr=1e-3; retinanet, lr=2e-3"
    assert first.endswith(f"1 seed of {arms}")
    lacking = ["fc_channels", "mask_channels", "regions", "rpn", "training_proposals"]
    listed = ", ".join(f"method_args.{name}" for name in lacking)
    for arm in arms.split("; ")[2:]:
        assert f"note: {arm} trains without {listed}: its network has no such arguments" in notes
    assert sum("trains without" in note for note in notes) == 2


def test_only_arguments_that_an_arms_network_does_not_take_are_listed(tmp_path: Path) -> None:
    """Neither those that the user left out of a whole section, nor the published numbers of another network."""
    for name, vary, changes in (
        ("digit_scenes_mask_rcnn", "lr=1e-3,2e-3", ["method_args={channels: 32}"]),
        ("atss_smt_small_coco_3x", "backbone=smt_tiny,swin_tiny", []),
    ):
        assert not plan([name], [vary], 1, tmp_path / "out", changes=changes).notes


def test_warnings_before_anything_is_trained(tmp_path: Path) -> None:
    planned = plan_comparison([RECIPE], ["mixer=swin,pvt"], 5, tmp_path / "out", reference="pvt")
    assert planned.reference.name == "pvt"
    assert any("5 seeds cannot decide 1 pair" in text and "6 seeds are the fewest" in text for text in planned.warnings)
    assert any(text.startswith("swin has −13 % parameters and +24 % MACs against pvt") for text in planned.warnings)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="--reference halo is not an arm of this comparison; its arms are swin, pvt"):
        plan_comparison([RECIPE], ["mixer=swin,pvt"], 6, tmp_path / "out", reference="halo")
    with pytest.raises(ValueError, match="no mixer is called 'swim'"):
        plan_comparison([RECIPE], ["mixer=swin,swim"], 6, tmp_path / "out")


@pytest.mark.parametrize("quantity", ["parameters", "macs"])
def test_widths_that_cost_the_same(quantity: str, tmp_path: Path) -> None:
    grid = plan([RECIPE], ["mixer=swin,pvt"], 1, tmp_path / "out")
    costs = costs_of(matched(grid, quantity, "swin"))  # type: ignore[arg-type]
    assert abs(getattr(costs["pvt"], quantity) / getattr(costs["swin"], quantity) - 1) < 0.05
    assert costs["swin"] == costs_of(grid)["swin"]


def test_networks_without_widths(tmp_path: Path) -> None:
    grid = plan([RECIPE], ["model=visformer_digits,smt_tiny"], 1, tmp_path / "out", changes=["image_size=64"])
    with pytest.raises(ValueError, match="smt_tiny takes no widths, which --match-cost searches"):
        matched(grid, "parameters", "visformer_digits")


def without_masks(root: Path) -> Path:
    """A folder of scenes whose objects have boxes alone."""
    write_digit_scenes(root, train=3, val=2, size=64)
    for file in (root / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        for annotation in content["annotations"]:
            annotation.pop("segmentation", None)
        file.write_text(json.dumps(content))
    return root


def test_a_metric_that_the_data_or_the_method_cannot_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boxes, masks = without_masks(tmp_path / "boxes"), write_digit_scenes(tmp_path / "masks", train=3, val=2, size=64)
    mask_rcnn, retinanet = "digit_scenes_mask_rcnn", "digit_scenes_retinanet"
    cases = {
        "data": (mask_rcnn, boxes, "mask_map", [], "will have no mask_map: no object in train of"),
        "method": (retinanet, masks, "mask_map50", [], "retinanet predicts boxes alone; choose --metric box_map50"),
        "argument": (mask_rcnn, masks, "mask_map", ["method_args.masks=false"], "method_args.masks is false"),
        "scales": ("digit_scenes_upernet", None, "miou_ms_flip", [], "at one scale; choose --metric miou_ss"),
        "boundary": ("digit_scenes_upernet", None, "boundary_f1_ss", [], "add evaluation.boundary=true"),
    }
    for name, (recipe, data, metric, changes, words) in cases.items():
        given = [f"data={data}", *changes] if data else changes
        grid = plan([recipe], ["lr=1e-3,2e-3"], 1, tmp_path / "out", changes=given)
        with pytest.raises(ValueError, match=r"will have no|at one scale") as error:
            check_metric(metric, grid.arms[0].recipe, grid.arms[0].name)
        assert words in str(error.value), name
    for recipe, data, metric in ((mask_rcnn, masks, "mask_map"), (mask_rcnn, boxes, "box_map")):
        grid = plan([recipe], ["lr=1e-3,2e-3"], 1, tmp_path / "out", changes=[f"data={data}"])
        check_metric(metric, grid.arms[0].recipe, grid.arms[0].name)
    words = ["compare", retinanet, "--vary", "lr=1e-3,2e-3", "--data", str(masks), "--out", str(tmp_path / "out")]
    assert main([*words, "--metric", "mask_map"]) == 2
    assert "lr=1e-3 will have no mask_map" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_metric_of_objects_of_a_size_that_the_data_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_digit_scenes(tmp_path / "scenes", train=3, val=2, size=64)
    words = ["compare", "digit_scenes_mask_rcnn", "--vary", "lr=1e-3,2e-3", "--data", str(root), "--dry-run"]
    words += ["--out", str(tmp_path / "out"), "--metric"]
    for metric in ("box_map_s", "mask_map_s", "box_recall_s", "mask_recall100"):
        assert main([*words, metric]) == 0, metric
    for metric, instead in (("box_map_l", "box_map_s"), ("mask_map_m", "mask_map_s"), ("box_recall_m", "box_recall_s")):
        assert main([*words, metric]) == 2
        said = capsys.readouterr().err
        size = {"l": "large", "m": "medium"}[metric[-1]]
        assert f"will have no {metric}: no object in val of {root} is {size}; choose --metric {instead}" in said
    assert main([*words, "box_recall7"]) == 2  # no limit on detections of this recipe
    assert "box_recall7 is not a metric of detection" in capsys.readouterr().err
    file = root / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    for one in content["annotations"]:
        one["iscrowd"] = int(one is not content["annotations"][0])
        one["area"] = 100 * 100 if one["iscrowd"] else 32 * 32  # a boundary belongs to both sizes
    file.write_text(json.dumps(content))
    assert main([*words, "box_map_s"]) == main([*words, "box_map_m"]) == 0
    assert main([*words, "box_map_l"]) == 2
    assert "is large; choose --metric box_map_s or --metric box_map_m\n" in capsys.readouterr().err


def test_lists_in_lists_are_one_value_and_keys_of_other_sections_are_no_conflict(tmp_path: Path) -> None:
    stages = [f"[{{iou: {iou}, stds: [0.1, 0.1, 0.2, 0.2], weight: 1.0}}]" for iou in (0.5, 0.6)]
    recipe = "cascade_mask_rcnn_swin_tiny_coco_3x_ms"
    grid = plan([recipe], [f"method_args.stages={','.join(stages)}"], 1, tmp_path / "out")
    assert [flatten(arm.recipe.model_dump())["method_args.stages"][0]["iou"] for arm in grid.arms] == [0.5, 0.6]
    changes = ["evaluation.scale=[512, 512]"]
    grid = plan(
        ["digit_scenes_upernet"], ["augmentation.scale=[64, 64],[96, 96]"], 1, tmp_path / "out", changes=changes
    )
    assert [flatten(arm.recipe.model_dump())["augmentation.scale"] for arm in grid.arms] == [(64, 64), (96, 96)]
