"""Run commands of the program in processes of their own, with a clock and a memory limit.

A server process imports the program once and forks for each command, so that a command costs a tenth of a second.

    echo '{"argv": ["data", "check", "folder"], "folder": "/tmp/x"}' | python tests/data/hostile/runner.py
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

KILLED_AFTER = 60.0  # seconds of the wall; other processes may share the machine
SECONDS = 20.0  # of the processor, which a command may use
MEMORY = 2 << 30  # bytes that a command may hold
ADDRESSES = 12 << 30  # bytes of addresses beyond those of the server, so that the machine itself is safe


@dataclass(frozen=True)
class Ended:
    """One command after its end."""

    code: int  # negative: the signal that ended it
    output: str
    seconds: float  # of the processor
    peak: int  # bytes
    hung: bool

    def fault(self) -> str:
        """Return what must not happen, or nothing."""
        if self.hung:
            return "hangs"
        if "Traceback (most recent call last)" in self.output:
            return "traceback"
        if self.code < 0:
            return f"signal {-self.code}"
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}"
        if self.seconds > SECONDS:
            return f"{self.seconds:.0f} s"
        return f"{self.peak / 2**30:.1f} GB" if self.peak > MEMORY else ""


class Server:
    """The process that forks; use it as a context."""

    def __enter__(self) -> Self:
        root = Path(__file__).parents[3]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "FOURSTAGE_OPS": "plain"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(self, *argv: str | Path, folder: Path, **environment: str) -> Ended:
        """Run one command in `folder`, which is also its home."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"argv": [os.fspath(word) for word in argv], "folder": str(folder), "environment": environment}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))


def serve() -> None:
    import fourstage.data.checks.check
    import fourstage.run
    import fourstage.run.predict
    import fourstage.run.show
    import fourstage.run.tasks.detection
    import fourstage.run.tasks.segmentation  # noqa: F401 - imported once for all
    from fourstage.cli import main

    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        ended = _fork(main, request)
        answers.write(json.dumps(ended) + "\n")
        answers.flush()


def _fork(main: Any, request: dict[str, Any]) -> dict[str, Any]:
    output = Path(request["folder"]) / ".output"
    pid = os.fork()
    if pid == 0:
        _child(main, request, output)
    started, hung = time.monotonic(), False
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        if not hung and time.monotonic() - started > KILLED_AFTER:
            hung = True
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.01)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "output": output.read_text(errors="replace") if output.is_file() else "",
        "seconds": usage.ru_utime + usage.ru_stime,
        "peak": usage.ru_maxrss << 10,
        "hung": hung,
    }


def _child(main: Any, request: dict[str, Any], output: Path) -> None:
    code = 3
    try:
        os.setsid()
        os.chdir(request["folder"])
        os.environ.update(HOME=request["folder"], XDG_CACHE_HOME=f"{request['folder']}/cache", **request["environment"])
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        null = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((0, null), (1, file), (2, file)):
            os.dup2(new, old)
        sys.stdout, sys.stderr = (
            os.fdopen(1, "w", closefd=False),
            os.fdopen(2, "w", errors="backslashreplace", closefd=False),
        )
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES, used + ADDRESSES))
        code = main(request["argv"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
