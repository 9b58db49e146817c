"""`import-config`: a configuration of MMDetection or MMSegmentation as a recipe."""

import argparse

from fourstage.cli.parsing import Verbs, add_verb
from fourstage.files import typed


def add_import_config(verbs: Verbs, help: str) -> None:
    verb = add_verb(
        verbs,
        "import-config",
        _run,
        help,
        ["fourstage import-config config.py --out mine.yaml"],
    )
    verb.add_argument("config", metavar="CONFIG.py", help="the configuration; no code in it is run")
    verb.add_argument("--out", metavar="FILE.yaml", help="the recipe to write; default: print it")
    verb.add_argument("--gpus", type=int, metavar="N", help="GPUs of that training; default: as it says, else 8")
    verb.add_argument("--mmdet", metavar="VERSION", help="version of MMDetection, such as 2.11; default: a guess")
    verb.add_argument(
        "--configs",
        action="append",
        default=[],
        metavar="FOLDER",
        help="where bases such as mmdet::a.py are: a checkout or its configs; default: the installed package",
    )
    verb.add_argument("--force", action="store_true", help="replace an existing file")


def _run(args: argparse.Namespace) -> int:
    from fourstage.run.import_config import imported_recipe, write_recipe

    imported = imported_recipe(args.config, gpus=args.gpus, version=args.mmdet, folders=args.configs)
    if args.out is None:
        print(imported.text, end="")
        return 0
    path = write_recipe(imported, args.out, force=args.force)
    for title, lines in (("assumed", imported.assumed), ("no counterpart", imported.left_out)):
        for line in lines:
            print(f"{title}: {line}")
    if imported.equal:
        print(f"the values are those of the recipe {imported.base}")
    print(f"wrote {path}; check it with `fourstage train {typed(path)} --data PATH --dry-run`")
    return 0
