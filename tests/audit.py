"""Known vulnerabilities of locked packages: `python tests/audit.py PIP_AUDIT LOCK`, which is `make audit`.

Exit code 1 if there are any. Where the vulnerability service cannot be reached this is said and is no failure.
"""

import json
import subprocess
import sys

SERVICE = "osv"  # says when it cannot answer; the registry's own service passes over what it does not know


def audit(command, lock, seconds=240):
    "(exit code, lines): what pip-audit finds, in bounded time."
    options = f"--require-hashes --disable-pip --vulnerability-service {SERVICE}".split()
    output = "--format json --progress-spinner off".split()
    words = [command, "--requirement", lock, *options, *output]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return 0, [f"audit: not done, no answer within {seconds} seconds."]
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return 0, [f"audit: not done, the vulnerability service gave no answer: {reason[:100]}"]
    return report(packages)


def report(packages):
    "(exit code, lines) of pip-audit's findings."
    skipped = [p["name"] for p in packages if "skip_reason" in p]
    found = [(p, v) for p in packages for v in p.get("vulns", [])]
    looked_up = len(packages) - len(skipped)
    lines = [f"audit: {looked_up} packages looked up, {len(found)} known vulnerabilities."]
    for package, flaw in found:
        mended = ", ".join(flaw["fix_versions"]) or "no version yet"
        what = f"{package['name']} {package['version']}: {flaw['id']}"
        lines.append(f"audit: {what}, mended in {mended}")
    if skipped:
        lines.append(f"audit: not looked up: {', '.join(skipped)[:100]}")
    return int(bool(found)), lines


if __name__ == "__main__":
    code, lines = audit(*sys.argv[1:])
    print(*lines, sep="\n")
    sys.exit(code)
