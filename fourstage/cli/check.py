"""`check`: the report card of a token mixer or backbone of the user's own."""

import argparse

from fourstage.cli.parsing import Verbs, add_verb, alone


def add_check(verbs: Verbs, help: str) -> None:
    verb = add_verb(
        verbs,
        "check",
        _run_check,
        help,
        ["fourstage check my_mixer.py"],
    )
    verb.add_argument("source", metavar="FILE.py[:NAME]", help="your file, and the mixer or backbone in it")
    verb.add_argument(
        "--seconds", type=float, default=30.0, metavar="S",
        help="time to train all networks on the digits; 0: no training; default: 30",
    )  # fmt: skip
    verb.add_argument("--json", action="store_true", help="print the card as JSON")


def _run_check(args: argparse.Namespace) -> int:
    from fourstage.check.candidates import find_candidate
    from fourstage.check.card import Setting, check
    from fourstage.check.text import render
    from fourstage.progress import Bar

    setting = Setting(seconds=args.seconds)
    with alone(args.json):
        candidate = find_candidate(args.source)
    with Bar(f"checking {candidate.name}", 100) as bar:
        card = check(candidate, setting, lambda share, what: bar.update(round(100 * share), what))
    if args.json:
        import json

        print(json.dumps(card.as_dict(), indent=2))
    else:
        print(render(card))
    return 0 if card.good else 1
