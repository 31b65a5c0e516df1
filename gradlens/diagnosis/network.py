"""What a remedy can name: the run's optimizer, learning rate, schedule, norms and kinds of layers."""

from __future__ import annotations

import math

import numpy as np

from gradlens.analysis.stats import median, median_of_all
from gradlens.diagnosis.findings import quoted, say_layers
from gradlens.diagnosis.recorded_rows import PARAM_GRAD, UPDATE, Recording
from gradlens.metrics import PARAM_NORM

RESCALING = ("adam", "rmsprop", "adagrad", "adadelta", "lion", "lamb", "lars", "adafactor", "sophia", "muon", "rprop")
"""Optimizers that divide each gradient by a size of its own, by their names."""
LARGE_INPUT = 10.0
"""Initialisations assume inputs with a root mean square of about 1: LeCun et al. 1998, Efficient BackProp, sec. 4.3; a
tenfold input is a tenfold output, and a hundredfold curvature of the loss."""
SMALL_INPUT = 0.1
"""A root mean square of the inputs that is as far below 1."""
SHRUNK = 0.01
"""Share of the first norm below which weights count as gone; no outside source: healthy weight decay takes a few
percent off in the runs of experiments/scorecard."""
TINY_INPUT = 0.01
"""Inputs a hundred times smaller leave little but biases: images divided by 255 twice have 0.004 at most."""
FAR_SLOWER, HARDLY = 1e-3, 1e-3
"""A group whose rate is a thousandth of another's, and whose layers change by a thousandth of their norm in all, learns
nothing; no outside source."""
LARGE_DECAY = 0.01
"""Share of a weight that decay takes in a step. Loshchilov & Hutter 2019, Decoupled weight decay, sec. 3: it is the
product with the learning rate that counts; in common recipes it is 1e-6 to 1e-3."""
NEAR_MEAN = 0.02
"""Standard deviation of data, as a share of their mean, below which the mean drowns the rest; LeCun et al. 1998, sec.
4.3: inputs should have mean 0. The limit has no outside source."""
FAR_INPUT = 100.0
"""Inputs that are worth a note though the loss falls; no outside source."""
MOSTLY_ROUNDED = 0.5
"""Share of updates lost in rounding that is worth saying; no outside source."""
LOW_GAIN, HIGH_GAIN = 0.05, 5.0
"""Standard deviation of weights times the root of their number of inputs: sqrt(2) in He initialisation, 1 in Glorot's,
0.58 in torch's default of linear layers. A tenth of the least and a few times the largest of these."""
LARGE_STEP = 0.1
"""Ben Braiek & Khomh 2023, TheDeepChecker: log10 of update / weight is healthy in [-4, -1]."""
CALM_STEP = 0.03
"""The relative first update that a lowered rate may have at most: a third of that limit. Measured on a post-norm
transformer of experiments/scorecard/programs: from 0.22, a hundredth of the rate learnt a third of what a tenth did."""
GOOD_STEP = 1e-3
"""The relative update that a remedy aims at: about the middle of that range, on the careful side."""


class Network:
    """What is known of a model and its training.

    Args:
        rec: The recording.
    """

    def __init__(self, rec: Recording) -> None:
        self._rec = rec
        self.optimizers = rec.setup.entries("optimizers")
        kinds = {layer.kind for layer in rec.run.layers}
        self.norms = rec.norms
        self.is_recurrent = any(kind.removesuffix("Cell") in ("RNN", "LSTM", "GRU") for kind in kinds)
        tags = {tag for layer in rec.run.layers for tag in layer.tags}
        self.has_attention = any("Attention" in kind for kind in kinds) or bool(tags & {"query", "attention"})
        self.has_shortcuts = "residual" in tags or any(layer.role == "shortcut" for layer in rec.run.layers)

    @property
    def optimizer(self) -> str:
        """The optimizer's class, or "the optimizer"."""
        return self.optimizers[0].text("class") if len(self.optimizers) == 1 else "the optimizer"

    @property
    def rescales(self) -> bool:
        """Whether every optimizer divides gradients by their size."""
        return bool(self.optimizers) and all(
            any(name in item.text("class").lower() for name in RESCALING) for item in self.optimizers
        )

    @property
    def rate(self) -> float:
        """The largest learning rate, or NaN."""
        rates = self._rec.scalar("lr")
        known = rates[np.isfinite(rates)]
        return float(known.max()) if len(known) else math.nan

    @property
    def clips(self) -> bool:
        """Whether gradients are clipped."""
        return bool(len(self._rec.scalar("clip_coefficient")) or self._rec.setup.entries("clipping"))

    @property
    def warms_up(self) -> bool:
        """Whether the learning rate begins below half of its largest value."""
        rates = self._rec.scalar("lr")
        known = rates[np.isfinite(rates)]
        return bool(len(known) and known[0] < 0.5 * known.max())

    @property
    def schedule(self) -> str:
        """The class of the first schedule of the learning rate, or ""."""
        found = [item.text("class") for optimizer in self.optimizers for item in optimizer.entries("schedulers")]
        return found[0] if found else ""

    @property
    def has_normal_inputs(self) -> bool:
        """Whether all data are seen to be whole numbers (tokens), or of a size near 1."""
        data = [item for item in self._rec.setup.entries("inputs") if item.flag("data")]
        return bool(data) and all(
            "int" in item.text("dtype") or SMALL_INPUT < item.number("rms") < LARGE_INPUT for item in data
        )

    @property
    def bounded(self) -> dict[str, str]:
        """The layers whose output goes into a tanh or sigmoid, and its name, as far as the graph of the loss shows."""
        return {item.text("layer"): item.text("op").lower() for item in self._rec.setup.graph.entries("bounded")}

    def say_bounded(self) -> str:
        """Return "the sigmoid behind conv1 and conv2", or "" where no bounded activation function is seen."""
        found = self.bounded
        if not found:
            return ""
        return f"the {' and '.join(dict.fromkeys(found.values()))} behind {say_layers(tuple(found))}"

    def say_rate(self) -> str:
        """Return "the learning rate of Adam (0.02)", as far as it is known."""
        number = f" ({self.rate:.3g})" if math.isfinite(self.rate) else ""
        return f"the learning rate{f' of {self.optimizer}' if self.optimizers else ''}{number}"

    def first_update(self) -> float:
        """Return the median over main layers of the first relative update, or NaN."""
        if not self._rec.has(UPDATE):
            return math.nan
        series = self._rec.series(UPDATE)
        main = self._rec.run.main_layers()
        return float(median(series.at(0)[main])) if len(main) else math.nan

    def slow_down(self) -> str:
        """Return the advice for updates that are too large; it never advises what is there already."""
        warm = "" if self.warms_up else ", and warm it up over the first hundred steps"
        if math.isfinite(self.rate) and (first := self.first_update()) > LARGE_STEP:
            lower = f"Lower {self.say_rate()} to about {self.rate / 10 ** math.ceil(math.log10(first / CALM_STEP)):.1g}"
        else:
            lower = f"Lower {self.say_rate()} by a factor of 10"
        norm = " Where norms come after the attention (post-norm), put them before it." if self.has_attention else ""
        return f"{lower}{warm}.{norm}"

    def speed_up(self, step: float) -> str:
        """Return the advice for updates that are too small.

        Args:
            step: The usual relative update, or NaN.
        """
        if self.large_eps():
            return f"Set eps of {self.optimizer} to 1e-8, its default: it is larger than the gradients."
        rates = self._rec.scalar("lr")
        known = rates[np.isfinite(rates)]
        check = f", or check {self.schedule or 'its schedule'}" if len(known) and known.min() < known.max() else ""
        factor = 10.0 ** math.floor(math.log10(GOOD_STEP / step)) if step > 0 else math.nan
        if not (math.isfinite(self.rate) and factor >= 10) or check:
            return f"Raise {self.say_rate()} by a factor of 10 to 100{check}."
        return f"Raise {self.say_rate()} step by step, to about {self.rate * factor:.1g}."

    def clip(self) -> str:
        """Return the advice to clip gradients, or to clip them more."""
        if self.clips:
            limits = [item.number("max_norm") for item in self._rec.setup.entries("clipping")]
            if len(limits) == 1 and limits[0] > 0:
                return f"Lower max_norm of clip_grad_norm_ ({limits[0]:g}) to about {limits[0] / 10:g}."
            return "Clip the gradient's norm at a smaller value."
        why = " (in a recurrent network it grows with every time step)" if self.is_recurrent else ""
        return f"Clip the gradient's norm, with clip_grad_norm_ before the optimizer's step{why}."

    def tame(self) -> str:
        """Return the advice for weights that are too large for their number of inputs."""
        norm = "" if self.norms else ", or normalise the layers' outputs"
        name = "Glorot" if self.bounded else "He"
        return f"Use {name} initialisation (the weights are too large for their number of inputs){norm}."

    def shrunk(self) -> tuple[str, str]:
        """Return a sentence on weights that weight decay has brought to nearly nothing, and a remedy; or twice ""."""
        decays = [
            (item.text("class"), group.entry("settings").number("weight_decay"))
            for item in self.optimizers
            for group in item.entries("groups")
        ]
        name, decay = max(decays, key=lambda pair: pair[1] if pair[1] > 0 else 0.0, default=("", 0.0))
        losses = self._rec.setup.graph.entries("losses")
        terms = bool(losses) and not any(item.flag("alone") for item in losses)
        if not (decay > 0 or terms) or not self._rec.has(PARAM_NORM):
            return "", ""
        series, main = self._rec.series(PARAM_NORM), self._rec.run.main_layers()
        known = main[series.by_layers(lambda norms: (norms > 0).all(axis=0))[main]]
        if len(series) < 2 or not len(known):
            return "", ""
        first, last = series.at([0, -1])[:, known]
        if not (left := median_of_all(last / first)) < SHRUNK:
            return "", ""
        if not decay > 0:
            said = f"the weights shrink to {left:.1g} of their first norm, and the loss has another term than its error"
            return said, "If that term is a penalty on the weights, divide its factor by 10 to 1000."
        said = f"the weights shrink to {left:.1g} of their first norm, and weight_decay is {decay:.3g}"
        return said, f"Lower weight_decay of {name} ({decay:.3g}): values from 1e-5 to 0.1 are common."

    def decays(self) -> tuple[str, str]:
        """Return a sentence on weight decay that takes a large part of the weights in each step, and a remedy."""
        for item in self.optimizers:
            if self.rescales and "adamw" not in item.text("class").lower():
                continue  # there the decay is added to the gradient and divided by its size
            for group in item.entries("groups"):
                rate, decay = group.entry("lr").number("largest"), group.entry("settings").number("weight_decay")
                if rate * decay > LARGE_DECAY:
                    name = item.text("class")
                    return (
                        f"{name} takes {rate * decay:.1%} off each weight in a step (learning rate {rate:.3g} times "
                        f"weight_decay {decay:.3g})",
                        f"Lower weight_decay of {name} ({decay:.3g}): values from 1e-5 to 0.1 are common.",
                    )
        return "", ""

    def large_eps(self) -> str:
        """Return a sentence on an eps of Adam above the gradients, so that steps shrink with them, or ""."""
        if not self.rescales or not self._rec.has(PARAM_GRAD):
            return ""
        settings = [group.entry("settings") for item in self.optimizers for group in item.entries("groups")]
        eps = max((item.number("eps") for item in settings if item.number("eps") > 0), default=0.0)
        main = self._rec.run.main_layers()
        sizes = np.sqrt([max(self._rec.run.layers[i].param_numel, 1) for i in main])
        usual = self._rec.series(PARAM_GRAD).typical[main] / sizes
        if not len(main) or not eps > float(np.nanmax(usual)) > 0:
            return ""
        return (
            f"eps of {self.optimizer} ({eps:.3g}) is larger than the gradients (at most {float(np.nanmax(usual)):.1g} "
            "per weight), so that it makes steps smaller"
        )

    def inputs(self) -> tuple[str, str]:
        """Return a sentence on data that are far from a standard deviation of 1 or not finite, and a remedy."""
        for item in self._rec.setup.entries("inputs"):
            layer = item.text("layer")
            if item.flag("finite") is False:
                return f"the data that {quoted(layer)} gets hold NaN or Inf", "Remove NaN and Inf from the data."
            if "float" in item.text("dtype") and item.number("rms") > LARGE_INPUT and layer not in self.norms:
                return (
                    f"the data that {quoted(layer)} gets go from {item.number('least'):.3g} to "
                    f"{item.number('largest'):.3g} (root mean square {item.number('rms'):.3g}): they are not "
                    "normalised",
                    "Scale the inputs to mean 0 and standard deviation 1 (images: divide by 255).",
                )
            mean, varies = item.number("mean"), math.sqrt(max(item.number("rms") ** 2 - item.number("mean") ** 2, 0.0))
            if "float" in item.text("dtype") and 0 < varies < NEAR_MEAN * abs(mean) and layer not in self.norms:
                return (
                    f"the data that {quoted(layer)} gets lie around {mean:.3g} and vary by {varies:.2g} only: what "
                    "tells examples apart is small beside their mean",
                    "Scale the inputs to mean 0 and standard deviation 1 (were they normalised twice, or with the mean "
                    "of another scale?).",
                )
            if "float" in item.text("dtype") and 0 < item.number("rms") < TINY_INPUT and layer not in self.norms:
                return (
                    f"the data that {quoted(layer)} gets have a root mean square of {item.number('rms'):.1g}: next to "
                    "nothing comes through",
                    "Scale the inputs to mean 0 and standard deviation 1 (were they divided twice?).",
                )
        return "", ""

    def far_inputs(self) -> tuple[str, str]:
        """Return a sentence on data that are far too large, which a falling loss may hide, and a remedy."""
        large = any(
            "float" in item.text("dtype") and item.number("rms") > FAR_INPUT and item.text("layer") not in self.norms
            for item in self._rec.setup.entries("inputs")
        )
        return self.inputs() if large else ("", "")

    def slow_groups(self) -> tuple[str, str]:
        """Return a sentence on layers that hardly change because their group has a far smaller rate, and a remedy."""
        groups = [group for item in self.optimizers for group in item.entries("groups")]
        rates = [group.entry("lr").number("largest") for group in groups]
        top = max(rates, default=0.0)
        if not self._rec.has(UPDATE) or not top > 0 or not len(self._rec.run.steps):
            return "", ""
        usual = self._rec.series(UPDATE).typical
        steps = int(np.ptp(self._rec.run.steps)) + 1
        change = {layer.name: float(value) * steps for layer, value in zip(self._rec.run.layers, usual, strict=True)}
        for group, rate in zip(groups, rates, strict=True):
            names = tuple(name for name in group.texts("layers") if 0 < change.get(name, math.nan) < HARDLY)
            if 0 < rate < FAR_SLOWER * top and names:
                largest = max(change[name] for name in names)
                return (
                    f"in all {steps:,} steps, at most {largest:.1g} of the norm of {say_layers(names)} changes: the "
                    f"learning rate of their group is {rate:.3g}, beside {top:.3g} of another",
                    "Raise it, if they are to learn.",
                )
        return "", ""

    def rounding(self) -> tuple[str, str]:
        """Return a sentence on updates that 16-bit weights lose in rounding, and a remedy; or twice ""."""
        for item in self._rec.setup.entries("rounding"):
            if item.number("unchanged") > MOSTLY_ROUNDED:
                return (
                    f"{item.number('unchanged'):.0%} of the elements of {item.text('dtype')} weights that have a "
                    f"gradient stay as they are in a step (step {item.whole('step')}): the update is less than half "
                    f"of the spacing of {item.text('dtype')} numbers",
                    f"Keep the weights in float32 and compute in {item.text('dtype')} with torch.autocast, unless the "
                    "optimizer rounds at random or adds up what is lost. ",
                )
        return "", ""

    def first_weights(self) -> tuple[str, str]:
        """Return a sentence on initial weights of a wrong size for their number of inputs, and a remedy."""
        main = {self._rec.run.layers[i].name for i in self._rec.run.main_layers()}
        gains = [item for item in self._rec.setup.entries("gains") if item.text("layer") in main - set(self.norms)]
        sizes = [item.number("gain") for item in gains if item.number("gain") > 0]
        typical = median_of_all(sizes) if len(sizes) > 1 else 1.0
        if LOW_GAIN <= typical <= HIGH_GAIN or self.norms or self._rec.run.steps[:1].any():
            return "", ""
        fix = "Initialise the weights with torch's default, He or Glorot initialisation instead."
        if typical < 1:
            return (
                "the initial weights are too small for their number of inputs: their standard deviation times its root "
                f"is {typical:.2g} (He initialisation 1.4, torch's default 0.6)",
                fix,
            )
        return (
            "the initial weights are too large for their number of inputs: their standard deviation times its root is "
            f"{typical:.2g} (He initialisation 1.4, torch's default 0.6)",
            fix,
        )

    def sum_of_losses(self) -> str:
        """Return a sentence on a loss that is a sum over elements, or ""."""
        for loss in self._rec.setup.graph.entries("losses"):
            count = math.prod(loss.numbers("shape"))
            if loss.text("reduction") == "sum" and count > 1:
                return (
                    f"{loss.text('op') or 'the loss'} is a sum over {count:,.0f} elements (reduction='sum'), so its "
                    "gradient grows with their number"
                )
        return ""


def usual_update(rec: Recording) -> float:
    """Return the median relative update of a main layer whose weights change, or NaN.

    Args:
        rec: The recording.
    """
    if not rec.has(UPDATE):
        return math.nan
    series, main = rec.series(UPDATE), rec.run.main_layers()
    moving = main[series.positive[main]]
    return float(median(series.typical[moving])) if len(moving) else math.nan
