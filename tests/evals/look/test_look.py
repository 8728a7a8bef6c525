"""`ser look`: what it keeps, against NumPy; what it draws is opened and looked at in part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sercli.cli import app
from sercli.data import ShapesSource
from sercli.data.loading import IMAGENET_MEAN, IMAGENET_STD, EvaluationImages, normalise
from sercli.encoders.loading import encoder_metadata, load_encoder, write_encoder
from sercli.encoders.vit import Encoder
from sercli.errors import UserError
from sercli.recipe.schema import Model
from sercli.report.figures.look import attention_figure, neighbours_figure, tokens_figure
from sercli.runs.run_dir import RunDir

MODEL = Model(name="vit_micro", patch_size=8, width=16, depth=3, num_heads=2)
RECIPE = "data: {path: shapes, image_size: 32, num_train: 30, num_val: 20}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    encoder = Encoder.from_model(MODEL, image_size=32, cls_after=1).initialise(1)
    path = tmp_path_factory.mktemp("look") / "run"
    made = RunDir.create(path, recipe=RECIPE, run={"status": "done"})
    metadata = encoder_metadata(MODEL, encoder, step=1)
    write_encoder(made.encoder, metadata, student=encoder, teacher=None)
    return made


def ser_look(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["look", *map(str, arguments), "--workers", "0"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def cls_of(run: RunDir, split: str, count: int) -> np.ndarray:
    images = EvaluationImages(ShapesSource(split, num_images=count, image_size=32), 32)
    encoder = load_encoder(run.path)
    pixels = torch.stack([images[index] for index in range(count)]).float() / 255
    with torch.no_grad():
        found: np.ndarray = (
            encoder(normalise(pixels, IMAGENET_MEAN, IMAGENET_STD)).cls.double().numpy()
        )
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_neighbours_are_the_nearest_by_cosine(run: RunDir) -> None:
    ser_look(run.path, "--images", "4,17", "--neighbours", "3")
    kept = dict(np.load(run.predictions("look")))
    cosines = cls_of(run, "val", 20)[[4, 17]] @ cls_of(run, "train", 30).T
    order = np.argsort(-cosines, axis=1)[:, :3]
    np.testing.assert_array_equal(kept["neighbour_indices"], order)
    np.testing.assert_allclose(
        kept["neighbour_cosines"], np.take_along_axis(cosines, order, 1), atol=1e-5
    )
    train = ShapesSource("train", num_images=30, image_size=32)
    np.testing.assert_array_equal(kept["neighbour_labels"], train.labels[order])
    assert kept["image_ids"].tolist() == [
        ShapesSource("val", num_images=20, image_size=32).identifier(index) for index in (4, 17)
    ]
    assert kept["attention"].shape == (2, 2, 4, 4)
    assert kept["attention_block"] == 3
    assert {name for name in kept if name.startswith("tokens/")} == {
        f"tokens/block{layer:02d}" for layer in (1, 2, 3)
    }


def test_three_figures_say_what_there_is_to_see(run: RunDir) -> None:
    ser_look(run.path, "--num", "2", "--layers", "0,2")
    for name in ("attention", "tokens", "neighbours"):
        with Image.open(run.figures / f"look-{name}.png") as picture:
            said = picture.text["Description"]  # type: ignore[attr-defined]
            assert "2 images" in said, said
        assert (run.figures / f"look-{name}.svg").is_file()
    assert "blocks 0, 2" in Image.open(run.figures / "look-tokens.png").text["Description"]  # type: ignore[attr-defined]


def test_files_of_any_size_are_looked_at(run: RunDir, tmp_path: Path) -> None:
    files = []
    for name, size in (("a, b.png", (40, 90)), ("c.jpg", (7, 5))):
        Image.new("RGB", size, (200, 30, 30)).save(tmp_path / name)
        files.append(tmp_path / name)
    ser_look(run.path, "--images", files[0], "--out", tmp_path / "out")
    ser_look(run.path, "--images", f"{files[1]},{files[1]}", "--out", tmp_path / "out")
    kept = dict(np.load(tmp_path / "out/results/look.npz"))
    assert kept["labels"].tolist() == [-1, -1]
    assert kept["neighbour_indices"].shape == (2, 5)
    np.testing.assert_array_equal(kept["neighbour_indices"][0], kept["neighbour_indices"][1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--images", "20"], "shapes/val has images 0…19"),
        (["--images", "no.png"], "image files, or numbers of images"),
        (["--images", "3", "--num", "2", "--seed", "0"], "--images with --num and --seed; images"),
        (["--layers", "4"], "blocks are 0…3"),
        (["--layer", "1"], "[CLS] is in blocks 2…3"),
        (["--layers", "x"], "block numbers with commas"),
    ],
)
def test_what_is_not_there_is_refused(run: RunDir, arguments: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        ser_look(run.path, *arguments)
    assert said in str(error.value)


def test_equal_tokens_of_two_images_have_equal_colours() -> None:
    """One basis for all images: a token of the one and its equal in the other look alike."""
    draws = np.random.default_rng(0)
    tokens = draws.normal(size=(2, 3, 3, 8)).astype(np.float32)
    tokens[1, 2, 2] = tokens[0, 0, 0]
    figure = tokens_figure(np.zeros((2, 6, 6, 3), np.float32), {2: tokens}, title="t")
    shown = [axes.images[0].get_array() for axes in figure.axes]
    np.testing.assert_allclose(shown[1][0, 0], shown[3][2, 2])
    assert not np.allclose(shown[1][0, 0], shown[3][0, 0])


def test_many_heads_are_shown_in_equal_steps_beside_their_mean() -> None:
    maps = np.random.default_rng(0).random((1, 24, 3, 3)).astype(np.float32)
    figure = attention_figure(np.zeros((1, 6, 6, 3), np.float32), maps, title="$a$ \x1b[1m")
    headings = [axes.get_title() for axes in figure.axes]
    assert len(headings) == 14
    assert headings[:3] == ["image", "mean", "head 0"]
    assert headings[-1] == "head 23"
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), maps[0].mean(0))


def test_a_figure_takes_images_without_neighbours_or_class() -> None:
    figure = neighbours_figure(np.zeros((1, 4, 4, 3), np.float32), [""], [[]], title="t")
    assert len(figure.axes) == 1
