"""Where agents act: isolation, images, tools, the rollout loop, grading and evaluation."""
