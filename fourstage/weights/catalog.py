"""Every weight that a source publishes, and what was said about it. None: not known or not said."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Weight:
    """One published file."""

    name: str
    model: str  # what create_model builds for it
    file: str | None
    address: str | None  # where the file was published
    origin: str  # the repository of the code that trained it
    licence: str  # "none stated" where the origin has none
    top1: float | None  # per cent on ImageNet-1K's validation images at the model's own size
    sha256: str | None = None


VISFORMER = "https://github.com/danczs/Visformer"
SWIN = "https://github.com/microsoft/Swin-Transformer"

WEIGHTS = (
    Weight("visformer_tiny_in1k", "visformer_tiny", None, None, VISFORMER, "none stated", 78.6),
    Weight("visformer_small_in1k", "visformer_small", "visformer_small.pth", None, VISFORMER, "none stated", 82.2),
    Weight(
        name="swin_tiny_in1k",
        model="swin_tiny",
        file="swin_tiny_patch4_window7_224.pth",
        address="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_tiny_patch4_window7_224.pth",
        origin=SWIN,
        licence="MIT",
        top1=81.2,
    ),
)


def published(model: str) -> list[Weight]:
    """The rows of one model, by its own name (not an alias)."""
    return [weight for weight in WEIGHTS if weight.model == model]


def by_hand(asked: str, model: str) -> str:
    """One sentence on how to come by the weights of `model`, which was asked for as `asked`."""
    rows = published(model)
    if not rows:
        return (
            f"nobody has published weights of {asked}; build it with pretrained=False, or give a file: checkpoint_path="
        )
    row = rows[0]
    where = row.address or row.origin
    file = row.file or f"{model}.pth"
    verb = f"fetch {where}" if row.address else f"no address of {file} is known: look for it at {where}"
    return f"{verb} by hand, then type create_model({asked!r}, checkpoint_path='{file}')"
