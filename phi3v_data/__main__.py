"""`python -m phi3v_data`: the same as `phi3v-data`."""

from phi3v_data.cli.app import main

if __name__ == "__main__":
    main()
