"""CLIP's vocabulary in small, and checkpoints in other tools' formats, made here: none can be downloaded by a test."""

import collections
import gzip
import json
from itertools import pairwise, product
from pathlib import Path
from typing import Any

START, END = "<|startoftext|>", "<|endoftext|>"
CORPUS = ("a photo of a red boat on the blue sea", "the small dog's house, isn't it", "two cats and 12 large dogs!",
          "a round green boat number one text", "café über naïve")  # fmt: skip


def letters() -> list[str]:
    """The characters that stand for bytes in GPT-2's and CLIP's vocabularies, in CLIP's order."""
    plain = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def learn_merges(count: int) -> list[tuple[str, str]]:
    """Byte pair encoding, learned from a few sentences by its definition."""
    byte_letter = dict(
        zip([b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255], letters(), strict=False)
    )
    words = collections.Counter()
    for word in " ".join(CORPUS).replace(",", " ,").replace("!", " !").split():
        pieces = [byte_letter[b] for b in word.encode()]
        words[(*pieces[:-1], pieces[-1] + "</w>")] += 1
    merges = []
    while len(merges) < count:
        pairs = collections.Counter()
        for word, n in words.items():
            for pair in pairwise(word):
                pairs[pair] += n
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = collections.Counter({_merged(word, best): n for word, n in words.items()})
    return merges


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return tuple(out)


def vocabulary_of(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Tokens and ids as CLIP orders them."""
    tokens = [*letters(), *(letter + "</w>" for letter in letters()), *map("".join, merges), START, END]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def write_hf_vocabulary(folder: Path, merges: list[tuple[str, str]] | None = None) -> int:
    """Write ``vocab.json`` and ``merges.txt``; return the number of tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(80) if merges is None else merges
    vocabulary = vocabulary_of(merges)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(vocabulary)


def write_merge_list(path: Path, merges: list[tuple[str, str]] | None = None) -> Path:
    """Write a list of merges as open_clip and OpenAI's package bring it along."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["a title#version: 0.2", *map(" ".join, learn_merges(80) if merges is None else merges)]
    path.write_bytes(gzip.compress("\n".join(lines).encode(), 1))
    return path


def whole_merge_list(path: Path) -> Path:
    """Write a list that gives a vocabulary of CLIP's size; the list goes on, as the real one does."""
    pairs = list(product(letters(), letters()))[:50_000]
    return write_merge_list(path, pairs)


def save_hf_model(
    folder: Path,
    *,
    activation: str = "quick_gelu",
    image_heads: int = 3,
    heads: int = 2,
    image_size: int = 32,
    seed: int = 0,
    **text: Any,
) -> Any:
    """Save a small random ``transformers.CLIPModel`` with its vocabulary and preprocessing; return it."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    n_tokens = write_hf_vocabulary(folder)
    shared = {"hidden_act": activation, "num_hidden_layers": 2}
    config = CLIPConfig(
        text_config={
            **shared, "vocab_size": n_tokens, "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": heads,
            "max_position_embeddings": 24, "bos_token_id": n_tokens - 2, "eos_token_id": n_tokens - 1, "pad_token_id": n_tokens - 1,
        } | text,
        vision_config={
            **shared, "hidden_size": 48, "intermediate_size": 192, "num_attention_heads": image_heads, "image_size": image_size,
            "patch_size": 8,
        },
        projection_dim=24,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(
                parameter
            )  # biases start at 0, and then nobody would see them exchanged
    model.save_pretrained(folder)
    side = {"height": image_size, "width": image_size}
    processor = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": image_size}, "resample": 3,
        "do_center_crop": True, "crop_size": side, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model
