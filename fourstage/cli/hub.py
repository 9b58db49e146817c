"""`push`: a trained network as a repository of the hub. `verify`: a checkpoint beside what its source publishes."""

import argparse
from typing import TYPE_CHECKING, Any

from fourstage.cli.parsing import Verbs, add_changes, add_imports, add_verb, alone, print_table
from fourstage.streams import wrapped

if TYPE_CHECKING:
    from fourstage.run.verify import Verified

DISAGREES = 1  # exit code of `verify`


def add_push(verbs: Verbs, help: str) -> None:
    verb = add_verb(
        verbs,
        "push",
        _run_push,
        help,
        ["fourstage push runs/mine USER/NAME --licence mit"],
    )
    verb.add_argument(
        "source", metavar="RUN|FILE|FOLDER", help="a run folder, or any other network that `fourstage predict` takes"
    )
    verb.add_argument("repository", metavar="USER/NAME", help="the repository to create")
    verb.add_argument("--which", choices=("model", "ema"), default="model", help="which weights of the checkpoint")
    verb.add_argument("--licence", metavar="NAME", help="licence of the weights for the model card, such as mit")
    verb.add_argument("--private", action="store_true", help="create a repository that only you can see")
    verb.add_argument(
        "--update", action="store_true", help="replace the network and the card of a repository that exists"
    )
    add_imports(verb, "a file that registers what the network of a checkpoint is built from; may be repeated")


def _run_push(args: argparse.Namespace) -> int:
    from fourstage.run.pretrained.push import check_name

    repository = check_name(args.repository)  # before anything is loaded
    from fourstage.run.load import load
    from fourstage.run.open import Options

    network = load(args.source, Options(which=args.which, device="cpu", imports=args.imports))
    address = network.push_to_hub(repository, private=args.private, licence=args.licence, exist_ok=args.update)
    print(f"wrote {address}; in Python:\nfourstage.load('hf-hub:{repository}')")
    return 0


def add_verify(verbs: Verbs, help: str) -> None:
    verb = add_verb(
        verbs,
        "verify",
        _run_verify,
        help,
        ["fourstage verify mine.pth"],
    )
    verb.add_argument(
        "source",
        metavar="FILE|TAG",
        help="a checkpoint, a folder of save_pretrained, hf-hub:USER/NAME, or published weights such as smt_tiny.in1k",
    )
    verb.add_argument("--data", metavar="PATH", help="repeat the published protocol on this data set")
    verb.add_argument("--json", action="store_true", help="print the checks as JSON")
    add_imports(verb, "a file that registers what the network of a checkpoint is built from; may be repeated")
    add_changes(verb)


def _run_verify(args: argparse.Namespace) -> int:
    from fourstage.run.verify import verify

    if args.changes and args.data is None:
        raise ValueError(f"{args.changes[0]} changes the recipe of an evaluation; add --data PATH, or leave it out")
    with alone(args.json):
        found = verify(args.source, data=args.data, changes=args.changes, imports=args.imports, show=not args.json)
    if args.json:
        import json

        print(json.dumps(_as_json(found), indent=2))
    else:
        _print_verified(found)
    return 0 if found.agrees else DISAGREES


def _as_json(found: "Verified") -> dict[str, Any]:
    checks = [{"name": one.name, "verdict": one.verdict, "text": one.text, **one.values} for one in found.checks]
    metrics = [{**vars(one), "verdict": one.verdict} for one in found.metrics]
    return {
        "file": str(found.path),
        "agrees": found.agrees,
        "checks": checks,
        "metrics": metrics,
        "notes": list(found.notes),
    }


def _print_verified(found: "Verified") -> None:
    print(found.path)
    for one in found.checks:
        verdict = f"{one.verdict}: " if one.verdict else ""
        print(wrapped(f"{one.name}: {verdict}{one.text}"))
    if found.metrics:
        print()
        rows = []
        for metric in found.metrics:
            interval = "-" if metric.interval is None else f"{metric.interval[0]:.2f} to {metric.interval[1]:.2f}"
            published = "-" if metric.published is None else f"{metric.published:.2f}"
            rows.append([metric.name, f"{metric.value:.2f}", interval, published, metric.verdict])
        print_table(["metric", "measured", "95 % interval", "published", "verdict"], rows)
        print(wrapped("\n".join(found.notes)))
    print("nothing disagrees" if found.agrees else "it differs from what its source publishes: see the lines above")
