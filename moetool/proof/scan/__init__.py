"""Are the values inside a valid container those of a model, or has something happened to them?

    subjects        which tensors can be looked at, by canonical or stored name, and which cannot
    measures        one tensor, streamed once: norms and largest values of rows, zeros, spikes
    passage         in which narrower type the values would fit: the trace of an earlier cast
    faint           values that are nearly nothing: an exponent that lost a bit
    robust          median and MAD, and how far from them something lies
    findings        Finding, Severity, and every threshold
    within          what one tensor's measures say
    between         what its siblings say: other layers, other experts, rows of the router
    scan            all of it -> ScanReport

Nothing is known here of what the values should be. A digest proves (`identity`); this looks.
"""

from moetool.proof.scan.findings import Finding, Severity
from moetool.proof.scan.scan import ScanReport, scan

__all__ = ["Finding", "ScanReport", "Severity", "scan"]
