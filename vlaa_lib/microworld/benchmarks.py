"""Six micro benchmarks in the shape of the real ones, written as VLMEvalKit-style TSV.

They are small stand-ins and never the real benchmarks. All scenes come from the split `bench`,
which nothing else draws from. What training never asks:

* micro-MathVision and micro-WeMath: every question, and every multi-step question, is a
  composition from `compositions`; the sub-steps of WeMath are partly training questions;
* micro-LogicVista: judging a list of statements, with a set of letters as the answer;
* micro-MathVerse: training questions, but drawn into the picture instead of given as text.

micro-MathVista and micro-DynaMath ask training questions in a new dress, of new scenes.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count as counter
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from .. import records
from . import compositions, facts, questions, scenes, solve, truth
from .compositions import Problem
from .facts import Fact
from .render import INK, font, render
from .scenes import COLORS, FIELDS, SHAPES, SIDE_PX

BENCHMARKS = {  # name -> the real benchmark, and which part of it the paper uses
    "micro-MathVista": "MathVista testmini: mixed skills, free answers and choices",
    "micro-MathVision": "MathVision test: competition problems, here harder compositions",
    "micro-MathVerse": "MathVerse testmini, vision only: the question is in the picture",
    "micro-DynaMath": "DynaMath: ten variants of a seed question, average and worst case",
    "micro-WeMath": "We-Math testmini: problems of two and three steps with their sub-steps",
    "micro-LogicVista": "LogicVista: sets of letters",
}
EXTRA = ("micro_scene", "micro_reward")  # ours: the scene as JSON, and the verifier
_OWN = {
    "micro-MathVista": "question_type answer_type choices answer answer_option task skills",
    "micro-MathVision": "choices answer category level",
    "micro-MathVerse": "query_cot question_for_eval answer question_type problem_version metadata",
    "micro-DynaMath": "qid varid answer answer_type subject knowledge_level",
    "micro-WeMath": "ID key knowledge_concept A B C D E answer hint",
    "micro-LogicVista": "answer skill",
}
COLUMNS = {
    name: ("index", "image", "question", *text.replace("e_c", "e c").split(), *EXTRA)
    for name, text in _OWN.items()
}
VARIANTS = 10  # DynaMath: variants of a seed question
NONE_RIGHT = "No correct answer"  # We-Math's last option; as an answer it is never right here
