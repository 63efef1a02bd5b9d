"""Type-check the packages and the user code beside this file: `python tests/typing/check.py`, a part of `make lint`.

A line that ends in `# error: why` must be an error; no other line may be one.
"""

import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
MARK = re.compile(r"# error: ")


def found() -> dict[tuple[str, int], str]:
    """The checker's messages, by file and line."""
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "{" not in done.stdout:
        raise SystemExit(done.stderr or done.stdout)
    report = json.loads(done.stdout[done.stdout.index("{") :])
    return {
        (str(pathlib.Path(one["file"]).relative_to(ROOT)), one["range"]["start"]["line"] + 1): one["message"]
        for one in report["generalDiagnostics"]
        if one["severity"] == "error"
    }


def expected() -> set[tuple[str, int]]:
    """The lines that are marked as errors, by file and number."""
    return {
        (str(path.relative_to(ROOT)), number)
        for path in (ROOT / "tests" / "typing").glob("*_misuse.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if MARK.search(line)
    }


def main() -> int:
    """Print what is not as it should be; the exit status."""
    errors, marked = found(), expected()
    wrong = [
        f"{file}:{line}: {message}" for (file, line), message in sorted(errors.items()) if (file, line) not in marked
    ]
    wrong += [f"{file}:{line}: expected an error here" for file, line in sorted(marked - errors.keys())]
    print("\n".join(wrong or [f"No type errors, and {len(marked)} mistakes found that must be."]))
    return len(wrong) > 0


if __name__ == "__main__":
    sys.exit(main())
