"""The feature pyramid network alone, for necks of other models than the segmenters."""

import torch
from families import perturb
from torchvision.ops import FeaturePyramidNetwork

from hf_pvt.heads.feature_pyramid import FeaturePyramid


def test_is_torchvisions() -> None:
    """torchvision's network with the same weights gives the same maps, also where no level is twice the next."""
    torch.manual_seed(0)
    ours, theirs = FeaturePyramid([4, 6, 8], 5), FeaturePyramidNetwork([4, 6, 8], 5)
    perturb(ours)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    maps = [torch.randn(2, *shape) for shape in ((4, 25, 31), (6, 13, 16), (8, 7, 8))]
    levels = ours(maps)
    expected = theirs({str(level): feature_map for level, feature_map in enumerate(maps)}).values()
    assert [tuple(level.shape) for level in levels] == [(2, 5, 25, 31), (2, 5, 13, 16), (2, 5, 7, 8)]
    torch.testing.assert_close(levels, list(expected), rtol=0, atol=1e-6)
