"""How strong the published corruptions are: three pictures, and a table made by other programs.

`golden/corruption_strengths.json` was made, in an environment of its own, by

    pip install imagecorruptions-imaug
    python tests/_corruption_strengths.py make_imagenet_c.py

with the authors' program (github.com/hendrycks/robustness at 8190fe3, ImageNet-C/create_c). It runs
as it is but for names that NumPy, SciPy and scikit-image have dropped since, and for ImageMagick's
motion blur, in whose place stands that of imagecorruptions-imaug, an independent port. The
photographs of frost are those of that package.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TABLE = Path(__file__).parent / "golden" / "corruption_strengths.json"
_SIDE = 224


def photographs() -> list[Image.Image]:
    """Three pictures with the spectrum of photographs, colours, and sharp edges."""
    frequency = np.hypot(np.fft.fftfreq(_SIDE)[:, None], np.fft.rfftfreq(_SIDE))
    frequency[0, 0] = np.inf
    y, x = np.mgrid[:_SIDE, :_SIDE]
    pictures = []
    for seed in range(3):
        random = np.random.Generator(np.random.PCG64(seed))
        noise = [random.random((_SIDE, _SIDE)) - 0.5 for _ in range(4)]
        smooth = np.fft.irfft2(np.fft.rfft2(noise) * frequency**-1.1, s=(_SIDE, _SIDE))
        smooth /= smooth.std((1, 2), keepdims=True)
        levels = 110 + 20 * seed + 40 * np.stack([smooth[0] + 0.4 * one for one in smooth[1:]], -1)
        for number in range(12):
            column, row, radius = random.random(3) * (_SIDE, _SIDE, 40)
            away = np.hypot if number % 2 else np.maximum
            inside = away(np.abs(x - column), np.abs(y - row)) < radius
            levels[inside] = 0.6 * 255 * random.random(3) + 0.4 * levels[inside]
        pictures.append(Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)))
    return pictures


def strength(clean: Image.Image, corrupted: Any) -> tuple[float, float]:
    """PSNR in dB, and by how many levels the mean has moved."""
    before, after = np.asarray(clean, np.float64), np.asarray(corrupted, np.float64)
    psnr = 10 * np.log10(255**2 / np.mean((after - before) ** 2))
    return float(psnr), float(after.mean() - before.mean())


def _published_program(file: Path) -> dict[str, Any]:
    """The functions of the authors' program, by name."""
    import cv2
    import imagecorruptions
    import scipy.ndimage
    import skimage
    from imagecorruptions.corruptions import _motion_blur
    from skimage.filters import gaussian

    class MotionImage:
        def __init__(self, blob: bytes) -> None:
            self.levels = np.asarray(Image.open(BytesIO(blob)), np.float32)

        def motion_blur(self, radius: int, sigma: float, angle: float) -> None:
            self.levels = _motion_blur(self.levels, radius, sigma, angle)

        def make_blob(self) -> bytes:
            blob = BytesIO()
            levels = np.rint(self.levels).clip(0, 255).astype(np.uint8)
            Image.fromarray(levels).save(blob, "PNG")
            return blob.getvalue()

    class Pictures:
        BOX, open = Image.Resampling.BOX, staticmethod(Image.open)

        @staticmethod
        def fromarray(levels: Any, mode: str) -> Image.Image:  # noqa: ARG004
            return Image.fromarray(levels)

    def blurred(picture: Any, sigma: float, multichannel: bool = False, **options: Any) -> Any:
        axis = -1 if multichannel else None
        return gaussian(picture, sigma=sigma, channel_axis=axis, **options)

    def from_bytes(blob: bytes, kind: Any) -> Any:
        return np.frombuffer(blob, kind)

    vars(np)["float_"] = np.float64
    vars(np)["fromstring"] = from_bytes
    text = file.read_text()
    body = text[text.index("def disk(") : text.index("# /////////////// End Distortions")]
    body = re.sub(r"# Tell Python about the C method.*?(?=# modification of)", "", body, flags=re.S)
    frost = Path(imagecorruptions.__file__).parent / "frost"
    names: dict[str, Any] = {
        "np": np,
        "cv2": cv2,
        "sk": skimage,
        "gaussian": blurred,
        "BytesIO": BytesIO,
        "MotionImage": MotionImage,
        "PILImage": Pictures,
        "scizoom": scipy.ndimage.zoom,
        "map_coordinates": scipy.ndimage.map_coordinates,
    }
    exec(body.replace("'./frost", f"'{frost}/frost"), names)
    return names


_DRAWS = {
    **dict.fromkeys(("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"), 4),
    **dict.fromkeys(("motion_blur", "snow", "elastic_transform", "spatter"), 40),
    "glass_blur": 2,
    "frost": 200,
    "fog": 100,
}
_NAMES = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur"),
    *("motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast"),
    *("elastic_transform", "pixelate", "jpeg_compression"),
    *("speckle_noise", "gaussian_blur", "spatter", "saturate"),
)


def _measure(corrupt: Any, severity: int, draws: int) -> tuple[float, float, float]:
    np.random.seed(severity)  # noqa: NPY002  # the authors' program draws from the global state
    found = [
        strength(picture, np.uint8(corrupt(picture, severity)))
        for _ in range(draws)
        for picture in photographs()
    ]
    (psnr, shift), deviation = np.mean(found, axis=0), np.std(found, axis=0)[0]
    return round(psnr, 3), round(deviation, 3), round(shift, 2)


def main(program: Path) -> None:
    """Write the table."""
    functions = _published_program(program)
    packages = ("imagecorruptions-imaug", "numpy", "scipy", "scikit-image", "opencv-python")
    table = {
        "made_by": {
            "program": "github.com/hendrycks/robustness 8190fe329f5f072a06e3a2aea02bb5dda69aed9f "
            "ImageNet-C/create_c/make_imagenet_c.py",
            **{package: version(package) for package in packages},
        },
        "numbers": "for each of severities 1 to 5: mean PSNR in dB over three pictures and several "
        "draws, its deviation among them, and the shift of the mean level",
        "corruptions": {
            name: [_measure(functions[name], s, _DRAWS.get(name, 1)) for s in range(1, 6)]
            for name in _NAMES
        },
    }
    text = json.dumps(table, indent=1)
    TABLE.write_text(re.sub(r"(?<=[\[,])\n {3,}|\n {2,}(?=\])", " ", text) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
