"""Faults of labels, heads on them, predictions and lists of what to label."""

from fault import Fault

SELECT, COVERAGE = "explore/select.py", "explore/coverage.py"
HEADS, CLASSIFIER = "explore/photo_heads.py", "explore/photo_classifier.py"
TABLE, NOVELTY = "explore/label_table.py", "explore/novelty.py"
OF_BAYES = "explore/test_photo_classifier.py"

FAULTS = [
    Fault("list without regard to what is covered", COVERAGE, "        covered += added\n", "", "explore/test_select.py"),
    Fault("old gain taken for the new one", COVERAGE, "if heap and heap[0] < (-gain, row):", "if False:", "explore/test_select.py"),
    Fault("large groups count by their size", SELECT, "sizes ** (1 - POWER)", "sizes ** 1.0", "explore/test_select.py"),
    Fault("copies of labeled photos listed", SELECT, " & ~_copy_of(labeled, copies)", "", "explore/test_select.py"),
    Fault("labels do not cover", SELECT, "covered_by(rows[kept], rows[labeled])", "covered_by(rows[kept], rows[:0])", "explore/test_select.py"),
    Fault("first members instead of equal parts", SELECT, 'np.argsort(turn, kind="stable")', "np.arange(len(turn))", "explore/test_select.py -k compared"),
    Fault("smallest group last in equal shares", "explore/balanced.py", "key=lambda k: (sizes[k], k)", "key=lambda k: (-sizes[k], k)", "explore/test_balanced.py"),
    Fault("hint after any thirty labels", "explore/balanced.py", " or set(kinds[-LAST:]) - set(kinds[:-LAST])", "", "explore/test_balanced.py"),
    Fault("scores of ce not brought to equal shares", HEADS, "trained.scores(head, points, equal)", "trained.scores(head, points)", OF_BAYES),
    Fault("la decides by the shares of the labels", HEADS, 'frozenset({"ce"})', 'frozenset({"ce", "la"})', OF_BAYES),
    Fault("prior of the head under any other", CLASSIFIER, "self.default if prior is None else prior", "self.default", OF_BAYES),
    Fault("prior not in the logarithm", CLASSIFIER, ".double().log()", ".double()", OF_BAYES),
    Fault("default prior of a run upside down", "explore/run_classifier.py", "(-shift.masked_fill(shares == 0, torch.inf))", "(shift.masked_fill(shares == 0, torch.inf))", OF_BAYES),
    Fault("temperature divides the prior too", "functional/temperature.py", "scores / math.exp(log_temperature) + shift", "(scores + shift) / math.exp(log_temperature)", "functional/test_temperature.py"),
    Fault("targets not smoothed", "functional/temperature.py", "kept = (len(labels) + 1) / (len(labels) + 2)", "kept = 1.0", "functional/test_temperature.py"),
    Fault("one file with two kinds", TABLE, "elif kinds.setdefault(name, kind) != kind:", "elif False:", "explore/test_label_table.py"),
    Fault("last of two columns that name photos", TABLE, "(found, -column, len(rows[0].cells)) > (best[0], -best[2],", "(found, column, len(rows[0].cells)) > (best[0], best[2],", "explore/test_label_table.py"),
    Fault("separator line read as a row", TABLE, "text[declared.end() :], (declared[1],)", "text, SEPARATORS", "explore/test_label_table.py"),
    Fault("line breaks end quoted cells", TABLE, 'csv.reader(io.StringIO(text, newline=""), delimiter', 'csv.reader(text.replace("\\n", " \\n").splitlines(), delimiter', "explore/test_label_table.py"),
    Fault("labels of missing files dropped", TABLE, "            missing.append(file)\n", "            pass\n", "explore/test_label_table.py"),
    Fault("copies in other folds", "explore/copy_folds.py", "return part[torch.from_numpy(unit)]", "return stratified_folds(labels, folds)", "explore/test_label_photos.py -k copies"),
    Fault("head chosen by any gain", "explore/head_choice.py", "gain > largest * error", "gain > 0", "explore/test_label_photos.py -k clearly"),
    Fault("one threshold for all kinds", "explore/wrong_labels.py", "probabilities >= thresholds", "probabilities >= 0.5", "explore/test_label_photos.py -k threshold"),
    Fault("copies set the distance", NOVELTY, "        cosine[units[begin : begin + CHUNK, None] == units] = -torch.inf\n", "", "explore/test_label_photos.py -k distance"),
    Fault("labeled photos listed as next", "explore/next_labels.py", "np.sort(pool[labels[pool] == NONE])", "np.sort(pool)", "explore/test_label_photos.py -k next"),
    Fault("names written into the page as they are", "explore/prediction_page.py", "escape(printable(text), quote=True)", "printable(text)", "explore/test_label_commands.py -k gallery"),
    Fault("changed weights accepted", "explore/classifier_model.py", 'if model.fingerprint != card["fingerprint"]:', "if False:", "explore/test_label_commands.py -k changed"),
    Fault("head without its temperature", "explore/classifier_model.py", "head.weight / fitted.temperature", "head.weight", "explore/test_label_commands.py -k load_gives"),
    Fault("list over what was filled in", "explore/select_command.py", "if os.path.lexists(out):", "if False:", "explore/test_label_commands.py -k goes_on"),
    Fault("side of the default network not kept", "explore/loaded_model.py", "described_model(name, Model(init=weights), image_size=side)", "described_model(name, Model(init=weights))", "explore/test_label_commands.py -k default_network"),
    Fault("filled list of classify overwritten", "explore/classify_command.py", "unfilled(out / NEXT, NEXT_COLUMNS)", "out / NEXT", "explore/test_label_commands.py -k filled"),
    Fault("second table over the first", TABLE, "if kinds.get(file, kind) != kind", "if False", "explore/test_label_commands.py -k filled"),
    Fault("stopped embedding refused", "explore/classify_command.py", "own = (EMBEDDINGS, TENSORS, CARD)", "own = (TENSORS, CARD)", "explore/test_label_commands.py -k stopped"),
    Fault("all photos of a kind held out together", "explore/copy_folds.py", "part[own[0]] = NEVER", "pass", "explore/test_label_photos.py -k seen_every"),
    Fault("weights of a kind without a photo", HEADS, ".masked_fill(never[:, None], 0)", "", "explore/test_label_photos.py -k without_a_photo"),
    Fault("copies in few dimensions", "explore/label_photos.py", "copy_units(centered(features))", "copy_units(rows)", "explore/test_label_photos.py -k all_features"),
    Fault("chains of copies", "explore/copy_folds.py", ">= ALIKE\n            alike[0] = True", ">= -2\n            alike[0] = True", "explore/test_label_photos.py -k chain"),
    Fault("margins of a run for one image", "explore/run_classifier.py", "num_samples=size", "num_samples=1", "explore/test_photo_classifier.py -k effective"),
    Fault("class without images is likely", "explore/run_classifier.py", ".masked_fill(shares == 0, torch.inf)", "", "explore/test_photo_classifier.py -k without_images"),
    Fault("export of a folder of classify as of any other", "export/command.py", "if (Path(run).expanduser() / PHOTO_CLASSIFIER).is_file():", "if False:", "export/test_export.py -k classify"),
    Fault("decomposed names taken for others", TABLE, "alone = {_composed(file): file", "alone = {file: file", "explore/test_label_table.py -k decomposed"),
    Fault("one of two names that look the same", TABLE, " if count[_composed(file)] == 1}", "}", "explore/test_label_table.py -k look_the_same"),
    Fault("kinds that are no text accepted", TABLE, "[*kinds.values(), *missing]", "missing", "explore/test_label_table.py -k sentence"),
    Fault("bytes of names dropped", TABLE, 'content.decode("utf-8-sig", errors="surrogateescape")', 'content.decode("utf-8-sig", errors="ignore")', "explore/test_label_table.py -k bytes"),
    Fault("probabilities of all photos at once", "explore/predict.py", "for part in torch.split(rows, CHUNK)", "for part in [rows]", "explore/test_label_photos.py -k chunks"),
    Fault("one kind twice among the likeliest", "explore/next_labels.py", "        rest[row, first] = -np.inf\n", "", "explore/test_label_photos.py -k chunks"),
    Fault("scores beyond memory begun", "explore/label_photos.py", "    if needed > free:", "    if False:", "explore/test_label_photos.py -k memory"),
]  # fmt: skip
