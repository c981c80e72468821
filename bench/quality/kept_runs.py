# SPDX-License-Identifier: Apache-2.0
"""Runs of minillama whose JSON results are kept in a folder: what is there already is not run again, so an interrupted series goes on
where it stopped. Imported by real_model.py and divergence.py."""
import json
import pathlib
import subprocess
import sys


def kept_run(program: pathlib.Path, command: list[str], file: pathlib.Path, of: str, what: str) -> dict:
    """The JSON document that `program command --json file` writes.

    Beside the file lies what it was made by: `of`, all that the result depends on but the program. Ends the script when the program
    fails, with its last line behind `what`; nothing is left of that run.
    """
    made_by = file.with_suffix(".command")
    if not (file.exists() and made_by.exists() and made_by.read_text() == of):
        partial = file.with_suffix(".partial")
        done = subprocess.run([str(program), *command, "--json", str(partial)], capture_output=True, text=True)
        if done.returncode != 0:
            partial.unlink(missing_ok=True)
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            sys.exit(f"{what}: exit code {done.returncode}: {last}")
        made_by.unlink(missing_ok=True)
        partial.replace(file)
        made_by.write_text(of)
    return json.loads(file.read_text())
