"""Exit codes of the `sharegpt4v` command, for scripts that act on them."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What an exit code means."""

    DONE = 0
    BAD_INPUT = 1  # a file, row or option is refused; the message names it
    USAGE = 2  # the command line cannot be parsed
    NOT_ENOUGH = 3  # a check failed: coverage too low, overlap with a benchmark
    CANNOT_WRITE = 4  # disk full or read-only; finished parts are kept and the same command continues
    BUSY = 5  # another process works on the same output
    BUDGET = 6  # `--max-cost` is reached; answers so far are kept and the same command with a larger one continues
    KEY_REJECTED = 7  # the endpoint refuses the key, so nothing more is sent
    ENDPOINT_DOWN = 8  # it failed too often in a row or asks for a long pause; the same command continues later
    WORKER_FAILED = 9  # a process that the command needs died; its log is named
    NOT_INSTALLED = 10  # an optional package is missing; the message says what to install
    INTERRUPTED = 130
