"""`data`: check, shard and show data sets."""

import argparse

from fourstage.cli.parsing import Parser, Verbs, add_changes, add_imports, add_verb
from fourstage.files import typed
from fourstage.plurals import plural

OWN_FORMAT = "a file that registers your own format; may be repeated"


def add_data(verbs: Verbs, help: str) -> None:
    verb = verbs.add_parser("data", help=help, description=help)
    verb.set_defaults(run=lambda args: verb.print_help() or 0)
    inner = verb.add_subparsers(dest="data_verb", metavar="VERB", parser_class=Parser)
    check = add_verb(inner, "check", _run_check, "read a data set and report problems", ["fourstage data check images"])
    check.add_argument("path", metavar="PATH", help="folder of the data set, or `digits`, `digit_scenes`")
    add_imports(check, OWN_FORMAT)
    shard = add_verb(
        inner,
        "shard",
        _run_shard,
        "write a classification data set as WebDataset tar shards",
        ["fourstage data shard images shards --max-size 100MB"],
    )
    shard.add_argument("source", metavar="SRC", help="folder of the data set, or `digits`")
    shard.add_argument("folder", metavar="DST", help="folder to write; an interrupted run continues in it")
    shard.add_argument("--max-size", metavar="BYTES", help="size of a shard, such as 500MB; default: 256MB")
    shard.add_argument("--count", type=int, metavar="N", help="images per shard")
    add_imports(shard, OWN_FORMAT)
    show = add_verb(
        inner,
        "show",
        _run_show,
        "draw training images after augmentation, with ground truth",
        ["fourstage data show images --out samples.png"],
    )
    show.add_argument("path", metavar="PATH", help="folder of the data set, or `digits`, `digit_scenes`")
    show.add_argument(
        "--recipe", metavar="RECIPE", help="the recipe whose augmentation is drawn; default: one that fits the data"
    )
    show.add_argument("--out", metavar="FILE.png", default="samples.png", help="picture to write; default: samples.png")
    add_imports(show, OWN_FORMAT)
    add_changes(show)


def _run_check(args: argparse.Namespace) -> int:
    from fourstage.data.checks.check import check, render
    from fourstage.progress import Bar
    from fourstage.user_files import import_files

    import_files(args.imports)
    with Bar("checking", 1) as bar:
        findings, summary = check(args.path, progress=bar.of)
    print(render(findings, summary))
    return 1 if any(finding.severity == "error" for finding in findings) else 0


def _run_shard(args: argparse.Namespace) -> int:
    from fourstage.data.formats import get_format
    from fourstage.data.shards.write import parse_size
    from fourstage.progress import Bar
    from fourstage.user_files import import_files

    import_files(args.imports)
    size = None if args.max_size is None else parse_size(args.max_size)
    write = get_format("WebDataset").writer()
    with Bar("writing shards", 1) as bar:
        written = write(args.source, args.folder, max_size=size, count=args.count, progress=bar.of)
    for split, images in written.images.items():
        shards = written.shards[split]
        print(f"{split}: {plural(images, 'image')} in {plural(shards, 'shard')}")
    print(f"{args.folder} is complete; train on it with --data {typed(args.folder)}")
    return 0


def _run_show(args: argparse.Namespace) -> int:
    from fourstage.run.show import show

    print(f"wrote {show(args.path, recipe=args.recipe, out=args.out, changes=args.changes, imports=args.imports)}")
    return 0
