"""Walk a page of the documentation: run every command of its console blocks, in order, in an empty folder.

    make walk                                            # docs/tour.md on the demo model
    python examples/walk.py docs/tour.md --write         # and put what the commands said into the page

A command is a line that starts with ``$``. It is to end with exit code 0, or with N where the line ends in
``# exit N``. A YAML block whose first line names a profile, as in ``# engrain chat --profile talk.yaml``, is written to
that file. Registry and cache are made anew for each walk, so that nothing is known from before.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

_BLOCK = re.compile(r"^```(console|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# engrain .*--profile (\S+)\n")
_EXIT = re.compile(r"# exit (\d+)$")


class Walk:
    """One walk through a page.

    Args:
        folder: where the commands run; the registry is made in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = os.environ | {
            "PATH": beside,
            "COLUMNS": "80",
            "ENGRAIN_HOME": str(folder / "registry"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "TQDM_DISABLE": "1",
            # Who the registry's log names.
            "LOGNAME": "walker",
        }

    def run(self, page: str) -> str:
        """Return the page with what its commands said this time."""
        return _BLOCK.sub(self._block, page)

    def _block(self, block: re.Match[str]) -> str:
        language, text = block.groups()
        if language == "console":
            commands = [line for line in text.splitlines() if line.startswith("$ ")]
            return "```console\n" + "".join(map(self._command, commands)) + "```"
        if named := _FILE.match(text):
            (self._folder / named[1]).write_text(text, encoding="utf-8")
        return block[0]

    def _command(self, line: str) -> str:
        print(line, flush=True)
        done = subprocess.run(
            ["bash", "-c", line.removeprefix("$ ")],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines = done.stdout.rstrip().replace(str(self._folder), "...").splitlines()
        said = "".join(f"{one.rstrip()}\n" for one in lines)
        print(said, end="", flush=True)
        wanted = int(found[1]) if (found := _EXIT.search(line)) else 0
        if done.returncode != wanted:
            sys.exit(f"walk: exit code {done.returncode} instead of {wanted}: {line}")
        return f"{line}\n{said}"


def main() -> None:
    """Walk the page that the command line names."""
    parser = argparse.ArgumentParser(description="Run every command of a page, in order, in an empty folder.")
    parser.add_argument("page", type=Path)
    parser.add_argument("--write", action="store_true", help="put what the commands said into the page")
    arguments = parser.parse_args()
    page = arguments.page.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="engrain-walk-") as folder:
        walked = Walk(Path(folder)).run(page)
    if arguments.write:
        arguments.page.write_text(walked, encoding="utf-8")


if __name__ == "__main__":
    main()
