"""The ids that results in COCO's format get: those of the data's own json, of the type that they have there."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fourstage.data.objects.coco import read_ids
from fourstage.files import real_path
from fourstage.predict.files import Input

Id = int | str


class CocoIds:
    """The ids of a json, for images that are predicted and for the classes of a network.

    Raises:
        ValueError: the file is no COCO json.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"there is no file {path}; give --ids the COCO json that lists the images")
        self.path = path
        self._images, self._categories = read_ids(path)
        self._named: dict[str, list[str]] = defaultdict(list)
        for name in self._images:
            self._named[PurePosixPath(name).name].append(name)

    def of_images(self, inputs: Sequence[Input]) -> dict[Path, Id]:
        """Return the id of each image by its path.

        An image is the one whose `file_name` its complete path ends with; else the one whose `file_name` ends with its
        path below the folder that was given.

        Raises:
            ValueError: a video; images that are not in the json, or twice; two images that are one there.
        """
        if videos := [one for one in inputs if one.is_video]:
            raise ValueError(f"{videos[0].path} is a video, and --ids is for images; leave one of the two out")
        names = {one.path: self._name_of(one) for one in inputs}
        missing = [path for path, name in names.items() if name is None]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(inputs)} images are not in {self.path}, the first: {missing[0]}; give the "
                f"json that lists them, or the folder that its file names start from"
            )
        first: dict[str, Path] = {}
        for path, name in names.items():
            assert name is not None
            if (other := first.setdefault(name, path)) != path:
                raise ValueError(f"{path} and {other} are both {name} in {self.path}; leave one of them out")
        return {path: self._images[name] for path, name in names.items() if name is not None}

    def _name_of(self, one: Input) -> str | None:
        """Return the `file_name` of an image; None: there is none, or several fit."""
        candidates = self._named.get(one.path.name, [])
        complete = real_path(one.path).as_posix(), one.path.absolute().as_posix()
        ending = [name for name in candidates if any(f"/{path}".endswith(f"/{name}") for path in complete)]
        if ending:
            return max(ending, key=len)
        longer = [name for name in candidates if f"/{name}".endswith(f"/{one.name}")]
        return longer[0] if len(longer) == 1 else None

    def of_classes(self, classes: Sequence[str]) -> list[Id | None]:
        """Return the id of each class, by its name; None where the json has no category of this name.

        Raises:
            ValueError: it has none of them.
        """
        ids = [self._categories.get(name) for name in classes]
        if all(id is None for id in ids):
            theirs, ours = (", ".join(list(names)[:3]) for names in (self._categories, classes))
            raise ValueError(
                f"{self.path} has none of the network's classes: it has {theirs}, ..., and the network {ours}, ...; "
                f"give the json of data with these classes"
            )
        return ids
