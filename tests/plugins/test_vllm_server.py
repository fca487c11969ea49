"""A real server over HTTP, as `engrain serve` starts it."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from benchmarks.vllm_engine import reference
from benchmarks.vllm_http import http

from engrain.core.composition import Active
from engrain.core.edit import Applied
from engrain.core.model import SteerableModel
from engrain.core.task_vector import TaskVector
from engrain.core.vector import Calibration, SteeringVector
from engrain.loading import load
from engrain.registry.alias import move_alias
from engrain.registry.journal import read_chain
from engrain.registry.log import read_log
from engrain.registry.reference import Reference
from engrain.registry.rollback import roll_back
from engrain.registry.store import Store
from engrain.registry.task_vectors import publish_task_vector, read_task_vector
from engrain.registry.vectors import publish_vector
from tiny_served import save_tiny

pytestmark = pytest.mark.vllm

KEY = "secret"
CHANGED = "model.layers.1.mlp.down_proj.weight"
ALIAS = Reference.parse("task-vector/made:live")
A = SteeringVector(
    {layer: torch.randn(64, generator=torch.Generator().manual_seed(layer)) for layer in range(3)}, "a"
).calibrated(Calibration(1, 3.0))
PROFILE = "behaviors:\n  kind: {vector: vector/a}\n  made: {task_vector: 'task-vector/made:live'}\n"
PROMPT = [60, 61, 62, 63]


@dataclass(frozen=True)
class Server:
    """A running server and the same model in transformers."""

    url: str
    model: SteerableModel
    store: Store
    log: Path

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0)

    def http(self, method: str, path: str, body: Any = None, key: str = KEY) -> tuple[int, str]:
        """Return the status and the text of an answer."""
        return http(method, self.url + path, body, key)

    def get(self, path: str) -> Any:
        """Return the JSON of an answer."""
        status, text = self.http("GET", path)
        assert status == 200
        return json.loads(text)

    def ask(self, model: str | None = None, **xargs: Any) -> tuple[list[str], list[float]]:
        """Return the likeliest tokens after a prompt and their log-probabilities; under an adapter when it is named."""
        completion = self.client.completions.create(
            model=model or self.client.models.list().data[0].id,
            prompt=PROMPT,
            max_tokens=4,
            temperature=0,
            logprobs=1,
            extra_body={"vllm_xargs": xargs, "ignore_eos": True, "return_tokens_as_token_ids": True},
        )
        found = completion.choices[0].logprobs
        assert found is not None
        return list(found.tokens or []), [float(value or 0) for value in found.token_logprobs or []]

    @property
    def on(self) -> int:
        """The version of the task vector on the weights."""
        (edit,) = self.get("/v1/engrain/active")["weights"]["on"]
        return int(edit["where"].partition("@")[2])

    def check(self, actives: list[Active], **xargs: Any) -> None:
        """Check that a reply is what transformers gives on the weights that are on."""
        tokens, values = self.ask(**xargs)
        with self.model.edited({"made": Applied(read_task_vector(self.store, f"task-vector/made@{self.on}"))}):
            self.compare(tokens, values, actives)

    def compare(self, tokens: list[str], values: list[float], actives: list[Active]) -> None:
        ids = [int(token.removeprefix("token_id:")) for token in tokens]
        wanted = reference(self.model, PROMPT, ids, actives)
        assert ids == wanted.argmax(dim=-1).tolist()
        assert values == pytest.approx([wanted[step, token].item() for step, token in enumerate(ids)], abs=1e-4)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server")) as running:
        yield running


@contextmanager
def serve(root: Path, *options: str) -> Iterator[Server]:
    """Run a server with a vector, three versions of a task vector, and a profile of both."""
    folder = save_tiny("llama", root / "model")
    store, model = Store(root / "home"), load(str(folder))
    publish_vector(store, "a", A)
    for size in (0.02, 0.05, 1e38):
        change = torch.randn(64, 48, generator=torch.Generator().manual_seed(1)).clamp(-3, 3) * size
        publish_task_vector(store, "made", TaskVector("made", {CHANGED: change}, model.fingerprint))
    move_alias(store, ALIAS, 1)
    (root / "profile.yaml").write_text(PROFILE, encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "engrain", "serve", "--profile", str(root / "profile.yaml"), "--layers", "all"]
    command += ["-m", str(folder), "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY, "--enforce-eager"]
    command += ["--max-model-len", "256", "--max-num-seqs", "8", "--block-size", "32"]
    command += ["--kv-cache-memory-bytes", str(1 << 27), *options]
    environment = os.environ | {"ENGRAIN_HOME": str(root / "home"), "OMP_NUM_THREADS": "1"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, root / "log")
            yield Server(f"http://127.0.0.1:{port}", model, store, root / "log")
        finally:
            process.terminate()
            process.wait(60)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers."""
    for _ in range(300):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text(errors="replace")[-4000:])


def test_a_request_is_steered_as_it_says_and_by_default_as_the_profile_says(server: Server) -> None:
    server.check([Active(A, (1,), 3.0)])
    server.check([], engrain="none")
    server.check([Active(A, (1,), -2.0)], engrain="kind=-2")
    server.check([Active(A, (1,), 2.0, "generated")], engrain="vector/a=2", engrain_positions="generated")
    inside = json.dumps({"x": {"vector": "a", "layer": 2, "strength": 1.0, "operation": "ablate"}})
    server.check([Active(A, (2,), 1.0, operation="ablate")], engrain=inside)


@pytest.mark.parametrize("spec", ["nobody", "a=nan", "a=1,,", "{", "[]", 5, 0.5, ["a"], "é" * 300, "/etc/passwd", "\0"])
def test_a_bad_specification_is_a_bad_request_with_the_mend(server: Server, spec: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        server.ask(engrain=spec)
    assert (refused.value.status_code, refused.value.param) == (400, "engrain")


def test_the_default_is_changed_and_read_over_http(server: Server) -> None:
    assert server.get("/v1/engrain/active")["vectors"]["kind"]["strength"] == 3.0
    try:
        changed = server.http("PUT", "/v1/engrain/profile", {"gain": 0.5, "behaviors": {"kind": {"strength": 2.0}}})
        assert changed[0] == 200
        server.check([Active(A, (1,), 1.0)])
        assert server.http("PUT", "/v1/engrain/profile", {"behaviors": {"kind": {"enabled": False}}})[0] == 200
        server.check([])
        refused = server.http("PUT", "/v1/engrain/profile", {"behaviors": {"kidn": {}}})
        assert (refused[0], "Did you mean 'kind'" in refused[1]) == (400, True)
        assert server.get("/v1/engrain/profile")["gain"] == 0.5
    finally:
        server.http(
            "PUT", "/v1/engrain/profile", {"gain": 1, "behaviors": {"kind": {"enabled": True, "strength": 3.0}}}
        )


@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_specification_has_status_400_streamed_or_not(server: Server, *, stream: bool) -> None:
    model = server.client.models.list().data[0].id
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": stream, "max_tokens": 2}
    status, text = server.http("POST", "/v1/chat/completions", body | {"vllm_xargs": {"engrain": "nobody"}})
    assert (status, "No vector 'nobody'" in text) == (400, True)


@pytest.mark.parametrize("path", ["profile", "active", "health"])
def test_the_routes_honor_the_api_key(server: Server, path: str) -> None:
    assert server.http("GET", f"/v1/engrain/{path}", key="wrong")[0] == 401
    assert server.http("GET", f"/v1/engrain/{path}")[0] == 200


def test_health_and_metrics_say_what_happens(server: Server) -> None:
    assert server.get("/v1/engrain/health") == {"healthy": True, "workers": [[0, 1, 2]]}
    server.ask(engrain="none")
    metrics = server.http("GET", "/metrics")[1]
    assert 'engrain_requests_total{vectors="none"}' in metrics
    assert 'engrain_requests_total{vectors="a"}' in metrics
    assert "vllm:" in metrics


def test_a_chat_talks_to_the_server_and_a_mistake_does_not_end_it(server: Server) -> None:
    lines = [
        "hello",
        "/steer nobody",
        "hello",
        "/steer a 2",
        "/active",
        "hello",
        "/compare",
        "hello",
        "/off",
        "/default",
    ]
    command = [sys.executable, "-m", "engrain", "chat", "--server", server.url, "--max-new-tokens", "4"]
    environment = os.environ | {"OPENAI_API_KEY": KEY}
    done = subprocess.run(command, input="\n".join(lines), env=environment, capture_output=True, text=True, check=True)
    assert "The server says: No vector 'nobody'" in done.stderr
    assert "on: nobody,a=2" in done.stderr
    assert done.stderr.rstrip().endswith("on: the profile of the server; compared with the base")
    refused = subprocess.run(
        command, input="", env=environment | {"OPENAI_API_KEY": "wrong"}, capture_output=True, text=True
    )
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for something that takes seconds."""
    for _ in range(300):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("it never came")


def test_an_alias_is_followed_while_requests_run_and_none_of_them_fails(server: Server) -> None:
    assert server.on == 1
    server.check([], engrain="none")
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(server.ask, engrain="none") for _ in range(24)]
        move_alias(server.store, ALIAS, 2)
        wait_until(lambda: server.on == 2)
        answers = {
            (tuple(tokens), tuple(round(value, 3) for value in values))
            for tokens, values in map(Future.result, running)
        }
    # Each was answered by one version or by the other, from the first token to the last.
    assert len(answers) <= 2
    server.check([], engrain="none")
    server.check([Active(A, (1,), 3.0)])


def test_a_version_that_gives_no_answer_is_taken_back_and_the_journal_says_so(server: Server) -> None:
    move_alias(server.store, ALIAS, 2)
    wait_until(lambda: server.on == 2)
    before = server.ask(engrain="none")
    move_alias(server.store, ALIAS, 3)
    wait_until(lambda: server.get("/v1/engrain/active")["weights"]["problem"] is not None)
    assert server.on == 2
    assert server.ask(engrain="none") == before
    newest = next(iter(read_log(read_chain(server.store.root / "journal"), ALIAS)))
    assert (newest.event.act, newest.event.fields["from"], newest.event.fields["to"]) == ("serve", 2, 3)
    assert "no finite answer" in newest.what
    # One step back in the registry, and nothing is left to complain of.
    roll_back(server.store, ALIAS)
    wait_until(lambda: server.get("/v1/engrain/active")["weights"]["problem"] is None)
    assert server.ask(engrain="none") == before


def test_two_tensor_parallel_ranks_and_adapters_are_steered_as_one_and_the_base(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "base")
    model = load(str(folder))
    one, other = (torch.randn(size, 1, generator=torch.Generator().manual_seed(size)) * 0.2 for size in (64, 48))
    low = TaskVector("low", {CHANGED: one @ other.T}, model.fingerprint)
    low.save(tmp_path / "low")
    adapter = tmp_path / "adapter"
    export = [
        sys.executable,
        "-m",
        "engrain",
        "export",
        str(tmp_path / "low"),
        "--format",
        "peft",
        "--out",
        str(adapter),
    ]
    subprocess.run([*export, "-m", str(folder)], check=True)
    options = [
        "--tensor-parallel-size",
        "2",
        "--enable-lora",
        "--max-lora-rank",
        "8",
        "--lora-modules",
        f"low={adapter}",
    ]
    with serve(tmp_path / "server", *options) as server:
        server.check([Active(A, (1,), 3.0)])
        server.check(
            [Active(A, (1,), 1.0, operation="ablate")],
            engrain='{"x": {"vector": "a", "operation": "ablate", "strength": 1}}',
        )
        assert server.http("GET", "/v1/engrain/health")[1] == json.dumps(
            {"healthy": True, "workers": [[0, 1, 2]] * 2}, separators=(",", ":")
        )
        tokens, values = server.ask(model="low", engrain="kind=2")
        both = {"made": Applied(read_task_vector(server.store, "task-vector/made@1")), "low": Applied(low)}
        with server.model.edited(both):
            server.compare(tokens, values, [Active(A, (1,), 2.0)])
