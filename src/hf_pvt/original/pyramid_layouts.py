"""What published checkpoints call the weights, as ordered tables from our names to a source's: pure data.

The sources are the authors' PVT, PVTv2 and P2T, timm's PVTv2, and MMSegmentation's Semantic FPN on the authors' three.
Those of the detectors are in `detector_layouts` and `detr_layout`.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

StateDict = dict[str, Tensor]
Renames = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

STAGES = 4


def per_stage(*renames: tuple[str, str]) -> Renames:
    """The renames for each stage: `<i>` counts from 0 as ours do, `<n>` from 1 as the published ones."""
    return tuple((of_stage(pattern, i), of_stage(name, i)) for i in range(STAGES) for pattern, name in renames)


def of_stage(text: str, i: int) -> str:
    return text.replace("<i>", str(i)).replace("<n>", str(i + 1))


# Ours -> published, applied in order as `re.sub`.
PUBLISHED: Renames = (
    *per_stage(
        (r"^encoder\.layers\.<i>\.patch_embedding\.proj\.", r"patch_embed<n>.proj."),
        (r"^encoder\.layers\.<i>\.patch_embedding\.layer_norm\.", r"patch_embed<n>.norm."),
        (r"^encoder\.layers\.<i>\.patch_embedding\.position_embeddings", r"pos_embed<n>"),
        (r"^encoder\.layers\.<i>\.patch_embedding\.cls_token", r"cls_token"),
        (r"^encoder\.layers\.<i>\.pyramid_pooling\.convs\.", r"d_convs<n>."),
        (r"^encoder\.layers\.<i>\.blocks\.", r"block<n>."),
        (r"^encoder\.layers\.<i>\.layer_norm\.", r"norm<n>."),
    ),
    (r"^encoder\.layer_norm\.", r"norm."),
    (r"^classifier\.", r"head."),
    (r"\.layer_norm_(\d)\.", r".norm\1."),
    (r"\.attention\.query\.", r".attn.q."),
    (r"\.attention\.(key|value)\.", r".attn.kv."),
    (r"\.attention\.proj\.", r".attn.proj."),
    (r"\.attention\.spatial_reduction\.", r".attn.sr."),
    (r"\.attention\.layer_norm\.", r".attn.norm."),
    (r"\.mlp\.dense(\d)\.", r".mlp.fc\1."),
)

# P2T wraps the projections and has no module around the depthwise convolution.
PUBLISHED_P2T: Renames = (
    *PUBLISHED,
    (r"\.attn\.(q|kv)\.", r".attn.\1.0."),
    (r"\.mlp\.dwconv\.dwconv\.", r".mlp.conv."),
)

TIMM_PVT_V2: Renames = (
    *PUBLISHED,
    (r"^patch_embed1\.", r"patch_embed."),
    *((rf"^patch_embed{i + 1}\.", rf"stages.{i}.downsample.") for i in range(1, STAGES)),
    *((rf"^block{i + 1}\.", rf"stages.{i}.blocks.") for i in range(STAGES)),
    *((rf"^norm{i + 1}\.", rf"stages.{i}.norm.") for i in range(STAGES)),
    (r"\.mlp\.dwconv\.dwconv\.", r".mlp.dwconv."),
)

# timm's `features_only` models have no head and are flat.
TIMM_FEATURES: Renames = (*TIMM_PVT_V2, (r"^stages\.(\d)\.", r"stages_\1."))

# MMSegmentation puts the pyramid under `backbone` and splits the decoder into `neck` and `decode_head`.
SEMANTIC_FPN: Renames = (
    (r"^decode_head\.(lateral_convs|fpn_convs)\.(\d+)\.", r"neck.\1.\2.conv."),
    (r"^decode_head\.classifier\.", r"decode_head.conv_seg."),
    (r"\.batch_norm\.", r".bn."),
    (r"^(?!neck\.|decode_head\.)", r"backbone."),
)


NOTHING = "$^"


@dataclass(frozen=True)
class Layout:
    """How one source names and shapes the weights of one family."""

    source: str
    model_type: str
    marker: str  # a key that this layout has and no other
    renames: Renames
    head: str = ""  # with this a key begins, as many models have the same pyramid
    pointwise: str = NOTHING  # our linears that are 1x1 convolutions there, as a pattern
    ignored: str = NOTHING  # keys without a use here, as a pattern
    joined: tuple[str, ...] = ("key", "value")  # the projections of an attention that share a matrix, in its order
    is_segmentation: bool = False

    def is_of(self, weights: StateDict) -> bool:
        return self.marker in weights and any(key.startswith(self.head) for key in weights)

    def name(self, ours: str) -> str:
        """The source's name of our weight `ours` (without the base model's prefix)."""
        for pattern, replacement in self.renames:
            ours = re.sub(pattern, replacement, ours)
        return ours

    def place(self, ours: str) -> int | None:
        """Which part our weight `ours` is of a matrix that projections share, None where it is a whole one."""
        projection = re.search(rf"\.attention\.({'|'.join(self.joined)})\.", ours)
        return self.joined.index(projection[1]) if projection else None

    def count(self, ours: str) -> int:
        """How many projections share a matrix with our weight `ours`, which is one of them."""
        return len(self.joined)

    def shape(self, ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape there of our weight `ours`."""
        if self.place(ours) is not None:
            return (self.count(ours) * shape[0], *shape[1:])
        return (*shape, 1, 1) if re.search(self.pointwise, ours) else shape

    def part(self, theirs: Tensor, ours: str) -> Tensor:
        """Our weight `ours` out of the source's tensor of that name and shape."""
        place = self.place(ours)
        if place is not None:
            return theirs.chunk(self.count(ours))[place]
        return theirs.flatten(1) if re.search(self.pointwise, ours) else theirs

    def whole(self, weight: Tensor, ours: str) -> Tensor:
        """Back from a weight `ours` that is no part: the source's tensor."""
        return weight.reshape(self.shape(ours, tuple(weight.shape)))


PUBLISHED_LAYOUTS = (
    Layout("published P2T", "p2t", "d_convs1.0.weight", PUBLISHED_P2T, pointwise=r"\.mlp\.dense\d\.weight$"),
    Layout("published PVT", "pvt", "pos_embed1", PUBLISHED),
    Layout("published PVTv2", "pvt_v2", "block1.0.mlp.dwconv.dwconv.weight", PUBLISHED),
)


def _with_semantic_fpn(layout: Layout) -> Layout:
    """A published pyramid inside MMSegmentation's model.

    An auxiliary head serves training only, as does the classifier that P2T's pyramid still carries there.
    """
    return replace(
        layout,
        source=f"MMSegmentation Semantic FPN on {layout.source}",
        marker=f"backbone.{layout.marker}",
        renames=(*layout.renames, *SEMANTIC_FPN),
        head="decode_head.",
        ignored=r"^auxiliary_head\.|^backbone\.head\.",
        is_segmentation=True,
    )


PYRAMID_LAYOUTS = (
    *PUBLISHED_LAYOUTS,
    Layout("timm PVTv2", "pvt_v2", "stages.0.blocks.0.mlp.dwconv.weight", TIMM_PVT_V2),
    Layout("timm PVTv2 features", "pvt_v2", "stages_0.blocks.0.mlp.dwconv.weight", TIMM_FEATURES),
    *(_with_semantic_fpn(layout) for layout in PUBLISHED_LAYOUTS),
)


def to_original(model: PreTrainedModel, layout: Layout) -> StateDict:
    """The weights of `model` as a source names and shapes them: what `load_original` reads, backwards, to the bit."""
    weights: StateDict = {}
    parts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for name, weight in model.state_dict().items():
        ours = name.removeprefix(f"{model.base_model_prefix}.")
        theirs, place = layout.name(ours), layout.place(ours)
        if place is None:
            weights[theirs] = layout.whole(weight, ours)
        else:
            parts[theirs][place] = weight
    return weights | {name: torch.cat([of_name[place] for place in sorted(of_name)]) for name, of_name in parts.items()}
