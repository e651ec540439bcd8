"""`python -m tau2rl`: the command line."""

from __future__ import annotations

from tau2rl.cli import main

if __name__ == "__main__":
    main()
