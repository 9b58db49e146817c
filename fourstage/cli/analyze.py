"""`analyze`: receptive fields, similarity, activation maps, attention, invariance and robustness of networks."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from fourstage.cli.parsing import Parser, Verbs, add_imports, add_verb, print_table

if TYPE_CHECKING:
    from fourstage.run.analyze.inputs import Loading
    from fourstage.run.analyze.outputs import Outcome

ROBUSTNESS_IMAGES = "all of a published set, 100 of one that is corrupted here"
NETWORK_HELP = (
    "a model by name, timm/NAME, NAME=FILE with its weights, a checkpoint, or the folder of a run or a saved network"
)


def add_analyze(verbs: Verbs, help: str) -> None:
    verb = verbs.add_parser("analyze", help=help, description=help)
    verb.set_defaults(run=lambda args: verb.print_help() or 0)
    inner = verb.add_subparsers(dest="analysis", metavar="WHAT", parser_class=Parser)
    for add in (_add_erf, _add_invariance, _add_cka, _add_cam, _add_maps, _add_robustness):
        add(inner)


def _add_common(verb: argparse.ArgumentParser, what: str, images: int | str, data: str) -> None:
    """Add what all analyses take. `images` is the default number of images, or its description."""
    verb.add_argument("networks", nargs="+", metavar="NETWORK", help=NETWORK_HELP)
    verb.add_argument("--data", metavar="PATH", required=True, help=data)
    verb.add_argument(
        "--out", metavar="FOLDER",
        help=f"folder to write; default: analysis/{what}, in the folder of the first network if that is a run",
    )  # fmt: skip
    number = f"{images}, or all where there are fewer" if isinstance(images, int) else images
    verb.add_argument("--images", dest="count", type=int, metavar="N", help=f"number of images; default: {number}")
    verb.add_argument("--pretrained", action="store_true", help="give models by name their published weights")
    verb.add_argument("--which", choices=("model", "ema"), default="model", help="which weights of a checkpoint")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="seed of fresh weights; default: 0")
    verb.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    add_imports(verb, "a file that registers networks or data formats of your own; may be repeated")


def _out(args: argparse.Namespace) -> Path:
    from fourstage.run.analyze.outputs import default_folder

    return default_folder(args.analysis, args.networks[0]) if args.out is None else Path(args.out)


def _loading(args: argparse.Namespace) -> "Loading":
    from fourstage.run.analyze.inputs import Loading

    return Loading(args.pretrained, args.which, args.seed, args.device, tuple(args.imports))


def _print(outcome: "Outcome") -> int:
    print_table(outcome.head, outcome.rows)
    print("\n".join(["", *outcome.notes, *(f"wrote {path}" for path in outcome.files)]))
    return 0


def _add_erf(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "erf",
        _run_erf,
        "measure effective receptive fields",
        ["fourstage analyze erf runs/mine --data images --images 1 --size 64"],
    )
    _add_common(verb, "erf", 50, "a data set, a folder of images, or an image")
    verb.add_argument("--size", type=int, default=1024, metavar="PX", help="side of the images; default: 1024")
    verb.add_argument(
        "--map", default="last", metavar="MAP", help="stage1, stage2, ..., last, or the name of a layer; default: last"
    )
    verb.add_argument(
        "--centre", choices=("image", "unit"), default="image",
        help="measure around the middle of the image, or of the map's centre unit; default: image",
    )  # fmt: skip
    verb.add_argument(
        "--resize", choices=("exact", "short_side"), default="exact",
        help="resize to a square, or the short side with a centre crop; default: exact",
    )  # fmt: skip
    verb.add_argument(
        "--order", choices=("first", "spread"), default="first",
        help="the first images of the data, or evenly spread ones; default: first",
    )  # fmt: skip
    verb.add_argument("--power", type=float, default=0.2, metavar="P", help="exponent of the power form; default: 0.2")
    verb.add_argument("--untrained", action="store_true", help="add each trained network with fresh weights")


def _run_erf(args: argparse.Namespace) -> int:
    from fourstage.run.analyze.erf import ErfSetting, analyze_erf

    setting = ErfSetting(
        size=args.size,
        images=args.count,
        tap=args.map,
        centre=args.centre,
        resize=args.resize,
        order=args.order,
        power=args.power,
        untrained=args.untrained,
    )
    return _print(analyze_erf(args.networks, args.data, _out(args), setting, loading=_loading(args)))


def _add_invariance(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "invariance",
        _run_invariance,
        "measure predictions under shifts, rotations and scales",
        ["fourstage analyze invariance runs/mine --data images --images 10"],
    )
    _add_common(verb, "invariance", 100, "a data set with labels, or a folder of images")
    verb.add_argument("--size", type=int, metavar="PX", help="side of the views; default: each network's own")
    verb.add_argument(
        "--family", action="append", metavar="CHANGE", default=[],
        help="translation, pre_rotation, post_rotation or scale; may be repeated; default: all",
    )  # fmt: skip
    verb.add_argument(
        "--directions", choices=("all", "one"), default="all",
        help="shift each image in all eight directions, or in a drawn one; default: all",
    )  # fmt: skip
    verb.add_argument("--original", action="store_true", help="transform images as the code of STM-Evaluation does")
    verb.add_argument(
        "--order", choices=("first", "spread"), default="spread",
        help="the first images of the data, or evenly spread ones; default: spread",
    )  # fmt: skip


def _run_invariance(args: argparse.Namespace) -> int:
    from fourstage.run.analyze.invariance import FAMILIES, InvarianceSetting, analyze_invariance

    setting = InvarianceSetting(
        images=args.count,
        size=args.size,
        families=tuple(dict.fromkeys(args.family)) or FAMILIES,
        directions=args.directions,
        original=args.original,
        order=args.order,
        seed=args.seed,
    )
    return _print(analyze_invariance(args.networks, args.data, _out(args), setting, loading=_loading(args)))


def _add_cka(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "cka",
        _run_cka,
        "compare feature maps of networks by centred kernel alignment",
        ["fourstage analyze cka runs/mine runs/other --data digits --images 256"],
    )
    _add_common(verb, "cka", "512, or all", "a data set, or a folder of images")
    verb.add_argument("--batch-size", type=int, metavar="N", help="images of a batch; default: 256, or all")
    verb.add_argument("--by", choices=("stage", "block"), default="stage", help="maps to compare; default: stage")
    verb.add_argument(
        "--pooling", choices=("flatten", "gap"), default="flatten",
        help="compare maps position by position, or their means over positions; default: flatten",
    )  # fmt: skip
    verb.add_argument("--biased", action="store_true", help="use the biased estimator; few images bring it close to 1")
    verb.add_argument("--size", type=int, metavar="PX", help="side of the images; default: that of the first network")
    verb.add_argument("--ceiling", metavar="NETWORK", help="the first network, trained with another seed")


def _run_cka(args: argparse.Namespace) -> int:
    from fourstage.run.analyze.cka import CkaSetting, analyze_cka

    setting = CkaSetting(
        images=args.count,
        batch=args.batch_size,
        by=args.by,
        pooling=args.pooling,
        estimator="biased" if args.biased else "unbiased",
        size=args.size,
        ceiling=args.ceiling,
    )
    return _print(analyze_cka(args.networks, args.data, _out(args), setting, loading=_loading(args)))


def _add_cam(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "cam",
        _run_cam,
        "draw class activation maps of classifiers, segmentors and detectors",
        ["fourstage analyze cam runs/mine --data images"],
    )
    _add_common(verb, "cam", 4, "a data set, a folder of images, or an image")
    verb.add_argument(
        "--method", action="append", metavar="NAME", default=[],
        help="gradcam, gradcam++, layercam, hirescam, eigencam, xgradcam, scorecam; repeatable; default: first five",
    )  # fmt: skip
    verb.add_argument(
        "--map", action="append", metavar="MAP", default=[],
        help="stage1, ..., last, or a layer; several are averaged; default: the map that the head reads",
    )  # fmt: skip
    verb.add_argument("--class", dest="label", metavar="CLASS", help="a name or number; default: the predicted class")
    verb.add_argument(
        "--box", metavar="X1,Y1,X2,Y2",
        help="the object of a detector or the region of a segmentor, in pixels; default: the best object, all pixels",
    )  # fmt: skip
    verb.add_argument("--size", type=int, metavar="PX", help="side of the images; default: each network's own")
    verb.add_argument("--scores", action="store_true", help="measure ROAD, insertion and deletion of a classifier")
    verb.add_argument(
        "--aug-smooth", action="store_true", help="average the maps of six copies of each image, mirrored and scaled"
    )
    verb.add_argument(
        "--eigen-smooth", action="store_true", help="take the first principal component of the weighed channels"
    )
    verb.add_argument(
        "--order", choices=("first", "spread"), default="spread",
        help="the first images of the data, or evenly spread ones; default: spread",
    )  # fmt: skip


def _run_cam(args: argparse.Namespace) -> int:
    box = None if args.box is None else _box(args.box)
    from fourstage.run.analyze.cam import CamSetting, analyze_cam

    given = {"methods": tuple(dict.fromkeys(args.method))} if args.method else {}
    setting = CamSetting(
        images=args.count,
        taps=tuple(dict.fromkeys(args.map)),
        label=args.label,
        box=box,
        size=args.size,
        scores=args.scores,
        aug_smooth=args.aug_smooth,
        eigen_smooth=args.eigen_smooth,
        order=args.order,
        **given,
    )
    return _print(analyze_cam(args.networks, args.data, _out(args), setting, loading=_loading(args)))


def _box(text: str) -> tuple[float, float, float, float]:
    try:
        x1, y1, x2, y2 = (float(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"--box is X1,Y1,X2,Y2 in pixels, such as 10,20,110,90; got {text!r}") from None
    if not (-math.inf < x1 < x2 < math.inf and -math.inf < y1 < y2 < math.inf):
        raise ValueError(f"--box is X1,Y1,X2,Y2 with X1 < X2 and Y1 < Y2; got {text!r}")
    return x1, y1, x2, y2


def _add_maps(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "maps",
        _run_maps,
        "draw modulators, attention and sampling points for a point of an image",
        ["fourstage analyze maps smt_tiny --data photo.png --size 64"],
    )
    _add_common(verb, "maps", 1, "a data set, a folder of images, or an image")
    verb.add_argument("--point", metavar="X,Y", help="in pixels of the network's image; default: the middle")
    verb.add_argument("--size", type=int, metavar="PX", help="side of the images; default: each network's own")
    verb.add_argument(
        "--order", choices=("first", "spread"), default="spread",
        help="the first images of the data, or evenly spread ones; default: spread",
    )  # fmt: skip


def _run_maps(args: argparse.Namespace) -> int:
    point = None if args.point is None else _point(args.point)
    from fourstage.run.analyze.maps import MapsSetting, analyze_maps

    setting = MapsSetting(images=args.count, point=point, size=args.size, order=args.order)
    return _print(analyze_maps(args.networks, args.data, _out(args), setting, loading=_loading(args)))


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"--point is X,Y in pixels, such as 112,80; got {text!r}") from None
    return x, y


def _add_robustness(verbs: Verbs) -> None:
    about = "measure accuracy on ImageNet's other test sets, or on images that are corrupted here"
    verb = add_verb(
        verbs,
        "robustness",
        _run_robustness,
        about,
        ["fourstage analyze robustness runs/mine --data images --images 10"],
    )
    _add_common(
        verb,
        "robustness",
        ROBUSTNESS_IMAGES,
        "ImageNet-C, -A, -R, -Sketch, V2, its validation images, or a labelled set",
    )
    verb.add_argument("--size", type=int, metavar="PX", help="side of the images; default: each network's own")
    verb.add_argument(
        "--corruption", action="append", metavar="NAME", default=[],
        help="a corruption to apply here; may be repeated; default: the fifteen of ImageNet-C",
    )  # fmt: skip
    verb.add_argument(
        "--severity", action="append", type=int, metavar="N", default=[],
        help="1 to 5, of corruptions that are applied here; may be repeated; default: all",
    )  # fmt: skip
    verb.add_argument(
        "--clean", metavar="FOLDER", help="ImageNet's validation images, for the relative mCE of ImageNet-C"
    )
    verb.add_argument(
        "--order", choices=("first", "spread"), default="spread",
        help="the first images of the data, or evenly spread ones; default: spread",
    )  # fmt: skip


def _run_robustness(args: argparse.Namespace) -> int:
    from fourstage.run.analyze.robustness import RobustnessSetting, analyze_robustness

    given = {"severities": tuple(dict.fromkeys(args.severity))} if args.severity else {}
    setting = RobustnessSetting(
        images=args.count,
        corruptions=tuple(dict.fromkeys(args.corruption)),
        size=args.size,
        order=args.order,
        seed=args.seed,
        clean=args.clean,
        **given,
    )
    return _print(analyze_robustness(args.networks, args.data, _out(args), setting, loading=_loading(args)))
