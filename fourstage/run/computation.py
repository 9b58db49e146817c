"""The record of what the machine chose, and what the bits of a run depend on: `computation.json` in the run folder.

It is written before the first step, and each checkpoint has a copy under the key "computation". A continued run, an
evaluation and a prediction take these choices, so that they give the same bits as the run did. A record may come from
somebody else's folder, so each value is checked before it is used.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fourstage.documents import read_json
from fourstage.engine.devices import Ranks
from fourstage.engine.threads import keep_threads
from fourstage.files import write_text
from fourstage.ops import kept_choice, measure, products
from fourstage.ops.eager import has_fast_paths
from fourstage.run.folder import RunFolder

KEY = "computation"  # in a checkpoint
LARGEST = 2**16  # bytes of a record; ours has a few hundred


class Computation(BaseModel):
    """What a run computes with. Keys that this version does not know are left out.

    Attributes:
        products: `str` of `ops.products.Products`, or "plain" where fast paths are turned off.
        threads: of torch, in each process.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    products: Annotated[str, Field(max_length=LARGEST)]
    threads: Annotated[int, Field(ge=1, le=2**16)] | None = None

    def as_plain(self) -> dict[str, Any]:
        """Return the values for JSON or a checkpoint."""
        return self.model_dump(mode="json")


def current() -> Computation:
    """Return what this process computes with now."""
    return Computation(products=products.description(), threads=torch.get_num_threads())


def entry(device: torch.device) -> dict[str, Any]:
    """Return what a checkpoint holds of this: the record under `KEY`; nothing where the device has no choice."""
    return {KEY: current().as_plain()} if has_fast_paths(device) else {}


def settle(
    folder: RunFolder,
    state: Mapping[str, Any] | None,
    ranks: Ranks,
    device: torch.device,
    in_new_run: Callable[[], None] = lambda: None,
) -> None:
    """Compute as the run did before, and write the record. In a new run, all processes follow the first one's choice.

    Args:
        state: of the last checkpoint; None: the run has none.
        in_new_run: chooses what else is to be recorded, such as the number of threads.
    """
    if not has_fast_paths(device):
        return
    before = (of_checkpoint(state) if state is not None else None) or read(folder.computation)
    _use(before, ranks)
    if before is not None and before.threads is not None:
        keep_threads(before.threads)
    elif state is None:
        in_new_run()
    if ranks.first and (now := current()) != read(folder.computation):
        write_text(folder.computation, now.model_dump_json(indent=2))


def take(checkpoint: Mapping[str, Any], folder: RunFolder | None, ranks: Ranks) -> None:
    """Compute as the run of a checkpoint did: as its record says, else as that of the folder.

    Without a record, the choice that is kept on this machine is taken, and PyTorch's own products where none can be
    kept. So a stopwatch never makes the results of two evaluations differ.
    """
    before = of_checkpoint(checkpoint) or (read(folder.computation) if folder is not None else None)
    kept = products.asked() or kept_choice.read() or products.Products()
    _use(before or Computation(products=ranks.gather({str(ranks.rank): str(kept)})["0"]), ranks)


def of_checkpoint(content: Mapping[str, Any]) -> Computation | None:
    """Return the record in a checkpoint; None: it has none that this version reads."""
    conditions = content.get("conditions")
    earlier = None
    if isinstance(conditions, Mapping):
        earlier = {"products": conditions.get("products"), "threads": conditions.get("threads")}
    for values in (content.get(KEY), earlier):  # runs of earlier versions have the second one alone
        try:
            return Computation.model_validate(values)
        except ValidationError:
            continue
    return None


def read(path: Path) -> Computation | None:
    """Return the record in a file; None: there is none that this version reads, so that the choice is made again."""
    try:
        return Computation.model_validate(read_json(path, most_bytes=LARGEST))
    except (OSError, ValueError):
        return None


def _use(before: Computation | None, ranks: Ranks) -> None:
    """Use the products of a record, or those that the first process chooses where this machine lacks them."""
    try:
        products.use(before.products if before is not None else "")
    except ValueError:  # nothing is recorded, or a machine without these products: training reports the latter
        products.use(ranks.gather({str(ranks.rank): str(measure.choose_products())})["0"])
