"""Which product computes is set once: by hand, by the environment, or by a measurement when a network is built."""

import itertools
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from onednn import need_onednn
from tiny_networks import tiny
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fourstage
from fourstage.ops import kept_choice, matmul, measure, products
from fourstage.ops.products import CLASSES, Products, Ways

ONE = "convolution,blas,plain"


@pytest.fixture(autouse=True)
def _unchosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As in a new process of a user with an empty cache folder."""
    monkeypatch.delenv("FOURSTAGE_PRODUCTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = list(products._chosen)
    products._chosen.clear()
    yield
    products._chosen[:] = before


def test_pytorchs_own_compute_until_something_is_chosen() -> None:
    assert str(products.current()) == "blas,blas,fused"
    assert products.chosen() is None


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on small matrices."""
    monkeypatch.setattr(measure, "SHAPES", dict.fromkeys(measure.SHAPES, (16, 8, 12)))


@pytest.mark.usefixtures("small")
def test_a_measurement_names_products_that_there_are() -> None:
    found = measure.measured()
    assert found.linear.keys() == set(CLASSES)
    assert products.use(found) == found == products.chosen() == products.current()
    assert products.use(str(found)) == found


@pytest.mark.usefixtures("small")
def test_it_leaves_no_trace() -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.inference_mode():
        measure.measured()
    assert counter.get_total_flops() == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_the_first_network_of_a_process_measures_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(measure, "measured", lambda: calls.append(1) or products.checked(ONE))
    model = tiny("visformer")
    model(torch.randn(1, 3, 64, 64))
    tiny("visformer")
    assert calls == [1]
    assert str(products.current()) == ONE
    products._chosen.clear()
    pickle.loads(pickle.dumps(model))
    assert calls == [1]  # the choice was kept
    products._chosen.clear()
    kept_choice.path().unlink()
    pickle.loads(pickle.dumps(model))
    assert calls == [1, 1]


@pytest.mark.parametrize("name", ["dino", "upernet"])
def test_networks_over_other_backbones_measure_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "measured", lambda: products.checked(ONE))
    create = fourstage.create_detector if name == "dino" else fourstage.create_segmentor
    network = create(name, "timm/resnet18", 3)
    assert str(products.current()) == ONE
    products._chosen.clear()
    pickle.loads(pickle.dumps(network))
    assert str(products.current()) == ONE


def test_nothing_is_measured_where_no_fast_path_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "measured", None)
    monkeypatch.setenv("FOURSTAGE_OPS", "plain")
    tiny("visformer")
    assert products.chosen() is None
    assert products.description() == "plain"


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_network_built_in_a_transform_or_a_trace_leaves_the_measurement_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "measured", None)
    choices: list[Products] = []

    def choose(x: Tensor) -> Tensor:
        choices.append(measure.choose_products())
        return 2 * x

    x = torch.ones(2, 3)
    torch.vmap(choose)(x)
    torch.func.grad(lambda x: choose(x).sum())(x)
    torch.func.jvp(choose, (x,), (x,))
    torch.jit.trace(choose, x, check_trace=False)
    assert choices == [Products()] * len(choices)
    assert len(choices) >= 4
    assert products.chosen() is None
    monkeypatch.setenv("FOURSTAGE_PRODUCTS", "convolution,blas,plain")
    torch.vmap(choose)(x)
    assert str(choices[-1]) == "convolution,blas,plain"


@pytest.mark.usefixtures("small")
def test_a_measurement_computes_without_autocast_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[bool] = set()

    def watch(forms: Mapping[str, Callable[[], object]]) -> str:
        seen.update((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return next(iter(forms))

    monkeypatch.setattr(measure, "quickest", watch)
    with torch.autocast("cpu"):
        measure.measured()
    assert seen == {False}


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")
def test_onednn_obeys_its_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    need_onednn()
    products.use("onednn,onednn,fused")
    monkeypatch.setitem(matmul.PRODUCTS, "onednn", None)
    monkeypatch.setattr(matmul, "by_onednn", None)
    with torch.backends.mkldnn.flags(enabled=False):
        assert "onednn" not in products.for_linear()
        for mode in (torch.no_grad, torch.enable_grad):
            with mode():
                matmul.linear(nn.Linear(8, 8), torch.randn(matmul.FEW, 8))


@pytest.mark.usefixtures("small")
def test_a_forward_pass_never_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("visformer")
    products._chosen.clear()
    monkeypatch.setattr(measure, "measured", None)
    model(torch.randn(1, 3, 64, 64))


def test_the_environment_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "measured", None)
    monkeypatch.setenv("FOURSTAGE_PRODUCTS", "convolution, blas, plain")
    tiny("visformer")
    assert products.description() == str(products.current()) == ONE
    assert products.current() == Products(dict.fromkeys(CLASSES, Ways(("convolution",) * 3, "blas")), "plain")


def test_one_class_of_shapes_has_its_own_products() -> None:
    need_onednn()
    text = "blas,onednn,plain; few-wide-narrow convolution,blas; most-narrow-wide onednn/onednn/blas,convolution"
    chosen = products.use(text)
    assert str(chosen) == text
    assert chosen.linear["some-wide-wide"] == Ways(("blas",) * 3, "onednn")
    assert chosen.linear["most-narrow-wide"] == Ways(("onednn", "onednn", "blas"), "convolution")


def test_every_shape_has_a_class() -> None:
    seen = {
        products.shape_class(rows, channels_in, channels_out)
        for rows in (1, 127, 128, 1023, 1024, 4095, 4096, 16383, 16384, 10**9)
        for channels_in in (1, 256, 257, 10**6)
        for channels_out in (1, 256, 257, 10**6)
    }
    assert seen == set(CLASSES)
    assert products.shape_class(127, 256, 256) == "fewest-narrow-narrow"
    assert products.shape_class(1023, 256, 257) == "few-narrow-wide"
    assert products.shape_class(16384, 257, 256) == "most-wide-narrow"


@pytest.mark.parametrize(
    "wrong",
    [
        "blas",
        "fused,blas,plain",
        "blas,blas,slow",
        "blas,blas,plain,plain",
        "blas/blas,blas,plain",
        "blas/blas/convolution,blas,plain",
        "blas,blas,plain; many-rows blas,blas",
        "blas,blas,plain; most-narrow-wide blas",
        "blas,blas,plain;",
        "",
        "x" * 10_000,
    ],
)
def test_wrong_names_are_refused(wrong: str) -> None:
    with pytest.raises(
        ValueError, match=r"FOURSTAGE_PRODUCTS names the products for training.*\(fewest, few,"
    ) as error:
        products.use(wrong)
    assert len(str(error.value)) < 500


# ------------------------------------------------------------------------------------------------- which is quicker


class Clock:
    """A stopwatch on which each function takes the seconds that it appends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for name in ("perf_counter", "thread_time"):
            monkeypatch.setattr(measure, name, lambda: self.now)

    def taking(self, *seconds: float) -> Callable[[], None]:
        """A function that takes these times in turns."""
        times = itertools.cycle(seconds)

        def run() -> None:
            self.now += next(times)

        return run


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("plain", "other", "best"),
    [
        ([1.0], [0.5], "other"),
        ([1.0], [2.0], "plain"),
        ([1.0], [0.97], "plain"),  # as good as the same
        ([1.0, 9.0, 1.0, 1.05], [7.0, 0.5, 0.52, 30.0], "other"),  # beside other work
        ([1.0, 1.0, 40.0], [5.0, 2.0, 2.0], "plain"),
    ],
)
def test_the_shortest_times_that_repeat_decide(
    plain: list[float], other: list[float], best: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert measure.quickest({"plain": clock.taking(*plain), "other": clock.taking(*other)}) == best


@pytest.mark.parametrize(
    ("factor", "best"),
    [(0.5, "other"), (0.9, "other"), (0.97, "plain"), (1.3, "plain")],  # of the plain form's time in the same turn
)
def test_where_times_never_repeat_the_turns_decide(factor: float, best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    slower = [1.2**turn for turn in range(measure.MOST)]
    other = [factor * seconds for seconds in slower]
    other[3] *= 9  # one turn is disturbed
    forms = {"plain": clock.taking(*slower), "other": clock.taking(*other)}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert measure.quickest(forms) == best
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(measure.UnsureError):
        measure.quickest(forms)


def test_a_form_that_wins_by_chance_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    plain = [1.2**turn for turn in range(measure.MOST)]
    other = [seconds * (0.5 if turn % 4 else 2.0) for turn, seconds in enumerate(plain)]  # three turns of four
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert measure.quickest({"plain": clock.taking(*plain), "other": clock.taking(*other)}) == "plain"


def test_a_clock_that_is_too_coarse_leaves_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the clock of a thread is on Windows, which has steps of 16 ms: nearly all times are 0."""
    clock = Clock(monkeypatch)
    forms = {"plain": clock.taking(*[0.0] * 7, 0.016), "other": clock.taking(*[0.0] * 5, 0.016, 0.0)}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert measure.quickest(forms) == "plain"


@pytest.mark.usefixtures("small")
def test_on_a_busy_machine_one_thread_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, before = [], torch.get_num_threads()

    def unsure(forms: Mapping[str, Callable[[], object]]) -> str:
        threads.append(torch.get_num_threads())
        if torch.get_num_threads() > 1:
            raise measure.UnsureError
        return next(iter(forms))

    monkeypatch.setattr(measure, "quickest", unsure)
    try:
        torch.set_num_threads(2)
        assert measure.measured() == Products()
        assert threads[0] == 2
        assert set(threads[1:]) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
