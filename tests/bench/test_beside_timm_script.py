"""benchmarks/beside_timm.py: its names, and a run over networks so small that it takes seconds."""

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from fourstage import registry
from fourstage.bench import memory
from fourstage.bench.options import Options

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "beside_timm.py"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("benchmark_beside_timm", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_both_sides_of_the_table_are_there(script: ModuleType) -> None:
    import timm

    for ours, theirs in script.PEERS.items():
        assert registry.find(ours).name == ours
        assert timm.is_model(theirs.removeprefix("timm/"))


def test_timms_quicker_format_is_that_of_the_lower_median(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, noisy, other, slow = [1.0] * 3, [2.0, 6.0, 2.5], [3.0, 2.2, 3.0], [4.0] * 3
    monkeypatch.setattr(script, "peak_ratios", lambda *_: {"infer": None})
    for timm, channels_last, expected in ((noisy, other, 2.5), (other, noisy, 2.5), (other, slow, 3.0)):
        times = [ours, timm, channels_last]
        monkeypatch.setattr(script, "rounds_of", lambda *_, times=times: times)
        (verdict,) = script.judge("swin_tiny", Options(device="cpu", seconds=1))
        assert verdict.ratio.median == expected


def test_a_run_prints_ratio_memory_and_share(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = iter((3, 4))  # ours first

    def peaks(name: str, options: Options, modes: Sequence[str], batch: int) -> dict[str, int]:
        return dict.fromkeys(modes, next(sizes))

    monkeypatch.setattr(memory, "peaks_on_cpu", peaks)
    monkeypatch.setattr(script, "PEERS", {"visformer_digits": "visformer_digits"})
    options = Options(batch_size=1, seconds=0.05, train=True, device="cpu")
    verdicts = script.run(["visformer_digits"], options, quiet=True)
    assert [verdict.mode for verdict in verdicts] == ["infer", "train"]
    for verdict in verdicts:
        assert verdict.memory == 0.75
        assert 0 < verdict.ratio.low <= verdict.ratio.median <= verdict.ratio.high
        assert verdict.ours.median > 0
        assert 0 < verdict.share.median < 1
    script.show(verdicts)
    assert "visformer_digits  inference" in capsys.readouterr().out
    assert script.main(["--models", "nothing"]) == 2
