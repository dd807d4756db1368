"""A function with dependencies: resizes a generated image with Pillow and looks at it with numpy.

    pip install --target site-packages -r requirements.txt
"""

import numpy
from PIL import Image

SIDE = 512
# A picture of two gradients, made once.
ramp = numpy.linspace(0, 255, SIDE, dtype=numpy.uint8)
PICTURE = Image.fromarray(
    numpy.stack([numpy.tile(ramp, (SIDE, 1)), numpy.tile(ramp[:, None], (1, SIDE)), numpy.full((SIDE, SIDE), 128, numpy.uint8)], axis=-1)
)


def handler(event, context):
    side = int(event.get("side", 64)) if isinstance(event, dict) else 64
    small = numpy.asarray(PICTURE.resize((side, side), Image.Resampling.BILINEAR), dtype=numpy.float64)
    gray = small @ numpy.array([0.299, 0.587, 0.114])
    return {
        "side": side,
        "mean": round(float(gray.mean()), 3),
        "brightest": [int(place) for place in numpy.unravel_index(gray.argmax(), gray.shape)],
    }
