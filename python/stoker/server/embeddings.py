"""POST /v1/embeddings: one vector a text, of models that make them."""

from __future__ import annotations

import array
import base64
import math
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stoker.sampling_params import SamplingParams
from stoker.server.answers import Answers, all_whole
from stoker.server.body import read
from stoker.server.completions import encoded_prompts
from stoker.server.errors import ApiError, bad_request
from stoker.server.protocol import EmbeddingsRequest
from stoker.server.state import ServerState


async def create_embeddings(request: Request, state: ServerState) -> Response:
    """The endpoint."""
    body = await read(request, EmbeddingsRequest, state.settings.limits)
    model = state.check_model(body.model)
    pooling = state.pooling
    if pooling.refusal:
        raise bad_request(pooling.refusal)
    if body.encoding_format not in ("float", "base64"):
        raise bad_request(
            f"encoding_format={body.encoding_format!r}: allowed are float, base64", "encoding_format"
        )
    if body.dimensions is not None and body.dimensions < 1:
        raise bad_request(f"dimensions={body.dimensions}: at least 1", "dimensions")
    prompts = await encoded_prompts(
        body.input,
        state,
        "input",
        add_special_tokens=body.add_special_tokens,
        keep=body.truncate_prompt_tokens,
    )
    jobs: list[Answers] = []
    try:
        for prompt in prompts:
            rid = state.new_id("embd")
            jobs.append(
                state.submit(
                    request,
                    rid,
                    prompt,
                    SamplingParams(max_tokens=1),
                    priority=body.priority,
                    cache_salt=body.cache_salt,
                    tenant=body.user,
                    pool=True,
                )
            )
        await all_whole(request, jobs)
    finally:
        for job in jobs:
            job.close()
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(job, body, pooling.normalize)}
        for index, job in enumerate(jobs)
    ]
    count = sum(job.num_prompt_tokens for job in jobs)
    usage = {"prompt_tokens": count, "total_tokens": count}
    answer: dict[str, Any] = {"object": "list", "model": model, "data": data, "usage": usage}
    return Response(msgspec.json.encode(answer), media_type="application/json")


def _vector(job: Answers, body: EmbeddingsRequest, normalize: bool) -> list[float] | str:
    vector = job.pooled
    if vector is None:
        raise ApiError(500, "the engine gave no vector")
    if body.dimensions is not None:
        if body.dimensions > len(vector):
            raise bad_request(
                f"dimensions={body.dimensions}: this model's vectors have {len(vector)}", "dimensions"
            )
        vector = vector[: body.dimensions]
    if normalize:
        length = math.sqrt(math.fsum(x * x for x in vector)) or 1.0
        vector = [x / length for x in vector]
    if body.encoding_format == "base64":
        return base64.b64encode(array.array("f", vector).tobytes()).decode()
    return vector
