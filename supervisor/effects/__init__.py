"""What carries out effects on the machine: inhibitor, work dir, systemd."""
