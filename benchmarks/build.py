"""
Build the full-size captions-only ShareGPT4V-PT from a file of the released format: time, memory and size.

Ratio: growth of peak memory at a quarter of the records over growth at all of them, 1 where memory is flat in N.

```sh
python benchmarks/build.py
```
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import finish


ROOT = Path(__file__).resolve().parents[1]
RECORDS = 1_246_901
CHILD = """
import json, re, sys, time
from dataset_scripts.build import RELEASED, build_config
from dataset_scripts.rows import RowSource
import mlcroissant

def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) / 1024

released, before = RELEASED[1], status("VmRSS")
start = time.perf_counter()
rows = RowSource(sys.argv[1], origin=released.origin).as_set("captions")
facts = build_config(sys.argv[2], released.config, rows)
seconds = time.perf_counter() - start
shards = facts["splits"]["train"]
print(json.dumps({
    "rows": sum(shard["rows"] for shard in shards),
    "by_source": facts["read"]["by_source"],
    "seconds": round(seconds, 1),
    "growth_mib": round(status("VmHWM") - before, 1),
    "shards": len(shards),
    "parquet_mib": round(sum(shard["bytes"] for shard in shards) / 2**20, 1),
}))
"""


def main() -> None:
    """Write the file twice, a quarter and whole, build each in a fresh process, and report."""
    from tests.released_files import COUNTS, write_released

    sizes = {"quarter": RECORDS // 4, "whole": RECORDS}
    figures, equal = {}, True
    with tempfile.TemporaryDirectory() as folder:
        for name, records in sizes.items():
            file = Path(folder, f"{name}.json")
            start = time.perf_counter()
            ledger = write_released(file, "pt", records)
            print(f"wrote {records} records in {time.perf_counter() - start:.0f} s", file=sys.stderr)
            child = subprocess.run(
                [sys.executable, "-c", CHILD, str(file), str(Path(folder, name))],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            figures[name] = json.loads(child.stdout.splitlines()[-1])
            figures[name]["json_mib"] = round(file.stat().st_size / 2**20, 1)
            equal &= figures[name]["by_source"] == dict(ledger.by_source)
            equal &= figures[name]["rows"] == ledger.records
            print(json.dumps(figures[name]), file=sys.stderr)
    equal &= figures["whole"]["by_source"] == COUNTS["pt"]
    flat = figures["quarter"]["growth_mib"] / figures["whole"]["growth_mib"]
    finish("build", {"memory_flat": flat}, {"memory_flat": 0.7}, figures, equal)


if __name__ == "__main__":
    main()
