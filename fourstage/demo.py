"""`fourstage demo`: a page in the browser that shows a network's predictions for the images that are dropped on it.

The page is served to this machine alone. It loads nothing from other servers, and sends nothing to them.
"""

import os
import socket
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fourstage.data.images import LARGEST_FILE
from fourstage.data.sample import BadImage
from fourstage.extras import install
from fourstage.files import limit
from fourstage.plurals import plural
from fourstage.predict.predictor import Predictor
from fourstage.predict.results import SHOWN_SCORE, ClassResult, LabelMapResult, ObjectResult, Result
from fourstage.resources import sentences
from fourstage.run.load import load
from fourstage.run.open import Options, tiling_of

if TYPE_CHECKING:
    from PIL.Image import Image

HOST, PORT = "127.0.0.1", 7860
LOWEST = 0.05  # score that the slider reaches; the many detections below it are noise
FONTS = ("system-ui", "sans-serif")
KEPT = 600  # seconds that uploaded images stay on disk
HEADS = {
    "classification": ["class", "probability"],
    "detection": ["class", "score", "x1", "y1", "x2", "y2"],
    "segmentation": ["class", "share of the pixels"],
}

Rows: TypeAlias = list[list[str | float]]


@sentences("choose another device")
def serve(
    source: str | Path,
    *,
    weights: str | Path | None = None,
    which: str = "model",
    tile: int | None = None,
    device: str = "auto",
    imports: Iterable[str | Path] = (),
    host: str = HOST,
    port: int = PORT,
) -> None:
    """Serve the page of a network until it is stopped.

    Args:
        source, weights, which, tile, device, imports: as in `fourstage.load`.
        host, port: the address of the page; with the host 0.0.0.0, other machines reach it too.

    Raises:
        ValueError, OSError: gradio is missing, the address is taken or impossible, or the network cannot be loaded.
    """
    _gradio()  # first: loading a network takes longer
    check_address(host, port)
    options = Options(weights, which, tiling=tiling_of(tile, None, 1), device=device, imports=imports)
    predictor = load(source, options, show=False)
    launch(page(predictor, str(source)), host, port)


def launch(blocks: Any, host: str, port: int, *, wait: bool = True) -> None:
    """Start the server of a page; `wait` until it is stopped."""
    theme = _gradio().themes.Default(font=FONTS, font_mono=("ui-monospace", "monospace"))
    options = {
        "quiet": True,
        "share": False,
        "footer_links": [],
        "ssr_mode": False,
        "max_file_size": limit(LARGEST_FILE),
    }
    blocks.launch(server_name=host, server_port=port, theme=theme, prevent_thread_lock=True, **options)
    print(
        f"The page is at http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port} until you press Ctrl-C.", flush=True
    )
    if wait:
        blocks.block_thread()


def page(predictor: Predictor, title: str) -> Any:
    """Return the page of a network, as gradio's blocks."""
    gradio, task = _gradio(), task_of(predictor)
    with gradio.Blocks(title=f"fourstage: {title}", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as blocks:
        gradio.Markdown(f"# {Path(title).name}\n{plural(len(predictor.class_names), 'class', 'classes')}, {task}")
        result = gradio.State()
        with gradio.Row():
            with gradio.Column(scale=1):
                file = gradio.File(label="Drop an image here", elem_id="image", height=140)
                threshold = gradio.Slider(
                    LOWEST, 1, SHOWN_SCORE, step=0.05, label="Lowest score", visible=task == "detection"
                )
                text = gradio.Textbox(label="Prediction", elem_id="text", lines=2)
            picture = gradio.Image(
                label="Picture",
                elem_id="picture",
                format="png",
                interactive=False,
                scale=2,
                buttons=["download", "fullscreen"],
            )
        table = gradio.Dataframe(headers=HEADS[task], label="Classes", elem_id="table", interactive=False)
        shown = [picture, text, table]

        def predicted(path: str | None, lowest: float) -> tuple[Any, ...]:
            found = predict_file(predictor, path)
            return found if isinstance(found, Result) else None, *show(found, lowest, HEADS[task])

        def drawn_again(found: Result | None, lowest: float) -> tuple[Any, ...]:
            return show(found, lowest, HEADS[task])

        file.change(predicted, [file, threshold], [result, *shown], api_name="predict")
        threshold.release(drawn_again, [result, threshold], shown, api_name="threshold", show_progress="hidden")
    return blocks


def task_of(predictor: Predictor) -> str:
    """Return the task of a network; a detector finds from now on all objects that the slider can show."""
    if hasattr(predictor.task, "threshold"):
        setattr(predictor.task, "threshold", LOWEST)  # noqa: B010 - of detectors alone
        return "detection"
    return "segmentation" if hasattr(predictor.task, "protocol") else "classification"


def predict_file(predictor: Predictor, path: str | None) -> Result | str:
    """Return the result of an image file, or a sentence on why there is none; None, where it was removed: no words."""
    if path is None:
        return ""
    try:
        result = predictor(path)
    except BadImage as error:
        return str(error).replace(path, Path(path).name)
    except ValueError as error:  # such as an image that the memory does not hold
        return str(error)
    assert isinstance(result, Result), "one file gives one result"
    return result


def show(found: Result | str | None, lowest: float, head: list[str]) -> "tuple[Image | None, str, dict[str, Any]]":
    """Return a result as a picture, a line of text and a table; a sentence instead of a result has no picture."""
    if found is None or isinstance(found, str):
        return None, found or "", {"headers": head, "data": []}
    if isinstance(found, ObjectResult):
        found = replace(found, shown_score=lowest)
    return found.picture(), found.text, {"headers": head, "data": rows_of(found)}


def rows_of(result: Result) -> Rows:
    """Return the rows of the table: best score or largest share first."""
    if isinstance(result, ClassResult):
        return [[name, round(score, 4)] for name, score in result.top]
    if isinstance(result, LabelMapResult):
        return [[name, round(share, 4)] for name, share in zip(result.names, result.shares.tolist(), strict=True)]
    assert isinstance(result, ObjectResult), "there are three kinds of results"
    columns = zip(result.names, result.scores.tolist(), result.boxes.tolist(), strict=True)
    return [
        [name, round(score, 3), *(round(side, 1) for side in box)]
        for name, score, box in columns
        if score >= result.shown_score
    ]


def check_address(host: str, port: int) -> None:
    """Raise ValueError or OSError where no page can be served at an address."""
    if not 1 <= port <= 65535:
        raise ValueError(f"--port {port} is not a port; give a number from 1 to 65535, such as {PORT}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise ValueError(f"--host {host} is not an address of this machine; leave it out, or give 0.0.0.0") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except PermissionError:
            raise OSError(f"port {port} needs rights that you do not have; add --port {PORT}") from None
        except OSError as error:
            raise OSError(
                f"{host}:{port} cannot be used ({(error.strerror or str(error)).lower()}); if another program uses the "
                f"port, add --port {port + 1 if port < 65535 else PORT}"
            ) from None


def _gradio() -> Any:
    """Return the library, told to send nothing. Raises ValueError where it is missing."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"the page needs the library gradio, which is missing; type: {install('gradio')}") from error
    return gradio
