"""What settings are made of: a section of a recipe, and the kinds of numbers in it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

from sercli.runs.places import joined, parted

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Range = tuple[Positive, Positive]
Colour = tuple[float, float, float]
Spread = tuple[Positive, Positive, Positive]

# What nearly all encoders normalise their images by: RGB in 0…1.
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)


def _as_one(given: Any) -> Any:
    """Several places as the one text that the rest of ser has for them; anything else as it is."""
    several = isinstance(given, list | tuple) and bool(given)
    return joined([str(one) for one in given]) if several else given


def _as_written(text: str) -> str | list[str]:
    """A place, or the list of several, as recipes have them."""
    places = parted(text)
    return text if len(places) == 1 else places


# A place, or several as one text.
Places = Annotated[
    str,
    BeforeValidator(_as_one),
    PlainSerializer(_as_written),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        }
    ),
]


class Section(BaseModel):
    """A group of settings; unknown keys are refused, values do not change once resolved."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )
