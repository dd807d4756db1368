"""Threads in the middle of computations, floating point included, which come out right."""

import threading

STEPS = 3_000_000
progress = {}
results = {}


def compute(seed):
    value = 0.0
    for step in range(STEPS):
        value = value * 0.999 + 1.0 / (step % 97 + seed)
        progress[seed] = step
    return value


def run(seed):
    results[seed] = compute(seed)


threads = [threading.Thread(target=run, args=(seed,), daemon=True) for seed in (1, 2)]
for thread in threads:
    thread.start()
while len(progress) < 2:
    pass


def handler(event, context):
    for thread in threads:
        thread.join()
    found = dict(results)
    # To the last bit.
    assert found == {seed: compute(seed) for seed in (1, 2)}, found
    return "ok"
