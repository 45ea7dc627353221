"""`python -m modelzip_jax.cli`."""

from modelzip_jax.cli import main

if __name__ == "__main__":
    main()
