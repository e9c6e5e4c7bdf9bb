"""Why training runs end, in words; apart from them, so that it is read without torch."""

ENDINGS = {
    "patience": "more steps brought nothing on the spared images",
    "steps": "it reached its ceiling of steps, and more might have paid",
    "minutes": "it reached its ceiling of minutes, and more might have paid",
    "unjudged": "there were too few images to spare some that say when to stop, so the number of "
    "steps was fixed",
}
"""By `FineTuned.stopped`."""
