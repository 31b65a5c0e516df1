"""``gradlens probe``: check a model in a few seconds, before it is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from gradlens.cli.early_checks import check_data, check_model
from gradlens.cli.options import format_option, print_rows
from gradlens.config import INITS
from gradlens.diagnosis.kinds import REGISTRY, parse_gates
from gradlens.errors import ConfigError, GateError
from gradlens.format import plural
from gradlens.specs import parse_seeds

if TYPE_CHECKING:
    from gradlens.probe.judge import Judged

KINDS = tuple(kind.name for kind in REGISTRY if kind.before_training)


@click.command()
@click.argument("model")
@click.option(
    "--input", "shape", metavar="SHAPE",
    help="Shape of one example: CxHxW such as 3x224x224, the LENGTH of a vector, or long:LENGTH[:VOCABULARY] for "
    "tokens. Default: 3x64x64; 3x224x224 for torchvision; for a factory, inferred from its first layer.",
)  # fmt: skip
@click.option("--classes", type=int, help="Number of outputs (default 10, or that of the data).")
@click.option(
    "--batch-size", type=int, help="Number of examples (default 32, or 4 if an example has more than 50,000 values)."
)
@click.option("--seed", type=int, help="Seed of a single initialisation.")
@click.option(
    "--seeds",
    metavar="LIST",
    help="Seeds of several initialisations, such as 0-9 (default 0,1,2; for several models 0).",
)
@click.option(
    "--data", metavar="SPEC", help="Use real images instead of noise: patterns, folder:PATH, csv:FILE, cifar10, ..."
)
@click.option("--depths", metavar="LIST", help="Depths to compare, such as 18,34,56; MODEL is then plain or resnet.")
@click.option("--norm", metavar="LIST", help="batch, none, or batch,none; for plain and residual models.")
@click.option(
    "--init",
    metavar="LIST",
    help=f"Initialisations: one or more of {','.join(INITS)} (default he); for plain and residual models.",
)
@click.option("--shortcut", metavar="LIST", help="Shortcut options: A, B, or A,B (default A); for residual models.")
@click.option("--every-layer", is_flag=True, help="Show all layers in the table, not a selection.")
@click.option(
    "--fail-on",
    metavar="KIND[,KIND]",
    default=None,
    help=f"Exit with code 3 on a finding of these kinds: {', '.join(KINDS)}; or any.",
)
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
    """Check MODEL for problems before it is trained.

    Runs one backward pass for each of a few initialisations; nothing is trained and no file is written. Shows the
    gradient over depth compared with theory, the loss compared with ln(classes), dead units, parameters without a
    gradient, and the share of the gradient that float16 would lose. MODEL is a name as in gradlens run. With
    --depths, or several values of --norm, --init or --shortcut, a table compares the models.
    """
    gates = set(parse_gates(fail_on, kinds=KINDS))
    if seed is not None and seeds is not None:
        raise ConfigError("--seed and --seeds are both given: choose one of them")
    if seed is not None and seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {seed}")
    from gradlens.probe.plan import DEFAULT_SEEDS, ProbePlan, make_plans, parse_depths, parse_input, parse_list

    given_seeds = parse_seeds(seeds) if seeds is not None else None if seed is None else (seed,)
    form_of_input = parse_input(shape) if shape is not None else None
    base = ProbePlan("plain18", form_of_input, classes, batch_size, given_seeds or DEFAULT_SEEDS, data=data)
    plans = make_plans(
        model,
        depths=parse_depths(depths),
        norms=parse_list(norm, "--norm"),
        inits=parse_list(init, "--init"),
        shortcuts=parse_list(shortcut, "--shortcut"),
        base=base,
    )
    if given_seeds is None and len(plans) > 1:
        plans = [replace(plan, seeds=DEFAULT_SEEDS[:1]) for plan in plans]
    for plan in plans:
        check_model(plan.model)
        if plan.data is not None:
            check_data(plan.data)
    from gradlens.terminal.spinner import working

    found = []
    with working("loading PyTorch", at_once=True) as line:
        from gradlens.probe.judge import judge
        from gradlens.probe.measure import probe as measure

        for number, plan in enumerate(plans, 1):
            name = f"{plan.model}, model {number} of {len(plans)}" if len(plans) > 1 else plan.model

            def show_progress(done: int, name: str = name) -> None:
                line.say(f"{name}: {plural(done, 'initialisation')} done")

            show_progress(0)
            found.append(judge(measure(plan, show_progress)))
    _show(found, form, every_layer)
    failed = [
        f"{item.probe.plan.model} is {f.kind}" for item in found for f in item.findings if gates & {f.kind, "any"}
    ]
    if failed:
        raise GateError("; ".join(failed))


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
