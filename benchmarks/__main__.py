"""Run every benchmark that needs nothing but this repository, each in a separate process."""

import subprocess
import sys

NAMES = ("extraction", "generation", "inspection", "memory", "metrics", "products", "scaling", "startup", "training")


def main() -> int:
    failed = []
    for name in NAMES:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode != 0:
            failed.append(name)
    if failed:
        print(f"benchmarks that failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
