"""The encoder in bf16 beside fp32, on a CPU: nearly the same numbers, and the result says which."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sercli.cli import app
from sercli.encoders.loading import read_encoder
from sercli.encoders.timm_weights import create_timm
from sercli.engine.runtime import Runtime, runtime_for
from sercli.evals.detection.backbone import FrozenEncoder
from sercli.evals.detection.images import Canvas
from sercli.evals.equivariance.sums import accumulate
from sercli.evals.knn import extract
from sercli.evals.linear.features import Reader, plan_features
from sercli.evals.robustness.classifier import _in_two, own_head
from sercli.protocols.contract import PRECISION
from sercli.runs.result import Result
from tests.support import detection
from tests.support.pictures import Pictures
from tests.support.training import SER, start, train

CPU = torch.device("cpu")
BOTH = {"fp32": Runtime(CPU, None), "bf16": Runtime(CPU, torch.bfloat16)}
COMMANDS = {
    "knn": ["knn"],
    "equiv-score": ["equiv-score", "--layers", "0,2,4"],
    "linear-eval--ser-no-augment": ["linear-eval", "--cached-features", "--epochs", 30],
    "robustness--val": ["robustness", "--data", "shapes"],
}
# How far a metric may be from fp32's: percent of 192 images, or a score.
TOLERANCE = {
    "knn": 3.0,
    "equiv-score": 0.01,
    "linear-eval--ser-no-augment": 8.0,
    "robustness--val": 8.0,
}
SIZES = ("data.num_val=192", "data.num_train=192", "train.batch_size=24", "train.max_steps=16")


def ser(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of some steps on the embedded world, evaluated in both precisions."""
    run = start(tmp_path_factory.mktemp("precision") / "run", (*SER, *SIZES))
    train(run)
    found = {}
    for precision in BOTH:
        for command in COMMANDS.values():
            ser(command[0], run.path, *command[1:], "--precision", precision, "--workers", 0)
        found[precision] = {result.name: result for result in run.read_results()}
    return run, found


@pytest.mark.parametrize("name", COMMANDS)
def test_bf16_gives_nearly_what_fp32_does_and_says_so(trained, name):
    _, found = trained
    whole, half = (found[precision][name] for precision in ("fp32", "bf16"))
    assert (whole.model["precision"], half.model["precision"]) == ("fp32", "bf16")
    assert whole.protocol_id == half.protocol_id
    assert whole.protocol["settings"]["precision"] == PRECISION
    compared = [k for k in whole.metrics if k.startswith(("top1", "es/")) and "/low" not in k]
    assert compared
    for metric in compared:
        assert half.metrics[metric] == pytest.approx(whole.metrics[metric], abs=TOLERANCE[name])


def test_the_result_of_another_precision_is_kept(trained):
    run, _ = trained
    earlier = [Result.from_file(p) for p in (run.results / "earlier").glob("knn--*.json")]
    assert [result.model["precision"] for result in earlier] == ["fp32"]


def test_auto_is_fp32_on_a_cpu():
    assert runtime_for(CPU).precision == runtime_for(CPU, "fp32").precision == "fp32"
    assert runtime_for(CPU, "bf16").precision == "bf16"
    assert runtime_for(torch.device("cuda")).precision == "bf16"


def parts_by_the_probe(loaded, runtime):
    plan = plan_features(loaded.encoder, ["cls1", "cls4", "cls1+pooled"])
    reader = Reader(loaded, plan, runtime, interpolation="bicubic", seed=0, at_once=8, workers=0)
    return reader.table(Pictures(), np.arange(24), what="features").flatten(1)


def cls_by_knn(loaded, runtime):
    size = loaded.image_size
    found, _ = extract(loaded.encoder, Pictures(), runtime=runtime, image_size=size, workers=0)
    return found


def sums_of_scores(loaded, runtime):
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    sums = accumulate([loaded.encoder], [images], [2, 4], runtime=runtime)[0]
    return torch.from_numpy(sums.product).flatten(1).float()


@pytest.mark.parametrize("encode", [parts_by_the_probe, cls_by_knn, sums_of_scores])
def test_features_are_close_and_float32(trained, encode):
    """8 bits of each product: 2⁻⁸ of a value, somewhat more after four blocks."""
    loaded = read_encoder(trained[0].path)
    whole, half = (encode(loaded, runtime) for runtime in BOTH.values())
    assert 1e-5 < relative(half, whole) < 0.02


def relative(half, whole):
    assert half.dtype == whole.dtype == torch.float32
    return ((half - whole).norm() / whole.norm()).item()


def test_a_detectors_backbone():
    loaded, canvas = detection.small_encoder(), Canvas.of(48, patch_size=8)
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    whole, half = (FrozenEncoder(loaded, canvas, one).grids(images) for one in BOTH.values())
    assert 1e-5 < relative(half, whole) < 0.02


def test_the_head_of_a_classifier_of_timms_is_float32():
    model = create_timm("timm:test_vit", random_init=True).eval()
    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    given = []
    model.head.register_forward_hook(lambda _module, inputs, _out: given.append(inputs[0]))
    with torch.no_grad():
        whole, half = (_in_two(model, one)(images) for one in BOTH.values())
    assert relative(*given[::-1]) > 1e-5
    assert half.equal(torch.nn.functional.linear(given[1], model.head.weight, model.head.bias))
    assert relative(half, whole) < 0.05
    own = own_head("timm:test_vit", runtime=BOTH["bf16"], random_init=True)
    assert own.model["precision"] == "bf16"
