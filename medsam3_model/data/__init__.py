"""Images with true masks: folders, COCO files, and the brain template."""
