"""What loader processes read, in this process."""

from types import SimpleNamespace

from sercli.data.loading import load_rows
from sercli.views.reading import Samples


def read_all(images, tickets):
    """The samples of one batch of tickets."""
    (batch,) = load_rows(images, [tickets], rows=len(tickets), workers=0)
    return Samples.of(batch)


def read_one(images, ticket):
    """What is read for one ticket: the fields of `Samples`, without their first dimension."""
    samples = read_all(images, [ticket])
    return SimpleNamespace(
        crops=[crop[0] for crop in samples.crops],
        uniforms=samples.uniforms[0],
        boxes=samples.boxes[0],
        turns=samples.turns[0],
        index=samples.indices[0],
        unreadable=samples.unreadable,
    )
