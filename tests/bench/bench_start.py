"""How long the program takes to start, beside a Python that does nothing; aims in seconds.

python tests/bench/bench_start.py
"""

import statistics
import subprocess
import sys
import time

STARTS = {
    "import wmpo_lite": (["-c", "import wmpo_lite"], 0.3),
    "wmpo-lite --help": (["-m", "wmpo_lite", "--help"], 1.5),
}


def seconds(arguments: list[str]) -> float:
    clock = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - clock


def main() -> None:
    print(f"nothing: {statistics.median(seconds(['-c', '']) for _ in range(5)):.2f} s")
    for name, (arguments, aim) in STARTS.items():
        median = statistics.median(seconds(arguments) for _ in range(5))
        print(f"{name}: {median:.2f} s (aim: under {aim} s)")


if __name__ == "__main__":
    main()
