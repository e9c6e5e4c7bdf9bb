"""Image files of the field as RGB bytes."""
