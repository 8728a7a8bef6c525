"""`ser export`: an encoder as a file that timm loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sercli.commands.evaluation import read_model, require_model, say_to_stderr, say_what_was_read
from sercli.commands.options import ModelOptions, option_objects
from sercli.visible import counted, say

if TYPE_CHECKING:
    from sercli.runs.facts import RunFacts


@option_objects
def export(
    model: ModelOptions,
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace OUT if it is there already.")
    ] = False,
) -> None:
    """Write an encoder as .safetensors for timm, check it there, and print the line that loads it.

    An ordinary ViT loads with timm alone; one with delayed [CLS] needs `import sercli`, which adds
    `ser_vit` to timm. The file is loaded afresh by timm, and its output must equal ours
    to 1e-5; what was trained, and how, is in its header. It can be a MODEL again, and so can
    checkpoints of moco-v3, DINO, Barlow Twins, the SER authors, dinov2, timm, lightly, solo-learn,
    torchvision.

    Code in a checkpoint is never run. One that needs it to be read is refused; convert it once,
    where you trust it, in Python:

    ```
    import torch
    state = torch.load("theirs.pth", "cpu", weights_only=False)["state_dict"]
    tensors = {k: v for k, v in state.items() if torch.is_tensor(v)}
    torch.save({"state_dict": tensors}, "plain.pth")
    ```
    """
    from sercli.encoders.asked import require_free
    from sercli.runs.facts import facts_of

    require_free(out, force=force)
    require_model(model)
    from sercli.encoders.export import export as write

    loaded = read_model(model)
    say_what_was_read(loaded)
    exported = write(loaded, out, facts=_header(facts_of(model.source)), force=force)
    say(
        f"wrote {exported.path}: {counted(exported.tensors, 'tensor')}, {loaded.key} of "
        f"{model.source}; timm's output differs from ours by {exported.difference:.1e} at most",
        *exported.code.split("\n"),
    )
    own, theirs = loaded.encoder.pos_resize, "bicubic-antialias"
    if own != theirs and not loaded.encoder.cls_after:
        say_to_stderr(
            f"At another size timm's ViT resamples positions by {theirs}; ser, reading this file, "
            f"goes on with {own}."
        )


def _header(run: RunFacts) -> dict[str, str]:
    """What a run was, for the header; nothing of other models."""
    if not run.recipe:
        return {}
    settings = {
        "recipe": run.record.get("recipe_name"),
        "status": run.record.get("status"),
        "seed": run.recipe.get("seed"),
        **{
            name: run.setting(section, setting)
            for name, section, setting in (
                ("method", "method", "name"),
                ("addon", "addon", "name"),
                ("addon_layer", "addon", "layer"),
                ("addon_weight", "addon", "weight"),
                ("views", "views", "setting"),
                ("data", "data", "path"),
                ("epochs", "train", "epochs"),
                ("max_steps", "train", "max_steps"),
            )
        },
    }
    return {name: str(value) for name, value in settings.items() if value is not None}
