"""Run `trainers.train`, and write down the threads that are left when it has returned."""

import sys
from pathlib import Path

from trainers.train import main


if __name__ == "__main__":
    main()
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    sys.stdout.write(f"threads: {names}\n")
