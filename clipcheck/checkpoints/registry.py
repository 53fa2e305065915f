"""The nine released CLIP models: name, file, SHA-256, size and URL."""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clipcheck.errors import UnknownModelError, nearest

BASE_ADDRESS = "https://openaipublic.azureedge.net/clip/models"
"""URL of the released files, each under ``SHA256/FILE`` (from openai/CLIP's clip/clip.py)."""

BASE_VARIABLE = "CLIPCHECK_BASE_URL"
"""Environment variable of a mirror: a URL or a folder with the same layout."""


@dataclass(frozen=True)
class Released:
    """A released model.

    Attributes:
        name: of the model, such as ``ViT-B/32``.
        sha256: the SHA-256 of the file, as 64 lowercase hexadecimal digits.
        size: the length of the file, in bytes.
    """

    name: str
    sha256: str
    size: int

    @property
    def filename(self) -> str:
        """The name of its file, such as ``ViT-B-32.pt``."""
        return f"{self.name.replace('/', '-').replace('@', '-')}.pt"

    @property
    def url(self) -> str:
        """The URL of the file, on the mirror if there is one."""
        return f"{base_address()}/{self.sha256}/{self.filename}"


# Names and digests are from the URLs in openai/CLIP's clip/clip.py, in its order. Sizes in bytes
# are from public manifests that list the same files.
_RELEASED = {
    "RN50": ("afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", 255_827_503),
    "RN101": ("8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599", 291_791_292),
    "RN50x4": ("7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd", 421_854_225),
    "RN50x16": ("52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa", 661_125_706),
    "RN50x64": ("be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c", 1_353_500_174),
    "ViT-B/32": ("40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", 353_976_522),
    "ViT-B/16": ("5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", 350_837_078),
    "ViT-L/14": ("b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", 932_768_134),
    "ViT-L/14@336px": (
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        934_088_680,
    ),
}

RELEASED: dict[str, Released] = {name: Released(name, *told) for name, told in _RELEASED.items()}
"""The released models by name, in the order in which the reference package lists them."""


def base_address() -> str:
    """Return the URL from which released files are fetched, without a slash at the end.

    It is ``CLIPCHECK_BASE_URL``, a URL (``https:``, ``http:``, ``file:``) or a folder, or by
    default `BASE_ADDRESS`.
    """
    named = os.environ.get(BASE_VARIABLE) or BASE_ADDRESS
    if "://" not in named:
        named = Path(named).expanduser().absolute().as_uri()
    return named.rstrip("/")


def available_models() -> list[str]:
    """Return the names of the released models, in the order of the reference package."""
    return list(RELEASED)


def find(name: str) -> Released:
    """Return the released model of that name.

    Raises:
        UnknownModelError: there is none; the message has the nearest name.
    """
    if name in RELEASED:
        return RELEASED[name]
    raise _unknown(name)


def _unknown(name: str) -> UnknownModelError:
    return UnknownModelError(
        f"expected a released model or an existing file, found {name!r}",
        remedy=f"{nearest(name, RELEASED)}; all of them: {', '.join(RELEASED)}.",
    )


def not_found(name: str) -> UnknownModelError:
    """Return the error for a name that is neither a released model nor an existing path.

    A name with a separator or a suffix is taken as a path.
    """
    path = Path(name)
    if not path.suffix and not set(name) & {"/", "\\"}:
        return _unknown(name)
    if path.is_symlink():
        return UnknownModelError(
            f"it is a link to {str(path.readlink())!r}, which does not exist",
            remedy="Restore the target of the link, or give another path.",
            path=name,
        )
    return UnknownModelError("no such file or folder", remedy=_path_hint(path), path=name)


def _path_hint(path: Path) -> str:
    for released in RELEASED.values():
        if path.name == released.filename:
            return f"The name {released.name!r} downloads the released file; a path must exist."
    lower = {name.lower(): name for name in RELEASED}
    near = difflib.get_close_matches(str(path).lower(), lower, n=1, cutoff=0.8)
    if near:
        return f"The nearest released name is {lower[near[0]]!r}."
    if not path.parent.is_dir():
        return f"Check the path: its folder {str(path.parent)!r} does not exist either."
    with suppress(OSError):
        names = [each.name for each in path.parent.iterdir()]
        near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    if near:
        return f"The nearest name there is {near[0]!r}."
    return f"Check the path; relative paths start from {os.getcwd()}."  # noqa: PTH109


def by_sha256(digest: str) -> Released | None:
    """Return the released model whose file has this SHA-256 (64 hexadecimal digits), or None."""
    wanted = digest.lower()
    return next((known for known in RELEASED.values() if known.sha256 == wanted), None)
