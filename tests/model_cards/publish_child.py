"""Runs `sharegpt4v publish` again and again for one Hub: the client takes its address when it is imported."""

import contextlib
import io
import json
import os
import sys

from sharegpt4v.publish_commands import app


def run(words: list[str]) -> dict[str, object]:
    """Run the command as a shell would."""
    output, errors = io.StringIO(), io.StringIO()
    code: object = 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            app(words, standalone_mode=True)
        except SystemExit as stop:
            code = stop.code or 0
        except (ValueError, OSError) as error:  # as `sharegpt4v.cli` does
            code = 1
            errors.write(f"Error: {error}\n")
    return {"code": code, "output": output.getvalue(), "errors": errors.getvalue()}


def main() -> None:
    """Answer one JSON line for each that comes: `words` and `token`."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    for line in sys.stdin:
        asked = json.loads(line)
        os.environ.pop("HF_TOKEN", None)
        if asked["token"]:
            os.environ["HF_TOKEN"] = asked["token"]
        answers.write(json.dumps(run(asked["words"])) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
