import time

import numpy
from PIL import Image

BASE = numpy.arange(64 * 64 * 3, dtype=numpy.uint32).reshape(64, 64, 3)


def handler(event, context):
    n = event["n"]
    pixels = ((BASE + n) % 256).astype(numpy.uint8)
    small = Image.fromarray(pixels).resize((16, 16))
    if "hold" in event:
        # Long enough to be looked at after its work is done.
        time.sleep(event["hold"])
    return {"n": n, "first": int(pixels[0, 0, 0]), "sum": int(pixels.sum()), "size": list(small.size)}
