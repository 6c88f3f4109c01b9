"""Credentials in URLs: which are found, what is left of them, and where they are refused."""

import pytest

from btm_core.config import load_experiment
from btm_core.errors import BTMError, CheckpointError, ConfigError
from btm_core.merging import merge
from btm_core.urls import refuse_credentials, split_credentials, without_credentials
from tasks.settings import runtime_settings

SECRET = "pl4nt3d"
CARRYING = [
    f"s3://key:{SECRET}@bucket/folder",
    f"s3://key:{SECRET}/with/slash@bucket/folder",
    f"s3://key:{SECRET}@at@bucket",
    f"https://user:{SECRET}@host:9000/x",
    f"https://{SECRET}@host/x",
    f"filecache::s3://key:{SECRET}@bucket/x",
    f"postgresql+psycopg2://user:{SECRET}@db/mlflow",
    f"https://bucket.s3.example/x?X-Amz-Algorithm=AWS4&X-Amz-Signature={SECRET}&X-Amz-Expires=3",
    f"https://storage.example/x?sig={SECRET}",
    f"https://host/x?access_token={SECRET}#top",
]
PLAIN = [
    *("s3://bucket/folder", "s3://bucket/a@b/c:d@e", "/data/a@b", "C:/x@y", "memory://x", "file:///data/birds@home"),
    *("https://host:5000/a@b", "http://127.0.0.1:4200/api", "sqlite:////home/me@here/mlflow.db", "a b.txt"),
    *("https://host/x?version=3&signed=no", "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/mine/x"),
]


@pytest.mark.parametrize("url", CARRYING)
def test_credentials_are_found_and_masked(url: str) -> None:
    masked = without_credentials(f"{url} cannot be read: '{url}'")
    assert SECRET not in masked and "***" in masked and "cannot be read" in masked
    with pytest.raises(ValueError, match="carries credentials") as error:
        refuse_credentials(url)
    assert SECRET not in str(error.value)
    assert without_credentials(masked) == masked


@pytest.mark.parametrize("url", PLAIN)
def test_what_carries_none_is_left_alone(url: str) -> None:
    assert without_credentials(url) == url == refuse_credentials(url)


@pytest.mark.parametrize("url", CARRYING)
@pytest.mark.parametrize(
    "key", ["data.root", "data.train", "data.class_names", "pretrain.checkpoint", "pretrain.initial", "sampling.lists"]
)
def test_a_configuration_refuses_them(key: str, url: str) -> None:
    value = f'["{url}"]' if key == "sampling.lists" else f'"{url}"'
    with pytest.raises(ConfigError, match=rf"{key}.*carries credentials") as error:
        load_experiment("digits-lt", [f"{key}={value}"])
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "override", ["seed={}", "data.input.size={}", "no.such.key={}", "{}", "data={}", "data.root: {}"]
)
def test_an_error_about_something_else_does_not_show_them(override: str) -> None:
    with pytest.raises(BTMError) as error:
        load_experiment("digits-lt", [override.format(CARRYING[0])])
    assert SECRET not in without_credentials(str(error.value))  # as the command line prints it


def test_the_store_and_merging_refuse_them() -> None:
    for url in CARRYING:
        with pytest.raises(ConfigError, match="carries credentials") as error:
            runtime_settings({"store": url})
        assert SECRET not in str(error.value)
        for inputs, output in (([url], "out"), (["a"], url)):
            with pytest.raises(CheckpointError, match="carries credentials") as refused:
                merge(inputs, output)
            assert SECRET not in str(refused.value)


def test_trackings_user_and_password_are_taken_out() -> None:
    assert split_credentials("https://me:p%40ss%2Fword@host:5000/x") == ("https://host:5000/x", "me", "p@ss/word")
    assert split_credentials("http://host:5000") == ("http://host:5000", None, None)
    assert split_credentials("http://token@host") == ("http://host", "token", None)
    for other in ("sqlite:///a@b.db", "postgresql://u:p@h/d", "databricks"):
        assert split_credentials(other) == (other, None, None)
