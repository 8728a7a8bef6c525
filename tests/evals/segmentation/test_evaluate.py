"""The probe of patch tokens: its heads, what it reads and when, ranks, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy, interpolate
from typer.testing import CliRunner

from sercli.cli import app
from sercli.data.masks.folder import MaskFolder
from sercli.data.masks.objects import ObjectMasks
from sercli.data.masks.opening import open_masks
from sercli.data.masks.source import IGNORED, MaskSource
from sercli.data.shapes.detection import ShapesDetection
from sercli.encoders.files import read_safetensors
from sercli.encoders.loading import LoadedEncoder, encoder_metadata, write_encoder
from sercli.encoders.vit import Encoder, final_norm
from sercli.engine.runtime import Runtime
from sercli.errors import Interrupted, RunFailed, UserError
from sercli.evals.linear.features import Scale
from sercli.evals.segmentation import tokens as tokens_module
from sercli.evals.segmentation.evaluate import SegmentationOutcome, evaluate, predict
from sercli.evals.segmentation.frames import Frame
from sercli.evals.segmentation.heads import WEIGHT_DECAY, Heads, best, factor, positions
from sercli.evals.segmentation.options import Options
from sercli.evals.segmentation.task import Task, prepare
from sercli.evals.segmentation.tokens import Encoded
from sercli.recipe.schema import Model
from sercli.report import compare_runs
from sercli.runs.run_dir import RunDir
from sercli.signals import StopRequest
from tests.support.masks import scene, write_ade, write_voc
from tests.support.per_image import remade
from tests.support.processes import run_ranks

MODEL = Model(name="vit_micro", patch_size=4, width=16, depth=3, num_heads=2)
CPU = Runtime(torch.device("cpu"), None)
FEW = Options(learning_rates=(0.003, 0.03), steps=8, batch_size=4)


def encoder(seed: int = 1) -> LoadedEncoder:
    made = Encoder.from_model(MODEL, image_size=16).initialise(seed)
    return LoadedEncoder(made.eval(), "somewhere", "student", 9, 9, 16)


def world(split: str, number: int) -> MaskSource:
    return ObjectMasks(ShapesDetection(split, image_size=16, num_images=number))


def task(options: Options = FEW, *, train: Any = None, val: Any = None, seed: int = 1) -> Task:
    return prepare(encoder(seed), train or world("train", 20), val or world("val", 8), options)


def probe(options: Options = FEW, **arguments: Any) -> SegmentationOutcome:
    return evaluate(task(options, **arguments), runtime=CPU, workers=0)


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("masks") / "voc", {"train": 24, "val": 12})


# -- Heads ----------------------------------------------------------------------------------------


def batch(seed: int, number: int = 3, layers: int = 2) -> Encoded:
    draws = torch.Generator().manual_seed(seed)
    tokens = torch.randn(number, 16, layers, 5, generator=draws)
    targets = torch.randint(0, 4, (number, 16, 16), generator=draws, dtype=torch.uint8)
    targets[targets == 3] = IGNORED
    return Encoded(tokens, targets)


def heads(rates: tuple[float, ...] = (0.01, 0.1)) -> Heads:
    scale = Scale(torch.full((2, 5), 0.3), torch.full((2, 5), 1.7))
    return Heads((1, 3), rates, scale, grid=4, points=16, num_classes=3, seed=2, device=CPU.device)


def test_a_head_trains_as_torchs_own_layers_do() -> None:
    """A 1x1 convolution, `interpolate`, cross entropy without what is ignored, and AdamW."""
    ours = heads()
    start = ours.weights[1][1].detach().clone()
    optimiser = ours.optimiser()
    theirs = nn.Conv2d(5, 3, 1)
    with torch.no_grad():
        theirs.weight.copy_(start[:, :, None, None])
        theirs.bias.zero_()
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=WEIGHT_DECAY)
    for seed in range(5):
        some = batch(seed)
        optimiser.zero_grad()
        ours.loss(some).backward()
        optimiser.step()
        scaled = ((some.tokens[:, :, 1] - 0.3) / 1.7).transpose(1, 2).reshape(3, 5, 4, 4)
        logits = interpolate(theirs(scaled), size=(16, 16), mode="bilinear")
        reference.zero_grad()
        cross_entropy(logits, some.targets.long(), ignore_index=IGNORED).backward()
        reference.step()
    torch.testing.assert_close(ours.weights[1][1], theirs.weight[:, :, 0, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.biases[1][1], theirs.bias, rtol=0, atol=1e-5)
    assert not torch.equal(ours.weights[1][0], ours.weights[1][1])  # a rate each


def test_a_folded_head_gives_the_same_logits_of_tokens_as_they_are() -> None:
    ours, some = heads(), batch(0)
    weight, bias = ours.folded(1, 0)
    maps = (some.tokens[:, :, 1] @ weight.T + bias).transpose(1, 2).reshape(3, 3, 4, 4)
    expected = interpolate(maps, size=(16, 16), mode="bilinear")
    torch.testing.assert_close(ours.logits(some.tokens, 1)[:, 0], expected, rtol=0, atol=1e-5)


def test_judging_counts_what_is_not_ignored() -> None:
    ours, some = heads(), batch(3)
    found = ours.judge(some)
    for place in range(2):
        predicted = ours.logits(some.tokens, place).argmax(2)
        for which in range(2):
            table = np.zeros((3, 3), int)
            pairs = zip(some.targets.flatten(), predicted[:, which].flatten(), strict=True)
            for truth, called in pairs:
                if truth != IGNORED:
                    table[truth, called] += 1
            assert (found[place, which].numpy() == table).all()


def test_a_batch_without_a_class_moves_nothing() -> None:
    ours, some = heads(), batch(0)
    loss = ours.loss(Encoded(some.tokens, torch.full_like(some.targets, IGNORED)))
    loss.backward()
    assert loss.item() == 0
    assert all(not one.grad.any() for row in ours.weights for one in row if one.grad is not None)


def test_a_head_that_diverges_does_not_disturb_the_others() -> None:
    alone, beside = heads((0.01,)), heads((0.01, 1e30))
    for ours in (alone, beside):
        optimiser = ours.optimiser()
        for seed in range(6):
            optimiser.zero_grad()
            ours.loss(batch(seed)).backward()
            optimiser.step()
    torch.testing.assert_close(alone.weights[0][0], beside.weights[0][0], rtol=0, atol=1e-6)
    assert (best([3.0, None, 3.0]), best([None, None])) == (0, None)


def test_every_window_has_its_turn() -> None:
    taken = list(positions(10, batch=4, steps=10, seed=0))
    assert [len(one) for one in taken] == [4] * 10
    flat = np.concatenate(taken)
    for epoch in range(4):
        assert sorted(flat[10 * epoch : 10 * (epoch + 1)]) == list(range(10))
    assert flat[:10].tolist() != flat[10:20].tolist()
    assert len(next(positions(3, batch=8, steps=1, seed=0))) == 8


def test_the_schedule_warms_up_and_falls_to_nothing() -> None:
    values = [factor(step, 400) for step in range(400)]
    assert values[0] == pytest.approx(1 / 16)
    assert max(values) == pytest.approx(1 - 15 / 400)
    assert values[200] == 0.5
    assert 0 < values[-1] == pytest.approx(1 / 400)


# -- The probe ------------------------------------------------------------------------------------


def test_colours_are_learnt_and_every_pixel_is_counted(voc: Path) -> None:
    """Colours tell the classes, so that a linear map of tokens does; sizes and shapes vary."""
    options = Options(learning_rates=(0.01, 0.03), steps=300)
    train, val = (open_masks(str(voc), split, image_size=16) for split in ("train", "val"))
    outcome = probe(options, train=train, val=val)
    values, arrays = outcome.result.metrics, outcome.arrays
    assert values["miou"] > 60
    assert values["pixel_accuracy"] > 85
    assert outcome.result.name == "segment--voc"
    masks = [scene(24 + n, val.size(n))[1] for n in range(12)]
    for n, mask in enumerate(masks):
        counted = np.bincount(mask[mask != IGNORED], minlength=3)
        assert arrays["truth"][n].tolist() == counted.tolist()
    # All of it again from what is stored, and a few pictures from their pixels.
    each = 100 * arrays["intersections"].sum(0) / arrays["unions"].sum(0)
    assert values["miou"] == pytest.approx(each.mean())
    assert [values[f"iou/{name}"] for name in val.classes] == pytest.approx(each)
    right = arrays["intersections"].sum() / arrays["truth"].sum()
    assert values["pixel_accuracy"] == pytest.approx(100 * right)
    assert list(outcome.pictured) == [0, 4, 7, 11]
    for index, predicted in outcome.pictured.items():
        mask = masks[index]
        assert predicted.shape == mask.shape
        for label in range(3):
            both = ((mask == label) & (predicted == label)).sum()
            assert arrays["intersections"][index, label] == both
            either = ((mask == label) | (predicted == label)) & (mask != IGNORED)
            assert arrays["unions"][index, label] == either.sum()


def test_the_head_that_is_kept_gives_the_predictions(voc: Path, tmp_path: Path) -> None:
    """From the file alone: encode, the linear map, upsample."""
    train, val = (open_masks(str(voc), split, image_size=16) for split in ("train", "val"))
    outcome = probe(FEW, train=train, val=val)
    (tmp_path / "head").write_bytes(outcome.head)
    header, tensors = read_safetensors(tmp_path / "head")
    assert json.loads(header["classes"]) == list(val.classes)
    loaded = encoder()
    mean, std = (torch.tensor(one)[:, None, None] for one in (loaded.mean, loaded.std))
    for index, predicted in outcome.pictured.items():
        frame = Frame(*val.size(index), 16)
        image, maps = val.load(index), []
        for window in range(len(frame.starts)):
            pixels = torch.from_numpy(frame.cut(image, window).copy()).float() / 255
            with torch.no_grad():
                grid = loaded.encoder(((pixels - mean) / std)[None], (3,)).grids[3]
                tokens = final_norm(loaded.encoder)(grid.flatten(2).transpose(1, 2))
            logits = tokens @ tensors["weight"].T + tensors["bias"]
            maps.append(logits[0].T.reshape(3, 4, 4))
        assert (predict(maps, frame) == predicted).mean() > 0.999


def test_equal_commands_give_equal_numbers_however_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = probe()
    assert probe().result.metrics == one.result.metrics
    assert evaluate(task(), runtime=CPU, workers=2).result.metrics == one.result.metrics
    few = probe(Options(**{**vars(FEW), "at_once": 3}))
    assert few.result.metrics == pytest.approx(one.result.metrics, abs=0.5)
    assert few.result.protocol_id == one.result.protocol_id
    monkeypatch.setattr(tokens_module, "KEPT_BYTES", 0)  # encoded as they are asked for
    assert probe().result.metrics == pytest.approx(one.result.metrics, abs=0.5)
    other = probe(Options(**{**vars(FEW), "seed": 1})).result
    assert other.metrics != one.result.metrics
    assert other.protocol_id != one.result.protocol_id


def test_in_half_precision_the_encoder_alone_differs() -> None:
    half = evaluate(task(), runtime=Runtime(CPU.device, torch.bfloat16), workers=0)
    whole = probe().result
    assert (half.result.model["precision"], whole.model["precision"]) == ("bf16", "fp32")
    assert half.result.protocol_id == whole.protocol_id
    assert half.result.metrics != whole.metrics
    assert half.result.metrics["pixel_accuracy"] == pytest.approx(
        whole.metrics["pixel_accuracy"], abs=5
    )


def test_other_layers_beside_the_last_change_no_number_of_it() -> None:
    outcome = probe(Options(**{**vars(FEW), "layers": (0, 2)}))
    classes = [name for name in outcome.result.metrics if name.startswith("iou/")]
    there = [name for name in classes if outcome.result.metrics[name] is not None]
    # Of three blocks two numbers each, and of the last each class's that has ends beside it.
    assert remade(outcome) == 6 + sum(not name.endswith(("/low", "/high")) for name in there)
    alone, beside = probe().result, outcome.result
    assert alone.protocol_id == beside.protocol_id
    same = {name: beside.metrics[name] for name in alone.metrics}
    assert same == pytest.approx(alone.metrics, abs=1e-9)
    for block in ("block00", "block02"):
        for prefix in ("", "random/"):
            names = [f"{prefix}miou/{block}{end}" for end in ("/low", "", "/high")]
            low, value, high = (beside.metrics[name] for name in names)
            assert low <= value <= high
    with pytest.raises(UserError, match="--layers 4; the encoder's blocks are 1 to 3"):
        task(Options(layers=(4,)))


def test_the_twin_is_the_floor_and_can_be_left_out() -> None:
    values = probe().result.metrics
    assert values["random/miou"] != values["miou"]
    without = probe(Options(**{**vars(FEW), "floor": False})).result.metrics
    assert without == {k: v for k, v in values.items() if not k.startswith("random/")}
    # Another encoder of the same shape has the same twin.
    assert probe(seed=5).result.metrics["random/miou"] == values["random/miou"]


class Logged(ObjectMasks):
    """Notes which images are decoded."""

    log: list[tuple[str, int]]

    def load(self, index: int) -> Any:
        self.log.append((self.split, index))
        return super().load(index)


def test_val_is_read_when_all_is_chosen_and_the_hold_out_is_not_trained_on() -> None:
    log: list[tuple[str, int]] = []
    sources = []
    for split, number in (("train", 20), ("val", 8)):
        source = Logged(ShapesDetection(split, image_size=16, num_images=number))
        source.log = log
        sources.append(source)
    made = task(Options(**{**vars(FEW), "floor": False}), train=sources[0], val=sources[1])
    split = made.split
    assert (len(split.train), len(split.hold_out)) == (18, 2)
    assert not set(split.train) & set(split.hold_out)
    evaluate(made, runtime=CPU, workers=0)
    read = [("train", n) for n in [*split.train, *split.hold_out]] + [("val", n) for n in range(8)]
    assert log == read


def test_a_limit_is_partial_and_seeded() -> None:
    limited = Options(**{**vars(FEW), "limit": 6})
    made = task(limited)
    assert (len(made.split.train) + len(made.split.hold_out), len(made.split.test)) == (6, 6)
    assert evaluate(made, runtime=CPU, workers=0).result.data["partial"] is True
    assert task(limited).split.test.tolist() == made.split.test.tolist()
    assert task(Options(**{**vars(limited), "limit": 20})).split.partial is False
    with pytest.raises(UserError, match="1 training images"):
        task(Options(limit=1))


def test_what_cannot_be(voc: Path) -> None:
    with pytest.raises(UserError, match="--image-size 18; it must be a multiple of the patch"):
        task(Options(image_size=18))
    with pytest.raises(UserError, match="--lr 2; it must be above 0 and below 1"):
        task(Options(learning_rates=(2.0,)))
    with pytest.raises(UserError, match="the 11 classes of train and the 3 of val differ"):
        task(FEW, val=MaskFolder(voc, "val"))

    class Unlabelled(ObjectMasks):
        def mask(self, index: int) -> Any:
            return np.full_like(super().mask(index), IGNORED)

    nothing = Unlabelled(ShapesDetection("val", image_size=16, num_images=4))
    with pytest.raises(UserError, match="no pixel of the 4 test images"):
        probe(FEW, val=nothing)
    broken = task(FEW)
    with torch.no_grad():
        next(iter(broken.loaded.encoder.blocks[0].parameters())).fill_(torch.nan)
    with pytest.raises(RunFailed, match="tokens that are not finite"):
        evaluate(broken, runtime=CPU, workers=0)


def test_a_stop_ends_it() -> None:
    request = StopRequest()
    request.interrupted = True
    with pytest.raises(Interrupted, match="starts anew"):
        evaluate(task(), runtime=CPU, request=request, workers=0)


# -- Processes ------------------------------------------------------------------------------------


def in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    root = Path(folder) / "voc"
    train, val = (open_masks(str(root), split, image_size=16) for split in ("train", "val"))
    outcome = probe(FEW, train=train, val=val)
    torch.save((outcome.result.metrics, list(outcome.pictured)), f"{folder}/{rank}.pt")


@pytest.mark.run
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"train": 9, "val": 5})  # unequal shares
    train, val = (open_masks(str(root), split, image_size=16) for split in ("train", "val"))
    alone = probe(FEW, train=train, val=val)
    run_ranks(in_process, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first == second
    assert first[0] == pytest.approx(alone.result.metrics, abs=0.5)
    assert first[1] == list(alone.pictured)


# -- The command ----------------------------------------------------------------------------------


def ser(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    return done.exit_code, done.output + str(done.exception or "")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    student = encoder().encoder
    write_encoder(path, encoder_metadata(MODEL, student, step=1), student=student, teacher=None)
    return path


def test_the_command_writes_all_there_is_and_compare_shows_it(
    weights: Path, tmp_path: Path
) -> None:
    ade = write_ade(tmp_path / "ade", {"train": 8, "val": 4})
    run = tmp_path / "run"
    options = ("--steps", 4, "--batch-size", 4, "--layers", "2", "--device", "cpu", "--workers", 0)
    status, printed = ser("segment", weights, "--data", ade, "--out", run, *options)
    assert status == 0, printed
    assert "block 3: mean IoU" in printed
    there = RunDir.open(run)
    (result,) = there.read_results()
    assert (result.name, result.data["n"], result.data["partial"]) == ("segment--ade20k", 4, False)
    for path in (
        there.predictions(result.name), there.head(result.name),
        there.figures / "segment--ade20k.png", there.figures / "segment--ade20k.svg",
    ):  # fmt: skip
        assert path.is_file()
    assert "4 images of val, each beside" in (there.figures / "segment--ade20k.svg").read_text()
    table = compare_runs([run])
    assert [column.title for column in table.columns] == [
        "Segment (ADE20K) mIoU ↑", "Segment (ADE20K) mIoU block 2 ↑",
    ]  # fmt: skip
    cell = table.rows[0].cells["segment--ade20k/miou"]
    values = result.metrics
    assert (cell.value, cell.low, cell.high, cell.floor) == (
        values["miou"], values["miou/low"], values["miou/high"], values["random/miou"],
    )  # fmt: skip


def test_a_single_image_has_no_interval(weights: Path, tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"train": 4, "val": 1})
    options = ("--steps", 2, "--device", "cpu", "--workers", 0, "--out", tmp_path / "run")
    status, printed = ser("segment", weights, "--data", root, *options)
    assert status == 0, printed
    values = RunDir.open(tmp_path / "run").read_results()[0].metrics
    assert values["miou/low"] is values["miou/high"] is None
    assert f"mean IoU {values['miou']:.2f} %, pixels" in printed.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--layers", "3,x"), "--layers 3,x; it takes block numbers with commas"),
        (("--lr", "0"), "--lr 0; it must be above 0"),
        (("--image-size", "18"), "a multiple of the patch"),
        ((), "was not trained on images with masks"),
        (("--data", "nowhere"), "nowhere does not exist"),
    ],
)
def test_the_command_refuses_in_a_line(weights: Path, options: tuple[str, ...], line: str) -> None:
    more = ("--data", "shapes") if options and "--data" not in options else ()
    status, printed = ser("segment", weights, *options, *more)
    assert status != 0
    assert line in printed
