"""What users do wrong is answered in a sentence that names what was given and what is expected."""

import math
import re
from itertools import cycle
from typing import Any

import pytest
import torch
from families import FAMILIES, P2T, PVT, PVT_V2, PVT_V2_LINEAR, Family
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel

import hf_pvt
from hf_pvt import VARIANTS, variant_config

NAN = math.nan
Fields = dict[str, Any]
PER_STAGE = ("depths", "hidden_sizes", "patch_sizes", "strides", "num_attention_heads", "mlp_ratios")


def named(fields: Fields) -> str:
    return ", ".join(f"{name}={value}" for name, value in fields.items())


def cases(*rows: tuple[Fields, str]) -> Any:
    """Fields of a configuration and what the error says of them; the families, which share that code, take turns."""
    turns = [(family, *row) for family, row in zip(cycle(FAMILIES), rows, strict=False)]
    ids = [f"{family}-{named(fields)}" for family, fields, _ in turns]
    return pytest.mark.parametrize(("family", "fields", "message"), turns, ids=ids)


def assert_refused(family: Family, fields: Fields, message: str) -> None:
    """The ecosystem's exception for a value that does not fit its class, with exactly our sentence in it."""
    with pytest.raises(StrictDataclassClassValidationError) as error:
        family.config(**fields)
    assert type(error.value.__cause__) is ValueError
    assert str(error.value.__cause__) == message
    assert message in str(error.value)


@cases(
    *(
        ({name: value}, f"`{name}` must lie in [0, 1), got {value}.")
        for value in (NAN, -0.1, 1.0)
        for name in (
            "drop_path_rate",
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "classifier_dropout_prob",
        )
    ),
    *(
        ({name: value}, f"`{name}` must be positive and finite, got {value}.")
        for name, values in {
            "layer_norm_eps": (NAN, 0.0, -1e-6, math.inf),
            "reduction_layer_norm_eps": (NAN, 0.0),
            "initializer_range": (0.0, math.inf),
            "num_channels": (0, -3),
            "fpn_hidden_size": (0,),
            "decoder_hidden_size": (0,),
        }.items()
        for value in values
    ),
)
def test_numbers_out_of_range(family: Family, fields: Fields, message: str) -> None:
    assert_refused(family, fields, message)


@cases(
    *(
        (
            {name: values},
            f"`{name}` has {len(values)} values, expected one for each of the 4 stages (num_encoder_blocks=4): "
            f"{values}.",
        )
        for name, values in zip(PER_STAGE, cycle(([2, 2, 2], [2, 2, 2, 2, 2])), strict=False)
    ),
    *(
        ({name: [2, 2, value, 2]}, f"`{name}` must be positive for every stage, got {[2, 2, value, 2]}.")
        for name, value in zip(PER_STAGE, cycle((-1, 0)), strict=False)
    ),
    *(
        (
            {"hidden_sizes": [64, 130, 320, 512], "num_attention_heads": [1, 4, 5, 8]},
            "hidden size 130 does not divide by its 4 attention heads; choose `hidden_sizes` [64, 130, 320, 512] as "
            "multiples of `num_attention_heads` [1, 4, 5, 8].",
        )
        for _ in FAMILIES
    ),
    *(
        (
            {"num_encoder_blocks": blocks, "depths": [2, 2, 2, 2]},
            f"`depths` has 4 values, expected one for each of the {blocks} stages (num_encoder_blocks={blocks}): "
            "[2, 2, 2, 2].",
        )
        for blocks in (3, 0)
    ),
)
def test_stages_that_do_not_fit(family: Family, fields: Fields, message: str) -> None:
    assert_refused(family, fields, message)


@pytest.mark.parametrize(
    ("family", "name"), [(PVT, "sequence_reduction_ratios"), (PVT_V2, "sr_ratios")], ids=["pvt", "pvt_v2"]
)
def test_reduction_ratios(family: Family, name: str) -> None:
    message = f"`{name}` has 3 values, expected one for each of the 4 stages (num_encoder_blocks=4): [8, 4, 2]."
    assert_refused(family, {name: [8, 4, 2]}, message)
    assert_refused(family, {name: [8, 0, 2, 1]}, f"`{name}` must be positive for every stage, got [8, 0, 2, 1].")
    with pytest.raises(StrictDataclassClassValidationError, match=f"`{name}` has 0 values"):
        family.config(**{name: []})


def test_no_stages(family: Family) -> None:
    with pytest.raises(ValueError, match=r"^`depths` is empty, expected the number of blocks of each stage\.$"):
        family.config(depths=[])


@pytest.mark.parametrize(("family", "name"), list(zip(FAMILIES, ("swishy", "", "GELU"), strict=True)), ids=str)
def test_unknown_activation(family: Family, name: str) -> None:
    with pytest.raises(StrictDataclassClassValidationError) as error:
        family.config(hidden_act=name)
    message = str(error.value.__cause__)
    assert message.startswith(f"unknown `hidden_act` {name!r}, expected one of: ")
    assert {"gelu", "relu", "hardswish"} <= set(re.findall(r"\w+", message))


def test_class_token_cannot_be_reduced() -> None:
    message = (
        "the last of `sequence_reduction_ratios` must be 1, got [8, 4, 2, 2]: the last stage's class token has no "
        "place in a grid that could be reduced."
    )
    assert_refused(PVT, {"sequence_reduction_ratios": [8, 4, 2, 2]}, message)
    PVT_V2.config(sr_ratios=[8, 4, 2, 2])  # it has no class token


@pytest.mark.parametrize("size", [-32, 31, [224], [224, 224, 3], [], [16, 224], (224, 0)], ids=str)
def test_image_sizes_that_pvt_cannot_have(size: int | list[int]) -> None:
    message = f"`image_size` must be one side or [height, width], each of 32 pixels or more, got {size}."
    assert_refused(PVT, {"image_size": size}, message)


@pytest.mark.parametrize("size", [32, [32, 64], (97, 131)], ids=str)
def test_image_sizes_that_pvt_can_have(size: int | list[int]) -> None:
    model = hf_pvt.PvtModel(PVT.tiny_config(image_size=size)).eval()
    height, width = (size, size) if isinstance(size, int) else size
    with torch.inference_mode():
        tokens = model(torch.randn(1, 3, height, width)).last_hidden_state
    assert tokens.shape == (1, 1 + (height // 32) * (width // 32), 64)


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ([[1]] * 3, "`pool_ratios` has 3 lists, expected one for each of the 4 stages: [[1], [1], [1]]."),
        ([], "`pool_ratios` has 0 lists, expected one for each of the 4 stages: []."),
        *(
            (ratios, f"`pool_ratios` must hold positive ratios for every stage, got {ratios}.")
            for ratios in ([[1], [1], [1], []], [[1], [2, 0], [1], [1]], [[1], [1], [-4], [1]])
        ),
    ],
    ids=str,
)
def test_pool_ratios(ratios: list[list[int]], message: str) -> None:
    assert_refused(P2T, {"pool_ratios": ratios}, message)


WRONG_TYPES: tuple[tuple[Family, tuple[tuple[str, Any], ...]], ...] = (
    (
        PVT,
        (
            ("depths", "2222"),
            ("num_channels", 3.0),
            ("num_channels", True),
            ("hidden_act", None),
            ("drop_path_rate", "0.1"),
            ("layer_norm_eps", "1e-6"),
            ("qkv_bias", 1),
            ("image_size", 224.0),
            ("image_size", None),
            ("image_size", [224, 224.5]),
        ),
    ),
    (
        PVT_V2,
        (
            ("depths", [2, 2, NAN, 2]),
            ("hidden_sizes", {"stage1": 64}),
            ("num_channels", 3.0),
            ("hidden_act", 3),
            ("drop_path_rate", None),
            ("qkv_bias", "yes"),
            ("linear_attention", "yes"),
            ("linear_attention", 1),
            ("sr_ratios", 8),
        ),
    ),
    (
        P2T,
        (
            ("depths", None),
            ("depths", [2, 2, 2, 2.5]),
            ("hidden_sizes", 3),
            ("hidden_act", 3),
            ("pool_ratios", [1, 2, 3, 4]),
            ("pool_ratios", [[1.5]] * 4),
            ("pool_ratios", None),
        ),
    ),
)


@pytest.mark.parametrize(
    ("family", "name", "value"), [(family, *row) for family, rows in WRONG_TYPES for row in rows], ids=str
)
def test_wrong_types(family: Family, name: str, value: Any) -> None:
    with pytest.raises(StrictDataclassFieldValidationError) as error:
        family.config(**{name: value})
    message = str(error.value)
    assert f"'{name}'" in message and repr(value) in message and ("expected" in message or "match" in message)


@pytest.mark.parametrize("family", [PVT, PVT_V2], ids=str)  # PVTv2's are Transformers'
@pytest.mark.parametrize("chosen", [{"out_indices": [7]}, {"out_features": ["stage9"]}], ids=named)
def test_stages_that_do_not_exist(family: Family, chosen: Fields) -> None:
    ((name, (value,)),) = chosen.items()
    with pytest.raises(ValueError, match=rf"{name} must be .*stage1.*stage4.*{value}"):
        family.config(**chosen)


@pytest.mark.parametrize("name", ["pvt_v2_b2", "PVT-Tiny", ""])
def test_unknown_variant(name: str) -> None:
    with pytest.raises(ValueError) as error:
        variant_config(name)
    assert str(error.value) == f"unknown variant {name!r}, expected one of: {', '.join(VARIANTS)}."


def test_variant_with_a_bad_override() -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=r"`drop_path_rate` must lie in \[0, 1\), got 1.5"):
        variant_config("pvt-v2-b0", drop_path_rate=1.5)


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


NO_TENSOR = (
    "pixel_values has type {}, expected a tensor (batch, channels, height, width); pass what the image processor "
    "returns under that name."
)
CHANNELS = (
    "pixel_values has {0} channels, the model expects 3; convert the images, or build the model with num_channels={0}."
)
NO_FLOATS = "pixel_values has dtype {}, expected floats; let the image processor rescale and normalise the images."
SHAPE = "pixel_values must have shape (batch, channels, height, width), got {}."
TOO_SMALL = "images of {} pixels are too small, the minimum is 32x32; resize or pad them."

BAD_IMAGES: dict[str, tuple[Any, str]] = {
    "none": (None, NO_TENSOR.format("NoneType")),
    "array": (images(1, 3, 64, 64).numpy(), NO_TENSOR.format("ndarray")),
    "processed": (BatchFeature({"pixel_values": images(1, 3, 64, 64)}), NO_TENSOR.format("BatchFeature")),
    "one channel": (images(1, 1, 64, 64), CHANNELS.format(1)),
    "channels last": (images(1, 64, 64, 3), CHANNELS.format(64)),
    "uint8": (images(1, 3, 64, 64, dtype=torch.uint8), NO_FLOATS.format("torch.uint8")),
    "bool": (images(1, 3, 64, 64, dtype=torch.bool), NO_FLOATS.format("torch.bool")),
    "complex": (images(1, 3, 64, 64, dtype=torch.complex64), NO_FLOATS.format("torch.complex64")),
    "no batch": (images(3, 64, 64), SHAPE.format("(3, 64, 64)")),
    "video": (images(1, 2, 3, 64, 64), SHAPE.format("(1, 2, 3, 64, 64)")),
    "scalar": (images(), SHAPE.format("()")),
    "empty batch": (
        images(0, 3, 64, 64),
        "pixel_values holds no image, got (0, 3, 64, 64); pass a batch of at least one.",
    ),
    "tiny": (images(2, 3, 1, 1), TOO_SMALL.format("1x1")),
    "no pixels": (images(1, 3, 64, 0), TOO_SMALL.format("64x0")),
}
ROWS = (*FAMILIES, PVT_V2_LINEAR)


def models_of(family: Family) -> dict[str, PreTrainedModel]:
    """Model, classifier, backbone and segmenter, without weights."""
    with torch.device("meta"):
        return {model_class.__name__: model_class(family.tiny_config()) for model_class in family.classes}


def assert_images_refused(family: Family, pixel_values: Any, message: str) -> None:
    """The same sentence from every class of the family, in training and in inference."""
    for name, model in models_of(family).items():
        for training in (True, False):
            said = "nothing"
            with torch.set_grad_enabled(training):
                try:
                    model.train(training)(pixel_values)
                except ValueError as error:
                    said = str(error)
            assert said == message, f"{name}, training={training}"


@pytest.mark.parametrize(("family", "case"), list(zip(cycle(ROWS), BAD_IMAGES, strict=False)), ids=str)
def test_bad_images(family: Family, case: str) -> None:
    assert_images_refused(family, *BAD_IMAGES[case])


@pytest.mark.parametrize("family", ROWS, ids=str)
def test_images_one_pixel_too_small(family: Family) -> None:
    """The least size is each family's own."""
    assert_images_refused(family, images(1, 3, 31, 64), TOO_SMALL.format("31x64"))
    assert_images_refused(family, images(1, 3, 64, 31), TOO_SMALL.format("64x31"))


def test_no_images_at_all(family: Family) -> None:
    for model in models_of(family).values():
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'pixel_values'"):
            model()


@pytest.mark.parametrize("ratios", [[16, 4, 2, 1], [8, 4, 4, 1]], ids=str)
def test_the_minimum_follows_the_configuration(ratios: list[int]) -> None:
    """Where keys and values are reduced more than in the papers, small images would leave none."""
    model = hf_pvt.PvtV2Model(PVT_V2.tiny_config(sr_ratios=ratios)).eval()
    with pytest.raises(ValueError, match="images of 63x64 pixels .* the minimum is 64x64"):
        model(images(1, 3, 63, 64))
    assert model(images(1, 3, 64, 64)).last_hidden_state.shape == (1, 64, 2, 2)
