"""`python -m m2kit`: the same command line as the `m2kit` script."""

from m2kit.cli import main

if __name__ == "__main__":
    main()
