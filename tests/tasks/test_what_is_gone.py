"""A run whose parts were deleted, or a file that changed under it, says which and what to do."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from promotable import finish_run

from btm_core.errors import BTMError, CheckpointError, ConfigError
from btm_core.storage import Store
from tasks.finished import FinishedRun
from tasks.pretrain import fetch_checked
from tasks.serving.facts import facts_of, sample_images
from tasks.serving.package import package_run


@pytest.mark.parametrize(
    ("stage", "use", "message"),
    [
        ("post_train", lambda run, to: run.model, " of run r is no longer whole in {url}; the same run again makes it"),
        (
            "evaluate",
            lambda run, to: run.evidence,
            " of run r is no longer whole in {url}; the same run again makes it",
        ),
        (
            "post_train",
            lambda run, to: package_run(run.store, "r", to),
            " of run r is no longer in the store {url}; run it again",
        ),
        (
            "data",
            lambda run, to: run.evidence,
            "the data of evaluate/r-454349e422f05297 are no longer in the store {url}; ",
        ),
        (
            "data",
            lambda run, to: sample_images(run.store, facts_of(run.store, "r")),
            "the data of run r, data/forged-",
        ),
    ],
)
def test_what_a_run_made(stage: str, use: Callable[[FinishedRun, Path], Any], message: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    finish_run(store, tmp_path, "r", [0.9] * 8)
    run = FinishedRun.find(Store(store.url), "r")
    store.remove("artifacts", stage)
    with pytest.raises(BTMError) as error:
        use(run, tmp_path / "package")
    assert message.format(url=store.url) in str(error.value)
    assert f"{stage}/forged-" in str(error.value) or "evaluate/r-" in str(error.value)


def test_a_checkpoint_that_was_changed_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"new")
    (tmp_path / "scratch").mkdir()
    work: Any = SimpleNamespace(scratch=tmp_path / "scratch")
    with pytest.raises(CheckpointError, match=r"a\.safetensors changed while this run was under way; run again"):
        fetch_checked(work, str(tmp_path / "a.safetensors"), "0" * 64)


def test_ray_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.engines import ray_cluster
    from tasks.settings import RuntimeSettings

    with pytest.raises(ConfigError) as error:
        ray_cluster._check_listening("127.0.0.1:9")
    assert str(error.value).startswith("the Ray cluster at 127.0.0.1:9 cannot be reached: ")
    assert "; is it up? Correct RAY_ADDRESS or BTM_RAY_ADDRESS, or unset them to have one started" in str(error.value)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r'engine ray needs Ray: pip install "btm\[ray\]"'):
        ray_cluster._connected(RuntimeSettings())
