"""Experiments that answer a question of the lecture; study.py says what a study is."""
