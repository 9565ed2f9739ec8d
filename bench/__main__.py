"""`make bench`: every part in a process of its own, one after the other, then the page.

    python -m bench [PART …]
"""

from __future__ import annotations

import subprocess
import sys
import time

from bench import PARTS, page

failed = []
for part in sys.argv[1:] or PARTS:
    began = time.perf_counter()
    code = subprocess.run([sys.executable, "-m", f"bench.{part}"], stdout=sys.stderr).returncode
    print(f"{part}: {'done' if code == 0 else f'exit code {code}'}, {(time.perf_counter() - began) / 60:.1f} minutes",
          file=sys.stderr, flush=True)
    failed += [part] if code else []
    page.write()
print(page.PAGE)
if failed:
    raise SystemExit(f"not measured: {', '.join(failed)}")
