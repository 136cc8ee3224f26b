"""The command line: one short sub-command per arrow of the flow from pairs to a trained and explained model.

Each command parses, calls one public function and prints; nothing is decided here. With ``--json`` one JSON object goes
to stdout and nothing else does; progress and messages go to stderr. A user's mistake is printed in one or two lines and
ends with exit code 2.
"""

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.core

from coreclip import __version__
from coreclip.errors import CoreclipError, check_utf8
from coreclip.presets import PRESETS

if TYPE_CHECKING:
    from coreclip.pipeline import Dataset
    from coreclip.selection import Subset

app = typer.Typer(
    name="coreclip",
    help="Image-text pairs in, the best small CLIP that your compute can buy out: convert, select, train, profile.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_STARTED = time.monotonic()  # --minutes counts from here, so with the imports
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_OUT_OF_MEMORY = "out of memory; take a smaller batch, fewer workers or a smaller image size"
_PIPELINE, _SELECTION, _TRAINING, _PROFILING = "pipeline", "selection", "training", "profiling"

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
DatasetArgument = Annotated[Path, typer.Argument(help="Data set made by convert.", show_default=False)]
RunArgument = Annotated[
    Path,
    typer.Argument(
        help="Run made by train, or a checkpoint: hf:FOLDER, hf:OWNER/NAME, open_clip:FILE.", show_default=False
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", help="TOML file with \\[data], \\[model], \\[train], \\[jest], \\[reselect], \\[distill]."
    ),
]
PresetOption = Annotated[
    str | None, typer.Option(help=f"A whole model: {', '.join(PRESETS)}. --config and --set change it.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one value, e.g. train.lr=1e-3; may be repeated. RUN/config.toml names all."),
]
InitOption = Annotated[
    str | None,
    typer.Option(
        "--init-from", help="RUN, hf:FOLDER or open_clip:FILE whose weights are the start.", show_default=False
    ),
]
SubsetOption = Annotated[Path | None, typer.Option("--subset", help="SUBSET.parquet to train on.")]
ClassesOption = Annotated[
    str | None, typer.Option(help="Class names of labels 0, 1, ...: a file with one a line, or a,b,c.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or auto: cuda where there is one.")]
ThreadsOption = Annotated[
    int | None, typer.Option(help="Torch threads. Default: torch's own number.", show_default=False)
]
WorkersOption = Annotated[int | None, typer.Option(help="Processes. Default: all cores.", show_default=False)]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.", min=0)]


def main(part: str | None = None) -> NoReturn:
    """Run the command line and exit.

    Parameters
    ----------
    part : {"pipeline", "selection", "training", "profiling"} or None
        Offer the commands of this sub-package only.
    """
    if part is not None:
        app.registered_commands = [c for c in app.registered_commands if c.rich_help_panel == part]
        app.info.name = f"python -m coreclip.{part}"
    sys.exit(run_command(sys.argv[1:], app.info.name if part else "coreclip"))


def run_command(arguments: list[str], name: str | None = "coreclip") -> int:
    """Run one command line in this process and return its exit code: 0, 2 for a user's mistake, 130 for Ctrl-C."""
    command = typer.main.get_group(app)
    try:
        code = command.main(arguments, prog_name=name, standalone_mode=False, obj=f"{name} {shlex.join(arguments)}")
        if code == _INTERRUPTED:  # newer versions of typer turn Ctrl-C into this code, older ones into Abort
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        message = (
            "interrupted; nothing is half-written: run the same command again (convert and train go on where they were)"
        )
        return _fail(message, _INTERRUPTED)
    except CoreclipError as error:
        return _fail(str(error), 2)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; Python would complain once more at exit
        return 1
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}; check the path, its permissions and the free disk", 2)
    except MemoryError:
        return _fail(_OUT_OF_MEMORY, 2)
    except Exception as error:
        if isinstance(error, RuntimeError) and re.search(r"can't allocate memory|out of memory", str(error)):
            return _fail(_OUT_OF_MEMORY, 2)  # torch's own way to say it
        # click's own usage errors know how to print themselves and carry exit code 2.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", 2))


def _fail(message: str, code: int) -> int:
    print(f"coreclip: {message}", file=sys.stderr)
    return code


def _emit(result: dict[str, Any], as_json: bool, text: Callable[[dict[str, Any]], str] | None = None) -> None:
    """Print a command's result: as JSON, or as text for people."""
    if as_json:
        shown = json.dumps(result, ensure_ascii=False, allow_nan=False)
    else:
        shown = text(result) if text else _as_lines(result)
    print(shown.encode("utf-8", "replace").decode("utf-8"))  # names of files may hold bytes that are no text


def _as_lines(result: dict[str, Any], indent: str = "") -> str:
    width = max((len(str(key)) for key in result), default=0)
    lines = []
    for key, value in result.items():
        name = str(key).replace("_", " ")
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}", _as_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name:<{width}}  {_as_text(value)}")
    return "\n".join(lines)


def _as_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(_as_text, value)) or "-"
    if isinstance(value, dict):
        return " ".join(f"{key}={_as_text(item)}" for key, item in value.items()) or "-"
    return "-" if value is None else str(value)


def _version(value: bool) -> None:
    if value:
        print(f"coreclip {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel=_PIPELINE)
def convert(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="WebDataset .tar (also img2dataset's; a folder, pattern or URL of them), folder with captions (csv, tsv, jsonl, "
            "parquet, COCO json), class folders or a .tar of them, Hugging Face parquet, .tfrecord, MXNet .rec, IDX .gz, "
            ".beton, DATASET.",
            show_default=False,
        ),
    ],
    dataset: Annotated[Path, typer.Argument(help="Directory to make.", show_default=False)],
    captions: Annotated[
        Path | None, typer.Option(help="Captions (csv, tsv, jsonl, parquet, COCO json) of a folder.")
    ] = None,
    classes: ClassesOption = None,
    template: Annotated[str, typer.Option(help="Caption made of a class name.")] = "a photo of a {}",
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="tokenizer.json, DATASET, or clip: CLIP's own vocabulary (clip:PATH names it). Default: trained here."
        ),
    ] = None,
    vocab_size: Annotated[int, typer.Option(help="Largest vocabulary to train.")] = 4096,
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens kept of a caption. Default: 32; 77 with CLIP's vocabulary; a data set's own with its tokenizer."
        ),
    ] = None,
    max_side: Annotated[int | None, typer.Option(help="Shrink images with a longer side, pixels.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Store pixels, not JPEGs; for small images, with --max-side.")
    ] = False,
    check: Annotated[str, typer.Option(help="decode every image, or read its header only.")] = "decode",
    workers: Annotated[int | None, typer.Option(help="Processes. Default: all cores.", show_default=False)] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print pairs, disk and time, and write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert image-text pairs into a data set of FFCV .beton shards.

    JPEG bytes are kept untouched where they can be; what can't be decoded is listed in rejects.parquet with the reason.

    Example: coreclip convert 'shards/train-{00000..00004}.tar' flickr
    """
    from coreclip.pipeline import convert as run_convert
    from coreclip.pipeline import plan_conversion

    report = (plan_conversion if plan else run_convert)(
        sources,
        dataset,
        captions=captions,
        class_names=None if classes is None else _names(classes),
        template=template,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        context=context,
        max_side=max_side,
        raw=raw,
        check=check,
        workers=workers,
    )
    _emit(asdict(report), as_json)


def _names(text: str) -> list[str]:
    """Class names given as a file with one a line, or as ``a,b,c``."""
    if os.path.isfile(text):  # unlike Path.is_file, false for a list that is too long for a name
        try:
            names = Path(text).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise CoreclipError(f"--classes {text} is not UTF-8; save it as UTF-8, one name a line") from None
    elif "," in text:
        names = text.split(",")
    else:
        raise CoreclipError(
            f"--classes {text!r} is neither a file nor a list; give a file with one name a line, or a,b,c"
        )
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise CoreclipError(f"--classes {text!r} holds no name; give a file with one name a line, or a,b,c")
    for name in names:
        check_utf8(name, "--classes: the name")
    return names


@app.command(rich_help_panel=_PIPELINE)
def inspect(dataset: DatasetArgument, as_json: JsonOption = False) -> None:
    """Show what a data set holds: counts, sizes, captions, duplicates, rejects.

    Example: coreclip inspect flickr
    """
    from coreclip.pipeline import inspect as run_inspect

    _emit(run_inspect(dataset), as_json)


@app.command(rich_help_panel=_PIPELINE)
def verify(
    dataset: DatasetArgument,
    decode: Annotated[str, typer.Option(help="Images to decode: sample, all or none.")] = "sample",
    sample: Annotated[int, typer.Option(help="Images of the sample.")] = 1000,
    workers: WorkersOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Check a data set: hashes, structure, tables against shards, tokens against captions, images by decoding them.

    Exit code 0 where it is whole; 2 where it is not, with every problem on stderr.

    Example: coreclip verify flickr --decode all
    """
    from coreclip.pipeline import verify as run_verify

    report = run_verify(dataset, decode=decode, sample=sample, workers=workers, seed=seed).to_dict()
    for problem in report["problems"]:
        where = "" if problem["index"] is None else f", pair {problem['index']}"
        print(f"coreclip: {problem['file']}{where}: {problem['problem']}; {problem['remedy']}", file=sys.stderr)
    if unlisted := report["n_problems"] - len(report["problems"]):
        print(f"coreclip: and {unlisted:,} more problems", file=sys.stderr)
    _emit(report if as_json else {k: v for k, v in report.items() if k != "problems"}, as_json)
    if not report["ok"]:
        raise typer.Exit(2)


@app.command(rich_help_panel=_PIPELINE)
def extract(
    dataset: DatasetArgument,
    index: Annotated[list[int], typer.Option(help="Pair to show; may be repeated.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Image file to write (.jpg; .png for raw pixels), or a folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is stored about single pairs, and write their images as they are stored.

    Example: coreclip extract flickr --index 7 --out seven.jpg
    """
    from coreclip.pipeline import extract as run_extract

    _emit({"pairs": run_extract(dataset, index, out)}, as_json, _as_pairs)


def _as_pairs(result: dict[str, Any]) -> str:
    return "\n\n".join(_as_lines(pair) for pair in result["pairs"])


@app.command(rich_help_panel=_PIPELINE)
def materialise(
    dataset: DatasetArgument,
    subset: Annotated[Path, typer.Argument(help="SUBSET.parquet made by select.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Directory to make.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Copy a subset's pairs into a data set of their own; nothing is encoded again.

    The pairs keep the order of the data set. Training needs no copy: train takes --subset.

    Example: coreclip materialise flickr best.parquet flickr-best
    """
    from coreclip.pipeline import Dataset
    from coreclip.pipeline import materialise as run_materialise
    from coreclip.selection import Subset

    _emit(run_materialise(Dataset(dataset), Subset.load(subset), out), as_json)


@app.command(rich_help_panel=_PIPELINE)
def append(
    dataset: DatasetArgument,
    sources: Annotated[list[str], typer.Argument(help="What convert takes.", show_default=False)],
    captions: Annotated[
        Path | None, typer.Option(help="Captions table (csv, tsv, jsonl, parquet) of a folder.")
    ] = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Convert more sources with a data set's own tokenizer and options and add them to it.

    Old pairs keep their indices. Subsets and features of the old data set are refused for the new one.

    Example: coreclip append flickr 'more/train-{00005..00007}.tar'
    """
    from coreclip.pipeline import append as run_append

    _emit(run_append(dataset, sources, captions=captions, workers=workers), as_json)


@app.command(rich_help_panel=_PIPELINE)
def merge(
    datasets: Annotated[list[Path], typer.Argument(help="Two data sets or more.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Directory to make.", show_default=False)],
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json, DATASET, clip or clip:PATH. Default: the first data set's.")
    ] = None,
    drop_duplicates: Annotated[bool, typer.Option(help="Leave out images that an earlier pair has.")] = False,
    drop_labels: Annotated[bool, typer.Option(help="Make a data set without class labels.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make one data set of several, one after the other; no image is encoded again.

    Example: coreclip merge flickr coco both --drop-duplicates
    """
    from coreclip.pipeline import merge as run_merge

    report = run_merge(datasets, out, tokenizer=tokenizer, drop_duplicates=drop_duplicates, drop_labels=drop_labels)
    _emit(report, as_json)


@app.command(rich_help_panel=_PIPELINE)
def split(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Argument(help="Directory to make, with a data set for each part.", show_default=False)],
    parts: Annotated[str, typer.Option(help="NAME=FRACTION,...")] = "train=0.9,val=0.05,test=0.05",
    by: Annotated[
        str | None, typer.Option(help="What no two parts share: image, caption or image,caption. Default: both.")
    ] = None,
    subsets: Annotated[bool, typer.Option(help="Write NAME.parquet subsets in place of data sets.")] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Split a data set into parts that share no image and no caption.

    Example: coreclip split flickr parts --parts train=0.9,val=0.05,test=0.05
    """
    from coreclip.pipeline import split as run_split
    from coreclip.pipeline.split import parse_parts

    fractions = parse_parts(parts)
    if subsets:
        _emit(_split_subsets(dataset, out, fractions, by, seed), as_json)
    else:
        _emit(run_split(dataset, out, fractions, seed=seed, by=by), as_json)


def _split_subsets(dataset: Path, out: Path, parts: dict[str, float], by: str | None, seed: int) -> dict[str, Any]:
    import numpy as np

    from coreclip.pipeline import Dataset, plan_split
    from coreclip.pipeline.publishing import new_folder
    from coreclip.selection import Subset

    data = Dataset(dataset)
    plan = plan_split(data, parts, seed=seed, by=by)
    with new_folder(out) as folder:
        for name, indices in plan.indices.items():
            Subset(
                indices=indices,
                weights=np.ones(len(indices)),
                gains=np.zeros(len(indices)),
                method="split",
                parameters={"part": name, "parts": parts, "by": plan.by},
                seed=seed,
                n=data.n,
                fingerprint=data.fingerprint,
            ).save(folder / f"{name}.parquet")
    return plan.to_dict()


@app.command(rich_help_panel=_PIPELINE)
def export_webdataset(
    dataset: DatasetArgument,
    out: Annotated[Path, typer.Argument(help="Directory to make.", show_default=False)],
    subset: Annotated[Path | None, typer.Option(help="SUBSET.parquet to write.")] = None,
    shard_size: Annotated[str, typer.Option(help="Size at which an archive ends: bytes, or with K, M or G.")] = "1G",
    as_json: JsonOption = False,
) -> None:
    """Write a data set as WebDataset .tar archives with the stored image bytes, captions, labels and columns.

    Example: coreclip export-webdataset flickr flickr-tars --shard-size 256M
    """
    from coreclip.pipeline import Dataset
    from coreclip.pipeline import export_webdataset as run_export
    from coreclip.selection import Subset

    chosen = None if subset is None else Subset.load(subset)
    _emit(run_export(Dataset(dataset), out, subset=chosen, shard_bytes=_n_bytes(shard_size)), as_json)


def _n_bytes(text: str) -> int:
    """Read a size as ``1000``, ``64K``, ``256M`` or ``1G`` (powers of 1024)."""
    number, unit = (text[:-1], text[-1:].upper()) if text[-1:].upper() in "KMG" else (text, "")
    if not (number.isascii() and number.isdigit() and len(number) <= 15):
        raise CoreclipError(f"--shard-size {text!r} is no size: a whole number of bytes, or with K, M or G, e.g. 256M")
    return int(number) << 10 * " KMG".index(unit or " ")


@app.command(rich_help_panel=_TRAINING)
def train(
    dataset: DatasetArgument,
    run: Annotated[Path, typer.Argument(help="Directory to make, or to go on with.", show_default=False)],
    subset: SubsetOption = None,
    minutes: Annotated[float | None, typer.Option(help="Budget: wall time of the whole command.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Budget: passes over the (sub)set.")] = None,
    samples: Annotated[int | None, typer.Option(help="Budget: pairs seen.")] = None,
    init_from: InitOption = None,
    preset: PresetOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="Held-out data set: retrieval on it is measured each train.evaluate_every of the budget."),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write the numbers of metrics.jsonl to RUN/tensorboard.")
    ] = False,
    panel: Annotated[
        bool | None,
        typer.Option(
            "--panel/--no-panel", help="A live panel. Default: where stderr is a terminal.", show_default=False
        ),
    ] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    r"""Train a compact CLIP within a budget of minutes, epochs or samples.

    The same command goes on where an interrupted run stopped.

    Some of what --set changes:

    train.objective=sigmoid (or classification): the loss.

    train.optimiser=muon: more learned of each pair, in somewhat longer steps.

    train.dropout=0.3, train.word_dropout=0.2, data.flip=0.5: for a few thousand pairs.

    data.sizes=\[32,48,64]: images that grow over the budget. train.ema=0.05: an average of the last weights.

    distill.features=FEATURES, distill.captions=true: a teacher.

    reselect.every=2: the pairs are chosen anew after every second pass.

    jest.keep=0.5 with jest.reference=RUN: each step trains on the half of a batch that has most to learn.

    data.batch_size=4096 with train.micro_batch=256: a large batch in pieces.

    With --init-from the model, the image size and the tokenizer are those of the start; --set data.image_size=N interpolates its positions.

    Example: coreclip train flickr run --minutes 5 --subset best.parquet --validation flickr-dev --set train.lr=5e-4

    Example: coreclip train flickr run --minutes 10 --config examples/flickr8k.toml

    Example: coreclip train flickr run --epochs 3 --init-from hf:clip-vit-base-patch32 --set train.lr=1e-5

    Example: torchrun --nproc-per-node 2 -m coreclip train flickr run --minutes 5
    """
    from coreclip.config import load_config
    from coreclip.pipeline import Dataset
    from coreclip.selection import Subset
    from coreclip.training import config_of, processes
    from coreclip.training import train as run_train

    start = None if init_from is None else config_of(init_from)
    with processes(device) as ranks:
        report = run_train(
            Dataset(dataset),
            run,
            config=load_config(config, overrides or (), preset=preset, start=start),
            subset=None if subset is None else Subset.load(subset),
            init_from=init_from,
            minutes=minutes,
            epochs=epochs,
            samples=samples,
            device=device,
            threads=threads,
            started=_STARTED,
            validation=None if validation is None else Dataset(validation),
            tensorboard=tensorboard,
            panel=panel,
            ranks=ranks,
        )
    if ranks.is_first:
        _emit(asdict(report), as_json)


@app.command(rich_help_panel=_TRAINING)
def embed(
    dataset: DatasetArgument,
    features: Annotated[Path, typer.Argument(help="Directory to make.", show_default=False)],
    model: Annotated[
        Path, typer.Option(help="RUN whose towers embed, or hf:FOLDER, open_clip:FILE.", show_default=False)
    ],
    batch_size: Annotated[int, typer.Option(help="Pairs at a time.", min=1)] = 512,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Embed every image and caption of a data set with a trained model.

    Example: coreclip embed flickr features --model run
    """
    from coreclip.pipeline import Dataset
    from coreclip.training import embed as run_embed

    report = run_embed(Dataset(dataset), features, model=model, batch_size=batch_size, device=device)
    _emit(asdict(report), as_json)


def _listing(word: str, lines: Callable[[], Iterable[str]]) -> type[typer.core.TyperCommand]:
    """Return a command whose help has a registry's lines for a word; other commands do not pay for the registry's import."""

    class Listing(typer.core.TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            self.help = (self.help or "").replace(word, "\n\n".join(lines()))
            super().format_help(ctx, formatter)

    return Listing


def _methods() -> Iterable[str]:
    from coreclip.selection import METHODS

    own = {name: method.summary for name, method in METHODS.items() if ":" not in name}
    apricot = [name.partition(":")[2].removesuffix("Selection") for name in METHODS if name.startswith("apricot:")]
    own["apricot:NAME"] = f"an apricot selector, up to 20,000 pairs: {', '.join(apricot)}"
    return (f"[bold]{name}[/bold]: {summary}" for name, summary in own.items())


@app.command(rich_help_panel=_SELECTION, cls=_listing("METHODS", _methods))
def select(
    context: typer.Context,
    dataset: Annotated[
        Path, typer.Argument(help="Data set made by convert, or a DataComp metadata folder.", show_default=False)
    ],
    subset: Annotated[Path, typer.Argument(help="SUBSET.parquet to write.", show_default=False)],
    method: Annotated[
        str,
        typer.Option(
            help="A method, or several: 'a(x=1) | b' in a row, 'a & b' both, 'a + b' either, 'a @ class' in groups.",
            show_default=False,
        ),
    ],
    fraction: Annotated[float | None, typer.Option(help="Share of all pairs to keep, above 0 to 1.")] = None,
    k: Annotated[int | None, typer.Option(help="Pairs to keep, in place of --fraction.")] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="FEATURES of embed, or .npy / .npz embeddings. Default for a DataComp folder: its own."),
    ] = None,
    arch: Annotated[str | None, typer.Option(help="Embeddings of a DataComp folder: l14 or b32.")] = None,
    signals: Annotated[Path | None, typer.Option(help="RUN whose signals the method reads.")] = None,
    uids: Annotated[Path | None, typer.Option(help="Also write the chosen uids as DataComp's .npy.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write a page (HTML) about what was kept and refused.")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Select the pairs that are worth training on.

    METHODS

    Embeddings of other tools that have keys or uids are put in the data set's order by them.

    grand, tracin and vog are computed from the weights that RUN kept (train.checkpoints) when they are first asked for.

    Example: coreclip select flickr best.parquet --method 'semdedup(eps=0.05) | facility-location' --fraction 0.3 --features features
    """
    from coreclip.selection import (
        Features,
        check_output,
        check_uids_output,
        metadata_of,
        needs_features,
    )
    from coreclip.selection import select as run_select
    from coreclip.selection_pool import open_pool, signals_of

    check_output(subset)
    if uids is not None:
        check_uids_output(uids)
    if report is not None:
        _check_selection_page(report, subset)
    pool = open_pool(dataset)
    if report is not None and pool.dataset is None:
        raise CoreclipError(
            "--report shows images, and a DataComp metadata folder has none; leave it out or convert the images"
        )
    if arch is not None and (pool.own_features is None or features is not None):
        raise CoreclipError("--arch names the embeddings of a DataComp metadata folder; leave it out")
    embeddings = None if features is None else pool.align(Features.load(features))
    if embeddings is None and pool.own_features is not None and needs_features(method):
        embeddings = pool.own_features(arch)
    chosen = run_select(
        embeddings,
        pool.n,
        method=method,
        fraction=fraction,
        k=k,
        signals=None if signals is None else signals_of(signals, pool, method),
        metadata={name: pool.metadata(name) for name in metadata_of(method)},
        labels=pool.labels,
        seed=seed,
        fingerprint=pool.fingerprint,
    )
    all_uids = None if uids is None else pool.uids()
    chosen.save(subset)
    if uids is not None and all_uids is not None:
        from coreclip.selection import save_uids

        save_uids(uids, all_uids[chosen.indices])
    if note := chosen.parameters.get("note"):
        print(f"coreclip: {note}", file=sys.stderr)
    result = {key: getattr(chosen, key) for key in ("method", "n", "k", "objective", "upper_bound", "seconds")}
    if report is not None and pool.dataset is not None:
        from coreclip.selection_report import write_report

        write_report(report, pool.dataset, chosen, embeddings, context.obj)
        result["report"] = str(report)
    _emit(result, as_json)


def _check_selection_page(report: Path, subset: Path) -> None:
    """Refuse, before long work, to write a page over something else."""
    from coreclip.selection_report import check_report

    if os.path.abspath(report) == os.path.abspath(subset):
        raise CoreclipError(f"--report {report} is the subset's own file; name another file for the page")
    check_report(report)


@app.command(rich_help_panel=_SELECTION)
def subset(
    subsets: Annotated[
        list[Path],
        typer.Argument(
            help="SUBSET.parquet; with --dataset also lists of other tools: .npy of indices or DataComp's uids, .txt of keys.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="SUBSET.parquet to write, or a list with --export.", show_default=False)],
    union: Annotated[
        bool, typer.Option("--union", help="Pairs of any: the first's, then the others' new ones.")
    ] = False,
    intersection: Annotated[
        bool, typer.Option("--intersection", help="Pairs that all have, in the first's order.")
    ] = False,
    difference: Annotated[bool, typer.Option("--difference", help="Pairs of the first that no other has.")] = False,
    resize: Annotated[int | None, typer.Option(help="Then exactly so many pairs: the first ones.", min=1)] = None,
    fill: Annotated[
        str | None, typer.Option(help="Where --resize takes more from: random, or a SUBSET.parquet or list.")
    ] = None,
    export: Annotated[str | None, typer.Option(help="Write a list: index or uids (.npy), or keys (.txt).")] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="DATASET whose keys and uids are meant; subsets are checked against it.")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Combine subsets, resize one, and exchange them with other tools.

    Example: coreclip subset a.parquet b.parquet both.parquet --intersection --resize 1000

    Example: coreclip subset best.parquet best.npy --export uids --dataset flickr

    Example: coreclip subset theirs.txt theirs.parquet --dataset flickr
    """
    from coreclip.pipeline import Dataset
    from coreclip.selection import check_output, export_subset

    if export is None:
        check_output(out)
    data = None if dataset is None else Dataset(dataset)
    chosen = _combined([_load_subset(path, data) for path in subsets], union, intersection, difference)
    if resize is not None:
        filler = fill if fill in (None, "random") else _load_subset(Path(fill), data)
        chosen = chosen.resize(resize, fill=filler, seed=seed)  # type: ignore[arg-type]
    elif fill is not None:
        raise CoreclipError(f"--fill {fill} without --resize: say how many pairs there shall be, e.g. --resize 1000")
    if export is None:
        chosen.save(out)
    else:
        from coreclip.selection_pool import names_of

        export_subset(chosen, out, export, None if data is None or export == "index" else names_of(data, export))
    _emit({key: getattr(chosen, key) for key in ("method", "n", "k", "objective", "upper_bound")}, as_json)


def _combined(parts: list["Subset"], union: bool, intersection: bool, difference: bool) -> "Subset":
    named = {"union": union, "intersection": intersection, "difference": difference}
    ways = [name for name, given in named.items() if given]
    if len(ways) > 1 or (len(parts) > 1) != bool(ways):
        given = ", ".join(f"--{name}" for name in ways) or "none"
        raise CoreclipError(
            f"{len(parts)} subsets and {given} of --union, --intersection, --difference: give one of them for two subsets or "
            f"more, none for a single one"
        )
    return getattr(parts[0], ways[0])(*parts[1:]) if ways else parts[0]


def _load_subset(path: Path, data: "Dataset | None") -> "Subset":
    from coreclip.selection import Subset, form_of, import_subset

    if path.suffix not in (".npy", ".txt"):
        loaded = Subset.load(path)
        if data is not None:
            loaded.check(data.n, data.fingerprint)
        return loaded
    form = form_of(path)
    if data is None:
        raise CoreclipError(f"{path} lists {form} of a data set; say which by --dataset")
    from coreclip.selection_pool import names_of

    names = {} if form == "index" else {form: names_of(data, form)}
    return import_subset(path, data.n, fingerprint=data.fingerprint, **names)


@app.command(rich_help_panel=_TRAINING)
def evaluate(
    run: RunArgument,
    dataset: DatasetArgument,
    features: Annotated[
        Path | None, typer.Option(help="FEATURES of DATASET by RUN (made by embed), in place of embedding again.")
    ] = None,
    templates: Annotated[
        str,
        typer.Option(help="Prompts of zero-shot: coreclip, clip-7, clip-80, photo, name, or a file with one a line."),
    ] = "coreclip",
    classes: ClassesOption = None,
    confusion: Annotated[bool, typer.Option("--confusion", help="Also return the zero-shot confusion matrix.")] = False,
    linear_probe: Annotated[bool, typer.Option(help="Also fit a linear probe where there are labels.")] = False,
    few_shot: Annotated[
        str | None, typer.Option(help="Also fit classifiers to so many pairs of each class, e.g. 1,2,4,8,16.")
    ] = None,
    draws: Annotated[int, typer.Option(help="How often the few pairs are drawn.", min=1)] = 5,
    train: Annotated[
        Path | None, typer.Option("--train", help="Data set that probes are fitted to. Default: a part of DATASET.")
    ] = None,
    train_features: Annotated[Path | None, typer.Option(help="FEATURES of --train by RUN.")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure retrieval both ways, and where there are labels zero-shot accuracy and probes.

    Example: coreclip evaluate run flickr-dev

    Example: coreclip evaluate run cifar-test --templates clip-7 --linear-probe --few-shot 1,2,4,8,16 --train cifar-train
    """
    from coreclip.pipeline import Dataset
    from coreclip.training import evaluate as run_evaluate
    from coreclip.training import read_templates

    result = run_evaluate(
        run,
        Dataset(dataset),
        features=features,
        templates=read_templates(templates),
        class_names=None if classes is None else _names(classes),
        confusion=confusion,
        linear_probe=linear_probe,
        few_shot=() if few_shot is None else _numbers(few_shot),
        draws=draws,
        train=None if train is None else Dataset(train),
        train_features=train_features,
        device=device,
        seed=seed,
    )
    _emit(result, as_json, _as_measured)


def _numbers(text: str) -> list[int]:
    """Read ``1,2,4``."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < len(part) < 7 for part in parts):
        raise CoreclipError(f"--few-shot {text!r} is no list of numbers; give e.g. 1,2,4,8,16")
    return [int(part) for part in parts]


def _as_measured(result: dict[str, Any]) -> str:
    """An evaluation as text: what does not apply is left out, classes and shots have a line each."""
    shown = {key: value for key, value in result.items() if value is not None and key != "zero_shot_confusion"}
    if classes := shown.pop("zero_shot_per_class", None):
        shown["zero_shot_accuracy_of"] = {f"{i} {row['class']}": row["accuracy"] for i, row in enumerate(classes)}
    if shots := shown.pop("few_shot", None):
        shown["few_shot_accuracy_of"] = {
            f"{row['shots']} a class": f"logistic {row['logistic_accuracy']:.4f} ± {row['logistic_accuracy_std']:.4f}, nearest mean "
            f"{row['nearest_mean_accuracy']:.4f} ± {row['nearest_mean_accuracy_std']:.4f}"
            for row in shots
        }
    lines = [_as_lines(shown)]
    if matrix := result.get("zero_shot_confusion"):
        width = max(len(str(count)) for row in matrix for count in row) + 1
        lines += ["confusion: a row for each true class, a column for each answer"]
        lines += ["".join(f"{count:>{width}}" for count in row) for row in matrix]
    return "\n".join(lines)


@app.command(rich_help_panel=_TRAINING)
def search(
    context: typer.Context,
    run: RunArgument,
    dataset: DatasetArgument,
    queries: Annotated[
        list[str] | None, typer.Argument(metavar="QUERY", help="What to look for.", show_default=False)
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="Image file to find similar ones of; may be repeated.", show_default=False)
    ] = None,
    queries_from: Annotated[Path | None, typer.Option("--queries", help="File with one more query a line.")] = None,
    top: Annotated[int, typer.Option(help="Images to list of each query.", min=1)] = 10,
    features: Annotated[
        Path | None, typer.Option(help="FEATURES of DATASET by RUN (made by embed), in place of embedding again.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the results as a page with the pictures.")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Find the images that fit a text, or look like an image, best.

    Example: coreclip search run flickr "a dog on a beach" --top 5 --html dogs.html

    Example: coreclip search run flickr --image mine.jpg --features features
    """
    from coreclip.pipeline import Dataset
    from coreclip.search_report import check_search_page, write_search_page
    from coreclip.training import search_all

    if html is not None:
        check_search_page(html)
    data = Dataset(dataset)
    texts = [*(queries or ()), *([] if queries_from is None else _lines(queries_from, "--queries"))]
    found = search_all(run, data, texts, images=image or (), top=top, features=features, device=device)
    result: dict[str, Any] = {"searches": found}
    if len(found) == 1:
        result = {"query": found[0]["query"], "results": found[0]["results"], **result}
    if html is not None:
        write_search_page(html, data, found, context.obj)
        result["html"] = str(html)
    _emit(result, as_json, _as_searches)


def _lines(path: Path, option: str) -> list[str]:
    """Return the lines of a text file that are not empty."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise CoreclipError(f"{option} {path} is not UTF-8; save it as UTF-8, one a line") from None
    if not (kept := [line for line in lines if line]):
        raise CoreclipError(f"{option} {path} is empty; it must have one a line")
    return kept


def _as_searches(result: dict[str, Any]) -> str:
    several = len(result["searches"]) > 1
    return "\n".join(
        line
        for found in result["searches"]
        for line in ([found["query"]] if several else []) + [_as_hit(hit) for hit in found["results"]]
    )


def _as_hit(hit: dict[str, Any]) -> str:
    return f"{hit['rank']:>3}  {hit['score']:.3f}  index {hit['index']}  {hit['key']}  {hit['captions'][0]}"


@app.command(rich_help_panel=_TRAINING)
def rerank(
    run: RunArgument,
    query: Annotated[str, typer.Argument(help="What the images are to show.", show_default=False)],
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGES", help="Image files, folders, lists (.txt) of files.", show_default=False),
    ] = None,
    candidates: Annotated[
        Path | None,
        typer.Option(help="Table (csv, tsv, jsonl, parquet) of files (path) with another system's scores (score)."),
    ] = None,
    top: Annotated[int | None, typer.Option(help="Images to list. Default: all.", min=1)] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Put image files in the order in which they fit a text.

    Files that can't be read are named on stderr with the reason and left out.

    Example: coreclip rerank run "a dog on a beach" found/ more.jpg

    Example: coreclip rerank run "a dog on a beach" --candidates found.csv --top 10
    """
    from coreclip.training import rerank as run_rerank

    result = run_rerank(run, query, images or (), candidates=candidates, top=top, device=device)
    _warn_of_failed(result["failed"])
    _emit(result, as_json, _as_ranked)


def _as_ranked(result: dict[str, Any]) -> str:
    return "\n".join(
        f"{hit['rank']:>4}  {hit['score']:.3f}  {hit['path']}"
        + (f"  (theirs: {hit['their_rank']}, {hit['their_score']:.6g})" if hit.get("their_rank") is not None else "")
        for hit in result["results"]
    )


def _warn_of_failed(failed: list[dict[str, str]]) -> None:
    for one in failed:
        print(f"coreclip: {one['path']} is left out: {one['reason']}", file=sys.stderr)


@app.command(rich_help_panel=_TRAINING)
def classify(
    run: RunArgument,
    images: Annotated[
        list[Path], typer.Argument(help="Image files, folders, lists (.txt) of files.", show_default=False)
    ],
    classes: Annotated[
        str,
        typer.Option(help="Names of the classes: dog,cat,a red car, or a file with one a line.", show_default=False),
    ],
    templates: Annotated[
        str, typer.Option(help="Prompts: coreclip, clip-7, clip-80, photo, name, or a file with one a line.")
    ] = "coreclip",
    top: Annotated[int, typer.Option(help="Classes to list of each image.", min=1)] = 5,
    csv: Annotated[Path | None, typer.Option(help="Also write a table: path, rank, class, probability, score.")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Classify image files by class names that are given here.

    Files that can't be read are named on stderr with the reason and left out. Probabilities are over the given classes alone.

    Example: coreclip classify run photos/ --classes "dog,cat,a red car" --csv photos.csv
    """
    from coreclip.training import classify as run_classify
    from coreclip.training import read_templates

    if csv is not None and os.path.lexists(csv):
        raise CoreclipError(f"--csv {csv} exists; nothing of yours is replaced; remove it or name another file")
    result = run_classify(run, images, _names(classes), templates=read_templates(templates), top=top, device=device)
    _warn_of_failed(result["failed"])
    if csv is not None:
        _write_predictions(csv, result)
        result["csv"] = str(csv)
    _emit(result, as_json, _as_classified)


def _write_predictions(path: Path, result: dict[str, Any]) -> None:
    import csv
    import io

    from coreclip.files import write_text

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "rank", "class", "probability", "score"])
    for one in result["results"]:
        for rank, found in enumerate(one["predictions"], start=1):
            writer.writerow([one["path"], rank, found["class"], found["probability"], found["score"]])
    write_text(path, text.getvalue())


def _as_classified(result: dict[str, Any]) -> str:
    return "\n".join(
        f"{one['path']}  "
        + ", ".join(f"{found['class']} {100 * found['probability']:.1f} %" for found in one["predictions"])
        for one in result["results"]
    )


@app.command(rich_help_panel=_TRAINING)
def explain(
    run: RunArgument,
    dataset: DatasetArgument,
    index: Annotated[list[int], typer.Option(help="Pair to explain; may be repeated.", show_default=False)],
    train: Annotated[
        Path | None, typer.Option("--train", help="Data set of the training pairs. Default: DATASET.")
    ] = None,
    top: Annotated[int, typer.Option(help="Pairs to list of each kind.", min=1)] = 10,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show which training pairs helped or hurt the model on some pairs (TracIn, from the weights that RUN kept).

    Example: coreclip explain run flickr-dev --index 7 --train flickr --top 5
    """
    from coreclip.pipeline import Dataset
    from coreclip.training import explain as run_explain

    data = Dataset(dataset)
    source = None if train is None else Dataset(train)
    result = run_explain(run, data, index, train=source, top=top, seed=seed, device=device)
    if not result["trained_on_this_data"]:
        print(
            f"coreclip: {run} was trained on another data set than {train or dataset}: this is what steps on its pairs would have "
            "done; name the run's own by --train",
            file=sys.stderr,
        )
    _emit(result, as_json, _as_influences)


def _as_influences(result: dict[str, Any]) -> str:
    lines = []
    for name in ("helped", "hurt"):
        lines += [f"{name} pair{'s' * (len(result['index']) > 1)} {_as_text(result['index'])}"]
        lines += [
            f"  index {pair['index']}  {pair['key']}  {pair['influence']:+.3g}  {pair['caption']}"
            for pair in result[name]
        ] or ["  none"]
    return "\n".join(lines)


def _formats() -> Iterable[str]:
    from coreclip.training import FORMATS

    return (
        f"[bold]{name}[/bold] ({', '.join(format_.precisions)}): {format_.summary}" for name, format_ in FORMATS.items()
    )


@app.command(rich_help_panel=_TRAINING, cls=_listing("FORMATS", _formats))
def export(
    run: RunArgument,
    out: Annotated[Path | None, typer.Argument(help="Directory to make.", show_default=False)] = None,
    format: Annotated[str | None, typer.Option(help="What to write; see above.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8, where the format has it.")] = "fp32",
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="Held-out DATASET: to compare on, to calibrate int8 with, and to measure what accuracy is lost."
        ),
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Also time the model on every runtime, for one row and for 64; minutes.")
    ] = False,
    explain_compile: Annotated[
        bool,
        typer.Option(
            "--explain-compile",
            help="Also report what torch.compile makes of it: breaks, recompiles, fused kernels; minutes.",
        ),
    ] = False,
    threads: Annotated[
        int | None, typer.Option(help="Of --table's runtimes. Default: torch's own number.", show_default=False)
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="auto, cpu, cuda or cuda:N: where the model itself is evaluated and compiled. Exports are made, run and timed on the "
            "processor."
        ),
    ] = "auto",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write the two towers for another runtime, compared with the model before they are handed out.

    FORMATS

    Example: coreclip export run run-onnx --format onnx --precision int8 --dataset flickr-dev

    Example: coreclip export run --explain-compile --dataset flickr
    """
    from coreclip.pipeline import Dataset

    if (out is None) != (format is None):
        raise CoreclipError("an export needs both OUT and --format; e.g. coreclip export run run-onnx --format onnx")
    if not (out or table or explain_compile):
        raise CoreclipError("nothing to do: give OUT and --format, --table, or --explain-compile")
    if table and device not in ("auto", "cpu"):
        raise CoreclipError(
            f"--table times runtimes on the processor, and --device {device} was asked for; leave one of them out"
        )
    data = None if dataset is None else Dataset(dataset)
    result: dict[str, Any] = {}
    texts: list[str] = []
    if out is not None and format is not None:
        from coreclip.training import export as run_export

        report = run_export(run, out, format=format, precision=precision, dataset=data, device=device, seed=seed)
        result |= asdict(report)
        texts.append(_as_lines({key: value for key, value in result.items() if key != "parity"}))
    if table:
        from coreclip.training import compare_runtimes, runtimes_table

        result["runtimes"] = compare_runtimes(run, threads=threads, dataset=data, seed=seed)
        texts.append(runtimes_table(result["runtimes"]))
    if explain_compile:
        from coreclip.training import compile_text
        from coreclip.training import explain_compile as run_explain_compile

        result["compile"] = run_explain_compile(run, data, device=device, seed=seed)
        texts.append(compile_text(result["compile"]))
    _emit(result, as_json, lambda _: "\n\n".join(texts))


@app.command(rich_help_panel=_PROFILING)
def profile(
    dataset: Annotated[Path | None, typer.Argument(help="DATASET made by convert.", show_default=False)] = None,
    subset: SubsetOption = None,
    minutes: Annotated[float | None, typer.Option(help="Length of the run: wall time.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Length of the run: passes over the (sub)set.")] = None,
    samples: Annotated[int | None, typer.Option(help="Length of the run: pairs seen.")] = None,
    init_from: InitOption = None,
    steps: Annotated[int, typer.Option(help="Steps measured in each condition.", min=8)] = 30,
    preset: PresetOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    cold: Annotated[bool, typer.Option("--cold", help="Also measure with the data's files out of memory.")] = False,
    probe: Annotated[
        bool, typer.Option("--probe", help="A second opinion: delay stages and see whether the step gets longer.")
    ] = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Try the remedies on a copy of the configuration, measured in turn.")
    ] = False,
    fix_minutes: Annotated[float, typer.Option(help="Time for --fix.")] = 10.0,
    fix_any: Annotated[
        bool,
        typer.Option("--fix-any", help="--fix, and what changes the pixels or batches that the model learns from too."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Where --fix writes the improved configuration.")] = Path("improved.toml"),
    trace: Annotated[
        Path | None, typer.Option(help="Also write torch's trace of a few steps, for Chrome's and Perfetto's viewers.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the report as a page.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="Two profiles written with --json, before and after: nothing is measured.", show_default=False
        ),
    ] = None,
    fail_on: Annotated[str, typer.Option(help="With --compare: exit with code 1 when it is this much slower.")] = "5%",
    as_json: JsonOption = False,
) -> None:
    """Run real training steps, name what slows them down, predict what a fix brings, try it and check.

    Nothing is trained or written but what is asked for. The length of the run, where it is given, is what growing costs are projected to.

    Example: coreclip profile flickr --set data.batch_size=128 --html profile.html

    Example: coreclip profile flickr --config recipe.toml --fix --out faster.toml

    Example: coreclip profile --compare before.json after.json --fail-on 5%
    """
    from coreclip.profiling import render_text

    if compare is not None:
        _compare_profiles(compare, fail_on, as_json)
        return
    if dataset is None:
        raise CoreclipError("no data set to profile; name one: coreclip profile DATASET, or two profiles: --compare")
    from coreclip.config import config_to_toml, load_config
    from coreclip.files import write_text
    from coreclip.pages import check_page
    from coreclip.pipeline import Dataset
    from coreclip.profiled import Case, profile_case, total_steps_of
    from coreclip.profiling.report import MARK
    from coreclip.selection import Subset
    from coreclip.training import config_of

    fix = fix or fix_any
    if html is not None:
        check_page(html, MARK, "profile report")
    if fix:
        from coreclip.remedied import MARK as IMPROVED
        from coreclip.remedied import check_minutes

        check_minutes(fix_minutes)
        check_page(out, IMPROVED, "configuration that --fix has written")
    start = None if init_from is None else config_of(init_from)
    case = Case(
        dataset=Dataset(dataset),
        config=load_config(config, overrides or (), preset=preset, start=start),
        subset=None if subset is None else Subset.load(subset),
        init_from=init_from,
        device=device,
        threads=threads,
    )
    total = total_steps_of(case, minutes=minutes, epochs=epochs, samples=samples)
    result = profile_case(case, steps=steps, total_steps=total, cold=cold, probe=probe, trace=trace)
    if fix:
        from coreclip.remedied import improved_toml, measured_remedies, try_remedies

        improvement = try_remedies(case, steps=steps, minutes=fix_minutes, any_result=fix_any)
        result["remedies"] = measured_remedies(result["remedies"], improvement.trials)
        changed = any(trial.kept for trial in improvement.trials)
        result["fix"] = improvement.to_dict() | {"config": str(out) if changed else None}
        if changed:
            chosen = {"subset": subset, "init-from": init_from, "threads": improvement.case.threads}
            chosen |= {} if device == "auto" else {"device": device}
            options = [f"--{name}={value}" for name, value in chosen.items() if value is not None]
            command = shlex.join(["coreclip", "train", str(dataset), "RUN", f"--config={out}", *options])
            write_text(out, improved_toml(improvement, config_to_toml(improvement.case.config), command))
    if html is not None:
        from coreclip.profiling import render_html

        write_text(html, render_html(result))
    _emit(result, as_json, render_text)


def _compare_profiles(paths: tuple[Path, Path], fail_on: str, as_json: bool) -> None:
    from coreclip.files import read_json
    from coreclip.profiling import compare_profiles, comparison_text

    text = fail_on.strip()
    try:
        limit = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise CoreclipError(f"--fail-on {fail_on!r} is no share; give e.g. 5% or 0.05") from None
    comparison = compare_profiles(*(read_json(path, "profile") for path in paths), fail_on=limit)
    _emit(comparison.to_dict(), as_json, lambda _: comparison_text(comparison))
    if comparison.is_slower:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Directory for the report and all it was made of.")] = Path("demo-report"),
    minutes: Annotated[float, typer.Option(help="Wall time that the demonstration may take.")] = 5.0,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Draw image-text pairs, run the whole path on them and write a report.

    Example: coreclip demo demo-report --minutes 5
    """
    from coreclip.demo import run_demo
    from coreclip.report import table_text

    _emit(run_demo(out, minutes=minutes, seed=seed), as_json, table_text)
