"""kNN against scikit-learn, and the protocol on the embedded world and on class folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
import torch.distributed as dist
import torch.nn.functional as F
import typer
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from typer.testing import CliRunner

from sercli.commands.knn import knn
from sercli.data import ShapesSource, open_source
from sercli.encoders.loading import LoadedEncoder, encoder_metadata, read_encoder, write_encoder
from sercli.encoders.vit import Encoder
from sercli.engine.runtime import Runtime
from sercli.errors import UserError
from sercli.evals import neighbours
from sercli.evals.common import SEED, hold_out
from sercli.evals.knn import evaluate, extract
from sercli.evals.neighbours import knn_accuracy, knn_scores, nearest
from sercli.recipe.schema import Model
from sercli.runs.run_dir import RunDir
from tests.support.processes import run_ranks

MODEL = Model(name="vit_micro", patch_size=8, width=16, depth=2, num_heads=2)
CPU = Runtime(torch.device("cpu"), None)


def features(seed: int, count: int, classes: int = 7, dim: int = 12) -> tuple[torch.Tensor, ...]:
    """Overlapping clusters: neighbours are right more often than not, but far from always."""
    draws = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (count,), generator=draws)
    return centres[labels] + 1.3 * torch.randn(count, dim, generator=draws), labels


def run_directory(path: Path, recipe: str = "data: {path: shapes, image_size: 32}") -> RunDir:
    encoder = Encoder.from_model(MODEL, image_size=32).initialise(1)
    run = RunDir.create(path, recipe=recipe, run={"status": "done"})
    metadata = encoder_metadata(MODEL, encoder, step=1)
    write_encoder(run.encoder, metadata, student=encoder, teacher=encoder.random_twin(2))
    return run


def class_folders(root: Path, counts: dict[str, int]) -> Path:
    for label, (name, count) in enumerate(counts.items()):
        for number in range(count):
            path = root / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            level = 40 * label + number
            Image.new("RGB", (36, 32), (level, 255 - level, 90)).save(path)
    return root


def loaded(seed: int = 1) -> LoadedEncoder:
    encoder = Encoder.from_model(MODEL, image_size=32).initialise(seed).eval()
    return LoadedEncoder(encoder, "somewhere", "student", 9, 9, 32)


# -- Pure functions -------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 10, 20, 200])
def test_predictions_and_accuracies_are_scikit_learns(k: int) -> None:
    bank, bank_labels = features(0, 300)
    queries, labels = features(1, 250)
    oracle = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(bank.double().numpy(), bank_labels.numpy())
    votes = oracle.predict_proba(queries.double().numpy())
    score = knn_scores(bank, bank_labels, queries, labels, num_classes=7, ks=(k,))[k]
    assert (score.predictions.numpy() == oracle.predict(queries.double().numpy())).all()
    top1 = 100 * np.mean(votes.argmax(1) == labels.numpy())
    assert 20 < top1 < 95
    assert score.top1 == pytest.approx(top1)
    own = votes[np.arange(250), labels.numpy()]
    found = ((votes > own[:, None]).sum(1) < 5) & (own > 0)
    assert score.top5 == pytest.approx(100 * found.mean())
    assert knn_accuracy(bank, bank_labels, queries, labels, num_classes=7, k=k).top1 == score.top1


@pytest.mark.parametrize("temperature", [1e-3, 1e-4])
def test_votes_are_counted_at_any_temperature(temperature: float) -> None:
    """exp(1 / τ) is beyond float64 here, and so is its quotient with the weakest vote."""
    bank, bank_labels = features(0, 90, classes=15)
    queries, labels = features(1, 40, classes=15)
    cosines = (F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T).double().numpy()
    votes = np.full((40, 15), -np.inf)
    for query, row in enumerate(cosines):
        nearest = np.argsort(-row, kind="stable")[:20]
        for name in np.unique(bank_labels[nearest].numpy()):
            of_class = row[nearest[bank_labels[nearest].numpy() == name]]
            votes[query, name] = scipy.special.logsumexp(of_class / temperature)
    score = knn_scores(
        bank, bank_labels, queries, labels, num_classes=15, ks=(20,), temperature=temperature
    )[20]
    assert score.predictions.tolist() == votes.argmax(1).tolist()
    own = votes[np.arange(40), labels.numpy()]
    found = ((votes > own[:, None]).sum(1) < 5) & np.isfinite(own)
    assert 0 < found.sum() < 40
    assert score.right.among_five == found.sum()


def test_several_k_from_one_search_are_those_of_each() -> None:
    bank, bank_labels = features(0, 150)
    queries, labels = features(1, 60)
    together = knn_scores(bank, bank_labels, queries, labels, num_classes=7)
    assert list(together) == [10, 20, 100, 200]
    for k, score in together.items():
        alone = knn_scores(bank, bank_labels, queries, labels, num_classes=7, ks=(k,))[k]
        assert score.predictions.tolist() == alone.predictions.tolist()


def test_more_neighbours_than_the_bank_holds_means_all_of_it() -> None:
    bank, bank_labels = features(0, 15)
    queries, labels = features(1, 40)
    scores = knn_scores(bank, bank_labels, queries, labels, num_classes=7, ks=(15, 200))
    assert scores[15].predictions.tolist() == scores[200].predictions.tolist()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, bank_labels = features(0, 130)
    bank[50:70] = bank[:20]  # equally similar ones, in different blocks
    queries, labels = features(1, 45)
    whole = knn_scores(bank, bank_labels, queries, labels, num_classes=7)
    monkeypatch.setattr(neighbours, "_QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(neighbours, "_BANK_AT_ONCE", 33)
    parts = knn_scores(bank, bank_labels, queries, labels, num_classes=7)
    for k in whole:
        assert parts[k].predictions.tolist() == whole[k].predictions.tolist()


@pytest.mark.parametrize("block", [3, 1000])
def test_of_equally_similar_ones_the_first_are_nearer(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_BANK_AT_ONCE", block)
    bank = torch.tensor([[0.0, 1]] * 4 + [[1.0, 0]] * 6)
    similarity, index = nearest(bank, torch.tensor([[1.0, 0]]), 3)
    assert index.tolist() == [[4, 5, 6]]
    assert similarity.tolist() == [[1.0, 1.0, 1.0]]


def test_a_class_without_a_vote_is_not_found() -> None:
    bank, bank_labels = torch.eye(3), torch.tensor([0, 1, 2])
    score = knn_scores(
        bank, bank_labels, torch.eye(3)[:1], torch.tensor([1]), num_classes=9, ks=(1, 3)
    )
    assert (score[1].top1, score[1].top5) == (0.0, 0.0)
    assert (score[3].top1, score[3].top5) == (0.0, 100.0)


def test_length_of_the_features_does_not_matter() -> None:
    bank, bank_labels = features(0, 80)
    queries, labels = features(1, 50)
    stretched = bank * torch.linspace(0.1, 9, 80)[:, None]
    one, other = (
        knn_accuracy(known, bank_labels, unknown, labels, num_classes=7)
        for known, unknown in ((bank, queries), (stretched, 7 * queries))
    )
    assert one.predictions.tolist() == other.predictions.tolist()


def test_arrays_that_do_not_fit_are_refused() -> None:
    bank, labels = features(0, 5)
    with pytest.raises(ValueError, match=r"need \[·, D\]"):
        knn_accuracy(bank, labels, bank[:, :3], labels, num_classes=7)
    with pytest.raises(ValueError, match="need ≥ 1"):
        knn_accuracy(bank[:0], labels[:0], bank, labels, num_classes=7)
    with pytest.raises(ValueError, match="a label for each"):
        knn_accuracy(bank, labels[:2], bank, labels, num_classes=7)


# -- Features and the protocol --------------------------------------------------------------------


def test_extract_follows_the_indices_and_leaves_the_encoder_as_it_was() -> None:
    source = ShapesSource("val", image_size=32, num_images=9)
    encoder = loaded().encoder.train()
    encoder.norm.eval()
    both = [
        extract(
            encoder, source, runtime=CPU, image_size=32, indices=chosen, batch_size=size, workers=0
        )
        for chosen, size in ((None, 4), ([5, 2, 7], 2))
    ]
    assert encoder.training
    assert not encoder.norm.training
    torch.testing.assert_close(both[1][0], both[0][0][[5, 2, 7]])
    assert both[1][1].tolist() == source.labels[[5, 2, 7]].tolist()
    assert not both[0][0].requires_grad


def test_hold_out_is_a_fifth_of_each_class(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", {"a": 10, "b": 3, "c": 1, "d": 2})
    source = open_source(str(root), "train", image_size=32)
    bank, queries = hold_out(source)
    assert np.bincount(source.labels[queries], minlength=4).tolist() == [2, 1, 0, 1]
    assert sorted([*bank, *queries]) == list(range(16))
    assert hold_out(source)[1].tolist() == queries.tolist()
    lonely = open_source(
        str(class_folders(tmp_path / "one", {"a": 1, "b": 1})), "train", image_size=32
    )
    with pytest.raises(UserError, match="one image a class"):
        hold_out(lonely)


def test_evaluate_is_knn_of_the_extracted_features() -> None:
    subject = loaded()
    train, val = (
        ShapesSource(s, image_size=32, num_images=n) for s, n in (("train", 90), ("val", 40))
    )
    outcome = evaluate(subject, train, val, runtime=CPU)
    parts = [
        extract(subject.encoder, source, runtime=CPU, image_size=32, workers=0)
        for source in (train, val)
    ]
    score = knn_scores(*parts[0], *parts[1], num_classes=10)[20]
    values = outcome.result.metrics
    assert (values["top1"], values["top5"]) == (score.top1, score.top5)
    assert (values["k20/top1"], values["k200/top1"] is None) == (score.top1, False)
    assert outcome.result.data["n"] == 40
    assert not outcome.result.data["partial"]
    assert outcome.chance == 10.0
    right = outcome.arrays["labels"] == outcome.arrays["predictions"]
    assert 100 * right.mean() == values["top1"]
    assert outcome.arrays["image_ids"][3] == "val/3"


def test_floor_is_the_twin_and_can_be_left_out() -> None:
    subject = loaded(seed=SEED)  # drawn as the twin is: both must score the same
    train, val = (ShapesSource(s, image_size=32, num_images=30) for s in ("train", "val"))
    values = evaluate(subject, train, val, runtime=CPU).result.metrics
    assert values["random/top1"] == values["top1"]
    assert values["random/top1/low"] == values["top1/low"]
    without = evaluate(subject, train, val, runtime=CPU, floor=False).result
    assert not [name for name in without.metrics if name.startswith("random")]


def test_wilson_intervals_in_percent() -> None:
    train, val = (ShapesSource(s, image_size=32, num_images=50) for s in ("train", "val"))
    values = evaluate(loaded(), train, val, runtime=CPU, floor=False).result.metrics
    share, z = values["top1"] / 100, 1.959963984540054  # type: ignore[operator]
    middle = (share + z * z / 100) / (1 + z * z / 50)
    half = z * np.sqrt(share * (1 - share) / 50 + z * z / 10000) / (1 + z * z / 50)
    assert values["top1/low"] == pytest.approx(100 * (middle - half))
    assert values["top1/high"] == pytest.approx(100 * (middle + half))


def test_limit_and_hold_out_are_marked(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set", {"a": 10, "b": 10})
    train = open_source(str(root), "train", image_size=32)
    whole = evaluate(loaded(), train, None, runtime=CPU, floor=False).result
    some = evaluate(loaded(), train, None, runtime=CPU, floor=False, limit=3).result
    assert (whole.data["n"], whole.data["bank"], whole.data["partial"]) == (4, 16, False)
    assert (some.data["n"], some.data["bank"], some.data["partial"]) == (3, 3, True)
    assert whole.protocol_id == some.protocol_id
    val = ShapesSource("val", image_size=32, num_images=5)
    usual = evaluate(loaded(), val, val, runtime=CPU, floor=False).result
    assert usual.protocol_id != whole.protocol_id


def test_another_image_size_is_another_protocol() -> None:
    subject = loaded()
    train, val = (ShapesSource(s, image_size=48, num_images=40) for s in ("train", "val"))
    usual = evaluate(subject, train, val, runtime=CPU, floor=False).result
    larger = evaluate(subject, train, val, runtime=CPU, floor=False, image_size=48)
    assert (usual.data["image_size"], larger.result.data["image_size"]) == (32, 48)
    assert larger.result.protocol["settings"]["image_size"] == 48
    assert larger.result.protocol_id != usual.protocol_id
    parts = [
        extract(subject.encoder, source, runtime=CPU, image_size=48, workers=0)
        for source in (train, val)
    ]
    score = knn_scores(*parts[0], *parts[1], num_classes=10)[20]
    assert larger.arrays["predictions"].tolist() == score.predictions.tolist()
    with pytest.raises(UserError, match=r"--image-size 50; it must be a multiple of the patch.* 8"):
        evaluate(subject, train, val, runtime=CPU, image_size=50)


# -- Several processes ----------------------------------------------------------------------------


def shared_outcome(
    queries: int, batch_size: int = 64
) -> tuple[dict[str, Any], list[int], list[str]]:
    train, val = (
        ShapesSource(s, image_size=32, num_images=n) for s, n in (("train", 61), ("val", 30))
    )
    outcome = evaluate(
        loaded(), train, val, runtime=CPU, batch_size=batch_size, limit=queries, workers=0
    )
    arrays = outcome.arrays
    metrics = outcome.result.metrics
    return metrics, arrays["predictions"].tolist(), arrays["image_ids"].tolist()


def in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    reads: list[int] = []
    usual = ShapesSource.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShapesSource, "load", lambda s, i: (reads.append(i), usual(s, i))[1])
        found = [shared_outcome(queries) for queries in (61, 1)]
    torch.save((found, len(reads)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.run
def test_two_processes_find_what_one_does_and_read_each_image_once(tmp_path: Path) -> None:
    run_ranks(in_process, str(tmp_path))
    alone = [shared_outcome(queries) for queries in (61, 1)]  # one query: a process without any
    told = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert told[0][0] == told[1][0] == alone
    assert sum(reads for _, reads in told) == 61 + 30 + 1 + 1
    assert shared_outcome(61, batch_size=7) == alone[0]


# -- The command ----------------------------------------------------------------------------------


def invoke(*arguments: str | Path) -> str:
    """Standard output; errors are raised."""
    app = typer.Typer()
    app.command()(knn)
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_command_writes_a_result_and_its_predictions(tmp_path: Path) -> None:
    recipe = "seed: 3\ndata: {path: shapes, image_size: 32, num_train: 40, num_val: 20}"
    run = run_directory(tmp_path / "run", recipe)
    text = invoke(run.path)
    (result,) = run.read_results()
    assert result.name == "knn"
    assert (result.data["n"], result.data["bank"]) == (20, 40)
    assert f"{result.metrics['top1']:.2f}" in text
    assert "chance  10.00" in text
    with np.load(run.predictions("knn")) as stored:
        assert stored["predictions"].shape == (20,)
    train, val = (
        open_source("shapes", s, image_size=32, num_images=n, seed=3)
        for s, n in (("train", 40), ("val", 20))
    )
    direct = evaluate(read_encoder(run.path), train, val, runtime=CPU)
    assert result.metrics == direct.result.metrics


def test_teacher_is_another_encoder(tmp_path: Path) -> None:
    run = run_directory(
        tmp_path / "run", "data: {path: shapes, image_size: 32, num_train: 20, num_val: 20}"
    )
    invoke(run.path, "--teacher", "--no-floor")
    assert json.loads(run.result("knn").read_text())["model"]["key"] == "teacher"


def test_file_goes_to_its_own_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_directory(Path("trained"))
    class_folders(Path("set"), {"a": 6, "b": 6})
    with pytest.raises(UserError, match="add --data"):
        invoke(run.encoder)
    assert not Path("runs").exists()
    invoke(run.encoder, "--data", "set", "--no-floor")
    made = RunDir.open("runs/encoder")
    assert made.read_run()["status"] == "done"
    assert made.read_results()[0].data["path"] == "set"

    copy = Path("other/encoder.safetensors")
    copy.parent.mkdir()
    copy.write_bytes(run.encoder.read_bytes())
    with pytest.raises(UserError, match=r"holds the results of trained/encoder\.safetensors"):
        invoke(copy, "--data", "set")
    invoke(copy, "--data", "set", "--no-floor", "--out", "mine")
    assert len(RunDir.open("mine").read_results()) == 1


def test_places_that_cannot_be_used_are_refused_before_any_work(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run")
    (tmp_path / "plain").mkdir()
    with pytest.raises(UserError, match=r"has no run\.json"):
        invoke(run.path, "--out", tmp_path / "plain")
    with pytest.raises(UserError, match="does not exist"):
        invoke(run.path, "--data", tmp_path / "nowhere", "--out", tmp_path / "new")
    with pytest.raises(UserError, match="it must be cpu or cuda"):
        invoke(run.path, "--device", "tpu")
    assert not (tmp_path / "new").exists()
    assert not run.results.exists()


# -- some of the classes, and few of the labels ----------------------------------------------------


def test_a_share_of_the_bank_is_another_quantity() -> None:
    loaded = read_encoder("timm:vit_tiny_patch16_224", random_init=True)
    train, val = (ShapesSource(split, image_size=32, num_images=60) for split in ("train", "val"))
    options = {"runtime": CPU, "image_size": 32, "floor": False, "workers": 0}
    whole, few = (evaluate(loaded, train, val, shots=share, **options) for share in (None, 0.1))
    assert (whole.result.name, few.result.name) == ("knn", "knn--10pct")
    assert few.result.data["bank"] == 10
    assert few.result.data["n"] == whole.result.data["n"] == 60
    settings = {**whole.result.protocol["settings"], "shots": 0.1}
    assert few.result.protocol["settings"] == settings
    # Without a val split the queries are held out first, and stay whole.
    held = evaluate(loaded, train, None, shots=0.1, **options).result
    assert held.data["n"] == len(hold_out(train)[1])


def test_results_of_other_classes_do_not_mix(tmp_path: Path) -> None:
    run = run_directory(
        tmp_path / "run", "data: {path: shapes, image_size: 32, classes: [star, disc, ring]}"
    )
    (tmp_path / "two.txt").write_text("disc\nstar\n")
    found = {}
    app = typer.Typer()
    app.command()(knn)
    for given in ([], ["--classes", "all"], ["--classes", str(tmp_path / "two.txt")]):
        options = ["--no-floor", "--workers", "0", "--limit", "30", *given]
        result = CliRunner().invoke(app, [str(run.path), *options])
        assert result.exit_code == 0, result.output
        (stored,) = run.read_results()
        found[" ".join(given[1:])] = stored
    own, whole, two = found.values()
    assert "classes" not in whole.protocol["settings"]
    assert own.protocol["settings"]["classes"]["number"] == 3
    assert two.protocol["settings"]["classes"]["number"] == 2
    assert len({one.protocol_id for one in found.values()}) == 3
    with np.load(run.predictions("knn")) as arrays:
        assert set(arrays["labels"].tolist()) == {0, 1}
