"""A key or an option that does not exist is answered with what to type, complete with the given value."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.cli import main
from fourstage.recipe import TASKS, known_keys, resolve
from fourstage.recipe.other_names import OTHER_NAMES, all_words, row_of
from fourstage.recipe.spelling import distance, nearest
from fourstage.recipe.suggestions import unknown_keys

RECIPES = {
    "classification": "digits_visformer",
    "detection": "mask_rcnn_swin_tiny_coco_1x",
    "segmentation": "upernet_swin_tiny_ade20k_160k",
}
KEYS = [(task, key) for task, schema in TASKS.items() for key in known_keys(schema)]


def switch(word: str) -> str:
    """Return the change that turns on what a word of another tool stands for; empty: it is no such switch."""
    row = row_of(word)
    assert row is not None
    return row.yes if "=" in row.yes else ""


def answer(task: str, change: str) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        resolve(RECIPES[task], [change])
    text = str(caught.value)
    assert "\n" not in text
    return text


@st.composite
def misspelt(draw: st.DrawFn) -> tuple[str, str, str]:
    """A task, a key of its recipes, and that key, or its last name alone, with one slip of the hand in it."""
    task, key = draw(st.sampled_from(KEYS))
    word = key if draw(st.booleans()) else key.rpartition(".")[2]
    i = draw(st.integers(0, len(word) - 1))
    slip = draw(st.sampled_from(("swap", "drop", "double")))
    typed = {
        "swap": word[:i] + word[i : i + 2][::-1] + word[i + 2 :],
        "drop": word[:i] + word[i + 1 :],
        "double": word[:i] + 2 * word[i] + word[i + 1 :],
    }[slip]
    return task, key, typed


@given(misspelt())
@settings(max_examples=400, deadline=None)
def test_one_letter_swapped_dropped_or_doubled_is_answered_by_the_key(case: tuple[str, str, str]) -> None:
    task, key, typed = case
    schema = TASKS[task]
    names = {*known_keys(schema), *(name.rpartition(".")[2] for name in known_keys(schema))}
    if typed in names or row_of(typed.rpartition(".")[2]) is not None or not typed.strip("._"):
        return  # another key, another tool's word, or nothing of the word is left
    text = unknown_keys([(typed, "7")], schema)
    assert f"{key}=7" in text, text


@pytest.mark.parametrize("task", TASKS)
def test_every_single_slip_in_a_bare_key_is_answered(task: str) -> None:
    """The complete law for dropped letters; the test above draws from all slips."""
    schema = TASKS[task]
    names = {name.rpartition(".")[2] for name in known_keys(schema)}
    for key in known_keys(schema):
        bare = key.rpartition(".")[2]
        for i in range(len(bare)):
            typed = bare[:i] + bare[i + 1 :]
            if typed not in names and row_of(typed) is None:
                assert f"{key}=7" in unknown_keys([(typed, "7")], schema), typed


@pytest.mark.parametrize(
    ("task", "change", "words"),
    [
        ("classification", "lenght=60ep", "did you mean optimisation.length=60ep?"),
        ("classification", "epochs=10", "write optimisation.length=10ep"),
        ("classification", "epochs=10ep", "write optimisation.length=10ep"),
        ("classification", "epochs=ten", "write optimisation.length=Nep"),
        ("classification", "max_iters=80000", "write optimisation.length=80000it"),
        ("classification", "learning_rate=1e-3", "write optimisation.lr=1e-3"),
        ("classification", "augmentation.lr=1", "did you mean optimisation.lr=1?"),
        ("classification", "optimization.lr=1", "did you mean optimisation.lr=1?"),
        ("classification", "optimisation.mixup=0", "did you mean augmentation.mixup=0?"),
        ("classification", "pretrained=true", "write weights=pretrained"),
        ("classification", "length=10", "got 10, write 10ep for epochs or 10it for steps"),
        ("classification", "pretrained=a.pth", "write weights=a.pth"),
        ("classification", "pretrained=false", "write weights=null"),
        ("classification", "backbone=swin_tiny", "write model=swin_tiny"),
        ("classification", "backbone_args.drop_path_rate=0.1", "write model_args.drop_path_rate=0.1"),
        ("classification", "batch=32", "write optimisation.batch_size=32 (which is the number over all devices"),
        ("classification", "batchSize=32", "optimisation.batch_size=32"),
        ("classification", "amp=true", "write precision=float16"),
        ("classification", "output_dir=x", "write --out x"),
        ("classification", "resume=true", "run the same command again"),
        ("classification", "resume=true", "no key 'resume'; run the same command again"),
        ("classification", "patience=5", "no key 'patience'; there is no early stopping"),
        ("classification", "imgsz=384", "write image_size=384"),
        ("classification", "decay=0.1", "optimisation.weight_decay=0.1"),
        ("classification", "epochss=10", "did you mean optimisation.length=10ep?"),
        ("classification", "model_arg.foo=1", "did you mean model_args.foo=1?"),
        ("classification", "scal=[0.1, 1]", "did you mean 'augmentation.scale=[0.1, 1]'?"),
        ("classification", "xyzzy=1", "`fourstage recipes --keys` lists all keys"),
        ("detection", "model=swin_small", "write backbone=swin_small"),
        ("detection", "imgsz=640", "write 'augmentation.scale=[640,640]'"),
        ("detection", "drop_path=0.2", "write backbone_args.drop_path_rate=0.2"),
        ("detection", "scale=[800, 600]", "'augmentation.scale=[800, 600]' or 'evaluation.scale=[800, 600]'"),
        ("segmentation", "crop_size=640", "write 'augmentation.crop=[640,640]'"),
        ("segmentation", "imgsz=640", "write 'augmentation.crop=[640,640]'"),
    ],
)
def test_a_change_is_answered_with_what_to_type(task: str, change: str, words: str) -> None:
    assert words in answer(task, change)


def test_all_unknown_keys_are_answered_at_once() -> None:
    with pytest.raises(ValueError, match=r"'epochs'; write optimisation\.length=10ep, and no key 'lr0'; write optimi"):
        resolve("digits_visformer", ["epochs=10", "seed=1", "lr0=0.1"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs: 10\n", "write `length: 10ep` below `optimisation:`"),
        ("lr: 1.0e-3\n", "did you mean `lr: 0.001` below `optimisation:`?"),
        ("optimisation: {lenght: 60ep}\n", "did you mean `length: 60ep` below `optimisation:`?"),
        ("optimisation.lr: 1\n", "did you mean `lr: 1` below `optimisation:`?"),
        ("optimization: {lr: 1}\n", "did you mean `optimisation: {lr: 1}`?"),
        ("augmentation: {seed: 1}\n", "did you mean `seed: 1`?"),
        ("pretrained: true\n", "write `weights: pretrained`"),
        ("output_dir: x\n", "write --out x on the command line"),
        ("lr0: 1\nepochs: 2\nmodel: swin_tiny\n", "no key 'lr0'; write `lr: 1` below `optimisation:`, and no key 'epo"),
    ],
)
def test_a_key_of_a_file_is_answered_in_the_form_of_a_file(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: digits_visformer\n{text}")
    with pytest.raises(ValueError, match=r".") as caught:
        resolve(tmp_path / "mine.yaml")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train digits_visformer --epochs 10", "no option --epochs here; write optimisation.length=10ep (values of"),
        ("train digits_visformer --epochs=10", "write optimisation.length=10ep"),
        ("train digits_visformer --lr 1e-3", "write optimisation.lr=1e-3"),
        ("train digits_visformer --batch-size 32", "write optimisation.batch_size=32"),
        ("train digits_visformer -b 32", "write optimisation.batch_size=32"),
        ("train digits_visformer --resume", "run the same command again: it continues a stopped run by itself"),
        ("train digits_visformer --pretrained", "write weights=pretrained"),
        ("train --pretrained digits_visformer", "write weights=pretrained"),
        ("train digits_visformer --device cuda", "write device=cuda"),
        ("train mask_rcnn_swin_tiny_coco_1x --drop-path 0.1", "write backbone_args.drop_path_rate=0.1"),
        ("train mask_rcnn_swin_tiny_coco_1x --imgsz 640", "write 'augmentation.scale=[640,640]'"),
        ("train digits_visformer --output-dir x", "did you mean --out x"),
        ("train digits_visformer --data-path x", "did you mean --data x"),
        ("train digits_visformer --dta x", "did you mean --data x"),
        ("train digits_visformer --gpus 4", "torchrun --nproc-per-node=N"),
        ("train digits_visformer epochs 10", "'epochs' is not expected here; write optimisation.length=10ep"),
        ("train lr=1e-3 digits_visformer", "the recipe comes first: write digits_visformer lr=1e-3"),
        ("train lr=1e-3", "the recipe comes before it"),
        ("train digits_visformer --epochs 3 --lr 1 --resume",
         "there are no options --epochs and --lr here; write optimisation.length=3ep optimisation.lr=1 (values of a "
         "recipe have no dashes), and there is no option --resume here; run the same"),
        ("evaluate digits_visformer --checkpoint a.pth", "did you mean --weights a.pth"),
        ("evaluate digits_visformer --split test", "; the validation split of --data is scored"),
        ("evaluate digits_visformer --conf 0.3", "no option --conf here; scores count detections of any score"),
        ("evaluate digit_scenes_upernet --score-thr=0.3", "`fourstage predict RUN IMAGE --threshold` draws fewer"),
        ("evaluate digit_scenes_upernet --tta", "; miou_ms_flip of a segmentor is the score over several scales"),
        ("predict smt_tiny a.jpg --conf 0.3", "no option --conf here, did you mean --threshold 0.3"),
        ("predict smt_tiny a.jpg --score-thr=0.3", "did you mean --threshold 0.3"),
        ("predict smt_tiny a.jpg --half", "did you mean --precision float16"),
        ("predict smt_tiny a.jpg --cpu", "did you mean --device cpu"),
        ("predict smt_tiny a.jpg --imgsz 64", "the size is that of the recipe that the checkpoint was trained with"),
        ("predict smt_tiny a.jpg --topk 3", "five most probable classes"),
        ("predict smt_tiny a.jpg conf=0.3", "'conf=0.3' is not a file and not expected here, did you mean --thresh"),
        ("predict smt_tiny source=a.jpg", "'source=a.jpg' is not a file and not expected here; write the value alone"),
        ("predict smt_tiny a.jpg which=ema", "did you mean --which ema"),
        ("train digits_visformer . epochs=3", "'.' is not expected here, did you mean --data ."),
        ("evaluate digits_visformer .", "'.' is not expected here, did you mean --data ."),
        ("train .", "'.' is a folder, and the recipe comes before it: write finetune --data ."),
        ("train ../", "write finetune --data ../"),
        ("bench swin_tiny --batch_size 2", "did you mean --batch-size 2"),
        ("bench swin_tiny --imgsz 384", "did you mean --img-size 384"),
        ("slurm train digits_visformer --partition p --gpus 1 --epochs 3", "write optimisation.length=3ep"),
    ],
)  # fmt: skip
def test_an_option_is_answered_with_what_to_type(command: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(command.split())
    except SystemExit as stop:
        code = stop.code
    line = capsys.readouterr().err.strip()
    assert code == 2
    assert "\n" not in line
    assert words in line


def test_no_command_without_a_recipe_speaks_of_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "a.pth", "--lr", "3"])
    assert "recipe" not in capsys.readouterr().err


def test_the_table_has_each_word_once_and_names_keys_that_exist() -> None:
    words = [word for row in OTHER_NAMES for word in row.words.split()]
    assert len(set(words)) == len(words)
    keys = {key for schema in TASKS.values() for key in known_keys(schema)}
    free = ("model_args", "backbone_args")
    for row in OTHER_NAMES:
        assert row.write or row.yes or row.advice, row
        for way in (*row.write, row.yes, row.no):
            key = way.rpartition(": ")[2].partition("=")[0]
            assert not way or way.startswith("--") or key in keys or key.partition(".")[0] in free, way


@pytest.mark.parametrize("word", [word for word in all_words() if switch(word)])
def test_a_switch_of_the_table_is_a_change_that_recipes_take(word: str) -> None:
    change = switch(word)
    for task, schema in TASKS.items():
        if change.partition("=")[0] in known_keys(schema):
            message = ""
            try:
                resolve(RECIPES[task], [change])
            except ValueError as error:
                message = str(error)
            assert not message or "work only" in message or "works only" in message  # another value contradicts it


def test_distance_counts_slips_of_the_hand() -> None:
    assert distance("lenght", "length") == distance("lngth", "length") == distance("lenngth", "length") == 1
    assert distance("batchsize", "batch_size") == 0.5
    assert distance("Batch-Size", "batch_size") == 0
    assert distance("lengtx", "length") > 1
    assert nearest("ratioo", ["ratio", "ratios"]) == ["ratio"]
    assert nearest("xyzzy", ["ratio", "ratios"]) == []
