"""Chat completions in OpenAI's format.

LION answers one question about one image, and does not remember earlier turns. So the texts of all system, developer
and user messages are joined by the checkpoint's chat template, and messages of other roles are refused. A parameter
that LION cannot honor is refused, never ignored.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..grounding import Box
from ..inference import REGION_QUESTION, Answer, Request
from ..tag_source import Tags
from .checks import check_count, check_tag_arguments, check_text, make_generation, write_boxes
from .errors import ServiceError, invalid
from .model import AnswerWork, Generation, num_beams
from .schemas import (
    ChatBody,
    ChatMessage,
    ChatResult,
    Choice,
    EntityResult,
    LionDetails,
    TemplateArguments,
    Usage,
)
from .service import Service

PLACEHOLDER = "{boxes}"
ROLES = ("user", "system", "developer")
DONE = "data: [DONE]\n\n"

UNCHANGING: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "stop": ([],),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
"""Parameters of OpenAI that LION does not support, with the values that change nothing and are therefore accepted."""
LABELS = ("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier")
"""Parameters of OpenAI that do not concern the answer."""


@dataclass(frozen=True)
class Chat:
    """A chat completion to compute.

    Attributes:
        source: The image, as a data URI or a URL.
        source_param: Where it is in the request.
        text: The question.
        arguments: LION's own parameters.
        generation: How the answer is generated.
    """

    source: str
    source_param: str
    text: str
    arguments: TemplateArguments
    generation: Generation

    def request(self, image: Image.Image) -> Request:
        """Return the request to the model.

        Raises:
            ServiceError: If a box is outside the image.
        """
        arguments, text = self.arguments, self.text
        if arguments.boxes is not None:
            boxes = "".join(write_boxes(arguments.boxes, image, "chat_template_kwargs.boxes"))
            text = text.replace(PLACEHOLDER, boxes)
        task_type = arguments.task_type or ("image_level" if arguments.boxes is None else "region_level")
        return Request(image, text, task_type, arguments.tags, arguments.tag_source)


# --- reading requests -------------------------------------------------------------------------------------------------


def read_chat(service: Service, body: ChatBody) -> Chat:
    """Check a request.

    Raises:
        ServiceError: If something is wrong or not supported.
    """
    if body.model != service.name:
        raise ServiceError(
            404, f"There is no model {body.model!r}; this service has {service.name!r}.", "model_not_found", "model"
        )
    for name, value in (body.model_extra or {}).items():
        check_parameter(name, value)
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options is only allowed with stream=true.", "stream_options")
    source, source_param, messages = read_messages(body.messages)
    arguments = body.chat_template_kwargs or TemplateArguments()
    check_tag_arguments(service, arguments.tags, arguments.tag_source, "chat_template_kwargs.")
    text = read_text(service, messages, arguments)
    return Chat(source, source_param, text, arguments, read_generation(service, body))


def check_parameter(name: str, value: Any) -> None:
    """Raise `ServiceError` for a parameter that is unknown, or not supported with this value."""
    if name in LABELS:
        return
    if name not in UNCHANGING:
        raise invalid(f"Unknown parameter: {name}.", name, "unknown_parameter")
    if value is None or value in UNCHANGING[name]:
        return
    shown = json.dumps(value)[:60]
    raise invalid(f"{name} is {shown}, which LION does not support. Leave it out.", name, "unsupported_parameter")


def read_generation(service: Service, body: ChatBody) -> Generation:
    """Return how the answer is generated."""
    limits = {"max_tokens": body.max_tokens, "max_completion_tokens": body.max_completion_tokens}
    given = {name: value for name, value in limits.items() if value is not None}
    if len(set(given.values())) > 1:
        raise invalid(
            f"max_tokens is {body.max_tokens} and max_completion_tokens is {body.max_completion_tokens}. Pass only one "
            "of them.",
            "max_tokens",
        )
    param, limit = next(iter(given.items()), ("max_tokens", None))
    generation = make_generation(service, body.num_beams, limit, param, body.temperature, body.top_p)
    if generation.is_sampled and body.seed is not None:
        raise invalid("seed is not supported with sampling. Use temperature=0 for repeatable answers.", "seed")
    return generation


def read_messages(messages: Sequence[Any]) -> tuple[str, str, list[dict[str, Any]]]:
    """Return the image, where it is in the request, and the messages as the chat template reads them.

    Raises:
        ServiceError: If there is not exactly one image, or a message is not valid.
    """
    images: list[tuple[str, str]] = []
    read = [read_message(message, f"messages[{position}]", images) for position, message in enumerate(messages)]
    if len(images) != 1:
        given = "no image" if not images else f"{len(images)} images"
        raise invalid(f"messages have {given}, but LION answers questions about exactly one image.", "messages")
    return *images[0], read


def read_message(message: Any, param: str, images: list[tuple[str, str]]) -> dict[str, Any]:
    """Return a message as the chat template reads it, and add its images to `images`."""
    if not isinstance(message, dict):
        raise invalid(f"{param} must be an object with role and content.", param)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise invalid(
            f"{param}.role is {json.dumps(role)[:60]}, but must be 'user', 'system' or 'developer'. LION does not "
            "remember earlier turns: send each question in a request of its own.",
            f"{param}.role",
        )
    unknown = sorted(message.keys() - {"role", "content", "name"})
    if unknown:
        raise invalid(f"Unknown parameter: {param}.{unknown[0]}.", f"{param}.{unknown[0]}", "unknown_parameter")
    if isinstance(content, str):
        return {"role": role, "content": [{"type": "text", "text": content}]}
    if not isinstance(content, list) or not content:
        raise invalid(f"{param}.content must be a string or a list of parts.", f"{param}.content")
    parts = [read_part(part, f"{param}.content[{position}]", images) for position, part in enumerate(content)]
    return {"role": role, "content": parts}


def read_part(part: Any, param: str, images: list[tuple[str, str]]) -> dict[str, Any]:
    """Return a part of a message as the chat template reads it, and add its image to `images`."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image_url":
        images.append((read_image_url(part.get("image_url"), f"{param}.image_url"), f"{param}.image_url"))
        return {"type": "image"}
    if kind == "text":
        raise invalid(f"{param}.text must be a string.", f"{param}.text")
    raise invalid(f"{param}.type must be 'text' or 'image_url', but is {json.dumps(kind)[:60]}.", f"{param}.type")


def read_image_url(value: Any, param: str) -> str:
    """Return the address of an image, which is a string or an object with `url`."""
    if isinstance(value, dict):
        if value.get("detail") not in (None, "auto"):
            raise invalid(
                f"{param}.detail is {json.dumps(value['detail'])[:60]}, but LION reads all images at one resolution. "
                "Leave it out.",
                f"{param}.detail",
                "unsupported_parameter",
            )
        value = value.get("url")
    if not isinstance(value, str) or not value:
        raise invalid(f"{param} must be an object with url, a data URI such as 'data:image/jpeg;base64,...'.", param)
    return value


def read_text(service: Service, messages: list[dict[str, Any]], arguments: TemplateArguments) -> str:
    """Return the question, with a placeholder for boxes if there are any."""
    try:
        text = service.lion.processor.apply_chat_template(messages, tokenize=False)
    except ValueError as error:
        raise invalid(str(error), "messages") from error
    if arguments.boxes is None:
        check_text(service, text, "messages")
        return text
    check_count(service, len(arguments.boxes), "chat_template_kwargs.boxes")
    if not text.strip():
        return REGION_QUESTION.format(box=PLACEHOLDER)
    check_text(service, text, "messages")
    if PLACEHOLDER not in text:
        raise invalid(f"chat_template_kwargs.boxes needs the placeholder {PLACEHOLDER} in the text.", "messages")
    return text


# --- writing responses ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """What all chunks of a response have in common."""

    model: str
    id: str
    created: int

    @classmethod
    def new(cls, model: str) -> "Identity":
        """Return a new identity."""
        return cls(model, f"chatcmpl-{uuid.uuid4().hex}", int(time.time()))


async def complete(service: Service, chat: Chat) -> ChatResult:
    """Answer a request as a whole."""
    async with service.images.read(chat.source, chat.source_param) as image:
        request = chat.request(image)
        (answer,) = await service.answer(AnswerWork([request], chat.generation))
    identity = Identity.new(service.name)
    return ChatResult(
        **vars(identity),
        choices=[Choice(message=ChatMessage(content=answer.text), finish_reason=finish_reason(answer))],
        usage=count_usage(service, request, answer),
        lion=details(request, answer),
    )


async def stream(service: Service, chat: Chat, has_usage: bool) -> AsyncGenerator[str, None]:
    """Yield a response as events.

    The first event comes with the first word, so an error before it is raised, and has an HTTP status. Later errors are
    events. Each stream ends with `[DONE]`.
    """
    identity = Identity.new(service.name)
    sent: str | None = None
    try:
        async with aclosing(follow(service, chat)) as texts:
            async for text, request, answer in texts:
                if sent is None:
                    sent = ""
                    yield chunk(identity, {"role": "assistant", "content": ""})
                if not text.startswith(sent):
                    raise ServiceError(500, "The end of the answer changed words that were already sent.", "failed")
                if text != sent:
                    yield chunk(identity, {"content": text[len(sent) :]})
                    sent = text
                if answer is None:
                    continue
                yield chunk(identity, {}, finish_reason(answer), lion=details(request, answer).model_dump())
                if has_usage:
                    usage = count_usage(service, request, answer).model_dump()
                    yield event({**head(identity), "choices": [], "usage": usage})
    except ServiceError as error:
        if sent is None:
            raise
        yield event(error.body)
    yield DONE


async def follow(service: Service, chat: Chat) -> AsyncGenerator[tuple[str, Request, Answer | None], None]:
    """Yield the text so far whenever it grows, and at the end the whole text with its answer.

    With beam search, which only knows the words at the end, there is only the whole text.

    Raises:
        ServiceError: If something fails, or the time is over.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + service.limits.timeout
    texts: asyncio.Queue[str | None] = asyncio.Queue()

    def on_text(text: str) -> None:
        loop.call_soon_threadsafe(texts.put_nowait, text)

    async with AsyncExitStack() as stack:
        reading = stack.enter_async_context(service.images.read(chat.source, chat.source_param))
        request = chat.request(await service.within_time(reading, deadline))
        work = AnswerWork([request], chat.generation, on_text=on_text if is_streamable(service, chat) else None)
        answering = asyncio.ensure_future(service.answer(work))
        stack.callback(answering.cancel)
        answering.add_done_callback(lambda _: texts.put_nowait(None))
        while (text := await service.within_time(texts.get(), deadline)) is not None:
            yield text, request, None
        (answer,) = answering.result()
        yield answer.text, request, answer


def is_streamable(service: Service, chat: Chat) -> bool:
    """Whether the words of an answer are known before its end."""
    return num_beams(service.lion, chat.generation) == 1


def head(identity: Identity) -> dict[str, Any]:
    """Return the fields that all chunks have."""
    return {**vars(identity), "object": "chat.completion.chunk"}


def chunk(identity: Identity, delta: dict[str, Any], finish: str | None = None, **extra: Any) -> str:
    """Return a chunk of a stream as an event."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return event({**head(identity), "choices": [choice], **extra})


def event(data: dict[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def finish_reason(answer: Answer) -> Any:
    """Return why an answer ends: "stop" or "length"."""
    return "stop" if answer.is_complete else "length"


def count_usage(service: Service, request: Request, answer: Answer) -> Usage:
    """Count the tokens of the prompt and of the answer."""
    tags: Tags = request.tags if request.tags is not None and answer.tags is not None else answer.tags
    prompt = len(service.lion.processor(text=[request.question], tags=[tags])["input_ids"][0])
    return Usage(prompt_tokens=prompt, completion_tokens=answer.num_tokens, total_tokens=prompt + answer.num_tokens)


def details(request: Request, answer: Answer) -> LionDetails:
    """Return what LION knows beyond OpenAI's format."""
    width, height = answer.image_size
    entities = [
        EntityResult(phrase=phrase, span=span, boxes=[round_box(box) for box in boxes])
        for phrase, span, boxes in answer.entities
    ]
    return LionDetails(
        width=width,
        height=height,
        task_type=request.task_type,
        prompt=answer.prompt,
        tags=answer.tags,
        entities=entities,
    )


def round_box(box: Box) -> list[float]:
    """Return a box in pixels with two decimals, as `lion --json` prints it."""
    return [round(value, 2) for value in box]


__all__ = ["Chat", "complete", "read_chat", "round_box", "stream"]
