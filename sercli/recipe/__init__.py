"""Recipes: their settings, files, schedules and listings."""
