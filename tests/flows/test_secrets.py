"""Secrets reach the servers and nothing else: they are planted, and all that runs write is searched for them."""

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from conftest import FAST, Btm

from flows.stack.lifecycle import State
from flows.stack.services import Secrets, check_mlflow_auth, find_weed, write_private

# With characters that look different in a URL, in base64 and in a shell.
S3, MLFLOW, PREFECT = "pl4nted+S3/secret=~40", "pl4nted+MLflow/pass=~41", "pl4nted+Prefect/auth=~42"
WRONG = "pl4nted+wrong/one=~43"
KEPT = {".btm/stack/stack.json", ".btm/stack/env", ".btm/stack/s3/s3.json"}
"""The only files that may hold secrets."""


def forms(secret: str) -> set[bytes]:
    """Return a secret as it is, in URLs, and in base64, whatever stands before it."""
    found = {
        secret.encode(),
        quote(secret, safe="").encode(),
        quote_plus(secret).encode(),
        json.dumps(secret)[1:-1].encode(),
    }
    for before in range(3):
        text = base64.b64encode(b"x" * before + secret.encode())
        found.add(text[4 if before else 0 : -4])  # what is at the edges depends on what is beside
    return found


ALL = {form: secret for secret in (S3, MLFLOW, PREFECT, WRONG) for form in forms(secret)}


def told(data: bytes) -> set[str]:
    """Return the secrets in some bytes."""
    return {secret for form, secret in ALL.items() if form in data}


@pytest.fixture(scope="module")
def folder(btm: Btm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a stack whose secrets are ours, with a worker."""
    try:
        find_weed()
        check_mlflow_auth()
    except Exception as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("secrets")
    planted = Secrets(s3_secret=S3, prefect=f"btm:{PREFECT}", mlflow=MLFLOW)
    write_private(folder / ".btm/stack/stack.json", State(secrets=planted).model_dump_json())
    (folder / "tmp").mkdir()
    try:
        done = btm("up", "--workers", "1", cwd=folder, TMPDIR=str(folder / "tmp"))
        assert done.returncode == 0, done.stderr
        assert not told((done.stdout + done.stderr).encode())
        yield folder
    finally:
        btm("down", cwd=folder)


@pytest.fixture(scope="module")
def environment(btm: Btm, folder: Path) -> dict[str, str]:
    """What reaches the stack; MLflow's password comes in the URI."""
    values: dict[str, str] = json.loads(btm("status", "--json", cwd=folder).stdout)["environment"]
    assert (values["AWS_SECRET_ACCESS_KEY"], values["MLFLOW_TRACKING_PASSWORD"]) == (S3, MLFLOW)
    values["TMPDIR"] = str(folder / "tmp")
    return values


def in_uri(environment: dict[str, str], password: str = MLFLOW) -> dict[str, str]:
    """Return the environment with MLflow's password in the URI alone."""
    uri = environment["MLFLOW_TRACKING_URI"].replace("://", f"://btm:{quote(password, safe='')}@")
    rest = {key: value for key, value in environment.items() if not key.startswith("MLFLOW_TRACKING_")}
    return rest | {"MLFLOW_TRACKING_URI": uri}


def search(folder: Path, environment: dict[str, str], done: "subprocess.CompletedProcess[str]") -> None:
    """Search all that there is: output, files of every kind, and the objects of the store as they were written."""
    import s3fs

    assert not told((done.stdout + done.stderr).encode()), done.stderr
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    found = {str(path.relative_to(folder)) for path in files if told(path.read_bytes())}
    assert found == KEPT
    assert all((folder / name).stat().st_mode & 0o777 == 0o600 for name in found)
    fs = s3fs.S3FileSystem(
        key=environment["AWS_ACCESS_KEY_ID"],
        secret=S3,
        endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
        skip_instance_cache=True,
    )
    objects = {path: fs.cat_file(path) for path in fs.find("btm")}
    assert not {path for path, data in objects.items() if told(data)}
    pickles = [str(path) for path in files if path.read_bytes()[:2] in (b"\x80\x04", b"\x80\x05")]
    pickles += [path for path, data in objects.items() if data[:2] in (b"\x80\x04", b"\x80\x05")]
    pickles += [
        str(path) for path in files if "prefect/storage" in str(path) and b"gASV" in path.read_bytes()
    ]  # in base64
    assert not pickles  # Prefect's results, MLflow's models


@pytest.mark.slow
def test_a_whole_run_tells_no_secret(btm: Btm, folder: Path, environment: dict[str, str]) -> None:
    arguments = ["run", "digits-lt", "--json", *FAST, "--set=sampling.num_subsets=2"]
    done = btm(*arguments, cwd=folder, **in_uri(environment))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["report"].startswith("s3://btm/store/") and result["trained_stages"]
    assert result["tracking"]["uri"] == environment["MLFLOW_TRACKING_URI"]  # the password is not even masked
    done = btm(*arguments, "--verbose", cwd=folder, **environment)  # by its own variable
    assert done.returncode == 0, done.stderr
    assert b"finetune" in (folder / ".btm/stack/prefect/prefect.db").read_bytes()  # there is something to search
    search(folder, environment, done)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"BTM_STORE": "s3://absent/store"}, "s3://absent/store"),
        ({"AWS_SECRET_ACCESS_KEY": WRONG}, "s3://btm/store"),
        ({"BTM_STORE": f"s3://key:{WRONG}@btm/store"}, "carries credentials"),
        ({"MLFLOW_TRACKING_PASSWORD": WRONG}, "MLFLOW_TRACKING_PASSWORD"),
        ({"URI": WRONG}, "MLflow at http://127.0.0.1"),
        ({"BTM_TRACKING_URI": f"http://btm:{quote(WRONG, safe='')}@127.0.0.1:9/x"}, "MLflow at http://127.0.0.1:9/x"),
        ({"BTM_TRACKING_URI": f"postgresql://btm:{WRONG}@127.0.0.1:9/x"}, "MLflow at postgresql://***@127.0.0.1:9/x"),
        ({"PREFECT_API_AUTH_STRING": f"btm:{WRONG}"}, "401"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_run_that_fails_tells_no_secret(
    btm: Btm, folder: Path, environment: dict[str, str], changes: dict[str, str], expected: str
) -> None:
    used = in_uri(environment, changes["URI"]) if "URI" in changes else {**environment, **changes}
    done = btm("run", "digits-lt", *FAST, "--set=seed=1", cwd=folder, **used)
    assert done.returncode != 0 and expected in done.stderr, done.stderr
    search(folder, environment, done)


@pytest.mark.slow
def test_the_search_would_find_them(folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.CompletedProcess([], 0, "", "")
    for text in (S3, quote(MLFLOW, safe=""), base64.b64encode(f"btm:{PREFECT}".encode()).decode()):
        (folder / "told.txt").write_text(f"before {text} behind")
        with pytest.raises(AssertionError, match=r"told\.txt"):
            search(folder, environment, done)
        (folder / "told.txt").unlink()
        with pytest.raises(AssertionError):
            search(folder, environment, subprocess.CompletedProcess([], 0, "", text))
    search(folder, environment, done)


def test_a_deployment_takes_no_secret(btm: Btm, tmp_path: Path) -> None:
    for arguments in (
        ["--job-variable", f"env.AWS_SECRET_ACCESS_KEY={WRONG}"],
        ["--job-variable", f"env.MLFLOW_TRACKING_URI=http://btm:{quote(WRONG, safe='')}@host"],
        ["--store", f"s3://key:{WRONG}@bucket"],
        ["--set", f"data.root=s3://key:{WRONG}@bucket"],
    ):
        done = btm("deploy", "digits-lt", *arguments, cwd=tmp_path)
        assert done.returncode == 2 and not told((done.stdout + done.stderr).encode()), done.stderr
        refusal = "whoever sees the deployment would see this secret; set it where workers start"
        assert "credentials" in done.stderr or refusal in done.stderr
    block = "env.AWS_SECRET_ACCESS_KEY={{ prefect.blocks.secret.s3 }}"
    done = btm("deploy", "digits-lt", "--job-variable", block, cwd=tmp_path)
    assert "PREFECT_API_URL names none" in done.stderr  # it got as far as the server
