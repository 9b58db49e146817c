"""The complete bench on very small networks; no test depends on speed."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from fourstage import registry
from fourstage.bench import memory, networks, run
from fourstage.bench.options import Options, check_output, parse_size
from fourstage.bench.results import Result, compare, sentence, table
from fourstage.bench.workloads import Setting, loss_of

QUICK = ["--seconds", "0.02", "--batch-size", "2", "--img-size", "32", "--threads", "1"]
Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measurement of memory: a separate process takes seconds, and test_bench_memory.py starts one."""

    def peaks(name: str, options: Options, modes: Sequence[str], batch: int) -> dict[str, int | None]:
        return {mode: 2**20 * batch * len(name) for mode in modes}

    monkeypatch.setattr(memory, "peaks_on_cpu", peaks)


# ------------------------------------------------------------------------------------------------- what works


def test_the_table_the_files_and_the_comparison(typed: Typed, tmp_path: Path) -> None:
    files = ["--csv", tmp_path / "b.csv", "--jsonl", tmp_path / "b.jsonl"]
    code, out, err = typed("bench", "visformer_digits", "--against", "timm/test_vit", "--train", *QUICK[:4], *files)
    assert code == 0, err
    assert out.count("inference") == 3  # a row each, and the comparison
    assert "visformer_digits against timm/test_vit: inference" in out
    assert "times as fast" in out
    assert f"torch {torch.__version__}" in out
    with (tmp_path / "b.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["timm/test_vit", "visformer_digits"]
    digits = rows[1]
    assert float(digits["infer_samples_per_sec"]) > 0
    assert digits["train_batch_size"] == "2"
    assert digits["infer_img_size"] == "32"
    assert (digits["param_count"], digits["infer_gmacs"]) == ("2.17", "0.02")
    assert float(digits["infer_step_time"]) == pytest.approx(2000 / float(digits["infer_samples_per_sec"]), rel=1e-2)
    lines = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [line["model"] for line in lines] == ["timm/test_vit", "visformer_digits"]
    assert lines[1]["against"] == "timm/test_vit"
    rounds = [one["rounds"]["train"] for one in lines]
    assert len(rounds[0]) == len(rounds[1]) >= 5
    assert lines[1]["ratio"]["train"]["low"] <= lines[1]["ratio"]["train"]["median"]
    assert lines[1]["peak_ratio"]["infer"] == pytest.approx(16 / 13, rel=1e-3)
    assert round(lines[1]["counts"]["parameters"] / 1e6, 2) == 2.17
    assert {"date", "cpu", "threads", "torch", "gpu"} <= set(lines[0]["machine"])
    assert lines[0]["options"]["train"] is True


def test_lines_are_added_to_a_file_and_the_table_is_rewritten(typed: Typed, tmp_path: Path) -> None:
    files = ["--csv", tmp_path / "b.csv", "--jsonl", tmp_path / "b.jsonl"]
    for _ in range(2):
        assert typed("bench", "visformer_digits", *QUICK, *files)[0] == 0
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == 2
    header, *rows = (tmp_path / "b.csv").read_text().splitlines()
    assert len(rows) == 1
    assert "train_samples_per_sec" not in header


def test_dense_networks_and_processor_time(typed: Typed) -> None:
    words = ["--dense", "--train", "--cpu-time", "--channels-last", "--dtype", "bfloat16"]
    code, out, err = typed("bench", "visformer_digits", *QUICK, *words)
    assert code == 0, err
    assert "bfloat16, channels-last, dense, processor time" in out


def test_words_after_an_option_are_models_too(typed: Typed) -> None:
    code, out, _ = typed("bench", "visformer_digits", *QUICK[:4], "timm/test_vit", "--threads", "1")
    assert code == 0
    assert "timm/test_vit" in out


def test_a_smaller_batch_is_reported(typed: Typed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def peaks(name: str, options: Options, modes: Sequence[str], batch: int) -> dict[str, int | None]:
        return {} if batch > 1 else dict.fromkeys(modes, 5)

    monkeypatch.setattr(memory, "peaks_on_cpu", peaks)
    code, _, err = typed("bench", "visformer_digits", *QUICK, "--jsonl", tmp_path / "b.jsonl")
    assert code == 0
    assert "visformer_digits: memory is not enough for 2 images (infer); continuing with 1" in err
    assert json.loads((tmp_path / "b.jsonl").read_text())["notes"]


def test_memory_that_cannot_be_measured_is_reported_and_the_bench_continues(
    typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object) -> dict[str, int | None]:
        raise ValueError("no such thing")

    monkeypatch.setattr(memory, "peaks_on_cpu", refused)
    code, out, err = typed("bench", "visformer_digits", *QUICK)
    assert code == 0
    assert "peak memory is not known: no such thing" in err
    assert " - " in out


def test_groups_share_the_baseline_which_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "GROUP", 2)
    groups: list[list[str]] = []
    found, comparisons = run.bench(
        ["visformer_digits", "timm/test_resnet"],
        Options(seconds=0.02, batch_size=2, img_size=(64, 64), threads=1),
        against="timm/test_convnext",
        done=lambda fresh, compared: groups.append([result.model for result in fresh]),
        show=False,
    )
    assert [result.model for result in found] == ["timm/test_convnext", "visformer_digits", "timm/test_resnet"]
    assert groups == [["timm/test_convnext", "visformer_digits"], ["timm/test_resnet"]]
    assert [(one.model, one.against) for one in comparisons] == [
        ("visformer_digits", "timm/test_convnext"),
        ("timm/test_resnet", "timm/test_convnext"),
    ]
    assert all(len(result.speeds["infer"].rates) >= 5 for result in found)


def test_threads_and_random_numbers_are_as_before() -> None:
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    run.bench(["visformer_digits"], Options(seconds=0.02, batch_size=2, threads=1), show=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


# ------------------------------------------------------------------------------------------------- what is timed


def test_a_training_step_works_and_moves_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads: list[float] = []
    next(model[2].parameters()).register_hook(lambda grad: grads.append(grad.norm().item()))
    step = Setting(Options(), torch.device("cpu")).step("train", model, 2, (3, 8, 8))
    step()
    step()
    assert len(grads) == 2
    assert min(grads) > 0
    assert all(p.grad is None for p in model.parameters())  # the memory of gradients is free between the rounds
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_inference_keeps_no_graph_and_sees_the_layout() -> None:
    seen: list[tuple[bool, bool, bool]] = []

    class Look(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            last = x.is_contiguous(memory_format=torch.channels_last)
            seen.append((torch.is_inference_mode_enabled(), last, torch.is_autocast_enabled("cpu")))
            return x

    setting = Setting(Options(channels_last=True, dtype="bfloat16"), torch.device("cpu"))
    setting.step("infer", Look(), 2, (3, 8, 8))()
    Setting(Options(), torch.device("cpu")).step("infer", Look(), 2, (3, 8, 8))()
    assert seen == [(True, True, True), (True, False, False)]


def test_the_loss_of_logits_and_of_maps() -> None:
    logits = torch.zeros(3, 2)
    # there are fewer classes than images: the third image has the first class again
    assert loss_of(logits, torch.arange(3)).item() == pytest.approx(0.6931, abs=1e-3)
    assert loss_of([torch.ones(1, 2, 3, 3), 3 * torch.ones(1, 4, 1, 1)], torch.arange(1)).item() == 4


def test_nothing_is_dropped_at_random() -> None:
    model = networks.build("timm/swin_tiny_patch4_window7_224", (64, 64), dense=False)
    rates = [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]
    assert rates
    assert not any(rates)
    swin_t = networks.build("torchvision/swin_t", None, dense=False)
    assert not any(module.p for module in swin_t.modules() if type(module).__name__ in ("StochasticDepth", "Dropout"))


def test_a_network_of_timm_without_a_size_of_its_own_takes_any() -> None:
    model = networks.build("timm/test_convnext", (64, 96), dense=False)
    assert networks.image_for(model, (64, 96)) == (3, 64, 96)
    assert networks.image_for(model, None) == (3, 160, 160)
    dense = networks.build("timm/test_convnext", None, dense=True)
    assert networks.image_for(dense, None) == (3, 160, 160)


def test_names_and_patterns() -> None:
    assert networks.expand(["visformer_t*", "visformer_tiny"]) == ["visformer_tiny"]
    assert "swin_tiny_patch4_window7_224" not in networks.expand(["swin_t*"])  # an alias of swin_tiny
    assert networks.expand(["swin_tiny_patch4_window7_224"]) == ["swin_tiny_patch4_window7_224"]
    assert "timm/visformer_small" in networks.expand(["timm/visformer*"])
    assert networks.expand(["timm/resnet50.a1_in1k"]) == ["timm/resnet50.a1_in1k"]
    assert networks.expand(["torchvision/swin_t"]) == ["torchvision/swin_t"]


def test_your_own_model_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))

    @registry.register
    def plain(img_size: int | None = None) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.LazyLinear(4) if img_size else nn.Identity())

    [result], _ = run.bench(["plain"], Options(seconds=0.02, batch_size=1, threads=1), show=False)
    assert result.count.size == (224, 224)
    assert result.count.parameters == 4 * 3 * 64 + 4


# ------------------------------------------------------------------------------------------------- what goes wrong


WRONG = [
    (["nope"], "no model is called 'nope'"),
    (["swin_tni"], "did you mean swin_tiny?"),
    (["zzz*"], "`fourstage models` lists all"),
    (["timm/visformer_tni"], "did you mean timm/visformer_tiny?"),
    (["elsewhere/x"], "there is no 'elsewhere'"),
    (["/some/x.pt"], "is not there; give a model of ours"),
    (["torchvision/swin_t", "--dense"], "has no dense form"),
    (["swin_tiny", "--against", "visformer*"], "a comparison needs one"),
    (["swin_tiny", "--against", "swin_tiny"], "nothing but swin_tiny"),
    (["swin_tiny", "--img-size", "large"], "HEIGHTxWIDTH"),
    (["swin_tiny", "--img-size", "16"], "the smallest are 32 x 32"),
    (["swin_tiny", "--batch-size", "0"], "the batch size must be at least 1"),
    (["swin_tiny", "--batch-size", "many"], "invalid int value: 'many'"),
    (["swin_tiny", "--seconds", "0"], "above 0"),
    (["swin_tiny", "--seconds", "nan"], "above 0"),
    (["swin_tiny", "--threads", "-1"], "threads must be at least 1"),
    (["swin_tiny", "--dtype", "int8"], "choose"),
    (["swin_tiny", "--csv", "/no/such/place.csv"], "there is no folder /no/such"),
    (["swin_tiny", "--jsonl", "/"], "is a folder"),
    (["swin_tiny", "--cpu-time", "--device", "cuda"], "processor time"),
    (["swin_tiny", "--chanels-last"], "did you mean --channels-last;"),
    (["torchvision/alexnet", "--img-size", "32"], "torchvision/alexnet cannot be measured at 32 pixels"),
    ([], "MODEL"),
]


@pytest.mark.parametrize(("words", "said"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_bad_input_is_one_sentence(words: list[str], said: str, typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    def heavy(*args: object) -> None:
        raise AssertionError("something heavy began")

    monkeypatch.setattr(run, "find_batches", heavy)
    code, out, err = typed("bench", *words)
    line = err.strip().splitlines()[-1]
    assert code == 2, err
    assert out == ""
    assert line.startswith("fourstage: ")
    assert said in line
    assert "Traceback" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there(typed: Typed) -> None:
    code, _, err = typed("bench", "visformer_digits", "--device", "cuda")
    assert code == 2
    assert "no GPU" in err


def test_no_compiler(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, _, err = typed("bench", "visformer_digits", "--compile", "--device", "cpu")
    assert code == 2
    assert "needs a C++ compiler" in err


def test_too_little_memory_for_all_of_them_together(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run, "throughput", full)
    code, _, err = typed("bench", "visformer_digits", *QUICK)
    assert code == 2
    assert "give a smaller --batch-size" in err


def test_sizes_and_files() -> None:
    assert parse_size("224") == (224, 224)
    assert parse_size("800x1280") == (800, 1280)
    for wrong in ("x", "224x", "-5", "2.5", "1x2x3"):
        with pytest.raises(ValueError, match="an image size"):
            parse_size(wrong)
    with pytest.raises(ValueError, match="is a folder"):
        check_output(Path.cwd())


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom fourstage.cli import main\n"
        "try:\n    main(['bench', '--help'])\nexcept SystemExit:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "--against" in done.stdout


# ------------------------------------------------------------------------------------------------- results alone


def result(model: str, rates: Sequence[float], *, batch: int = 8, peak: int | None = 2**30) -> Result:
    from fourstage.bench.count import Count
    from fourstage.bench.results import Speed

    cost = Count(28_288_354, 4_490_566_656, 4_350_425_088, 0, 17_055_352, (224, 320))
    return Result(model, cost, {"infer": Speed(batch, tuple(rates), peak)}, (0.02, 0.01, 0.03))


def test_a_row_on_the_screen() -> None:
    head, rows = table([result("swin_tiny", [10, 11, 12, 13, 14])])
    row = dict(zip(head, rows[0], strict=True))
    assert row["images/s"] == "12"
    assert row["± %"] == "8.3"  # quartiles 11 and 13
    assert (row["MiB"], row["p50 ms"], row["px"], row["G MACs"]) == ("1024", "20", "224x320", "4.49")
    _, rows = table([result("fast", [123456.7] * 5, peak=None)])
    assert rows[0][2] == "123457"
    assert rows[0][5] == "-"


def test_memory_is_compared_only_at_the_same_batch() -> None:
    one, other = result("a", [2, 4, 6]), result("b", [1, 2, 3], peak=2**29)
    assert sentence(compare(one, other)) == (
        "a against b: inference 2.00 times as fast (2.00 to 2.00) with 2.00 times the memory"
    )
    assert compare(one, result("b", [1, 2, 3], batch=4)).peak == {}
    assert compare(one, result("b", [1, 2, 3], peak=None)).peak == {}
