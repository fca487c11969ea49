"""Plans from a configuration alone."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engrain.core.errors import ModelError
from engrain.planning import count_blocks, plan_compile, read_config
from engrain.plugins import ModelFiles, RegisterModelSource, hookimpl
from engrain.plugins.manager import build_manager
from tiny import random_model

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "vocab_size": 320,
    "dtype": "float32",
}
PARTS = ("base", "delta", "student", "gradients", "moments", "activations")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a configuration and no weights."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path


def test_a_plan_needs_no_weights_and_its_total_is_the_sum(engrain: Any, place: Path) -> None:
    for where in (place, place / "config.json"):
        done = engrain("compile", "--plan", "-m", where, "--json")
        assert done.code == 0, done.err
        assert done.json["total"] == sum(done.json[part] for part in PARTS)
    assert done.json["base"] == 4 * done.json["parameters"]
    # The middle block, three below it and two above, the two matrices of each that write the residual stream.
    assert done.json["layers"] == [3, 4, 5, 6, 7, 8]
    assert done.json["trained"] == 6 * (64 * 64 + 64 * 128)
    shown = engrain("compile", "--plan", "-m", place, "--layers", "0-1", "--target", "q_proj")
    assert f"{2 * 64 * 64} of" in shown.out
    assert all(part in shown.out for part in PARTS)


def test_the_plan_counts_what_the_loaded_model_has(engrain: Any, folder: Path) -> None:
    done = engrain("compile", "--plan", "-m", folder, "--target", "all-linear", "--layers", "all", "--json").json
    assert done["parameters"] == sum(one.numel() for one in random_model("llama").parameters())


def test_a_plugins_model_source_is_asked_before_the_hub_and_in_the_order_of_its_rank(
    place: Path, tmp_path: Path
) -> None:
    own = tmp_path / "shelf" / "name"
    own.mkdir(parents=True)
    (own / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": 7}))

    @hookimpl
    def register_model_sources(register: RegisterModelSource) -> None:
        register("shelf", lambda name: ModelFiles(own, name) if name in ("ours/name", str(place)) else None, rank=25)

    plugins = build_manager()
    assert count_blocks(read_config(plugins, str(place))) == 12
    plugins.manager.register(SimpleNamespace(register_model_sources=register_model_sources), name="shelf")
    for name in ("ours/name", str(place)):
        assert count_blocks(read_config(plugins, name)) == 7


@pytest.mark.parametrize("family", ["bert", "roberta", "t5", "bart", "whisper", "clip", "vit"])
def test_what_is_no_decoder_is_refused_by_its_family(tmp_path: Path, family: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    config = read_config(build_manager(), str(tmp_path))
    with pytest.raises(ModelError, match=f"A '{family}' is no decoder-only language model"):
        plan_compile(config)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-m", "./nowhere"), "There is no configuration"),
        (("-m", "{place}/none/config.json"), "There is no configuration"),
        (("-m", "{place}/odd"), "model_type 'odd'"),
        (("-m", "{place}/bert"), "A 'bert' is no decoder-only language model"),
        (("-m", "{place}/torn"), "not JSON"),
        (("-m", "{place}", "--target", "down_prj"), "Did you mean 'down_proj'"),
        (("-m", "{place}", "--target", "(", "--layers", "1"), "regular expression"),
        (("-m", "{place}", "--layers", "12"), "the model has the blocks 0-11"),
        (("listening", "-m", "{place}"), "--plan is about a model alone"),
    ],
)
def test_a_mistake_is_one_line(engrain: Any, place: Path, arguments: tuple[str, ...], said: str) -> None:
    for name, text in (("odd", '{"model_type": "odd"}'), ("bert", '{"model_type": "bert"}'), ("torn", "{")):
        (place / name).mkdir()
        (place / name / "config.json").write_text(text)
    done = engrain("compile", "--plan", *(one.replace("{place}", str(place)) for one in arguments))
    assert (done.code, done.out, len(done.err.strip().splitlines())) == (2, "", 1), done.err
    assert said in done.err
