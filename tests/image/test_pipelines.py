"""Models in diffusers' format as models of diffkit: files, requests, LoRA, memory, and what is refused.

Their parity with diffusers is in tests/parity/test_pipelines.py.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from parity import tiny
from PIL import Image
from safetensors.torch import load_file, save_file

from diffkit import checkpoint
from diffkit.cli import main
from diffkit.modality import Request
from diffkit.model import Model
from diffkit.noise import Noise
from diffkit_image.record import Picture

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

SIZE = {"size": "24x16"}


@cache
def saved(kind: str = "stable_diffusion") -> Path:
    folder = Path(mkdtemp())
    getattr(tiny, kind)(folder).save_pretrained(folder / "model")
    return folder / "model"


@cache
def loaded(kind: str = "stable_diffusion") -> Model:
    return checkpoint.load(saved(kind))


def adapter(model: Model) -> Any:
    return model.modality


def copied(folder: Path, kind: str = "stable_diffusion") -> Path:
    return Path(shutil.copytree(saved(kind), folder / "model"))


# ------------------------------------------------------------------------------------------------ samples


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files, and the settings that the folder says."""
    saved(), capsys.readouterr()  # making it is not silent
    said = ["a cat", "-n", "2", "--negative", "a dog", "--steps", "2", "--condition", "size=24x16"]
    options = ["--option", "slicing=true", "tiling=true", "--sampler", "ddim"]
    assert main(["generate", "image", "--model", str(saved()), *said, *options, "--out", str(tmp_path)]) == 0
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["settings"]["guidance"] == 7.5 and run["settings"]["batch_size"] == 1
    assert run["evaluations_per_sample"] == 4
    assert {p.name for p in tmp_path.iterdir()} >= {"0000.png", "0001.png", "preview.png"}
    assert Image.open(tmp_path / "0000.png").size == (24, 16)
    assert capsys.readouterr().err == ""


def test_a_sample_depends_on_its_own_number_alone() -> None:
    model = loaded()
    together = model.generate(3, prompt="a cat", condition=SIZE, steps=2, batch_size=3, record=True)
    again = model.generate(3, prompt="a cat", condition=SIZE, steps=2, record=True)
    alone = [steps[-1].estimates["latent"].x0 for steps in again.steps]
    torch.testing.assert_close(together.steps[0][-1].estimates["latent"].x0, torch.cat(alone), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["stable_diffusion", "stable_diffusion_3"])
def test_pictures_are_decoded_as_diffusers_does(kind: str) -> None:
    model, noise = loaded(kind), Noise.of(1, 2)
    pipe = adapter(model).pipe
    latents = noise.normal("latent", (4, 8, 8))
    found = model.modality.decode({"latent": latents}, {})
    z = latents / pipe.vae.config.scaling_factor + (pipe.vae.config.shift_factor or 0)
    with torch.no_grad():
        expected = pipe.image_processor.postprocess(pipe.vae.decode(z).sample, output_type="pil")
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(np.asarray(ours.image, float) - np.asarray(theirs, float)).max() <= 1


def test_a_picture_is_encoded_to_the_mean_of_its_latents() -> None:
    """What does not fill whole latents is cut off, and what is transparent is white."""
    model = loaded()
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, (17, 24, 4), dtype=np.uint8)
    colours[..., 3] = 255
    found = model.modality.encode(Picture(Image.fromarray(colours, "RGBA"))).x["latent"]
    pixels = torch.from_numpy(colours[:16, :, :3] / 127.5 - 1).float().permute(2, 0, 1).unsqueeze(0)
    with torch.no_grad():
        expected = adapter(model).pipe.vae.encode(pixels).latent_dist.mean[0] * 0.18215
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["stable_diffusion_xl", "stable_diffusion_3", "flux"])
def test_what_is_not_asked_for_is_the_empty_prompt(kind: str) -> None:
    """Zeros in XL, where its configuration says so."""
    model, noise = loaded(kind), Noise.of(1, 1)
    nothing = model.modality.layout(1, noise, Request()).condition
    empty = model.modality.layout(1, noise, Request("")).condition
    assert not any(bool(p.any()) for p in nothing.present.values())
    for name in ("text", "pooled"):
        expected = torch.zeros_like(empty.values[name]) if kind == "stable_diffusion_xl" else empty.values[name]
        torch.testing.assert_close(nothing.values[name], expected)


def test_labels_by_name_and_by_number(tmp_path: Path) -> None:
    folder = copied(tmp_path, "dit")
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {"0": "tench, Tinca tinca", "207": "golden retriever"}
    (folder / "model_index.json").write_text(json.dumps(index))
    modality, noise = checkpoint.load(folder).modality, Noise.of(1, 2)
    for request in (Request("golden retriever"), Request(None, {"label": "207"})):
        assert modality.layout(2, noise, request).condition.values["label"].tolist() == [207, 207]
    with pytest.raises(ValueError, match=r"got label 'golden'; expected a number below 1000, or a name such as"):
        modality.layout(2, noise, Request("golden"))


def test_a_prompt_that_is_too_long() -> None:
    with pytest.warns(UserWarning, match="left out 'house', as the encoder takes 16 tokens"):
        loaded().modality.layout(1, Noise.of(1, 1), Request("aaaaaaaaa" + "aaaaa" + " house"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded().modality.layout(1, Noise.of(1, 1), Request("aaaaaaaaaaaaaa"))


def test_a_name_on_the_hub_is_found_in_its_cache(tmp_path: Path) -> None:
    """Without a network; the folder is laid out as huggingface_hub does."""
    home = tmp_path / "models--tiny--diffusion"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0123")
    shutil.copytree(saved(), home / "snapshots" / "0123")
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "diffkit.cli", "generate", "image", "a cat", "--model", "tiny/diffusion"]
    more = ["-n", "1", "--steps", "1", "--condition", "size=16", "--out", str(tmp_path / "out")]
    ran = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    assert (tmp_path / "out" / "0000.png").exists()


def test_the_libraries_are_imported_when_a_pipeline_is_opened() -> None:
    program = "import sys, diffkit_image; print([m for m in ('diffusers', 'transformers') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------- LoRA, memory


LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
ENCODER = "encoder.layers.0.self_attn.q_proj"


def lora_file(folder: Path, spelling: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file, and what it adds to the network's layer and to the encoder's."""
    torch.manual_seed(3)
    pairs = {
        "unet": (torch.randn(2, 16), torch.randn(16, 2)),
        "text_encoder": (torch.randn(2, 32), torch.randn(32, 2)),
    }
    changes = {part: up @ down for part, (down, up) in pairs.items()}
    tensors = {}
    for part, layer in (("unet", LAYER), ("text_encoder", f"text_model.{ENCODER}")):
        down, up = pairs[part]
        if spelling == "kohya":
            name = f"lora_{'te' if part == 'text_encoder' else part}_{layer.replace('.', '_')}"
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            tensors[f"{name}.alpha"] = torch.tensor(1.0)
        elif spelling == "peft":
            tensors |= {f"{part}.{layer}.lora_A.weight": down, f"{part}.{layer}.lora_B.weight": up}
        else:
            tensors |= {f"{part}.{layer}.lora.down.weight": down, f"{part}.{layer}.lora.up.weight": up}
    save_file(tensors, folder / "style.safetensors")
    half = 0.5 if spelling == "kohya" else 1.0  # alpha / rank
    return folder / "style.safetensors", {part: half * change for part, change in changes.items()}


def weight(model: Model, part: str) -> torch.Tensor:
    network = getattr(adapter(model).pipe, part)
    name = LAYER if part == "unet" else ENCODER
    state = {k.removeprefix("text_model."): v for k, v in network.state_dict().items()}
    return state[f"{name}.weight"]


@pytest.mark.parametrize("spelling", ["kohya", "peft", "diffusers"])
def test_lora(spelling: str, tmp_path: Path) -> None:
    path, changes = lora_file(tmp_path, spelling)
    model = checkpoint.load(saved(), options={"lora": f"{path}:0.8"})
    for part, change in changes.items():
        torch.testing.assert_close(weight(model, part), weight(loaded(), part) + 0.8 * change, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["stable_diffusion_3", "flux"])
def test_lora_of_a_transformer(kind: str, tmp_path: Path) -> None:
    layer = "transformer_blocks.0.attn.to_out.0"
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    names = (f"transformer.{layer}.lora_{end}.weight" for end in "AB")
    save_file(dict(zip(names, (down, up), strict=True)), tmp_path / "style.safetensors")
    model = checkpoint.load(saved(kind), options={"lora": f"{tmp_path / 'style.safetensors'}"})
    name = f"denoiser.{layer}.weight"
    expected = loaded(kind).network.state_dict()[name] + up @ down
    torch.testing.assert_close(model.network.state_dict()[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(find_spec("peft") is not None, reason="it is installed")
def test_lora_of_another_formula_needs_peft(tmp_path: Path) -> None:
    name = f"unet.{LAYER}"
    tensors = {"lora_A.weight": torch.ones(2, 16), "lora_B.weight": torch.ones(16, 2)}
    magnitudes = {f"{name}.lora_magnitude_vector": torch.ones(16)}
    save_file({f"{name}.{k}": v for k, v in tensors.items()} | magnitudes, tmp_path / "style.safetensors")
    with pytest.raises(ValueError, match="install it with `pip install peft`"):
        checkpoint.load(saved(), options={"lora": str(tmp_path / "style.safetensors")})


def test_several_lora_files_add_up(tmp_path: Path) -> None:
    path, changes = lora_file(tmp_path, "peft")
    model = checkpoint.load(saved(), options={"lora": f"{path}:0.5,{path}:-0.25"})
    expected = weight(loaded(), "unet") + 0.25 * changes["unet"]
    torch.testing.assert_close(weight(model, "unet"), expected, rtol=1e-5, atol=1e-5)


def test_lora_of_another_model(tmp_path: Path) -> None:
    name = "unet.down_blocks.7.attentions.0.to_q"
    save_file(
        {f"{name}.lora_A.weight": torch.zeros(2, 16), f"{name}.lora_B.weight": torch.zeros(16, 2)},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(ValueError, match=r"got LoRA .*a\.safetensors"):
        checkpoint.load(saved(), options={"lora": str(tmp_path / "a.safetensors")})
    (tmp_path / "b.bin").write_bytes(pickle.dumps(1))
    with pytest.raises(ValueError, match="pickled ones are not loaded"):
        checkpoint.load(saved(), options={"lora": str(tmp_path / "b.bin")})


def test_memory_helpers_leave_the_result_alone() -> None:
    """Up to the rounding of bfloat16, where that is asked for."""
    options = {"channels_last": True, "slicing": True}
    whole = loaded().generate(2, prompt="a cat", condition=SIZE, steps=2, batch_size=2)
    spared = checkpoint.load(saved(), options=options).generate(
        2, prompt="a cat", condition=SIZE, steps=2, batch_size=2
    )
    for one, other in zip(whole.records, spared.records, strict=True):
        assert np.abs(np.asarray(one.image, float) - np.asarray(other.image, float)).max() <= 2
    half = checkpoint.load(saved(), options={"precision": "bf16", "tiling": True})
    assert {p.dtype for p in half.network.parameters()} == {torch.bfloat16} and adapter(half).pipe.vae.use_tiling
    x = {"latent": Noise.of(0, 2).normal("latent", (4, 8, 8))}
    condition = loaded().modality.layout(2, Noise.of(0, 2), Request("a cat")).condition
    said, expected = (m.network(x, torch.tensor([0.5, 0.5]), condition, {})["latent"].float() for m in (half, loaded()))
    assert float((said - expected).norm() / expected.norm()) < 0.05


# ------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request("a", {"size": "15x16"}), "got size=15x16; expected multiples of 2"),
        (Request("a", {"colour": "red"}), "got the condition colour; this model takes size"),
    ],
    ids=["size", "condition"],
)
def test_requests_that_are_refused(request_: Request, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        loaded().modality.layout(1, Noise.of(0, 1), request_)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "8"}, "got precision '8'; expected one of 32, 16, bf16"),
        ({"lorra": "x"}, "unexpected keyword argument 'lorra'"),
        ({"format": "gif"}, "got format 'gif'; expected one of"),
    ],
    ids=str,
)
def test_options_that_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        checkpoint.load(saved(), options=options)
    assert said in str(caught.value)


@pytest.mark.skipif(find_spec("accelerate") is not None, reason="it is installed")
def test_offloading_needs_accelerate() -> None:
    with pytest.raises(ValueError, match="install it with `pip install accelerate`"):
        checkpoint.load(saved(), options={"offload": True})


def damage(folder: Path, how: str) -> None:
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    index = folder / "model_index.json"
    if how == "a part is missing":
        shutil.rmtree(folder / "text_encoder")
    elif how == "weights are missing":
        unet.unlink()
    elif how == "pickled":
        unet.unlink()
        (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(1))
    elif how == "cut short":
        unet.write_bytes(unet.read_bytes()[:5000])
    elif how in ("another shape", "a tensor is missing", "a tensor of text is missing"):
        path = folder / "text_encoder" / "model.safetensors" if "text" in how else unet
        tensors = load_file(path)
        name = next(k for k in sorted(tensors) if "attn" in k or "to_q" in k)
        taken = tensors.pop(name)
        save_file(tensors | ({name: taken[:-1]} if "shape" in how else {}), path, metadata={"format": "pt"})
    elif how == "no scheduler":
        shutil.rmtree(folder / "scheduler")
    elif how == "no tokenizer":
        shutil.rmtree(folder / "tokenizer")
    elif how == "code of its own":
        index.write_text(index.read_text().replace('"diffusers",\n    "UNet2DConditionModel"', '"mine",\n    "Net"'))
    elif how == "another kind":
        index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableAudioPipeline"))
    elif how == "no JSON":
        index.write_text("[1")


DAMAGE = {
    "a part is missing": "got a pipeline without text_encoder/config.json",
    "weights are missing": "without weights; expected a .safetensors file",
    "pickled": "got pickled weights",
    "cut short": "which cannot be read",
    "another shape": "as config.json beside it says",
    "a tensor is missing": "(1 tensors are missing)",
    "a tensor of text is missing": "(1 tensors are missing)",
    "no scheduler": "got a pipeline without a readable",
    "no tokenizer": "without a vocabulary",
    "code of its own": "code that comes with a model is not run",
    "another kind": "a model of StableAudioPipeline; expected a kind",
    "no JSON": "which is not a JSON object",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_folders_that_are_refused_in_one_line(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(tmp_path)
    damage(folder, how)
    assert main(["generate", "image", "a cat", "--model", str(folder), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("diffkit: error: got ") and said.count("\n") == 1 and DAMAGE[how] in said, said


def test_a_single_file_is_refused_with_the_way_to_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.ckpt").write_bytes(pickle.dumps(1))
    assert main(["generate", "image", "--model", str(tmp_path / "model.ckpt")]) == 1
    assert "from_single_file(FILE).save_pretrained(FOLDER)" in capsys.readouterr().err
