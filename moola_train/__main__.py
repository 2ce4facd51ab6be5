"""``python -m moola_train``."""

from moola_train.cli import main

if __name__ == "__main__":
    main()
