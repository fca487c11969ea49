"""Steering inside of a real vLLM engine, against transformers, on tiny random models."""

from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.vllm_engine import ask, difference, engine, logprobs, reference

from engrain.core.composition import Active
from engrain.core.edit import Applied
from engrain.core.errors import FingerprintError, InputError
from engrain.core.model import SteerableModel
from engrain.core.task_vector import TaskVector
from engrain.core.vector import Calibration, SteeringVector
from engrain.loading import load
from engrain.plugins.vllm.patches import admission_of
from engrain.plugins.vllm.settings import Settings
from engrain.registry.store import Store
from engrain.registry.task_vectors import publish_task_vector
from engrain.registry.vectors import publish_vector
from tiny_served import FAMILIES, save_tiny

pytestmark = pytest.mark.vllm

PROMPT = list(range(40, 140))
OTHER = list(range(60, 90))


def vector(seed: int, name: str) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    directions = {layer: torch.randn(64, generator=generator) for layer in range(3)}
    return SteeringVector(directions, name).calibrated(Calibration(1, 2.0))


A, B = vector(1, "a"), vector(2, "b")


def spec(**terms: dict[str, Any]) -> dict[str, Any]:
    return {"engrain": terms}


# Each of them: what the request says, and the same for transformers.
SPECS: list[tuple[dict[str, Any] | None, list[Active]]] = [
    (None, []),
    ({"engrain": "a"}, [Active(A, (1,), 2.0)]),
    ({"engrain": "a=3,b=-1"}, [Active(A, (1,), 3.0), Active(B, (1,), -1.0)]),
    ({"engrain": "b=4", "engrain_positions": "generated"}, [Active(B, (1,), 4.0, "generated")]),
    (
        spec(x={"vector": "a", "operation": "ablate", "strength": 1.0}, y={"vector": "b", "layer": 2, "strength": 1.5}),
        [Active(A, (1,), 1.0, operation="ablate"), Active(B, (2,), 1.5)],
    ),
    (
        spec(x={"vector": "b", "layer": 0, "operation": "clamp", "strength": 0.5, "positions": "from:7"}),
        [Active(B, (0,), 0.5, "from:7", "clamp")],
    ),
]


def check(model: SteerableModel, outputs: list[Any], prompt: list[int]) -> None:
    """Check that the answers to all specifications are those of transformers."""
    for output, (_, actives) in zip(outputs, SPECS, strict=True):
        assert difference(model, output, prompt, actives)[0] < 1e-4


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("home")
    for one in (A, B):
        publish_vector(Store(root), one.name, one)
    return root


@pytest.fixture
def registry(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGRAIN_HOME", str(home))


@pytest.fixture(scope="module", params=FAMILIES)
def pair(
    request: pytest.FixtureRequest, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, SteerableModel]]:
    """An engine and the same model in transformers."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ENGRAIN_HOME", str(home))
        folder = save_tiny(request.param, tmp_path_factory.mktemp(request.param))
        with engine(folder) as llm:
            admission_of(llm.llm_engine.input_processor)
            yield llm, load(str(folder))


def test_a_mixed_batch_equals_transformers(pair: tuple[Any, SteerableModel]) -> None:
    llm, model = pair
    outputs = ask(llm, [PROMPT if place % 2 else OTHER for place in range(len(SPECS))], [one for one, _ in SPECS])
    for place, (output, (_, actives)) in enumerate(zip(outputs, SPECS, strict=True)):
        worst, differing = difference(model, output, PROMPT if place % 2 else OTHER, actives)
        assert worst < 1e-4
        assert differing == 0


def test_every_order_of_requests_on_one_prompt_equals_the_uncached_answer(pair: tuple[Any, SteerableModel]) -> None:
    llm, _ = pair
    chosen = [SPECS[0], SPECS[1], SPECS[2], ({"engrain": "a=3"}, []), SPECS[3]]
    alone = []
    for arguments, _ in chosen:
        llm.reset_prefix_cache()
        alone.append(ask(llm, [PROMPT], [arguments], 8)[0])
    for order in permutations(range(len(chosen))):
        llm.reset_prefix_cache()
        for place in order:
            (found,) = ask(llm, [PROMPT], [chosen[place][0]], 8)
            assert found.outputs[0].token_ids == alone[place].outputs[0].token_ids
            for one, other in zip(logprobs(found), logprobs(alone[place]), strict=True):
                assert one == pytest.approx(other, abs=1e-4)


def test_generation_only_steering_shares_the_blocks_of_the_prompt(pair: tuple[Any, SteerableModel]) -> None:
    llm, _ = pair
    llm.reset_prefix_cache()
    ask(llm, [PROMPT], [None], 2)
    (shared,) = ask(llm, [PROMPT], [SPECS[3][0]], 2)
    (apart,) = ask(llm, [PROMPT], [SPECS[1][0]], 2)
    (again,) = ask(llm, [PROMPT], [SPECS[1][0]], 2)
    assert [one.num_cached_tokens for one in (shared, apart, again)] == [96, 0, 96]


def test_samples_of_one_request_are_all_steered(pair: tuple[Any, SteerableModel]) -> None:
    llm, model = pair
    from vllm import SamplingParams

    params = SamplingParams(temperature=1, n=3, seed=5, max_tokens=6, logprobs=5, extra_args={"engrain": "a=3"})
    (output,) = llm.generate([{"prompt_token_ids": OTHER}], [params], use_tqdm=False)
    for sample in output.outputs:
        wanted = reference(model, OTHER, sample.token_ids, [Active(A, (1,), 3.0)])
        for step, known in enumerate(sample.logprobs):
            for token, one in known.items():
                assert one.logprob == pytest.approx(wanted[step, token].item(), abs=1e-4)


def test_a_bad_specification_is_an_error_of_the_client_and_the_engine_goes_on(pair: tuple[Any, SteerableModel]) -> None:
    from vllm.exceptions import VLLMValidationError

    llm, _ = pair
    for bad in ("nobody", "a=nan", {"x": {"vector": "a", "layer": 9}}, 7):
        with pytest.raises(VLLMValidationError):
            ask(llm, [OTHER], [{"engrain": bad}])
    assert ask(llm, [OTHER], [None], 2)[0].outputs[0].token_ids


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("eager", [True, False])
def test_unsteered_requests_are_the_same_to_the_bit_as_without_the_plugin(tmp_path: Path, *, eager: bool) -> None:
    folder = save_tiny("llama", tmp_path)
    options: dict[str, Any] = {"enforce_eager": eager, "enable_prefix_caching": False}
    with engine(folder, settings=None, **options) as llm:
        plain = ask(llm, [OTHER, PROMPT, OTHER, PROMPT], [None] * 4)
    with engine(folder, **options) as llm:
        mixed = ask(llm, [OTHER, PROMPT, OTHER, PROMPT], [None, SPECS[1][0], SPECS[4][0], None])
    for place in (0, 3):
        assert logprobs(mixed[place]) == logprobs(plain[place])
    assert logprobs(mixed[1]) != logprobs(plain[1])


@pytest.mark.usefixtures("registry")
def test_prompts_computed_in_chunks_are_steered_as_whole_ones(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path)
    model = load(str(folder))
    with engine(folder, max_num_batched_tokens=32, enable_chunked_prefill=True, max_num_seqs=4) as llm:
        outputs = ask(llm, [PROMPT] * len(SPECS), [one for one, _ in SPECS])
    check(model, outputs, PROMPT)


@pytest.mark.usefixtures("registry")
def test_requests_that_are_preempted_and_resumed_are_steered_as_others(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path)
    model = load(str(folder))
    # Room for fourteen blocks of 32 tokens: six requests of 100 tokens that grow to 180 cannot all stay.
    with engine(folder, num_gpu_blocks_override=14, max_model_len=256, disable_log_stats=False) as llm:
        outputs = ask(llm, [PROMPT] * len(SPECS), [one for one, _ in SPECS], 80)
        preempted = next(one.value for one in llm.get_metrics() if one.name == "vllm:num_preemptions")
    assert preempted > 0
    check(model, outputs, PROMPT)


@pytest.mark.usefixtures("registry")
def test_a_compiled_graph_steers_as_an_eager_one(tmp_path: Path) -> None:
    folder = save_tiny("qwen3", tmp_path)
    model = load(str(folder))
    with engine(folder, enforce_eager=False, settings=Settings(layers=(0, 1, 2))) as llm:
        outputs = ask(llm, [OTHER] * len(SPECS), [one for one, _ in SPECS])
        idle = ask(llm, [OTHER], [None])
    check(model, outputs, OTHER)
    assert difference(model, idle[0], OTHER, [])[0] < 1e-4


def made(model: SteerableModel, seed: int, *modules: str) -> TaskVector:
    """A task vector on these modules of block 1."""
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.hf.named_parameters())
    names = [f"model.layers.1.{module}.weight" for module in modules]
    changes = {name: torch.randn(parameters[name].shape, generator=generator) * 0.05 for name in names}
    return TaskVector("made", changes, model.fingerprint)


@pytest.mark.parametrize(
    "modules", [("mlp.down_proj",), ("self_attn.q_proj",), ("self_attn.v_proj", "mlp.up_proj", "self_attn.o_proj")]
)
def test_a_task_vector_on_the_weights_equals_transformers_and_comes_off_to_the_bit(
    pair: tuple[Any, SteerableModel], modules: tuple[str, ...], tmp_path: Path
) -> None:
    llm, model = pair
    task_vector = made(model, 1, *modules)
    task_vector.save(tmp_path / "made")
    edit = {"name": "made", "where": str(tmp_path / "made"), "digest": None, "scale": 1.5}

    def answers(*edits: dict[str, Any]) -> list[Any]:
        llm.collective_rpc("engrain_set_edits", args=(list(edits),))
        llm.reset_prefix_cache()
        return ask(llm, [PROMPT, OTHER], [None, SPECS[1][0]])

    before, edited, after = answers(), answers(edit), answers()
    assert [logprobs(one) for one in before] == [logprobs(one) for one in after]
    assert logprobs(before[0]) != logprobs(edited[0])
    with model.edited({"made": Applied(task_vector, 1.5)}):
        assert difference(model, edited[0], PROMPT, [])[0] < 1e-4
        assert difference(model, edited[1], OTHER, SPECS[1][1])[0] < 1e-4


def test_a_task_vector_that_does_not_fit_leaves_the_weights_alone(
    pair: tuple[Any, SteerableModel], tmp_path: Path
) -> None:
    llm, model = pair
    before = ask(llm, [OTHER], [None])
    wrong = (
        {"model.layers.1.mlp.down_proj.weight": torch.ones(3, 3)},
        {"model.layers.9.mlp.down_proj.weight": torch.ones(3)},
    )
    for place, changes in enumerate(wrong):
        TaskVector("wrong", changes, model.fingerprint).save(tmp_path / str(place))
        edit = {"name": "wrong", "where": str(tmp_path / str(place)), "digest": None, "scale": 1.0}
        with pytest.raises(InputError):
            llm.collective_rpc("engrain_set_edits", args=([edit],))
    llm.reset_prefix_cache()
    assert logprobs(ask(llm, [OTHER], [None])[0]) == logprobs(before[0])


@pytest.mark.usefixtures("registry")
def test_the_task_vectors_of_a_profile_are_on_from_the_start(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    model = load(str(folder))
    task_vector = made(model, 2, "mlp.down_proj", "mlp.gate_proj")
    version = publish_task_vector(Store(), "made", task_vector)
    profile = tmp_path / "profile.yaml"
    text = f"behaviors:\n  x: {{vector: a}}\n  y: {{task_vector: '{version.reference}', scale: 0.5}}\n"
    profile.write_text(text, encoding="utf-8")
    with engine(folder, settings=Settings(str(profile))) as llm:
        (output,) = ask(llm, [OTHER], [None])
    with model.edited({"y": Applied(task_vector, 0.5)}):
        assert difference(model, output, OTHER, [Active(A, (1,), 2.0)])[0] < 1e-4


@pytest.mark.usefixtures("registry")
def test_what_was_made_on_another_model_stops_the_start(tmp_path: Path) -> None:
    folder, other = save_tiny("llama", tmp_path / "model"), save_tiny("qwen3", tmp_path / "other")
    version = publish_task_vector(Store(), "foreign", made(load(str(other)), 2, "mlp.down_proj"))
    foreign = SteeringVector(A.directions, "foreign", load(str(other)).fingerprint).calibrated(Calibration(1, 2.0))
    publish_vector(Store(), "foreign", foreign)
    for entry in (f"task_vector: '{version.reference}'", "vector: foreign"):
        profile = tmp_path / "profile.yaml"
        profile.write_text(f"behaviors:\n  x: {{{entry}}}\n", encoding="utf-8")
        with pytest.raises(FingerprintError), engine(folder, settings=Settings(str(profile))):
            pass


@pytest.mark.usefixtures("registry")
def test_the_default_profile_steers_until_it_is_changed(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model")
    model = load(str(folder))
    profile = tmp_path / "profile.yaml"
    profile.write_text("behaviors:\n  kind: {vector: vector/a, strength: 3.0}\n", encoding="utf-8")
    with engine(folder, settings=Settings(str(profile))) as llm:
        admission = admission_of(llm.llm_engine.input_processor)
        assert admission is not None
        (default,) = ask(llm, [OTHER], [None])
        (out,) = ask(llm, [OTHER], [{"engrain": "none"}])
        admission.change({"gain": 0.5})
        (half,) = ask(llm, [OTHER], [None])
        admission.change({"behaviors": {"kind": {"enabled": False}}})
        (off,) = ask(llm, [OTHER], [None])
    for output, actives in ((default, [Active(A, (1,), 3.0)]), (half, [Active(A, (1,), 1.5)]), (out, []), (off, [])):
        assert difference(model, output, OTHER, actives)[0] < 1e-4
