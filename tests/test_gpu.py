"""What only a CUDA device can show (marker gpu)."""

import _workers as workers
import pytest
import torch
from test_engine import SER, TINY, losses, no_monitor, start

from sercli.engine import pretraining
from sercli.losses import patch_nt_xent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("negatives", ["cross-view", "both-views+spatial:1"])
def test_patch_loss_equals_the_cpu(negatives):
    torch.manual_seed(0)
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        anchors, keys = (torch.randn(6, 36, 64).to(device).requires_grad_() for _ in range(2))
        loss = patch_nt_xent(anchors, keys, temperature=0.3, negatives=negatives, grid=(6, 6))
        found.append([x.cpu() for x in (loss, *torch.autograd.grad(loss, [anchors, keys]))])
    for on_cpu, on_cuda in zip(*found, strict=True):
        torch.testing.assert_close(on_cuda, on_cpu, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("settings", [("train.compile=off",), ("train.compile=on",)])
def test_a_run_trains_in_mixed_precision(tmp_path, settings):
    run = start(tmp_path / "cuda", (*SER, *settings))
    pretraining.train(run, device=torch.device("cuda"), make_monitor=no_monitor)
    rows = losses(run)
    assert all(row["loss"] is not None for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_float32_on_cuda_follows_the_cpu(tmp_path):
    found = []
    for device in ("cpu", "cuda"):
        run = start(tmp_path / device, (*SER, "train.precision=fp32", "train.compile=off"))
        pretraining.train(run, device=torch.device(device), make_monitor=no_monitor)
        found.append(losses(run))
    for on_cpu, on_cuda in zip(*found, strict=True):
        assert on_cuda["loss"] == pytest.approx(on_cpu["loss"], rel=2e-2)


@pytest.mark.parametrize("method", list(workers.METHODS))
@pytest.mark.parametrize("addon", list(workers.ADDONS))
def test_every_combination_trains_in_mixed_precision(tmp_path, method, addon):
    narrow = workers.narrow(method, addon, **({} if addon == "none" else {"layer": 2}))
    chosen = [f"method.name={method}", f"addon.name={addon}"]
    chosen += [f"views.setting={narrow['views']['setting']}"]
    for section in ("method", "addon"):
        chosen += [f"{section}.{key}={value}" for key, value in narrow[section].items()]
    tiny = [s for s in TINY if not s.startswith("method.")]
    run = start(tmp_path / "cuda", (*tiny, *chosen, "train.compile=on", "train.max_steps=6"))
    pretraining.train(run, device=torch.device("cuda"), make_monitor=no_monitor)
    rows = losses(run)
    assert all(row["loss"] is not None and not row["skipped"] for row in rows)
