"""Words that were typed wrongly: how far two words are apart, and which known words are nearest."""

from collections import Counter
from collections.abc import Callable, Iterable

OTHER_LETTER = 1.5  # cost of a letter that is neither swapped, dropped nor doubled; each of these costs 1
DASH = 0.5  # cost of a dash or an underscore too many or too few: batchsize
TIE = 0.25  # words whose distances differ by less are offered together
MOST = 3  # words that are offered


def distance(given: str, meant: str) -> float:
    """Return the cost of the slips of typing that make `given` of `meant`.

    Two neighbours swapped, a letter dropped and a letter doubled are slips of the hand and cost 1. Another letter in
    place of one, or one too many, costs `OTHER_LETTER`. Upper case, leading dashes and the kind of dash do not count.
    Of words that are farther apart than `farthest`, the result may be too small.
    """
    a, b = (word.lower().lstrip("-").replace("-", "_") for word in (given, meant))
    if (least := _least(a, b)) > farthest(b):
        return least  # too far to be offered, so that the exact distance does not matter
    before: list[float] = []
    row = [0.0]
    for letter in b:
        row.append(row[-1] + _dropped(letter))
    for i in range(1, len(a) + 1):
        above, row = row, [row[0] + _added(a, i)]
        for j in range(1, len(b) + 1):
            best = min(
                above[j] + _added(a, i),
                row[j - 1] + _dropped(b[j - 1]),
                above[j - 1] + (0.0 if a[i - 1] == b[j - 1] else OTHER_LETTER),
            )
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                best = min(best, before[j - 2] + 1.0)
            row.append(best)
        before = above
    return row[-1]


def _least(a: str, b: str) -> float:
    """Return a lower limit of the distance: the letters that only one of two words has."""
    letters = Counter(a.replace("_", ""))
    letters.subtract(b.replace("_", ""))
    return float(max(sum(n for n in letters.values() if n > 0), -sum(n for n in letters.values() if n < 0)))


def _dropped(letter: str) -> float:
    return DASH if letter == "_" else 1.0


def _added(word: str, i: int) -> float:
    """Return the cost of letter `i` of a word, counted from 1, being one too many."""
    if word[i - 1] == "_":
        return DASH
    return 1.0 if i > 1 and word[i - 2] == word[i - 1] else OTHER_LETTER


def farthest(word: str) -> float:
    """Return the largest distance at which another word may still be a slip of the hand for this one."""
    return max(OTHER_LETTER, 0.4 * len(word.lstrip("-")))


def nearest(given: str, known: Iterable[str], cost: Callable[[str, str], float] = distance) -> list[str]:
    """Return the known words that are nearest to a word: several where they are equally near, none where all are far.

    Args:
        cost: a function of the given word and a known one.
    """
    return [word for _, word in nearest_with_costs(given, known, cost)]


def nearest_with_costs(
    given: str, known: Iterable[str], cost: Callable[[str, str], float] = distance
) -> list[tuple[float, str]]:
    """Return the words of `nearest`, each after its cost."""
    costs = sorted((cost(given, word), word) for word in known)
    near = [(one, word) for one, word in costs if one <= farthest(word.rpartition(".")[2])]
    return [(one, word) for one, word in near if one <= near[0][0] + TIE][:MOST]
