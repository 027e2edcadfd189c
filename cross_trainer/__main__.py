"""`python -m cross_trainer`: the command line, also for `accelerate launch -m cross_trainer`."""

from cross_trainer.commands.cli import main

if __name__ == "__main__":
    main()
