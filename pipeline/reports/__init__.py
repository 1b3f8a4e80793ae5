"""The tables of the five reports beside ours."""
