"""Other people's checkpoints: which layout a file has, where its encoder is, and what it becomes.

`read` finds the encoder in a file, translates its names and shapes into ours, and insists that
every tensor of ours is filled and every tensor of theirs is used or a known head. What weights
cannot show is never guessed: the number of heads where no public code fixes it, and the block after
which [CLS] joins where the positional embedding has no place for it. Both are asked for with one
line, and `Hints` are the answers.

- `layouts.py`: the table, `LAYOUTS`. A new project is one entry there.
- `names.py`: what each family calls the tensors of a ViT, and what becomes of them.
- `finding.py`: where in a file the encoder is, and which one is meant if it holds several.
- `beside.py`: what lies beside it in a folder of the Hugging Face Hub.
- `facts.py`: what the file says of it beside the tensors.
- `kinds.py`: which ViTs are refused for what they are, and what of the others is asked for.
- `architecture.py`: the ViT it is, from its shapes, what the file says and what the user says.
- `building.py`: `read`, and the translation into our encoder.
"""

from sercli.encoders.foreign.beside import Beside, read_beside
from sercli.encoders.foreign.building import ForeignEncoder, read
from sercli.encoders.foreign.facts import Colour, num_heads, resampling
from sercli.encoders.foreign.kinds import ATTENTION_POOL
from sercli.encoders.foreign.layouts import EXPORT_LAYOUT, LAYOUTS, Layout

__all__ = [
    "ATTENTION_POOL",
    "EXPORT_LAYOUT",
    "LAYOUTS",
    "Beside",
    "Colour",
    "ForeignEncoder",
    "Layout",
    "num_heads",
    "read",
    "read_beside",
    "resampling",
]
