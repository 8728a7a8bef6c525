"""Whole run directories made by hand: recipe, log, results of several protocols, pictures."""

import math
import random

import yaml
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir

CORRUPTIONS = ("gaussian_noise", "defocus_blur", "snow", "fog", "contrast")


def whole_run(
    path, *, method="moco", addon="none", layer=3, seed=0, steps=40, status="done", **more
):
    """A run with a log, nearest neighbours, scores by block and a grid of corruptions.

    Its numbers follow from its arguments: accuracy falls and equivariance rises with the layer.
    """
    run = bare_run(path, method=method, addon=addon, layer=layer, seed=seed, status=status, **more)
    log(run, steps=steps, equivariance=addon != "none")
    depth = layer if addon != "none" else 0
    add(run, "knn", {"top1": 60.0 - depth / 4 + seed / 8, "top5": 90.0}, n=1000)
    add(run, "equiv-score", scores(0.6 + depth / 100 + seed / 1000), n=512)
    add(run, "robustness--imagenet-c", grid(50.0 - depth + seed), n=5000)
    return run


def bare_run(path, *, method="moco", addon="none", layer=3, seed=0, status="done", **more):
    """What `ser pretrain` leaves, without what it logged."""
    section = {"name": addon} | ({} if addon == "none" else {"layer": layer, "weight": 1.0})
    recipe = {
        "seed": seed,
        "data": {"path": "shapes", "image_size": 64},
        "model": {"name": "vit_tiny", "patch_size": 8},
        "views": {"setting": "2"},
        "method": {"name": method},
        "addon": section,
        "train": {"epochs": 10, "batch_size": 64},
    }
    record = {
        "status": status,
        "recipe_name": f"shapes/{method}-{addon}",
        "seed": seed,
        "device": "cpu",
        "git_commit": "abc1234",
        "timings": {"train_seconds": 100.0 + layer, "steps": 300, "images_per_s": 81.0},
        "flops": {"step": 1e9, "ratio_none": 1.01},
        "created": "2026-01-02T03:04:05Z",
    }
    return RunDir.create(path, recipe=yaml.safe_dump(recipe, sort_keys=False), run=record | more)


def log(run, *, steps, equivariance):
    for step in range(1, steps + 1):
        row = {"step": step, "epoch": step / 10, "loss": 5 / math.sqrt(step), "lr": 1e-3 / step}
        row |= {"loss_inv": 4 / math.sqrt(step), "grad_norm": 10.0 / step, "skipped": False}
        row |= {"loss_equiv": 1 / math.sqrt(step)} if equivariance else {}
        row |= {"knn_top1": 30.0 + step / 10} if step % 10 == 0 else {}
        run.append_metrics(row)


def add(run, name, metrics, *, n=100, version=1, **data):
    """A result as an evaluator writes it; `name` is `<protocol>[--<variant>]`."""
    protocol, _, variant = name.partition("--")
    rule = {"name": protocol, "variant": variant or None, "version": version, "settings": {}}
    model = {"source": "run", "key": "student", "matched": 150, "expected": 150}
    told = {"path": "shapes", "n": n, "partial": False, **data}
    created = "2026-01-02T03:04:05Z"
    run.write_result(Result(rule, model, told, dict(metrics), created=created))


def scores(value, blocks=range(4)):
    """Of `equiv-score`, by block, with floors and energy."""
    metrics = {}
    for block in blocks:
        for action in ("rotation", "hflip", "scale", "mean"):
            place = f"block{block:02d}/{action}"
            score = value + block / 50
            metrics |= {f"es/{place}": score, f"es_random/{place}": 0.5}
            metrics |= {f"es/{place}/low": score - 0.02, f"es/{place}/high": score + 0.02}
        metrics[f"energy/block{block:02d}"] = 0.9 - block / 10
    return metrics


def grid(value):
    metrics = {"top1": value, "mce": 80.0, "top1/clean": value + 10}
    for place, name in enumerate(CORRUPTIONS):
        cells = [value + place - 2 * severity for severity in range(1, 6)]
        metrics[f"top1/{name}"] = sum(cells) / 5
        metrics |= {f"top1/{name}/{severity + 1}": cell for severity, cell in enumerate(cells)}
    return metrics


def picture(run, name, *, seed=0, size=(1200, 900), description=""):
    """A PNG as large as an evaluator's, of noise in blocks, and an SVG beside it."""
    draws = random.Random(seed)
    small = Image.frombytes("RGB", (60, 45), draws.randbytes(60 * 45 * 3))
    told = PngInfo()
    if description:
        told.add_itxt("Description", description)
    run.figures.mkdir(exist_ok=True)
    small.resize(size, Image.Resampling.BICUBIC).save(run.figures / f"{name}.png", pnginfo=told)
    figure = Figure(figsize=(1, 1))
    figure.savefig(run.figures / f"{name}.svg", metadata={"Date": None})
