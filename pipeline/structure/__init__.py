"""The stage that removes channels, and its proof."""
