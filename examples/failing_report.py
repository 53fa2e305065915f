"""A failing result in a notebook.

Cells for a notebook: open this file in Jupyter (with jupytext), VS Code or PyCharm. The last line
of a cell shows a result as a table.
"""

# %%
import copy
import os

import clipcheck

model, _ = clipcheck.load(os.environ.get("MY_MODEL", "model.pt"), device="cpu", jit=False)
model.float()

# %% [markdown]
# A wrong epsilon in the last normalisation of the text tower is far below what probabilities show.

# %%
wrong = copy.deepcopy(model)
wrong.ln_final.eps = 1e-3
result = clipcheck.compare(model, wrong)
result  # noqa: B018 - a notebook shows it

# %%
print(result.failures[0].gates[3].message)
