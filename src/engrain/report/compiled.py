"""The part of a verdict's page that is on compiled weights: their proof, and how they were made."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engrain.core.number import checked
from engrain.report import plots
from engrain.report.numbers import between
from engrain.report.page import Fact, Section, Table

if TYPE_CHECKING:
    from engrain.core.compile.proof import Fidelity, Proof, Share

_CURVE = ("step", "loss", "kl_recovered", "drift")


@dataclass(frozen=True)
class Compiled:
    """Weights that a verdict is on.

    Attributes:
        proof: what they do, held against the vector.
        origin: the task vector's: ``backend``; ``curve``, how training went; ``backends``, what else was tried.
    """

    proof: "Proof"
    origin: Mapping[str, Any]

    @property
    def backend(self) -> str:
        """What compiled them."""
        return str(self.origin.get("backend", "weights"))

    def headline(self, effect: float) -> str:
        """Return what the weights do, in a sentence.

        Args:
            effect: on the margin, nats per token.
        """
        return (
            f"Compiled by {self.backend} and with the vector removed, the model prefers the replies with the behavior "
            f"by {effect:+.3f} nats per token more than before: {self.proof.compiled.recovered.value:.0%} of what "
            f"steering does, at {self.proof.compiled.drift_ratio:.0%} of its side effects."
        )

    def facts(self) -> list[Fact]:
        """Return the numbers that matter most."""
        own = self.proof.compiled
        return [
            Fact("recovered", f"{own.recovered.value:.0%}", _shares(own.recovered) or "of the vector's effect"),
            Fact("KL recovered", f"{own.kl_recovered.value:.0%}", "on the steered model's replies"),
            Fact("drift", f"{own.drift_ratio:.0%}", "of the vector's on neutral text"),
        ]

    def sections(self) -> Iterator[Section]:
        """Yield what there is to show."""
        yield self._proof()
        yield self._depths()
        curve = checked(self.origin.get("curve"), _CURVE)
        if curve:
            rows = [{name: one[name] for name in _CURVE} for one in curve]
            sentence = "On held-out texts while the weights were trained; the best step is the one that was kept."
            yield Section("Training", sentence, plots=[plots.training_curve(rows)])

    def _proof(self) -> Section:
        own = self.proof.compiled
        points = [{"backend": self.backend, "recovered": own.recovered.value, "drift_ratio": own.drift_ratio}]
        points += [
            {"backend": one.get("backend", "?"), "recovered": one["recovered"], "drift_ratio": one["drift"]}
            for one in checked(self.origin.get("backends"), ("recovered", "drift"))
            if one.get("backend") != self.backend
        ]
        scales = [{"scale": one.scale, "effect": one.effect, "kl_mean": one.kl_mean} for one in self.proof.scales]
        said = []
        if self.proof.control is not None:
            found = self.proof.control
            said.append(
                f"A random direction of the same length, compiled likewise, moves the margin by {found.effect:+.3f} "
                f"({between(found.ci95)}); the vector itself by {self.proof.steered.effect:+.3f}."
            )
        return Section(
            "The weights against the vector",
            "Best is all of the effect and none of the side effects. The base has none of both, the vector all.",
            plots=[plots.recovery_against_drift(points), plots.scale_curve(scales)],
            tables=[Table(("measure", "compiled", "95 % interval", "rounded to bfloat16"), list(self._rows()))],
            points=said,
        )

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        own, rounded = self.proof.compiled, self.proof.rounded
        for what, share, other in (
            (f"behavior recovered, {own.recovered.n} pairs", own.recovered, rounded.recovered),
            (f"KL recovered, {own.kl_recovered.n} replies", own.kl_recovered, rounded.kl_recovered),
        ):
            yield what, f"{share.value:.1%}", _shares(share), f"{other.value:.1%}"
        for kind, drift in own.drift.items():
            divergence, beside = drift.compiled, drift.steered
            yield f"drift on {kind} text over the vector's", f"{drift.ratio:.1%}", "", _ratio(rounded, kind)
            yield (
                f"KL on {kind} text, vector → weights",
                f"{beside.kl_mean:.4f} → {divergence.kl_mean:.4f}",
                f"95th percentile {beside.kl_p95:.3f} → {divergence.kl_p95:.3f}",
                "",
            )

    def _depths(self) -> Section:
        rows = [
            (f"block {one.layer}", f"{one.residual:.3f}", f"{one.projection:.3f}", f"{one.cosine:.3f}")
            for one in self.proof.depths
        ]
        head = ("hidden states", "residual", "projection", "cosine")
        sentence = "The shift from base to compiled beside that from base to steered: 0, 1 and 1 where they are one."
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.proof.attention.items())
        said = [f"Attention that the replies pay to the user's last turn, from the first changed block on: {shares}."]
        return Section("Depth", sentence, tables=[Table(head, rows)], points=said if shares else [])


def _shares(share: "Share") -> str:
    return "" if share.ci95 is None else "{:.1%} to {:.1%}".format(*share.ci95)


def _ratio(found: "Fidelity", kind: str) -> str:
    return f"{found.drift[kind].ratio:.1%}" if kind in found.drift else ""
