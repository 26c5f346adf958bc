"""The datasets' labels: count, order, and no stray spaces."""

from hf_pvt.published import labels


def test_ade20k() -> None:
    names = labels.ade20k_id2label()
    assert list(names) == list(range(150))
    assert (names[0], names[7], names[149]) == ("wall", "bed", "flag")
    assert all(name == name.strip() and name for name in names.values())


def test_ade20k_palette() -> None:
    palette = labels.ade20k_palette()
    assert len(palette) == 150
    assert palette[:2] == [(120, 120, 120), (180, 120, 120)]
    assert all(len(colour) == 3 and min(colour) >= 0 and max(colour) <= 255 for colour in palette)


def test_coco() -> None:
    names, category_ids = labels.coco_id2label(), labels.coco_category_ids()
    assert list(names) == list(range(80))
    assert category_ids == sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
    by_category = dict(zip(category_ids, names.values(), strict=True))
    expected = {1: "person", 11: "fire hydrant", 13: "stop sign", 44: "bottle", 72: "tv", 90: "toothbrush"}
    assert expected.items() <= by_category.items()
    assert all(name == name.strip() and name for name in names.values()) and len(set(names.values())) == 80


def test_imagenet_1k() -> None:
    names = labels.imagenet_1k_id2label()
    assert list(names) == list(range(1000))
    assert (names[0], names[1], names[999]) == ("tench", "goldfish", "toilet tissue")
    assert all(name == name.strip() and name for name in names.values())
