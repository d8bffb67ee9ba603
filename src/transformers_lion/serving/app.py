"""The routes of the service. The two engines run the same application."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from .. import __version__
from ..inference import Answer
from . import chat
from .checks import (
    ask_all,
    check_count,
    check_texts,
    describe_all,
    generation_of,
    locate_all,
)
from .errors import ServiceError, invalid
from .gate import Gate
from .model import AnswerWork, TagWork
from .schemas import (
    AskBody,
    AskResult,
    CaptionBody,
    CaptionResult,
    ChatBody,
    ChatResult,
    DescribeBody,
    DescribeResult,
    Description,
    ErrorResult,
    LocateBody,
    Located,
    LocateResult,
    ModelCard,
    ModelList,
    QuestionAnswer,
    TagBody,
    TagResult,
)
from .service import Service

logger = logging.getLogger(__name__)

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResult, "description": "Something in the request is wrong or not supported."},
    404: {"model": ErrorResult, "description": "There is no such model."},
    413: {"model": ErrorResult, "description": "The request or the image has too many bytes."},
    500: {"model": ErrorResult, "description": "The model failed on this request."},
    503: {"model": ErrorResult, "description": "The service is busy, loading or shutting down. Retry later."},
    504: {"model": ErrorResult, "description": "The answer took too long."},
}
NO_CACHE = {"Cache-Control": "no-cache"}
UNION_MEMBERS = ("str", "int", "float", "bool")
"""Names that Pydantic adds to the place of an error in a field with several types."""
DESCRIPTION = """LION answers questions about images. `image` is a data URI, or a URL of an allowed host.

All errors have the form `{"error": {"message", "type", "param", "code"}}`."""


def build_app(service: Service) -> FastAPI:
    """Return the application of a service. The caller starts and closes the service."""
    app = FastAPI(title="LION", version=__version__, description=DESCRIPTION)
    app.add_middleware(Gate, service=service)
    app.exception_handler(HTTPException)(handle_http_exception)
    app.exception_handler(RequestValidationError)(handle_validation_error)
    app.exception_handler(Exception)(handle_error)
    add_state_routes(app, service)
    add_chat_routes(app, service)
    add_task_routes(app, service)
    return app


# --- routes -----------------------------------------------------------------------------------------------------------


def add_state_routes(app: FastAPI, service: Service) -> None:
    """Add the routes about the state of the service."""

    @app.get("/health", tags=["state"])
    async def health() -> JSONResponse:
        """Wait until the model is loaded. Status 503 if it cannot be loaded, or is not loaded in time."""
        try:
            await asyncio.wait_for(service.loaded.wait(), service.limits.timeout)
        except asyncio.TimeoutError:
            return JSONResponse({"status": "loading"}, 503)
        if service.model is None:
            return JSONResponse({"status": "failed"}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/ready", tags=["state"])
    async def ready() -> JSONResponse:
        """Status 200 if requests are accepted now, otherwise 503."""
        state = "draining" if not service.admission.is_open else "loading" if service.model is None else "ready"
        return JSONResponse({"status": state}, 200 if service.is_ready else 503)

    @app.get("/metrics", tags=["state"])
    async def metrics() -> Response:
        """Metrics in the text format of Prometheus."""
        text = service.metrics.text(service.admission.count, service.is_ready)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", tags=["OpenAI"])
    async def models() -> ModelList:
        """List the only model."""
        return ModelList(data=[ModelCard(id=service.name, created=service.created)])

    @app.get("/v1/models/{model:path}", tags=["OpenAI"], responses={404: ERRORS[404]})
    async def model_card(model: str) -> ModelCard:
        """Show the model."""
        if model != service.name:
            message = f"There is no model {model!r}; this service has {service.name!r}."
            raise ServiceError(404, message, "model_not_found", "model")
        return ModelCard(id=service.name, created=service.created)


def add_chat_routes(app: FastAPI, service: Service) -> None:
    """Add chat completions."""

    @app.post("/v1/chat/completions", tags=["OpenAI"], response_model=ChatResult, responses=ERRORS)
    async def chat_completions(body: ChatBody) -> Any:
        """Answer a question about an image, in OpenAI's format."""
        question = chat.read_chat(service, body)
        if not body.stream:
            return await service.within_time(chat.complete(service, question))
        has_usage = bool(body.stream_options and body.stream_options.include_usage)
        events = chat.stream(service, question, has_usage)
        first = await anext(events)  # raises errors before the response begins
        return StreamingResponse(continue_with(first, events), media_type="text/event-stream", headers=NO_CACHE)


async def continue_with(first: str, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Yield the first event and all others."""
    async with aclosing(events):
        yield first
        async for event in events:
            yield event


def add_task_routes(app: FastAPI, service: Service) -> None:
    """Add a route for each task."""

    @app.post("/v1/caption", tags=["tasks"], responses=ERRORS)
    async def caption(body: CaptionBody) -> CaptionResult:
        """Describe an image in a short sentence."""
        generation = generation_of(service, body)

        async def run() -> CaptionResult:
            async with service.images.read(body.image, "image") as image:
                requests = ask_all(image, [service.lion.processor.caption_prompt], body)
                (answer,) = await service.answer(AnswerWork(requests, generation))
                return CaptionResult(caption=answer.text, tags=answer.tags, prompt=answer.prompt, **size_of([answer]))

        return await service.within_time(run())

    @app.post("/v1/ask", tags=["tasks"], responses=ERRORS)
    async def ask(body: AskBody) -> AskResult:
        """Answer questions about an image."""
        generation = generation_of(service, body)
        check_texts(service, body.questions, "questions")

        async def run() -> AskResult:
            async with service.images.read(body.image, "image") as image:
                answers = await service.answer(AnswerWork(ask_all(image, body.questions, body), generation))
            pairs = zip(body.questions, answers, strict=True)
            rows = [QuestionAnswer(question=question, answer=answer.text) for question, answer in pairs]
            return AskResult(answers=rows, tags=answers[0].tags, **size_of(answers))

        return await service.within_time(run())

    @app.post("/v1/locate", tags=["tasks"], responses=ERRORS)
    async def locate(body: LocateBody) -> LocateResult:
        """Locate phrases in an image."""
        generation = generation_of(service, body)
        check_texts(service, body.phrases, "phrases")

        async def run() -> LocateResult:
            async with service.images.read(body.image, "image") as image:
                work = AnswerWork(locate_all(image, body.phrases, body), generation, body.scores)
                answers = await service.answer(work)
            rows = [located(phrase, answer) for phrase, answer in zip(body.phrases, answers, strict=True)]
            return LocateResult(located=rows, tags=answers[0].tags, **size_of(answers))

        return await service.within_time(run())

    @app.post("/v1/describe", tags=["tasks"], responses=ERRORS)
    async def describe(body: DescribeBody) -> DescribeResult:
        """Describe the contents of boxes."""
        generation = generation_of(service, body)
        check_count(service, len(body.boxes), "boxes")

        async def run() -> DescribeResult:
            async with service.images.read(body.image, "image") as image:
                answers = await service.answer(AnswerWork(describe_all(image, body.boxes, body), generation))
            pairs = zip(body.boxes, answers, strict=True)
            rows = [Description(box=box, description=answer.text) for box, answer in pairs]
            return DescribeResult(descriptions=rows, tags=answers[0].tags, **size_of(answers))

        return await service.within_time(run())

    @app.post("/v1/tag", tags=["tasks"], responses=ERRORS)
    async def tag(body: TagBody) -> TagResult:
        """List what is in an image."""

        async def run() -> TagResult:
            async with service.images.read(body.image, "image") as image:
                tagged = await service.tag(TagWork(image, body.threshold, body.top_k))
                found = tagged.tags or []
                scores = [round(found_tag["score"], 4) for found_tag in found]
                return TagResult(tags=tagged.names or [], scores=scores, width=image.width, height=image.height)

        return await service.within_time(run())


def size_of(answers: Sequence[Answer]) -> dict[str, int]:
    """Return the size of the image that all answers are about."""
    width, height = answers[0].image_size
    return {"width": width, "height": height}


def located(phrase: str, answer: Answer) -> Located:
    """Return the boxes of a phrase."""
    width, height = answer.image_size
    scores = None if answer.scores is None else [None if score != score else round(score, 4) for score in answer.scores]
    return Located(
        phrase=phrase,
        boxes=[chat.round_box(box) for box in answer.boxes],
        fractions=[
            [round(value / side, 4) for value, side in zip(box, (width, height, width, height), strict=True)]
            for box in answer.boxes
        ],
        scores=scores,
    )


# --- errors -----------------------------------------------------------------------------------------------------------


def respond(error: ServiceError) -> JSONResponse:
    """Return the response for an error."""
    return JSONResponse(error.body, error.status_code, error.headers)


async def handle_http_exception(request: Request, error: Any) -> JSONResponse:
    """Respond to an error of the service, or of the framework, such as an unknown path."""
    if isinstance(error, ServiceError):
        return respond(error)
    known = {404: f"There is no path {request.url.path}.", 405: f"{request.url.path} does not accept {request.method}."}
    message = known.get(error.status_code, f"{error.detail}.")
    return respond(ServiceError(error.status_code, message, "not_found" if error.status_code == 404 else "http_error"))


async def handle_validation_error(request: Request, error: Any) -> JSONResponse:
    """Respond to a request that does not fit the schema."""
    first = error.errors()[0]
    kind, place = first["type"], [part for part in first["loc"][1:] if not is_union_member(part)]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
    if kind == "json_invalid":
        return respond(invalid(f"The request is not valid JSON: {first['ctx']['error']}.", code="invalid_json"))
    if not param:
        message = "The request must be a JSON object, sent with the header Content-Type: application/json."
        return respond(invalid(message, code="invalid_json"))
    if kind == "extra_forbidden":
        return respond(invalid(f"Unknown parameter: {param}.", param, "unknown_parameter"))
    if kind == "missing":
        return respond(invalid(f"{param} is missing.", param, "missing_parameter"))
    return respond(invalid(f"{param}: {first['msg']}.", param))


def is_union_member(part: Any) -> bool:
    """Whether a part of an error's place is a type, not a name."""
    return isinstance(part, str) and (part in UNION_MEMBERS or "[" in part)


async def handle_error(request: Request, error: Exception) -> JSONResponse:
    """Respond to an error that nobody expected. The server logs its traceback."""
    kind = type(error).__name__
    return respond(ServiceError(500, f"The service failed with {kind}. Its log has more.", "failed"))


__all__ = ["build_app"]
