"""Everything is declared in pyproject.toml; this file lets `python setup.py` and older installers find it."""

from setuptools import setup

setup()
