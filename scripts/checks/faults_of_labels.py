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
    Fault("default prior of a run upside down", "explore/run_classifier.py", "(-shift).softmax(0)", "shift.softmax(0)", OF_BAYES),
    Fault("temperature divides the prior too", "functional/temperature.py", "scores / math.exp(log_temperature) + shift", "(scores + shift) / math.exp(log_temperature)", "functional/test_temperature.py"),
    Fault("targets not smoothed", "functional/temperature.py", "kept = (len(labels) + 1) / (len(labels) + 2)", "kept = 1.0", "functional/test_temperature.py"),
    Fault("one file with two kinds", TABLE, "elif kinds.setdefault(name, kind) != kind:", "elif False:", "explore/test_label_table.py"),
    Fault("line breaks end quoted cells", TABLE, 'csv.reader(io.StringIO(text, newline=""), delimiter', 'csv.reader(text.replace("\\n", " \\n").splitlines(), delimiter', "explore/test_label_table.py"),
    Fault("labels of missing files dropped", TABLE, "            missing.append(file)\n", "            pass\n", "explore/test_label_table.py"),
]  # fmt: skip
