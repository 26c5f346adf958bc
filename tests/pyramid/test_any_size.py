"""Any height and width from 32 pixels, any number of channels, any batch, any floating type."""

import pytest
import torch
from families import FAMILIES, P2T, PVT, PVT_V2, PVT_V2_LINEAR, Family, perturb
from torch.nn import functional as F

import hf_pvt
from hf_pvt.pyramid.layers import adaptive_average_pool, tokens_to_map
from hf_pvt.pyramid.modeling_p2t import pooled_length

SIZES = [(32, 32), (33, 47), (97, 131), (112, 448), pytest.param((384, 1280), marks=pytest.mark.slow)]
ALL = (*FAMILIES, PVT_V2_LINEAR)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("family", ALL, ids=str)
def test_every_size(family: Family, size: tuple[int, int]) -> None:
    """Finite maps of the expected sizes; and the last one answers to the image's last corner."""
    torch.manual_seed(0)
    model = family.backbone(family.tiny_config(out_indices=[0, 1, 2, 3])).eval()
    image = torch.randn(1, 3, *size)
    with torch.inference_mode():
        maps = model(image).feature_maps
        height, width = size
        for stage, feature_map in enumerate(maps):
            stride = 4 if stage == 0 else 2
            # PVT's patches drop what is left over at the border, the overlapping ones pad it.
            left_over = 0 if family is PVT else stride - 1
            height, width = (height + left_over) // stride, (width + left_over) // stride
            assert tuple(feature_map.shape) == (1, family.tiny_config().hidden_sizes[stage], height, width)
            assert feature_map.isfinite().all()
        flipped = image.clone()
        rows, columns = (height - 1) * 32, (width - 1) * 32
        flipped[:, :, rows : rows + 16, columns : columns + 16] *= -1
        assert not torch.allclose(model(flipped).feature_maps[-1][..., -1, -1], maps[-1][..., -1, -1], atol=1e-6)


@pytest.mark.parametrize("family", ALL, ids=str)
def test_batch_invariance(family: Family) -> None:
    """An image alone gives what it gives among others."""
    torch.manual_seed(0)
    model = family.classifier(family.tiny_config()).eval()
    perturb(model)
    images = torch.randn(4, 3, 97, 131)
    with torch.inference_mode():
        together = model(images).logits
        for index in range(4):
            alone = model(images[index : index + 1]).logits
            torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-5 * together.abs().max().item())


@pytest.mark.parametrize(("family", "channels"), [(PVT, 13), (PVT_V2, 4), (P2T, 1)], ids=str)
def test_channels(family: Family, channels: int) -> None:
    """Every channel counts."""
    torch.manual_seed(0)
    model = family.classifier(family.tiny_config(num_channels=channels)).eval()
    image = torch.randn(1, channels, 64, 64, requires_grad=True)
    model(image).logits.square().sum().backward()
    assert (image.grad.abs().amax((0, 2, 3)) > 0).all()


@pytest.mark.parametrize(
    ("family", "dtype", "tolerance"),
    [
        (PVT, torch.float16, 0.01),
        (PVT_V2, torch.bfloat16, 0.05),
        (P2T, torch.float16, 0.01),
        (P2T, torch.bfloat16, 0.05),
    ],
    ids=str,
)
def test_half_precision(family: Family, dtype: torch.dtype, tolerance: float) -> None:
    """Close to float32 within what the type holds; float32 images are cast to the model's type.

    32 channels, as published models have: with 16 or fewer, oneDNN 3.13's strided convolutions are wrong on AMX.
    """
    torch.manual_seed(0)
    model = family.classifier(family.tiny_config(hidden_sizes=(32, 64, 96, 128))).eval()
    image = torch.randn(2, 3, 97, 131)
    with torch.inference_mode():
        expected = model(image).logits
        output = model.to(dtype)(image).logits
    assert output.dtype == dtype
    assert ((output.float() - expected).abs().max() / expected.abs().max()).item() < tolerance


@pytest.mark.parametrize("size", [(448, 448), (112, 448), (97, 131)], ids=str)
def test_pvt_resizes_positions_per_stage(size: tuple[int, int]) -> None:
    """Each stage's own table, bilinear in float64, written out; upstream crashes at 448 and is wrong at 112x448."""
    torch.manual_seed(0)
    model = hf_pvt.PvtModel(hf_pvt.PvtConfig(depths=(1, 1, 1, 1), image_size=224)).eval()
    height, width = size
    for stage, layer in enumerate(model.encoder.layers):
        embedding = layer.patch_embedding
        stride = 4 if stage == 0 else 2
        height, width = height // stride, width // stride
        table = embedding.position_embeddings.detach().double()[:, 1 if stage == 3 else 0 :]
        expected = bilinear(tokens_to_map(table, (56 >> stage, 56 >> stage))[0], height, width)
        positions = tokens_to_map(embedding.positions((height, width)), (height, width))[0]
        torch.testing.assert_close(positions.double(), expected, rtol=0, atol=1e-6)
        tokens, grid = embedding(torch.randn(1, embedding.proj.in_channels, height * stride, width * stride))
        assert grid == (height, width)
        assert tokens.shape[1] == height * width + (1 if stage == 3 else 0)


def bilinear(table: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bilinear resize of (C, H, W), align_corners False, from its definition."""

    def weights(source: int, target: int) -> torch.Tensor:
        position = ((torch.arange(target, dtype=torch.float64) + 0.5) * source / target - 0.5).clamp(0, source - 1)
        low = position.floor().long().clamp(max=source - 1)
        high = (low + 1).clamp(max=source - 1)
        share = (position - low)[:, None]
        eye = torch.eye(source, dtype=torch.float64)
        return (1 - share) * eye[low] + share * eye[high]  # (target, source)

    return weights(table.shape[1], height) @ table @ weights(table.shape[2], width).T


def test_pvt_of_rectangular_images() -> None:
    """Tables for a training size that is not square: used as they are there, at both levels of the API."""
    torch.manual_seed(0)
    config = PVT.tiny_config(image_size=[64, 128])
    model = hf_pvt.PvtModel(config).eval()
    assert [layer.patch_embedding.grid for layer in model.encoder.layers] == [(16, 32), (8, 16), (4, 8), (2, 4)]
    for layer in model.encoder.layers:
        embedding = layer.patch_embedding
        assert torch.equal(
            embedding.positions(embedding.grid), embedding.position_embeddings[:, embedding.class_entries :]
        )
    assert model(torch.randn(1, 3, 64, 128)).last_hidden_state.shape == (1, 1 + 8, config.hidden_sizes[-1])


def test_p2t_pools_to_pythons_round() -> None:
    """Halves to even, at least 1: for all lengths and ratios of images up to 2,048 pixels."""
    for ratio in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24):
        for length in range(1, 513):
            assert pooled_length(length, ratio) == max(round(length / ratio), 1), (length, ratio)


@pytest.mark.parametrize("target", [(1, 1), (3, 4), (7, 7)], ids=str)
def test_pooling_by_matrices(target: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The exported form of the pooling equals PyTorch's."""
    for size in [(7, 7), (13, 17), (56, 31)]:
        feature_map = torch.randn(2, 5, *size)
        expected = F.adaptive_avg_pool2d(feature_map, target)
        assert torch.equal(adaptive_average_pool(feature_map, target), expected)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_exporting", lambda: True)
            exported = adaptive_average_pool(feature_map, target)
        torch.testing.assert_close(exported, expected)
