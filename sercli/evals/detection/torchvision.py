"""Mask R-CNN of torchvision's parts: the engine that needs no build.

Anchors and pooling get the pyramid's strides as they are. torchvision infers them from the size of
the image in its batch, which on a padded canvas gives other features for the same image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from sercli.evals.detection.backbone import LEVELS, STRIDES, SimpleFeaturePyramid
from sercli.evals.detection.detector import MAX_DETECTIONS, Detections, Detector
from sercli.evals.detection.images import Sample
from sercli.evals.detection.options import Heads

_ASPECTS = (0.5, 1.0, 2.0)
_POOLED = LEVELS[:4]
_BOX_POOL, _MASK_POOL = 7, 14
_THRESHOLD = 0.5


class TorchvisionDetector(Detector):
    """See the module.

    Args:
        dim: Channels D of the grids.
        num_classes: Categories, without background.
        heads: Sizes.
    """

    name = "torchvision"

    def __init__(self, dim: int, num_classes: int, heads: Heads) -> None:
        super().__init__()
        channels = heads.channels
        self.pyramid = SimpleFeaturePyramid(dim, channels)
        self.proposals = RegionProposalNetwork(
            _Anchors(),
            RPNHead(channels, len(_ASPECTS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=heads.anchors,
            positive_fraction=0.5,
            pre_nms_top_n={"training": heads.proposals[0], "testing": heads.test_proposals[0]},
            post_nms_top_n={"training": heads.proposals[1], "testing": heads.test_proposals[1]},
            nms_thresh=0.7,
        )
        mask_widths = [heads.mask_channels] * heads.mask_layers
        self.heads = RoIHeads(
            box_roi_pool=_Pool(_BOX_POOL),
            box_head=TwoMLPHead(channels * _BOX_POOL**2, heads.box_width),
            box_predictor=FastRCNNPredictor(heads.box_width, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=heads.regions,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=MAX_DETECTIONS,
            mask_roi_pool=_Pool(_MASK_POOL),
            mask_head=MaskRCNNHeads(channels, mask_widths, 1),
            mask_predictor=MaskRCNNPredictor(
                heads.mask_channels, heads.mask_channels, num_classes + 1
            ),
        )

    def forward(self, grids: Tensor, samples: Sequence[Sample]) -> dict[str, Tensor]:
        targets = [
            {
                "boxes": sample.boxes.to(grids.device),
                "labels": sample.labels.to(grids.device) + 1,  # 0 is background
                "masks": sample.masks_on(grids.device),
            }
            for sample in samples
        ]
        levels, images = self._levels(grids, samples)
        proposals, losses = self.proposals(images, levels, targets)
        _, more = self.heads(levels, proposals, images.image_sizes, targets)
        both: dict[str, Tensor] = {**losses, **more}
        return both

    @torch.no_grad()
    def detect(self, grids: Tensor, samples: Sequence[Sample]) -> list[Detections]:
        levels, images = self._levels(grids, samples)
        proposals, _ = self.proposals(images, levels)
        found, _ = self.heads(levels, proposals, images.image_sizes)
        return [
            Detections(one["boxes"], one["scores"], one["labels"] - 1, one["masks"][:, 0])
            for one in found
        ]

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__, "torchvision": torchvision.__version__}

    def paste(self, masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        pasted: Tensor = paste_masks_in_image(masks[:, None], boxes, size)[:, 0] >= _THRESHOLD
        return pasted

    def _levels(
        self, grids: Tensor, samples: Sequence[Sample]
    ) -> tuple[dict[str, Tensor], ImageList]:
        sizes = [sample.frame for sample in samples]
        return self.pyramid(grids), ImageList(grids, sizes)


class _Anchors(AnchorGenerator):
    """One size a level, eight strides, in three shapes."""

    def __init__(self) -> None:
        sizes = tuple((8 * stride,) for stride in STRIDES)
        super().__init__(sizes, (_ASPECTS,) * len(sizes))

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        like = feature_maps[0]
        self.set_cell_anchors(like.dtype, like.device)
        strides = [[like.new_tensor(stride)] * 2 for stride in STRIDES]
        sizes = [list(level.shape[-2:]) for level in feature_maps]
        anchors = torch.cat(self.grid_anchors(sizes, strides))
        return [anchors] * len(image_list.image_sizes)


class _Pool(MultiScaleRoIAlign):
    def __init__(self, side: int) -> None:
        super().__init__(list(_POOLED), side, sampling_ratio=2)
        strides = STRIDES[: len(_POOLED)]
        self.scales = [1 / stride for stride in strides]
        self.map_levels = LevelMapper(2, 1 + len(strides))
