"""Pages say what is: links, commands, options, recipe keys, names of files, results and rooms."""

import functools
import importlib.util
import re
import shlex

import pytest
import typer.main

import sercli
from sercli.cli import app
from sercli.families import addon_configs, method_configs
from sercli.recipe.listing import markdown_table, read_head, runnable_names
from sercli.recipe.schema import Recipe
from sercli.recipe.values import Section
from tests.support.pages import below, blocks, codes, prose, spans, table, text_of
from tests.support.paths import ROOT

FOLDERS = ("", ".github", ".github/ISSUE_TEMPLATE", "recipes")
PAGES = sorted(
    {page for folder in FOLDERS for page in (ROOT / folder).glob("*.md")}
    | {page for folder in ("sercli", "tests") for page in (ROOT / folder).rglob("*.md")}
)
# Options in the pages that are of other programs.
FOREIGN = {
    "--no-build-isolation", "--nproc-per-node", "--ntasks-per-node", "--gpus-per-task", "--list",
    "--without-tests", "--record", "--learning-rate-biases", "--report", "--devices",
}  # fmt: skip

every_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


# -- Links and sizes -------------------------------------------------------------------------------


def test_there_are_pages_beside_the_code():
    beside = {page.parent.name for page in PAGES if page.name == "README.md"}
    assert {"sercli", "commands", "evals", "addons", "encoders", "runs", "benchmarks"} <= beside


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 8192


def test_the_first_screen_says_what_has_run_on_a_gpu():
    assert text_of(ROOT / "README.md").index("run on a GPU") < 1500


def test_the_marks_that_ci_reads_have_a_command_each():
    for mark in ("first command", "test command"):
        below = text_of(ROOT / "README.md").partition(f"\n<!-- {mark} -->\n```bash\n")[2]
        assert below.startswith("python3 -m venv .venv && "), mark


def test_the_readme_has_the_numbers_of_the_page_of_evaluations():
    def plain(cell):
        return re.sub(r"\\?\*", "", cell)

    short = re.findall(r"^\| MoCo-v3.*$", text_of(ROOT / "README.md"), re.MULTILINE)
    evals = text_of(ROOT / "sercli" / "evals" / "README.md").partition("## What it shows")[2]
    for row in short:
        method, *numbers = [plain(cell.strip()) for cell in row.split("|")[1:-1]]
        long = re.search(rf"^\| {re.escape(method)} *\|.*$", evals, re.MULTILINE)[0]
        assert numbers == [plain(cell).strip() for cell in long.split("|")[2:6]]
    assert len(short) == 2


def test_pictures_are_small():
    pictures = list((ROOT / ".github").glob("*.png"))
    assert pictures
    assert max(picture.stat().st_size for picture in pictures) < 100_000


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@every_page
def test_links_resolve(page):
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", prose(page))
    for link in (first or second for first, second in links):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        target = target / "README.md" if target.is_dir() and anchor else target
        assert not anchor or anchor in anchors(target), link


# -- Commands --------------------------------------------------------------------------------------


def simple_commands(script):
    """The words of each command of a shell script; of loops the first turn."""
    variables = {}
    for line in script.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        words = []
        for token in [*lexer, ";"]:
            if set(token) <= set("();<>|&"):
                if words and words[0] == "for":
                    variables[f"${words[1]}"] = words[3]
                elif words:
                    yield words
                words = []
            elif token not in {"do", "then"} or words:
                for name, value in variables.items():
                    token = token.replace(name, value)
                words.append(token)


def words_of_ser(words):
    """What ser is given in a command, or None where the command is another program's."""
    for index, word in enumerate(words):
        if word == "ser" or word.endswith("/ser"):
            return words[index + 1 :]
        if word == "sercli" and words[index - 1] == "-m":
            return words[index + 1 :]
    return None


@functools.cache
def command_tree():
    """Path of a command, e.g. ("recipe", "show") → the command."""
    found = {}

    def walk(command, path):
        found[path] = command
        for name, child in getattr(command, "commands", {}).items():
            walk(child, (*path, name))

    walk(typer.main.get_command(app), ())
    return found


def flags_of(command):
    return {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)} | {
        "--help",
        "-h",
    }


ALL_FLAGS = {
    flag
    for command in command_tree().values()
    for flag in flags_of(command)
    if flag.startswith("--")
}


def parse(words):
    """As typed: raises for an unknown command or option, a wrong choice, a missing argument."""
    path = ()
    while words and (*path, words[0]) in command_tree():
        path, words = (*path, words[0]), words[1:]
    command = command_tree()[path]
    assert not getattr(command, "commands", {}) or words == ["--help"], f"no command {words[:1]}"
    if words != ["--help"]:
        command.make_context(" ".join(("ser", *path)), list(words))


@every_page
def test_command_lines_are_understood(page):
    for block in blocks(page, "bash"):
        for words in simple_commands(block):
            given = words_of_ser(words)
            if given is not None:
                parse([word for word in given if word != "--debug"])


def test_commands_are_found_among_other_words():
    script = (
        "for s in 0 1; do ser knn runs/$s --limt 3; done && torchrun -m sercli pretrain  # ser x"
    )
    found = [words_of_ser(words) for words in simple_commands(script)]
    assert [given for given in found if given is not None] == [
        ["knn", "runs/0", "--limt", "3"],
        ["pretrain"],
    ]
    with pytest.raises(Exception, match="--limt"):
        parse(["knn", "runs/0", "--limt", "3"])
    with pytest.raises(AssertionError, match="no command"):
        parse(["recipes", "list"])


@every_page
def test_options_exist(page):
    for span in spans(page):
        words = span.split()
        flags = [word.split("=")[0] for word in words if word.startswith("--")]
        flags = [flag for flag in flags if re.fullmatch(r"--[a-z][a-z0-9-]*", flag)]
        if words[0] != "ser":
            assert set(flags) <= ALL_FLAGS | FOREIGN, span
            continue
        path = ()
        for word in words[1:]:
            if word.startswith("-"):
                break
            names = [name for name in word.split("|") if (*path, name) in command_tree()]
            if names != word.split("|"):
                break
            if len(names) == 1:
                path = (*path, word)
        assert path or "|" in span or len(words) == 1 or words[1].isupper() or flags, span
        assert not flags or set(flags) <= flags_of(command_tree()[path]), span


def test_no_line_of_the_changelog_stands_twice():
    versions = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)
    for version in versions[1:]:
        entries = re.findall(r"^- .*(?:\n  .*)*", version, flags=re.M)
        assert len(set(entries)) == len(entries), {e for e in entries if entries.count(e) > 1}


def test_the_table_of_exit_statuses_is_that_of_the_errors():
    from sercli import errors

    told = {
        int(status) for status, _ in table(ROOT / "sercli/commands/README.md", "## Exit status")
    }
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert told == {0} | {one.exit_status for one in classes if issubclass(one, errors.SerError)}


def test_the_page_of_commands_has_them_all():
    page = ROOT / "sercli/commands/README.md"
    told = [
        words_of_ser(words) for block in blocks(page, "bash") for words in simple_commands(block)
    ]
    for path, command in command_tree().items():
        if not getattr(command, "commands", {}):
            assert any(given and tuple(given[: len(path)]) == path for given in told), path


# -- Recipes ---------------------------------------------------------------------------------------

RECIPES = ROOT / "recipes" / "README.md"


def keys_of(section, prefix=""):
    for name, field in section.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        if name == "plugins":  # a list
            yield name
        elif inner and prefix + name not in {"method", "addon"}:
            yield from keys_of(inner[0], f"{prefix}{name}.")
        elif not inner:
            yield f"{prefix}{name}"


@functools.cache
def all_keys():
    keys = set(keys_of(Recipe))
    for prefix, kinds in (("method.", method_configs()), ("addon.", addon_configs())):
        for kind in kinds.values():
            keys |= set(keys_of(kind, prefix))
    return keys


def fits(key, pattern):
    return key == pattern or (pattern.endswith(".*") and key.startswith(pattern[:-1]))


def is_section(name):
    return any(key.startswith(f"{name}.") for key in all_keys())


def test_the_table_of_keys_is_that_of_recipes():
    told = [pattern for keys, _ in table(RECIPES, "## Keys") for pattern in codes(keys)]
    assert len(told) == len(set(told))
    for pattern in told:
        assert any(fits(key, pattern) for key in all_keys()), pattern
    for key in all_keys():
        assert any(fits(key, pattern) for pattern in told), key


# Facts of a result that look like recipe keys.
OF_RESULTS = {
    "model.positions",
    "model.matched",
    "model.expected",
    "data.partial",
    "model.precision",
}


@every_page
def test_recipe_keys_exist(page):
    sections = "|".join(name for name in Recipe.model_fields if name != "seed")
    for span in spans(page):
        match = re.match(rf"(?:{sections})\.[a-z_0-9]+(?:\.[a-z_0-9]+)*(?:\.\*)?(?=$|[=:])", span)
        if match and not span.endswith((".py", ".yaml")) and match[0] not in OF_RESULTS:
            known = any(fits(key, match[0]) for key in all_keys())
            assert known or is_section(match[0]), span


@every_page
def test_recipes_exist(page):
    for span in spans(page):
        if re.fullmatch(r"(shapes|imagenet)/[a-z0-9-]+", span):
            assert span in runnable_names(), span


def test_the_list_of_recipes_is_as_the_command_writes_it():
    begin, end = "<!-- ser recipe list --format markdown -->\n", "\n<!-- end -->"
    told = text_of(RECIPES).partition(begin)[2].partition(end)[0]
    written = markdown_table([read_head(name) for name in runnable_names()])
    assert told == written, "put what `ser recipe list --format markdown` prints between the marks"


# -- The house -------------------------------------------------------------------------------------

HOUSE = ROOT / "sercli" / "README.md"


def rooms_on_the_map():
    """Folder → its modules, as the map has them; "" is the package itself."""
    found, parent = {"": []}, ""
    for line in blocks(HOUSE, "")[0].splitlines():
        name, *cells = re.split(r"\s{2,}", line.strip())
        if not name.endswith("/"):
            found[""] += name.split()
            continue
        folder = name if not line.startswith(" ") else f"{parent}{name}"
        parent = folder if not line.startswith(" ") else parent
        assert folder not in found, folder
        assert cells[-1], line
        for family in re.findall(r"\S+/", cells[0]):  # a folder of two files
            found[f"{folder}{family}"] = ["model"]
        cells[0] = re.sub(r"\S+/", "", cells[0])
        found[folder] = cells[0].replace("–", "").split()
    return found


def rooms():
    package = ROOT / "sercli"
    found = {}
    for file in package.rglob("*.py"):
        folder = file.parent.relative_to(package).as_posix()
        found.setdefault("" if folder == "." else f"{folder}/", []).append(file.stem)
    found = {
        folder: [name for name in names if name != "__init__" or not folder]
        for folder, names in found.items()
    }
    return {**found, "addons/none/": ["model"]}  # has no model


def test_every_module_is_on_the_map():
    told, there = (
        {(folder, name) for folder, names in found.items() for name in names}
        for found in (rooms_on_the_map(), rooms())
    )
    assert not told - there, "on the map of sercli/README.md, but not there"
    assert not there - told, "not on the map of sercli/README.md"


def test_words_of_the_glossary_stand_where_they_are_born():
    rows = table(HOUSE, "## Glossary")
    assert len({word for word, _, _ in rows}) == len(rows)
    for word, _, place in rows:
        link = re.search(r"\]\(([^)]+)\)", place)[1]
        name = re.search(r"\) `([^`]+)`", place)[1]
        assert name in (HOUSE.parent / link).read_text(encoding="utf-8"), word


@every_page
def test_modules_named_exist(page):
    for span in spans(page):
        if re.fullmatch(
            r"(sercli|tests|data|evals|report|recipe|runs|encoders|foreign|views)/[\w/.-]*", span
        ):
            places = (ROOT / span, ROOT / "sercli" / span, page.parent / span)
            assert any(p.exists() or p.with_suffix(".py").exists() for p in places), span


@every_page
def test_names_in_python_exist(page):
    for span in spans(page):
        if re.fullmatch(r"sercli(\.[a-z_]+)+", span):
            module, _, name = span.rpartition(".")
            found = hasattr(importlib.import_module(module), name)
            assert found or importlib.util.find_spec(span), span


def test_the_public_names_are_those_of_the_package():
    told = {span for span in codes(below(HOUSE, "## Python API")) if span.startswith("sercli.")}
    assert {f"sercli.{name}" for name in sercli.__all__ if name[0] != "_"} <= told


@pytest.mark.parametrize("package", ["addons", "methods", "recipe"])
def test_what_plug_ins_need_is_on_the_list_of_public_names(package):
    exported = set(importlib.import_module(f"sercli.{package}").__all__) - {"DEFAULT"}
    assert exported <= set(codes(below(HOUSE, "## Python API")))


# -- Code ------------------------------------------------------------------------------------------


def test_the_examples_of_plug_ins_are_the_files_of_the_tests():
    page = ROOT / "sercli" / "addons" / "README.md"
    found = re.findall(r"<!-- (\S+\.py) -->\n```python\n(.*?)^```", text_of(page), re.DOTALL | re.M)
    assert len(found) == 3
    for file, code in found:
        assert code == (ROOT / file).read_text(encoding="utf-8"), file


@every_page
def test_imports_in_python_blocks_work(page):
    lines = [line for block in blocks(page, "python") for line in block.splitlines()]
    for line in lines:
        if re.match(r"(from sercli|import sercli)", line):
            exec(re.sub(r"#.*", "", line), {})
