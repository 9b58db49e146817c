"""The loop, with a task that is none of ours: several losses, iteration lengths, records that are lists."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fourstage.engine.devices import Ranks
from fourstage.engine.log import RunLog
from fourstage.engine.loop import Loop, Plan
from fourstage.engine.optim import build_optimizer, norm_or_bias, param_groups
from fourstage.engine.schedule import Schedule
from fourstage.engine.state import load_state
from fourstage.engine.step import Halt, train_step
from fourstage.engine.stop import StopRequest
from fourstage.engine.training import Training, averaged
from fourstage.progress import Bar

CPU = torch.device("cpu")


@dataclass
class Numbers:
    """A batch of another kind than images."""

    ids: tuple[str, ...]
    x_BC: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Numbers":
        return Numbers(self.ids, self.x_BC.to(device))


class TwoLosses(nn.Module):
    main_metric = "box_ap"

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))

    def forward(self, batch: Numbers) -> dict[str, Tensor]:
        out_B4 = self.body(batch.x_BC)
        return {"loss_box": (out_B4[:, :2] - 1).square().mean(), "loss_mask": (out_B4[:, 2:] + 1).abs().mean()}

    def predict(self, batch: Numbers) -> dict[str, Mapping[str, Any]]:
        return {id: {"boxes": row.tolist()} for id, row in zip(batch.ids, self.body(batch.x_BC), strict=True)}

    def score(self, records: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        return {"box_ap": -sum(abs(record["boxes"][0] - 1) for record in records.values()) / len(records)}


def numbers(step: int) -> Numbers:
    generator = torch.Generator().manual_seed(step)
    return Numbers(tuple(f"{step}-{i}" for i in range(6)), torch.randn(6, 8, generator=generator))


def batches(first: int, last: int) -> Iterator[list[Numbers]]:
    return ([numbers(2 * step), numbers(2 * step + 1)] for step in range(first, last))


def training(seed: int = 0) -> Training:
    torch.manual_seed(seed)
    task = TwoLosses()
    groups = param_groups(task.named_parameters(), weight_decay=0.1, spared=norm_or_bias)
    optimizer = build_optimizer(groups, name="adamw", lr=1e-2, betas=(0.9, 0.999), eps=1e-8, momentum=0.9)
    return Training(task, optimizer, torch.amp.GradScaler("cpu", enabled=False), averaged(task, 0.9))


def run(
    folder: Path, total: int, until: int | None = None, change: Callable[[Loop], None] = lambda loop: None
) -> Training:
    """Train in `folder`; continue where it stands; stop to stop after step `until`."""
    state = load_state(folder / "last.pt") if (folder / "last.pt").exists() else None
    at = training()
    if state:
        at.restore(state)
        at.window = dict(state["windows"]["0"])
    stop = StopRequest()

    def evaluate(task: nn.Module, stop: StopRequest) -> Mapping[str, float]:
        assert isinstance(task, TwoLosses)
        with torch.no_grad():
            return task.score(task.predict(numbers(999)))

    def watched() -> Iterator[list[Numbers]]:
        for step, parts in enumerate(batches(at.step, total), at.step):
            if until is not None and step + 1 >= until:
                stop.name = "SIGTERM"
            yield parts

    plan = Plan(total=total, steps_per_epoch=5, evaluate_every=4, checkpoint_every=3, log_every=4)
    loop = Loop(
        training=at, plan=plan, schedule=Schedule(1e-2, total, warmup=3), batches=watched(),
        batches_of=lambda step: next(batches(step, total)),
        evaluate=evaluate,
        main_metric="box_ap", checkpoints=folder, keep={"classes": []}, ranks=Ranks(), device=CPU,
        autocast=torch.autocast("cpu", torch.bfloat16, enabled=False), grad_clip=1.0, seed=0,
    )  # fmt: skip
    change(loop)
    log = RunLog(folder, state["log"] if state else 0, at.step)
    with log, Bar("training", total, at.step, show=False) as bar:
        loop.run(bar, stop, log)
    return at


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for line in found:
        line.pop("timing", None)
    return found


def assert_same_bits(a: Any, b: Any) -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, Mapping):
        assert a.keys() == b.keys()
        for key in a:
            if key != "seconds":
                assert_same_bits(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same_bits(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("stops", [[1], [3], [4], [5], [2, 3, 8], [7, 9], [11]])
def test_a_stopped_training_continues_bit_for_bit(tmp_path: Path, stops: list[int]) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    expected = run(whole, 11)
    for stop in stops:
        run(broken, 11, until=stop)
    actual = run(broken, 11)
    assert_same_bits(expected.state(), actual.state())
    assert lines(whole) == lines(broken)


def test_losses_are_logged_by_name_and_evaluations_by_step(tmp_path: Path) -> None:
    run(tmp_path, 11)
    told = lines(tmp_path)
    trained = [line for line in told if line["kind"] == "train"]
    assert [line["step"] for line in trained] == [4, 8, 11]
    assert trained[0]["losses"].keys() == {"loss_box", "loss_mask"}
    assert trained[0]["total"] == pytest.approx(sum(trained[0]["losses"].values()))
    evaluated = [(line["step"], line["which"]) for line in told if line["kind"] == "evaluation"]
    assert evaluated == [(step, which) for step in (4, 8, 11) for which in ("model", "ema")]


class Device(Ranks):
    """A device that completes its steps when the host reads a number."""

    def mean(self, value: Tensor) -> Tensor:
        time.sleep(0.1)
        return value


def test_the_time_of_a_training_includes_steps_that_the_device_completes_later(tmp_path: Path) -> None:
    run(tmp_path, 8, change=lambda loop: setattr(loop, "ranks", Device()))
    told = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    seconds = [line["timing"]["seconds"] for line in told if line["kind"] == "train"]
    assert len(seconds) == 2
    assert seconds[0] >= 0.1
    assert seconds[1] >= 0.2


def test_the_best_checkpoint_is_the_best_evaluation(tmp_path: Path) -> None:
    run(tmp_path, 11)
    evaluations = [line for line in lines(tmp_path) if line["kind"] == "evaluation"]
    best = max(evaluations, key=lambda line: line["metrics"]["box_ap"])
    state = load_state(tmp_path / "best.pt")
    assert (state["value"], state["step"], state["which"]) == (best["metrics"]["box_ap"], best["step"], best["which"])


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    def poison(loop: Loop) -> None:
        def forward(task: nn.Module) -> nn.Module:
            task.register_forward_pre_hook(lambda module, inputs: _blow_up(loop, inputs[0]))
            return task

        loop.forward = forward

    with pytest.raises(ValueError, match=r"no longer a finite number at step [78]"):
        run(tmp_path, 11, change=poison)
    state = load_state(tmp_path / "last.pt")
    assert state["step"] == 6
    assert all(value.isfinite().all() for value in state["model"].values())


def _blow_up(loop: Loop, batch: Numbers) -> None:
    if loop.training.step == 6:
        batch.x_BC.fill_(float("nan"))


def test_every_step_has_the_schedules_rate_and_draws_of_its_own(tmp_path: Path) -> None:
    rates: list[float] = []
    masks: list[Tensor] = []

    def watch(loop: Loop) -> None:
        loop.training.optimizer.register_step_pre_hook(
            lambda optimizer, args, kwargs: rates.append(optimizer.param_groups[0]["lr"])
        )
        task = loop.training.task
        assert isinstance(task, TwoLosses)
        task.body[3].register_forward_pre_hook(lambda module, inputs: (torch.ones_like(inputs[0]),))
        task.body[3].register_forward_hook(
            lambda module, inputs, out: masks.append((out == 0).float()) if module.training else None
        )

    run(tmp_path, 11, change=watch)
    schedule = Schedule(1e-2, 11, warmup=3)
    assert rates == [schedule.lr(step) for step in range(11)]
    assert [line["lr"] for line in lines(tmp_path) if line["kind"] == "train"] == [rates[3], rates[7], rates[10]]
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == len(masks)


def test_a_gradient_is_clipped_to_its_norm() -> None:
    task = TwoLosses().eval()
    before = [p.detach().clone() for p in task.parameters()]
    off = torch.autocast("cpu", torch.bfloat16, enabled=False)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    logged = train_step(
        task,
        [numbers(0)],
        torch.optim.SGD(task.parameters(), lr=0.5),
        scaler,
        autocast=off,
        grad_clip=1e-3,
        halt=Halt(CPU, 0),
    )
    moved = torch.cat([(a - b).flatten() for a, b in zip(task.parameters(), before, strict=True)]).norm()
    assert logged["grad_norm"] > 0.1
    assert moved.item() == pytest.approx(0.5e-3, rel=1e-3)


def test_an_infinite_gradient_stops_too(tmp_path: Path) -> None:
    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return grads[0] * float("inf")

    def break_backward(loop: Loop) -> None:
        task = loop.training.task
        assert isinstance(task, TwoLosses)
        task.body[0].register_forward_hook(
            lambda module, inputs, out: Steep.apply(out) if loop.training.step == 2 else None
        )

    with pytest.raises(ValueError, match="grad_norm is no longer a finite number"):
        run(tmp_path, 11, change=break_backward)


def test_the_first_of_equals_is_the_best(tmp_path: Path) -> None:
    def level(loop: Loop) -> None:
        loop.evaluate = lambda task, stop: {"box_ap": 1.0}

    run(tmp_path, 11, change=level)
    state = load_state(tmp_path / "best.pt")
    assert (state["step"], state["which"]) == (4, "model")


def test_data_that_cannot_be_read_costs_no_step_that_was_made(tmp_path: Path) -> None:
    def break_data(loop: Loop) -> None:
        def some() -> Iterator[list[Numbers]]:
            yield from batches(0, 5)
            raise ValueError("cat.jpg cannot be read")

        loop.batches = some()

    with pytest.raises(ValueError, match="cat"):
        run(tmp_path, 11, change=break_data)
    assert load_state(tmp_path / "last.pt")["step"] == 5


def test_a_second_ctrl_c_is_heard_at_once() -> None:
    import signal

    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.name == "Ctrl-C"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.name == "SIGTERM"


def test_nan_is_never_the_best(tmp_path: Path) -> None:
    values = iter([1.0, 2.0, float("nan"), 0.5, 0.1, 0.2])

    def scripted(loop: Loop) -> None:
        loop.evaluate = lambda task, stop: {"box_ap": next(values)}

    run(tmp_path, 11, change=scripted)
    assert load_state(tmp_path / "best.pt")["value"] == 2.0


def test_a_loss_that_comes_and_goes_is_refused() -> None:
    at = training()
    at.add({"loss_box": torch.tensor(1.0)})
    with pytest.raises(AssertionError, match="not left out"):
        at.add({"loss_mask": torch.tensor(1.0)})


def test_the_average_of_an_index_is_the_index() -> None:
    from fourstage import create_model

    network = create_model("swin_tiny")
    ema = averaged(network, 0.9999)
    assert ema is not None
    for _ in range(3):
        ema.update_parameters(network)
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, ema.module.get_buffer(name)), name
    with torch.no_grad():
        network.get_parameter("head.bias").fill_(1.0)
    ema.update_parameters(network)
    assert 0 < ema.module.get_parameter("head.bias").mean() < 1e-3


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_a_first_step_that_float16_skips_leaves_nothing_behind(name: str) -> None:
    def updated(*sizes: float) -> Tensor:
        task = training().task.eval()
        groups = param_groups(task.named_parameters(), weight_decay=0.1, spared=norm_or_bias)
        optimizer = build_optimizer(groups, name=name, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, momentum=0.9)
        off, halt = torch.autocast("cpu", torch.bfloat16, enabled=False), Halt(CPU, 0)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
        for size in sizes:
            batch = Numbers(("a", "b"), torch.full((2, 8), size))
            logged = train_step(task, [batch], optimizer, scaler, autocast=off, grad_clip=1.0, halt=halt)
            assert logged["skipped"].item() == (size > 1)
        return torch.cat([p.detach().flatten() for p in task.parameters()])

    torch.use_deterministic_algorithms(True)  # fills what is allocated without a value with NaN
    try:
        assert torch.equal(updated(1e10, 1e-3, 1e-2), updated(1e-3, 1e-2))
    finally:
        torch.use_deterministic_algorithms(False)


def test_float16_counts_what_the_scaler_skips() -> None:
    at = training()
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    off = torch.autocast("cpu", torch.bfloat16, enabled=False)
    before = [p.clone() for p in at.task.parameters()]
    large = Numbers(("a", "b"), torch.full((2, 8), 1e3))
    at.task.eval()
    logged = train_step(at.task, [large], at.optimizer, scaler, autocast=off, grad_clip=1.0, halt=Halt(CPU, 0))
    assert (logged["skipped"].item(), logged["grad_norm"].item()) == (1.0, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, at.task.parameters(), strict=True))


def test_accumulated_parts_are_one_batch() -> None:
    """Two parts of six give the gradient of one batch of twelve, for a network without batch statistics."""

    def updated(parts: list[Numbers]) -> list[Tensor]:
        at = training()
        at.task.eval()
        off = torch.autocast("cpu", torch.bfloat16, enabled=False)
        train_step(at.task, parts, at.optimizer, at.scaler, autocast=off, grad_clip=None, halt=Halt(CPU, 0))
        return [p.grad.clone() for p in at.task.parameters() if p.grad is not None]

    a, b = numbers(0), numbers(1)
    together = Numbers(a.ids + b.ids, torch.cat([a.x_BC, b.x_BC]))
    for split, whole in zip(updated([a, b]), updated([together]), strict=True):
        torch.testing.assert_close(split, whole)


def test_groups_spare_vectors_and_scale_rates() -> None:
    task = TwoLosses()
    groups = param_groups(
        task.named_parameters(), weight_decay=0.1, spared=norm_or_bias, lr_multipliers={"body": 0.5, "body.4": 0.1}
    )
    by_name = {name: (group["weight_decay"], group["lr_scale"]) for group in groups for name in group["names"]}
    assert by_name["body.0.weight"] == (0.1, 0.5)
    assert by_name["body.1.weight"] == (0.0, 0.5)
    assert by_name["body.4.weight"] == (0.1, 0.1)
    assert by_name["body.4.bias"] == (0.0, 0.1)
    assert len(by_name) == len(list(task.parameters()))


def test_a_stop_of_another_process_in_the_last_evaluation_is_no_end(tmp_path: Path) -> None:
    """This process received no signal: `evaluate` returns nothing, because another one was asked to stop."""
    stops: list[StopRequest] = []

    def stopped(task: nn.Module, stop: StopRequest) -> None:
        stops.append(stop)

    run(tmp_path, 4, change=lambda loop: setattr(loop, "evaluate", stopped))
    assert [stop.name for stop in stops] == ["another process"]
