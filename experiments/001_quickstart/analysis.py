# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The quickstart, looked at
#
# One figure of each kind, on any finished sweep with the axes recipe, rank and steps. As a notebook:
# `pip install 'lora-sweep-harness[notebooks]'`, then `jupytext --to ipynb --execute analysis.py`.

# %%
import os

import duckdb

from harness import results

FOLDER = os.environ.get("SWEEP", "../../workspace/sweeps/quickstart")
r = results.load(FOLDER)
r

# %% [markdown]
# ## What the columns mean

# %%
r.columns("pairs")

# %% [markdown]
# ## Where on the axes
#
# On dev prompts, against the control of the selection. An interval without 0 is in bold; of many cells one in
# twenty is bold by chance, so p_adjusted is the one to read.

# %%
metric, control = r.sweep["analysis"]["primary"], r.sweep["analysis"]["control"]
dev = r.summary.query("metric == @metric and control == @control and split == 'dev'")
recipes = list(dev["recipe"].unique())
for recipe in recipes:
    one = dev[dev["recipe"] == recipe]
    results.plot.heat_map(one, x="training.steps", y="adapter.rank").set_title(recipe)

# %%
results.plot.dose_response(dev, x="training.steps", by=["recipe", "adapter.rank"])

# %%
results.plot.forest(dev, label=["recipe", "adapter.rank", "training.steps"])

# %%
results.plot.parallel_coordinates(dev, columns=["recipe", "adapter.rank", "training.steps"])

# %% [markdown]
# ## One question, one line: is the higher rank better, image by image?

# %%
low, high = sorted(r.trials["adapter.rank"].unique())[:: len(r.trials["adapter.rank"].unique()) - 1]
r.compare(a={"adapter.rank": high}, b={"adapter.rank": low}, by=["recipe"])

# %% [markdown]
# ## The selected trial on held-out prompts

# %%
test = r.pairs(split="test")
results.plot.slopes(test.query("metric == @metric"))

# %% [markdown]
# A guard that moves with the score may be all that the scorer has seen.

# %%
results.plot.metric_by_metric(test, x="saturation", y=metric)

# %% [markdown]
# The same statistics for a subset, here for each seed:

# %%
results.infer(test.query("metric == @metric"), by=["seed"])

# %% [markdown]
# ## Images

# %%
results.plot.best_and_worst(r, test.query("metric == @metric"), n=2)

# %%
r.grid(x="arm", y="prompt", seed=r.sweep["seeds"][0])

# %% [markdown]
# ## Training

# %%
means = (
    r.losses.assign(tenth=lambda frame: frame["step"] // 10 * 10).groupby(["run_id", "tenth"])["loss"].mean()
)
means.unstack("run_id").plot(legend=False, xlabel="step", ylabel="loss, mean of ten steps")

# %% [markdown]
# ## The tables are parquet: any tool reads them

# %%
duckdb.sql(
    f"""
    SELECT i.arm, i.split, s.metric, count(*) AS images, round(avg(s.value), 3) AS mean
    FROM '{FOLDER}/images.parquet' AS i JOIN '{FOLDER}/scores.parquet' AS s USING (image_id)
    WHERE s.metric = '{metric}'
    GROUP BY ALL ORDER BY i.split, mean DESC
    """
).df()
