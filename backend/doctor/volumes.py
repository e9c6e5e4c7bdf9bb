"""Whether a project's images are volumes, of which only one slice is read."""

from backend.errors import ImageSourceError, LabelStudioError
from backend.label_studio.client import LabelStudio
from backend.label_studio.images import fetch_image
from backend.labeling.config import LabelConfig
from backend.settings import Settings


def volume_remark(
    client: LabelStudio, settings: Settings, project_id: int, config: LabelConfig
) -> str:
    """What is said of the project's first task where an image of it has several slices; else "".

    An image that cannot be fetched or read has no say here: its prediction says what is wrong.
    """
    from medsam3_model.errors import ImageError
    from medsam3_model.images.reading import open_picture

    try:
        task = next(client.tasks(project_id, page_size=1), None)
        if task is None:
            return ""
        for image in config.images:
            reference = image.references(task["data"])[0]
            content = fetch_image(
                reference,
                client=client,
                settings=settings,
                task_id=task["id"],
                project_id=project_id,
            )
            with open_picture(content) as picture:
                if picture.pages > 1:
                    return (
                        f"the image of task {task['id']} is a volume or stack of {picture.pages} "
                        f"slices: only its middle one, slice {picture.page + 1}, is read."
                    )
    except (ImageSourceError, LabelStudioError, ImageError):
        pass
    return ""
