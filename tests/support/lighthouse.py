"""A picture for the small checkpoint to draw over, and to learn."""

from pathlib import Path

from PIL import Image, ImageDraw

PICTURE_PX = 256
PICTURE_LATENT = PICTURE_PX // 8


def draw_lighthouse() -> Image.Image:
    """Returns a picture in blocks of 8x8 pixels, as the small checkpoint's VAE sees pictures."""
    image = Image.new("RGB", (PICTURE_LATENT, PICTURE_LATENT), "#7fb4e0")
    pen = ImageDraw.Draw(image)
    pen.ellipse((2, 2, 7, 7), "#ffe27a")
    pen.polygon([(18, 6), (31, 1), (31, 10)], "#fff6c8")
    pen.rectangle((0, 24, 31, 31), "#2c5f8f")
    pen.ellipse((6, 22, 26, 34), "#5b6b52")
    pen.polygon([(13, 9), (18, 9), (20, 25), (11, 25)], "#f4f1ea")
    for top in (12, 17, 22):
        pen.rectangle((12, top, 19, top + 1), "#c8402f")
    pen.rectangle((14, 5, 17, 8), "#ffd84a")
    pen.rectangle((13, 3, 18, 4), "#8e2b20")
    return image.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.NEAREST)


def write_captioned(path: Path, image: Image.Image, caption: str) -> None:
    """Writes a picture, and beside it the caption that training reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    path.with_suffix(".txt").write_text(caption, encoding="utf-8")
