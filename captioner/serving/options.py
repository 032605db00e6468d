"""Options of the service, and those that requests take in their query."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from captioner.images import MAX_JPEG_PIXELS
from captioner.search_options import Length, Method, SearchOptions, parse_region

MAX_FILES = 16
"""Files in a request."""
MAX_CAPTIONS = 16
"""Captions of a photo, and beams."""
SEARCH_OF = {
    **dict.fromkeys(("beam", "length_penalty", "consensus"), "beam"),
    **dict.fromkeys(("temperature", "top_p", "seed"), "sample"),
}
"""Option -> the only search that it applies to."""


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """What `captioner serve` serves, and its limits."""

    model: str = "bundled"
    device: str = "auto"
    int8: bool = False
    batch_size: int | None = None
    """Photos captioned together; None leaves it to the device."""
    workers: int = 2
    """Processes that decode photos."""
    queue: int = 64
    """Photos accepted at a time, over all requests."""
    max_bytes: int = 32 * 2**20
    """Bytes of a request's body."""
    max_pixels: int = MAX_JPEG_PIXELS
    """Pixels of a photo; `open_image` has lower limits for some formats."""
    timeout: float = 60.0
    """Seconds until a request is answered with 503."""
    token: str | None = None
    """Bearer token that requests need; None needs none."""
    root: Path | None = None
    """Folder whose photos are listed, and in which captions are saved; None lists none."""
    hosts: tuple[str, ...] = ()
    """Names that the Host header may hold besides localhost and IP addresses; `*` allows all."""


# FastAPI passes the values of a tuple's parameter as a list.
Region: TypeAlias = Annotated[
    tuple[float, float, float, float] | None,
    BeforeValidator(lambda values: parse_region(",".join(values)), json_schema_input_type=str),
]


class Query(BaseModel):
    """Options of every request; unknown ones are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    region: Annotated[Region, Field(description="only this part: fractions X,Y,W,H", examples=["0,0,0.5,1"])] = None
    hide: Annotated[Region, Field(description="without this part: fractions X,Y,W,H", examples=["0,0,0.5,1"])] = None


class CaptionQuery(Query):
    """How to caption; photos of equal queries share a batch."""

    search: Method = "beam"
    length: Length = "medium"
    num_captions: Annotated[int, Field(ge=1, le=MAX_CAPTIONS)] = 1
    beam: Annotated[int, Field(ge=1, le=MAX_CAPTIONS, description="width of beam search; default: 5")] | None = None
    max_length: Annotated[int, Field(ge=2, le=1000)] | None = None
    length_penalty: Annotated[float, Field(ge=-5, le=5)] | None = None
    consensus: Annotated[bool, Field(description="of the beams, the caption most like the others")] = True
    no_repeat_ngram: Annotated[int, Field(ge=0, le=1000)] | None = None
    temperature: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    top_p: Annotated[float, Field(ge=0.01, le=1)] = 0.9
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    prefix: Annotated[str, Field(max_length=300, description="first words of every caption")] = ""

    @model_validator(mode="after")
    def _check_search(self) -> Self:
        for name, search in SEARCH_OF.items():
            if self.search != search and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: is for search={search}")
        if self.search == "greedy" and self.num_captions > 1:
            raise ValueError("num_captions: greedy search finds one; use search=beam or search=sample")
        if self.search != "beam" and self.length == "short":
            raise ValueError("length=short: is for search=beam, by its length penalty")
        return self

    def search_options(self) -> SearchOptions:
        same = self.model_dump(include={"length", "max_length", "no_repeat_ngram", *SEARCH_OF})
        return SearchOptions(method=self.search, captions=self.num_captions, **same)


class InspectQuery(Query):
    """What to inspect: the model's own caption or another, and which maps."""

    caption: Annotated[str, Field(max_length=1000, description="inspect this caption, not the model's own")] | None = (
        None
    )
    num_captions: Annotated[int, Field(ge=1, le=MAX_CAPTIONS, description="captions in a report")] = 1
    method: Literal["refined", "relevance", "raw", "perturbation"] = "refined"
    layer: Annotated[int, Field(ge=0, le=1000, description="decoder layer; default: all")] | None = None
    head: Annotated[int, Field(ge=0, le=1000, description="attention head; default: all")] | None = None

    @model_validator(mode="after")
    def _check_captions(self) -> Self:
        if self.caption is not None and self.num_captions > 1:
            raise ValueError("num_captions: is for the model's own captions; leave caption out")
        return self
