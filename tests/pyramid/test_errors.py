"""What users do wrong is answered in a sentence that names what was given and what is expected."""

import math
import re
from typing import Any

import pytest
import torch
from families import FAMILIES, P2T, PVT, PVT_V2, PVT_V2_LINEAR, Family
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from torch import Tensor
from transformers import BatchFeature

import hf_pvt
from hf_pvt import VARIANTS, variant_config

NAN = math.nan
Fields = dict[str, Any]


def cases(*rows: tuple[Fields, str]) -> Any:
    """Fields of a configuration and what the error says of them, with the fields as the test's name."""
    names = [", ".join(f"{name}={value}" for name, value in fields.items()) for fields, _ in rows]
    return pytest.mark.parametrize(("fields", "message"), rows, ids=names)


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
        for name in ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob")
        for value in (NAN, -0.1, 1.0, 1, 2.5, math.inf)
    ),
    *(
        ({name: value}, f"`{name}` must be positive and finite, got {value}.")
        for name in ("layer_norm_eps", "reduction_layer_norm_eps", "initializer_range")
        for value in (NAN, 0.0, -1e-6, math.inf)
    ),
    ({"num_channels": 0}, "`num_channels` must be positive and finite, got 0."),
    ({"num_channels": -3}, "`num_channels` must be positive and finite, got -3."),
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
        for name in ("depths", "hidden_sizes", "patch_sizes", "strides", "num_attention_heads", "mlp_ratios")
        for values in ([2, 2, 2], [2, 2, 2, 2, 2])
    ),
    *(
        ({name: [2, 2, value, 2]}, f"`{name}` must be positive for every stage, got {[2, 2, value, 2]}.")
        for name in ("depths", "hidden_sizes", "patch_sizes", "strides", "num_attention_heads", "mlp_ratios")
        for value in (0, -1)
    ),
    (
        {"hidden_sizes": [64, 130, 320, 512], "num_attention_heads": [1, 4, 5, 8]},
        "hidden size 130 does not divide by its 4 attention heads; choose `hidden_sizes` [64, 130, 320, 512] as "
        "multiples of `num_attention_heads` [1, 4, 5, 8].",
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


@pytest.mark.parametrize("depths", [[], ()], ids=["list", "tuple"])
def test_no_stages(family: Family, depths: list[int] | tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^`depths` is empty, expected the number of blocks of each stage\.$"):
        family.config(depths=depths)


@pytest.mark.parametrize("blocks", [3, 0, -1])
def test_number_of_stages(family: Family, blocks: int) -> None:
    with pytest.raises(StrictDataclassClassValidationError, match=rf"one for each of the {blocks} stages"):
        family.config(num_encoder_blocks=blocks)


@pytest.mark.parametrize("name", ["swishy", "", "GELU"])
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


@pytest.mark.parametrize("size", [0, -32, 16, 31, [224], [224, 224, 3], [], [16, 224], [224, 16], (224, 0)], ids=str)
def test_image_sizes_that_pvt_cannot_have(size: int | list[int]) -> None:
    message = f"`image_size` must be one side or [height, width], each of 32 pixels or more, got {size}."
    assert_refused(PVT, {"image_size": size}, message)


@pytest.mark.parametrize("size", [32, 33, [32, 64], (97, 131)], ids=str)
def test_image_sizes_that_pvt_can_have(size: int | list[int]) -> None:
    model = hf_pvt.PvtModel(PVT.tiny_config(image_size=size)).eval()
    height, width = (size, size) if isinstance(size, int) else size
    with torch.inference_mode():
        tokens = model(torch.randn(1, 3, height, width)).last_hidden_state
    assert tokens.shape == (1, 1 + (height // 32) * (width // 32), 64)


@cases(
    ({"pool_ratios": [[1]] * 3}, "`pool_ratios` has 3 lists, expected one for each of the 4 stages: [[1], [1], [1]]."),
    ({"pool_ratios": []}, "`pool_ratios` has 0 lists, expected one for each of the 4 stages: []."),
    (
        {"pool_ratios": [[1], [1], [1], []]},
        "`pool_ratios` must hold positive ratios for every stage, got [[1], [1], [1], []].",
    ),
    (
        {"pool_ratios": [[1], [2, 0], [1], [1]]},
        "`pool_ratios` must hold positive ratios for every stage, got [[1], [2, 0], [1], [1]].",
    ),
    (
        {"pool_ratios": [[1], [1], [-4], [1]]},
        "`pool_ratios` must hold positive ratios for every stage, got [[1], [1], [-4], [1]].",
    ),
)
def test_pool_ratios(fields: Fields, message: str) -> None:
    assert_refused(P2T, fields, message)


def wrong_types(*rows: tuple[str, Any]) -> Any:
    return pytest.mark.parametrize(("name", "value"), rows, ids=[f"{name}={value!r}" for name, value in rows])


def assert_wrong_type(family: Family, name: str, value: Any) -> None:
    with pytest.raises(StrictDataclassFieldValidationError) as error:
        family.config(**{name: value})
    message = str(error.value)
    assert f"'{name}'" in message and repr(value) in message and ("expected" in message or "match" in message)


@wrong_types(
    ("depths", 3),
    ("depths", "2222"),
    ("depths", None),
    ("depths", [2, 2, 2, 2.5]),
    ("depths", [2, 2, NAN, 2]),
    ("hidden_sizes", {"stage1": 64}),
    ("num_channels", 3.0),
    ("num_channels", "3"),
    ("num_channels", True),
    ("hidden_act", 3),
    ("hidden_act", None),
    ("drop_path_rate", "0.1"),
    ("drop_path_rate", None),
    ("layer_norm_eps", "1e-6"),
    ("qkv_bias", "yes"),
    ("qkv_bias", 1),
)
def test_wrong_types(family: Family, name: str, value: Any) -> None:
    assert_wrong_type(family, name, value)


@wrong_types(("image_size", 224.0), ("image_size", "224"), ("image_size", None), ("image_size", [224, 224.5]))
def test_wrong_types_of_pvt(name: str, value: Any) -> None:
    assert_wrong_type(PVT, name, value)


@wrong_types(("linear_attention", "yes"), ("linear_attention", 1), ("sr_ratios", 8))
def test_wrong_types_of_pvt_v2(name: str, value: Any) -> None:
    assert_wrong_type(PVT_V2, name, value)


@wrong_types(("pool_ratios", [1, 2, 3, 4]), ("pool_ratios", [[1.5]] * 4), ("pool_ratios", None))
def test_wrong_types_of_p2t(name: str, value: Any) -> None:
    assert_wrong_type(P2T, name, value)


@pytest.mark.parametrize("chosen", [{"out_indices": [7]}, {"out_features": ["stage9"]}], ids=str)
def test_stages_that_do_not_exist(family: Family, chosen: Fields) -> None:
    ((name, (value,)),) = chosen.items()
    with pytest.raises(ValueError, match=rf"{name} must be .*stage1.*stage4.*{value}"):
        family.config(**chosen)


@pytest.mark.parametrize("name", ["pvt_v2_b2", "pvt-v2-b6", "PVT-Tiny", "", "p2t"])
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
    "list": ([[0.0]], NO_TENSOR.format("list")),
    "array": (images(1, 3, 64, 64).numpy(), NO_TENSOR.format("ndarray")),
    "processed": (BatchFeature({"pixel_values": images(1, 3, 64, 64)}), NO_TENSOR.format("BatchFeature")),
    "one channel": (images(1, 1, 64, 64), CHANNELS.format(1)),
    "four channels": (images(1, 4, 64, 64), CHANNELS.format(4)),
    "channels last": (images(1, 64, 64, 3), CHANNELS.format(64)),
    "uint8": (images(1, 3, 64, 64, dtype=torch.uint8), NO_FLOATS.format("torch.uint8")),
    "int64": (images(1, 3, 64, 64, dtype=torch.int64), NO_FLOATS.format("torch.int64")),
    "bool": (images(1, 3, 64, 64, dtype=torch.bool), NO_FLOATS.format("torch.bool")),
    "complex": (images(1, 3, 64, 64, dtype=torch.complex64), NO_FLOATS.format("torch.complex64")),
    "no batch": (images(3, 64, 64), SHAPE.format("(3, 64, 64)")),
    "video": (images(1, 2, 3, 64, 64), SHAPE.format("(1, 2, 3, 64, 64)")),
    "scalar": (images(), SHAPE.format("()")),
    "empty batch": (
        images(0, 3, 64, 64),
        "pixel_values holds no image, got (0, 3, 64, 64); pass a batch of at least one.",
    ),
    "low": (images(1, 3, 31, 64), TOO_SMALL.format("31x64")),
    "narrow": (images(1, 3, 64, 31), TOO_SMALL.format("64x31")),
    "tiny": (images(2, 3, 1, 1), TOO_SMALL.format("1x1")),
    "no pixels": (images(1, 3, 64, 0), TOO_SMALL.format("64x0")),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
@pytest.mark.parametrize("family", (*FAMILIES, PVT_V2_LINEAR), ids=str)
def test_bad_images(family: Family, case: str) -> None:
    """The same sentence from model, classifier and backbone, in training and in inference."""
    pixel_values, message = BAD_IMAGES[case]
    for model_class in family.classes:
        with torch.device("meta"):
            model = model_class(family.tiny_config())
        for training in (True, False):
            with pytest.raises(ValueError) as error, torch.set_grad_enabled(training):
                model.train(training)(pixel_values)
            assert str(error.value) == message


def test_no_images_at_all(family: Family) -> None:
    for model_class in family.classes:
        with torch.device("meta"):
            model = model_class(family.tiny_config())
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'pixel_values'"):
            model()


@pytest.mark.parametrize("ratios", [[16, 4, 2, 1], [8, 4, 4, 1]], ids=str)
def test_the_minimum_follows_the_configuration(ratios: list[int]) -> None:
    """Where keys and values are reduced more than in the papers, small images would leave none."""
    model = hf_pvt.PvtV2Model(PVT_V2.tiny_config(sr_ratios=ratios)).eval()
    with pytest.raises(ValueError, match="images of 63x64 pixels .* the minimum is 64x64"):
        model(images(1, 3, 63, 64))
    assert model(images(1, 3, 64, 64)).last_hidden_state.shape == (1, 64, 2, 2)
