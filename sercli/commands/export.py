"""`ser export`: an encoder in a form that others read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sercli.commands.evaluation import read_model, require_model, say_to_stderr, say_what_was_read
from sercli.commands.options import ModelOptions, option_objects
from sercli.encoders.export.asked import SUFFIXES
from sercli.errors import UserError
from sercli.visible import say

if TYPE_CHECKING:
    from sercli.runs.facts import RunFacts

    Form = str
else:
    Form = Literal[(*SUFFIXES,)]


@option_objects
def export(
    model: ModelOptions,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file or folder to write.")],
    form: Annotated[
        Form | None,
        typer.Option(
            "--format",
            help="timm: a .safetensors file; hf: a folder as the Hugging Face Hub has it; "
            "torchvision: a .pth file; onnx: an .onnx file. Default: by the name of OUT.",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="PIXELS",
            help="Side of the images it is for; positions are resampled by the model's own way. "
            "Default: what it was trained on.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace OUT if it is there already.")
    ] = False,
) -> None:
    """Write an encoder for timm, the Hub, torchvision or ONNX, and print the line that loads it.

    What was written is read back by the library it is for, and its output must equal ours to 1e-5.
    An ordinary ViT loads with timm alone; one with delayed [CLS], or other things that timm's ViTs
    do not have, needs `import sercli`, which adds `ser_vit` to timm. What was trained, and how, is
    in the file's header, and in a folder's model card with what was measured. A file for timm can
    be a MODEL again, and so can a folder, as `timm:local-dir:DIR`, and checkpoints of moco-v3,
    DINO, Barlow Twins, the SER authors, dinov2, timm, lightly, solo-learn, torchvision.

    Code in a checkpoint is never run. One that needs it to be read is refused; convert it once,
    where you trust it, in Python:

    ```
    import torch
    state = torch.load("theirs.pth", "cpu", weights_only=False)["state_dict"]
    tensors = {k: v for k, v in state.items() if torch.is_tensor(v)}
    torch.save({"state_dict": tensors}, "plain.pth")
    ```
    """
    from sercli.encoders.export.asked import form_of, require_free
    from sercli.runs.facts import facts_of, read_facts, run_holding

    chosen = form_of(out, form)
    require_free(out, chosen, force=force)
    require_model(model)
    from sercli.encoders.export.writing import export as write

    loaded = read_model(model)
    say_what_was_read(loaded)
    holding = run_holding(Path(model.source))
    facts = facts_of(model.source) if holding is None else read_facts(holding)
    exported = write(
        loaded.at(image_size),
        out,
        form=chosen,
        header=_header(facts),
        results=_results(facts) if chosen == "hf" else "",
        force=force,
    )
    say(
        f"wrote {exported.path}: {loaded.key} of {model.source}; {exported.reader}'s output "
        f"differs from ours by {exported.difference:.1e} at most",
        *exported.code.split("\n"),
    )
    say_to_stderr(*exported.remarks)


def _results(run: RunFacts) -> str:
    """What was measured of a run, as `ser compare` shows it, in Markdown; "": nothing was."""
    from sercli.report.compare.comparison import Options, compare_tables
    from sercli.report.formats.renderers import render

    if not run.record or not run.directory.read_results():
        return ""
    try:
        return render(compare_tables([Path(run.path)], Options()), "markdown")
    except UserError as error:
        say_to_stderr(f"note: the model card has no table of results ({error})")
        return ""


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
