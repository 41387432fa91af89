"""Pages that show a folder or a run: one HTML file each, which loads nothing."""
