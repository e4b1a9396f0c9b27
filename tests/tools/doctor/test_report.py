"""The words of report, verify and doctor: the seed's to the letter, and no line better than its checks."""

from __future__ import annotations

import pytest
from support.seed import REPORT

from supervisor.tools.doctor import report
from supervisor.tools.doctor.report import AUTOMATION, BOOT, GPU, LINES, PERSON, UNATTENDED, Check

GOOD = [Check(line.lower(), line, True, "fine") for line in LINES]


def but(line: str, ok: bool | None) -> list[Check]:
    """All well, but for one line's only check."""
    return [Check(c.name, c.line, ok, "the reason", "the fix") if c.line == line else c for c in GOOD]


def test_the_block_is_the_seeds() -> None:
    assert report.report(GOOD) + "\n" == REPORT
    assert report.ready(GOOD)


@pytest.mark.parametrize("line", LINES)
def test_any_failure_is_named_and_nothing_is_ready(line: str) -> None:
    text = report.report(but(line, False))
    no = LINES[line][1]
    assert f"{line}: {no}\n" in text
    assert f"\n{line.lower()}: the reason; the fix\n" in text
    assert text.endswith("\n\nNOT READY")
    assert f"{UNATTENDED}: NO\n" in text, "one failure is enough"
    assert report.READY not in text
    assert not report.report_dict(but(line, False))["ready"]


@pytest.mark.parametrize("line", [AUTOMATION, BOOT, PERSON, GPU])
@pytest.mark.parametrize("gone", [True, False])
def test_a_line_that_nothing_was_looked_at_for_is_not_true(line: str, gone: bool) -> None:
    checks = [c for c in GOOD if c.line != line] if gone else but(line, None)
    assert not report.stands(line, checks)
    assert report.report(checks).endswith("NOT READY")


def test_no_checks_no_claim() -> None:
    assert not any(report.stands(line, []) for line in LINES)


def test_verify_is_a_line_each_between_host_and_verdict() -> None:
    checks = [*GOOD, Check("key", UNATTENDED, None, "none is configured")]
    lines = report.verify(checks, "box", "2026-01-01T00:00:00+00:00").splitlines()
    assert lines[0] == "rae-node on box, 2026-01-01T00:00:00+00:00"
    assert all(line.startswith("[PASS] ") for line in lines[1:-1])
    assert lines[-2] == "[PASS] key: not applicable, none is configured"
    assert lines[-1] == "Verdict: PASS"
    lines = report.verify(but(GPU, False), "box", "now").splitlines()
    assert "[FAIL] gpu protection: the reason; the fix" in lines
    assert lines[-1] == "Verdict: FAIL (1 of 5 checks)"


def test_json_forms() -> None:
    document = report.verify_dict(but(GPU, False), "box", "now")
    assert (document["host"], document["time"], document["passed"]) == ("box", "now", False)
    assert [check["result"] for check in document["checks"]] == ["passed", "passed", "passed", "failed", "passed"]
    assert set(document["checks"][0]) == {"name", "result", "line", "ok", "reason", "fix"}


def test_doctor_says_how_to_fix_it() -> None:
    text = report.doctor(but(PERSON, False))
    assert "  FAILED  user activity protection       the reason\n" in text
    assert "→ the fix" in text
    assert text.endswith("5 checks, 1 failed")
    assert report.doctor(GOOD).endswith("5 checks, none failed")


def test_a_warning_passes_and_says_what_to_do() -> None:
    checks = [*GOOD, Check("account", UNATTENDED, True, "the reason", "the fix", warning=True)]
    assert "  warn    account                        the reason\n" in report.doctor(checks)
    assert "→ the fix" in report.doctor(checks)
    assert report.verify(checks, "box", "now").splitlines()[-2:] == ["[PASS] account: warning, the reason", "Verdict: PASS"]
    assert report.ready(checks)
    assert checks[-1].as_dict()["warning"] is True
