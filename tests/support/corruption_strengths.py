"""How strong the published corruptions are: three pictures, and what other programs make of them.

The table `golden/corruption_strengths.json` and the arrays `golden/corruption_layers.npz` were
made, in an environment of its own, with ImageMagick 6.9 (libmagickwand-6.q16-6), by

    pip install imagecorruptions-imaug wand
    python -m tests.support.corruption_strengths make_imagenet_c.py

with the authors' program (github.com/hendrycks/robustness at 8190fe3, ImageNet-C/create_c). It runs
as it is but for names that NumPy, SciPy, scikit-image and Wand have dropped or changed since. The
photographs of frost are those of imagecorruptions-imaug.
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

from tests.support.paths import GOLDEN

TABLE = GOLDEN / "corruption_strengths.json"
LAYERS = TABLE.with_name("corruption_layers.npz")
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
    from skimage.filters import gaussian
    from wand.image import Image as MotionImage

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
    np.random.seed(severity)  # the authors' program draws from the global state  # noqa: NPY002
    found = [
        strength(picture, np.uint8(corrupt(picture, severity)))
        for _ in range(draws)
        for picture in photographs()
    ]
    (psnr, shift), deviation = np.mean(found, axis=0), np.std(found, axis=0)[0]
    return round(psnr, 3), round(deviation, 3), round(shift, 2)


MOTIONS = ((10, 3.0, 0.0), (10, 3.0, -31.4), (15, 8.0, 44.9), (12, 4.0, -90.0), (20, 15.0, 17.3))
SPATTERS = ((4.0, 0.69), (3.0, 0.68), (2.0, 0.68))  # sigma and threshold of severities 1 to 3


def _layers() -> dict[str, Any]:
    """What ImageMagick and OpenCV make of small arrays: motion blur, and the steps of spatter."""
    import cv2
    from skimage.filters import gaussian
    from wand.image import Image as MotionImage

    random = np.random.Generator(np.random.PCG64(0))
    colour = np.asarray(photographs()[0])[60:108, 100:148]
    grey = np.where(random.random((48, 48)) < 0.1, random.integers(128, 256, (48, 48)), 0)
    found: dict[str, Any] = {"colour": colour, "grey": grey.astype(np.uint8)}
    for name in ("colour", "grey"):
        blob = BytesIO()
        Image.fromarray(found[name]).save(blob, "PNG")
        for number, (radius, sigma, degrees) in enumerate(MOTIONS):
            with MotionImage(blob=blob.getvalue()) as moved:
                moved.motion_blur(radius, sigma, degrees)
                made = np.frombuffer(moved.make_blob(), np.uint8)
            levels = cv2.imdecode(made, cv2.IMREAD_UNCHANGED)
            found[f"{name}_moved{number}"] = levels[..., ::-1] if levels.ndim == 3 else levels
    # Steps, slopes in all directions, and noise, whose weak edges hang on strong ones.
    y, x = np.mgrid[:96, :96]
    waves = 90 + 80 * np.sin(x / 5 + y / 11) * np.cos(y / 7) + 20 * random.standard_normal((96, 96))
    waves[20:50, 30:60] += 60
    found["waves"] = np.clip(waves, 0, 255).astype(np.uint8)
    found["waves_edges"] = cv2.Canny(found["waves"], 50, 150) > 0
    for number, (sigma, threshold) in enumerate(SPATTERS):
        noise = random.normal(0.65, 0.3, (_SIDE, _SIDE))
        liquid = gaussian(noise, sigma=sigma)[:96, :96].astype(np.float32)
        depth = (np.where(liquid < threshold, 0, liquid) * 255).astype(np.uint8)
        edges = cv2.Canny(depth, 50, 150)
        distance = np.minimum(cv2.distanceTransform(255 - edges, cv2.DIST_L2, 5), 20)
        relief = cv2.equalizeHist(cv2.blur(distance, (3, 3)).astype(np.uint8))
        light = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
        lit = cv2.blur(cv2.filter2D(relief, cv2.CV_8U, light), (3, 3))
        found |= {
            f"liquid{number}": liquid,
            f"edges{number}": edges > 0,
            f"distance{number}": distance.astype(np.float32),
            f"drops{number}": depth.astype(np.uint16) * lit,
        }
    return found


def main(program: Path) -> None:
    """Write the table and the arrays."""
    from wand.version import MAGICK_VERSION

    functions = _published_program(program)
    packages = ("imagecorruptions-imaug", "numpy", "scipy", "scikit-image", "opencv-python", "wand")
    np.savez_compressed(LAYERS, **_layers())
    table = {
        "made_by": {
            "program": "github.com/hendrycks/robustness 8190fe329f5f072a06e3a2aea02bb5dda69aed9f "
            "ImageNet-C/create_c/make_imagenet_c.py",
            **{package: version(package) for package in packages},
            "imagemagick": MAGICK_VERSION.split()[1],
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
