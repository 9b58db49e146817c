"""`push_to_hub`: a saved network as a repository of Hugging Face's hub, by that library."""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fourstage.predict.predictor import Predictor
from fourstage.weights.reading import hub

if TYPE_CHECKING:
    from fourstage.run.pretrained.save import Saveable

FORM = "USER/NAME, such as ada/flowers"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def push_to_hub(
    network: nn.Module | Predictor,
    repository: str,
    *,
    class_names: Sequence[str] | None = None,
    private: bool = False,
    token: str | None = None,
    licence: str | None = None,
    exist_ok: bool = False,
) -> str:
    """Upload a network to a repository of Hugging Face's hub, and return its address.

    `fourstage.load("hf-hub:user/name")`, `from_checkpoint` and, for classifiers, timm build it again. The environment's
    HF_ENDPOINT names another hub.

    Args:
        network, class_names, licence: as in `save_pretrained`.
        repository: `user/name`; it is created.
        private: whether only you can see it.
        token: of your account; None: that of `hf auth login`, or the environment's HF_TOKEN.
        exist_ok: whether the repository may exist: its network and its card are then replaced by a new commit.

    Raises:
        ValueError: the network cannot be described, no token, or a repository that exists.
        OSError: the hub does not answer, or does not take the files.
    """
    if isinstance(network, Predictor):
        if class_names is not None:
            raise ValueError("what fourstage.load returns has its class names; leave class_names out")
        return network.push_to_hub(repository, private=private, token=token, licence=licence, exist_ok=exist_ok)
    from fourstage.run.pretrained.save import of_network

    one = of_network(network, class_names)
    return push(lambda: one, repository, private=private, token=token, licence=licence, exist_ok=exist_ok)


def push(
    saveable: Callable[[], "Saveable"],
    repository: str,
    *,
    private: bool = False,
    token: str | None = None,
    licence: str | None = None,
    exist_ok: bool = False,
) -> str:
    """Check the name, the token and the repository, write the files, and upload them in one commit."""
    from huggingface_hub import HfApi

    from fourstage.run.pretrained.save import write

    repository = check_name(repository)
    api = HfApi(endpoint=hub.endpoint(), token=_token(repository, token), library_name="fourstage")
    if not exist_ok:
        with _as_sentences(repository):
            _check_free(api, repository)
    with tempfile.TemporaryDirectory() as folder:
        write(saveable(), Path(folder), licence=licence, repository=repository)
        with _as_sentences(repository):
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a network of fourstage")
    return str(address)


@contextmanager
def _as_sentences(repository: str) -> Iterator[None]:
    """Raise what the library raises as one sentence. Where a large file does not arrive, that is a RuntimeError."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (*hub.library_errors(), RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) else None
        known = cause if isinstance(cause, HfHubHTTPError | OSError) else error
        raise _sentence(repository, known) from error


def check_name(repository: str) -> str:
    """Return the name of a repository. Raises ValueError unless it is `user/name`."""
    if not NAME.fullmatch(repository.removeprefix("hf-hub:")):
        raise ValueError(f"{repository!r} is not the name of a repository; write {FORM}")
    return repository.removeprefix("hf-hub:")


def _token(repository: str, token: str | None) -> str:
    from huggingface_hub import get_token

    found = token or get_token()
    if not found:
        raise ValueError(
            f"there is no token to write to {repository} with; log in with `hf auth login`, or set HF_TOKEN to a token "
            f"of https://huggingface.co/settings/tokens that may write"
        )
    return found


def _check_free(api: Any, repository: str) -> None:
    """Raise ValueError where the repository has files, before anything is written.

    One without files is what an upload that failed has left.
    """
    try:
        found = api.model_info(repository, timeout=hub.WAIT)
    except hub.library_errors() as error:
        if not hub.is_missing(error):
            raise
        return
    if not {one.rfilename for one in found.siblings or ()} - {".gitattributes"}:
        return
    raise ValueError(
        f"the repository {repository} exists already; choose another name, or replace its network with exist_ok=True "
        f"(on the command line: --update)"
    )


def _sentence(repository: str, error: Exception) -> Exception:
    """Return an error of the library as one sentence on what to do."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return ValueError(
            f"the hub does not let this token write to {repository}; check the name of the user, and take a token that "
            f"may write, of https://huggingface.co/settings/tokens"
        )
    return OSError(
        f"{repository} could not be uploaded ({hub.reason_of(error)}); check the connection and HF_ENDPOINT, or keep "
        f"the network in a folder with save_pretrained"
    )
