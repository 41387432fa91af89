"""Faults of what is found in a folder of photos, and of its page."""

from fault import Fault

QUALITY, COPIES, GROUPS = (
    "explore/picture_quality.py",
    "explore/near_copies.py",
    "explore/groups.py",
)
RESULTS = "explore/results_folder.py"
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
    Fault("small groups must be whole in a resample", GROUPS, "max(3, int(SMALLEST_GROUP * kept))", "SMALLEST_GROUP", "explore/test_groups.py -k few_photos_far"),
    Fault("spread of samples without replacement as it is", GROUPS, "* kept / (total - kept)", "", "explore/test_groups.py -k without_replacement"),
    Fault("an interval from one resample", GROUPS, "if len(known) >= FEWEST_FOUND:", "if len(known):", "explore/test_groups.py -k under_five"),
    Fault("copies by centered features alone", COPIES, "alike[close] = plain >= LEAST_PLAIN_COSINE", "alike[close] = False", "explore/test_near_copies.py"),
    Fault("copies by their hash alone", COPIES, "alike[close] = plain >= LEAST_PLAIN_COSINE", "alike[close] = True", "explore/test_near_copies.py"),
    Fault("neighborhoods of copies", "explore/photo_map.py", "if len(np.unique(rows, axis=0)) < FEWEST:  # of", "if len(rows) < 4:  # of", "explore/test_groups.py -k map_of_copies"),
    Fault("sideways thumbnails", THUMBNAILS, "image = upright_rgb(opened)", "image = opened.convert(\"RGB\")", "explore/test_look.py -k upright"),
    Fault("a filled list is overwritten", LOOK, 'unfilled(out / "label_first.csv", FIRST_COLUMNS)', 'out / "label_first.csv"', "explore/test_look.py"),
    Fault("files of others are overwritten", RESULTS, "owner.mark in names or", "True or", "explore/test_look.py -k others"),
    Fault("stopped call taken for other files", RESULTS, "name.startswith(owner.begun)", "False", "explore/test_label_commands.py -k stopped"),
    Fault("features that are there are made again", LOOK, "labels.csv --embeddings {features} --out", "labels.csv --out", "explore/test_look.py"),
    Fault("results among the photos", RESULTS, "if place.is_relative_to(photos):", "if place == photos:", "explore/test_look.py"),
    Fault("names end the script", LOOK_PAGE, '.replace("<", "\\\\u003c")', "", "explore/test_look_page.py"),
    Fault("names are markup", PAGE, "autoescape=True", "autoescape=False", "explore/test_look_page.py"),
    Fault("ramp of GH taken from its first line", "report/run_curves.py", "if value != 0), None)", "if True), None)", "report/test_run_page.py -k ramp"),
    Fault("random start taken for a collapse", "report/run_curves.py", "values[round(END * len(values)) :]", "values", "report/test_run_page.py -k collapse"),
    Fault("recovery taken for a collapse", "report/run_curves.py", "if values[-1] > (1 + RISEN) * lowest:", "if False:", "report/test_run_page.py -k rises"),
    Fault("needs of the report found after the scan", "cli.py", "            check_needs(folder, out)\n", "            assert check_needs\n", "scan/test_scan.py -k report"),
    Fault("scan shown after its report", "cli.py", "if not as_json:\n            show(scan_text(found))", "if not (as_json or report):\n            show(scan_text(found))", "scan/test_scan.py -k report"),
    Fault("highest error is the best", "report/run_tables.py", "min(known) if metric in LOWER_IS_BETTER else max(known)", "max(known)", "report/test_run_page.py -k best"),
    Fault("spread over classes without their number", "report/run_tables.py", "float(values.std(ddof=1)) / math.sqrt(len(values))", "float(values.std(ddof=1))", "report/test_run_page.py -k paired"),
    Fault("failed report fails the run", "report/report_command.py", "except (ValueError, OSError) as error:", "except ValueError as error:", "report/test_run_page.py -k cannot_be_written"),
]  # fmt: skip
