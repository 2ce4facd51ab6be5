"""``python -m moola_features``."""

from moola_features.cli import main

if __name__ == "__main__":
    main()
