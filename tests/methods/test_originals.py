"""Whole optimiser steps of the recipes' base methods against the loops of their authors.

golden/steps_*.npz were computed in float64 with the authors' own functions: moco-v3's builder and
schedules (the SER authors' copy gives the same bits), DINO's `train_one_epoch`, the SER authors'
Barlow Twins; all on the ViT of the SER authors' or DINO's code. Its position of [CLS], which ours
does not have, was held at zero, and stochastic depth was off.
"""

import dataclasses
import functools
import json
import math
import zlib

import numpy as np
import pytest
import torch

from sercli.encoders.vit import Encoder
from sercli.engine.progress import TrainingProgress
from sercli.engine.runtime import runtime_for
from sercli.engine.trainer import Trainer
from sercli.families import method_class, resolve
from sercli.recipe.listing import values_of
from sercli.runs.run_dir import RunDir
from sercli.signals import StopRequest
from tests.support.paths import GOLDEN, RECIPES
from tests.support.pictures import Pictures

BATCH, SIDE = 16, 32
# The rules are the recipes'; an epoch is a step, so that nine of them cross every switch.
SMALL = (
    f"data.image_size={SIDE}", "data.workers=0", "model.width=64", "model.depth=2",
    "model.num_heads=4", "model.patch_size=8", f"train.batch_size={BATCH}", "train.log_steps=1",
    "train.monitor_epochs=0",
)  # fmt: skip
PROJECTOR = ("method.hidden_width=128", "method.output_width=64")
RULES = {
    "moco-v3": ("imagenet/moco-none", (*PROJECTOR, "train.epochs=9", "train.warmup_epochs=2")),
    "dino": (
        "imagenet/dino-none",
        (
            "method.prototypes=256", "method.hidden_width=128", "method.bottleneck_width=32",
            "method.frozen_epochs=1", "method.temperature_epochs=4", "model.drop_path=0",
            "train.epochs=9", "train.warmup_epochs=2",
        ),
    ),
    # Its warm-up is ten epochs, whatever the length of the run.
    "barlow-twins": (
        "imagenet/barlow-twins-none",
        (*PROJECTOR, "train.epochs=12", "train.warmup_epochs=10"),
    ),
}  # fmt: skip


def drawn(name, shape):
    """Where a parameter starts: by its name, so that no start has to be stored."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
    leaf = name.rpartition(".")[2]
    if leaf == "lengths" or (leaf == "weight" and len(shape) == 1):
        return 1 + 0.1 * noise
    if leaf in ("bias", "cls_token", "pos_embed"):
        return 0.1 * noise
    return noise / math.sqrt(np.prod(shape[1:]))


def images_of(step):
    """Two views, float64 [2, 16, 3, 32, 32]."""
    return torch.from_numpy(np.random.RandomState(1000 + step).randn(2, BATCH, 3, SIDE, SIDE))


def projection(name, value):
    """One number of a tensor, which any change of it changes about as much."""
    along = np.random.RandomState(zlib.crc32(name.encode()) ^ 1).randn(*value.shape)
    return (value * along).sum() / math.sqrt(value.size)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Of a method: the trainer after its last step, by the recipe's rules, in float64."""
    folder = tmp_path_factory.mktemp("runs")
    return functools.cache(lambda method: train(folder / method, method))


def train(path, method):
    name, settings = RULES[method]
    recipe = resolve(name, (*SMALL, *settings), {}).recipe
    run = RunDir.create(path, recipe=recipe.to_yaml(), run={"status": "running"})
    runtime = runtime_for(torch.device("cpu"))
    trainer = Trainer(run, recipe, Pictures(BATCH), runtime, monitor=pytest.fail)
    student, teacher = trainer.objective.double().student, trainer.objective.teacher
    with torch.no_grad():
        for parameter_name, p in student.named_parameters():
            p.copy_(torch.from_numpy(drawn(f"student.{parameter_name}", p.shape)))
        if teacher is not None:
            teacher.encoder.load_state_dict(student.encoder.state_dict())
            teacher.method.load_state_dict(student.method.shared_head().state_dict())
    make = trainer.make_views
    trainer.make_views = lambda samples, step, device: dataclasses.replace(
        make(samples, step, device), standard=tuple(images_of(step))
    )
    with TrainingProgress(trainer.schedule.total_steps, quiet=True) as progress:
        trainer.train(StopRequest(), progress)
    return trainer


@pytest.mark.parametrize("method", RULES)
def test_whole_steps_are_those_of_the_authors_loops(trained, method):
    trainer = trained(method)
    losses = [row["loss"] for row in trainer.run.read_metrics()]
    ours = {name: p.detach().numpy() for name, p in trainer.objective.named_parameters()}
    with np.load(GOLDEN / f"steps_{method}.npz") as gold:
        np.testing.assert_allclose(losses, gold["losses"], rtol=1e-12)
        expected = dict(zip(gold["names"].tolist(), gold["projections"], strict=True))
        whole = {name: gold[name] for name in gold.files if name.startswith("student.")}
    assert set(ours) == set(expected)
    # Barlow Twins' loss is near 70, and AdamW makes steps of its gradients' rounding errors where
    # a batch norm takes a bias away.
    tolerance = 1e-11 if method == "barlow-twins" else 1e-12
    for name, value in ours.items():
        assert abs(projection(name, value) - expected[name]) < tolerance, name
    buffers = {name: value.numpy() for name, value in trainer.objective.named_buffers()}
    for name, value in whole.items():
        np.testing.assert_allclose((ours | buffers)[name], value, rtol=0, atol=tolerance)


# -- The loops once more, from their published rules ----------------------------------------------


def vit(p, images):
    """[CLS] after the final norm, of the parameters `p` by name."""

    def norm(x, name):
        return torch.nn.functional.layer_norm(
            x, (64,), p[f"{name}.weight"], p[f"{name}.bias"], 1e-6
        )

    def linear(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    rows = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(BATCH, 16, -1)
    patches = rows @ p["patch_embed.proj.weight"].flatten(1).T + p["patch_embed.proj.bias"]
    x = torch.cat([p["cls_token"].expand(BATCH, 1, 64), patches + p["pos_embed"]], dim=1)
    for block in ("blocks.0", "blocks.1"):
        maps = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = maps.reshape(BATCH, 17, 3, 4, 16).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2) / 4).softmax(-1) @ v
        x = x + linear(mixed.transpose(1, 2).reshape(BATCH, 17, 64), f"{block}.attn.proj")
        hidden = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        gelu = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + linear(gelu, f"{block}.mlp.fc2")
    return norm(x[:, 0], "norm")


def of(parameters, prefix):
    return {n.removeprefix(prefix): p for n, p in parameters.items() if n.startswith(prefix)}


def batch_norm(x):
    return (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()


def perceptron(x, p, layers):
    for index in layers:
        x = x @ p[f"{index}.weight"].T
        if index != layers[-1]:
            x = batch_norm(x) * p[f"{index + 1}.weight"] + p[f"{index + 1}.bias"]
            x = x.relu()
    return batch_norm(x)


def prototypes(x, p):
    for index in (0, 2, 4):
        x = x @ p[f"mlp.{index}.weight"].T + p[f"mlp.{index}.bias"]
        if index != 4:
            x = x * (1 + torch.erf(x / math.sqrt(2))) / 2
    directions = p["prototypes"] / p["prototypes"].norm(dim=1, keepdim=True)
    return x / x.norm(dim=1, keepdim=True) @ (p["lengths"] * directions).T


def moco_loss(student, teacher, views, _state, _step):
    """2τ · cross entropy over the batch, of a view's predictions with the other's projections."""
    loss = 0
    for one, other in ((0, 1), (1, 0)):
        projected = perceptron(vit(of(student, "encoder."), views[one]),
                               of(student, "method.projector."), (0, 3, 6))  # fmt: skip
        q = perceptron(projected, of(student, "method.predictor."), (0, 3))
        k = perceptron(
            vit(of(teacher, "encoder."), views[other]), of(teacher, "method."), (0, 3, 6)
        )
        cosines = (q / q.norm(dim=1, keepdim=True)) @ (k / k.norm(dim=1, keepdim=True)).T
        loss = loss - 2 * 0.2 * (cosines / 0.2).log_softmax(1).diagonal().mean()
    return loss


def dino_loss(student, teacher, views, state, step):
    s = [prototypes(vit(of(student, "encoder."), v), of(student, "method.head.")) for v in views]
    t = [prototypes(vit(of(teacher, "encoder."), v), of(teacher, "method.")) for v in views]
    sharp = (0.04, 0.05, 0.06, 0.07)[min(step, 3)]
    target = [((logits - state["center"]) / sharp).softmax(1) for logits in t]
    state["center"] = 0.9 * state["center"] + 0.1 * torch.cat(t).mean(0)
    pairs = ((0, 1), (1, 0))
    return sum(-(target[a] * (s[b] / 0.1).log_softmax(1)).sum(1).mean() for a, b in pairs) / 2


def falling(first, last, share):
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def follow(teacher, student, momentum):
    shared = of(student, "encoder."), of(student, "method.projector."), of(student, "method.head.")
    current = {f"encoder.{n}": p for n, p in shared[0].items()}
    current |= {f"method.{n}": p for part in shared[1:] for n, p in part.items()}
    assert set(current) == set(teacher)
    return {n: momentum * p + (1 - momentum) * current[n].detach() for n, p in teacher.items()}


def reference(method, shapes):
    """Student and teacher after nine steps of the method's published loop, and the losses."""
    moco = method == "moco-v3"
    student = {
        n.removeprefix("student."): torch.from_numpy(drawn(n, shape)).requires_grad_()
        for n, shape in shapes.items() if n.startswith("student.")
    }  # fmt: skip
    teacher = {n.removeprefix("teacher."): torch.zeros(()) for n in shapes if "teacher." in n}
    teacher = follow(teacher, student, 0.0)
    moments = {n: (torch.zeros_like(p), torch.zeros_like(p), 0) for n, p in student.items()}
    state, losses = {"center": torch.zeros(256, dtype=torch.float64)}, []
    peak, floor = (3e-4 / 16, 0.0) if moco else (1e-4 / 16, 1.25e-6 / 16)
    for step in range(9):
        warming = step / 2 if moco else step  # of two steps; DINO's second one has the peak
        lr = peak * warming if step < 2 else falling(peak, floor, (step - 2) / 7)
        decay = 0.1 if moco else falling(0.04, 0.4, step / 9)
        momentum = falling(0.99 if moco else 0.982, 1, step / 9)
        if moco:
            teacher = follow(teacher, student, momentum)
        loss = (moco_loss if moco else dino_loss)(student, teacher, images_of(step), state, step)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, student.values())
        for (name, p), g in zip(student.items(), gradients, strict=True):
            if (moco and "patch_embed" in name) or (
                step < 1 and name.endswith(("types", "lengths"))
            ):
                continue  # never trained; not in the first epoch
            if not moco:
                g = g * min(1, 0.3 / (g.norm() + 1e-6))
            first, second, count = moments[name]
            first, second, count = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2, count + 1
            moments[name] = (first, second, count)
            spared = not moco and p.ndim == 1
            with torch.no_grad():
                p.mul_(1 - lr * (0 if spared else decay))
                scale = (second / (1 - 0.999**count)).sqrt() + 1e-8
                p.sub_(lr * first / (1 - 0.9**count) / scale)
        if not moco:
            teacher = follow(teacher, student, momentum)
    ends = {f"student.{n}": p.detach() for n, p in student.items()}
    return ends | {f"teacher.{n}": p for n, p in teacher.items()}, losses


@pytest.mark.parametrize("method", ["moco-v3", "dino"])
def test_nine_steps_follow_the_published_rules(trained, method):
    trainer = trained(method)
    ours = dict(trainer.objective.named_parameters())
    gold, losses = reference(method, {name: tuple(p.shape) for name, p in ours.items()})
    assert [row["loss"] for row in trainer.run.read_metrics()] == pytest.approx(losses, rel=1e-12)
    assert set(ours) == set(gold)
    for name, p in ours.items():
        torch.testing.assert_close(p.detach(), gold[name], rtol=0, atol=1e-12, msg=name)


# -- The start ------------------------------------------------------------------------------------


def encoder_of(name):
    model = resolve(name, (), {}).recipe.model
    return dict(Encoder.from_model(model, image_size=224).initialise(0).named_parameters())


def std_of(parameter):
    return parameter.detach().std().item()


def test_the_imagenet_recipes_start_as_the_authors_models_do():
    """Standard deviations of ViT-S/16 read off the authors' models at their start."""
    moco, dino, twins = (
        encoder_of(f"imagenet/{method}-none") for method in ("moco", "dino", "barlow-twins")
    )
    for block in range(12):
        stds = {"attn.qkv": 0.0510, "attn.proj": 0.0510, "mlp.fc1": 0.0323, "mlp.fc2": 0.0323}
        for layer, std in stds.items():
            name = f"blocks.{block}.{layer}"
            assert std_of(moco[f"{name}.weight"]) == pytest.approx(std, rel=0.01)
            assert std_of(dino[f"{name}.weight"]) == pytest.approx(0.02, rel=0.01)
            assert not any(p[f"{name}.bias"].any() for p in (moco, dino, twins))
    for start in (moco, dino, twins):
        assert std_of(start["patch_embed.proj.weight"]) == pytest.approx(0.0208, rel=0.01)
        assert std_of(start["pos_embed"]) == pytest.approx(0.02, rel=0.01)
    assert std_of(moco["cls_token"]) == pytest.approx(1e-6, rel=0.2)
    assert std_of(dino["cls_token"]) == pytest.approx(0.02, rel=0.2)
    assert all(torch.equal(dino[name], twins[name]) for name in dino)


def test_the_heads_start_as_the_authors_heads_do():
    """Linear layers as torch makes them, but DINO's perceptron: normal, without bias at first."""
    heads = {}
    for method in ("moco", "dino", "barlow-twins"):
        small = ("method.hidden_width=512",) if method == "barlow-twins" else ()
        config = resolve(f"imagenet/{method}-none", small, {}).recipe.method
        torch.manual_seed(0)
        heads[method] = method_class(config)(config, 384)
    for method in ("moco", "barlow-twins"):
        layers = [m for m in heads[method].modules() if isinstance(m, torch.nn.Linear)]
        assert len(layers) == {"moco": 5, "barlow-twins": 3}[method]
        for layer in layers:
            assert layer.bias is None
            assert std_of(layer.weight) == pytest.approx((3 * layer.in_features) ** -0.5, rel=0.01)
    head = heads["dino"].head
    for layer in (head.mlp[0], head.mlp[2], head.mlp[4]):
        assert std_of(layer.weight) == pytest.approx(0.02, rel=0.01)
        assert not layer.bias.any()
    lengths = head.prototypes.detach().norm(dim=1)
    assert lengths.mean().item() == pytest.approx(0.577, rel=0.01)
    assert lengths.std().item() < 0.02
    assert head.prototypes.abs().max().item() <= 1 / 16
    assert (head.lengths == 1).all()
    assert head.lengths.shape == (65536, 1)


# -- The table ------------------------------------------------------------------------------------

TABLE = RECIPES / "README.md"
# Keys that do not change what is learnt by a run that ends.
BOOKKEEPING = {
    "seed", "data.path", "data.classes", "data.share", "data.num_train", "data.num_val",
    "data.workers", "data.cache", "train.max_steps", "train.compile", "train.tensorboard",
    "train.log_steps", "train.checkpoint_epochs",
    "train.monitor_epochs", "train.keep_epochs", "train.accumulate", "train.checkpointing",
}  # fmt: skip


def sections():
    """Of recipes/README.md: recipe → key → value here."""
    found = {}
    for part in TABLE.read_text(encoding="utf-8").split("\n### ")[1:]:
        name, *lines = part.splitlines()
        rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
        assert {len(row) for row in rows} == {5}, name
        assert all(cell for row in rows for cell in row), name
        keyed = [row for row in rows[1:] if row[0].startswith("`")]
        values = {row[0].strip("`"): json.loads(row[1].split("`")[1]) for row in keyed}
        assert len(values) == len(keyed), name
        found[name] = values
    return found


def test_the_table_says_what_the_recipes_are():
    tables = sections()
    assert len(tables) == 4
    for name, table in tables.items():
        values = values_of(resolve(name, (), {}))
        # What is not listed is as in the recipe without the add-on.
        expected = tables["imagenet/moco-none"] | table if name.endswith("-ser") else table
        assert set(expected) == set(values) - BOOKKEEPING, name
        assert expected == {key: values[key] for key in expected}, name
