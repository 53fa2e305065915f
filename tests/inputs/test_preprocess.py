from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipcheck.inputs.preprocess import picture_of, transform
from clipcheck.inputs.rules import MEAN, STD, ImageRules
from tests.oracles import open_clip, reference_clip
from tests.thorough import parametrize

BYTES_PER_PIXEL = {
    "1": 1,
    "L": 1,
    "LA": 2,
    "La": 2,
    "P": 1,
    "PA": 2,
    "RGB": 3,
    "RGBA": 4,
    "RGBa": 4,
    "RGBX": 4,
    "CMYK": 4,
    "YCbCr": 3,
    "HSV": 3,
    "LAB": 3,
    "I;16": 2,
    "I;16B": 2,
    "I": 4,
    "F": 4,
}
SIZES = [(1, 1), (1, 500), (500, 1), (33, 40), (2000, 3), (32, 32), (16, 11), (97, 64)]

# Pillow advises RGBA for a palette whose colours are partly transparent.
pytestmark = pytest.mark.filterwarnings("ignore:Palette images with Transparency")

modes = st.sampled_from(sorted(BYTES_PER_PIXEL))
sizes = st.tuples(st.integers(1, 80), st.integers(1, 80))


def noise(mode, size, seed=0):
    generator = np.random.default_rng(seed)
    width, height = size
    if mode == "F":
        return Image.fromarray(generator.uniform(-50, 300, (height, width)).astype(np.float32))
    if mode == "1":
        return noise("L", size, seed).convert("1")
    pixels = generator.bytes(width * height * BYTES_PER_PIXEL[mode])
    image = Image.frombytes(mode, size, pixels)
    if mode in ("P", "PA"):
        image.putpalette(generator.bytes(768))
    return image


def outcome(preprocess, image):
    """Return the pixels, or the type of the error."""
    try:
        return preprocess(image)
    except Exception as error:
        return type(error)


def assert_same_outcome(ours, expected):
    if isinstance(expected, torch.Tensor):
        assert isinstance(ours, torch.Tensor), ours
        assert torch.equal(ours, expected)
    else:
        assert ours is expected


@parametrize("size", SIZES, quick=4, ids=str)
@pytest.mark.parametrize("mode", BYTES_PER_PIXEL)
def test_it_equals_the_reference_in_every_mode_and_shape(mode, size):
    image = noise(mode, size)
    expected = outcome(reference_clip().clip._transform(32), image)
    assert_same_outcome(outcome(transform(32), image), expected)


@settings(deadline=None)
@given(modes, sizes, st.integers(0, 2**32 - 1), st.integers(1, 70))
def test_it_equals_the_reference_on_any_noise(mode, size, seed, resolution):
    image = noise(mode, size, seed)
    expected = outcome(reference_clip().clip._transform(resolution), image)
    assert_same_outcome(outcome(transform(resolution), image), expected)


@pytest.mark.parametrize("transparency", [7, bytes(range(256))], ids=["one", "each"])
def test_it_equals_the_reference_for_a_palette_with_transparency(transparency):
    image = noise("P", (45, 33))
    image.info["transparency"] = transparency
    assert torch.equal(transform(32)(image), reference_clip().clip._transform(32)(image))


@pytest.mark.parametrize("resolution", [224, 288, 336])
def test_it_equals_the_reference_and_open_clip_at_released_resolutions(resolution):
    image = noise("RGB", (500, 375))
    ours = transform(resolution)(image)
    open_clips = open_clip().transform.image_transform(resolution, is_train=False)
    assert torch.equal(ours, reference_clip().clip._transform(resolution)(image))
    assert torch.equal(ours, open_clips(image))


@pytest.mark.parametrize("fill", [0, 200])
@pytest.mark.parametrize("size", [(97, 64), (33, 40), (32, 32), (300, 9)])
def test_the_longer_side_is_resized_as_open_clip_does(size, fill):
    image, options = noise("RGB", size), {"resize_mode": "longest", "fill_color": fill}
    ours = transform(32, ImageRules(resize="longest", fill=fill))(image)
    assert torch.equal(
        ours, open_clip().transform.image_transform(32, is_train=False, **options)(image)
    )


@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_the_centre_is_cut_out_of_a_larger_image(resize):
    """As transformers' image processors do with a ``size`` above their ``crop_size``."""
    from transformers import CLIPImageProcessorPil

    size = {"shortest_edge": 36} if resize == "shortest" else {"height": 36, "width": 36}
    crop = {"height": 32, "width": 32}
    processor = CLIPImageProcessorPil(size=size, crop_size=crop)
    image = noise("RGB", (97, 64))
    expected = processor(images=image, return_tensors="pt")["pixel_values"][0]
    ours = transform(32, ImageRules(resize=resize, edge=36))(image)
    assert torch.allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize(
    "image", [noise("La", (9, 9)), Image.new("RGB", (0, 9)), "cat.png", np.zeros((9, 9, 3)), None]
)
def test_it_refuses_what_the_reference_refuses(image):
    expected = outcome(reference_clip().clip._transform(32), image)
    assert isinstance(expected, type)
    assert outcome(transform(32), image) is expected


@pytest.mark.parametrize("mode", sorted(set(BYTES_PER_PIXEL) - {"La"}))
def test_it_gives_float32_channels_first_for_every_mode_but_one(mode):
    pixels = transform(24)(noise(mode, (31, 50)))
    assert pixels.dtype == torch.float32
    assert pixels.shape == (3, 24, 24)
    assert pixels.isfinite().all()


def test_it_normalises_with_the_published_constants():
    # From OpenAI's CLIP repository, clip/clip.py.
    assert MEAN == (0.48145466, 0.4578275, 0.40821073)
    assert STD == (0.26862954, 0.26130258, 0.27577711)
    pixels = transform(3)(Image.new("RGB", (5, 4), (255, 0, 51)))
    expected = [(1 - MEAN[0]) / STD[0], (0 - MEAN[1]) / STD[1], (0.2 - MEAN[2]) / STD[2]]
    assert torch.allclose(pixels, torch.tensor(expected)[:, None, None].expand(3, 3, 3))


def test_it_keeps_the_centre():
    image = Image.new("RGB", (12, 4), "red")
    image.paste("blue", (4, 0, 8, 4))
    assert torch.equal(transform(4)(image), transform(4)(Image.new("RGB", (4, 4), "blue")))


def test_it_can_be_sent_to_the_workers_of_a_data_loader():
    image = noise("RGB", (9, 7))
    sent = pickle.loads(pickle.dumps(transform(4)))
    assert torch.equal(sent(image), transform(4)(image))


def test_importing_it_imports_neither_torch_nor_pillow():
    program = (
        "import sys, clipcheck.inputs.preprocess\n"
        "print({'torch', 'torchvision', 'PIL'} & set(sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stderr


def test_the_picture_of_pixels_is_the_image_that_they_were_made_of():
    image = noise("RGB", (16, 16))
    assert np.array_equal(np.asarray(picture_of(transform(16)(image).numpy())), np.asarray(image))
    beyond = np.full((3, 2, 2), 99, dtype=np.float32)
    beyond[:, 0, 0] = [-99, np.nan, np.inf]
    shown = np.asarray(picture_of(beyond))
    assert shown[1, 1].tolist() == [255, 255, 255]
    assert shown[0, 0].tolist() == [0, 0, 255]
