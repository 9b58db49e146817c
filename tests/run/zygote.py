"""A process that has imported everything and forks one process per command, so that a start costs no imports.

It reads one JSON object per line: {"start": words, "environment": {...}, "errors": path} forks and answers a process
id; {"wait": pid, "seconds": s} answers the exit code, as Python's subprocess has it, or null after the seconds.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def start(words: list[str], environment: dict[str, str], errors: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.environ.update(environment)
        log = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDWR)
        for number, to in ((0, null), (1, log), (2, log)):
            os.dup2(to, number)
        from fourstage.cli import main

        code = main(words)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.005)


def answer(request: dict[str, Any]) -> int | None:
    if "start" in request:
        return start(request["start"], request["environment"], request["errors"])
    return wait(request["wait"], request["seconds"])


def serve() -> None:
    import torch

    import fourstage.run.evaluate
    import fourstage.run.train  # noqa: F401
    from fourstage.run.task_protocol import protocol_class

    torch.set_num_threads(1)
    for task in ("classification", "detection", "segmentation"):
        protocol_class(task)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve()
