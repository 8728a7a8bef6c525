"""An annotation file of COCO: check and coco-detect take the same, and masks come of it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from sercli.data.coco.check import check_coco
from sercli.data.coco.folder import CocoFolder
from sercli.data.images.check import Reading
from sercli.errors import SerError
from sercli.evals.detection.images import Canvas, DetectionImages, usable
from tests.support import mutations
from tests.support.fuzzing import folder, put

_WIDTH, _HEIGHT = 32, 24
_FILE = "coco/annotations/instances_{}2017.json"


def _content(*segmentations: Any) -> bytes:
    images = [
        {"id": 3 + i, "file_name": f"{i}.png", "width": _WIDTH, "height": _HEIGHT} for i in range(2)
    ]
    annotations = [
        {
            "id": 7 + i,
            "image_id": 3 + i % 2,
            "category_id": 1 + i % 2,
            "bbox": [1, 1.5, 9, 9],
            "area": 81.5,
            "iscrowd": i % 2,
            "segmentation": segmentation,
        }
        for i, segmentation in enumerate(segmentations)
    ]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    whole = {"images": images, "categories": categories, "annotations": annotations}
    return json.dumps(whole).encode()


def corpus() -> list[bytes]:
    mask = np.zeros((_HEIGHT, _WIDTH), np.uint8, order="F")
    mask[3:12, 4:20] = 1
    text = coco_mask.encode(mask)["counts"].decode()
    polygon = [1, 1, 10.5, 1, 10, 10]

    def runs(counts: Any) -> dict[str, Any]:
        return {"size": [_HEIGHT, _WIDTH], "counts": counts}

    sound = [
        _content([polygon]),
        _content([polygon, [1, 2, 3, 4], [20, 2, 30, 2, 31.25, 20, 25, 23]], runs([0, 768])),
        _content([polygon], runs([100, 20, 600, 48])),
        _content(runs(text), runs(text)),
    ]
    return [
        *(3 * sound),  # most of what is made of them is refused
        *(_content([polygon], runs(counts)) for counts in ([0, 10], [0, -10, 778], "0:n0", "zz~")),
        *(_content([[1, 1, value, 1, 10, 10]]) for value in (1e9, 1e308, float("nan"), None)),
    ]


def changed(data: bytes, others: list[bytes], random: Random) -> bytes:
    """Mostly numbers that are nearly right: what is refused at once says little of masks."""
    if random.random() < 0.3:
        return mutations.changed(data, others, random)
    try:
        tree = json.loads(data)
        one = random.choice(tree["annotations"])
        outline = one["segmentation"]
        values = outline["counts"] if isinstance(outline, dict) else random.choice(outline)
        place = random.randrange(len(values))
        what = random.randrange(6)
        if isinstance(values, str):
            sign = chr(random.randrange(48, 112))
            outline["counts"] = values[:place] + sign + values[place + random.randrange(2) :]
        elif what == 0:
            one["iscrowd"], one["bbox"] = random.randrange(2), [random.uniform(-1, 11), 2, 9, 9]
        elif isinstance(outline, dict) and what < 5:
            moved = random.randint(0, max(0, int(values[place])))  # the sum stays
            values[place : place + 1] = [values[place] - moved, *[0] * (what % 2), moved]
        elif what == 1:
            values[place:place] = [random.uniform(-30, 60) for _ in range(random.choice((1, 2, 6)))]
        elif what == 2:
            del values[place : place + random.choice((1, 2))]
        elif what == 3:
            outline.append([random.uniform(-24, 48) for _ in range(random.choice((4, 6, 7, 40)))])
        else:
            span = random.choice((1, 1e-9, 30, 100, 1e9))
            values[place] = random.choice((round, float))(
                values[place] + random.uniform(-span, span)
            )
        return json.dumps(tree).encode()
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError):
        return mutations.changed(data, others, random)


def target(data: bytes) -> None:
    root = _images()
    file = put(_FILE.format("train"), data)
    problems = check_coco(root, Reading(lambda *_: None, decode=False)).problems
    try:
        source = CocoFolder(root, "train")
    except SerError:
        if not problems:
            raise ValueError("check finds nothing wrong with what detect refuses") from None
        raise
    assert not any(line.startswith(str(file)) for line in problems), problems
    _use(source)


@cache
def _images() -> Path:
    for split in ("train", "val"):
        put(f"coco/{split}2017/x", b"").unlink()
        for number in range(2):
            place = folder() / f"coco/{split}2017/{number}.png"
            Image.new("RGB", (_WIDTH, _HEIGHT)).save(place)
    put(_FILE.format("val"), corpus()[0])
    return folder() / "coco"


def _use(source: CocoFolder) -> None:
    """What training, scoring and drawing do with annotations, without the images."""
    samples = DetectionImages(source, Canvas.of(64, patch_size=16), flip=True, with_images=False)
    truth = source.ground_truth(range(len(source)))
    source.fingerprint(range(len(source)))
    coco = COCO()
    coco.imgs = {one["id"]: one for one in truth["images"]}
    for index, (width, height) in enumerate(source.sizes.tolist()):
        annotations = source.annotations(index)
        if width * height > 1 << 20:
            continue  # sound, and slow: a mask a megabyte
        whole = coco_mask.encode(np.ones((height, width), np.uint8, order="F"))
        for one in annotations:
            runs = coco.annToRLE(one)
            assert runs["size"] == [height, width]
            assert coco_mask.decode(runs).shape == (height, width)
            coco_mask.iou([whole], [runs], [one["iscrowd"]])
        wanted = usable(annotations, width, height)
        if wanted:
            for epoch in range(2):
                assert len(samples[index, epoch].packed) == len(wanted)
