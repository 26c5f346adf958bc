"""Photographs that may be redistributed: the examples of the cards, and what a conversion verifies itself with."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent.parent / "model_cards" / "images"


@dataclass(frozen=True)
class Photograph:
    """One file of model_cards/images, RGB, and whom to thank for it."""

    name: str
    title: str
    credit: str

    @property
    def path(self) -> Path:
        return FOLDER / self.name

    def open(self) -> Image.Image:
        with Image.open(self.path) as image:
            return image.convert("RGB")


CAT = Photograph("cat.jpg", "Cat", "Stefan van der Walt, CC0 (scikit-image)")
COFFEE = Photograph("coffee.jpg", "Coffee", "Rachel Michetti, CC0, courtesy of Pikolo Espresso Bar (scikit-image)")
CHINA = Photograph("china.jpg", "Summer Palace", "danielbuechele, CC BY 2.0 (scikit-learn)")
ROCKET = Photograph("rocket.jpg", "Rocket", "SpaceX, public domain (scikit-image)")

PHOTOGRAPHS = {
    "classification": (CAT, COFFEE),
    "segmentation": (CHINA, ROCKET),
    "detection": (CAT, COFFEE),
    "instance-segmentation": (CAT, COFFEE),
    "features": (CAT, COFFEE),
}
