"""Recipes: reading, merging, presets, refusals in one line, and the schedule."""

import math
import textwrap

import numpy as np
import pytest
import yaml

from sercli.addons.ser import SERConfig
from sercli.families import addon_configs, method_configs
from sercli.objective import Objective
from sercli.recipe import files as recipe_files
from sercli.recipe import schema as recipe
from sercli.recipe.schedule import Schedule, cosine
from sercli.recipe.schema import Train
from sercli.runs.text import parse_yaml
from tests.support.refusals import refused

TABLES = dict(methods=method_configs(), addons=addon_configs())
SMALL = {
    "data": {"image_size": 32},
    "model": {"name": "vit_micro", "width": 32, "depth": 4, "num_heads": 2, "patch_size": 8},
    "method": {"name": "moco", "hidden_width": 32, "output_width": 16},
    "addon": {"name": "ser", "layer": 2, "fraction": 0.5, "projector_width": 16},
}


def small(**sections):
    return recipe_files.from_mapping({**SMALL, **sections}, **TABLES)


def load(name, *settings, **flags):
    dotted = {key.replace("__", "."): value for key, value in flags.items()}
    return loaded(name, settings=settings, flags=dotted, **TABLES)


def loaded(name, **options):
    return recipe_files.resolve(recipe_files.read(str(name)), str(name), **options)


@pytest.fixture
def write(tmp_path):
    def _write(name, text):
        path = tmp_path / f"{name}.yaml"
        path.write_text(textwrap.dedent(text))
        return path

    return _write


# -- YAML -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("2.0e-3", 2e-3), ("1E5", 1e5), ("-1e-3", -1e-3), ("+2e3", 2000.0),
        (".5", 0.5), ("5.", 5.0), ("3", 3), ("-7", -7), ("no", "no"), ("off", "off"), ("on", "on"),
        ("yes", "yes"), ("y", "y"), ("true", True), ("False", False), ("null", None), ("~", None),
        ("2+4-crops", "2+4-crops"), ("both-views+spatial:1.5", "both-views+spatial:1.5"),
        ("1e", "1e"), ("e3", "e3"), ("'1e-3'", "1e-3"), ("[1e-3, no]", [1e-3, "no"]),
    ],
)  # fmt: skip
def test_yaml_reads_values_as_people_write_them(text, value):
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_a_key_that_stands_twice_is_an_error(write):
    path = write("twice", "train:\n  lr: 1\n  epochs: 3\n  lr: 2\n")
    refused(lambda: load(path), "lr", "twice", "line 4")
    with pytest.raises(yaml.YAMLError):
        parse_yaml("a: 1\na: 2")
    assert parse_yaml("a: {b: 1}\nc: {b: 2}") == {"a": {"b": 1}, "c": {"b": 2}}


def test_no_code_is_run_from_yaml(write):
    path = write("code", "seed: !!python/object/apply:os.getpid []\n")
    refused(lambda: load(path), "no valid YAML")


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just text\n", ""])
def test_a_file_that_is_no_mapping(write, text):
    refused(lambda: load(write("odd", text)), "mapping")


@pytest.mark.parametrize("text", ["a: [1\n", "a:\n\t- b\n", "a: b: c\n"])
def test_broken_yaml_is_one_line(write, text):
    refused(lambda: load(write("broken", text)), "no valid YAML")


@pytest.mark.parametrize("text", ["train: {lr: {{lr}}}", "? [a, b]\n: 1"])
def test_yaml_that_cannot_be_constructed_is_one_line(write, text):
    path = write("odd", text + "\n")
    refused(lambda: load(path), "YAML")


def test_a_setting_that_cannot_be_constructed_is_one_line():
    refused(lambda: load("shapes/moco-ser", "train.lr={{lr}}"), "--set")


@pytest.mark.parametrize(("text", "value"), [("1:30", "1:30"), ("2024-13-01", "2024-13-01")])
def test_yaml_leaves_times_and_dates_alone(text, value):
    assert parse_yaml(text) == value


# -- finding and merging --------------------------------------------------------------------------


def test_every_recipe_that_comes_with_ser_resolves_and_builds():
    names = recipe_files.recipe_names()
    assert "shapes/moco-ser" in names
    for name in names:
        if name.endswith("/base"):  # what a folder's recipes have in common, not one to run
            continue
        resolved = load(name)
        assert resolved.name == name
        if resolved.recipe.data.path == "shapes":
            built = Objective(resolved.recipe)
            assert built.weight == getattr(resolved.recipe.addon, "weight", 0)


def test_imagenet_takes_the_fast_decoder_and_the_embedded_world_the_reference():
    for name in ("imagenet/moco-ser", "imagenet/dino-none-crops", "imagenet/barlow-twins-stl"):
        assert load(name).recipe.data.decoder == "fast"
    assert load("shapes/moco-ser").recipe.data.decoder == small().recipe.data.decoder == "pil"


def test_extends_is_merged_in_order(write):
    write("first", "extends: second\nseed: 1\ntrain: {lr: 0.1}\n")
    write("second", "extends: third\nseed: 2\ntrain: {lr: 0.2, epochs: 2}\n")
    path = write(
        "third",
        """
        seed: 3
        train: {lr: 0.3, epochs: 3, batch_size: 33}
        method: {name: moco}
        addon: {name: none}
        """,
    )
    resolved = load(path.parent / "first.yaml")
    assert resolved.recipe.seed == 1
    train = resolved.recipe.train
    assert (train.lr, train.epochs, train.batch_size) == (0.1, 2, 33)
    assert resolved.origins["train.epochs"] == "second"
    assert resolved.origins["train.batch_size"] == "third"
    assert resolved.origins["train.weight_decay"] == "default"
    resolved = load(path.parent / "first.yaml", "train.lr=0.4", "seed=5", seed=6)
    assert (resolved.recipe.train.lr, resolved.recipe.seed) == (0.4, 6)
    assert resolved.origins["train.lr"] == "--set"
    assert resolved.origins["seed"] == "flag"


def test_extends_finds_recipes_of_ser_from_anywhere(write):
    path = write("mine", "extends: shapes/moco-ser\ntrain: {epochs: 7}\n")
    resolved = load(path)
    assert resolved.recipe.train.epochs == 7
    assert resolved.recipe.addon.layer == load("shapes/moco-ser").recipe.addon.layer


def test_recipes_that_extend_in_a_circle(write):
    write("a", "extends: b\n")
    write("b", "extends: c\n")
    path = write("c", "extends: a\n")
    refused(lambda: load(path), "circle")
    refused(lambda: load(write("self", "extends: self\n")), "circle")


def test_bad_extends(write):
    refused(lambda: load(write("two", "extends: [a, b]\n")), "extends", "one recipe")
    refused(lambda: load(write("none", "extends: nowhere-at-all\n")), "nowhere-at-all")
    message = refused(lambda: load("shapes/moco-sre"), "moco-sre")
    assert "shapes/moco-ser" in message


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"train": {"learning": 1}}, ["train.learning"]),
        ({"train": {"batchsize": 1}}, ["train.batchsize", "train.batch_size"]),
        ({"views": {"view1": {"blurp": 1}}}, ["views.view1.blurp", "views.view1.blur_p"]),
        ({"trian": {"lr": 1}}, ["trian.lr", "train.lr"]),
        ({"lr": 1}, ["train.lr"]),
        ({"method": {"name": "moco", "temprature": 1}}, ["method.temperature"]),
        ({"addon": {"name": "ser", "lamda": 1}}, ["addon.lamda"]),
        ({"addon": {"name": "none", "layer": 3}}, ["addon.layer"]),
        ({"train": None}, ["train is empty"]),
    ],
)
def test_unknown_keys_are_refused_with_a_suggestion(sections, words):
    refused(lambda: small(**sections), *words)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"seed": -1}, ["seed = -1"]),
        ({"seed": "x"}, ["seed = 'x'"]),
        ({"train": {"epochs": 0}}, ["train.epochs = 0"]),
        ({"train": {"lr": math.nan}}, ["train.lr"]),
        ({"train": {"precision": "fp16"}}, ["train.precision", "bf16"]),
        ({"views": {"hflip_p": 1.5}}, ["views.hflip_p = 1.5"]),
        ({"views": {"crop_area": [0.5, 0.1]}}, ["crop_area", "first"]),
        ({"views": {"setting": 3}}, ["views.setting"]),
        ({"views": {"view1": {"jitter": [1, 1, 1, 0.6]}}}, ["views.view1.jitter", "0.6"]),
        ({"addon": {"name": "ser", "fraction": 0}}, ["addon.fraction = 0"]),
        ({"addon": {"name": "ser", "fraction": 1.01}}, ["addon.fraction"]),
        ({"addon": {"name": "ser", "layer": 0}}, ["addon.layer = 0"]),
        ({"addon": {"name": "ser", "preset": "mine"}}, ["addon.preset", "authors-code"]),
        ({"addon": {"name": "ser", "negatives": "all"}}, ["addon.negatives", "cross-view"]),
        ({"addon": {"name": "sre"}}, ["addon.name", "ser"]),
        ({"method": {"name": "mocco"}}, ["method.name", "moco"]),
        ({"method": {"name": ["moco"]}}, ["method.name", "['moco']", "barlow-twins"]),
        ({"addon": {"name": [], "layer": 3}}, ["addon.name []", "ser"]),
        ({"addon": {"name": 3}}, ["addon.name 3", "ser"]),
        ({"method": {"name": "moco", "momentum": 2}}, ["method.momentum = 2"]),
        ({"data": {"image_size": 1.5}}, ["data.image_size = 1.5"]),
    ],
)
def test_values_out_of_range_are_one_line(sections, words):
    refused(lambda: small(**sections), *words)


def test_a_bad_value_is_named_by_its_own_section():
    refused(
        lambda: small(
            method={"name": "moco", "temperature": 0.2}, addon={"name": "ser", "temperature": -1}
        ),
        "addon.temperature = -1",
    )


def test_a_crop_larger_than_the_image_is_refused():
    refused(lambda: small(views={"crop_area": [2.0, 3.0]}), "crop_area")


def test_a_key_given_dotted_and_nested_is_twice(write):
    path = write("twice", "extends: shapes/moco-ser\ntrain:\n  lr: 1\ntrain.lr: 2\n")
    refused(lambda: load(path), "train.lr")


# -- --set and flags ------------------------------------------------------------------------------


def test_settings_are_yaml_values():
    resolved = load(
        "shapes/moco-ser",
        "train.lr=1e-3",
        "train.max_steps=7",
        "data.path=no",
        "views.crop_area=[0.2, 1]",
        "train.clip_norm=null",
        "views.setting=2",
        "views.view2.grey_p=0.25",
        " addon.negatives =both-views+spatial:1",
    )
    r = resolved.recipe
    assert r.train.lr == 1e-3
    assert isinstance(r.train.lr, float)
    assert r.train.max_steps == 7
    assert r.data.path == "no"
    assert r.views.crop_area == (0.2, 1.0)
    assert r.train.clip_norm is None
    assert r.views.setting == "2"
    assert r.views.view2.grey_p == 0.25
    assert r.addon.negatives == "both-views+spatial:1"
    assert resolved.origins["views.crop_area"] == "--set"


@pytest.mark.parametrize("text", ["train.lr", "=3", "", "train.lr=[1", "train.lr=a: b: c"])
def test_bad_settings_are_one_line(text):
    refused(lambda: load("shapes/moco-ser", text), "--set")


def test_a_folder_named_like_a_number_is_a_path():
    assert load("shapes/moco-ser", data__path="123").recipe.data.path == "123"


@pytest.mark.parametrize(
    "text",
    ["1_0", "1e3", "1.0", "1.", "007", "0x10", "1:30", "2020-01-01", "no", "true", "True", ".inf"],
)
def test_a_text_keeps_its_spelling(write, text):
    first = load("shapes/moco-ser", f"data.path={text}").recipe
    assert first.data.path == text
    below = write("below", f"extends: shapes/moco-ser\ndata: {{path: {text}, workers: 1_0}}\n")
    for name in (below, write("dotted", f"extends: below\ndata.path: {text}\n")):
        read = load(name).recipe
        assert (read.data.path, read.data.workers) == (text, 10)
        assert load(write("again", read.to_yaml())).recipe == read
    section = load("shapes/moco-ser", f"data={{path: {text}}}").recipe
    assert section.data.path == text
    # What is said last counts, also where it is spelt nowhere.
    assert load(below, data__path="5").recipe.data.path == "5"
    assert load(below, "data.path=other").recipe.data.path == "other"


def test_a_setting_may_be_a_section():
    r = load("shapes/moco-ser", "views.view1={blur_p: 0.5, grey_p: 0.1}").recipe
    assert (r.views.view1.blur_p, r.views.view1.grey_p) == (0.5, 0.1)


def test_a_section_that_gets_a_value_is_refused():
    refused(lambda: load("shapes/moco-ser", "train=5"), "train")
    refused(lambda: load("shapes/moco-ser", "train.lr.x=5"), "train.lr")


def test_layer_without_an_addon():
    flags = dict(addon__name="none", addon__layer=3)
    refused(lambda: load("shapes/moco-ser", **flags), "--layer 3", "--addon none")
    refused(lambda: load("shapes/moco-none", addon__layer=3), "--layer 3", "--addon none")
    refused(lambda: load("shapes/moco-none", "addon.layer=3"), "addon.layer 3")
    assert load("shapes/moco-ser", addon__name="none").recipe.addon.tapped_layer is None
    assert load("shapes/moco-ser", addon__layer=5).recipe.addon.layer == 5


def test_a_layer_beyond_the_depth():
    resolved = load("shapes/moco-ser", addon__layer=13)
    refused(lambda: Objective(resolved.recipe), "--layer 13", "1…12")
    assert Objective(load("shapes/moco-ser", addon__layer=12).recipe).encoder.cls_after == 0


# -- methods, add-ons and presets -----------------------------------------------------------------


def test_another_addon_drops_the_settings_of_the_former():
    none = load("shapes/moco-ser", addon__name="none")
    assert none.recipe.addon.model_dump() == {"name": "none"}
    assert [key for key in none.origins if key.startswith("addon.")] == ["addon.name"]
    same = load("shapes/moco-ser", addon__name="ser")
    assert same.recipe == load("shapes/moco-ser").recipe


def test_another_method_drops_the_settings_of_the_former(write):
    class Other(recipe.MethodConfig):
        temperature: float = 9.0

    tables = {**TABLES, "methods": {**method_configs(), "other": Other}}
    resolved = loaded("shapes/moco-ser", flags={"method.name": "other"}, **tables)
    assert resolved.recipe.method.model_dump() == {"name": "other", "temperature": 9.0}
    path = write("mine", "extends: shapes/moco-ser\nmethod: {name: other, temperature: 2}\n")
    resolved = loaded(path, **tables)
    assert resolved.recipe.method.model_dump() == {"name": "other", "temperature": 2.0}


# preset: temperature and weight by method (FACTS), and everything else it stands for.
PRESETS = {
    "paper": (
        {"moco": (0.3, 1.0), "dino": (0.5, 0.3), "barlow-twins": (0.3, 1.0)},
        dict(fraction=0.01, base="crop", negatives="both-views", elements="independent",
             share="global", keys="gathered", key_projector="teacher"),
    ),
    "authors-code": (
        {"moco": (0.5, 1.0), "dino": (0.4, 0.3), "barlow-twins": (0.4, 1.0)},
        dict(fraction=0.01, base="crop", negatives="cross-view", elements="complementary",
             share="per-rank", keys="gathered", key_projector="student"),
    ),
    "summary": (
        {"moco": (0.3, 1.0), "dino": (0.5, 0.3), "barlow-twins": (0.3, 1.0)},
        dict(fraction=0.5, base="full", keys="rank-local", share="global", key_projector="teacher",
             elements="independent"),
    ),
}  # fmt: skip


class _Plain(recipe.MethodConfig):
    pass


@pytest.mark.parametrize("method", ["moco", "dino", "barlow-twins"])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_fill_in_what_is_not_given(preset, method):
    methods = {"moco": _Plain, "dino": _Plain, "barlow-twins": _Plain}
    by_method, rest = PRESETS[preset]
    tree = {"method": {"name": method}, "addon": {"name": "ser", "preset": preset}}
    resolved = recipe_files.from_mapping(tree, methods=methods, addons=addon_configs())
    addon = resolved.recipe.addon
    assert isinstance(addon, SERConfig)
    assert (addon.temperature, addon.weight) == by_method[method]
    assert {key: getattr(addon, key) for key in rest} == rest
    assert addon.scale == (0.7, 1.3)
    assert addon.aspect == pytest.approx((3 / 4, 4 / 3))
    assert addon.projector_width == 512
    assert resolved.origins["addon.temperature"] == f"preset {preset}"
    # What is given wins, also where it is another preset's value.
    given = {
        "temperature": 0.17, "weight": 0.0, "fraction": 0.25, "negatives": "cross-view+spatial:2",
        "base": "full" if rest["base"] == "crop" else "crop", "elements": "independent",
        "share": "global", "keys": "gathered",
    }  # fmt: skip
    tree["addon"] |= given
    addon = recipe_files.from_mapping(tree, methods=methods, addons=addon_configs()).recipe.addon
    assert {key: getattr(addon, key) for key in given} == given


def test_without_a_preset_it_is_the_papers():
    methods = {"dino": _Plain}
    tree = {"method": {"name": "dino"}, "addon": {"name": "ser"}}
    addon = recipe_files.from_mapping(tree, methods=methods, addons=addon_configs()).recipe.addon
    assert (addon.preset, addon.temperature, addon.weight) == ("paper", 0.5, 0.3)


def test_a_preset_on_top_of_a_recipe_wins_over_the_recipes_values():
    plain = load("shapes/moco-ser")
    assert plain.recipe.addon.fraction == 0.25
    preset = load("shapes/moco-ser", "addon.preset=summary")
    assert preset.recipe.addon.fraction == 0.5
    assert preset.recipe.addon.layer == plain.recipe.addon.layer
    explicit = load("shapes/moco-ser", "addon.preset=summary", "addon.fraction=0.2")
    assert explicit.recipe.addon.fraction == 0.2
    assert explicit.recipe.addon.base == "full"


@pytest.mark.parametrize(("key", "value"), [("action", "placebo"), ("projector_width", 128)])
def test_a_preset_keeps_the_settings_that_no_preset_speaks_of(write, key, value):
    path = write("mine", f"extends: shapes/moco-ser\naddon: {{{key}: {value}}}\n")
    addon = load(path, "addon.preset=authors-code").recipe.addon
    assert getattr(addon, key) == value


# -- the resolved recipe --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("addon.preset=authors-code", "addon.weight=0"),
        ("addon.preset=summary", "addon.negatives=cross-view"),
        ("addon.name=none", "train.lr=1e-05", "train.min_lr=1e-12", "data.path=no"),
        ("train.max_steps=3", "train.clip_norm=0.3", "seed=2147483647", "data.path='12'"),
        ("data.path='true'", "data.path='null'", "views.crop_aspect=[0.3333333333333333, 3]"),
    ],
)
def test_a_resolved_recipe_read_again_is_equal(write, settings):
    first = load("shapes/moco-ser", *settings).recipe
    path = write("recipe", first.to_yaml())
    again = load(path)
    assert again.recipe == first
    assert again.recipe.to_yaml() == first.to_yaml()
    assert yaml.safe_load(first.to_yaml())["seed"] == first.seed


@pytest.mark.parametrize("path", ["1e3", "5e-1"])
def test_a_folder_named_like_an_exponent_comes_back(write, path):
    first = small(data={"path": path}).recipe
    assert load(write("recipe", first.to_yaml())).recipe.data.path == path


def test_from_mapping_takes_its_own_dump():
    first = small().recipe
    assert recipe_files.from_mapping(first.model_dump(), **TABLES).recipe == first
    assert recipe_files.from_mapping(first.model_dump(mode="json"), **TABLES).recipe == first


def test_a_resolved_recipe_cannot_be_changed():
    first = small().recipe
    with pytest.raises(ValueError, match="frozen"):
        first.train.lr = 3.0


# -- schedule -------------------------------------------------------------------------------------


def test_epochs_become_steps():
    train = Train(
        epochs=3, batch_size=64, lr=1e-3, min_lr=1e-5, warmup_epochs=0.5, checkpoint_epochs=0.25,
        monitor_epochs=2,
    )  # fmt: skip
    schedule = Schedule.of(train, 64 * 20 + 63)
    assert schedule.steps_per_epoch == 20
    assert schedule.total_steps == 60
    assert schedule.warmup_steps == 10
    assert schedule.checkpoint_steps == 5
    assert schedule.monitor_steps == 40
    assert schedule.lr == pytest.approx(1e-3 * 64 / 256)
    assert schedule.min_lr == pytest.approx(1e-5 * 64 / 256)


def test_max_steps_shorten_the_schedule_and_never_lengthen_it():
    train = Train(epochs=3, batch_size=10, warmup_epochs=1, max_steps=4)
    schedule = Schedule.of(train, 100)
    assert (schedule.total_steps, schedule.warmup_steps) == (4, 4)
    longer = Train(epochs=3, batch_size=10, warmup_epochs=1, max_steps=1000)
    assert Schedule.of(longer, 100).total_steps == 30
    assert Schedule.of(Train(epochs=0.001, batch_size=10), 100).total_steps == 1
    assert Schedule.of(Train(monitor_epochs=0, batch_size=10), 100).monitor_steps == 0


@pytest.mark.parametrize("shape", ["step/W", "step/(W-1)"])
@pytest.mark.parametrize("warmup", [0, 0.05, 0.5, 1])
def test_learning_rates_in_closed_form(warmup, shape):
    train = Train(
        epochs=2, batch_size=128, lr=2e-3, min_lr=1e-4, warmup_epochs=warmup, warmup_ramp=shape
    )
    schedule = Schedule.of(train, 128 * 20)
    ours = np.array([schedule.lr_at(step) for step in range(40)])
    ramp = round(20 * warmup)
    peak, floor = 2e-3 / 2, 1e-4 / 2
    linear = np.linspace(0, peak, ramp, endpoint=shape == "step/(W-1)")
    progress = np.arange(40 - ramp) / (40 - ramp)
    half_cosine = floor + (peak - floor) * 0.5 * (1 + np.cos(np.pi * progress))
    np.testing.assert_allclose(ours, np.concatenate([linear, half_cosine]), rtol=1e-12)
    assert ours.max() == pytest.approx(peak)
    assert ours[-1] < peak * 0.1


def test_a_batch_larger_than_the_data_set():
    refused(lambda: Schedule.of(Train(batch_size=65), 64), "65", "64 images", "batch_size=32")
    assert Schedule.of(Train(batch_size=64), 64).steps_per_epoch == 1


def test_cosine_ends():
    assert cosine(0.99, 1.0, 0) == pytest.approx(0.99)
    assert cosine(0.99, 1.0, 0.5) == pytest.approx(0.995)
    assert cosine(0.99, 1.0, 1) == pytest.approx(1.0)
    assert cosine(0.99, 1.0, 1.5) == pytest.approx(1.0)


def test_the_recipe_of_an_earlier_run_still_resolves(write):
    """Written before `warmup_ramp` and `key_projector`, when DINO's lengths were fixed."""
    resolved = load("imagenet/dino-ser").recipe
    tree = yaml.safe_load(resolved.to_yaml())
    del tree["train"]["warmup_ramp"], tree["addon"]["key_projector"]
    earlier = {
        "model": {"init": "moco-v3"},
        "train": {"decay": "weights"},
        "method": {"norm_last_layer": True},
    }
    for section, values in earlier.items():
        tree[section] |= values
    read = load(write("earlier", yaml.safe_dump(tree))).recipe
    for section, values in earlier.items():
        for key, value in values.items():
            assert getattr(getattr(read, section), key) == value
    assert read.train.warmup_ramp == "step/W"
    assert read.addon.key_projector == "teacher"
    assert read.method.prototypes == resolved.method.prototypes
