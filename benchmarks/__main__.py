"""All benchmarks, one table: ``python -m benchmarks``."""

from __future__ import annotations

from importlib import import_module

MODULES = ("mining", "surface", "step", "loading", "plain", "sparse", "sens", "embed", "startup")


def main() -> None:
    """Run every module's ``run`` and print name, measured value and bar."""
    for module in MODULES:
        print(f"\n{module}")
        for name, measured, bar in import_module(f"benchmarks.{module}").run():
            shown = measured if isinstance(measured, str) else f"{measured:.2f}"
            print(f"  {name:72} {shown:>22}" + ("" if bar is None else f"   bar {bar}"))


if __name__ == "__main__":
    main()
