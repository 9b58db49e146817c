"""From a run, a checkpoint or a name to a network of torch that is ready to predict; `open.py` is the door."""

from collections.abc import Iterable
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fourstage.api import list_models
from fourstage.build import try_on_meta
from fourstage.engine.devices import Ranks, choose_device
from fourstage.files import is_hub_name, typed
from fourstage.predict.predictor import Predictor
from fourstage.predict.tasks import image_predictor
from fourstage.recipe import Recipe, from_mapping, list_recipes, resolve
from fourstage.registry import find
from fourstage.resources import sentences
from fourstage.run import computation
from fourstage.run.complete_checkpoints import fitting_recipes, published_of
from fourstage.run.described import check_recipe_of_file, classes_of, metadata_of, recipe_of
from fourstage.run.folder import RunFolder
from fourstage.run.open import Options
from fourstage.run.pretrained.facts import find_facts
from fourstage.run.pretrained.save import Keeper
from fourstage.run.task_protocol import AnyProtocol, AnyTask, protocol_class, protocol_of
from fourstage.run_folders import DEFAULT, names_a_run, no_run
from fourstage.user_files import import_files, imports_option
from fourstage.weights import catalog, saved
from fourstage.weights.complete_checkpoints import fill_completely
from fourstage.weights.openmmlab.network import network_of_checkpoint
from fourstage.weights.reading import hub
from fourstage.weights.reading.safe import Checkpoint, read_checkpoint

YAML = (".yaml", ".yml")


@sentences("choose another device")
def load(source: str | Path, options: Options | None = None, *, batch_size: int = 1, show: bool = True) -> Predictor:
    """Return what `open.load` returns for all sources but exported files; arguments and errors as there."""
    o = options or Options()
    source, device = begin(source, o.weights, o.which, o.device, o.imports)
    protocol, task = load_task(source, o.weights, o.which)
    predicts = image_predictor(task.to(device).eval(), protocol.evaluation_transform(), o.threshold, o.tiling)
    here = str(Path(source).absolute()) if Path(source).exists() else source  # the working directory may change
    keeper = Keeper(protocol, task, partial(find_facts, here, o.weights, o.which, protocol.recipe))
    return Predictor(predicts, batch_size=batch_size, precision=o.precision, show=show, keeper=keeper)


def begin(
    source: str | Path, weights: str | Path | None, which: str, device: str, imports: Iterable[str | Path]
) -> tuple[str, torch.device]:
    """Run the user's files, which may register the network; return what `load_task` loads and the device, checked.

    Raises:
        ValueError, OSError: as `load`.
    """
    if not str(source):
        raise ValueError("the name of the network is empty; give a run folder, a checkpoint, a model or a recipe")
    torch_device = choose_device(device)
    import_files(imports)
    name = published_recipe(str(source))
    check_source(name, weights, which)
    return name, torch_device


def published_recipe(source: str) -> str:
    """Return the recipe of a published detector or segmentor whose catalogue name is `source`; else `source`."""
    model, tag = catalog.split(source)
    if tag is None or Path(source).exists() or model not in list_models():
        return source
    rows = catalog.published(find(model).name)
    return next((weight.recipe for weight in rows if weight.tag == tag and weight.recipe), source)


def check_source(source: str, weights: str | Path | None, which: str) -> None:
    """Raise ValueError unless `source` exists by name or as a file, and has weights."""
    if Path(source).exists():
        return
    if is_hub_name(source):
        if weights is not None:
            raise ValueError(f"{source} has its own weights; leave the other ones out, or name a model or a recipe")
        return
    if weights is None and which != "model":
        raise ValueError(
            f"published weights have no separate average; leave --which out, or add --weights FILE for {source}"
        )
    if source.endswith(YAML):
        return
    known, recipes = list_models(), list_recipes()
    if names_a_run(source, (*known, *recipes)):
        raise FileNotFoundError(no_run(Path(source)))
    model, tag = catalog.split(source)
    if model not in known:
        if source in recipes:
            _task_of_recipe(source)
            if weights is None:
                published_of(source)  # raises now where there is none to fetch
            return
        close = get_close_matches(source, [*known, *recipes], n=1)
        hint = f"did you mean {close[0]}?" if close else "`fourstage models` and `fourstage recipes` list the names"
        raise ValueError(f"there is no run folder, checkpoint, model or recipe {source!r}; {hint}")
    if weights is not None:
        return
    if not catalog.published(find(model).name):
        raise ValueError(f"no weights of {model} are published; add --weights FILE")
    catalog.find(find(model).name, tag)  # raises now where there is none to fetch


def load_task(source: str, weights: str | Path | None, which: str) -> tuple[AnyProtocol, AnyTask]:
    """Build the network that `source` names, with its weights.

    Raises:
        ValueError: there is no such model, recipe or run, it has no weights, or they do not fit.
    """
    path = Path(source)
    if is_hub_name(source) and not path.exists():
        return _load_from_hub(source, which)
    if path.is_dir() and weights is None and saved.is_folder(path):
        return _load_saved_by_any(read_checkpoint(path), hub.architecture_in(path / saved.CONFIG), which)
    if path.is_dir():
        run = RunFolder(path)
        recipe = run.recipe()  # first, to report a folder that is no run folder
        if weights is None:
            return _load_run(*_stored(run, which), recipe, run)
        return _load_run(read_checkpoint(weights), which, recipe, run)
    if source.endswith(YAML) or (not path.exists() and source in list_recipes()):
        return _load_named(_task_of_recipe(source), source, weights, which)
    if path.is_file():
        if weights is not None:
            raise ValueError(
                f"{source} is already a checkpoint; remove --weights, or name a model or a recipe before it"
            )
        return load_file(read_checkpoint(path), which)
    return _load_named("classification", source, weights, which)


def _load_from_hub(source: str, which: str) -> tuple[AnyProtocol, AnyTask]:
    """Build the network of a repository: its checkpoint describes it, or its config.json names it, as timm's do."""
    fetched = hub.fetch(source)
    return _load_saved_by_any(read_checkpoint(fetched.path), fetched.architecture, which)


def _load_saved_by_any(file: Checkpoint, architecture: str | None, which: str) -> tuple[AnyProtocol, AnyTask]:
    """Build the network of a checkpoint that describes itself, or for which timm's config.json names the network."""
    described = "fourstage_format" in file.metadata or "recipe" in file.content
    name = (architecture or "").removeprefix("fs_")  # of names that timm has for networks of its own
    if name in list_models() and not described:
        return _load_named("classification", name, file.path, which)
    return load_file(file, which)


def _load_named(task_name: str, source: str, weights: str | Path | None, which: str) -> tuple[AnyProtocol, AnyTask]:
    """Build the network of a model or a recipe."""
    protocol, task = protocol_class(task_name).from_name(source, weights)
    if weights is not None and which != "model":
        protocol.load_weights(task, weights, which)
    return protocol, task


def _task_of_recipe(source: str) -> str:
    """Return the task of a recipe. Raises ValueError for classification, where the model is to be named."""
    recipe = resolve(source).recipe
    if recipe.task == "classification":
        hint = f"name its model: predict {recipe.network_name} IMAGE --weights FILE"
        if names_a_run(source, ()):
            hint = f"name its run: predict {DEFAULT / source} IMAGE"
        raise ValueError(f"{source} is a classification recipe; {hint}")
    return recipe.task


def _stored(run: RunFolder, which: str) -> tuple[Checkpoint, str]:
    path, name = run.kept(which)
    return read_checkpoint(path), name


def load_file(file: Checkpoint, which: str = "model") -> tuple[AnyProtocol, AnyTask]:
    """Build the network of a checkpoint that describes itself: of a run, a saved or converted one, or of OpenMMLab.

    Raises:
        ValueError: the file does not say which network it is for, or that network predicts nothing or cannot be built.
    """
    described = saved.network_of(file) if saved.ENTRY in file.metadata else None
    if described is not None and (stored := saved.recipe_of_file(file)) is not None:
        return _load_saved(file, which, *stored)
    converted = file.metadata.get("model")
    if converted is not None and file.metadata.get("form") == "dense":
        raise ValueError(
            f"{file.path} holds a dense backbone, which returns feature maps and predicts nothing; build it with "
            f"fourstage.from_checkpoint({str(file.path)!r})"
        )
    if converted is not None and (described is None or described.method is None):
        return _load_named("classification", converted, file.path, which)
    if file.content.get("fourstage") == 1 and "recipe" in file.content:
        return _load_run(file, which, None)
    described = described or network_of_checkpoint(file)
    if described is None:
        fitting = fitting_recipes(file)
        name = fitting[0] if fitting else "MODEL"
        hint = "try" if fitting else "name it, from `fourstage models` or `fourstage recipes`:"
        raise ValueError(
            f"{file.path} does not say which network it is for; {hint} predict {name} IMAGE --weights "
            f"{typed(file.path)}"
        )
    protocol = protocol_of(recipe_of(described, file.path))
    check_recipe_of_file(protocol.recipe, file)
    try:
        try_on_meta(lambda: protocol.build_task(classes_of(described), metadata_of(described)), file)
        task = protocol.build_task(classes_of(described), metadata_of(described))
    except (RuntimeError, MemoryError, TypeError, ValueError) as error:  # such as sizes beyond any memory
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{file.path} describes a network that cannot be built here ({reason:.200}); name a recipe, and "
            f"add --weights {typed(file.path)}"
        ) from error
    fill_completely(task.network, file, which)
    return protocol, task


def _load_saved(
    file: Checkpoint, which: str, recipe: dict[str, Any], about: dict[str, Any]
) -> tuple[AnyProtocol, AnyTask]:
    """Build the network that a predictor or a run saved with its recipe."""
    protocol, task = _build_stored(file, None, recipe, about)
    protocol.load_weights(task, file.path, which)
    computation.take(about, None, Ranks())
    return protocol, task


def _load_run(
    file: Checkpoint, which: str, recipe: Recipe | None, run: RunFolder | None = None
) -> tuple[AnyProtocol, AnyTask]:
    content = file.content
    if content.get("fourstage") != 1 or "recipe" not in content:
        raise ValueError(
            f"{file.path} is not a checkpoint of a run; name its network: predict MODEL IMAGE --weights "
            f"{typed(file.path)}"
        )
    protocol, task = _build_stored(file, recipe, content["recipe"], content.get("about") or {})
    protocol.load_weights(task, file.path, which)
    computation.take(content, run, Ranks())
    return protocol, task


def _build_stored(
    file: Checkpoint, recipe: Recipe | None, stored: object, about: object
) -> tuple[AnyProtocol, AnyTask]:
    """Build the task of a checkpoint by a recipe; None: by its own. The files that the recipe imports are not run.

    Args:
        stored, about: the recipe in the file, and what the task knows of its data.
    """
    classes = file.classes
    if not classes or not isinstance(about, dict) or not isinstance(stored, dict):
        raise ValueError(f"{file.path} is damaged (classes, about or recipe is wrong); give another checkpoint")
    recipe = recipe or from_mapping(stored, str(file.path)).recipe
    protocol = protocol_of(recipe)
    check_recipe_of_file(recipe, file)
    try:
        try_on_meta(lambda: protocol.build_task(tuple(classes), about), file)
        return protocol, protocol.build_task(tuple(classes), about)
    except ValueError as error:
        if not recipe.imports:
            raise
        raise ValueError(
            f"{file.path} describes a network that cannot be built here ({error}); its recipe imports Python files, "
            f"which a run folder or a checkpoint alone does not run: if you trust them, add "
            f"{imports_option(recipe.imports)}"
        ) from error
