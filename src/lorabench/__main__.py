"""`python -m lorabench`."""

from lorabench.cli import main

if __name__ == "__main__":
    main()
