"""Checkpoints of other people: weights that do not fit, code, pickles, programs without an end."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from test_train import settings
from vlaa_lib import ROOT, VlaaError, models
from vlaa_lib.process import prm
from vlaa_lib.train import shapes
from vlaa_lib.train.sft import starting_policy

WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def tiny_adapter(tiny_model, tmp_path_factory):
    policy, out = models.load_policy(tiny_model), tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    get_peft_model(policy.model, models.adapter("lora")).save_pretrained(out)
    policy.processor.save_pretrained(out)
    return out


def changed(folder, into, change, name=WEIGHTS):
    """Copy a checkpoint, its weights changed in place by a function."""
    shutil.copytree(folder, into)
    weights = load_file(into / name)
    change(weights)
    save_file(weights, into / name, {"format": "pt"})
    return into


def renamed(weights):
    """Another release's name for one layer."""
    key = next(key for key in weights if "down_proj" in key)
    weights[key.replace("layers.", "blocks.")] = weights.pop(key)


def moved(weights):
    """Another release's prefix for all."""
    for key in list(weights):
        weights[key.replace("language_model.", "text.")] = weights.pop(key)


def lacking(weights):
    del weights[next(key for key in weights if "down_proj" in key)]


def surplus(weights):
    weights["model.language_model.layers.9.weight"] = torch.zeros(2)


def reshaped(weights):
    key = next(key for key in weights if "down_proj" in key)
    weights[key] = weights[key][:-1].contiguous()


@pytest.mark.parametrize(("change", "said"), [
    (renamed, r"1 missing \(e\.g\. .*down_proj.*1 unexpected \(e\.g\. .*blocks"),
    (lacking, r"fit the model: 1 missing \(e\.g\. .*down_proj[^,]*;"),
    (surplus, r"fit the model: 1 unexpected \(e\.g\. .*layers\.9\.weight"),
    (reshaped, "does not load"),
])  # fmt: skip
@pytest.mark.parametrize("how", ["policy", "start", "vilprm"])
def test_a_checkpoint_that_does_not_fit_is_refused(how, change, said, tiny_model, tmp_path):
    bad = changed(tiny_model, tmp_path / "bad", change)
    with pytest.raises(VlaaError, match=f"{bad}: .*{said}"):
        if how == "policy":
            models.load_policy(bad)
        elif how == "start":
            starting_policy(settings(tiny_model), "full", tmp_path, bad)
        else:  # a new head may be missing, and nothing else
            prm.begin(settings(tiny_model), bad, tmp_path)


@pytest.mark.parametrize(("change", "said"), [
    (renamed, r"1 missing .*1 unexpected \(e\.g\. .*blocks"), (moved, "missing .* unexpected"),
    (lacking, "1 missing"), (surplus, "1 unexpected"), (reshaped, "does not load"),
])  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused(change, said, tiny_adapter, tmp_path):
    bad = changed(tiny_adapter, tmp_path / "bad", change, ADAPTER)
    for merge in (True, False):
        with pytest.raises(VlaaError, match=f"{bad}: .*{said}"):
            models.load_policy(bad, merge=merge)
    with pytest.raises(VlaaError, match=said):
        models.whole(bad, tmp_path / "start")


def test_what_fits_loads(tiny_model, tiny_adapter, tmp_path):
    """Tied heads are no missing weights, and tables that old releases saved no unexpected ones."""
    def older(weights):
        weights["model.visual.rotary_pos_emb.inv_freq"] = torch.zeros(2)

    models.load_policy(changed(tiny_model, tmp_path / "older", older))
    config = json.loads((tiny_adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["target_modules"] = ["q_proj", "k_proj", "v_proj", "o_proj",
                                "gate_proj", "up_proj", "down_proj"]
    config["exclude_modules"] = r".*visual.*"
    shutil.copytree(tiny_adapter, tmp_path / "names")
    (tmp_path / "names" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    one, two = (models.load_policy(at).model.state_dict()
                for at in (tiny_adapter, tmp_path / "names"))  # fmt: skip
    assert all(torch.equal(one[key], two[key]) for key in one)


def set_in_config(folder, name="config.json", **values):
    held = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps(held | values), encoding="utf-8")


NO_PATCHES = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 0}


KERNEL = "kernels-community/evil"
ODD = '{"model_type": "qwen2_5_vl", "text_config": 3}'


@pytest.mark.parametrize("break_it", [
    lambda folder: os.truncate(folder / WEIGHTS, 20_000),
    lambda folder: (folder / WEIGHTS).write_bytes(b""),
    lambda folder: (folder / WEIGHTS).unlink(),
    lambda folder: (folder / "config.json").write_text("{", encoding="utf-8"),
    lambda folder: (folder / "config.json").write_text(ODD, encoding="utf-8"),
    lambda folder: (folder / "tokenizer.json").write_text("{}", encoding="utf-8"),
    lambda folder: (folder / "adapter_config.json").write_text("{}", encoding="utf-8"),
    lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}',
        encoding="utf-8"),
    lambda folder: set_in_config(folder, _attn_implementation=KERNEL),
    lambda folder: set_in_config(folder, attn_implementation={"text_config": KERNEL}),
    lambda folder: set_in_config(folder, dtype="evil"),
    lambda folder: set_in_config(folder, "processor_config.json", image_processor=NO_PATCHES),
], ids=["cut", "empty", "none", "json", "type", "tokenizer", "adapter", "no base", "kernel",
        "kernels", "dtype", "patches"])  # fmt: skip
def test_a_broken_checkpoint_is_one_line(break_it, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "bad")
    break_it(tmp_path / "bad")
    with pytest.raises((VlaaError, FileNotFoundError)) as caught:
        models.load_policy(tmp_path / "bad")
    assert "\n" not in str(caught.value).strip()


def test_a_trained_head_may_not_be_missing(tiny_model, tmp_path):
    """A head that is to be trained may; one of a ViLPRM's own folder may not."""
    prm.begin(settings(tiny_model), None, tmp_path)
    shutil.copytree(tiny_model, tmp_path / "headless")
    (tmp_path / "headless" / prm.CARD).write_text('{"mode": "full"}', encoding="utf-8")
    with pytest.raises(VlaaError, match=r"2 missing \(e\.g\. step_head\.bias"):
        prm.load(tmp_path / "headless")


# --- code ----------------------------------------------------------------------------------------

CODE = '''
from pathlib import Path
Path({marker!r}).touch()
class Mine: pass
'''
CLASSES = {
    "config.json": ["AutoConfig", "AutoModel", "AutoModelForCausalLM",
                    "AutoModelForImageTextToText", "AutoTokenizer", "AutoProcessor",
                    "AutoImageProcessor"],
    "processor_config.json": ["AutoProcessor", "AutoImageProcessor", "AutoVideoProcessor"],
    "preprocessor_config.json": ["AutoImageProcessor", "AutoProcessor"],
    "tokenizer_config.json": ["AutoTokenizer", "AutoProcessor"],
}  # fmt: skip
LOADS = """
import sys
from pathlib import Path
from vlaa_lib import models
from vlaa_lib.rewards import reward_models
from vlaa_lib.train import shapes
from transformers import AutoConfig, AutoProcessor, AutoTokenizer
for folder in sorted(Path(sys.argv[1]).iterdir()):
    for load in (models.load_policy, models.load_processor, shapes.shape_of,
                 AutoConfig.from_pretrained, AutoProcessor.from_pretrained,
                 AutoTokenizer.from_pretrained):  # others' loads, as TRL's, ask nobody either
        try:
            load(folder)
        except (ValueError, OSError, ImportError) as error:  # torchvision is not needed here
            print(folder.name, error)
print("done")
"""


def test_a_checkpoints_own_code_never_runs(tiny_model, tmp_path):
    """For each class that a folder can name, of a known and an unknown kind, all answered `yes`."""
    cases, marker = tmp_path / "cases", tmp_path / "marker"
    for file, classes in CLASSES.items():
        for name in classes:
            for kind in ("known", "unknown"):
                folder = cases / f"{file}-{name}-{kind}"
                shutil.copytree(tiny_model, folder)
                (folder / "mine.py").write_text(CODE.format(marker=str(marker)), encoding="utf-8")
                (folder / "custom_generate").mkdir()
                shutil.copy(folder / "mine.py", folder / "custom_generate" / "generate.py")
                path = folder / file
                held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
                own = ["mine.Mine", None] if name == "AutoTokenizer" else "mine.Mine"
                held["auto_map"] = {name: own}
                if kind == "unknown":
                    other = {"config.json": "model_type",
                             "tokenizer_config.json": "tokenizer_class",
                             "processor_config.json": "processor_class",
                             "preprocessor_config.json": "image_processor_type"}  # fmt: skip
                    held[other[file]] = "mine"
                path.write_text(json.dumps(held), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(cases)], input="y\n" * 10_000, cwd=ROOT,
        capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.stdout.endswith("done\n"), done.stderr
    assert not marker.exists()
    assert "run the custom code? [y/N]" not in done.stdout


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_pickles_are_refused(name, zipped, tiny_model, tiny_adapter, tmp_path):
    source = tiny_adapter if name.startswith("adapter") else tiny_model
    shutil.copytree(source, tmp_path / "bad")
    (tmp_path / "bad" / (ADAPTER if source is tiny_adapter else WEIGHTS)).unlink()
    marker = tmp_path / "marker"
    if zipped:
        torch.save({"weight": Payload(marker)}, tmp_path / "bad" / name)
    else:
        (tmp_path / "bad" / name).write_bytes(pickle.dumps({"weight": Payload(marker)}))
    with pytest.raises(VlaaError, match="does not load"):
        models.load_policy(tmp_path / "bad")
    assert not marker.exists()


# --- programs without an end ---------------------------------------------------------------------

@pytest.mark.parametrize("template", [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ messages.nothing.here }}", "{% if %}",
])
def test_a_template_may_not_run_for_ever(template, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "PROGRAM_S", 0.5)
    shutil.copytree(tiny_model, tmp_path / "bad")
    (tmp_path / "bad" / "chat_template.jinja").write_text(template, encoding="utf-8")
    processor, start = models.load_processor(tmp_path / "bad"), time.monotonic()
    with pytest.raises(VlaaError, match="the checkpoint's chat template fails"):
        processor.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("setting", [
    {"target_modules": r"(.*)*(.*)*(.*)*x_proj"}, {"exclude_modules": r"((\w|\.)+)+$!"},
    {"rank_pattern": {"(a+)+(.*)*(.*)*b": 4}}, {"modules_to_save": ["(.*)*(.*)*(.*)*x"]},
])
def test_a_pattern_may_not_run_for_ever(setting, tiny_adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "PROGRAM_S", 0.5)
    shutil.copytree(tiny_adapter, tmp_path / "bad")
    path = tmp_path / "bad" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(
        encoding="utf-8")) | setting), encoding="utf-8")
    start = time.monotonic()
    with pytest.raises(VlaaError, match="stopped after 0.5 s|has the pattern"):
        models.load_policy(tmp_path / "bad")
    assert time.monotonic() - start < 20


def test_the_plan_reads_a_config_without_running_its_code(tiny_model):
    assert shapes.shape_of(tiny_model).layers == 2
