"""``python -m safesteer``."""

import sys

from safesteer.cli.main import main

sys.exit(main())
