"""`python -m pgqueue`: the command, for an interpreter whose scripts are not on the path."""

from pgqueue.cli import main

if __name__ == "__main__":
    main()
