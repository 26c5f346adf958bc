"""The detectors, by their model type."""

from .modeling_atss import AtssForObjectDetection
from .modeling_cascade_mask_rcnn import CascadeMaskRcnnForInstanceSegmentation
from .modeling_detector import Detector
from .modeling_gfl import GflForObjectDetection
from .modeling_mask_rcnn import MaskRcnnForInstanceSegmentation
from .modeling_retinanet import RetinaNetForObjectDetection
from .modeling_sparse_rcnn import SparseRcnnForObjectDetection

# The name that the configuration's `model_type` has, and that users say.
DETECTORS: dict[str, type[Detector]] = {
    "retinanet": RetinaNetForObjectDetection,
    "mask_rcnn": MaskRcnnForInstanceSegmentation,
    "atss": AtssForObjectDetection,
    "gfl": GflForObjectDetection,
    "cascade_mask_rcnn": CascadeMaskRcnnForInstanceSegmentation,
    "sparse_rcnn": SparseRcnnForObjectDetection,
}
