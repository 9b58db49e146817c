"""Values that follow from the amount of data: fitted unless the user set them. What does not fit is one message."""

from pathlib import Path

import pytest

from fourstage.recipe import list_recipes, resolve
from fourstage.recipe.sizing import FINE_TUNING, blockers, refuse, sized

UNIT = 2


def test_a_batch_that_small_data_cannot_fill_is_fitted_and_its_rates_follow() -> None:
    plain = resolve("digits_visformer")
    fitted, lines = sized(plain, 40, UNIT)
    same = resolve("digits_visformer", ["batch_size=8"]).recipe
    assert fitted.recipe == same
    assert fitted.fitted["optimisation.batch_size"] == (64, 8)
    assert fitted.changes == fitted.fitted
    assert lines[0] == "batch size 8: 40 training images, 5 updates an epoch (recipe: 64)"


def test_a_warmup_that_is_longer_than_the_training_is_fitted() -> None:
    fitted, lines = sized(resolve("mask_rcnn_smt_small_coco_1x"), 108, UNIT)
    assert fitted.recipe.optimisation.warmup == "7it"
    assert lines == ("warm-up 7 updates: the training has 72 (recipe: 500it)",)


@pytest.mark.parametrize(
    ("name", "images"),
    [("digits_visformer", 1438), ("digit_scenes_mask_rcnn", 1000), ("smt_tiny_in1k", 1_281_167)]
    + [("mask_rcnn_swin_tiny_coco_1x", 117_266), ("upernet_smt_small_ade20k_160k", 20_210)],
)
def test_a_recipe_on_its_own_data_stays_as_it_is(name: str, images: int) -> None:
    plain = resolve(name)
    assert sized(plain, images, UNIT) == (plain, ())


@pytest.mark.parametrize("images", [2, 30, 108])
def test_every_recipe_starts_on_small_data(images: int) -> None:
    for name in list_recipes():
        resolved = resolve(name)
        unit = UNIT * resolved.recipe.optimisation.accumulation
        if images >= unit:
            fitted, lines = sized(resolved, images, unit)
            assert lines, name
            assert not blockers(fitted.recipe, images, unit), name
            assert images // fitted.recipe.optimisation.batch_size >= min(4, images // unit), name
            assert fitted.recipe.optimisation.batch_size % unit == 0, name


@pytest.mark.parametrize("name", ["digits_visformer", "finetune"])
def test_what_the_user_set_stays(name: str, tmp_path: Path) -> None:
    set_by_hand = ["batch_size=16", "warmup=3it", "lr=1e-3", "length=2ep", "warmup_lr=1e-5", "min_lr=1e-5"]
    typed = resolve(name, set_by_hand)
    assert sized(typed, 40, UNIT) == (typed, ())
    (tmp_path / "mine.yaml").write_text(f"base: {name}\noptimisation: {{batch_size: 20}}\n")
    assert sized(resolve(tmp_path / "mine.yaml"), 40, UNIT)[0].recipe.optimisation.batch_size == 20
    none = resolve(name, ["sizing=none"])
    assert sized(none, 40, UNIT) == (none, ())


@pytest.mark.parametrize(
    ("name", "images", "batch_size", "length", "warmup"),
    [
        ("finetune", 40, 8, "50ep", "25it"),
        ("finetune", 108, 16, "50ep", "30it"),
        ("finetune", 1000, 64, "20ep", "30it"),
        ("finetune", 50_000, 64, "10ep", "500it"),
        ("finetune_detection", 108, 8, "28ep", "36it"),
        ("finetune_segmentation", 30, 6, "60ep", "30it"),
    ],
)
def test_fine_tuning_is_sized_to_the_data(name: str, images: int, batch_size: int, length: str, warmup: str) -> None:
    plain = resolve(name).recipe.optimisation
    fitted, lines = sized(resolve(name), images, UNIT)
    o = fitted.recipe.optimisation
    assert (o.batch_size, o.length, o.warmup) == (batch_size, length, warmup)
    assert o.lr == pytest.approx(plain.lr * (batch_size / plain.batch_size) ** 0.5, rel=0.01)
    assert o.min_lr == pytest.approx(plain.min_lr * (batch_size / plain.batch_size) ** 0.5)
    starts = [line.split()[0] for line in lines if not line.startswith("batch")]
    assert starts == ["learning", "length", "warm-up"]
    assert all(len(line) <= 80 for line in lines)


def test_fine_tuning_has_a_rule_for_every_task() -> None:
    tasks = {resolve(name).recipe.task for name in list_recipes("finetune*")}
    assert tasks == set(FINE_TUNING) == {resolve(name).recipe.task for name in list_recipes()}


def test_all_blockers_are_one_message_with_one_command() -> None:
    typed = ["batch_size=1024", "optimisation.warmup=500it", "length=72it", "seed=3"]
    found = blockers(resolve("smt_tiny_in1k", typed).recipe, 108, UNIT)
    with pytest.raises(ValueError, match="fewer than one batch of 1024, and warmup=500it is 500 steps") as error:
        refuse(found, ["fourstage", "train", "smt_tiny_in1k", "--data", "my photos", *typed])
    command = str(error.value).partition("type: ")[2]
    assert command == ("fourstage train smt_tiny_in1k --data 'my photos' length=72it seed=3 batch_size=24 warmup=7it")
    changes = ["length=72it", "batch_size=24", "warmup=7it"]
    assert not blockers(resolve("smt_tiny_in1k", changes).recipe, 108, UNIT)
    refuse([], [])


def test_milestones_after_the_end_and_data_of_one_image() -> None:
    changes = ["schedule=step", "milestones=[90it,95it]", "length=72it", "warmup=0it"]
    [late] = blockers(resolve("finetune_detection", changes).recipe, 108, UNIT)
    assert late.change == "milestones=[48it,66it]"
    with pytest.raises(ValueError, match="has 1 image, fewer than one batch of 64; give it more images"):
        refuse(blockers(resolve("digits_visformer").recipe, 1, UNIT), [])


def test_values_of_the_weights_count_as_fitted_too() -> None:
    resolved = resolve("finetune").fit({"weights": "smt_tiny.in1k", "model_args.drop_path_rate": 0.1})
    assert resolved.fitted == {
        "weights": ("pretrained", "smt_tiny.in1k"),
        "model_args.drop_path_rate": (None, 0.1),
    }


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("none", None),
        ("null", None),
        ("None", None),
        ("", None),
        ("pretrained", "pretrained"),
        ("smt_tiny.in1k", "smt_tiny.in1k"),
    ]
    + [("in22k", "in22k")],
)
def test_names_of_weights_are_no_paths(typed: str, stored: str | None, tmp_path: Path) -> None:
    assert resolve("digits_visformer", [f"weights={typed}"]).recipe.weights == stored
    (tmp_path / "mine.yaml").write_text(f'base: digits_visformer\nweights: "{typed}"\n')
    assert resolve(tmp_path / "mine.yaml").recipe.weights == stored


@pytest.mark.parametrize("typed", ["a.pth", "runs/mine", "./in1k", "best.safetensors"])
def test_files_of_weights_are_absolute_paths(typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("digits_visformer", [f"weights={typed}"]).recipe.weights == str((tmp_path / typed).resolve())
    (tmp_path / "in1k").mkdir()  # a folder that is there is meant
    assert resolve("digits_visformer", ["weights=in1k"]).recipe.weights == str(tmp_path / "in1k")
