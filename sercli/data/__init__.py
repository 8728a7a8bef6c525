"""Data sets: where images come from. Importing this package does not import torch.

- `registry.py`: what kinds of data there are, and `open_source(path, split, …)`, which opens any.
- `kinds/`: one file a kind. A new kind is a file there; nothing else names it.
- `images/`: class folders. `shapes/`: the embedded world. `coco/`: detection sets in COCO's format.
- `robustness/`: ImageNet-C, -P, -R, -A, -Sketch, -V2. `corruptions/`: the 19 of ImageNet-C.
- `archives/`, `lists/`, `tables/`: other forms of sets. `shards/`: copies for fast reading.
- `loading.py`: batches by loader processes (`workers.py`) through shared memory (`ring.py`).
- `source.py`: what a set of images is to the rest of `ser`.
"""

from sercli.data.images.folder import ImageFolder
from sercli.data.registry import DataKind, has_split, open_source, register
from sercli.data.shapes.world import ShapesSource
from sercli.data.source import ImageSource, UnreadableImage

__all__ = [
    "DataKind",
    "ImageFolder",
    "ImageSource",
    "ShapesSource",
    "UnreadableImage",
    "has_split",
    "open_source",
    "register",
]
