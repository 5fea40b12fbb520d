"""WMPO on a laptop: a vision-language-action policy that improves inside its own world model."""

__version__ = "0.1.0"
