"""`python -m phi3v_train`: the same as `phi3v-train`; what torchrun starts."""

from phi3v_train.cli.app import main

if __name__ == "__main__":
    main()
