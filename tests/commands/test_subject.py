"""Where an evaluation's results go: no two models share a directory."""

from pathlib import Path

import pytest

from sercli.commands.subject import Asked, destination, save
from sercli.encoders.asked import Hints
from sercli.errors import UserError
from sercli.runs.result import Result
from sercli.runs.run_dir import RunDir

VARIANTS = {
    "teacher": {"teacher": True},
    "key-net.encoder": {"hints": Hints(key="net.encoder")},
    "num-heads-6": {"hints": Hints(num_heads=6)},
    "cls-after-3": {"hints": Hints(cls_after=3)},
    "positions-bicubic": {"hints": Hints(positions="bicubic")},
    "num-heads-6-key-a-b": {"hints": Hints(num_heads=6, key="a/b")},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.pth").write_bytes(b"weights")


def a_result(key="student", **model):
    protocol = {"name": "knn", "variant": None, "version": 1, "settings": {}}
    return Result(protocol, {"key": key, **model}, {"path": "shapes", "n": 1}, {"top1": 1.0})


def evaluated(asked, out=None, **model):
    """Save a result as an evaluator does; the directory."""
    target = destination(asked, out)
    save(target, a_result(**model), {}, owner=asked.owner, command=["ser"])
    return target


def test_random_weights_have_a_directory_of_their_own():
    cached, random = Asked("timm:vit"), Asked("timm:vit", random_init=True)
    assert evaluated(cached) == Path("runs/vit")
    assert evaluated(random) == Path("runs/vit-random-init")
    assert evaluated(cached) == Path("runs/vit")  # again, with both there
    assert evaluated(random) == Path("runs/vit-random-init")


@pytest.mark.parametrize("suffix", VARIANTS)
def test_what_is_said_of_a_file_makes_it_another_model(suffix):
    plain, said = Asked("a/x.pth"), Asked("a/x.pth", **VARIANTS[suffix])
    assert evaluated(plain) == Path("runs/x")
    assert evaluated(said) == Path(f"runs/x-{suffix}")
    for other in (plain, Asked("a/x.pth", teacher=True, hints=Hints(num_heads=3))):
        with pytest.raises(UserError, match=r"holds the results of a/x\.pth with .*name another"):
            destination(other, Path(f"runs/x-{suffix}"))


@pytest.mark.parametrize(
    "options", [{}, {"teacher": True}, {"random_init": True}], ids=["plain", "teacher", "random"]
)
def test_files_of_one_stem_are_refused_the_same_directory(options):
    evaluated(Asked("a/x.pth", **options))
    with pytest.raises(UserError, match=r"holds the results of a/x\.pth.*not of b/x\.pth"):
        destination(Asked("b/x.pth", **options), None)


def test_directories_of_before_are_found():
    """They had the source's name alone, and their owner was told without options."""
    random = Asked("timm:vit", random_init=True)
    save(Path("runs/vit"), a_result(key="random"), {}, owner=random.owner, command=["ser"])
    assert destination(random, None) == Path("runs/vit")
    assert destination(Asked("timm:vit", random_init=True), Path("runs/vit")) == Path("runs/vit")
    with pytest.raises(UserError, match="with random weights, not of timm:vit"):
        destination(Asked("timm:vit"), None)

    save(Path("runs/x"), a_result(num_heads=6), {}, owner="a/x.pth", command=["ser"])
    assert destination(Asked("a/x.pth", hints=Hints(num_heads=6)), None) == Path("runs/x")
    three = Asked("a/x.pth", hints=Hints(num_heads=3))
    assert destination(three, None) == Path("runs/x-num-heads-3")
    teacher = Asked("a/x.pth", teacher=True)
    assert destination(teacher, None) == Path("runs/x-teacher")
    with pytest.raises(UserError, match=r"not of a/x\.pth with --teacher"):
        destination(teacher, Path("runs/x"))


@pytest.fixture
def trained():
    """Two runs with a checkpoint of one name each."""
    for seed, name in enumerate(("one", "two")):
        run = RunDir.create(
            Path("runs") / name,
            recipe=f"seed: {seed}\ndata:\n  path: shapes\n  num_train: 40\n  num_val: 20\n",
            run={"status": "done"},
        )
        run.checkpoints.mkdir()
        for file in (run.checkpoint(8), run.encoder, run.path / "other.pth"):
            file.write_bytes(b"weights")


@pytest.mark.usefixtures("trained")
def test_checkpoints_of_two_runs_have_a_directory_each():
    checkpoint = RunDir(Path("runs/one")).checkpoint(8)
    assert evaluated(Asked(str(checkpoint))) == Path("runs/step-00000008")
    other = str(RunDir(Path("runs/two")).checkpoint(8))
    assert evaluated(Asked(other)) == Path("runs/two-step-00000008")
    assert evaluated(Asked(str(checkpoint))) == Path("runs/step-00000008")  # each again
    assert evaluated(Asked(other)) == Path("runs/two-step-00000008")
    assert destination(Asked("runs/two/other.pth"), None) == Path("runs/other")
    assert destination(Asked("runs/two"), None) == Path("runs/two")


@pytest.mark.usefixtures("trained")
def test_a_teachers_result_does_not_replace_the_students():
    run = RunDir(Path("runs/one"))
    evaluated(Asked("runs/one"))
    evaluated(Asked("runs/one", teacher=True), key="teacher")
    assert run.read_results()[0].model["key"] == "teacher"
    (earlier,) = (run.results / "earlier").glob("knn--*.json")
    assert Result.from_file(earlier).model["key"] == "student"


@pytest.mark.usefixtures("trained")
def test_a_training_run_takes_no_results_of_another_model():
    Path("one.pth").write_bytes(b"weights")  # as `ser export runs/one one.pth` may have been
    refused = r"runs/one is a training run of its own, and .* is not of it; .*name another"
    for asked, out in ((Asked("one.pth"), None), (Asked("timm:vit"), Path("runs/one"))):
        with pytest.raises(UserError, match=refused):
            destination(asked, out)
    with pytest.raises(UserError, match="runs/two is a training run"):
        destination(Asked("runs/one"), Path("runs/two"))
    checkpoint = RunDir(Path("runs/one")).checkpoint(8)
    for own in (checkpoint, Path("runs/one"), Path("runs").resolve() / "one"):
        assert destination(Asked(str(own)), Path("runs/one")) == Path("runs/one")


def test_a_result_is_the_last_of_its_files_and_says_what_was_typed(tmp_path):
    command = ["ser", "knn", "x", "--limit", "3"]

    def killed(_run):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "run", a_result(), {}, owner="x", command=command, beside=killed)
    assert RunDir(tmp_path / "run").read_results() == []
    written = []
    save(tmp_path / "run", a_result(), {}, owner="x", command=command, beside=written.append)
    (result,) = RunDir(tmp_path / "run").read_results()
    assert result.command == tuple(command)
    assert written == [RunDir(tmp_path / "run")]
