"""Recipes: their settings, files, schedules and listings.

What the settings of an objective or an add-on of one's own are made of is found here.
"""

from sercli.recipe.schedule import START, Moment, Schedule, cosine
from sercli.recipe.schema import AddonConfig, MethodConfig, MoreViews, Recipe, ViewSetting
from sercli.recipe.values import Count, NotNegative, Positive, Probability, Range, Share

__all__ = [
    "START",
    "AddonConfig",
    "Count",
    "MethodConfig",
    "Moment",
    "MoreViews",
    "NotNegative",
    "Positive",
    "Probability",
    "Range",
    "Recipe",
    "Schedule",
    "Share",
    "ViewSetting",
    "cosine",
]
