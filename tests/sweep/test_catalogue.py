from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipcheck.checkpoints import registry, towers
from clipcheck.errors import CatalogueError
from clipcheck.harness.options import CheckOptions
from clipcheck.sweep.catalogue import Entry, read
from clipcheck.sweep.jobs import Source
from clipcheck.sweep.ledger import Ledger
from clipcheck.sweep.plan import Setting, plan
from tests.samples import minute_config, onnx_naming
from tests.sweep.samples import planned

DIGEST = "9c1f" * 16


def toml(folder: Path, text: str) -> Path:
    path = folder / "all.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(path: Path) -> str:
    with pytest.raises(CatalogueError) as caught:
        read(path)
    assert caught.value.remedy
    assert caught.value.path is not None
    return str(caught.value)


def touched(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_paths_start_from_the_folder_of_the_catalogue(tmp_path: Path) -> None:
    path = toml(tmp_path, '[[checkpoint]]\npath = "a/model.pt"')
    (entry,) = read(path)
    assert entry == Entry(
        label="a/model.pt", source=Source("path", str(tmp_path / "a" / "model.pt"))
    )


def test_a_checkpoint_says_how_it_is_run(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        """
        [[checkpoint]]
        path = "model.pt"
        backend = ["jit", "compile:dynamic=auto"]
        device = ["cpu", "cuda:1"]
        dtype = "bfloat16"
        reference = "trained.pt"
        """,
    )
    (entry,) = read(path)
    assert entry.backends == ("jit", "compile:dynamic=auto")
    assert entry.devices == ("cpu", "cuda:1")
    assert entry.dtypes == ("bfloat16",)
    assert entry.reference == str(tmp_path / "trained.pt")


def test_a_checkpoint_has_own_data_which_count_in_its_key(tmp_path: Path) -> None:
    touched(tmp_path, "model.pt", "photos/1.png")
    (tmp_path / "labels.txt").write_text("a dog")
    own = 'images = "photos"\nprompts = "labels.txt"\n'
    path = toml(tmp_path, f'[defaults]\n{own}[[checkpoint]]\npath = "model.pt"')
    (entry,) = read(path)
    assert entry.images == str(tmp_path / "photos")
    assert entry.prompts == str(tmp_path / "labels.txt")
    with Ledger(tmp_path / "ledger") as ledger:
        keys = [planned([entry], ledger).units[0].key for _ in range(2)]
        (tmp_path / "labels.txt").write_text("a cat")
        keys.append(planned([entry], ledger).units[0].key)
    assert keys[0] == keys[1] != keys[2]
    path = toml(tmp_path, '[[checkpoint]]\npath = "model.pt"\nimages = "none"')
    assert "none: --images: expected a folder of images, found nothing" in refused(path)


def test_each_model_of_a_file_is_judged_for_itself(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"")
    text = '[[checkpoint]]\npath = "a.ckpt"\n'
    entries = read(toml(tmp_path, f'{text}{text}key = "model"\n{text}key = "ema"\n'))
    assert [(each.label, each.key) for each in entries] == [
        ("a.ckpt", None), ("a.ckpt (model)", "model"), ("a.ckpt (ema)", "ema")
    ]  # fmt: skip
    with Ledger(tmp_path / "ledger") as ledger:
        found = planned(entries, ledger)
    assert len({unit.key for unit in found.units}) == 3
    assert sorted(str(job.options.key) for job in found.jobs) == ["None", "ema", "model"]
    assert len({job.task for job in found.jobs}) == 3
    with pytest.raises(CatalogueError, match=r"expected a\.ckpt \(ema\) once"):
        read(toml(tmp_path, f'{text}key = "ema"\n' * 2))


def test_inputs_and_outputs_of_a_program_have_the_meanings_of_its_entry(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"")
    text = '[[checkpoint]]\npath = "a.pt"\n'
    keys = []
    for told in ("", 'map = "x=pixels"', 'map = ["x=tokens", "y=pixels"]'):
        with Ledger(tmp_path / "ledger") as ledger:
            found = planned(read(toml(tmp_path, text + told)), ledger)
        keys += [unit.key for unit in found.units]
    assert found.jobs[0].options.names == {"x": "tokens", "y": "pixels"}
    assert len(set(keys)) == 3
    with pytest.raises(CatalogueError, match="expected NAME=MEANING"):
        read(toml(tmp_path, text + 'map = "x=pixel"'))


def test_a_checkpoint_says_its_architecture_by_name_or_by_a_file_beside_the_catalogue(
    tmp_path: Path,
) -> None:
    config = minute_config(tmp_path)
    path = toml(
        tmp_path,
        """
        [defaults]
        architecture = "minute.json"
        [[checkpoint]]
        path = "a.pt"
        [[checkpoint]]
        path = "b.pt"
        architecture = "open_clip:ViT-B-32"
        """,
    )
    assert [entry.architecture for entry in read(path)] == [str(config), "open_clip:ViT-B-32"]


def test_an_unknown_architecture_is_refused_with_the_nearest(tmp_path: Path) -> None:
    message = refused(toml(tmp_path, '[[checkpoint]]\npath = "a.pt"\narchitecture = "ViT-B-32"'))
    assert "checkpoint 1: architecture: expected a released name" in message
    assert "The nearest name is 'ViT-B/32'." in message


def test_defaults_apply_to_entries_without_their_own_value(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        """
        [defaults]
        device = "cpu"
        backend = "trace"
        [[checkpoint]]
        path = "a.pt"
        [[checkpoint]]
        path = "b.pt"
        backend = ["jit"]
        """,
    )
    one, other = read(path)
    assert (one.backends, one.devices) == (("trace",), ("cpu",))
    assert (other.backends, other.devices) == (("jit",), ("cpu",))


def test_a_pattern_stands_for_all_that_it_matches_by_name(tmp_path: Path) -> None:
    touched(tmp_path, "b.pt", "a.pt", "c.txt", "deep/d.pt")
    entries = read(toml(tmp_path, '[[checkpoint]]\npath = "*.pt"'))
    assert [entry.label for entry in entries] == ["a.pt", "b.pt"]
    entries = read(toml(tmp_path, '[[checkpoint]]\npath = "**/*.pt"'))
    assert [entry.label for entry in entries] == ["a.pt", "b.pt", "deep/d.pt"]


def test_a_url_may_say_its_hash_or_how_it_begins_and_its_size(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        f"""
        [[checkpoint]]
        url = "https://example.org/a.pt"
        sha256 = "{DIGEST.upper()}"
        size = "350 MB"
        [[checkpoint]]
        url = "https://example.org/b.pt"
        sha256 = "9c1f9c1f"
        size = 12
        """,
    )
    one, other = read(path)
    assert one.source == Source("url", "https://example.org/a.pt", DIGEST, 350_000_000)
    assert other.source == Source("url", "https://example.org/b.pt", "9c1f9c1f", 12)


def test_a_released_name_is_fetched_where_it_is_not_in_the_cache(tmp_path: Path) -> None:
    path = toml(tmp_path, '[[checkpoint]]\nname = "ViT-B/32"')
    released = registry.find("ViT-B/32")
    (entry,) = read(path, str(tmp_path))
    assert entry.source == Source("url", released.url, released.sha256, released.size)
    assert entry.dimensions is not None
    with (tmp_path / released.filename).open("wb") as file:
        os.truncate(file.fileno(), released.size)
    (entry,) = read(path, str(tmp_path))
    assert entry.source == Source("path", str(tmp_path / released.filename))


def test_a_folder_has_all_checkpoints_in_it_and_below(tmp_path: Path) -> None:
    touched(
        tmp_path,
        "b.pt",
        "a.safetensors",
        "README.md",
        ".hidden.pt",
        "deep/c.ONNX",
        "whole/config.json",
        "whole/model.safetensors",
        "other/open_clip_config.json",
        "other/open_clip_model.safetensors",
    )
    found = [Path(entry.source.place).relative_to(tmp_path) for entry in read(tmp_path)]
    assert [str(path) for path in found] == [
        "a.safetensors",
        "b.pt",
        "deep/c.ONNX",
        "other",
        "whole",
    ]


def test_weights_of_openvino_and_other_xml_in_a_folder_are_no_checkpoints(tmp_path: Path) -> None:
    touched(tmp_path, "a.xml", "a.bin", "b.bin", "c.pte", "results.xml", "lonely.xml")
    for name in ("a.xml", "lonely.xml"):
        (tmp_path / name).write_text('<?xml version="1.0"?><net name="m">')
    found = [Path(entry.source.place).name for entry in read(tmp_path)]
    assert found == ["a.xml", "b.bin", "c.pte", "lonely.xml"]


@pytest.mark.parametrize("config", ["config.json", "open_clip_config.json"])
def test_a_folder_that_is_a_model_is_one_checkpoint(tmp_path: Path, config: str) -> None:
    touched(tmp_path, config, "model-1-of-2.safetensors", "model-2-of-2.safetensors")
    assert [entry.source for entry in read(tmp_path)] == [Source("path", str(tmp_path))]


def test_a_program_for_each_tower_in_a_folder_is_one_checkpoint(tmp_path: Path) -> None:
    """A folder with a third program is no pair."""
    touched(tmp_path, "a/visual.onnx", "a/textual.onnx", "a/model.pt", "b/onnx/text_model.onnx")
    touched(tmp_path, "b/onnx/vision_model.onnx", "c/image.onnx", "c/text.onnx", "c/x.onnx")
    found = [str(Path(each.source.place).relative_to(tmp_path)) for each in read(tmp_path)]
    assert found == ["a", "a/model.pt", "b", "c/image.onnx", "c/text.onnx", "c/x.onnx"]
    path = toml(tmp_path, '[[checkpoint]]\npath = "image=i.onnx,text=t.onnx"')
    (entry,) = read(path)
    assert towers.split(entry.source.place) == (tmp_path / "i.onnx", tmp_path / "t.onnx")


def test_the_reference_of_the_command_is_for_entries_without_their_own(tmp_path: Path) -> None:
    touched(tmp_path, "a.pt", "b.pt", "own.pt", "all.pt")
    path = toml(
        tmp_path,
        '[[checkpoint]]\npath = "a.pt"\n[[checkpoint]]\npath = "b.pt"\nreference = "own.pt"',
    )
    options = CheckOptions(reference=str(tmp_path / "all.pt"))
    setting = Setting(options=options, scratch=None, default_device="cpu", threads=1)
    with Ledger(tmp_path / "ledger") as ledger:
        units = plan(read(path), ledger, setting).units
    found = {each.entry.label: Path(str(each.options.reference)).name for each in units}
    assert found == {"a.pt": "all.pt", "b.pt": "own.pt"}


def test_what_a_program_names_is_no_checkpoint_of_its_own(tmp_path: Path) -> None:
    onnx_naming(tmp_path / "m.onnx", "weights.bin")
    touched(tmp_path, "other.bin")
    assert [Path(entry.source.place).name for entry in read(tmp_path)] == ["m.onnx", "other.bin"]


def test_a_folder_that_leads_back_to_itself_is_searched_once(tmp_path: Path) -> None:
    touched(tmp_path, "deep/a.pt")
    (tmp_path / "deep" / "back").symlink_to(tmp_path)
    assert len(read(tmp_path)) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[checkpoint]]\npth = 'a.pt'", "checkpoint 1: expected one of path, url, name"),
        ("[[checkpoint]]\npath = 'a'\n[[checkpoint]]\n", "checkpoint 2: expected one of path"),
        ("[[checkpoint]]\npath = 'a.pt'\nurl = 'https://a.org/b'", "found path and url"),
        ("[[checkpoint]]\npath = 3", "expected path to be a text, found 3"),
        ("[[checkpoint]]\npath = ' '", "expected path to be a text"),
        ("[[checkpoint]]\npath = '*.pt'", "files that '*.pt' matches, found none"),
        ("[[checkpoint]]\npath = 'a.pt'\nsha256 = '9c1f9c1f'", "found them beside path"),
        ("[[checkpoint]]\nurl = 'ftp://a.org/b'", "a url of http or https"),
        ("[[checkpoint]]\nurl = 'https://[b'", "a url of http or https"),
        ("[[checkpoint]]\nurl = 'https://a.org/b'\nsha256 = '9c1'", "64 hexadecimal digits"),
        ("[[checkpoint]]\nurl = 'https://a.org/b'\nsize = '3 apples'", "a size such as"),
        ("[[checkpoint]]\nurl = 'https://a.org/b'\nsize = -1", "a size such as"),
        ("[[checkpoint]]\nurl = 'https://a.org/b'\nsize = true", "a size such as"),
        ("[[checkpoint]]\nname = 'ViT-B/33'", "found 'ViT-B/33'"),
        ("[[checkpoint]]\npath = 'a.pt'\nbackend = 'jitt'", "expected a backend, found 'jitt'"),
        ("[[checkpoint]]\npath = 'a.pt'\nbackend = ['all', 'jit']", "expected all alone"),
        ("[[checkpoint]]\npath = 'a.pt'\nbackend = ['jit', 'jit']", "expected each backend once"),
        ("[[checkpoint]]\npath = 'a.pt'\nbackend = [1]", "a text or a list of them"),
        ("[[checkpoint]]\npath = 'a.pt'\ndtype = 'int8'", "expected a dtype, found 'int8'"),
        ("[[checkpoint]]\npath = 'a.pt'\ndevice = 'tpu'", "expected a device, found 'tpu'"),
        (
            "[[checkpoint]]\npath = 'a.pt'\n[[checkpoint]]\npath = 'a.pt'",
            "checkpoint 2: expected a",
        ),
        ("[[checkpoint]]\npath = 'a.pt'\n[[checkpoint]]\npath = './a.pt'", "found it twice"),
        ("[defaults]\npath = 'a.pt'\n[[checkpoint]]", "found 'path'"),
        ("defaults = 3", "[defaults] to be a table"),
        ("checkpoint = 3", "expected [[checkpoint]]"),
        ("checkpoint = [3]", "checkpoint 1: expected a table, found 3"),
        ("[checkpoints]", "The nearest name is 'checkpoint'"),
        ("", "expected a checkpoint, found none"),
        ("[[checkpoint]", "it is no TOML"),
    ],
)
def test_what_is_wrong_in_toml_is_reported_with_its_place(
    tmp_path: Path, text: str, told: str
) -> None:
    assert told in refused(toml(tmp_path, text))


def test_what_is_no_catalogue_is_refused(tmp_path: Path) -> None:
    touched(tmp_path, "empty/README.md", "model.pt")
    assert "expected a checkpoint in this folder" in refused(tmp_path / "empty")
    assert "ends in .toml" in refused(tmp_path / "model.pt")
    assert "No such file" in refused(tmp_path / "nowhere.toml")
    (tmp_path / "all.toml").write_bytes(b"path = '\xff'")
    assert "not in UTF-8, at byte 8" in refused(tmp_path / "all.toml")
    with (tmp_path / "all.toml").open("wb") as file:
        os.truncate(file.fileno(), (16 << 20) + 1)
    assert "more than 16,777,216 bytes" in refused(tmp_path / "all.toml")


@given(data=st.binary(max_size=200))
def test_whatever_a_catalogue_holds_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("catalogue") / "all.toml"
    path.write_bytes(data)
    with contextlib.suppress(CatalogueError):
        assert read(path)
