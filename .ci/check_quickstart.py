"""Checks the quickstart's bars: says which are met, and exits with 1 if one is missed."""

import json
import sys
from pathlib import Path

methods = json.loads(Path(sys.argv[1]).read_text())["methods"]
teacher, no_cot, latent, lori = (methods[name] for name in ("explicit_cot", "no_cot", "latent_only", "lori"))
bars = {
    "teacher at least 95 %": teacher["accuracy"] >= 0.95,
    "at least 1,000 test problems": min(m["n"] for m in methods.values()) >= 1000,
    "No-CoT at least 20 points below the teacher": no_cot["accuracy"] <= teacher["accuracy"] - 0.20,
    "LoRi above No-CoT by more than the intervals": lori["low"] > no_cot["high"],
    "LoRi above latent-only by more than the intervals": lori["low"] > latent["high"],
    "LoRi at 40 % of the teacher's passes or fewer": lori["passes"] <= 0.4 * teacher["passes"],
}
for bar, met in bars.items():
    print(f"{'met   ' if met else 'MISSED'}  {bar}")
sys.exit(0 if all(bars.values()) else 1)
