"""The auditor, from here: `python -m tests.faults.auditor --broker HOST:PORT --history FILE`.

It is a package of its own, `audit/`, which imports nothing of the project and comes with `mini-visa audit`.
"""

from __future__ import annotations

import sys

from audit.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
