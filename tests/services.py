"""A small torch model, the same in numpy, and as an HTTP service."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Patches(nn.Module):
    """Image tower: patches, a normalisation, a mean and a projection."""

    image_size = 16

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 8, 8)
        self.norm = nn.LayerNorm(32)
        self.project = nn.Linear(32, 24)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.conv(image).flatten(2).transpose(1, 2)
        return self.project(self.norm(patches).mean(dim=1))


class Encoder(nn.Module):
    """A two-tower model of a user's own."""

    context_length = 8
    vocab_size = 100

    def __init__(self) -> None:
        super().__init__()
        self.visual = Patches()
        self.embed = nn.Embedding(100, 24)
        self.text_norm = nn.LayerNorm(24)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_image(self, image: Tensor) -> Tensor:
        found: Tensor = self.visual(image)
        return found

    def encode_text(self, text: Tensor) -> Tensor:
        found: Tensor = self.text_norm(self.embed(text).sum(dim=1))
        return found


class NumpyService:
    """The same model, written again in numpy.

    Args:
        epsilon: of its normalisations; another one is a fault.
    """

    def __init__(self, encoder: Encoder, epsilon: float = 1e-5) -> None:
        self._weights = {k: v.detach().numpy() for k, v in encoder.state_dict().items()}
        self._epsilon = epsilon

    def encode_image(self, pixels: np.ndarray) -> np.ndarray:
        w = self._weights
        n = len(pixels)
        cut = pixels.reshape(n, 3, 2, 8, 2, 8).transpose(0, 2, 4, 1, 3, 5).reshape(n, 4, -1)
        kernel = w["visual.conv.weight"].reshape(32, -1)
        patches = cut @ kernel.T + w["visual.conv.bias"]
        mean = self._normalised(patches, "visual.norm").mean(axis=1)
        return mean @ w["visual.project.weight"].T + w["visual.project.bias"]

    def encode_text(self, ids: np.ndarray) -> np.ndarray:
        return self._normalised(self._weights["embed.weight"][ids].sum(axis=1), "text_norm")

    def _normalised(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + self._epsilon)
        return centred / spread * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


@contextmanager
def served(service: NumpyService) -> Iterator[tuple[Callable[..., Any], Callable[..., Any]]]:
    """Serve the model over HTTP, and yield functions that ask it: arrays in the format of numpy."""
    with listening(service) as address:
        yield asking(f"{address}/encode_image"), asking(f"{address}/encode_text")


def asking(url: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that posts an array and returns the array of the answer."""
    import requests

    session = requests.Session()

    def ask(rows: np.ndarray) -> np.ndarray:
        sent = io.BytesIO()
        np.save(sent, rows)
        answer = session.post(url, data=sent.getvalue(), timeout=10)
        answer.raise_for_status()
        found: np.ndarray = np.load(io.BytesIO(answer.content))
        return found

    return ask


@contextmanager
def listening(service: NumpyService) -> Iterator[str]:
    """Serve the model over HTTP on this machine, and yield the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # Else headers and body are sent apart, and each answer waits for an ACK.

        def do_POST(self) -> None:
            rows = np.load(io.BytesIO(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = io.BytesIO()
            np.save(answer, getattr(service, self.path.strip("/"))(rows))
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer.getvalue())))
            self.end_headers()
            self.wfile.write(answer.getvalue())

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
