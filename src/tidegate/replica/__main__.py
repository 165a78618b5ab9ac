"""``python -m tidegate.replica MODEL VERSION --spec FILE``: the process of one replica."""

from __future__ import annotations

import sys

from tidegate.replica.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
