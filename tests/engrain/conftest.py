"""The command line in this process, on a tiny model."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from engrain.cli.main import main
from tiny import byte_tokenizer, random_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk, as transformers writes it."""
    place = tmp_path_factory.mktemp("model")
    random_model("llama").save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place


class Result:
    """What one call did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        return json.loads(self.out)


@pytest.fixture
def engrain(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call the command line in this process."""

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["engrain", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Result(caught.value.code, said.out, said.err)

    return call
