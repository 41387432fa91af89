"""``accelerate launch -m sslgh STAGE ...``: every stage on several processes."""

from sslgh.cli import main

if __name__ == "__main__":
    main()
