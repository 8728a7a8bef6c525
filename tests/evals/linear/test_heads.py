"""The probe's features against timm's, its heads against torch's SGD and scikit-learn, its file."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from sercli.benchmarks import probe as benchmark
from sercli.benchmarks.record import Machine
from sercli.encoders.loading import encoder_sha256
from sercli.encoders.vit import Encoder, final_norm
from sercli.engine.runtime import Runtime
from sercli.errors import UserError
from sercli.evals.linear.classifiers import Choice, HeadRow, choose
from sercli.evals.linear.features import Scale, layers_of, parts_of, plan_features
from sercli.evals.linear.heads import HeadFacts, ProbeHead, load_head
from sercli.recipe.schema import Model
from tests.support.clusters import clusters

MODEL = Model(name="vit_micro", patch_size=8, width=16, depth=6, num_heads=2)
SETS = ("cls1", "cls4", "cls1+pooled")


def small_encoder(cls_after: int = 0) -> Encoder:
    encoder = Encoder.from_model(MODEL, image_size=16, cls_after=cls_after).initialise(1).eval()
    with torch.no_grad():  # a norm that does something
        encoder.norm.weight.uniform_(0.5, 2)
        encoder.norm.bias.normal_()
    return encoder.requires_grad_(False)


def pictures(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def row(rates: tuple[float, ...], dtype: torch.dtype = torch.float32, **options: int) -> HeadRow:
    sizes = {"width": 6, "num_classes": 4, **options}
    return HeadRow("cls1", sizes["width"], learning_rates=rates,
                   num_classes=sizes["num_classes"], seed=0, dtype=dtype)  # fmt: skip


# -- Features -------------------------------------------------------------------------------------


def features_of(encoder: Encoder, images: Tensor) -> dict[str, Tensor]:
    plan = plan_features(encoder, SETS)
    table = parts_of(encoder(images, layers_of(plan.parts)), plan.parts, final_norm(encoder))
    assert table.shape == (len(images), len(plan.parts), 16)
    return {name: plan.join(name, table) for name in SETS}


def test_feature_sets_are_timms() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    with torch.no_grad():
        vit.norm.weight.uniform_(0.5, 2)
        vit.norm.bias.normal_()
        images = torch.randn(2, 3, 224, 224)
        encoder = Encoder.from_timm(copy.deepcopy(vit)).eval()
        plan = plan_features(encoder, SETS)
        found = encoder(images, layers_of(plan.parts))
        table = parts_of(found, plan.parts, final_norm(encoder))
        tokens = vit.forward_features(images)
        last = vit.get_intermediate_layers(images, n=4, norm=True, return_prefix_tokens=True)
    cls4 = torch.cat([prefix[:, 0] for _, prefix in last], dim=1)  # DINO's order: earliest first
    close = dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plan.join("cls1", table), tokens[:, 0], **close)
    torch.testing.assert_close(plan.join("cls4", table), cls4, **close)
    pooled = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)
    torch.testing.assert_close(plan.join("cls1+pooled", table), pooled, **close)


@pytest.mark.parametrize(("cls_after", "blocks"), [(0, 4), (2, 4), (3, 3), (5, 1)])
def test_cls4_takes_only_blocks_that_have_cls(cls_after: int, blocks: int) -> None:
    encoder = small_encoder(cls_after)
    plan = plan_features(encoder, SETS)
    assert len(plan.sets["cls4"]) == blocks
    assert bool(plan.notes) == (blocks < 4)
    if blocks < 4:
        assert f"{blocks} of the last 4 blocks: it joins after block {cls_after}" in plan.notes[0]
    found = encoder(pictures(), range(7))
    own = [encoder.norm(found.cls_tokens[block]) for block in range(7 - blocks, 7)]
    expected = torch.cat(own, dim=1)
    torch.testing.assert_close(features_of(encoder, pictures())["cls4"], expected)


def test_an_encoder_without_cls_has_its_summary_only() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", class_token=False, global_pool="avg",
                            num_classes=0, img_size=32).eval()  # fmt: skip
    encoder = Encoder.from_timm(vit)
    with pytest.raises(UserError, match=r"has no \[CLS\]; .* use --preset moco-v3"):
        plan_features(encoder, SETS)
    plan = plan_features(encoder, ("cls1",))
    images = torch.randn(2, 3, 32, 32)
    found = parts_of(encoder(images, ()), plan.parts, final_norm(encoder))
    torch.testing.assert_close(plan.join("cls1", found), vit(images))
    assert isinstance(final_norm(encoder), nn.LayerNorm)


def test_the_hash_sees_every_tensor() -> None:
    encoder = small_encoder()
    before = encoder_sha256(encoder)
    assert encoder_sha256(copy.deepcopy(encoder)) == before
    for name in ("blocks.5.mlp.fc2.bias", "cls_token", "pos_embed", "norm.weight"):
        changed = copy.deepcopy(encoder)
        tensor = dict(changed.named_parameters())[name]
        with torch.no_grad():
            tensor.view(-1)[0] = torch.nextafter(tensor.view(-1)[0], torch.tensor(9.0))
        assert encoder_sha256(changed) != before


def test_a_head_on_standardised_features_is_one_on_raw_features() -> None:
    plan = plan_features(small_encoder(), SETS)
    table = 3 + 2 * torch.randn(50, len(plan.parts), 16, generator=torch.Generator().manual_seed(1))
    table[:, 1, 2] = 1e-3  # a constant
    raw, rows = table.clone(), torch.arange(40)
    scale = Scale.of(table, rows)
    assert scale.apply_(table) is table
    varying = torch.ones(len(plan.parts), 16, dtype=torch.bool)
    varying[1, 2] = False
    torch.testing.assert_close(table[:40].mean(0), torch.zeros(len(plan.parts), 16), atol=1e-5,
                               rtol=0)  # fmt: skip
    std = table[:40].std(0, correction=0)
    torch.testing.assert_close(std[varying], torch.ones_like(std[varying]))
    assert not table[:, 1, 2].abs().max() > 1e-6
    nothing = Scale.none(plan, 16)
    for name in SETS:
        width = plan.join(name, raw).shape[1]
        weight, bias = torch.randn(3, width), torch.randn(3)
        folded, shifted = scale.fold(plan, name, weight, bias)
        expected = plan.join(name, table) @ weight.T + bias
        found = plan.join(name, raw) @ folded.T + shifted
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        same = nothing.fold(plan, name, weight, bias)
        assert torch.equal(same[0], weight)
        assert torch.equal(same[1], bias)


# -- Training -------------------------------------------------------------------------------------


def test_every_head_is_torchs_sgd_alone() -> None:
    rates, factors = (0.5, 0.05, 0.005), torch.linspace(1, 0.1, 25).tolist()
    together = row(rates, torch.float64)
    features, labels = clusters(60)
    batches = list(zip(features.double().split(13), labels.split(13), strict=True))
    for index, rate in enumerate(rates):
        alone = nn.Linear(6, 4, dtype=torch.float64)
        with torch.no_grad():
            weight, bias = together.head(index, best=False)
            alone.weight.copy_(weight)
            alone.bias.copy_(bias)
        optimiser = torch.optim.SGD(alone.parameters(), lr=rate, momentum=0.9)
        trained, losses = row(rates, torch.float64), []
        for step, factor in enumerate(factors):
            x, own = batches[step % len(batches)]
            optimiser.param_groups[0]["lr"] = rate * factor
            loss = nn.functional.cross_entropy(alone(x), own)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            assert trained.step(x, own, factor=factor)[index].item() == pytest.approx(losses[-1])
        weight, bias = trained.head(index, best=False)
        torch.testing.assert_close(weight, alone.weight.detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(bias, alone.bias.detach(), rtol=1e-10, atol=1e-12)
        assert losses[-1] < losses[0]


def test_a_head_does_not_depend_on_the_others() -> None:
    features, labels = clusters(64)
    rates = (0.001, 0.1, 1.0)
    together = row(rates)
    single = [row((rate,)) for rate in rates]
    for _ in range(30):
        for each in (together, *single):
            each.step(features, labels, factor=0.7)
    for index, alone in enumerate(single):
        for ours, theirs in zip(
            together.head(index, best=False), alone.head(0, best=False), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-6)


def test_long_training_finds_scikit_learns_optimum() -> None:
    features, labels = clusters(400)
    unseen, unseen_labels = clusters(500, seed=1)
    oracle = LogisticRegression(C=1e10, tol=1e-10, max_iter=5000).fit(
        features.double().numpy(), labels.numpy()
    )
    heads = row((0.05,), torch.float64)
    for step in range(3000):
        factor = 0.5 * (1 + np.cos(np.pi * step / 3000))
        loss = heads.step(features.double(), labels, factor=factor)
    probabilities = oracle.predict_proba(features.double().numpy())
    optimum = -np.log(probabilities[np.arange(400), labels.numpy()]).mean()
    assert loss.item() == pytest.approx(optimum, rel=1e-5)
    logits = heads.logits(unseen.double())[:, 0]
    expected = oracle.predict_proba(unseen.double().numpy())
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, atol=2e-3)
    ours = (logits.argmax(1) == unseen_labels).double().mean().item()
    assert 0.4 < ours < 0.95
    assert ours == pytest.approx(oracle.score(unseen.double().numpy(), unseen_labels.numpy()))


def test_a_head_that_diverges_disturbs_no_other_and_is_never_chosen() -> None:
    features, labels = clusters(64)
    heads, sane = row((0.1, 1e38)), row((0.1,))
    for epoch in range(1, 4):
        for _ in range(10):
            heads.step(features, labels, factor=1)
            sane.step(features, labels, factor=1)
        heads.measure(features, labels, epoch=epoch)
    assert heads.last.correct[1] == -1
    assert heads.last.loss[1] == torch.inf
    torch.testing.assert_close(heads.head(0, best=False)[0], sane.head(0, best=False)[0])
    for best in (True, False):
        choice = choose({"cls1": heads}, best=best)
        assert choice is not None
        assert choice.index == 0
    lost = row((1e38,))
    for _ in range(10):
        lost.step(features, labels, factor=1)
    lost.measure(features, labels, epoch=1)
    assert choose({"cls1": lost}, best=True) is None


def test_best_and_last_are_measured_as_they_are() -> None:
    features, labels = clusters(80)
    heads = row((0.2, 0.01))
    kept: list[tuple[list[int], list[Tensor]]] = []
    for epoch in range(1, 9):
        heads.step(features, labels, factor=1 if epoch < 5 else -0.5)  # learn, then unlearn
        heads.measure(features, labels, epoch=epoch)
        logits = heads.logits(features)
        correct = (logits.argmax(2) == labels[:, None]).sum(0).tolist()
        assert heads.last.correct.tolist() == correct
        loss = torch.stack([nn.functional.cross_entropy(logits[:, i], labels) for i in range(2)])
        torch.testing.assert_close(heads.last.loss, loss.double())
        kept.append((correct, [heads.head(i, best=False)[0] for i in range(2)]))
    for index in range(2):
        most = max(correct[index] for correct, _ in kept)
        epoch = int(heads.best.epoch[index])
        assert heads.best.correct[index] == most
        assert kept[epoch - 1][0][index] == most
        assert torch.equal(heads.head(index, best=True)[0], kept[epoch - 1][1][index])
    assert int(heads.best.epoch[0]) < 8
    choice = choose({"cls1": heads}, best=True)
    assert choice is not None
    assert choice.correct == int(heads.best.correct.max())


def test_of_equally_many_right_the_lower_loss_is_chosen() -> None:
    features = torch.tensor([[1.0, 0], [0, 1.0]])
    labels = torch.tensor([0, 1])
    rows = {name: row((1.0,), width=2, num_classes=2) for name in ("cls1", "cls4")}
    for name, scale in (("cls1", 1.0), ("cls4", 3.0)):
        rows[name].weight.copy_(scale * torch.eye(2)[:, None])
        rows[name].measure(features, labels, epoch=1)
    assert choose(rows, best=True) == Choice("cls4", 0, 1, 2, True)


def test_first_weights_are_those_of_the_protocol() -> None:
    many, one = row((1.0, 2.0), width=400), row((5.0,), width=400)
    assert torch.equal(many.weight[:, 0], many.weight[:, 1])
    assert torch.equal(many.weight[:, 1], one.weight[:, 0])
    assert one.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not one.bias.any()


def test_state_goes_through_a_dictionary() -> None:
    features, labels = clusters(40)
    whole, first = row((0.1, 0.3)), row((0.1, 0.3))
    for epoch in range(1, 5):
        whole.step(features, labels, factor=1)
        whole.measure(features, labels, epoch=epoch)
        if epoch < 3:
            first.step(features, labels, factor=1)
            first.measure(features, labels, epoch=epoch)
    second = row((0.1, 0.3))
    second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    for epoch in (3, 4):
        second.step(features, labels, factor=1)
        second.measure(features, labels, epoch=epoch)
    expected = whole.state_dict()
    assert second.state_dict().keys() == expected.keys()
    for name, value in second.state_dict().items():
        assert torch.equal(value, expected[name]), name


# -- The file -------------------------------------------------------------------------------------


def trained_head(encoder: Encoder, name: str) -> ProbeHead:
    parts = plan_features(encoder, (name,)).sets[name]
    facts = HeadFacts(("cat", "ünit", "z"), name, parts, 0.5, 7, encoder_sha256(encoder), 16, 18,
                      "bicubic", (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), "0123456789ab")  # fmt: skip
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 16 * len(parts), generator=draws)
    return ProbeHead(facts, weight, torch.randn(3, generator=draws), final_norm(encoder))


@pytest.mark.parametrize("name", SETS)
def test_a_head_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    encoder = small_encoder(3)
    head = trained_head(encoder, name)
    path = tmp_path / "heads" / "linear-eval--ser.safetensors"
    head.save(path)
    stored = load_head(path)
    assert stored.facts == head.facts
    assert stored.classes == ("cat", "ünit", "z")
    logits = stored(encoder(pictures(), stored.layers))
    features = features_of(encoder, pictures())[name]
    torch.testing.assert_close(logits, features @ head.weight.T + head.bias)
    assert logits.shape == (3, 3)
    assert not [p for p in stored.parameters() if p.requires_grad]
    stored.require_encoder(encoder)
    with pytest.raises(UserError, match="a head belongs to one encoder"):
        stored.require_encoder(encoder.random_twin(0))


def test_files_that_are_no_heads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `ser linear-eval` first"):
        load_head(tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"x" * 40)
    with pytest.raises(UserError, match="no safetensors file"):
        load_head(broken)
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no probe head of ser"):
        load_head(tmp_path / "other.safetensors")


def test_a_norm_that_cannot_be_kept_is_refused() -> None:
    encoder = small_encoder()
    head = trained_head(encoder, "cls1")
    with pytest.raises(UserError, match="BatchNorm1d"):
        ProbeHead(head.facts, head.weight, head.bias, nn.BatchNorm1d(16))


# -- The benchmark --------------------------------------------------------------------------------


def test_the_benchmark_trains_every_head_of_every_grid() -> None:
    told: list[str] = []
    subject = benchmark.Subject(
        "small", small_encoder(), 16, 5, [(("cls4",), (0.1,)), (SETS, (0.1, 0.2, 0.3))]
    )
    machine = Machine(Runtime(torch.device("cpu"), None), 1)
    rows = benchmark.run(subject, batch_size=4, machine=machine, rounds=3, tell=told.append)
    said = [line.partition(", ")[0] for line in told]
    assert said == [
        "3 rounds of 2 measurements",
        "warmed up",
        *(f"round {n} of 3" for n in (1, 2, 3)),
    ]
    assert [(r.sets, r.rates) for r in rows] == [(1, 1), (3, 3)]
    assert [r.parameters for r in rows] == [(64 + 1) * 5, 3 * (16 + 64 + 32 + 3) * 5]
    assert (rows[0].ratio.value, rows[0].by_parts) == (1, 1)
    assert all(0 < r.heads_seconds < r.seconds for r in rows)
    assert rows[1].by_parts > 0
