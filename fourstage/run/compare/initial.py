"""Initial weights that arms share: parameters of the same name and shape begin with the values of the reference."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fourstage.engine.state import save_state
from fourstage.recipe import Recipe
from fourstage.run.compare.grid import Arm, Cell
from fourstage.run.folder import RunFolder
from fourstage.run.splits import open_split
from fourstage.run.task_protocol import protocol_of
from fourstage.user_files import import_files

KEPT = 3  # components of a path that a move of the comparison keeps: ARM/initial/seed-0.pt


def initial_weights(cell: Cell, reference: Arm) -> list[str]:
    """Write the initial weights of a cell if they are not those of its seed alone; return the change that names them.

    Networks of the same layers draw the same weights from a seed. Others draw in another order, so that even the layers
    that they share would begin differently; these get the reference's weights. A recipe that starts from a checkpoint
    keeps it.
    """
    if cell.arm == reference or cell.arm.recipe.weights is not None or reference.recipe.weights is not None:
        return []
    path = initial_file(cell)
    if not path.is_file():
        own, theirs = _fresh(cell.arm.recipe, cell.seed), _fresh(reference.recipe, cell.seed)
        state, shared = shared_state(own.state_dict(), theirs.state_dict())
        if not shared or _same_layers(own, theirs):
            return []
        path.parent.mkdir(parents=True, exist_ok=True)
        save_state(path, {"model": state})
    return [f"weights={path}"]


def initial_file(cell: Cell) -> Path:
    return cell.folder.parent / "initial" / f"seed-{cell.seed}.pt"


def shared_state(own: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Return a state with the other's tensors where name, shape and type agree, and how many numbers these hold."""
    agree = {
        name
        for name, tensor in own.items()
        if name in theirs and theirs[name].shape == tensor.shape and theirs[name].dtype == tensor.dtype
    }
    state = {name: (theirs if name in agree else own)[name].detach().clone() for name in own}
    return state, sum(own[name].numel() for name in agree)


def _same_layers(own: nn.Module, theirs: nn.Module) -> bool:
    shapes = [{name: tensor.shape for name, tensor in one.state_dict().items()} for one in (own, theirs)]
    return shapes[0] == shapes[1]


def _fresh(recipe: Recipe, seed: int) -> nn.Module:
    """Return the network of a recipe with the weights that its training would begin with."""
    import_files(recipe.imports)
    protocol = protocol_of(recipe.model_copy(update={"seed": seed}))
    data = open_split(protocol, "train", show=False)
    state = torch.get_rng_state()
    try:
        return protocol.build_task(data.classes, protocol.dataset_metadata(data)).network
    finally:
        torch.set_rng_state(state)


def follow_move(cell: Cell) -> None:
    """Name the initial weights of a cell that has begun by their present path: the comparison may have been moved."""
    folder, path = RunFolder(cell.folder), initial_file(cell)
    if not folder.begun:
        return
    before = folder.recipe().weights
    if before is not None and before != str(path) and Path(before).parts[-KEPT:] == path.parts[-KEPT:]:
        folder.name_weights(str(path))


def remove_initial(folder: Path) -> None:
    """Remove the initial weights of a cell that has ended; its run folder holds all that is needed from then on."""
    (folder.parent / "initial" / f"{folder.name}.pt").unlink(missing_ok=True)
