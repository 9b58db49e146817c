"""Forward passes and steps on the first images of a training, before anything is written. They change nothing."""

from collections.abc import Callable, Sequence

import torch

from fourstage.data.sample import Batch
from fourstage.engine.batch_statistics import enough_values
from fourstage.engine.training import set_training_mode, unchanged_buffers
from fourstage.methods import METHODS
from fourstage.run import build
from fourstage.run.checks import failed_on_image
from fourstage.run.setup import Setup
from fourstage.run.task_protocol import AnyTask
from fourstage.user_files import where_raised


def try_losses(setup: Setup, task: AnyTask, batches: Sequence[Batch]) -> None:
    """Compute the losses of one batch with a user's own method. Raises ValueError where it fails."""
    method = getattr(setup.recipe, "method", None)
    if method is None or method in METHODS:
        return
    set_training_mode(task.to(setup.device))
    try:
        with torch.no_grad(), build.autocast(setup.recipe, setup.device), enough_values():
            task(batches[0].to(setup.device))
    except ValueError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{method} failed on a batch of the training data ({type(error).__name__}: {reason}, at "
            f"{where_raised(error)}); correct it"
        ) from error


def try_smallest_image(setup: Setup, task: AnyTask, batch: Batch) -> None:
    """Run the smallest image of a batch through the backbone. Raises ValueError where it fails."""
    network = getattr(task.network, "backbone", task.network)
    height, width = min(batch.sizes, key=lambda size: size[0] * size[1])
    index, divisor = batch.sizes.index((height, width)), setup.protocol.size_divisor
    height, width = (-(-side // divisor) * divisor for side in (height, width))
    image_1CHW = batch.images_BCHW[index : index + 1, :, :height, :width].to(setup.device)
    task.to(setup.device).eval()
    try:
        with torch.no_grad(), build.autocast(setup.recipe, setup.device):
            network(image_1CHW)
    except (AssertionError, LookupError, TypeError) as error:  # of a user's own network, or of timm's
        raise ValueError(failed_on_image(setup.recipe.network_name, (height, width), error)) from error


def try_single_image(setup: Setup, task: AnyTask) -> None:
    """Compute the losses of one image where a micro-batch has no more, and leave the task as it is.

    Raises:
        ValueError: a batch norm needs more values than one image has.
    """
    if setup.order.micro_batch > 1:
        return
    batch = setup.batches_of(0)[0].to(setup.device)
    set_training_mode(task.to(setup.device))
    with torch.no_grad(), unchanged_buffers(task), build.autocast(setup.recipe, setup.device), enough_values():
        task(batch)


def trial_step(setup: Setup, task: AnyTask) -> Callable[[], None]:
    """Return what computes the gradients of the first step and leaves the task as it is."""
    batches: list[Batch] = []

    def step() -> None:
        if not batches:
            batches.append(setup.batches_of(0)[0].to(setup.device))
        set_training_mode(task)
        with unchanged_buffers(task):
            with build.autocast(setup.recipe, setup.device), enough_values():
                losses = task(batches[0])
            torch.stack([loss.float() for loss in losses.values()]).sum().backward()
            task.zero_grad(set_to_none=True)

    return step
