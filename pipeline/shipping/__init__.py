"""From a finished run to the files of a bundle, measured and held against gates."""
