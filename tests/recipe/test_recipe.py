"""Names, files and changes become one checked recipe, and every mistake a sentence."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.recipe import Classification, difference, from_mapping, list_recipes, read_yaml, resolve, steps


@pytest.mark.parametrize("name", list_recipes())
def test_every_named_recipe_is_valid_and_survives_storage(name: str) -> None:
    recipe = resolve(name).recipe
    assert from_mapping(recipe.model_dump(mode="json"), "stored").recipe == recipe


def test_a_change_is_noted_with_both_values() -> None:
    resolved = resolve("digits_visformer", ["optimisation.grad_clip=1"])
    assert resolved.changes == {"optimisation.grad_clip": (5.0, 1.0)}


def test_a_last_name_is_enough_where_one_section_has_it() -> None:
    recipe = resolve("digits_visformer", ["mixup=0.5", "cutmix=1"]).recipe
    assert isinstance(recipe, Classification)
    assert (recipe.augmentation.mixup, recipe.augmentation.cutmix) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-6", 1e-6), ("-2.5E3", -2500.0), ("1.0e-2", 0.01), ("7", 7), ("1e6it", "1e6it"), ("e5", "e5")],
)
def test_numbers_may_have_an_exponent_without_a_point(text: str, value: object) -> None:
    args = resolve("digits_visformer", [f"model_args.x={text}"]).recipe.model_dump()["model_args"]
    assert args["x"] == value
    assert type(args["x"]) is type(value)
    assert read_yaml(f"a: {text}", "here")["a"] == value


def test_rates_follow_the_batch_size_by_the_rule_of_the_source() -> None:
    plain = resolve("digits_visformer").recipe.optimisation
    double = resolve("digits_visformer", [f"batch_size={2 * plain.batch_size}"]).recipe.optimisation
    assert (double.lr, double.min_lr, double.warmup_lr) == (2 * plain.lr, 2 * plain.min_lr, 2 * plain.warmup_lr)
    peak = resolve("digits_visformer", [f"batch_size={2 * plain.batch_size}", "lr_scaling=peak"]).recipe.optimisation
    assert peak.min_lr == 2 * plain.min_lr  # the rule is the recipe's, not the change's
    own = resolve("digits_visformer", [f"batch_size={2 * plain.batch_size}", "lr=0.01"]).recipe.optimisation
    assert own.lr == 0.01


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optimisation.lrr=1", "did you mean optimisation.lr"),
        ("lrr=1", "did you mean optimisation.lr"),
        ("optimisation.lr=fast", "optimisation.lr"),
        ("schedule=cosin", "did you mean 'cosine'?"),
        ("precision=fp16", "'float32', 'bfloat16', 'float16' or 'float64'"),
        ("lr", "write key=value"),
        ("length=30", "'300ep'"),
        ("length=30epochs", "'300ep'"),
        ("batch_size=63", "even batch_size"),
        ("accumulation=3", "choose a multiple"),
        ("schedule=step", "milestones=[8ep,11ep]"),
        ("milestones=[8ep]", "work only with schedule=step"),
        ("min_lr=1", "must not be above the peak"),
        ("lr=.nan", "finite"),
        ("image_size=16", "32"),
        ("seed=-1", "0"),
        ("task=detektion", "did you mean"),
        ("ema=1.5", "less than 1"),
        ("std=[0, 1, 1]", "may be zero"),
        ("expect={top2: 80}", "top1, top5"),
        ("betas=[0.9]", "optimisation.betas, entry 2"),
        ("imports=my.py", "must be written [a, b]"),
        ("optimisation=3", "optimisation is a section"),
        ("scale=[1.0, 0.2]", "[smallest, largest]"),
        ("length=0it", "at least one step"),
        ("evaluate_every=0ep", "at least one step"),
        ("imports={a: 1", "is not valid YAML"),
    ],
)
def test_a_wrong_change_gets_a_sentence(change: str, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        resolve("digits_visformer", [change])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean digits_visformer"):
        resolve("digit_visformer")
    with pytest.raises(FileNotFoundError, match="no recipe file"):
        resolve("nowhere.yaml")


def test_a_file_inherits_and_its_imports_lie_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: digits_visformer\nimports: [my_backbone.py]\noptimisation: {lr: 1e-2}\n")
    recipe = resolve(file).recipe
    assert recipe.name == "mine"
    assert recipe.optimisation.lr == 0.01
    assert recipe.optimisation.batch_size == resolve("digits_visformer").recipe.optimisation.batch_size
    assert recipe.imports == (str(tmp_path / "my_backbone.py"),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nseed: 2\n", "given twice"),
        ("seed: [1\n", "not YAML"),
        ("- 1\n", "must hold keys and values"),
        ("base: digit_visformer\n", "did you mean digits_visformer"),
        ("model: swin_tiny\n", "has no optimisation"),
        ("base: other.yaml\n", "base must be a name from"),
        ("base: digits_visformer\ntask: [x]\n", "there is no task"),
        ("base: digits_visformer\noptimisation:\nlr: 1\n", "optimisation is a section"),
        ("base: digits_visformer\nname: ../../evil\n", "name"),
    ],
)
def test_a_broken_file_gets_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        resolve(tmp_path / "mine.yaml")


def test_a_recipe_cannot_run_code() -> None:
    with pytest.raises(ValueError, match="not YAML"):
        read_yaml("a: !!python/object/apply:os.system ['true']\n", "here")


@given(st.integers(1, 500), st.integers(1, 2000))
def test_epochs_and_iterations_are_one_type(epochs: int, per_epoch: int) -> None:
    assert steps(f"{epochs}ep", per_epoch) == steps(f"{epochs * per_epoch}it", per_epoch)


def test_yaml_merge_keys_and_sections_as_values_work(tmp_path: Path) -> None:
    text = "base: digits_visformer\nmodel_args: &a {drop_rate: 0.1}\nexpect: {}\naugmentation:\n  <<: {mixup: 0.3}\n"
    (tmp_path / "mine.yaml").write_text(text)
    recipe = resolve(tmp_path / "mine.yaml", ["optimisation={lr: 0.5, grad_clip: null}"]).recipe
    assert isinstance(recipe, Classification)
    assert recipe.augmentation.mixup == 0.3
    assert (recipe.optimisation.lr, recipe.optimisation.grad_clip) == (0.5, None)


def test_a_binary_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        resolve(tmp_path / "mine.yaml")


def test_difference_is_empty_only_for_equals() -> None:
    a, b = resolve("digits_visformer").recipe, resolve("digits_visformer", ["seed=7"]).recipe
    assert difference(a, a) == {}
    assert difference(a, b) == {"seed": (0, 7)}


@pytest.mark.parametrize("value", ["null", "[swin_tiny, smt_tiny]", "3"])
def test_a_network_is_one_name(value: str) -> None:
    with pytest.raises(ValueError, match=r"backbone must be one name or path; got .+; write backbone=\.\.\., with one"):
        resolve("mask_rcnn_swin_tiny_coco_1x", [f"backbone={value}"])
