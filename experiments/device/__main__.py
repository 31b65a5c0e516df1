"""``python3 -m experiments.device``."""

import sys

from experiments.device.run import main

if __name__ == "__main__":
    sys.exit(main())
