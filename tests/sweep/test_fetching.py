from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from clipcheck.errors import DownloadError, UsageError
from clipcheck.sweep.fetching import brought
from clipcheck.sweep.jobs import Source
from tests.checkpoints.serving import CONTENT, FAKE, Handler, Server, serving


def at(server: Server, name: str = "model.pt", **known: object) -> Source:
    return Source("url", f"{server.address}/{name}", **known)  # type: ignore[arg-type]


def test_a_file_that_is_here_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(CONTENT)
    with brought(Source("path", str(path)), tmp_path / "job") as (found, fetched):
        assert (found, fetched) == (path, 0)
    assert path.exists()


def test_a_file_is_fetched_for_as_long_as_it_is_needed(tmp_path: Path) -> None:
    with serving() as server:
        source = at(server, sha256=FAKE.sha256, size=FAKE.size)
        with brought(source, tmp_path / "job") as (path, fetched):
            assert path.read_bytes() == CONTENT
            assert path == tmp_path / "job" / "model.pt"
            assert fetched == len(CONTENT)
        assert list(tmp_path.iterdir()) == []
        with brought(source, None) as (path, _):
            assert path.read_bytes() == CONTENT
        assert not path.parent.exists()


def test_a_fetched_file_is_deleted_if_judging_fails(tmp_path: Path) -> None:
    with serving() as server, pytest.raises(MemoryError), brought(at(server), tmp_path / "job"):
        raise MemoryError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("known", [{"sha256": "0" * 64}, {"sha256": "0" * 8}])
def test_another_file_than_was_expected_is_not_judged(
    tmp_path: Path, known: dict[str, str]
) -> None:
    with (
        serving() as server,
        pytest.raises(DownloadError, match="SHA-256"),
        brought(at(server, **known), tmp_path / "job"),
    ):
        pytest.fail("it was judged")
    assert list(tmp_path.iterdir()) == []


def test_a_size_that_is_a_guess_refuses_nothing(tmp_path: Path) -> None:
    with (
        serving() as server,
        brought(at(server, size=7, estimated=True), tmp_path / "job") as (path, _),
    ):
        assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["", "..", "a/../..", "%2e%2e%2fetc", "x?y=/../z", ".hidden"])
def test_a_name_in_an_address_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    with serving() as server, brought(at(server, name), tmp_path / "job") as (path, _):
        assert path.parent == tmp_path / "job"


class Hub(types.ModuleType):
    """Stands for huggingface_hub, because the hub cannot be reached here; has one repository."""

    def __init__(self, names: list[str]) -> None:
        super().__init__("huggingface_hub")
        self.asked: list[tuple[str, str]] = []
        self.names = names
        self.errors = types.ModuleType("huggingface_hub.errors")
        self.errors.EntryNotFoundError = type("EntryNotFoundError", (OSError,), {})  # type: ignore[attr-defined]

    def hf_hub_download(self, repository: str, name: str, local_dir: Path) -> str:
        self.asked.append((repository, name))
        if name not in self.names:
            raise self.errors.EntryNotFoundError("404\nno such file")
        (local_dir / name).write_bytes(CONTENT)
        return str(local_dir / name)


def hub(monkeypatch: pytest.MonkeyPatch, *names: str) -> Hub:
    stand_in = Hub(list(names))
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", stand_in.errors)
    return stand_in


def test_the_file_from_the_hub_is_the_one_that_open_clip_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = hub(monkeypatch, "open_clip_pytorch_model.bin")
    with brought(Source("hub", "timm/vit/"), tmp_path / "job") as (path, fetched):
        assert path.name == "open_clip_pytorch_model.bin"
        assert fetched == len(CONTENT)
    assert stand_in.asked == [
        ("timm/vit", "open_clip_model.safetensors"),
        ("timm/vit", "open_clip_pytorch_model.bin"),
    ]
    with brought(Source("hub", "a/b/open_clip_pytorch_model.bin"), tmp_path / "job"):
        assert stand_in.asked[-1] == ("a/b", "open_clip_pytorch_model.bin")


def test_what_the_hub_does_not_have_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(monkeypatch)
    with (
        pytest.raises(DownloadError, match="from the hub: 404"),
        brought(Source("hub", "timm/vit/"), tmp_path / "job"),
    ):
        pytest.fail("it was judged")


def test_a_missing_huggingface_hub_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with (
        pytest.raises(UsageError, match="not installed"),
        brought(Source("hub", "timm/vit/"), tmp_path / "job"),
    ):
        pytest.fail("it was judged")


def test_a_download_that_fails_is_reported(tmp_path: Path) -> None:
    def refuse(handler: Handler) -> None:
        handler.start(404, {"Content-Length": 0})

    with serving() as server:
        server.behave = refuse
        with pytest.raises(DownloadError, match="404"), brought(at(server), tmp_path / "job"):
            pytest.fail("it was judged")
