"""What `report` and `verify` print when all is well, as it was given: to the letter."""

REPORT = """\
RAE COMPUTE NODE – AUTOMATION STATUS
----------------------------------
Automation enabled: YES
Auto-start on boot: YES
User activity protection: ACTIVE
GPU protection: ACTIVE
Safe for unattended operation: YES

READY FOR CENTRAL CONTROL
"""
