"""The server's own state over HTTP: the default profile, what is on, and whether the workers steer."""

import asyncio
import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from engrain.core.errors import EngrainError, InputError
from engrain.plugins.vllm.admission import Admission, refusal
from engrain.plugins.vllm.deployment import Deployment, Gate, GateMiddleware
from engrain.plugins.vllm.patches import admission_of, front_end_of
from engrain.plugins.vllm.screen import ScreenMiddleware, bad_request
from engrain.plugins.vllm.settings import VARIABLE
from engrain.registry.store import Store

_MOST_BYTES = 65_536


class Endpoints:
    """Routes below ``/v1/engrain``, so that vLLM's API key guards them."""

    name = "engrain_routes"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._gate = Gate()
        self._admission: Admission | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes, and before vLLM's own the gate and the screen."""
        app.add_middleware(ScreenMiddleware, admission=lambda: self._admission)
        app.add_middleware(GateMiddleware, gate=self._gate)
        app.add_api_route("/v1/engrain/profile", get_profile, methods=["GET"])
        app.add_api_route("/v1/engrain/profile", put_profile, methods=["PUT"])
        app.add_api_route("/v1/engrain/active", get_active, methods=["GET"])
        app.add_api_route("/v1/engrain/health", get_health, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Resolve the default profile before the first request.

        Raises:
            InputError: the plugin was not configured, or the profile cannot be followed.
        """
        admission = admission_of(engine_client.input_processor)
        if admission is None:
            raise InputError(f"The routes of engrain need its plugin: set {VARIABLE}, or start with `engrain serve`.")
        front = front_end_of(engine_client.vllm_config)
        self._admission = state.engrain = admission
        state.engrain_client = engine_client
        state.engrain_deployment = Deployment(engine_client, Store(), front.model, front.profile.behaviors, self._gate)
        await state.engrain_deployment.start()
        # Kept: a task that nothing refers to may be collected.
        state.engrain_following = asyncio.create_task(state.engrain_deployment.follow())


async def get_profile(request: Request) -> JSONResponse:
    """Return the default profile: its gain, and what each behavior is set to."""
    return JSONResponse(request.app.state.engrain.describe())


async def put_profile(request: Request) -> JSONResponse:
    """Change the default for requests to come."""
    body = await request.body()
    if len(body) > _MOST_BYTES:
        return bad_request(f"The body has {len(body)} bytes; at most {_MOST_BYTES} are read.")
    try:
        return JSONResponse(request.app.state.engrain.change(json.loads(body)))
    except (ValueError, RecursionError) as error:
        return bad_request(f"The body is not JSON: {error}")
    except EngrainError as error:
        return bad_request(refusal(error))


async def get_active(request: Request) -> JSONResponse:
    """Return what requests are steered by when they do not say, and what is on the weights."""
    state = request.app.state
    return JSONResponse({**state.engrain.active(), "weights": state.engrain_deployment.describe()})


async def get_health(request: Request) -> JSONResponse:
    """Ask every worker which layers it has armed."""
    layers = await request.app.state.engrain_client.collective_rpc("engrain_layers")
    return JSONResponse({"healthy": True, "workers": layers})
