"""`python -m wmpo_lite`, for launchers: the command line."""

from wmpo_lite.cli import main

if __name__ == "__main__":
    main()
