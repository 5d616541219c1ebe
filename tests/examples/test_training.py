"""Training as a user runs it: through the command line, killed and resumed, on own data."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import EXAMPLES
from defvis import log
from defvis.config import Config
from defvis.data.ytvis import find_files, load
from defvis.train import Run
from PIL import Image
