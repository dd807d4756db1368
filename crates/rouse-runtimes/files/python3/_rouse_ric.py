"""Starts the `awslambdaric` that a function's package contains, and registers rouse's own hooks around its snapshot.

    python3 _rouse_ric.py HANDLER
"""

import os
import runpy
import sys


def main():
    runtime_dir = os.path.dirname(os.path.abspath(__file__))
    task_root = os.environ.get("LAMBDA_TASK_ROOT", "/var/task")
    folders = [os.path.join(task_root, name) for name in ("site-packages", "python")]
    rest = [entry for entry in sys.path if os.path.abspath(entry) != runtime_dir]
    sys.path[:] = [task_root] + [folder for folder in folders if os.path.isdir(folder)] + rest + [runtime_dir]

    import _rouse_unique as unique
    import snapshot_restore_py as hooks

    # Hooks run before the snapshot from the last to the first registered, and after it from the first to the last. Ours are
    # registered before the function is imported: last before the snapshot, first after it.
    def before():
        unique.prepare()
        unique.settle()

    hooks.register_before_snapshot(before)
    hooks.register_after_restore(unique.reseed)
    runpy.run_module("awslambdaric", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
