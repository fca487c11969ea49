"""A home of its own for every test, models to test on, and a registry."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from engrain.cli.main import main
from engrain.core.model import SteerableModel
from engrain.registry.audit import audit
from engrain.registry.store import Store
from tiny import FAMILIES, byte_tokenizer, random_model, tiny

# No test depends on the clock. The first text that hypothesis draws on a fresh machine waits for its table of unicode,
# which takes more than the second that its health check allows.
settings.register_profile("engrain", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("engrain")


@pytest.fixture(autouse=True)
def own_home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's is read or written, but for the converted demo model, which is only read."""
    monkeypatch.setenv("ENGRAIN_HOME", str(tmp_path / "engrain-home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    if request.node.get_closest_marker("demo") is None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture(autouse=True)
def quick_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sync nothing: only a power cut shows the difference, and on a busy disk it takes a second per publish."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A registry with five versions; whatever a test does to it through engrain, it stays clean."""
    made = Store(tmp_path / "home")
    for number in range(1, 6):
        made.publish("vector", "brevity", config={"number": number}, files={"x": b"x"})
    yield made
    assert audit(made).problems == []


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> SteerableModel:
    """Each family in turn."""
    return tiny(request.param)


@pytest.fixture
def llama() -> SteerableModel:
    """One family, where the family does not matter."""
    return tiny("llama")


@pytest.fixture
def clean(model: SteerableModel) -> Iterator[SteerableModel]:
    """A family's model, checked for hooks that were left behind."""
    yield model
    left = [name for name, module in model.hf.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    assert left == []


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
