"""The `pomona` command as a module, `python -m pomona`.

In: arguments. Out: what `cli` prints, and its exit code.
Why: works where the environment's scripts are not on the search path.
"""

from pomona.cli import run

if __name__ == "__main__":
    run()
