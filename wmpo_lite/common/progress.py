"""Progress bars: text in a terminal, a widget in a notebook, nothing where TQDM_DISABLE is set
(tqdm's own notebook bar overlooks that).
"""

import os


def progress(*arguments, **options):
    """`tqdm.auto.tqdm`, silent where TQDM_DISABLE is set."""
    from tqdm.auto import tqdm

    return tqdm(
        *arguments,
        **options | {"disable": bool(options.get("disable") or os.environ.get("TQDM_DISABLE"))},
    )
