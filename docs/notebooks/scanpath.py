# %% [markdown]
# # Predict scanpaths
#
# The order in which an observer looks at things on a shelf. The included weights were trained on a simulated observer and do not predict people.

# %%
from voxelwave.scanpath import load_model, read_scanpaths

scene = read_scanpaths("voxelwave-demo/data/shelf.json").scenes["shelf"]
model = load_model("planted-observer")
paths = model.decode([scene], "sample", samples=3, seed=0)[0]
for path in paths:
    print(" > ".join(scene.objects[k].name for k in path))

# %%
import matplotlib.pyplot as plt

plt.imshow(plt.imread("voxelwave-demo/data/shelf.png"))
plt.plot(*scene.centres[list(paths[0])].T, "o-", color="black")
_ = plt.axis("off")
