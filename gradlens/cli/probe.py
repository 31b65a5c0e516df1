"""``gradlens probe``: a few seconds before training, what a net will have trouble with."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from gradlens.cli.options import format_option, parse_gates, print_rows
from gradlens.config import INITS, parse_seeds
from gradlens.errors import ConfigError, GateError

if TYPE_CHECKING:
    from gradlens.analysis.initial import Judged

KINDS = ("exploding", "nonfinite", "dead", "vanishing", "unused")


@click.command()
@click.argument("model")
@click.option(
    "--input", "shape", metavar="SHAPE",
    help="CxHxW (3x224x224), a vector's LENGTH, or long:LENGTH[:VOCABULARY] for tokens. Default: 3x64x64; of "
    "torchvision 3x224x224; of a factory by its first layer.",
)  # fmt: skip
@click.option("--classes", type=int, help="Outputs (default 10, or those of the data).")
@click.option("--batch-size", type=int, help="Examples (default 32; 4 of more than 50,000 numbers each).")
@click.option("--seed", type=int, help="One draw of weights, with this seed.")
@click.option("--seeds", metavar="LIST", help="A draw of weights each: 0-9 (default 0,1,2; of several nets 0).")
@click.option(
    "--data", metavar="SPEC", help="Real pictures instead of noise: patterns, folder:PATH, csv:FILE, cifar10, ..."
)
@click.option("--depths", metavar="LIST", help="18,34,56: a sweep, where MODEL is plain or resnet.")
@click.option("--norm", metavar="LIST", help="batch, none, or both with a comma; of plain and residual nets.")
@click.option("--init", metavar="LIST", help=f"Of {','.join(INITS)} (default he); of plain and residual nets.")
@click.option("--shortcut", metavar="LIST", help="Of A,B (default A); of residual nets.")
@click.option("--every-layer", is_flag=True, help="Show all layers in the table.")
@click.option("--fail-on", metavar="KIND[,KIND]", help=f"Exit code 3 on these: {', '.join(KINDS)}; or any.")
@format_option
def probe(
    model: str,
    shape: str | None,
    classes: int | None,
    batch_size: int | None,
    seed: int | None,
    seeds: str | None,
    data: str | None,
    depths: str | None,
    norm: str | None,
    init: str | None,
    shortcut: str | None,
    every_layer: bool,
    fail_on: str | None,
    form: str,
) -> None:
    """Look at MODEL before training: what will it have trouble with?

    One backward pass through each of a few draws of its weights; nothing is trained, and nothing is written. Shown are
    the gradient over depth beside theory, the loss beside ln(classes), dead units, parameters without a gradient, and
    what float16 would lose. MODEL is a name as in gradlens run; with --depths, or several values of --norm, --init or
    --shortcut, a table of nets.
    """
    gates = set(parse_gates(fail_on, KINDS))
    if seed is not None and seeds is not None:
        raise ConfigError("--seed and --seeds are both given: choose one of them")
    if seed is not None and seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {seed}")
    from gradlens.probing import DEFAULT_SEEDS, ProbePlan, make_plans, parse_depths, parse_input, parse_list

    drawn = parse_seeds(seeds) if seeds else None if seed is None else (seed,)
    form_of_input = parse_input(shape) if shape is not None else None
    base = ProbePlan("plain18", form_of_input, classes, batch_size, drawn or DEFAULT_SEEDS, data=data)
    plans = make_plans(
        model,
        depths=parse_depths(depths),
        norms=parse_list(norm, "--norm"),
        inits=parse_list(init, "--init"),
        shortcuts=parse_list(shortcut, "--shortcut"),
        base=base,
    )
    if drawn is None and len(plans) > 1:
        plans = [replace(plan, seeds=DEFAULT_SEEDS[:1]) for plan in plans]
    from gradlens.analysis.initial import judge
    from gradlens.train.probe import probe as measure

    found = []
    for number, plan in enumerate(plans, 1):
        net = f"{plan.model}, net {number} of {len(plans)}" if len(plans) > 1 else plan.model

        def say(done: int, net: str = net) -> None:
            _talk(f"{net}: {done} draw(s) done")

        say(0)
        found.append(judge(measure(plan, say)))
    _talk("")
    _show(found, form, every_layer)
    fallen = [
        f"{item.probe.plan.model} is {f.kind}" for item in found for f in item.findings if gates & {f.kind, "any"}
    ]
    if fallen:
        raise GateError("; ".join(fallen))


def _talk(text: str) -> None:
    """Say on stderr how far it is, in one line of a terminal; nothing where that is none."""
    if sys.stderr.isatty():
        click.echo(f"\r{text}\033[K", nl=False, err=True)


def _show(found: list[Judged], form: str, every_layer: bool) -> None:
    from gradlens.terminal import probe as view

    if form == "json":
        print_rows([view.probe_facts(judged) for judged in found], form)
    elif form == "csv":
        print_rows([view.probe_row(item) for item in found] if len(found) > 1 else view.layer_rows(found[0]), form)
    else:
        from gradlens.terminal.console import results

        if len(found) > 1:
            view.print_sweep(results(), found)
        else:
            view.print_probe(results(), found[0], every_layer=every_layer)
