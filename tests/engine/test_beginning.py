"""`--weights`: what is filled in, what is refused, what is trained from, and how it goes on."""

import json
import re
import shutil

import pytest
import timm
import torch

from sercli import cli
from sercli.commands.pretrain import NewRun
from sercli.data.loading import evaluation_batches
from sercli.encoders import loading
from sercli.encoders.asked import as_recipe_keys
from sercli.encoders.loading import encoder_sha256, load_encoder, read_encoder
from sercli.encoders.vit import Encoder
from sercli.engine import beginning, pretraining
from sercli.engine import weights as begun_from
from sercli.engine.beginning import beginning_of
from sercli.engine.resuming import examine, training_source
from sercli.engine.runtime import runtime_for
from sercli.engine.trainer import Trainer
from sercli.errors import UserError
from sercli.families import resolve
from sercli.grids.jobs import Job
from sercli.grids.standing import Standings
from sercli.objective import Objective
from sercli.randomness import numpy_generator
from sercli.runs.files import file_sha256
from sercli.runs.lease import leased
from sercli.runs.run_dir import RunDir
from tests.support.command_line import run_in_process, ser
from tests.support.encoder_files import equal, small_vit
from tests.support.refusals import refused
from tests.support.signals import handled
from tests.support.training import SER, interrupt_after, losses, start, train, weights

CPU = torch.device("cpu")
HEADS = (
    "data.image_size=16", "data.num_train=96", "data.num_val=16", "data.workers=0",
    "method.hidden_width=16", "method.output_width=8", "addon.projector_width=8",
    "train.batch_size=12", "train.epochs=3", "train.warmup_epochs=0.5", "train.log_steps=1",
    "train.checkpoint_epochs=0.5",
)  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A plain ViT of timm's with a head, as timm's own script saves it, at 24 pixels."""
    path = tmp_path_factory.mktemp("weights") / "theirs.pth"
    torch.save({"state_dict": small_vit().state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A finished run of ser's, without an add-on."""
    run = start(
        tmp_path_factory.mktemp("runs") / "ours",
        (*SER[:-1], "train.max_steps=2", "data.mean=[0.5,0.4,0.3]", "data.std=[0.2,0.3,0.4]"),
        recipe="shapes/moco-none",
    )
    train(run)
    return run


def resolved(path, *settings, recipe="shapes/moco-ser", **flags):
    flags = {"model.weights": str(path), **flags}
    return resolve(recipe, (*HEADS, "model.weights_as.num_heads=2", *settings), flags)


def of_ours(run, *settings, recipe="shapes/moco-ser"):
    own = HEADS if recipe.endswith("ser") else [s for s in HEADS if not s.startswith("addon")]
    return resolve(recipe, (*own, *settings), {"model.weights": str(run.path)})


# -- what follows from weights --------------------------------------------------------------------


def test_the_architecture_is_that_of_the_weights(file):
    begun = beginning_of(resolved(file))
    model = begun.recipe.model
    found = (model.patch_size, model.width, model.depth, model.num_heads, model.pos_embed)
    assert found == (4, 16, 4, 2, "learned")
    assert model.pos_resize == "bicubic-antialias"
    assert model.weights_sha256 == file_sha256(file)
    assert model.cls_after is None  # follows the layer, as always
    assert begun.resolved.origins["model.depth"] == "weights"
    assert begun.resolved.origins["model.weights_sha256"] == "weights"
    assert begun.resolved.origins["train.epochs"] == "--set"


def test_a_recipe_without_weights_is_left_alone():
    assert beginning_of(resolve("shapes/moco-ser", (), {})) is None


def test_a_run_as_weights_gives_its_colours_too(ours):
    recipe = beginning_of(of_ours(ours)).recipe
    assert recipe.data.mean == (0.5, 0.4, 0.3)
    assert recipe.data.std == (0.2, 0.3, 0.4)
    assert recipe.model.weights_sha256 == file_sha256(ours.encoder)
    said = beginning_of(of_ours(ours, "data.mean=[0.1,0.2,0.3]"))
    assert said.recipe.data.mean == (0.1, 0.2, 0.3)
    assert "not its own" in said.line


def test_what_is_said_and_so_is_no_contradiction(ours):
    said = ("model.depth=4", "model.patch_size=4", "model.num_heads=2", "model.init=moco-v3")
    model = beginning_of(of_ours(ours, *said)).recipe.model
    assert model == beginning_of(of_ours(ours)).recipe.model


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("model.depth=3", "has 4"),
        ("model.patch_size=8", "has 4"),
        ("model.name=vit_base", "has 'vit with width 16"),
        ("model.num_heads=4", "has 2"),
        ("model.pos_embed=sincos", "has 'learned'"),
        ("model.pos_resize=bicubic-aligned", "has 'bicubic-antialias'"),
        ("model.init=dino", "has 'timm'"),
    ],
)
def test_what_is_said_and_is_not_so_is_refused(file, said, what):
    key, value = said.split("=")
    refused(
        lambda: beginning_of(resolved(file, said)),
        f"{key} ",
        value,
        "(from --set)",
        what,
        f"leave {key} out",
    )


def test_what_a_recipe_file_says_with_its_weights_is_held_to(file, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        f"extends: shapes/moco-ser\nmodel: {{weights: {file}, depth: 3, "
        "weights_as: {num_heads: 2}}\n"
    )
    refused(
        lambda: beginning_of(resolve(str(tmp_path / "mine.yaml"), HEADS, {})),
        "model.depth 3",
        "mine.yaml",
        "has 4",
    )


def test_weights_take_the_place_of_what_recipes_below_say(file, tmp_path):
    """As choosing another method drops the former one's settings: the flag is the last word."""
    (tmp_path / "mine.yaml").write_text("extends: shapes/moco-ser\nmodel: {depth: 3}\n")
    found = resolved(file, recipe=str(tmp_path / "mine.yaml"))
    assert beginning_of(found).recipe.model.depth == 4


def test_other_weights_than_a_run_s_recipe_has_take_its_hash_along(file, ours, tmp_path):
    run = pretraining.prepare(resolved(file), out=tmp_path / "run").run
    again = resolve(str(run.recipe), (), {"model.weights": str(ours.path)})
    assert again.recipe.model.weights_sha256 is None
    assert again.recipe.model.weights_as is None
    assert beginning_of(again).recipe.data.mean == (0.5, 0.4, 0.3)
    none = resolve(str(run.recipe), ("model.weights=null",), {})
    assert none.recipe.model.weights_sha256 is None
    assert none.recipe.model.depth == 4  # what the recipe says stays


def test_a_run_s_own_recipe_says_it_all_and_begins_the_same(file, tmp_path):
    first = pretraining.prepare(resolved(file), out=tmp_path / "a").run
    again = pretraining.prepare(resolve(str(first.recipe), (), {}), out=tmp_path / "b").run
    assert again.recipe.read_text() == first.recipe.read_text()
    assert f"weights_sha256: {file_sha256(file)}" in first.recipe.read_text()


def test_weights_said_of_nothing_are_refused():
    refused(
        lambda: resolve("shapes/moco-ser", ("model.weights_sha256=abc",), {}),
        "model.weights_sha256 without model.weights",
    )


def test_a_message_names_recipe_keys():
    asked = "its heads are not known; add --num-heads N"
    assert as_recipe_keys(asked).endswith("add --set model.weights_as.num_heads=N")
    several = "one must be chosen; add --key, for instance --key state_dict.net"
    assert as_recipe_keys(several) == (
        "one must be chosen; add --set model.weights_as.key, for instance model.weights_as.key "
        "state_dict.net"
    )
    assert as_recipe_keys("use --random-init for random weights") == (
        "use --set model.name=timm:NAME in place of model.weights for random weights"
    )
    assert as_recipe_keys("add --teacher for the other") == (
        "add --set model.weights_as.teacher=true for the other"
    )


def test_a_file_that_does_not_say_enough_is_asked_about_by_recipe_keys(file):
    refused(
        lambda: beginning_of(resolve("shapes/moco-ser", HEADS, {"model.weights": str(file)})),
        "add --set model.weights_as.num_heads=N",
    )


# -- what is trained from -------------------------------------------------------------------------


def begun(recipe):
    objective = Objective(recipe)
    begun_from.begin(objective, recipe)
    return objective


@pytest.mark.parametrize("size", [24, 16])
def test_with_cls_there_from_the_start_outputs_are_the_evaluators(file, size):
    recipe = beginning_of(resolved(file, "model.cls_after=0", f"data.image_size={size}")).recipe
    objective = begun(recipe)
    images = torch.randn(3, 3, size, size)
    theirs = load_encoder(file, num_heads=2)(images, (2, 4))
    for encoder in (objective.encoder, objective.teacher.encoder):
        mine = encoder.eval()(images, (2, 4))
        assert torch.equal(mine.cls, theirs.cls)
        assert torch.equal(mine.grids[4], theirs.grids[4])


def test_heads_are_drawn_as_always(file):
    recipe = beginning_of(resolved(file)).recipe
    drawn, begins = Objective(recipe), begun(recipe)
    assert equal(drawn.method, begins.method)
    assert equal(drawn.addon, begins.addon)
    assert not torch.equal(drawn.encoder.cls_token, begins.encoder.cls_token)


def test_positions_are_resampled_as_their_author_does(file):
    encoder = begun(beginning_of(resolved(file)).recipe).encoder
    source = read_encoder(file, num_heads=2).encoder
    assert encoder.grid == (4, 4)
    assert torch.equal(encoder.pos_embed, source.positions((4, 4)))


def test_a_frozen_patch_embedding_stands_as_it_was_loaded(file, tmp_path):
    run = pretraining.prepare(
        resolved(file, "model.patch_embed=frozen", "train.max_steps=2"), out=tmp_path / "run"
    ).run
    train(run)
    before, after = load_encoder(file, num_heads=2), load_encoder(run.path)
    assert torch.equal(after.patch_embed.proj.weight, before.patch_embed.proj.weight)
    assert not torch.equal(after.blocks[0].attn.qkv.weight, before.blocks[0].attn.qkv.weight)


def test_the_teacher_is_taken_where_it_is_asked_for(tmp_path):
    first = start(tmp_path / "dino", (*SER[:7], "train.max_steps=3", "train.batch_size=12",
        "train.warmup_epochs=0.5", "method.prototypes=16", "method.hidden_width=16",
        "method.bottleneck_width=8"), recipe="shapes/dino-none")  # fmt: skip
    train(first)
    settings = (*HEADS[:4], "model.weights_as.teacher=true")
    found = resolve("shapes/moco-none", settings, {"model.weights": str(first.path)})
    encoder = begun(beginning_of(found).recipe).encoder
    assert equal(encoder, load_encoder(first.path, teacher=True))
    assert not equal(encoder, load_encoder(first.path))


def test_what_was_taken_and_what_was_not_is_one_line(file):
    line = beginning_of(resolved(file)).line
    assert line.startswith(f"weights: {file} (SHA-256 {file_sha256(file)[:12]}…): encoder at ")
    assert "layout timm, 54 of 54 tensors" in line
    assert "not taken: 'head' (2 tensors)" in line
    assert "positions 6 × 6 → 4 × 4 by bicubic-antialias" in line
    assert "mean 0.485/0.456/0.406" in line
    assert "\n" not in line


def test_every_number_of_views_is_normalised_as_the_recipe_says(ours):
    recipe = beginning_of(of_ours(ours)).recipe
    usual = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"mean": (0.0,) * 3, "std": (1.0,) * 3})}
    )
    found = []
    for one in (recipe, usual):
        trainer = Trainer(ours, one, training_source(one), runtime_for(CPU), monitor=lambda _: {})
        with trainer._samples() as samples:
            found.append(trainer.make_views(next(samples), 0, CPU).standard[0])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (recipe.data.mean, recipe.data.std))
    torch.testing.assert_close(found[0], (found[1] - mean) / std)


def test_a_run_says_what_its_images_were_normalised_by(ours):
    loaded = read_encoder(ours.path)
    assert (loaded.mean, loaded.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


# -- another function -----------------------------------------------------------------------------


def test_a_delayed_cls_is_told_by_its_cosines(file, tmp_path, capsys):
    run = pretraining.prepare(resolved(file, "addon.layer=2"), out=tmp_path / "run").run
    said = capsys.readouterr().out
    told = run.read_run()["weights"]
    assert told["sha256"] == file_sha256(file)
    assert told["moved"]["cls_after"] == 2
    assert re.search(r"\[CLS\] joins after block 2, in the weights from the start", said)
    assert "model.cls_after=0 keeps it exact" in said
    # By hand: the same images, through both.
    recipe = pretraining.read_recipe(run)
    encoder, theirs = begun(recipe).encoder.eval(), load_encoder(file, num_heads=2)
    assert encoder.cls_after == 2
    order = numpy_generator(recipe.seed, "weights").permutation(96)[:16].tolist()
    images = torch.cat(list(evaluation_batches(
        training_source(recipe), image_size=16, indices=order, batch_size=4, mean=recipe.data.mean,
        std=recipe.data.std, device=CPU, workers=0)))  # fmt: skip
    with torch.no_grad():
        a, b = encoder(images, (4,)), theirs(images, (4,))
        tokens = [theirs.norm(one.grids[4].flatten(2).transpose(1, 2)).double() for one in (a, b)]
    cosine = torch.nn.functional.cosine_similarity
    assert told["moved"]["patches"] == pytest.approx(float(cosine(*tokens, dim=-1).mean()), 1e-5)
    cls = float(cosine(a.cls.double(), b.cls.double(), dim=-1).mean())
    assert told["moved"]["cls"] == pytest.approx(cls, 1e-5)
    assert cls < 0.99999


def change_of(begins, cls_after):
    source = training_source(begins.recipe)
    return begun_from.moved(begins.weights.loaded, begins.recipe, cls_after, source, CPU)


def test_without_an_add_on_cls_joins_where_it_did(tmp_path, ours):
    delayed = pretraining.prepare(of_ours(ours, "addon.layer=2"), out=tmp_path / "delayed").run
    train(delayed)
    again = beginning_of(of_ours(delayed, recipe="shapes/moco-none"))
    assert again.recipe.model.cls_after == 2
    assert again.resolved.origins["model.cls_after"] == "weights"
    assert change_of(again, 2) is None
    other = beginning_of(of_ours(delayed, "model.cls_after=0", recipe="shapes/moco-none"))
    change = change_of(other, 0)
    assert (change.cls_after, change.before) == (0, 2)
    assert "model.cls_after=2 keeps it exact" in change.line


# -- going on -------------------------------------------------------------------------------------


@pytest.fixture
def stopped(file, tmp_path):
    """A copy of the weights, a run from them that was stopped, and what it was started with."""
    copy = tmp_path / "copy.pth"
    shutil.copy(file, copy)
    run = pretraining.prepare(resolved(copy, "train.max_steps=8"), out=tmp_path / "run").run
    interrupt_after(run, 6)
    run.update_run(status="preempted", world_size=1)
    return copy, run


def test_a_resumed_run_is_the_uninterrupted_one_without_the_file(file, stopped, tmp_path):
    copy, run = stopped
    whole = pretraining.prepare(resolved(file, "train.max_steps=8"), out=tmp_path / "whole").run
    train(whole)
    copy.unlink()
    going = examine(run, processes=1, allow_changed=False)
    assert any("is gone" in note for note in going.comparison.notes)
    train(run)
    assert losses(run) == losses(whole)
    assert torch.equal(weights(run), weights(whole))


def test_a_replaced_file_is_refused_by_its_hash(stopped):
    copy, run = stopped
    assert examine(run, processes=1, allow_changed=False).comparison.changes == ()
    torch.save({"state_dict": small_vit(num_classes=4).state_dict()}, copy)
    refused(
        lambda: examine(run, processes=1, allow_changed=False),
        "copy.pth was replaced",
        "SHA-256",
        "--allow-changed",
    )
    changes = examine(run, processes=1, allow_changed=True).comparison.changes
    assert len(changes) == 1


def test_a_run_without_a_checkpoint_begins_from_the_file_or_not_at_all(file, tmp_path):
    copy = tmp_path / "copy.pth"
    shutil.copy(file, copy)
    run = pretraining.prepare(resolved(copy, "train.max_steps=2"), out=tmp_path / "run").run
    torch.save({"state_dict": small_vit(num_classes=4).state_dict()}, copy)
    refused(lambda: train(run), "is not what it was", "SHA-256")
    copy.unlink()
    refused(lambda: train(run), "no model at")
    shutil.copy(file, copy)
    train(run)
    assert run.read_run()["status"] == "done"


def test_a_run_that_is_being_trained_is_no_weights(ours, tmp_path):
    shutil.copytree(ours.path, tmp_path / "run")
    run = RunDir(tmp_path / "run")
    with leased(run):
        refused(
            lambda: beginning_of(of_ours(run)),
            str(run.path), "its encoder becomes another", "step-",
        )  # fmt: skip
    beginning_of(of_ours(run))


def test_a_checkpoint_of_a_run_is(ours):
    path = ours.checkpoint(ours.checkpoint_steps()[-1])
    recipe = beginning_of(resolve("shapes/moco-ser", HEADS, {"model.weights": str(path)})).recipe
    assert equal(begun(recipe).encoder, load_encoder(ours.path))


def hub(folder, mean=0.5, **options):
    """A folder with a small ViT of timm's, as the Hub has them."""
    folder.mkdir()
    sizes = {"img_size": 24, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2}
    arguments = {**sizes, "num_classes": 0, **options}
    name = "vit_tiny_patch16_224"
    torch.manual_seed(1)
    vit = timm.create_model(name, pretrained=False, **arguments)
    torch.save(vit.state_dict(), folder / "pytorch_model.bin")
    told = {"mean": [mean] * 3, "std": [0.5] * 3, "input_size": [3, 24, 24]}
    config = {"architecture": name, "num_classes": 0, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps({**config, "pretrained_cfg": told}))
    return f"timm:local-dir:{folder}", vit.eval()


def test_a_folder_of_timm_s_has_the_hash_of_its_file(tmp_path):
    name, _ = hub(tmp_path / "hub")
    begins = beginning_of(resolve("shapes/moco-ser", HEADS, {"model.weights": name}))
    assert begins.recipe.model.weights_sha256 == file_sha256(tmp_path / "hub/pytorch_model.bin")
    assert begins.recipe.data.mean == (0.5, 0.5, 0.5)
    assert begins.recipe.model.num_heads == 2


def test_a_model_of_timm_s_name_has_that_of_its_encoder(tmp_path, monkeypatch):
    name, vit = hub(tmp_path / "hub")
    monkeypatch.setattr(loading, "create_timm", lambda *_, **__: vit)
    begins = beginning_of(
        resolve("shapes/moco-ser", HEADS, {"model.weights": "timm:vit_tiny_patch16_224"})
    )
    theirs = read_encoder(name).encoder
    assert begins.recipe.model.weights_sha256 == encoder_sha256(theirs)
    assert equal(begun(begins.recipe).encoder.blocks, theirs.blocks)


@pytest.mark.parametrize(
    "options",
    [
        {"reg_tokens": 2, "init_values": 1e-2, "no_embed_class": True},
        {"class_token": False, "global_pool": "avg"},
        {"qk_norm": True, "pre_norm": True},
    ],
)
def test_other_architectures_are_begun_from_and_trained(tmp_path, options):
    name, vit = hub(tmp_path / "hub", **options)
    settings = (*HEADS, "addon.layer=2", "train.max_steps=2")
    at_once = () if "class_token" in options else ("model.cls_after=0",)
    found = resolve("shapes/moco-ser", (*settings, *at_once), {"model.weights": name})
    recipe = beginning_of(found).recipe
    native = recipe.model_copy(update={"data": recipe.data.model_copy(update={"image_size": 24})})
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        mine = begun(native).encoder.eval()(images).cls
        torch.testing.assert_close(mine, vit(images), rtol=0, atol=1e-5)
    run = pretraining.prepare(
        resolve("shapes/moco-ser", settings, {"model.weights": name}), out=tmp_path / "run"
    ).run
    assert ("moved" in run.read_run()["weights"]) == ("class_token" not in options)
    train(run)
    assert load_encoder(run.path).depth == 4


# -- several processes ----------------------------------------------------------------------------


def among(monkeypatch, *others):
    """As if other processes had found these."""
    monkeypatch.setattr("sercli.distributed.active", lambda: True)
    monkeypatch.setattr("sercli.distributed.gather_objects", lambda mine: [mine, *others])


def test_all_processes_must_have_read_the_same(file, monkeypatch):
    recipe = beginning_of(resolved(file)).recipe
    among(monkeypatch, (recipe.model.weights_sha256, 0))
    assert begun(recipe)
    among(monkeypatch, ("another", 0))
    refused(lambda: begun(recipe), "is not the same for all processes")
    among(monkeypatch, (None, 2))
    with pytest.raises(SystemExit) as left:
        begun(recipe)
    assert left.value.code == 2


@pytest.mark.run
def test_two_processes_begin_as_one(file, tmp_path):
    settings = (*HEADS, "model.weights_as.num_heads=2", "train.max_steps=4")
    words = [word for setting in settings for word in ("--set", setting)]
    for out, more in (("one", ()), ("two", ("--nproc", "2"))):
        done = ser("pretrain", "--weights", str(file), "--out", out, *words, *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"weights: {file} (SHA-256 " in done.stdout
    one, two = (RunDir(tmp_path / out) for out in ("one", "two"))
    assert one.recipe.read_text() == two.recipe.read_text()
    for row, other in zip(losses(one), losses(two), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)


# -- who else reads recipes -----------------------------------------------------------------------


def test_a_grid_knows_its_run_again(file, tmp_path):
    settings = (*HEADS, "model.weights_as.num_heads=2", f"model.weights={file}",
        "train.max_steps=2")  # fmt: skip
    job = Job("a-seed0", "pretrain", ("pretrain",), tmp_path / "run", run="a",
        recipe="shapes/moco-ser", settings=settings)  # fmt: skip
    standings = Standings(lambda _: {})
    assert standings.of(job).status == "new"
    run = pretraining.prepare(resolve(job.recipe, settings, {}), out=job.directory).run
    assert standings.of(job).status == "stopped"
    train(run)
    assert standings.of(job).status == "done"
    other = (*settings, "model.weights=elsewhere.pth")
    job = Job("b-seed0", "pretrain", ("pretrain",), tmp_path / "run", run="b",
        recipe="shapes/moco-ser", settings=other)  # fmt: skip
    assert "model.weights was" in standings.of(job).why


def test_flags_and_settings_say_the_same(file):
    assert NewRun(weights="runs/none").flags == {"model.weights": "runs/none"}
    flag = resolved(file)
    said = resolve(
        "shapes/moco-ser", (*HEADS, "model.weights_as.num_heads=2", f"model.weights={file}"), {}
    )
    assert beginning_of(flag).recipe == beginning_of(said).recipe


def test_ser_recipe_shows_what_follows(file, monkeypatch, capsys):
    words = ["recipe", "show", "shapes/moco-ser", "--set", f"model.weights={file}",
        "--set", "model.weights_as.num_heads=2"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["ser", *words])
    with handled(lambda: None), pytest.raises(SystemExit):
        cli.main()
    assert re.search(r"model.depth\s+4\s+weights", capsys.readouterr().out)
    words[4] = "model.weights=gone.pth"
    status, err = run_in_process(words, monkeypatch, capsys)
    assert status == 0
    assert "no model at gone.pth" in err


def test_weights_that_are_not_there_are_refused_before_torch(monkeypatch, capsys):
    words = ["pretrain", "--weights", "gone\x1b[31m.pth", "--out", "never"]
    status, err = run_in_process(words, monkeypatch, capsys)
    assert status == 2
    assert "no model at" in err
    assert "\x1b" not in err


def test_an_encoder_that_settings_do_not_describe_is_no_beginning():
    vit = small_vit()
    vit.blocks[1].norm1.eps = 1e-3  # as no file of plain tensors shows
    with pytest.raises(UserError, match="cannot be trained"):
        beginning.model_of(Encoder.from_timm(vit))
