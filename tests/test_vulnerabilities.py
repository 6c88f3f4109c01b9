"""What CI makes of pip-audit's answers. The service is not at hand everywhere, so pip-audit is a stand-in here."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CI = Path(__file__).parents[1] / ".ci"
OLD = {"name": "jinja2", "version": "2.4.1", "vulns": [{"id": "PYSEC-1", "aliases": [], "fix_versions": ["2.7"]}]}
BAD = {"name": "x", "version": "1", "vulns": [{"id": "PYSEC-2", "aliases": ["CVE-2"], "fix_versions": ["1.1"]}]}
GOOD = {"name": "y", "version": "2", "vulns": []}
SKIPPED = {"name": "z", "skip_reason": "not found"}


def audit(tmp_path: Path, answers: list[Any], accepted: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the script with a pip_audit that knows two answers: to what it is asked first, and of the lock."""
    shutil.copytree(CI, tmp_path / ".ci", dirs_exist_ok=True)
    with (tmp_path / ".ci/audit-accepted.txt").open("a") as file:
        file.write(accepted)
    (tmp_path / "some.lock").write_text("x==1\n")
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    (tmp_path / "pip_audit.py").write_text(
        "import json, pathlib, sys\n"
        "first, locks = json.loads(pathlib.Path(__file__).with_name('answers.json').read_text())\n"
        "text = pathlib.Path(sys.argv[-1]).read_text()\n"
        "answer = first if 'jinja2' in text else locks\n"
        "sys.exit('the network is away') if answer is None else print(json.dumps({'dependencies': answer}))\n"
    )
    return subprocess.run(
        [sys.executable, str(tmp_path / ".ci/audit.py"), str(tmp_path / "some.lock")],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        check=False,
    )


def test_a_known_vulnerability_fails_unless_it_is_accepted_with_a_reason(tmp_path: Path) -> None:
    done = audit(tmp_path, [[OLD], [BAD, GOOD, SKIPPED]])
    assert done.returncode == 1, done.stderr
    assert "1 known vulnerabilities; not audited: z" in done.stdout
    assert "x 1: CVE-2, PYSEC-2; fixed in 1.1" in done.stdout
    done = audit(tmp_path, [[OLD], [BAD]], "CVE-2  we never call it\n")
    assert done.returncode == 0 and "accepted: we never call it" in done.stdout
    done = audit(tmp_path, [[OLD], [BAD]], "CVE-3\n")
    assert done.returncode == 1 and "CVE-3 without a reason" in done.stderr


def test_nothing_found_is_well(tmp_path: Path) -> None:
    done = audit(tmp_path, [[OLD], [GOOD]])
    assert done.returncode == 0 and "0 known vulnerabilities\n" in done.stdout


@pytest.mark.parametrize("first", [None, [], [{**OLD, "vulns": []}], [SKIPPED]])
def test_a_service_that_is_away_or_knows_nothing_is_said_and_no_failure(tmp_path: Path, first: Any) -> None:
    done = audit(tmp_path, [first, [GOOD]])
    assert done.returncode == 0 and done.stdout.startswith("NOT AUDITED"), done.stderr
