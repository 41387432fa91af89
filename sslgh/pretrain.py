"""``accelerate launch -m sslgh.pretrain RECIPE [key=value ...]``."""

import sys

from sslgh.cli import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
