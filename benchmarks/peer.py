"""A peer in a process of its own, in the peers' environment: started once, told each time when to run."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import SideError

PEERS = ("repeng", "steering_vectors")
HERE = Path(__file__).parent
DEFAULT_PYTHON = str(HERE / ".venv-peers" / "bin" / "python")


class Peer:
    """One of ``peer_*.py``, loaded and warmed up.

    Args:
        name: which one.
        python: the interpreter of the peers' environment.
        task: a file that says what it is to do.
        more: what it is told besides.

    Raises:
        SideError: there is no such interpreter, or the peer does not import or run.
    """

    def __init__(self, name: str, python: str, task: Path, more: str) -> None:
        if not Path(python).exists():
            raise SideError(
                f"{name}: there is no interpreter {python}; make bench makes it, --peers-python names another"
            )
        self._name = name
        # A file, not a pipe: nobody reads it meanwhile, and the progress bars of a long run would fill a pipe.
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process runs; close() ends both
        self._process = subprocess.Popen(
            [python, str(HERE / f"peer_{name}.py"), str(task), more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        self.versions: dict[str, str] = self._answer()

    def run(self, **how: Any) -> float:
        """Do it once, as is said, and return the seconds.

        Raises:
            SideError: the peer ended.
        """
        assert self._process.stdin is not None
        try:
            print(json.dumps(how), file=self._process.stdin, flush=True)
        except BrokenPipeError as error:
            raise SideError(f"{self._name}: ended before it was told to run") from error
        return float(self._answer()["seconds"])

    def close(self) -> None:
        """End the process."""
        with self._process, self._stderr:
            self._process.kill()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().strip().splitlines()
        self.close()
        raise SideError(f"{self._name}: does not run here: {said[-1] if said else 'ended without a word'}")
