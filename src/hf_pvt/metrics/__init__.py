"""Mean IoU and Dice of label maps, top-k accuracy of scores and COCO's average precision, as `evaluate` metrics.

They need `pip install "hf_pvt[train]"`, COCO's `pip install "hf_pvt[detection]"` as well.
"""

from .coco_average_precision import CocoAveragePrecision
from .mean_iou import MeanIoU
from .top_k_accuracy import TopKAccuracy

__all__ = ["CocoAveragePrecision", "MeanIoU", "TopKAccuracy"]
