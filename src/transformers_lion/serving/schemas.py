"""The JSON of requests and responses.

Requests are checked strictly: an unknown parameter or a wrong type is an error that names the parameter. Limits that
depend on the service are checked in `checks.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

ImageText = Annotated[
    str, Field(description="A data URI (`data:image/jpeg;base64,...`), or a URL of an allowed host.", min_length=1)
]
TagNames = Annotated[
    str | list[str] | None,
    Field(description="Tags for the prompt, as names or as one string. By default, the tagger finds them."),
]
TagOrigin = Annotated[
    Literal["data", "tagger", "none"] | None,
    Field(description="Where tags come from; `none` for a prompt without tags."),
]
Beams = Annotated[int | None, Field(ge=1, description="Number of beams. Default: that of the checkpoint.")]
MaxTokens = Annotated[int | None, Field(ge=1, description="Maximum length of an answer in tokens.")]
BoxList = Annotated[list[float], Field(min_length=4, max_length=4)]
"""(x1, y1, x2, y2) in pixels of the upright image."""


class Body(BaseModel):
    """A request."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class ImageBody(Body):
    """A request about an image."""

    image: ImageText


class PromptBody(ImageBody):
    """A request about an image that the language model answers."""

    tags: TagNames = None
    tag_source: TagOrigin = None
    num_beams: Beams = None
    max_tokens: MaxTokens = None


class CaptionBody(PromptBody):
    """A request for a caption."""


class AskBody(PromptBody):
    """Questions about an image."""

    questions: Annotated[list[str], Field(min_length=1)]


class LocateBody(PromptBody):
    """Phrases to locate in an image."""

    phrases: Annotated[list[str], Field(min_length=1, description='Such as "the red cup".')]
    scores: Annotated[bool, Field(description="Whether to score each box, from 0 to 1.")] = False


class DescribeBody(PromptBody):
    """Boxes to describe."""

    boxes: Annotated[list[BoxList], Field(min_length=1, description="[x1, y1, x2, y2] in pixels.")]


class TagBody(ImageBody):
    """An image to tag."""

    threshold: Annotated[float | None, Field(ge=0, le=1, description="Minimum score. Default: each tag's own.")] = None
    top_k: Annotated[int | None, Field(ge=1, description="Maximum number of tags.")] = None


class ImageResult(BaseModel):
    """Size of the upright image in pixels."""

    width: int
    height: int


class CaptionResult(ImageResult):
    """A caption."""

    caption: str
    tags: list[str] | None
    prompt: str


class QuestionAnswer(BaseModel):
    """The answer to a question."""

    question: str
    answer: str


class AskResult(ImageResult):
    """Answers in the order of the questions."""

    answers: list[QuestionAnswer]
    tags: list[str] | None


class Located(BaseModel):
    """The boxes of a phrase: in pixels, as fractions of the image, and their scores if requested."""

    phrase: str
    boxes: list[list[float]]
    fractions: list[list[float]]
    scores: list[float | None] | None


class LocateResult(ImageResult):
    """Boxes in the order of the phrases."""

    located: list[Located]
    tags: list[str] | None


class Description(BaseModel):
    """The description of a box."""

    box: list[float]
    description: str


class DescribeResult(ImageResult):
    """Descriptions in the order of the boxes."""

    descriptions: list[Description]
    tags: list[str] | None


class TagResult(ImageResult):
    """Tags and their scores."""

    tags: list[str]
    scores: list[float]


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResult(BaseModel):
    """Any error."""

    error: ErrorDetail


class TemplateArguments(Body):
    """LION's own parameters of a chat completion, named as for `transformers serve`."""

    task_type: Literal["image_level", "region_level"] | None = None
    tags: TagNames = None
    tag_source: TagOrigin = None
    boxes: Annotated[
        list[BoxList] | None,
        Field(min_length=1, description="Boxes in pixels for the placeholder `{boxes}` in the text."),
    ] = None


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool | None = None


MESSAGE_SCHEMA = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["user", "system", "developer"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "anyOf": [
                            {"properties": {"type": {"const": "text"}, "text": {"type": "string"}}},
                            {"properties": {"type": {"const": "image_url"}, "image_url": {"type": "object"}}},
                        ]
                    },
                },
            ]
        },
    },
}


class ChatBody(BaseModel):
    """A chat completion in OpenAI's format. Other parameters of OpenAI are refused, unless they change nothing."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)  # `chat.py` checks the others

    model: str
    messages: Annotated[list[Annotated[Any, WithJsonSchema(MESSAGE_SCHEMA)]], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: MaxTokens = None
    max_completion_tokens: MaxTokens = None
    temperature: Annotated[
        float | None, Field(ge=0, le=2, description="Above 0, tokens are sampled, without beam search.")
    ] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    num_beams: Beams = None
    seed: Annotated[int | None, Field(description="Allowed where nothing is sampled.")] = None
    chat_template_kwargs: TemplateArguments | None = None
    user: str | None = None


class Usage(BaseModel):
    """Number of tokens. The image is not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class EntityResult(BaseModel):
    """A phrase of an answer with its boxes in pixels."""

    phrase: str
    span: tuple[int, int]
    boxes: list[list[float]]


class LionDetails(ImageResult):
    """What LION knows beyond OpenAI's format."""

    task_type: str
    prompt: str
    tags: list[str] | None
    entities: list[EntityResult]


class ChatMessage(BaseModel):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The only choice."""

    index: Literal[0] = 0
    message: ChatMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatResult(BaseModel):
    """A chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    lion: LionDetails


class ModelCard(BaseModel):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "transformers-lion"


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
