"""Mask R-CNN of detectron2, with its trainer, loader and evaluator: the paper's setting.

The encoder is a backbone of its registry, `build_ser_backbone`; detectron2's own `ViT` drops [CLS]
and the final norm and windows attention, and so gives other features. The pyramid is ours, as for
the other engine. detectron2 is no package of a registry; this module is imported where it is used.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import detectron2
import torch
import torchvision
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import ShapeSpec, paste_masks_in_image
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    Backbone,
    GeneralizedRCNN,
    build_model,
)
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.optim import Optimizer

from sercli import distributed
from sercli.data.coco.source import DetectionSource
from sercli.data.loading import load_batches
from sercli.encoders.loading import read_encoder
from sercli.engine.optimiser import gradient_norm
from sercli.engine.runtime import runtime_for
from sercli.engine.stepper import Stepper
from sercli.errors import UserError
from sercli.evals.detection.backbone import LEVELS, STRIDES, FrozenEncoder, SimpleFeaturePyramid
from sercli.evals.detection.detector import MAX_DETECTIONS, Detections, Detector
from sercli.evals.detection.images import (
    UNITS,
    Canvas,
    DetectionImages,
    Sample,
    TrainingOrder,
    on_canvas,
)
from sercli.evals.detection.options import Heads
from sercli.evals.detection.training import Grids
from sercli.randomness import derive

_NEVER = 1 << 60
_THRESHOLD = 0.5


# -- The model ------------------------------------------------------------------------------------


class SerBackbone(Backbone):
    """The frozen encoder and the trained pyramid, as detectron2 sees a backbone.

    Args:
        frozen: The encoder; no part of the module's state.
        channels: Channels C that every level of the pyramid has.
    """

    def __init__(self, frozen: FrozenEncoder, channels: int) -> None:
        super().__init__()
        self.frozen, self.channels = frozen, channels
        self.pyramid = SimpleFeaturePyramid(frozen.dim, channels)

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"square_size": self.frozen.canvas.size}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self.channels, stride=stride)
            for name, stride in zip(LEVELS, STRIDES, strict=True)
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Canvases [B, 3, S, S], or their grids [B, D, h, w] where those are known already."""
        grids = self.frozen.grids(x) if x.shape[1] == 3 else x  # no encoder is 3 wide
        levels: dict[str, Tensor] = self.pyramid(grids)
        return levels


@BACKBONE_REGISTRY.register()  # type: ignore[untyped-decorator]
def build_ser_backbone(cfg: CfgNode, _input_shape: ShapeSpec) -> SerBackbone:
    """`cfg.SER.SOURCE` (a run directory, a file, timm:NAME) as a frozen backbone; see `add_config`.

    Inside `ser coco-detect` the encoder is already read and `cfg.SER.FROZEN` is its key.
    """
    if cfg.SER.FROZEN:
        return SerBackbone(_frozen[cfg.SER.FROZEN], cfg.MODEL.FPN.OUT_CHANNELS)
    loaded = read_encoder(cfg.SER.SOURCE, teacher=cfg.SER.TEACHER, random_init=cfg.SER.RANDOM_INIT)
    if loaded.encoder.patch_size != UNITS:
        raise UserError(
            f"{cfg.SER.SOURCE} has patches of {loaded.encoder.patch_size} pixels",
            f"detectron2's own loaders need {UNITS}, whose strides are 4 to 64 pixels",
            "`ser coco-detect` takes any",
        )
    canvas = Canvas.of(cfg.SER.IMAGE_SIZE, patch_size=loaded.encoder.patch_size)
    frozen = FrozenEncoder(loaded, canvas, runtime_for(torch.device(cfg.MODEL.DEVICE)))
    return SerBackbone(frozen, cfg.MODEL.FPN.OUT_CHANNELS)


_frozen: dict[str, FrozenEncoder] = {}


def add_config(cfg: CfgNode, heads: Heads, *, num_classes: int) -> CfgNode:
    """Make a configuration of detectron2 one of Mask R-CNN on a frozen encoder.

    For a configuration of your own, set `cfg.SER.SOURCE` and `cfg.SER.IMAGE_SIZE` afterwards;
    images are RGB and have to be resized to fit the square.
    """
    cfg.SER = CfgNode(
        {"SOURCE": "", "TEACHER": False, "RANDOM_INIT": False, "IMAGE_SIZE": 1024, "FROZEN": ""}
    )
    model = cfg.MODEL
    model.META_ARCHITECTURE, model.BACKBONE.NAME = "FrozenEncoderRCNN", "build_ser_backbone"
    model.WEIGHTS, model.MASK_ON = "", True
    model.FPN.OUT_CHANNELS = heads.channels
    model.ANCHOR_GENERATOR.SIZES = [[8 * stride] for stride in STRIDES]
    rpn, roi = model.RPN, model.ROI_HEADS
    rpn.IN_FEATURES, roi.IN_FEATURES = list(LEVELS), list(LEVELS[:4])
    rpn.BATCH_SIZE_PER_IMAGE = heads.anchors
    rpn.PRE_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TRAIN = heads.proposals
    rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST = heads.test_proposals
    roi.NAME, roi.NUM_CLASSES = "StandardROIHeads", num_classes
    roi.BATCH_SIZE_PER_IMAGE = heads.regions
    box, mask = model.ROI_BOX_HEAD, model.ROI_MASK_HEAD
    box.NAME, box.POOLER_RESOLUTION = "FastRCNNConvFCHead", 7
    box.NUM_FC, box.FC_DIM = 2, heads.box_width
    mask.POOLER_RESOLUTION = 14
    mask.NUM_CONV, mask.CONV_DIM = heads.mask_layers, heads.mask_channels
    cfg.INPUT.FORMAT, cfg.INPUT.MASK_FORMAT = "RGB", "bitmask"
    cfg.TEST.DETECTIONS_PER_IMAGE = MAX_DETECTIONS
    return cfg


@META_ARCH_REGISTRY.register()
class FrozenEncoderRCNN(GeneralizedRCNN):
    """detectron2's R-CNN that takes our samples, whose frame has 16 units a patch."""

    def preprocess_image(self, batched_inputs: Sequence[dict[str, Any]]) -> ImageList:
        if "sample" not in batched_inputs[0]:
            return super().preprocess_image(batched_inputs)
        samples = [one["sample"] for one in batched_inputs]
        if "grid" in batched_inputs[0]:
            tensor = torch.stack([one["grid"] for one in batched_inputs])
        else:
            frozen = self.backbone.frozen
            loaded = frozen.loaded
            tensor = on_canvas(
                samples, frozen.canvas, mean=loaded.mean, std=loaded.std, device=self.device
            )
        return ImageList(tensor, [sample.frame for sample in samples])


class Detectron2Detector(Detector):
    """See the module.

    Args:
        frozen: The encoder, on its device.
        num_classes: Categories.
        heads: Sizes.
    """

    name = "detectron2"

    def __init__(self, frozen: FrozenEncoder, num_classes: int, heads: Heads) -> None:
        super().__init__()
        cfg = add_config(get_cfg(), heads, num_classes=num_classes)
        cfg.MODEL.DEVICE = str(frozen.runtime.device)
        cfg.MODEL.PIXEL_MEAN = [255 * x for x in frozen.loaded.mean]
        cfg.MODEL.PIXEL_STD = [255 * x for x in frozen.loaded.std]
        cfg.SER.FROZEN = key = uuid.uuid4().hex
        _frozen[key] = frozen
        try:
            self.model = build_model(cfg)
        finally:
            del _frozen[key]

    def forward(self, grids: Tensor, samples: Sequence[Sample]) -> dict[str, Tensor]:
        with EventStorage():
            losses: dict[str, Tensor] = self.model(_inputs(samples, grids.device, grids))
        return losses

    @torch.no_grad()
    def detect(self, grids: Tensor, samples: Sequence[Sample]) -> list[Detections]:
        found = self.model.inference(_inputs(samples, grids.device, grids), do_postprocess=False)
        return [
            Detections(one.pred_boxes.tensor, one.scores, one.pred_classes, one.pred_masks[:, 0])
            for one in found
        ]

    def versions(self) -> dict[str, str]:
        return {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "detectron2": detectron2.__version__,
        }

    def paste(self, masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        pasted: Tensor = paste_masks_in_image(masks, boxes, size, threshold=_THRESHOLD)
        return pasted.bool()


def _inputs(
    samples: Sequence[Sample], device: torch.device, grids: Tensor | None = None
) -> list[dict[str, Any]]:
    inputs = []
    for position, sample in enumerate(samples):
        one: dict[str, Any] = {"sample": sample}
        if grids is not None:
            one["grid"] = grids[position]
        if len(sample.boxes):
            truth = Instances(sample.frame)
            truth.gt_boxes, truth.gt_classes = Boxes(sample.boxes), sample.labels
            truth.gt_masks = BitMasks(sample.masks_on(device))
            one["instances"] = truth
        inputs.append(one)
    return inputs


# -- Training -------------------------------------------------------------------------------------


class _Keeper(HookBase):
    """Puts our stepper around detectron2's steps."""

    def __init__(self, stepper: Stepper, model: nn.Module, seed: int) -> None:
        self.model = model
        self.stepper, self.seed = stepper, seed
        self.losses: dict[str, Tensor] = {}
        self.images: list[str] = []
        model.register_forward_pre_hook(self._seed)
        model.register_forward_hook(self._note)

    def _seed(self, _model: nn.Module, _given: Any) -> None:
        purpose = ("coco-detect", "regions", self.stepper.step, distributed.rank())
        torch.manual_seed(derive(self.seed, *purpose))

    def _note(self, _model: nn.Module, _given: Any, losses: dict[str, Tensor]) -> None:
        if isinstance(losses, dict):
            self.losses = losses

    def before_step(self) -> None:
        self.stepper.set_lr()

    def after_backward(self) -> None:
        norm = gradient_norm(self.model.parameters())
        self.stepper.agree(self.losses, norm, images=self.images)

    def after_step(self) -> None:
        self.stepper.done()


def train(
    detector: Detector,
    grids_of: Grids,
    images: DetectionImages,
    order: TrainingOrder,
    stepper: Stepper,
    *,
    optimiser: Optimizer,
    seed: int,
    workers: int,
) -> None:
    """As `training.train`, by detectron2's trainer.

    Raises:
        Preempted, Interrupted, RunFailed: As `Stepper.done`.
        UserError: The batch cannot be shared evenly.
    """
    assert isinstance(detector, Detectron2Detector)
    world = distributed.world_size()
    if order.batch_size % world:
        raise UserError(
            f"--batch-size {order.batch_size} on {world} processes",
            "detectron2 gives each process equally many images",
        )
    model: nn.Module = detector.model
    device = detector.model.device
    keeper = _Keeper(stepper, model, seed)
    if distributed.active():
        model = distributed.data_parallel(model)
    keys = order.batches(stepper.step, stepper.pace.total_steps)

    def batches() -> Iterator[list[dict[str, Any]]]:
        for items in load_batches(images, keys, workers=workers):
            keeper.images = [images.source.describe(sample.index) for sample in items]
            # Grids are looked up where they are cached; else the backbone computes them.
            yield _inputs(items, device, None if images.with_images else grids_of(items))

    # Metrics are ours to gather; detectron2 would raise at the first loss that is not finite.
    trainer = SimpleTrainer(
        model, stepper.waiting(batches()), optimiser, gather_metric_period=_NEVER
    )
    trainer.register_hooks([keeper])
    with torch.random.fork_rng(devices=[]), _quiet("detectron2.engine.train_loop"):
        trainer.train(stepper.step, stepper.pace.total_steps)


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without the traceback that detectron2 logs of every exception, also of Ctrl-C."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


# -- Evaluation -----------------------------------------------------------------------------------


class Evaluator:
    """detectron2's COCOEvaluator over detections in pixels, image by image.

    Args:
        source: Gives the categories.
        indices: Indices in the source of the images that are scored.
    """

    def __init__(self, source: DetectionSource, indices: Sequence[int]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._name = f"ser-{uuid.uuid4().hex}"
        file = Path(self._folder.name) / "truth.json"
        file.write_text(json.dumps(source.ground_truth(indices)))
        DatasetCatalog.register(self._name, list)
        MetadataCatalog.get(self._name).set(
            json_file=str(file),
            thing_classes=[one.name for one in source.categories],
            thing_dataset_id_to_contiguous_id=source.labels_by_id(),
        )
        with contextlib.redirect_stdout(io.StringIO()):
            self._evaluator = COCOEvaluator(self._name, tasks=("bbox", "segm"), use_fast_impl=False)
        self._evaluator.reset()

    def take(self, image_id: int, found: Detections) -> None:
        """Take the detections of an image."""
        one = Instances((int(found.masks.shape[-2]), int(found.masks.shape[-1])))
        one.pred_boxes, one.scores = Boxes(found.boxes), found.scores
        one.pred_classes, one.pred_masks = found.labels, found.masks
        self._evaluator.process([{"image_id": image_id}], [{"instances": one}])

    def scores(self) -> dict[str, float | None]:
        """AP of boxes (`ap`) and masks (`mask_ap`), in percent; every rank must ask.

        None where nothing was found, which it does not score.
        """
        with contextlib.redirect_stdout(io.StringIO()), _quiet("detectron2.evaluation"):
            found = self._evaluator.evaluate() or {}
        DatasetCatalog.remove(self._name)
        MetadataCatalog.pop(self._name)
        self._folder.cleanup()
        kinds = {"ap": "bbox", "mask_ap": "segm"}
        values = {
            name: float(found.get(kind, {}).get("AP", math.nan)) for name, kind in kinds.items()
        }
        return {name: value if math.isfinite(value) else None for name, value in values.items()}
