"""Are the images of a list fit for use? Every line that is wrong, and every file."""

from __future__ import annotations

from sercli.data.images.check import CheckReport, Reading, SplitReport, class_facts, read_files
from sercli.data.images.folder import some
from sercli.data.lists.finding import find_lists
from sercli.data.lists.opening import ListedImages, strange_labels
from sercli.data.lists.table import Table, read_table
from sercli.errors import UserError
from sercli.visible import counted


def check_lists(path: str, reading: Reading) -> CheckReport:
    """Check lists and read every image that they name.

    Args:
        path: As `find_lists` takes it.
        reading: How images are read.

    Raises:
        UserError: There are two lists of one split.
        RunFailed: A reading process was killed.
    """
    named = find_lists(path)
    problems: list[str] = []
    tables: dict[str, Table] = {}
    reports: list[SplitReport] = []
    for split, file in sorted(named.files.items()):
        try:
            table = tables[split] = read_table(file)
        except UserError as error:
            problems.append(str(error))
            continue
        problems += [f"{file}, line {line}: {why}" for line, why in table.faults.items()]
        if not len(table):
            continue
        facts = class_facts(table.labels, num_classes=len(table.classes)) if table.classes else {}
        source = ListedImages(table, name=path, split=split)
        reports.append(read_files(source, facts, reading, name=split))
        problems += reports[-1].problems
    notes = [f"{file} is left out: only train and val are read" for file in named.left_out]
    if len(tables) > 1:
        strange = strange_labels(tables["train"], tables["val"])
        problems += [f"{named.files['val']}, line {line}: {why}" for line, why in strange.items()]
        lacking = sorted({*tables["train"].classes} - {*tables["val"].classes})
        if lacking and tables["val"].classes:
            notes.append(f"val has no image of {counted(len(lacking), 'class')} ({some(lacking)})")
    how = "with labels" if any(table.classes for table in tables.values()) else "without labels"
    lists = "a list" if len(named.files) == 1 else "lists of train and val"
    return CheckReport(
        tuple(reports),
        tuple(problems),
        taken_as=f"{lists} of images {how}",
        rule="every line must name an image that can be read, once, all with labels or none",
        notes=tuple(notes),
    )
