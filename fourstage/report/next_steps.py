"""What to do next with a run, as commands to paste that run from the folder in which the page was written."""

import math
import re
import shlex
from pathlib import Path

from fourstage.files import shown_path
from fourstage.report.common import command_line, section
from fourstage.report.markup import Markup, tag
from fourstage.report.read import Run

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def next_steps(run: Run) -> Markup | None:
    """Return the section with commands for the state that the run is in; None where there is nothing to do."""
    folder, commands = shown_path(run.folder), list[Markup]()
    if not run.finished and run.environment.get("command"):
        commands.append(command_line("Continue this run", str(run.environment["command"])))
    if (run.folder / "checkpoints" / "best.pt").is_file():
        commands += _with_weights(run, folder)
    if run.finished and (longer := _longer(run, folder)):
        commands += longer
    if not commands:
        return None
    where = "The commands run in the folder that this page was written from."
    return section("next", "What to do next", tag("p", where, class_="quiet"), *commands)


def _with_weights(run: Run, folder: str) -> list[Markup]:
    image = _an_image(run)
    table = shlex.join(["fourstage", "evaluate", folder, "--csv", "classes.csv"])
    lines = [command_line("Evaluate the best weights again, with a table of classes", table)]
    if image is not None:
        predict = shlex.join(["fourstage", "predict", folder, shown_path(image), "--out", "predictions"])
        lines.insert(0, command_line("Predict an image; put your own file or folder in its place", predict))
    return lines


def _longer(run: Run, folder: str) -> list[Markup]:
    """Return the commands that train twice as long and compare the two runs."""
    optimisation = run.recipe.get("optimisation")
    length = str(optimisation.get("length") if isinstance(optimisation, dict) else None)
    match = re.fullmatch(r"([\d.]+)(ep|it)", length)
    if match is None or not math.isfinite(float(match[1])):
        return []
    twice, other = f"optimisation.length={2 * float(match[1]):g}{match[2]}", f"{folder}-longer"
    recipe = shown_path(run.folder / "recipe.yaml")
    imports = [word for file in run.recipe.get("imports") or () for word in ("--imports", str(file))]
    train = shlex.join(["fourstage", "train", recipe, "--out", other, *imports, twice])
    compare = shlex.join(["fourstage", "report", folder, other, "--out", "comparison.html"])
    return [
        command_line("Train the same recipe twice as long", train),
        command_line("Then compare the two runs on one page", compare),
    ]


def _an_image(run: Run) -> Path | None:
    """Return an image of the validation data, or else a picture that the run folder keeps."""
    kept = [*run.samples, *run.pictures]
    data = Path(str(run.recipe.get("data", "")))
    for sample in kept:
        for place in (data / sample.id, data / "val" / sample.id, data / "images" / "val" / sample.id):
            if place.suffix.lower() in IMAGES and place.is_file():
                return place
    return kept[0].file if kept else None
