"""Compare our networks with the same networks in timm: speed, peak memory of a training step, share of the products.

    python benchmarks/beside_timm.py [--models 'swin*'] [--threads 2] [--seconds 20] [--cpu-time]

Ours, timm's in its default memory format and timm's in channels-last take turns in each round: inference and a training
step, batch 8, 224 pixels, float32, eager. The ratio is the time of timm's quicker form (by its median) over
ours, round by round; the table has its median and quartiles. The share is that of matrix products, each at its
quickest, in our time; see `fourstage bench --floor`. On two cores the whole table takes about ten minutes.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from rich.console import Console
from rich.table import Table

from fourstage.bench import floor, memory, timing
from fourstage.bench.options import Options
from fourstage.bench.results import WORDS
from fourstage.bench.run import BATCH, environment, load_model, set_up
from fourstage.bench.timing import Spread
from fourstage.bench.workloads import Setting, free_memory
from fourstage.progress import Bar

PEERS = {
    "swin_tiny": "timm/swin_tiny_patch4_window7_224",
    "swin_small": "timm/swin_small_patch4_window7_224",
    "visformer_tiny": "timm/visformer_tiny",
    "visformer_small": "timm/visformer_small",
    "official_pvt_v2_b0": "timm/pvt_v2_b0",
}
HEAD = ("model", "mode", "ms", "timm ms", "channels-last ms", "x timm", "quartiles", "MiB x timm", "products' share")


@dataclass(frozen=True)
class Verdict:
    """One network in one mode. Times are seconds a step.

    Attributes:
        ratio: timm's quicker form, by its median, over ours, round by round.
        memory: our peak memory over timm's; None: it is not known.
        share: of the products in our time; None: not measured yet.
    """

    model: str
    mode: str
    ours: Spread
    timm: Spread
    channels_last: Spread
    ratio: Spread
    memory: float | None
    share: Spread | None = None

    def cells(self) -> list[str]:
        times = [f"{1e3 * spread.median:.0f}" for spread in (self.ours, self.timm, self.channels_last)]
        ratio = [f"{self.ratio.median:.2f}", f"{self.ratio.low:.2f} to {self.ratio.high:.2f}"]
        memory = "-" if self.memory is None else f"{self.memory:.2f}"
        share = (
            "-" if self.share is None else f"{self.share.median:.2f} ({self.share.low:.2f} to {self.share.high:.2f})"
        )
        return [self.model, WORDS[self.mode], *times, *ratio, memory, share]


def judge(model: str, options: Options) -> list[Verdict]:
    """Compare one network in all modes of the options, without the products' share."""
    setting, channels_last = set_up(options), set_up(replace(options, channels_last=True))
    peaks = peak_ratios(model, options)
    out = []
    for mode in options.modes():
        times = rounds_of(model, mode, setting, channels_last)
        quicker = min(times[1:], key=statistics.median)  # the lesser of both in each round is lower by chance
        free_memory(setting.device)
        ours, timm, last = (timing.spread(one) for one in times)
        out.append(Verdict(model, mode, ours, timm, last, timing.ratio(quicker, times[0]), peaks[mode]))
    return out


def rounds_of(model: str, mode: str, setting: Setting, channels_last: Setting) -> list[list[float]]:
    """Return the seconds of a step in each round: ours, timm's, and timm's in channels-last."""
    batch, watch, seconds = setting.options.batch_size or BATCH["cpu"], setting.watch(), setting.options.seconds
    steps = []
    for name, its in ((model, setting), (PEERS[model], setting), (PEERS[model], channels_last)):
        loaded = load_model(name, its)
        steps.append(its.step(mode, loaded.model.train(mode == "train"), batch, loaded.image_CHW))
    for step in steps:
        step()
    paces = [timing.pace(step, watch) for step in steps]
    rounds = timing.rounds_for(paces, seconds)
    turns = [timing.throughput_turn(step, pace, seconds, rounds) for step, pace in zip(steps, paces, strict=True)]
    return [[value for (value,) in one] for one in timing.run_rounds(turns, rounds, watch, lambda: None)]


def peak_ratios(model: str, options: Options) -> dict[str, float | None]:
    """Return our peak memory over timm's by mode."""
    batch, modes = options.batch_size or BATCH["cpu"], options.modes()
    try:
        ours, theirs = (memory.peaks_on_cpu(name, options, modes, batch) for name in (model, PEERS[model]))
    except ValueError:  # a system that reports no peak
        return dict.fromkeys(modes)
    pairs = {mode: (ours[mode], theirs[mode]) for mode in modes}
    return {mode: a / b if a and b else None for mode, (a, b) in pairs.items()}


def run(models: Sequence[str], options: Options, *, quiet: bool = False) -> list[Verdict]:
    """Compare the networks one after the other."""
    out = []
    with environment(options), Bar("beside timm", 2 * len(models), show=not quiet) as bar:
        for done, model in enumerate(models):
            bar.update(done, model)
            out += judge(model, options)
        # all shares come last, since the process keeps more freed memory from the first one on
        for done, verdict in enumerate(out):
            bar.update(len(models) + done // len(options.modes()), f"{verdict.model}: products")
            out[done] = replace(verdict, share=floor.floor_of(verdict.model, verdict.mode, set_up(options)).share)
    return out


def show(verdicts: Sequence[Verdict]) -> None:
    table = Table(*HEAD, box=None, pad_edge=False, header_style="bold")
    for verdict in verdicts:
        table.add_row(*verdict.cells())
    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe has no width: cut nothing off
        console = Console(highlight=False, width=200)
    console.print(table)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    top.add_argument("--models", default="*", metavar="PATTERN", help=f"wildcard; default: all of {', '.join(PEERS)}")
    top.add_argument("--threads", type=int, metavar="N")
    top.add_argument("--seconds", type=float, default=20.0, metavar="S", help="for each network and mode; default: 20")
    top.add_argument("--batch-size", type=int, default=8, metavar="N")
    top.add_argument("--inference-only", action="store_true", help="leave the training step out")
    top.add_argument("--cpu-time", action="store_true", help="count processor seconds, for a machine that is shared")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    models = [model for model in PEERS if fnmatchcase(model, args.models)]
    try:
        if not models:
            raise ValueError(f"no network matches {args.models!r}; there are {', '.join(PEERS)}")
        options = Options(
            device="cpu",
            batch_size=args.batch_size,
            seconds=args.seconds,
            threads=args.threads,
            train=not args.inference_only,
            clock="cpu" if args.cpu_time else "wall",
        )
        show(run(models, options))
    except ValueError as error:
        print(f"beside_timm: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
