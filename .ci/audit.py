"""Audit the locked dependencies with pip-audit. Exit code 1: a known vulnerability that is not in audit-accepted.txt.

Usage: audit.py [LOCK...]; default: both locks. Where the vulnerability service cannot be asked, nothing is audited: it
is said, and is no failure. A mirror that knows no vulnerabilities answers like a world without any, so it is asked
first for a version that is known to have some.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = [ROOT / "requirements.lock", ROOT / "docker" / "servers.lock"]
ACCEPTED = ROOT / ".ci" / "audit-accepted.txt"
KNOWN = "jinja2==2.4.1"
"""Has had known vulnerabilities since 2014."""


def accepted() -> dict[str, str]:
    """Return why each accepted vulnerability is, by its id."""
    lines = [line for line in ACCEPTED.read_text().splitlines() if line and not line.startswith("#")]
    reasons = dict(re.match(r"(\S+)\s*(.*)", line).groups() for line in lines)  # type: ignore[union-attr]
    if missing := [name for name, reason in reasons.items() if not reason]:
        sys.exit(f"{ACCEPTED}: {', '.join(missing)} without a reason")
    return reasons


def audit(requirements: Path) -> tuple[list[tuple[str, str, set[str]]], list[str]]:
    """Return (package, advice, ids) of each vulnerability, and what was not audited; raises if nothing could be."""
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--format=json",
        "--progress-spinner=off",
        "--disable-pip",
        "--no-deps",
    ]
    done = subprocess.run([*command, "-r", str(requirements)], capture_output=True, text=True, timeout=600, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        raise ConnectionError((done.stderr.strip().splitlines() or ["no answer"])[-1]) from None
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    found = [
        (
            f"{package['name']} {package['version']}",
            f"fixed in {', '.join(problem['fix_versions']) or 'no version'}",
            {problem["id"], *problem["aliases"]},
        )
        for package in packages
        for problem in package.get("vulns", [])
    ]
    return found, skipped


def main(locks: list[Path]) -> int:
    """Audit each lock and say what was found."""
    reasons = accepted()
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.txt")
        probe.write_text(f"{KNOWN}\n")
        try:
            known, _ = audit(probe)
            problem = None if known else f"it does not know those of {KNOWN}"
        except (ConnectionError, subprocess.TimeoutExpired) as error:
            problem = str(error)
    if problem is not None:
        print(f"NOT AUDITED: the vulnerability service cannot be asked here: {problem}")
        return 0
    bad = 0
    for lock in locks:
        found, skipped = audit(lock)
        print(
            f"{lock.name}: {len(found)} known vulnerabilities" + f"; not audited: {', '.join(skipped)}" * bool(skipped)
        )
        for package, advice, ids in found:
            reason = next((reasons[name] for name in ids if name in reasons), None)
            print(f"  {package}: {', '.join(sorted(ids))}; {f'accepted: {reason}' if reason else advice}")
            bad += reason is None
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]] or LOCKS))
