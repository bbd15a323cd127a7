"""How fast the broker is, beside a floor and a naive build measured in the same run. See README.md here."""
