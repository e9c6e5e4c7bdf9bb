"""The agent: a language model that sees the image, prompts the segmenter and looks at the masks."""
