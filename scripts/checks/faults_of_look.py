"""Faults of what is found in a folder of photos, and of its page."""

from fault import Fault

QUALITY, COPIES, GROUPS = (
    "explore/picture_quality.py",
    "explore/near_copies.py",
    "explore/groups.py",
)
OUTLIERS, THUMBNAILS, LOOK = "explore/outliers.py", "explore/thumbnails.py", "explore/look.py"
PAGE, LOOK_PAGE, NEIGHBORS = "report/page.py", "report/look_page.py", "explore/neighbors.py"

FAULTS = [
    Fault("bright border taken for sharp", QUALITY, "found = ImageOps.crop(found, 1)", "found = ImageOps.crop(found, 0)", "explore/test_picture_quality.py"),
    Fault("dark by the darkest pixels", QUALITY, "np.percentile(_brightness(small), [5, 99])", "np.percentile(_brightness(small), [5, 1])", "explore/test_picture_quality.py"),
    Fault("copies by their features alone", COPIES, "(cosine >= LEAST_COSINE) & (bits <= MOST_BITS)", "(cosine >= LEAST_COSINE)", "explore/test_near_copies.py"),
    Fault("a photo is its own neighbor", NEIGHBORS, "is_self[~is_self.any(1), -1] = True", "is_self[:] = False\n    is_self[:, -1] = True", "explore/test_near_copies.py"),
    Fault("copies keep each other company", OUTLIERS, "usable = (index >= 0) & ~is_copy", "usable = index >= 0", "explore/test_near_copies.py"),
    Fault("found again by one shared photo", GROUPS, "if jaccard[best] >= FOUND:", "if jaccard[best] > 0:", "explore/test_groups.py"),
    Fault("similarity of groups without their union", GROUPS, "(first[k] + second[row.indices] - row.data)", "first[k]", "explore/test_groups.py"),
    Fault("sideways thumbnails", THUMBNAILS, "image = upright_rgb(opened)", "image = opened.convert(\"RGB\")", "explore/test_look.py -k upright"),
    Fault("a filled list is overwritten", LOOK, "if path.exists() and _is_filled(path):", "if False:", "explore/test_look.py"),
    Fault("results among the photos", LOOK, "if out.is_relative_to(folder):", "if out == folder:", "explore/test_look.py"),
    Fault("names end the script", LOOK_PAGE, '.replace("<", "\\\\u003c")', "", "explore/test_look_page.py"),
    Fault("names are markup", PAGE, "autoescape=True", "autoescape=False", "explore/test_look_page.py"),
]  # fmt: skip
