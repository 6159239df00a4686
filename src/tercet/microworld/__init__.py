"""A small, consistent, seeded world: pretraining text, tasks with exact gold answers, demonstrations and a rubric."""
