"""The forms of `report`, `verify` and `doctor`, made from one list of checks. Looks at nothing itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

TITLE: Final = "RAE COMPUTE NODE – AUTOMATION STATUS"
RULE: Final = "-" * 34
READY: Final = "READY FOR CENTRAL CONTROL"
NOT_READY: Final = "NOT READY"

# The report's five lines, with their texts for yes and for no. Every check belongs to one of them.
AUTOMATION: Final = "Automation enabled"
BOOT: Final = "Auto-start on boot"
PERSON: Final = "User activity protection"
GPU: Final = "GPU protection"
UNATTENDED: Final = "Safe for unattended operation"
LINES: Final[Mapping[str, tuple[str, str]]] = {
    AUTOMATION: ("YES", "NO"),
    BOOT: ("YES", "NO"),
    PERSON: ("ACTIVE", "INACTIVE"),
    GPU: ("ACTIVE", "INACTIVE"),
    UNATTENDED: ("YES", "NO"),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One check. `ok` None: it does not apply here, as `reason` says. `warning`: it passed, but somebody should know the
    reason. `fix`: what to do about a failure or a warning. `reading`: details for scripts, where there are any."""

    name: str
    line: str
    ok: bool | None
    reason: str
    fix: str = ""
    reading: dict[str, Any] | None = None
    warning: bool = False

    @classmethod
    def of(cls, name: str, line: str, wrong: str, right: str, fix: str = "") -> Check:
        """Failed because of `wrong`; passed with `right` if nothing is wrong."""
        return cls(name, line, not wrong, wrong or right, fix)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: `result` is passed, failed, or not applicable."""
        fields = asdict(self)
        if self.reading is None:
            del fields["reading"]
        if not self.warning:
            del fields["warning"]
        return {"name": fields.pop("name"), "result": self.result, **fields}

    @property
    def result(self) -> str:
        return {True: "passed", False: "failed", None: "not applicable"}[self.ok]

    @property
    def failure(self) -> str:
        return f"{self.name}: {self.reason}" + (f"; {self.fix}" if self.fix else "")


def failed(checks: Iterable[Check]) -> list[Check]:
    return [check for check in checks if check.ok is False]


def stands(line: str, checks: Sequence[Check]) -> bool:
    """A line of the report is true: a check for it passed, and none failed. The last line needs this of all checks."""
    about = list(checks) if line == UNATTENDED else [check for check in checks if check.line == line]
    return any(check.ok for check in about) and not failed(about)


def ready(checks: Sequence[Check]) -> bool:
    return all(stands(line, checks) for line in LINES)


def report(checks: Sequence[Check]) -> str:
    """The final automation report, in the seed's form, with the checks that failed."""
    lines = [TITLE, RULE]
    lines += [f"{line}: {yes if stands(line, checks) else no}" for line, (yes, no) in LINES.items()]
    lines.append("")
    if ready(checks):
        return "\n".join([*lines, READY])
    return "\n".join([*lines, *(check.failure for check in failed(checks)), "", NOT_READY])


def report_dict(checks: Sequence[Check]) -> dict[str, Any]:
    lines = {line: yes if stands(line, checks) else no for line, (yes, no) in LINES.items()}
    return {"ready": ready(checks), "lines": lines, "failed": [check.as_dict() for check in failed(checks)]}


def verify(checks: Sequence[Check], host: str, time: str) -> str:
    """The acceptance procedure: host and date, a line for each check, the verdict."""
    lines = [f"rae-node on {host}, {time}"]
    for check in checks:
        if check.ok is False:
            lines.append(f"[FAIL] {check.failure}")
        else:
            how = "warning, " if check.warning else "not applicable, " if check.ok is None else ""
            lines.append(f"[PASS] {check.name}: {how}{check.reason}")
    wrong = failed(checks)
    verdict = "PASS" if ready(checks) else f"FAIL ({len(wrong)} of {len(checks)} checks)"
    return "\n".join([*lines, f"Verdict: {verdict}"])


def verify_dict(checks: Sequence[Check], host: str, time: str) -> dict[str, Any]:
    return {"host": host, "time": time, "passed": ready(checks), "checks": [check.as_dict() for check in checks]}


def doctor(checks: Sequence[Check]) -> str:
    """Every check in a line, below its line of the report."""
    width = max((len(check.name) for check in checks), default=0)
    lines: list[str] = []
    for line in LINES:
        lines += [line, *(_row(check, width) for check in checks if check.line == line), ""]
    wrong = len(failed(checks))
    return "\n".join([*lines, f"{len(checks)} checks, {wrong} failed" if wrong else f"{len(checks)} checks, none failed"])


def _row(check: Check, width: int) -> str:
    mark = "warn" if check.warning else {True: "ok", False: "FAILED", None: "n/a"}[check.ok]
    text = f"  {mark:<6}  {check.name:<{width}}  {check.reason}"
    return text + (f"\n  {'':<6}  {'':<{width}}  → {check.fix}" if check.fix and mark in ("FAILED", "warn") else "")
