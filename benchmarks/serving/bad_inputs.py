"""The table of bad inputs over HTTP, in rounds, with good pictures between: answers, and memory on a plateau.

Starts a service of its own (on a free port), so that its memory can be watched.
`python -m benchmarks.serving.bad_inputs [--rounds 3]`
"""

from __future__ import annotations

import argparse
import gc
from collections import Counter

import httpx
import psutil

from tests.app import bad_inputs
from tests.app.server.test_process import serving


def one_round(client: httpx.Client, number: int) -> Counter[str]:
    """Every case of the table once, a good picture after every tenth."""
    outcome: Counter[str] = Counter()
    for index, case in enumerate(bad_inputs.cases()):
        response = case.send(client)
        right = bad_inputs.is_problem(response, case)
        outcome["right" if right else "wrong"] += 1
        outcome["5xx"] += response.status_code >= 500
        if number == 1:
            print(f"{'ok ' if right else 'BAD'} {response.status_code} {case.problem or '-':24} {case.name}")
        if index % 10 == 9:
            good = client.post(bad_inputs.URL, content=bad_inputs.coffee(), headers=bad_inputs.JPEG)
            outcome["good answered right" if bad_inputs.is_espresso(good) else "good answered wrong"] += 1
    return outcome


def main() -> None:
    """Run and report; exit 1 on any wrong answer, any 5xx, or memory that grew by more than 5 %."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    total: Counter[str] = Counter()
    memory: list[float] = []
    with serving() as (process, address, _), httpx.Client(base_url=address, timeout=120, trust_env=False) as client:
        one_round(client, 0)  # arenas, caches and lazy imports are not growth
        for number in range(1, rounds + 1):
            total += one_round(client, number)
            gc.collect()
            memory.append(psutil.Process(process.pid).memory_info().rss / 2**20)
            print(f"round {number}: resident {memory[-1]:.0f} MiB")
    growth = max(memory) / memory[0] - 1
    print(f"{len(bad_inputs.cases())} cases x {rounds}: {dict(total)}; memory {growth:+.1%} over the first round")
    clean = not (total["wrong"] or total["5xx"] or total["good answered wrong"])
    raise SystemExit(0 if clean and growth <= 0.05 else 1)


if __name__ == "__main__":
    main()
