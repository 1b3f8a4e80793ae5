"""`python -m tersor.pipeline` is the same as `tersor`."""

from tersor.pipeline.cli.main import main

main()
