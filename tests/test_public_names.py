from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import time

import pytest

import clipcheck
from clipcheck import errors


def test_the_public_names_are_these() -> None:
    assert sorted(clipcheck.__all__) == [
        "CheckOptions",
        "ClipcheckError",
        "Result",
        "__version__",
        "assert_consistent",
        "assert_same",
        "available_models",
        "check",
        "compare",
        "load",
        "load_both",
        "tokenize",
    ]
    assert dir(clipcheck) == sorted(clipcheck.__all__)


@pytest.mark.parametrize("name", clipcheck.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(clipcheck, name)
    if name != "__version__":
        assert inspect.getdoc(value)


def test_functions_are_not_hidden_by_modules_of_the_same_name() -> None:
    code = "import clipcheck.harness.checking, clipcheck; assert callable(clipcheck.check)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        clipcheck.nonsense  # noqa: B018


@pytest.mark.parametrize("statement", ["import clipcheck", "import clipcheck.cli.app"])
def test_importing_is_quick_and_does_not_import_torch(statement: str) -> None:
    heavy = ["torch", "numpy", "msgspec"]
    code = f"{statement}; import sys; sys.exit(any(each in sys.modules for each in {heavy}))"
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    # 0.1 s on an idle machine; the bound only catches an import of seconds.
    assert time.perf_counter() - started < 2


def test_every_error_is_in_the_drawn_tree_and_under_the_base() -> None:
    classes = {
        name: cls
        for name, cls in vars(errors).items()
        if inspect.isclass(cls) and cls.__module__ == errors.__name__
        if not issubclass(cls, Warning)
    }
    for name, cls in classes.items():
        assert issubclass(cls, errors.ClipcheckError)
        assert issubclass(cls, RuntimeError)
        assert f"{name} " in str(errors.__doc__)


def test_a_message_has_the_file_the_problem_and_the_remedy() -> None:
    error = errors.DamagedError("it was cut off", remedy="Copy it again.", path="a/b.pt")
    assert str(error) == "a/b.pt: it was cut off. Copy it again."
    assert (error.path, error.problem, error.remedy) == (
        "a/b.pt",
        "it was cut off",
        "Copy it again.",
    )
    assert str(errors.UsageError("no", remedy="Yes.")) == "no. Yes."


def test_an_error_comes_back_from_another_process_as_it_was() -> None:
    error = errors.DamagedError("it was cut off", remedy="Copy it again.", path="a/b.pt")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is errors.DamagedError
    assert vars(again) == vars(error)
    assert str(again) == str(error)
