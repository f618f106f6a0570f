"""Helpers that the Knowledge-R1 notebooks share: one file a subject, see "The tree" in
README.md."""

import warnings

# tqdm says so in every notebook without ipywidgets; plain progress bars are what we
# want.
warnings.filterwarnings("ignore", message="IProgress not found")
